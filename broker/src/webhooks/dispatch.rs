//! The tasks that look up jobs and make calls, off the way of every submission.

use std::time::Duration;

use bytes::Bytes;
use protocol::id::UnixMillis;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::body::body;
use super::book::{Book, Delivery};
use super::look::look;
use super::send::Sender;
use crate::clock;
use crate::engine::Engine;

/// How long after a queue could not be read it is tried again: damaged ones stay so, a busy disk does not.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How often old dead letters are looked for; they are kept for weeks.
const SWEEP_EVERY: Duration = Duration::from_secs(60 * 60);

/// How long a stop waits for calls under way: what was answered then need not be repeated.
const GRACE: Duration = Duration::from_secs(1);

/// Looks up what became of submissions, a queue at a time.
pub(super) async fn look_up(book: Book, engine: Engine, stop: CancellationToken) {
    loop {
        let (queue, ids) = tokio::select! {
            looks = book.next_looks() => looks,
            () = stop.cancelled() => return,
        };
        let looked = tokio::select! {
            looked = look(&book, &engine, queue, &ids) => looked,
            () = stop.cancelled() => return,
        };
        if let Err(refusal) = looked {
            tracing::warn!(queue = %queue.short(), "cannot look up webhooks of queue {}: {refusal}", queue.short());
            let (book, stop) = (book.clone(), stop.clone());
            // One such wait for each queue that has webhooks and cannot be read.
            tokio::spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_AGAIN) => book.look_again(ids),
                    () = stop.cancelled() => {}
                }
            });
        }
    }
}

/// Makes calls as they come due. When told to stop, it soon interrupts those under way; they are made again after a restart.
pub(super) async fn deliver(book: Book, sender: Sender, public_url: Option<String>, stop: CancellationToken) {
    let mut under_way = JoinSet::new();
    let mut sweeps = tokio::time::interval(SWEEP_EVERY);
    loop {
        let next_at = loop {
            match book.next() {
                Ok(delivery) => {
                    let (book, sender, public_url) = (book.clone(), sender.clone(), public_url.clone());
                    under_way.spawn(try_once(book, sender, public_url, delivery, stop.clone()));
                }
                Err(next_at) => break next_at,
            }
        };
        tokio::select! {
            () = book.due() => {}
            () = until(next_at) => {}
            Some(_) = under_way.join_next() => {}
            _ = sweeps.tick() => book.sweep(),
            () = stop.cancelled() => break,
        }
    }
    while under_way.join_next().await.is_some() {}
}

async fn until(at: Option<UnixMillis>) {
    match at {
        Some(at) => tokio::time::sleep(Duration::from_millis(at.since(clock::now()))).await,
        None => std::future::pending().await,
    }
}

async fn try_once(book: Book, sender: Sender, public_url: Option<String>, delivery: Delivery, stop: CancellationToken) {
    let cut = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    let result = tokio::select! {
        result = send(&book, &sender, public_url.as_deref(), &delivery) => result,
        () = cut => return,
    };
    book.tried(delivery, result).await;
}

async fn send(book: &Book, sender: &Sender, public_url: Option<&str>, delivery: &Delivery) -> Result<(), String> {
    let id = delivery.id;
    let stored = book.stored(id.hook).await.map_err(|error| {
        tracing::warn!(%error, "cannot read the webhook {id}: {error}");
        "what to send cannot be read from the broker's disk".to_owned()
    })?;
    let Some(call) = stored.call(id.kind) else { return Err("what to send is not stored any more".to_owned()) };
    let body = body(&stored, id.kind, delivery.ending.as_ref(), public_url);
    let body = body.and_then(Result::ok).ok_or("the payload is not JSON")?;
    sender.send(id, &stored.queue, &call.url, Bytes::from(body)).await
}

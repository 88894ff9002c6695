//! The socket to the broker: connects, says who the worker is and what it holds, sends what is in the [`Outbox`], tells the
//! agent what comes in, and connects again when the line breaks. It knows nothing of containers.

mod backlog;
mod backoff;
mod event;
mod outbox;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{info, warn};

use backoff::Backoff;
pub(crate) use event::{Epoch, LinkConfig, LinkEvent, NOTHING};
pub(crate) use outbox::{Outbox, Report};

/// How many events may wait for the agent before the socket is not read any more: grants are bounded by the capacity on
/// offer, so this is never full for long.
const EVENTS_MAX: usize = 256;

/// Starts the link. It ends when the outbox is closed and empty, or the returned receiver is dropped.
pub(crate) fn start(
    config: LinkConfig,
    outbox: Arc<Outbox>,
) -> (mpsc::Receiver<LinkEvent>, tokio::task::JoinHandle<()>) {
    let (events, receiver) = mpsc::channel(EVENTS_MAX);
    let task = tokio::spawn(keep_connected(config, outbox, events));
    (receiver, task)
}

async fn keep_connected(config: LinkConfig, outbox: Arc<Outbox>, events: mpsc::Sender<LinkEvent>) {
    let mut backoff = Backoff::new(rand_seed());
    let mut epoch: Epoch = 0;
    while !outbox.is_closed() && !events.is_closed() {
        epoch += 1;
        let ended = socket::serve(&config, &outbox, &events, epoch).await;
        outbox.disconnected();
        if outbox.is_closed() {
            break;
        }
        if ended.was_welcomed {
            backoff.reset();
        }
        let delay = backoff.next_delay();
        if ended.was_welcomed {
            info!("lost the broker: {}; trying again in {} ms", ended.why, delay.as_millis());
        } else {
            warn!("cannot reach the broker at {}: {}; trying again in {} ms", config.api, ended.why, delay.as_millis());
        }
        wait_unless_closed(delay, &outbox).await;
    }
}

async fn wait_unless_closed(delay: Duration, outbox: &Outbox) {
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = outbox.closed() => {}
    }
}

/// Jitter needs no secrecy, only that two workers differ.
fn rand_seed() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}

//! The accept loop: one task per connection, a bounded number of them, and an end that lets what was begun finish.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::Answerer;
use super::app::AppState;
use super::connection::Connection;
use super::patient::Patient;
use crate::open_files;

/// The most bytes of a request's line and headers, and the most that is read of a body at once.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How long requests and sockets may go on after the broker was told to stop.
const STOP_TIME: Duration = Duration::from_secs(10);

/// How long to wait after a connection could not be accepted: out of open files, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a connection over the limit is told, without reading its request.
fn full(connections_max: usize) -> Vec<u8> {
    let body = format!(
        "{{\"error\":\"the broker has {connections_max} connections, which is the limit; try again soon\",\"code\":\"too_many_connections\"}}"
    );
    let length = body.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json; charset=UTF-8\r\nretry-after: 5\r\n\
         connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Serves connections until `shutdown`, then lets requests under way finish, for a few seconds at most.
pub async fn serve(listener: TcpListener, state: AppState, shutdown: CancellationToken) {
    let limits = state.config.limits.clone();
    let connections_max = open_files::connections_max(limits.connections_max, open_files::allow_all());
    if connections_max < limits.connections_max {
        tracing::warn!(
            "this process may open few files, so it takes {connections_max} connections at most; see `ulimit -n`"
        );
    }
    let permits = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
    let full = full(connections_max);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(HEAD_BYTES_MAX);
    let answerer = Arc::new(Answerer::new(state));
    let tasks = TaskTracker::new();
    let abort = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            // Fits into the socket's buffer or is lost: nobody waits for it here.
            let _ = stream.try_write(&full);
            continue;
        };
        let (stop, abort) = (shutdown.clone(), abort.clone());
        let connection = Arc::new(Connection { peer, stop, abort, tasks: tasks.clone(), _permit: permit });
        tasks.spawn(converse(stream, limits.unread_timeout, http.clone(), Arc::clone(&answerer), connection));
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(STOP_TIME, tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), "connections still busy after {} s are cut", STOP_TIME.as_secs());
        abort.cancel();
        tasks.wait().await;
    }
}

async fn converse(
    stream: TcpStream,
    patience: Duration,
    http: http1::Builder,
    answerer: Arc<Answerer>,
    connection: Arc<Connection>,
) {
    // Answers and frames are small and whole; waiting for more to send with them only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let (stop, abort) = (connection.stop.clone(), connection.abort.clone());
    let answer = service_fn(|request| {
        let (answerer, connection) = (Arc::clone(&answerer), Arc::clone(&connection));
        async move { Ok::<_, std::convert::Infallible>(answerer.answer(&connection, request).await) }
    });
    let served = http.serve_connection(TokioIo::new(Patient::new(stream, patience)), answer).with_upgrades();
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            tokio::select! {
                ended = served => ended,
                () = abort.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_one_connection_too_many_has_the_length_that_it_says() {
        let answer = full(50_000);
        let (head, body) = std::str::from_utf8(&answer).unwrap().split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        let told: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(told["error"].as_str().unwrap().contains("50000"), "{body}");
    }
}

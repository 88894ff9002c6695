//! A line against a server that only lets it in and keeps it.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{SinkExt, StreamExt};
use protocol::codec::Encoding;
use protocol::id::{Digest, Head};
use protocol::native::{Capacity, FromBroker, WorkerHello};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;

use super::*;
use crate::config::Dialect;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets everybody in, and answers pings for ever.
async fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
                let accept = |_: &Request, mut response: Response| {
                    let protocol = HeaderValue::from_static(Encoding::MessagePack.subprotocol());
                    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
                    Ok(response)
                };
                let mut socket = tokio_tungstenite::accept_hdr_async(stream, accept).await.unwrap();
                let _hello = socket.next().await;
                let head = Head { seq: 1, hash: Digest::from_bytes([0; 32]) };
                let queue = QueueKey::from_bytes([0; 16]);
                let welcome = FromBroker::Welcome { version: 1, queue, head, lease_ms: 30_000, gone: Vec::new() };
                let welcome = Encoding::MessagePack.encode(&welcome);
                socket.send(Message::Binary(welcome.into())).await.unwrap();
                while let Some(Ok(_)) = socket.next().await {}
            });
        }
    });
    address
}

fn config(api: &str, asleep_ms: fn() -> u64) -> LinkConfig {
    crate::install_tls();
    LinkConfig {
        api: api.parse().unwrap(),
        dialect: Dialect::default(),
        queue: "q".parse().unwrap(),
        index: QueueIndex(0),
        worker: WorkerHello {
            id: "w".parse().unwrap(),
            version: "1".to_owned(),
            total: Capacity { cpus_milli: 1000, memory_bytes: None, gpus: 0 },
            tags: Vec::new(),
            max_duration_ms: None,
            holds: Vec::new(),
        },
        tls: crate::tls::client_config().unwrap(),
        asleep_ms,
    }
}

#[tokio::test]
async fn a_line_is_made_anew_when_the_machine_wakes_up_though_it_looks_alive() {
    static ASLEEP_MS: AtomicU64 = AtomicU64::new(7_000);
    let outbox = Arc::new(Outbox::default());
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let config = config(&server().await, || ASLEEP_MS.load(Ordering::Relaxed));
    let link = tokio::spawn(keep_connected(config, Arc::clone(&outbox), sender));
    let mut next = async || timeout(PATIENCE, events.recv()).await.expect("the link says something").unwrap().1;
    assert!(matches!(next().await, LinkEvent::Welcomed { epoch: 1, .. }));
    ASLEEP_MS.fetch_add(8 * 3600 * 1000, Ordering::Relaxed);
    assert!(matches!(next().await, LinkEvent::Lost { epoch: 1 }));
    assert!(matches!(next().await, LinkEvent::Welcomed { epoch: 2, .. }));
    outbox.close();
    timeout(PATIENCE, link).await.expect("it ends").unwrap();
}

//! Who is called: an HTTP server that notes calls and answers as it is told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Response, Uri};
use axum::routing::any;
use broker::config::Config;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{TestBroker, until};

/// One call, as it came.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Call {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(super) fn event(&self) -> &str {
        self.header("gridsocket-event")
    }
}

/// What a receiver does: status and headers of its answer to the call of that number, or no answer at all.
type Behaviour = dyn Fn(usize) -> Option<(u16, Vec<(&'static str, String)>)> + Send + Sync;

pub(super) struct Receiver {
    pub(super) addr: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Receiver {
    /// One that takes everything.
    pub(super) async fn start() -> Self {
        Self::answering("127.0.0.1", |_| Some((200, Vec::new()))).await
    }

    /// One on an address that answers so.
    pub(super) async fn answering(
        ip: &str,
        behaviour: impl Fn(usize) -> Option<(u16, Vec<(&'static str, String)>)> + Send + Sync + 'static,
    ) -> Self {
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let (noted, behaviour): (_, Arc<Behaviour>) = (Arc::clone(&calls), Arc::new(behaviour));
        let take = move |uri: Uri, headers: HeaderMap, body: Bytes| async move {
            let number = {
                let mut calls = noted.lock().unwrap();
                calls.push(Call { path: uri.path().to_owned(), headers, body });
                calls.len()
            };
            match behaviour(number) {
                Some((status, headers)) => {
                    let mut answer = Response::builder().status(status);
                    for (name, value) in headers {
                        answer = answer.header(name, value);
                    }
                    answer.body(Body::empty()).unwrap()
                }
                None => std::future::pending().await,
            }
        };
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = Router::new().fallback(any(take));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { addr, calls, serving }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Waits for so many calls.
    pub(super) async fn until_called(&self, times: usize) -> Vec<Call> {
        until("a call", || async { self.calls().len() >= times }).await;
        self.calls()
    }
}

/// Lets calls go to this machine, and tries them again at once.
pub(super) fn open(config: &mut Config) {
    config.webhooks.allows_private = true;
    config.limits.webhooks.wait = Duration::from_millis(1);
}

/// A submission of job number so and so that asks for calls.
pub(super) fn submission(number: usize, namespace: &str, callbacks: Value) -> String {
    let definition = json!({ "image": "i", "command": format!("echo {number}") });
    json!({ "definition": definition, "control": { "namespace": namespace, "callbacks": callbacks } }).to_string()
}

/// Submits it to the queue `abc`; answers the job's id.
pub(super) async fn submit(broker: &TestBroker, number: usize, namespace: &str, callbacks: Value) -> String {
    let (status, answer) = broker.post("/q/abc", submission(number, namespace, callbacks)).await;
    assert_eq!(status, 200, "{answer}");
    answer["jobId"].as_str().unwrap().to_owned()
}

pub(super) async fn listing(broker: &TestBroker) -> Value {
    let (status, answer) = broker.get_json("/q/abc/webhooks.json").await;
    assert_eq!(status, 200, "{answer}");
    answer["data"].clone()
}

/// Waits until nothing waits, is due or dead: all was told, and nothing is kept of it.
pub(super) async fn until_nothing_is_left(broker: &TestBroker) {
    let nothing = json!({ "waiting": 0, "pending": [], "dead": [] });
    until("everything to be told", || async { listing(broker).await == nothing }).await;
    let folder = broker.path().join("webhooks");
    until("the files to go", || async { std::fs::read_dir(&folder).unwrap().next().is_none() }).await;
}

/// Waits for dead letters.
pub(super) async fn until_dead(broker: &TestBroker, count: usize) -> Vec<Value> {
    let dead = || async { listing(broker).await["dead"].as_array().unwrap().clone() };
    until("dead letters", || async { dead().await.len() == count }).await;
    dead().await
}

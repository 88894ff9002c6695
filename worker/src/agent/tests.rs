//! What becomes of runs whose tasks panic, which no job can bring about on purpose: an agent with a scripted engine.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use protocol::definition::Needs;
use protocol::id::JobId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::ended::Ended;
use super::fitness::Fitness;
use super::*;
use crate::config::Config;
use crate::container::{Engine, Surroundings};
use crate::gpus::{Gpus, Machine};
use crate::quarantine::Quarantine;
use crate::sync::lock;

/// An engine that has one container of whoever asks, until it is removed.
#[derive(Default)]
struct Script {
    removed: Mutex<Vec<String>>,
    /// How often it still fails to say which containers there are.
    failures: AtomicU32,
}

async fn engine(script: Arc<Script>) -> Engine {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 16 * 1024];
            let read = stream.read(&mut head).await.unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..read]).into_owned();
            let (status, body) = answer(&script, &head);
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    Engine::connect(&format!("tcp://{address}")).await.unwrap()
}

fn answer(script: &Script, head: &str) -> (&'static str, &'static str) {
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match method {
        "GET" if path.contains("/version") => ("200 OK", r#"{"ApiVersion":"1.41"}"#),
        "GET" if path.contains("/info") => ("200 OK", r#"{"ID":"scripted","NCPU":2}"#),
        "GET" if path.contains("/containers/json") => {
            let fails = |left: u32| left.checked_sub(1);
            if script.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
                return ("500 Internal Server Error", r#"{"message":"on purpose"}"#);
            }
            ("200 OK", if lock(&script.removed).is_empty() { r#"[{"Id":"c1"}]"# } else { "[]" })
        }
        "DELETE" if path.contains("/containers/") => {
            let container = path.rsplit('/').next().unwrap_or_default();
            lock(&script.removed).push(container.split('?').next().unwrap_or_default().to_owned());
            ("204 No Content", "")
        }
        _ => ("404 Not Found", r#"{"message":"not scripted"}"#),
    }
}

async fn agent(script: &Arc<Script>, data: &std::path::Path) -> Agent {
    crate::install_tls();
    let engine = engine(Arc::clone(script)).await;
    let mut config = Config::new(vec!["q".parse().unwrap()], "http://127.0.0.1:1".parse().unwrap(), data.to_owned());
    config.gpus = "1".parse().unwrap();
    let gpus = Arc::new(Gpus::choose(&config.gpus, Machine::default()).unwrap());
    let slots = Slots::new(2, None, gpus.offered().to_vec(), None);
    let tls = crate::tls::client_config().unwrap();
    let (quarantine, _) = Quarantine::open(data, None).unwrap();
    let who = ("w".parse().unwrap(), Arc::new(quarantine));
    let surroundings = Surroundings::new(None, None);
    let lanes = start::lanes(config, who, engine.clone(), (gpus, None), surroundings, &tls).unwrap();
    let lanes = lanes.into_iter().map(|(lane, _)| lane).collect();
    Agent::new(lanes, slots, Fitness::start(engine, Vec::new(), 0))
}

fn run(number: u32) -> QueueRun {
    QueueRun { queue: QueueIndex(0), run: HeldRun { job: JobId::from_bytes([7; 32]), run: number } }
}

#[tokio::test]
async fn a_run_that_panics_ends_as_an_error_and_its_gpu_is_free_when_its_container_is_gone() {
    let (script, data) = (Arc::new(Script::default()), tempfile::tempdir().unwrap());
    let mut agent = agent(&script, data.path()).await;
    script.failures.store(2, Ordering::SeqCst);
    let all = agent.slots.free();
    agent.slots.take(run(1), &Needs { gpus: 1, ..Needs::default() }).unwrap();
    agent.spawn(run(1), |_, has_container| async move {
        has_container.store(true, Ordering::Relaxed);
        panic!("on purpose");
    });
    let ended = agent.tasks.join_next_with_id().await.unwrap();
    agent.on_task_end(ended).await;
    assert_eq!((agent.slots.free().cpus_milli, agent.slots.free().gpus), (all.cpus_milli, 0));
    assert_eq!(agent.lane(QueueIndex(0)).context.outbox.unsettled(), 1, "its end is told");
    assert_eq!(agent.summary.finished, 1);
    // Its task cannot say which container it had, and the engine does not at once.
    let cleared = agent.clearing.next().await.unwrap().unwrap();
    assert_eq!((cleared, lock(&script.removed).as_slice()), (run(1), ["c1".to_owned()].as_slice()));
    assert!(agent.slots.release(cleared));
    assert_eq!(agent.slots.free(), all);
    // The worker goes on.
    agent.slots.take(run(2), &Needs { gpus: 1, ..Needs::default() }).unwrap();
    agent.spawn(run(2), |_, _| async { Ended::finished(Ending::bad_input("no", unix_now()), None) });
    let ended = agent.tasks.join_next_with_id().await.unwrap();
    agent.on_task_end(ended).await;
    assert_eq!(agent.clearing.next().await.unwrap(), Some(run(2)));
    assert_eq!(agent.summary.finished, 2);
}

#[tokio::test]
async fn a_run_that_is_granted_again_waits_until_its_earlier_container_is_gone() {
    let (script, data) = (Arc::new(Script::default()), tempfile::tempdir().unwrap());
    let mut agent = agent(&script, data.path()).await;
    agent.slots.take(run(1), &Needs { gpus: 1, ..Needs::default() }).unwrap();
    agent.slots.release_all_but_gpus(run(1));
    agent.on_grant(run(1), protocol::raw::RawJson::new("{}".to_owned()), false);
    assert_eq!((agent.live.len(), agent.summary.handed_back, agent.slots.free().gpus), (0, 1, 0));
}

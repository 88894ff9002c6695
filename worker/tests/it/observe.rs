//! What a worker lets be seen of itself, over its real sockets.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use worker::ShutdownMode;
use worker::observe::{Outcome, Phase, Snapshot, read, socket_path};

use crate::support::peer::until;
use crate::support::{Grid, Site};

const ANY_PORT: &str = "127.0.0.1:0";

/// Looks until the worker stands so.
async fn seen(data: &Path, what: &str, is_so: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let mut found = Snapshot::default();
    until(what, async || match read(data).await {
        Ok(snapshot) => {
            found = snapshot;
            is_so(&found)
        }
        Err(_) => false,
    })
    .await;
    found
}

fn is_connected(snapshot: &Snapshot) -> bool {
    snapshot.queues.iter().any(|queue| queue.connected_since_ms.is_some())
}

/// A client that asks this machine and no proxy.
fn client() -> reqwest::Client {
    worker::install_tls();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

struct Numbers {
    http: reqwest::Client,
    at: String,
}

impl Numbers {
    async fn of(data: &Path) -> Self {
        let at = seen(data, "it says where its numbers are", |snapshot| snapshot.metrics.is_some()).await.metrics;
        Self { http: client(), at: format!("http://{}", at.unwrap()) }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.http.get(format!("{}{path}", self.at)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn has(&self, line: &str) -> bool {
        self.get("/metrics").await.1.lines().any(|told| told == line)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_seen_from_its_start_to_its_end() {
    let Some(mut grid) = Grid::without_worker(1).await else { return };
    grid.start_worker(|config| config.listen_metrics = Some(ANY_PORT.parse().unwrap()));
    let data = grid.data_directory();
    let command = "while [ ! -e /job-cache/go ]; do sleep 0.05; done; exit 3";
    let job = grid.submit(json!({ "command": ["sh", "-c", command] })).await;
    let snapshot =
        seen(&data, "the job runs", |snapshot| snapshot.runs.first().is_some_and(|run| run.phase == Phase::Running))
            .await;
    let run = &snapshot.runs[0];
    assert_eq!((&run.job, run.run, run.cpus_milli, run.is_adopted), (&job, 1, 1000, false));
    assert!(run.command.starts_with("sh -c while"), "{run:?}");
    assert_eq!((snapshot.taken.cpus_milli, snapshot.offered.cpus_milli), (1000, 1000));
    assert!(snapshot.engine.is_reachable && snapshot.engine.version.is_some(), "{:?}", snapshot.engine);
    assert!(snapshot.disk.as_ref().is_some_and(|disk| disk.free_bytes > 0), "{:?}", snapshot.disk);
    let text = serde_json::to_string(&snapshot).unwrap();
    assert!(!text.contains(grid.queue().as_str()), "the queue's name is a secret: {text}");

    let numbers = Numbers::of(&data).await;
    let (status, metrics) = numbers.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("\ngridsocket_worker_runs{phase=\"running\"} 1\n"), "{metrics}");
    assert!(metrics.contains("\ngridsocket_worker_start_seconds_count 1\n"), "{metrics}");
    assert!(![grid.queue().as_str(), job.as_str()].iter().any(|secret| metrics.contains(secret)), "{metrics}");
    let (status, health) = numbers.get("/healthz").await;
    assert_eq!((status, serde_json::from_str::<Value>(&health).unwrap()["healthy"].as_bool()), (200, Some(true)));

    grid.engine.touch_in_cache(grid.queue(), "go").await;
    grid.result(&job).await;
    let after =
        seen(&data, "its end is seen", |snapshot| snapshot.runs.is_empty() && snapshot.unacknowledged == 0).await;
    let result = &after.results[0];
    assert_eq!((&result.job, result.outcome, result.exit_code), (&job, Outcome::Failed, Some(3)));
    assert_eq!(after.taken.cpus_milli, 0);
    assert!(numbers.has("gridsocket_worker_runs_ended_total{outcome=\"failed\"} 1").await);
    grid.stop().await;
    assert!(!socket_path(&data).exists(), "the socket goes with the worker");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_a_broker_or_an_engine_is_not_well_and_says_why() {
    let Some(mut site) = Site::new().await else { return };
    let Some(engine) = site.engine.host.strip_prefix("unix://").map(str::to_owned) else { return };
    // A door to the engine that can be shut.
    let folder = tempfile::tempdir().unwrap();
    let door = folder.path().join("door.sock");
    let listener = UnixListener::bind(&door).unwrap();
    let open = tokio::spawn(async move {
        let mut ways = tokio::task::JoinSet::new();
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            let engine = engine.clone();
            ways.spawn(async move {
                let mut to = UnixStream::connect(engine).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    let data = site.config().data_directory;
    let running = site.start_with(|config| {
        config.listen_metrics = Some(ANY_PORT.parse().unwrap());
        config.docker_host = Some(format!("unix://{}", door.display()));
    });
    let mut line = site.peer.line().await;
    let numbers = Numbers::of(&data).await;
    let reasons = |body: &str| serde_json::from_str::<Value>(body).unwrap()["reasons"].to_string();
    let (status, body) = numbers.get("/healthz").await;
    assert_eq!((status, reasons(&body).as_str()), (503, r#"["no queue is connected to its broker"]"#));
    line.welcome(Vec::new()).await;
    seen(&data, "it is connected", is_connected).await;
    until("all is well", async || numbers.get("/healthz").await.0 == 200).await;
    open.abort();
    until("the engine is missed", async || {
        let (status, body) = numbers.get("/healthz").await;
        status == 503 && reasons(&body) == r#"["the container engine does not answer"]"#
    })
    .await;
    assert!(numbers.has("gridsocket_worker_engine_up 0").await);
    drop(line);
    seen(&data, "the line is missed", |snapshot| snapshot.queues[0].losses == 1).await;
    assert!(numbers.has("gridsocket_worker_connection_losses_total 1").await);
    running.stop(ShutdownMode::Leave).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_there_is_answered_and_only_to_this_machines_own_names() {
    let Some(mut site) = Site::new().await else { return };
    let data = site.config().data_directory;
    let (running, _line) = site.started_with(|config| config.listen_metrics = Some(ANY_PORT.parse().unwrap())).await;
    let numbers = Numbers::of(&data).await;
    assert_eq!(numbers.get("/").await.0, 404);
    let post = numbers.http.post(format!("{}/metrics", numbers.at)).send().await.unwrap();
    assert_eq!(post.status(), 405);
    let rebound = numbers.http.get(format!("{}/metrics", numbers.at)).header("host", "evil.example").send().await;
    assert_eq!(rebound.unwrap().status(), 421);
    // Those who say nothing keep nobody out for long, and neither does one who never ends.
    let address: SocketAddr = numbers.at.strip_prefix("http://").unwrap().parse().unwrap();
    let mut idle = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nx: ").await.unwrap();
        idle.push(stream);
    }
    let fresh = Numbers { http: client(), at: numbers.at.clone() };
    until("there is room again", async || fresh.get("/healthz").await.0 == 200).await;
    drop(idle);
    running.stop(ShutdownMode::Leave).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_is_refused_at_the_start() {
    let Some(site) = Site::new().await else { return };
    let taken = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = site.start_with(|config| config.listen_metrics = Some(address)).ended().await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("--listen-metrics"), "{error}");
}

//! GPUs through a real Engine. It takes a program of a certain name for NVIDIA's and asks it to give a container its devices; ours
//! only writes down which.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::own_engine::{How, OwnEngine};
use crate::support::peer::{soon, until};
use crate::support::{Grid, Site, TestEngine, job};
use worker::ShutdownMode;
use worker::config::GpuSpec;

const GPUS: usize = 4;
/// Enough that all sizes meet in many orders; more are in the long form, with `GRIDSOCKET_GPU_JOBS`.
const JOBS: usize = 24;
/// How many jobs may end, at most, while a GPU is free and the oldest job would fit: the worker is told of one in the time
/// that another takes to end.
const ENDS_MEANWHILE_MAX: usize = 2;

/// An Engine that believes that there are GPUs.
struct GpuEngine {
    own: OwnEngine,
    stub: TempDir,
}

impl GpuEngine {
    async fn start() -> Option<Self> {
        let stub = TempDir::new().unwrap();
        let records = stub.path().join("records");
        std::fs::create_dir(&records).unwrap();
        // The container's state comes in, with the folder of its configuration; the devices are in its environment.
        let script = format!(
            "#!/bin/sh\nat=$(date +%s%N)\nstate=$(cat)\n\
             value() {{ printf %s \"$state\" | sed -n \"s/.*\\\"$1\\\": *\\\"\\([^\\\"]*\\)\\\".*/\\1/p\"; }}\n\
             devices=$(grep -o 'NVIDIA_VISIBLE_DEVICES=[^\"]*' \"$(value bundle)/config.json\" | tail -n 1)\n\
             echo \"$at ${{devices#*=}}\" > {}/$(value id)\n",
            records.display()
        );
        let hook = stub.path().join("nvidia-container-runtime-hook");
        std::fs::write(&hook, script).unwrap();
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = vec![stub.path().display().to_string()];
        let own = OwnEngine::start(How { path, ..How::default() }).await?;
        Some(Self { own, stub })
    }

    /// What each container was given, and from when on.
    fn given(&self) -> BTreeMap<String, (i64, BTreeSet<String>)> {
        let read = |path: &Path| {
            let text = std::fs::read_to_string(path).unwrap();
            let (at, devices) = text.trim().split_once(' ').unwrap();
            (at.parse().unwrap(), devices.split(',').map(str::to_owned).collect())
        };
        let files = std::fs::read_dir(self.stub.path().join("records")).unwrap().map(|file| file.unwrap());
        files.map(|file| (file.file_name().into_string().unwrap(), read(&file.path()))).collect()
    }
}

/// When each container's processes had ended, by the Engine's word.
struct Deaths {
    told: Arc<Mutex<BTreeMap<String, i64>>>,
    listening: tokio::task::JoinHandle<()>,
}

impl Deaths {
    fn watch(engine: &TestEngine) -> Self {
        let told = Arc::<Mutex<BTreeMap<String, i64>>>::default();
        let filters = std::collections::HashMap::from([("event", vec!["die"])]);
        // It remembers few of its events: those of the past first, so that none is missed, and then as they come.
        let options = EventsOptionsBuilder::default().since("0").filters(&filters).build();
        let mut events = Box::pin(engine.docker.events(Some(options)));
        let heard = Arc::clone(&told);
        let listening = tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                if let (Some(container), Some(at)) = (event.actor.and_then(|actor| actor.id), event.time_nano) {
                    heard.lock().unwrap().insert(container, at);
                }
            }
        });
        Self { told, listening }
    }

    fn at(&self, container: &str) -> Option<i64> {
        self.told.lock().unwrap().get(container).copied()
    }
}

impl Drop for Deaths {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// What a queue looks like at one moment: jobs from the oldest to the newest.
struct Moment {
    waiting: Vec<usize>,
    running: usize,
    ended: usize,
    /// GPUs that no container has and no running job waits for.
    free: usize,
}

/// The jobs' states by the broker, and what containers hold by the Engine. A container that is made or removed meanwhile
/// counts as there.
async fn moment(grid: &Grid, jobs: &[(String, usize)]) -> Moment {
    let before = grid.engine.containers(grid.queue()).await;
    let answer = grid.http.get(grid.url(&format!("/q/{}/j", grid.queue()))).send().await.unwrap();
    let states = answer.json::<Value>().await.unwrap()["data"].take();
    let after = grid.engine.containers(grid.queue()).await;
    let mut held = BTreeSet::new();
    let mut has_container = BTreeSet::new();
    for labels in before.into_iter().chain(after).filter_map(|container| container.labels) {
        has_container.insert(labels["container.mtfm.io/id"].clone());
        held.extend(labels["container.mtfm.io/gpus"].split(',').filter(|gpu| !gpu.is_empty()).map(str::to_owned));
    }
    let state = |id: &str| states[id]["state"].as_str().unwrap_or("Finished").to_owned();
    let of = |wanted: &str| jobs.iter().filter(|(id, _)| state(id) == wanted).collect::<Vec<_>>();
    let running = of("Running");
    let bare: usize = running.iter().filter(|(id, _)| !has_container.contains(id)).map(|(_, gpus)| gpus).sum();
    let (waiting, running) = (of("Queued").into_iter().map(|(_, gpus)| *gpus).collect::<Vec<_>>(), running.len());
    let ended = jobs.len() - waiting.len() - running;
    Moment { waiting, running, ended, free: GPUS.saturating_sub(held.len() + bare) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_gpu_is_given_twice_at_once_and_none_is_left_free_that_the_oldest_job_could_have() {
    let Some(mut grid) = Grid::without_worker(1).await else { return };
    let Some(gpus) = GpuEngine::start().await else { return };
    grid.engine = gpus.own.client().await;
    let count = std::env::var("GRIDSOCKET_GPU_JOBS").map_or(JOBS, |count| count.parse().unwrap());
    let mut jobs = Vec::new();
    for number in 0..count {
        let wants = 1 + (number * 7 + number / 3) % 3;
        let pause = [0.02, 0.3, 0.1][number % 3];
        let command = format!("echo $CUDA_VISIBLE_DEVICES > /outputs/devices; sleep {pause}; : {number}");
        let definition = json!({ "command": ["sh", "-c", command], "requirements": { "gpus": wants, "cpus": 0.1 } });
        jobs.push((grid.submit(definition).await, wants));
    }
    let died = Deaths::watch(&grid.engine);
    grid.start_worker(|config| {
        config.cpus = 8;
        config.gpus = GpuSpec::Count(u32::try_from(GPUS).unwrap());
    });
    // How many jobs had ended when a GPU was first seen free for the oldest, since when nothing was started.
    let mut free_since: Option<(usize, usize)> = None;
    let mut seen_running = 0;
    for ended in 1..=count {
        until("one more job has ended, and none had to wait though it could run", async || {
            let now = moment(&grid, &jobs).await;
            seen_running = seen_running.max(now.running);
            let fits = now.running > 0 && now.waiting.first().is_some_and(|wants| *wants <= now.free);
            free_since = match (fits, free_since) {
                (false, _) => None,
                (true, Some((ended, waiting))) if waiting == now.waiting.len() => {
                    assert!(now.ended <= ended + ENDS_MEANWHILE_MAX, "{} free for {:?}", now.free, now.waiting);
                    Some((ended, waiting))
                }
                (true, _) => Some((now.ended, now.waiting.len())),
            };
            now.ended >= ended
        })
        .await;
    }
    assert!(seen_running >= 2, "jobs ran side by side");
    for (job, wants) in &jobs {
        let result = grid.result(job).await;
        let result = if result["finished"].is_object() { &result["finished"]["result"] } else { &result["result"] };
        let inside = (0..*wants).map(|index| index.to_string()).collect::<Vec<_>>().join(",");
        let told = result["outputs"]["devices"].clone();
        assert_eq!(told, json!({ "type": "base64", "value": base64(&format!("{inside}\n")) }), "{result}");
    }

    // One interval for each container: from the moment its devices were given to its end.
    let given = gpus.given();
    assert_eq!(given.len(), count);
    until("the Engine has told of all ends", async || given.keys().all(|container| died.at(container).is_some())).await;
    let mut by_device: BTreeMap<&str, Vec<(i64, i64)>> = BTreeMap::new();
    for (container, (from, devices)) in &given {
        for device in devices {
            by_device.entry(device).or_default().push((*from, died.at(container).unwrap()));
        }
    }
    assert_eq!(by_device.keys().copied().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    for (device, mut times) in by_device {
        times.sort_unstable();
        for pair in times.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "GPU {device} was given twice at once: {pair:?}");
        }
    }
    grid.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_worker_knows_which_gpus_its_containers_have() {
    let Some(mut site) = Site::new().await else { return };
    let Some(gpus) = GpuEngine::start().await else { return };
    site.engine = gpus.own.client().await;
    let three = |config: &mut worker::Config| {
        config.gpus = "device=5,GPU-b,7".parse().unwrap();
        config.cpus = 4;
    };
    let (worker, mut line) = site.started_with(three).await;
    let command = "echo up; while [ ! -e /outputs/go ]; do sleep 0.05; done";
    let run = line.grant(job(json!({ "command": ["sh", "-c", command], "requirements": { "gpus": 2 } }))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    worker.stop(ShutdownMode::Leave).await;

    // Told of fewer: one that it has is offered, and is not free.
    let (worker, mut line) = site.started_with(|config| config.gpus = "device=5".parse().unwrap()).await;
    assert_eq!(line.holds(), [run]);
    soon("nothing is free", line.until(|line| line.claims.last().is_some_and(|free| free.gpus == 0))).await;
    worker.stop(ShutdownMode::Leave).await;

    let (_worker, mut line) = site.started_with(three).await;
    assert_eq!(line.holds(), [run]);
    soon("one GPU is free", line.until(|line| line.claims.last().is_some_and(|free| free.gpus == 1))).await;
    // Two are not there, and the one that is left is not one of those.
    let second = job(json!({ "command": "true", "requirements": { "gpus": 2 } }));
    let refused = line.grant(second).await;
    soon("it is handed back", line.until(|line| line.returned.iter().any(|(run, _)| *run == refused))).await;
    let other =
        line.grant(job(json!({ "command": "echo $CUDA_VISIBLE_DEVICES", "requirements": { "gpus": 1 } }))).await;
    line.end(other).await;
    let devices = || gpus.given().into_values().map(|(_, devices)| devices).collect::<Vec<_>>();
    let set = |list: &[&str]| list.iter().map(|&device| device.to_owned()).collect::<BTreeSet<_>>();
    assert!(devices().contains(&set(&["5", "GPU-b"])) && devices().contains(&set(&["7"])), "{:?}", devices());

    let dir = std::fs::read_dir(site.data.path().join("remote/j").join(run.job.to_string())).unwrap().next().unwrap();
    std::fs::write(dir.unwrap().path().join("outputs/go"), "").unwrap();
    line.end(run).await;
    soon("all are free", line.until(|line| line.claims.last().is_some_and(|free| free.gpus == 3))).await;
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_without_gpus_is_given_none_whatever_it_says() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started_with(|config| config.gpus = GpuSpec::Count(1)).await;
    let env = json!({ "NVIDIA_VISIBLE_DEVICES": "all" });
    let run = line.grant(job(json!({ "command": ["sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES"], "env": env }))).await;
    line.end(run).await;
    assert_eq!(line.logs.text(run, false), "void\n");
    site.assert_clean().await;
}

/// A container as a worker of that name makes them, which runs unless it is told otherwise.
async fn container(site: &Site, worker: &str, run: u32, gpus: &str, is_started: bool) -> String {
    let labels = [
        ("container.mtfm.io", "true"),
        ("container.mtfm.io/worker", worker),
        ("container.mtfm.io/queue", site.queue.as_str()),
        ("container.mtfm.io/id", &"ab".repeat(32)),
        ("container.mtfm.io/run", &run.to_string()),
        ("container.mtfm.io/gpus", gpus),
    ];
    let body = bollard::models::ContainerCreateBody {
        image: Some(crate::support::engine::IMAGE.to_owned()),
        cmd: Some(vec!["sleep".to_owned(), "300".to_owned()]),
        labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
        host_config: Some(bollard::models::HostConfig { network_mode: Some("none".to_owned()), ..Default::default() }),
        ..Default::default()
    };
    let made = site.engine.docker.create_container(None, body).await.unwrap().id;
    if is_started {
        site.engine.docker.start_container(&made, None).await.unwrap();
    }
    made
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_containers_of_one_run_one_is_adopted_and_the_others_gpu_is_free_when_it_is_gone() {
    let Some(mut site) = Site::new().await else { return };
    let me = format!("me-{}", uuid::Uuid::new_v4());
    container(&site, &me, 1, "0", true).await;
    container(&site, &me, 1, "1", true).await;
    container(&site, &me, 2, "2", false).await;
    let three = |config: &mut worker::Config| {
        config.id = worker::config::Identity::Given(me.parse().unwrap());
        config.gpus = GpuSpec::Count(3);
    };
    let (_worker, mut line) = site.started_with(three).await;
    assert_eq!(line.holds().len(), 1);
    let run = line.holds()[0];
    assert_eq!(run.run, 1);
    soon("two are free", line.until(|line| line.claims.last().is_some_and(|free| free.gpus == 2))).await;
    site.engine.until_containers(&site.queue, 1).await;
    line.stop(run, protocol::native::StopReason::Superseded).await;
    soon("all are free", line.until(|line| line.claims.last().is_some_and(|free| free.gpus == 3))).await;
    site.assert_clean().await;
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

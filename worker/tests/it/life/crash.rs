//! A worker that is a process of its own, and is killed.

use std::process::{Child, Command, Stdio};

use protocol::event::RunOutcome;
use serde_json::json;
use worker::Config;

use crate::support::peer::until;
use crate::support::{Line, Site, job};

const CHILD: &str = "GRIDSOCKET_TEST_CHILD";

/// Not a test: what [`Process`] runs, in a process of its own.
#[tokio::test]
async fn child() {
    let Ok(words) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = words.split('\n').collect();
    let [queue, api, data, engine] = words[..] else { panic!("{words:?}") };
    let mut config = Config::new(vec![queue.parse().unwrap()], api.parse().unwrap(), data.into());
    config.docker_host = Some(engine.to_owned());
    config.network = Some("none".to_owned());
    config.min_free_disk_bytes = 0;
    config.cpus = 2;
    let (_handle, shutdown) = worker::shutdown_pair();
    let _ = worker::run(config, shutdown).await;
}

struct Process(Child);

impl Process {
    fn start(site: &Site) -> Self {
        let config = site.config();
        let data = config.data_directory.to_str().unwrap();
        let words = [site.queue.as_str(), &site.peer.address(), data, &site.engine.host].join("\n");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "life::crash::child", "--nocapture"]).env(CHILD, words);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    async fn started(site: &mut Site) -> (Self, Line) {
        let process = Self::start(site);
        let line = site.peer.line().await;
        (process, line)
    }

    /// From one moment to the next.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_the_worker_died_on_twice_is_not_run_again_until_somebody_lets_it() {
    let Some(mut site) = Site::new().await else { return };
    let command = "echo up; while [ ! -e /outputs/go ]; do sleep 0.05; done";
    let wanted = || job(json!({"command": ["sh", "-c", command]}));
    let (process, mut line) = Process::started(&mut site).await;
    line.welcome(Vec::new()).await;
    let run = line.grant(wanted()).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    process.kill();

    // Once is no reason: the run is taken up again.
    let (process, mut line) = Process::started(&mut site).await;
    assert_eq!(line.holds(), [run]);
    line.welcome(Vec::new()).await;
    line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 1000)).await;
    assert_eq!(site.engine.containers(&site.queue).await.len(), 1);
    process.kill();

    let (process, mut line) = Process::started(&mut site).await;
    assert_eq!(line.holds(), [run]);
    line.welcome(Vec::new()).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Error);
    let why = told["result"]["error"].as_str().unwrap().to_owned();
    assert!(why.contains("crashed 2 times"), "{why}");
    site.engine.until_containers(&site.queue, 0).await;
    process.kill();
    // Nor is it when it comes again.
    let (process, mut line) = Process::started(&mut site).await;
    assert_eq!(line.holds(), []);
    line.welcome(Vec::new()).await;
    let again = line.grant(wanted()).await;
    assert_eq!(line.end(again).await.0.outcome, RunOutcome::Error);
    // Another job is run.
    let other = line.grant(job(json!({"command": "echo other"}))).await;
    assert_eq!(line.end(other).await.0.outcome, RunOutcome::Success);

    let file = why.split(' ').find(|word| word.starts_with("quarantine/")).unwrap();
    std::fs::remove_file(site.config().data_directory.join(file)).unwrap();
    process.kill();
    let (_process, mut line) = Process::started(&mut site).await;
    line.welcome(Vec::new()).await;
    let again = line.grant(wanted()).await;
    line.until(|line| line.logs.text(again, false) == "up\n").await;
    let dir = std::fs::read_dir(site.data.path().join("remote/j").join(run.job.to_string())).unwrap().next().unwrap();
    std::fs::write(dir.unwrap().path().join("outputs/go"), "").unwrap();
    assert_eq!(line.end(again).await.0.exit_code, Some(0));
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_on_a_job_once_leaves_nothing_behind_when_the_job_is_done() {
    let Some(mut site) = Site::new().await else { return };
    let (process, mut line) = Process::started(&mut site).await;
    line.welcome(Vec::new()).await;
    let command = "echo up; while [ ! -e /outputs/go ]; do sleep 0.05; done; echo done";
    let run = line.grant(job(json!({"command": ["sh", "-c", command]}))).await;
    line.until(|line| line.logs.text(run, false) == "up\n").await;
    process.kill();
    let mut logs = line.logs;
    let data = site.config().data_directory;
    let dir = std::fs::read_dir(data.join("j").join(run.job.to_string())).unwrap().next().unwrap();
    std::fs::write(dir.unwrap().path().join("outputs/go"), "").unwrap();
    site.engine.container_when(&site.queue, "exited").await;

    // It ended while nobody looked.
    let (_process, mut line) = Process::started(&mut site).await;
    line.welcome(Vec::new()).await;
    let (finished, told) = line.end(run).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(0)));
    assert!(told["result"]["outputs"]["go"].is_object());
    logs.merge(line.logs);
    assert_eq!(logs.text(run, false), "up\ndone\n");
    site.assert_clean().await;
    let empty = |folder: &str| {
        let found = std::fs::read_dir(data.join(folder)).unwrap();
        found.flatten().all(|queue| std::fs::read_dir(queue.path()).unwrap().count() == 0)
    };
    until("its files are gone", async || empty("quarantine") && empty("unacknowledged") && empty("j")).await;
}

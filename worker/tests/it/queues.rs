//! One worker for several queues.

use std::time::Duration;

use protocol::id::QueueName;
use protocol::native::HeldRun;
use serde_json::{Value, json};
use worker::ShutdownMode;

use crate::support::{Grid, Line, Running, Site, job};

/// A worker for two queues of the scripted broker.
struct Two {
    site: Site,
    queues: [QueueName; 2],
}

impl Two {
    async fn new() -> Option<Self> {
        let site = Site::new().await?;
        let other = format!("test-{}", uuid::Uuid::new_v4()).parse().unwrap();
        let queues = [site.queue.clone(), other];
        Some(Self { site, queues })
    }

    fn start(&self, cpus: u32) -> Running {
        self.site.start_with(|config| {
            config.queues = self.queues.to_vec();
            config.cpus = cpus;
        })
    }

    /// The next connection of each queue, not welcomed yet.
    async fn lines(&mut self) -> [Line; 2] {
        let (one, other) = (self.site.peer.line().await, self.site.peer.line().await);
        assert_ne!(one.is_of(&self.queues[0]), other.is_of(&self.queues[0]), "each queue has a line of its own");
        if one.is_of(&self.queues[0]) { [one, other] } else { [other, one] }
    }

    /// Starts a worker and lets it in, for the first queue first. It asks that one.
    async fn started(&mut self, cpus: u32) -> (Running, [Line; 2]) {
        let running = self.start(cpus);
        let [mut one, mut other] = self.lines().await;
        one.welcome(Vec::new()).await;
        one.asked().await;
        other.welcome(Vec::new()).await;
        (running, [one, other])
    }

    async fn assert_clean(&self) {
        for queue in &self.queues {
            self.site.engine.until_clean(queue).await;
        }
    }
}

fn holds(lines: &[Line; 2]) -> [Vec<HeldRun>; 2] {
    lines.each_ref().map(|line| line.hello.clone().unwrap().holds)
}

fn free(line: &Line) -> Option<u32> {
    line.claims.last().map(|free| free.cpus_milli)
}

/// A job that says it is up and ends when it is told to.
fn waiting() -> (protocol::id::JobId, String) {
    job(json!({"command": ["sh", "-c", "echo up; while [ ! -e /outputs/go ]; do sleep 0.05; done"]}))
}

async fn up(line: &mut Line, run: HeldRun) {
    line.until(|line| line.logs.text(run, false) == "up\n").await;
}

/// Tells all containers of the job, of whatever queue, to end.
fn go(two: &Two, run: HeldRun) {
    for dir in std::fs::read_dir(two.site.data.path().join("remote/j").join(run.job.to_string())).unwrap() {
        std::fs::write(dir.unwrap().path().join("outputs/go"), "").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_queue_is_asked_at_a_time_and_all_are_open_when_none_has_anything() {
    let Some(mut two) = Two::new().await else { return };
    let (_worker, [mut one, mut other]) = two.started(1).await;
    assert_eq!(free(&one), Some(1000));
    one.claimed(0).await;
    other.until(|line| free(line) == Some(1000)).await;
    // It is asked, unless its line stood only after the answer: then everything was open already.
    if other.is_asked() {
        one.until(|line| free(line) == Some(0)).await;
        other.claimed(0).await;
    }
    one.until(|line| free(line) == Some(1000)).await;
    // Both are quick: the later one's job is handed back, and offered again in its turn.
    let (first, second) = (waiting(), job(json!({"command": "echo second"})));
    let first = one.grant(first).await;
    up(&mut one, first).await;
    other.until(|line| free(line) == Some(0)).await;
    let early = other.grant(second.clone()).await;
    other.until(|line| line.busy == [early]).await;
    go(&two, first);
    one.end(first).await;
    other.asked().await;
    let again = other.grant(second).await;
    assert_eq!(other.end(again).await.0.exit_code, Some(0));
    two.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_cannot_be_reached_or_does_not_answer_does_not_hold_up_the_others() {
    let Some(mut two) = Two::new().await else { return };
    let _worker = two.start(1);
    // The first queue's line stands, but its broker says nothing on it.
    let [mute, mut other] = two.lines().await;
    other.welcome(Vec::new()).await;
    other.asked().await;
    let run = other.grant(job(json!({"command": "echo alone"}))).await;
    other.claimed(1).await;
    assert_eq!(other.end(run).await.0.exit_code, Some(0));
    drop(mute);
    // Now it welcomes the worker, and never answers a claim.
    let mut mute = two.site.peer.line().await;
    mute.welcome(Vec::new()).await;
    mute.until(|line| free(line).is_some_and(|free| free > 0)).await;
    other.asked().await;
    let run = other.grant(job(json!({"command": "echo on"}))).await;
    assert_eq!(other.end(run).await.0.exit_code, Some(0));
    two.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_of_two_queues_with_one_job_are_adopted_apart() {
    let Some(mut two) = Two::new().await else { return };
    let (worker, [mut one, mut other]) = two.started(2).await;
    let run = one.grant(waiting()).await;
    assert_eq!(other.grant(waiting()).await, run, "the same job, and the same number");
    up(&mut one, run).await;
    up(&mut other, run).await;
    let summary = worker.stop(ShutdownMode::Leave).await;
    assert_eq!((summary.left_running, summary.handed_back), (2, 0));

    let _worker = two.start(2);
    let mut lines = two.lines().await;
    assert_eq!(holds(&lines), [vec![run], vec![run]]);
    for line in &mut lines {
        line.welcome(Vec::new()).await;
    }
    go(&two, run);
    let [one, other] = &mut lines;
    let (_, first) = one.unanswered_end(run).await;
    assert_eq!(first.exit_code, Some(0));
    assert_eq!(other.end(run).await.0.exit_code, Some(0));
    // One queue's acknowledgement is not the other's.
    drop(lines);
    let mut lines = two.lines().await;
    assert_eq!(holds(&lines), [vec![run], vec![]]);
    lines[0].welcome(Vec::new()).await;
    assert_eq!(lines[0].end(run).await.0, first);
    two.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_worker_finishes_what_it_has_of_all_queues_and_takes_nothing_new() {
    let Some(mut two) = Two::new().await else { return };
    let (worker, [mut one, mut other]) = two.started(3).await;
    let run = one.grant(waiting()).await;
    other.grant(waiting()).await;
    up(&mut one, run).await;
    up(&mut other, run).await;
    let limit = Duration::from_secs(60);
    let stopping = tokio::spawn(worker.stop(ShutdownMode::Drain { limit }));
    one.until(|line| free(line) == Some(0)).await;
    let late = one.grant(job(json!({"command": "echo late"}))).await;
    one.until(|line| line.returned.iter().any(|(returned, _)| *returned == late)).await;
    assert_eq!(one.busy, [], "another worker has room");
    go(&two, run);
    one.end(run).await;
    other.end(run).await;
    let summary = stopping.await.unwrap();
    assert_eq!((summary.finished, summary.handed_back, summary.left_running), (2, 1, 0));
    two.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_workers_runs_of_all_queues_are_handed_back() {
    let Some(mut two) = Two::new().await else { return };
    let (worker, [mut one, mut other]) = two.started(2).await;
    let run = one.grant(waiting()).await;
    other.grant(waiting()).await;
    up(&mut one, run).await;
    up(&mut other, run).await;
    let stopping = tokio::spawn(worker.stop(ShutdownMode::Kill));
    for line in [&mut one, &mut other] {
        line.until(|line| line.returned.iter().any(|(returned, _)| *returned == run)).await;
    }
    let summary = stopping.await.unwrap();
    assert_eq!((summary.handed_back, summary.left_running, summary.unacknowledged), (2, 0, 0));
    two.assert_clean().await;
}

async fn finished(grid: &Grid, queue: &QueueName, job: &str) -> Value {
    grid.result_in(queue, job).await["finished"].take()
}

/// The queues of jobs in the order in which they ended, by their places.
async fn ends(grid: &Grid, jobs: &[(usize, String)]) -> Vec<usize> {
    let mut ends = Vec::new();
    for (queue, job) in jobs {
        let finished = finished(grid, &grid.queues[*queue], job).await;
        ends.push((finished["time"].as_u64().unwrap(), *queue));
    }
    ends.sort_unstable();
    ends.into_iter().map(|(_, queue)| queue).collect()
}

fn numbered(number: usize) -> Value {
    json!({"command": "true", "env": {"NUMBER": number.to_string()}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_queues_with_work_take_turns() {
    let Some(mut grid) = Grid::without_worker(2).await else { return };
    let mut jobs = Vec::new();
    for number in 0..8 {
        let queue = number % 2;
        jobs.push((queue, grid.submit_to(&grid.queues[queue], numbered(number)).await));
    }
    grid.start_worker(|_| {});
    let ends = ends(&grid, &jobs).await;
    // Whoever's line stood first may have had some alone.
    let both = ends.iter().position(|queue| *queue != ends[0]).unwrap();
    assert!(ends[both..].windows(2).take(2 * (4 - both)).all(|pair| pair[0] != pair[1]), "{ends:?}");
    assert!(both <= 3, "{ends:?}");
    grid.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_without_work_costs_the_other_nothing_and_gets_the_next_free_slot() {
    let Some(mut grid) = Grid::without_worker(2).await else { return };
    grid.start_worker(|_| {});
    let (idle, busy) = (grid.queues[0].clone(), grid.queues[1].clone());
    for number in 0..4 {
        let job = grid.submit_to(&busy, numbered(number)).await;
        assert_eq!(finished(&grid, &busy, &job).await["reason"], "Success");
    }
    let mut jobs = Vec::new();
    for number in 4..8 {
        jobs.push((1, grid.submit_to(&busy, numbered(number)).await));
    }
    jobs.push((0, grid.submit_to(&idle, numbered(8)).await));
    let ends = ends(&grid, &jobs).await;
    assert_ne!(ends.last(), Some(&0), "the one job of the other queue did not wait for all of them: {ends:?}");
    grid.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_job_in_two_queues_runs_twice_with_results_and_a_cache_of_its_own_in_each() {
    let Some(mut grid) = Grid::without_worker(2).await else { return };
    grid.start_worker(|config| config.cpus = 2);
    let script = "ls /job-cache > /outputs/seen; cat /proc/sys/kernel/random/uuid | tee /job-cache/mine > /outputs/me";
    let same = json!({"command": ["sh", "-c", script]});
    let mut results = Vec::new();
    for queue in &grid.queues {
        let job = grid.submit_to(queue, same.clone()).await;
        results.push((job.clone(), finished(&grid, queue, &job).await["result"]["outputs"].take()));
    }
    let [(first, one), (second, other)] = &results[..] else { panic!("{results:?}") };
    assert_eq!(first, second);
    assert_ne!(one["me"], other["me"]);
    assert_eq!((&one["seen"], &other["seen"]), (&json!({"type": "base64", "value": ""}), &one["seen"]));
    // Within a queue, what jobs keep is there for the next.
    let next = grid.submit(json!({"command": ["sh", "-c", "cat /job-cache/mine > /outputs/me"]})).await;
    assert_eq!(finished(&grid, grid.queue(), &next).await["result"]["outputs"]["me"], one["me"]);
    grid.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_broker_leaves_the_runs_of_all_queues_alone() {
    let Some(mut grid) = Grid::without_worker(2).await else { return };
    grid.start_worker(|config| config.cpus = 2);
    let command = "echo before; while [ ! -e /job-cache/go ]; do sleep 0.05; done; rm /job-cache/go; echo after";
    let mut running = Vec::new();
    for queue in grid.queues.clone() {
        let job = grid.submit_to(&queue, json!({"command": ["sh", "-c", command]})).await;
        grid.until_logged_in(&queue, &job, "before").await;
        let container = grid.engine.containers(&queue).await[0].id.clone();
        running.push((queue, job, container));
    }
    let grid = grid.restart_broker().await;
    for (queue, job, container) in &running {
        assert_eq!(&grid.engine.containers(queue).await[0].id, container, "the container was left alone");
        grid.engine.touch_in_cache(queue, "go").await;
        assert_eq!(finished(&grid, queue, job).await["result"]["StatusCode"], 0);
        grid.until_logged_in(queue, job, "after").await;
    }
    // Both queues are served again.
    for queue in &grid.queues {
        let job = grid.submit_to(queue, numbered(1)).await;
        assert_eq!(finished(&grid, queue, &job).await["reason"], "Success");
    }
    grid.stop().await;
}

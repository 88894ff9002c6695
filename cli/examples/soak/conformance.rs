//! `soak conformance`: workers, pages and command lines as the original has them, with their timers and watchdogs, drive a
//! broker through sockets and HTTP alone; some of our own are among them. First nothing happens for minutes, then much. None
//! of them may have a reason to reconnect, no job may starve, and in the end all must know the same.

mod hands;
mod http;
mod jobs;
mod judge;
mod line;
mod native;
mod page;
mod run;
mod scene;
mod script;
mod view;
mod wire;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::http::Http;
use self::jobs::{Job, simple};
use self::judge::Stage;
use self::scene::{Order, Phase, Role, Scene, Seen};
use crate::random::Random;
use crate::subject::Subject;

const QUEUES: [&str; 2] = ["conform-alone", "conform-mixed"];

/// The mixed queue's own kind.
const NATIVE_WORKERS: usize = 2;
const NATIVE_PAGES: usize = 2;

/// How often somebody loses the connection under load, and for how long: the leases of runs last longer.
const DROP_EVERY_MS: (u64, u64) = (5_000, 12_000);
const AWAY_MS: (u64, u64) = (500, 8_000);

/// Orders that wait for a peer.
const ORDERS_MAX: usize = 16;

/// How often something is said.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// How long what was cut by the end may take to be seen: a heartbeat's answer.
const LAST_HEARTBEATS: Duration = Duration::from_secs(6);

/// Options of `soak conformance`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long nothing happens, and how long much does
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// How many original workers there are, of two slots each
    #[arg(long, default_value_t = 8)]
    workers: usize,
    /// How many original pages there are
    #[arg(long, default_value_t = 12)]
    pages: usize,
    /// How many original command lines there are
    #[arg(long, default_value_t = 4)]
    lines: usize,
    /// The seed of all random choices [default: another each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the data in this folder instead of a temporary one
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Everyone who is there.
struct Cast {
    stages: Vec<Arc<Stage>>,
    tasks: JoinSet<()>,
    /// To those that can lose their connections.
    orders: Vec<mpsc::Sender<Order>>,
    stuck: Vec<Job>,
}

/// Runs it; whether all was well.
pub(crate) async fn run(args: Args) -> anyhow::Result<bool> {
    let seed = args.seed.unwrap_or_else(Random::seed);
    let Args { minutes, workers, pages, lines, .. } = args;
    println!(
        "conformance: {workers} workers, {pages} pages and {lines} command lines of the original, {minutes} + {minutes} minutes, seed {seed}"
    );
    let time = Duration::try_from_secs_f64(minutes * 60.0).context("--minutes")?;
    let temporary = tempfile::tempdir()?;
    let dir = args.keep.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(dir)?;
    let soak = Subject::new(dir)?;
    let broker = soak.start()?;
    soak.ready().await?;

    let (phase, phases) = watch::channel(Phase::Idle);
    let scene = Arc::new(Scene::new(soak.address.clone(), phases));
    let http = Http::new(&soak.address)?;
    let mut random = Random::new(seed);
    let mut cast = cast(&scene, &http, &mut random, &args).await?;
    let starving: Vec<_> = cast
        .stages
        .iter()
        .cloned()
        .map(|stage| {
            let scene = scene.clone();
            tokio::spawn(async move { stage.watch_for_starving(&scene).await })
        })
        .collect();

    let started = Instant::now();
    wait(&scene, started, time, "idle").await;
    for (queue, stuck) in QUEUES.iter().zip(&cast.stuck) {
        http.post(&format!("/q/{queue}/j/{}/cancel?namespace=*", stuck.id), &Value::Null).await?;
    }
    phase.send_replace(Phase::Load);
    let load = load(&cast.orders, random.fork());
    tokio::select! {
        () = load => {}
        () = wait(&scene, started + time, time, "load") => {}
    }
    phase.send_replace(Phase::Calm);
    let mut known = Vec::new();
    for stage in &cast.stages {
        let calm = async {
            stage.calm(&http).await?;
            let jobs = stage.agrees(&scene, &http).await?;
            anyhow::Ok((jobs, stage.results(&scene, &http).await?))
        };
        match calm.await {
            Ok((jobs, results)) => known.push(format!("{}: {jobs} jobs, {results} results", stage.queue)),
            Err(error) => scene.wrong.say(format!("{error:#}")),
        }
    }
    tokio::time::sleep(LAST_HEARTBEATS).await;
    scene.stop.cancel();
    let mut longest = Duration::ZERO;
    for watched in starving {
        longest = longest.max(watched.await?);
    }
    while cast.tasks.join_next().await.is_some() {}
    let ended = broker.stop().await?;
    if !ended.success() {
        scene.wrong.say(format!("asked to stop, the broker ended with {ended}"));
    }
    soak.audit_verify()?;
    let ends = judge::ends(&scene, &soak.journal())?;

    judge_sockets(&scene);
    tell(&scene, longest);
    let promise = format!(
        "nobody reconnected but when we pulled the plug, no watchdog bit, no PONG was missing, no job starved; {ends} ends, one per submission, no run lost; all know the same ({}); audit verify: good",
        known.join("; ")
    );
    println!("conformance: seed {seed}: {}", scene.wrong.verdict(&promise));
    Ok(scene.wrong.count() == 0)
}

/// Brings everyone onto the stage.
async fn cast(scene: &Arc<Scene>, http: &Http, random: &mut Random, args: &Args) -> anyhow::Result<Cast> {
    let mut cast = Cast { stages: Vec::new(), tasks: JoinSet::new(), orders: Vec::new(), stuck: Vec::new() };
    for (number, queue) in QUEUES.into_iter().enumerate() {
        let share = |count: usize| (0..count).filter(move |one| one % QUEUES.len() == number);
        let (mut peers, mut orders) = (Vec::new(), Vec::new());
        for _ in share(args.workers) {
            // As the original makes them.
            let id = format!("{:08x}-0000-4000-8000-{:012x}", random.next() >> 32, random.next() >> 16);
            let seen = Seen::new(Role::Worker, queue, id);
            let (sender, receiver) = mpsc::channel(ORDERS_MAX);
            let worker = worker::Worker::new(scene.clone(), seen.clone(), http.clone(), receiver, random.fork());
            cast.tasks.spawn(worker.run());
            peers.push(seen);
            cast.orders.push(sender);
        }
        for page in share(args.pages) {
            let seen = Seen::new(Role::Page, queue, format!("page-{page}"));
            let (sender, receiver) = mpsc::channel(ORDERS_MAX);
            let namespace = (page / QUEUES.len() % 2 == 1).then(|| format!("page-{page}/doc"));
            let habits = (namespace, page % 3 == 0);
            let page = page::Page::new(scene.clone(), seen.clone(), http.clone(), receiver, random.fork(), habits);
            cast.tasks.spawn(page.run());
            peers.push(seen);
            cast.orders.push(sender.clone());
            orders.push(sender);
        }
        let mut definition = simple("plain", 1_000);
        definition["requirements"] = json!({ "gpus": 1 });
        let stuck = Job::of(definition, None)?;
        scene.keep_from_originals(&stuck.id);
        for line in share(args.lines) {
            let seen = Seen::new(Role::Line, queue, format!("line-{line}"));
            peers.push(seen.clone());
            let (scene, http, random) = (scene.clone(), http.clone(), random.fork());
            cast.tasks.spawn(line::Line { scene, seen, http, random, stuck: stuck.clone() }.run());
        }
        let (is_mixed, mut native_workers, mut native_pages) = (number == 1, Vec::new(), Vec::new());
        for one in (0..NATIVE_WORKERS).filter(|_| is_mixed) {
            let id = format!("native-worker-{one}");
            native_workers.push(id.clone());
            cast.tasks.spawn(native::Worker::new(scene.clone(), queue, id).await?.run());
        }
        for one in (0..NATIVE_PAGES).filter(|_| is_mixed) {
            let state = Arc::default();
            native_pages.push(Arc::clone(&state));
            let (scene, queue, random) = (scene.clone(), queue.to_owned(), random.fork());
            cast.tasks.spawn(native::Page { scene, queue, name: format!("native-page-{one}"), state, random }.run());
        }
        cast.stuck.push(stuck);
        cast.stages.push(Arc::new(Stage { queue: queue.to_owned(), peers, orders, native_workers, native_pages }));
    }
    let everyone = Arc::new(cast.stages.iter().flat_map(|stage| stage.peers.clone()).collect::<Vec<_>>());
    for (number, queue) in QUEUES.into_iter().enumerate() {
        let script = script::Script {
            scene: scene.clone(),
            http: http.clone(),
            queue: queue.to_owned(),
            other: QUEUES[1 - number].to_owned(),
            is_mixed: number == 1,
            peers: everyone.clone(),
            random: random.fork(),
        };
        cast.tasks.spawn(script.run());
    }
    Ok(cast)
}

/// Somebody loses the connection now and then.
async fn load(orders: &[mpsc::Sender<Order>], mut random: Random) {
    loop {
        tokio::time::sleep(random.millis(DROP_EVERY_MS.0, DROP_EVERY_MS.1)).await;
        let one = random.index(0, orders.len());
        let _ = orders[one].send(Order::Drop(random.millis(AWAY_MS.0, AWAY_MS.1))).await;
    }
}

/// Waits, and says now and then how it goes.
async fn wait(scene: &Scene, from: Instant, time: Duration, what: &str) {
    let until = from + time;
    loop {
        let now = Instant::now();
        if now >= until {
            return;
        }
        sleep_until(until.min(now + SAY_EVERY)).await;
        let deeds = &scene.deeds;
        let lost: u64 = Role::ALL.iter().map(|role| scene.sockets(*role).lost.get()).sum();
        println!(
            "  {what} for {} s: {} submitted, {} ended, {lost} sockets lost, {} wrong",
            from.elapsed().as_secs(),
            deeds.submitted.get(),
            deeds.ended.get() + deeds.ended_native.get(),
            scene.wrong.count()
        );
    }
}

/// Every ping that we waited for was answered.
fn judge_sockets(scene: &Scene) {
    for role in Role::ALL {
        let sockets = scene.sockets(role);
        let (asked, answered) = (sockets.pings.get(), sockets.pongs.get() + sockets.pings_cut.get());
        if asked != answered {
            scene.wrong.say(format!("{asked} pings of {} and {answered} answers", role.name()));
        }
    }
}

fn tell(scene: &Scene, longest: Duration) {
    println!("\n| | {} |", Role::ALL.map(Role::name).join(" | "));
    println!("| --- | {} |", Role::ALL.map(|_| "---").join(" | "));
    let row = |what: &str, value: fn(&scene::Sockets) -> String| {
        println!("| {what} | {} |", Role::ALL.map(|role| value(scene.sockets(role))).join(" | "));
    };
    row("sockets opened", |sockets| sockets.opened.get().to_string());
    row("closed by us", |sockets| sockets.dropped.get().to_string());
    row("lost", |sockets| sockets.lost.get().to_string());
    row("watchdogs that bit", |sockets| sockets.watchdogs.get().to_string());
    row("PING / PONG (cut by us)", |sockets| {
        format!("{} / {} ({})", sockets.pings.get(), sockets.pongs.get(), sockets.pings_cut.get())
    });
    row("PING to PONG", |sockets| sockets.pong_delays.text());
    row("longest without news of jobs, offline included", |sockets| match sockets.silences.at(1_000) {
        60_000.. => "a minute or more".to_owned(),
        ms => format!("{ms} ms"),
    });
    row("frames, bytes received", |sockets| format!("{}, {}", sockets.frames.get(), sockets.bytes.get()));

    let deeds = &scene.deeds;
    println!("\n| what they did | |\n| --- | --- |");
    for (what, value) in [
        ("submissions (sent again by command lines)", format!("{} ({})", deeds.submitted.get(), deeds.resent.get())),
        ("submission to being shown", deeds.shown.text()),
        ("ended jobs submitted again", deeds.resubmitted_finished.get().to_string()),
        ("one document, another, the first again", deeds.replaced_back.get().to_string()),
        ("cancels, deletions", format!("{}, {}", deeds.cancelled.get(), deeds.deleted.get())),
        ("cancel to the container's kill", format!("{} of {}", deeds.killed.text(), deeds.killed.count())),
        (
            "jobs of two namespaces, copies, polled jobs",
            format!("{}, {}, {}", deeds.shared.get(), deeds.copied.get(), deeds.over_http.get()),
        ),
        ("command lines that got their result", format!("{}; {}", deeds.lines_done.get(), deeds.line_delays.text())),
        ("claims, let go for another worker", format!("{}, {}", deeds.claims.get(), deeds.let_go.get())),
        ("ends sent by original workers, by ours", format!("{}, {}", deeds.ended.get(), deeds.ended_native.get())),
        (
            "results thrown away by their worker, runs begun again",
            format!("{}, {}", deeds.discarded.get(), deeds.begun_again.get()),
        ),
        (
            "definitions asked for, waited for in vain",
            format!("{}, {}", deeds.definitions_asked.get(), deeds.definitions_given_up.get()),
        ),
        ("frames gathered offline", deeds.offline_frames.get().to_string()),
        (
            "log lines sent, seen by pages that looked",
            format!("{}, {}", deeds.log_lines_sent.get(), deeds.log_lines_seen.get()),
        ),
        ("blobs stored, fetched", format!("{}, {}", deeds.blobs_put.get(), deeds.blobs_got.get())),
        (
            "results fetched by pages (no answer without a queue)",
            format!("{} ({})", deeds.results_got.get(), deeds.results_null.get()),
        ),
        ("status asked for", deeds.statuses.get().to_string()),
        ("longest that a job waited while one worker had a free slot", format!("{:.1} s", longest.as_secs_f64())),
    ] {
        println!("| {what} | {value} |");
    }
    println!();
}

//! `soak storm`: all subscribers drop their connections and come back at once, while the queue changes, again and again, and
//! also over the broker's death: each is shown exactly what it missed.

use std::time::Duration;

use anyhow::{Context, ensure};
use protocol::id::{Digest, Head};
use protocol::native::{FromBroker, Hello};
use tokio::time::Instant;

use crate::client::{client_hello, connect};
use crate::random::Random;
use crate::watch::{Crowd, Ended, Scene, short};

const QUEUE: &str = "soak-storm";

/// How long the subscribers are away: some changes, or many.
const AWAY_MS: (u64, u64) = (200, 6_000);

/// How long all may take to be shown what they missed before that is told as slow; it is not wrong.
const SLOW: Duration = Duration::from_secs(10);

/// Options of `soak storm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    crowd: Crowd,
    /// How often all leave and come back
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How often the broker dies while they are away, and then how often while they are there
    #[arg(long, default_value_t = 1)]
    kills: u32,
}

#[derive(Clone, Copy)]
enum Round {
    /// They leave by themselves.
    Leave,
    /// The broker dies while they are away.
    KilledMeanwhile,
    /// They are there when the broker dies, and come back as soon as they can.
    Killed,
}

/// Runs it; whether all was well.
pub(crate) async fn run(args: Args) -> anyhow::Result<bool> {
    let Args { crowd, rounds, kills } = args;
    let seed = crowd.seed.unwrap_or_else(Random::seed);
    let count = crowd.subscribers;
    println!(
        "storm: {count} subscribers, {} jobs, {rounds} rounds and {kills} + {kills} kills, seed {seed}",
        crowd.jobs
    );
    let temporary = tempfile::tempdir()?;
    let mut scene = Scene::start(&crowd, QUEUE, crowd.keep.as_deref().unwrap_or(temporary.path()), seed).await?;
    let seen = scene.subscribers.seen.clone();
    let mut random = Random::new(seed);
    let mut plan = vec![Round::Leave; usize::try_from(rounds)?];
    plan.extend(vec![Round::KilledMeanwhile; usize::try_from(kills)?]);
    plan.extend(vec![Round::Killed; usize::try_from(kills)?]);
    let mut lag_snapshots = 0;
    for (number, round) in (1..).zip(&plan) {
        tokio::time::sleep(random.millis(500, 1_500)).await;
        let before = seen.resumes.get();
        let records = seen.records.get();
        let away = random.millis(AWAY_MS.0, AWAY_MS.1);
        let mut away_ms = away.as_millis();
        let what = match round {
            Round::Leave => {
                scene.subscribers.leave().await?;
                tokio::time::sleep(away).await;
                scene.subscribers.come_back();
                "left"
            }
            Round::KilledMeanwhile => {
                scene.subscribers.leave().await?;
                tokio::time::sleep(away / 2).await;
                lag_snapshots += scene.restart().await?;
                tokio::time::sleep(away / 2).await;
                scene.subscribers.come_back();
                "left, the broker died meanwhile"
            }
            Round::Killed => {
                let died = Instant::now();
                lag_snapshots += scene.restart().await?;
                away_ms = died.elapsed().as_millis();
                "lost the broker"
            }
        };
        let started = Instant::now();
        // Whatever happened until now, they must have been shown soon.
        let (_sender, _receiver, welcome) = connect(&scene.soak.address, QUEUE, client_hello(false)).await?;
        scene.subscribers.shown(welcome.head.seq).await?;
        let took = started.elapsed();
        println!(
            "  round {number}: all {what}, away for {} ms; all back and shown everything {} ms after the first could{}; {} resumes, {} records shown",
            away_ms,
            took.as_millis(),
            if took > SLOW { " (SLOW)" } else { "" },
            seen.resumes.get() - before,
            seen.records.get() - records
        );
        if seen.resumes.get() - before < count as u64 {
            seen.wrong.say(format!("only {} of {count} resumed", seen.resumes.get() - before));
        }
    }
    for (what, resume) in strangers(&scene).await? {
        let given = first_news(&scene, resume).await?;
        if !matches!(given, FromBroker::Snapshot { .. }) {
            seen.wrong.say(format!("one who resumed at {what} was given {given:?}, not a snapshot"));
        }
    }
    let Ended { agreed, changes, lag_snapshots: lag, .. } = scene.end().await?;
    lag_snapshots += lag;
    let wrong = &seen.wrong;
    if lag_snapshots > 0 {
        wrong.say(format!("{lag_snapshots} subscribers fell behind and were given snapshots"));
    }
    if seen.snapshots.get() != count as u64 {
        wrong.say(format!("{} snapshots were given to {count} subscribers", seen.snapshots.get()));
    }
    println!(
        "  {} changes, answered after {}; delivery while connected: {}",
        changes.made,
        changes.delays.text(),
        seen.delays.text()
    );
    let promise = format!(
        "{} resumes, none got a snapshot; every subscriber was shown each record up to {} once (chain {}), {} fold to the broker's and the journal's state {}; audit verify: good",
        seen.resumes.get(),
        agreed.head.seq,
        short(agreed.head.hash),
        agreed.folds,
        short(agreed.state_hash)
    );
    println!("storm: seed {seed}: {}", wrong.verdict(&promise));
    Ok(wrong.count() == 0)
}

impl Scene {
    /// Kills the broker and starts it again; says how many snapshots for lag it had given.
    async fn restart(&mut self) -> anyhow::Result<u64> {
        let given = self.soak.metric("gridsocket_lag_snapshots_total").await?;
        let next = self.soak.start_after(&mut self.broker).await?;
        self.broker = next;
        Ok(given)
    }
}

/// Heads that are not of the queue's chain: whoever resumes there must be told so, with a snapshot. This shows that the
/// broker compares at all.
async fn strangers(scene: &Scene) -> anyhow::Result<Vec<(&'static str, Head)>> {
    let (_sender, _receiver, welcome) = connect(&scene.soak.address, QUEUE, client_hello(false)).await?;
    let Head { seq, .. } = welcome.head;
    ensure!(seq > 2, "nothing has happened");
    let hash = Digest::of(b"another chain");
    Ok(vec![
        ("its last record with another hash", Head { seq, hash }),
        ("an old record with another hash", Head { seq: 2, hash }),
        ("a record to come", Head { seq: seq + 1_000_000, hash }),
    ])
}

async fn first_news(scene: &Scene, resume: Head) -> anyhow::Result<FromBroker> {
    let hello = Hello { resume: Some(resume), ..client_hello(true) };
    let (_sender, mut receiver, _) = connect(&scene.soak.address, QUEUE, hello).await?;
    loop {
        match receiver.next().await.context("after a resume at a strange head")? {
            FromBroker::Presence { .. } => {}
            news => return Ok(news),
        }
    }
}

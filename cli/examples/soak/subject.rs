//! The broker that is soaked: the real binary, on a data folder and an address of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use broker::journal::{Journal, JournalConfig};

use crate::history::{self, Histories, Losses};
use crate::process::{self, Process, built, free_address, path_text};
use crate::told::Told;

/// A broker, whether it runs just now or not.
pub(crate) struct Subject {
    pub(crate) binary: PathBuf,
    pub(crate) address: String,
    pub(crate) data: PathBuf,
    pub(crate) http: reqwest::Client,
    log: PathBuf,
}

impl Subject {
    /// One with its data in `dir`.
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            binary: built("gridsocket")?,
            address: free_address()?,
            data: dir.join("data"),
            log: dir.join("broker.log"),
            http: reqwest::Client::new(),
        })
    }

    /// Starts it.
    pub(crate) fn start(&self) -> anyhow::Result<Process> {
        let data = path_text(&self.data)?;
        Process::start(&self.binary, &["serve", "--listen", &self.address, "--data", data], &self.log)
    }

    /// Waits until it answers.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        process::ready(&self.http, &self.address).await
    }

    /// Kills the one that runs, as `kill -9` does, and starts another; waits until that answers.
    pub(crate) async fn start_after(&self, running: &mut Process) -> anyhow::Result<Process> {
        running.kill_in_place().await.context("killing the broker")?;
        let next = self.start()?;
        self.ready().await?;
        Ok(next)
    }

    /// One of its numbers for operators.
    pub(crate) async fn metric(&self, name: &str) -> anyhow::Result<u64> {
        let text = self.get("/metrics").await?;
        number_of(&text, name).with_context(|| format!("no {name} among the metrics"))
    }

    /// How many jobs wait and run in a queue.
    pub(crate) async fn queue_length(&self, queue: &str) -> anyhow::Result<u64> {
        let text = self.get(&format!("/q/{queue}/metrics")).await?;
        number_of(&text, "queue_length").context("no queue_length among the metrics")
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.http.get(format!("http://{}{path}", self.address)).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// What a person would ask of the journal.
    pub(crate) fn audit_verify(&self) -> anyhow::Result<()> {
        let said = Command::new(&self.binary).args(["audit", "verify", "--data", path_text(&self.data)?]).output()?;
        let text = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success(), "gridsocket audit verify: {text}{}", String::from_utf8_lossy(&said.stdout));
        Ok(())
    }

    /// Where the journal lies.
    pub(crate) fn journal(&self) -> PathBuf {
        self.data.join("journal")
    }

    /// Everything that was told, beside what is on disk. The broker must be stopped.
    pub(crate) fn compare(&self, told: &[Told], losses: Losses, wrong: &mut Vec<String>) -> anyhow::Result<Histories> {
        let dir = self.journal();
        let histories = history::read(&dir)?;
        let (journal, report) = Journal::open(JournalConfig { scrub: false, ..JournalConfig::new(dir) })?;
        wrong.extend(report.losses.iter().map(|loss| format!("damage in segment {}: {}", loss.segment, loss.what)));
        history::same_as_served(&journal, &histories)?;
        wrong.extend(history::check_with(&journal, &histories, told, losses));
        journal.close();
        Ok(histories)
    }
}

fn number_of(metrics: &str, name: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    metrics.lines().find_map(value)
}

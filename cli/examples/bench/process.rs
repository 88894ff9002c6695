//! The broker as a process of its own, and what processes take of the machine.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use crate::http::Http;

/// The kernel counts CPU time in hundredths of a second for every program, on every machine this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// How long a program may take until it answers.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// A program that serves HTTP, ended when dropped.
pub(crate) struct Served {
    child: Child,
    pub(crate) port: u16,
    /// From just before it was started to its first answer.
    pub(crate) ready: Duration,
}

impl Served {
    /// Starts the broker on `folder`, as it is unless told otherwise.
    pub(crate) async fn broker(binary: &Path, folder: &Path) -> anyhow::Result<Self> {
        Self::broker_with(binary, folder, "").await
    }

    /// As [`Served::broker`], with limits that are not the usual ones.
    pub(crate) async fn broker_with(binary: &Path, folder: &Path, limits: &str) -> anyhow::Result<Self> {
        let port = free_port()?;
        let log = File::options().create(true).append(true).open(folder.with_extension("log"))?;
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(folder);
        if !limits.is_empty() {
            command.env("GRIDSOCKET_LIMITS", limits);
        }
        command.env("GRIDSOCKET_LOG", "warn").stdout(log.try_clone()?).stderr(log).stdin(Stdio::null());
        Self::start(command, port).await
    }

    /// Starts `command`, which serves on `port`.
    pub(crate) async fn start(mut command: Command, port: u16) -> anyhow::Result<Self> {
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let mut served = Self { child, port, ready: Duration::ZERO };
        loop {
            if let Ok(mut http) = Http::connect(port).await
                && http.get("/healthz").await.is_ok_and(|answer| answer.status == 200)
            {
                served.ready = started.elapsed();
                return Ok(served);
            }
            if let Some(status) = served.child.try_wait()? {
                bail!("{command:?} ended at once: {status}");
            }
            if started.elapsed() > READY_WITHIN {
                bail!("{command:?} does not answer");
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in MiB.
    pub(crate) fn resident_mib(&self) -> anyhow::Result<f64> {
        self.status_mib("VmRSS:")
    }

    /// The most that was resident since [`Served::forget_peak`].
    pub(crate) fn peak_mib(&self) -> anyhow::Result<f64> {
        self.status_mib("VmHWM:")
    }

    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")?)
    }

    fn status_mib(&self, field: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// Waits until it does nothing: what came before must not be paid for in the next row.
    pub(crate) async fn quiet(&self) {
        for _ in 0..100 {
            let before = cpu_seconds(self.pid());
            sleep(Duration::from_millis(200)).await;
            if cpu_seconds(self.pid()) - before < 0.015 {
                return;
            }
        }
    }

    /// Ends it as a power cut would, as far as a process can tell.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// CPU time that a process has used.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything, parentheses included; user and system time are the 12th and 13th field after it.
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0.0 };
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

/// CPU time that the whole machine has used.
fn machine_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let busy: f64 =
        fields.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, ticks)| ticks).sum();
    busy / TICKS_PER_SECOND
}

/// How many cores were busy with what, on average.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) broker: f64,
    pub(crate) client: f64,
    /// Everything else on the machine: it must be near nothing for a row to count.
    pub(crate) others: f64,
}

impl Usage {
    pub(crate) fn text(self) -> String {
        let Self { broker, client, others } = self;
        if others < 0.1 {
            format!("{broker:.2} + {client:.2}")
        } else {
            format!("{broker:.2} + {client:.2} (+ {others:.2})")
        }
    }
}

/// Measures [`Usage`] from its making on.
pub(crate) struct Meter {
    pid: u32,
    since: Instant,
    broker: f64,
    client: f64,
    machine: f64,
}

impl Meter {
    pub(crate) fn start(served: &Served) -> Self {
        Self::of(served.pid())
    }

    /// Of the process with that id.
    pub(crate) fn of(pid: u32) -> Self {
        let client = cpu_seconds(std::process::id());
        Self { pid, since: Instant::now(), broker: cpu_seconds(pid), client, machine: machine_seconds() }
    }

    pub(crate) fn read(&self) -> Usage {
        let seconds = self.since.elapsed().as_secs_f64();
        let broker = (cpu_seconds(self.pid) - self.broker) / seconds;
        let client = (cpu_seconds(std::process::id()) - self.client) / seconds;
        let others = ((machine_seconds() - self.machine) / seconds - broker - client).max(0.0);
        Usage { broker, client, others }
    }
}

/// Says what the rows were measured on.
pub(crate) fn describe_machine(data: &Path) {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let disk = mount_of(data).unwrap_or_else(|| "unknown disk".to_owned());
    eprintln!(
        "{cores} cores, {}; Linux {}; data on {disk}; load before: {}",
        model.trim_start_matches(['\t', ' ', ':']),
        kernel.trim(),
        load.split_whitespace().next().unwrap_or("?"),
    );
}

/// Device and file system that hold `path`.
fn mount_of(path: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let holds = |line: &str| {
        let mut fields = line.split(' ');
        let (device, at, kind) = (fields.next()?, PathBuf::from(fields.next()?), fields.next()?);
        path.starts_with(&at).then(|| (at.as_os_str().len(), format!("{device} ({kind})")))
    };
    mounts.lines().filter_map(holds).max().map(|(_, text)| text)
}

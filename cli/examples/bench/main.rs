//! `just bench`: how fast the broker is, beside what the machine allows, in one run.
//!
//! The broker runs as a process of its own, the release binary, so that its CPU time can be told from this one's. Every row
//! says what was measured, the target, and the floor: the same traffic against something that does no work, on the same disk.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a load generator looks for what it waits for; the rest is an error or not its business"
)]

mod bulk;
mod container;
mod crowd;
mod definitions;
mod fanout;
mod floors;
mod frames;
mod http;
mod life;
mod lives;
#[path = "../soak/open_files.rs"]
mod open_files;
mod original;
mod overhead;
mod pages;
mod peers;
mod process;
mod report;
mod rest;
mod restart;
mod socket;
mod watch;
mod wire;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;

use crate::floors::Floors;
use crate::report::Report;

#[derive(Parser)]
#[command(about = "Measures the broker beside its floors, in one run")]
struct Args {
    /// Fewer jobs and shorter rows: under a minute, and rougher.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Longer points, and so steadier numbers: about twice the time.
    #[arg(long)]
    full: bool,
    /// Only these parts, floors always included.
    #[arg(value_name = "PART", value_parser = PARTS)]
    parts: Vec<String>,
    /// Also writes the rows to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The folder to measure in: the disk under it is what counts.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    data: PathBuf,
    /// The broker's binary; the one beside this program when absent.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The image of the container rows; it must be on the engine already, and have `true`.
    #[arg(long, env = "GRIDSOCKET_TEST_IMAGE", default_value = "gridsocket/busybox:local")]
    image: String,
    /// Used by this program itself: the floors' server, on these two ports.
    #[arg(long, hide = true, num_args = 2, value_names = ["HTTP", "SOCKET"])]
    floor_server: Option<Vec<u16>>,
    /// Used by this program itself: a broker on this port whose changes are gathered for so many milliseconds.
    #[arg(long, hide = true, num_args = 2, value_names = ["PORT", "MS"])]
    original_broker: Option<Vec<u16>>,
    /// Used by this program itself: the original's way of telling, on this port, of so many jobs.
    #[arg(long, hide = true, num_args = 2, value_names = ["PORT", "JOBS"])]
    original_sender: Option<Vec<u16>>,
}

/// The parts, in the order in which they run.
const PARTS: [&str; 14] = [
    "idle",
    "rest",
    "socket",
    "bulk",
    "life",
    "dispatch",
    "wire",
    "fanout",
    "original",
    "restart",
    "replay",
    "container",
    "overhead",
    "peers",
];

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    Quick,
    Usual,
    Full,
}

impl Scale {
    const fn pick<T: Copy>(self, quick: T, usual: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Usual => usual,
            Self::Full => full,
        }
    }

    /// How long one point of a row is measured.
    const fn point(self) -> Duration {
        Duration::from_millis(self.pick(700, 3_000, 4_000))
    }
}

/// What every part needs.
struct Bench {
    scale: Scale,
    data: PathBuf,
    binary: PathBuf,
    image: String,
    floors: Floors,
    report: Report,
}

impl Bench {
    /// A folder of that name, empty.
    fn fresh_folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.data.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(&[http, socket]) = args.floor_server.as_deref() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(floors::serve(http, socket));
    }
    if let Some(&[port, gather_ms]) = args.original_broker.as_deref() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(original::serve_broker(port, gather_ms, &args.data));
    }
    if let Some(&[port, jobs]) = args.original_sender.as_deref() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(original::serve_as_the_original(port, jobs.into()));
    }
    // One thread: the load generator takes at most one of the two cores, and no lock.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(args))
}

async fn measure(args: Args) -> anyhow::Result<()> {
    open_files::allow_all();
    if cfg!(debug_assertions) {
        eprintln!("note: this is an unoptimised build; its numbers say nothing (cargo run --release …)");
    }
    let scale = match (args.quick, args.full) {
        (true, _) => Scale::Quick,
        (_, true) => Scale::Full,
        _ => Scale::Usual,
    };
    std::fs::create_dir_all(&args.data).with_context(|| format!("cannot make {}", args.data.display()))?;
    let data = args.data.canonicalize()?;
    let binary = binary(args.binary.as_deref())?;
    process::describe_machine(&data);
    let floors = floors::measure(scale, &data).await?;
    let mut bench = Bench { scale, data, binary, image: args.image, floors, report: Report::default() };
    floors::tell(&mut bench);
    for part in PARTS.into_iter().filter(|part| args.parts.is_empty() || args.parts.iter().any(|only| only == part)) {
        let started = tokio::time::Instant::now();
        let done = match part {
            "idle" => restart::idle(&mut bench).await,
            "rest" => rest::measure(&mut bench).await,
            "socket" => lives::submit_over_socket(&mut bench).await,
            "bulk" => bulk::measure(&mut bench).await,
            "life" => lives::measure(&mut bench).await,
            "dispatch" => lives::dispatch(&mut bench).await,
            "wire" => wire::measure(&mut bench).await,
            "fanout" => fanout::measure(&mut bench).await,
            "original" => original::measure(&mut bench).await,
            "restart" => restart::measure(&mut bench).await,
            "replay" => restart::replay(&mut bench),
            "container" => container::measure(&mut bench).await,
            "overhead" => overhead::measure(&mut bench).await,
            _ => peers::measure(&mut bench).await,
        };
        if let Err(error) = done {
            bench.report.failed(part, &error);
        }
        eprintln!("({part}: {:.1} s)", started.elapsed().as_secs_f64());
    }
    bench.report.finish(args.json.as_deref())
}

/// The release binary of the same build.
fn binary(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe()?.ancestors().nth(2).map(|folder| folder.join("gridsocket"));
    let binary = given.map(Path::to_path_buf).or(beside).unwrap_or_default();
    if !binary.is_file() {
        bail!(
            "no broker at {}: cargo build --release -p gridsocket --bin gridsocket, or --binary FILE",
            binary.display()
        );
    }
    Ok(binary)
}

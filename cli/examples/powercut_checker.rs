//! Checks a store after a power cut: `powercut_checker DIR ACKED`, to be started by `deploy/powercut`.
//!
//! Everything that the writer was told in this round ($POWERCUT_ACKS) and in earlier ones (the ledger in DIR) must be in the
//! journal, bodies and all, and its chains must hold. What was found is added to the ledger.

#[path = "support/blobs.rs"]
mod blobs;
#[path = "support/history.rs"]
mod history;
#[path = "support/told.rs"]
mod told;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use broker::config::Config;
use broker::journal::{Journal, JournalConfig};

use crate::told::Told;

/// What earlier rounds on this store were told.
const LEDGER: &str = "told.jsonl";

#[tokio::main]
async fn main() -> ExitCode {
    match check().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The rig shows the last line.
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn check() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, acknowledged] = arguments.as_slice() else { anyhow::bail!("usage: powercut_checker DIR ACKED") };
    let dir = PathBuf::from(dir);
    let acknowledged: usize = acknowledged.parse().context("ACKED is a number")?;
    let ledger = dir.join(LEDGER);
    let this_round = match std::env::var_os("POWERCUT_ACKS") {
        Some(path) => read(Path::new(&path))?,
        None => Vec::new(),
    };
    let mut told = read(&ledger)?;
    told.extend_from_slice(&this_round);
    let counted = told.iter().filter(|told| told.is_acknowledgement()).count();
    ensure!(counted >= acknowledged, "{acknowledged} were acknowledged, but only {counted} are written down");

    let config = JournalConfig { scrub: false, ..JournalConfig::new(dir.join("data").join("journal")) };
    let (journal, report) = Journal::open(config.clone())?;
    for line in report.lines() {
        println!("opened: {line}");
    }
    ensure!(report.losses.is_empty(), "damage was found: {}", first(report.losses.iter().map(|loss| &loss.what)));
    let quarantined = || report.quarantined.iter().map(|one| &one.text);
    ensure!(
        report.quarantined.is_empty(),
        "{} queues are quarantined: {}",
        quarantined().count(),
        first(quarantined())
    );
    let scrubbed = journal.scrub()?;
    ensure!(
        scrubbed.losses.is_empty(),
        "the scrub found damage: {}",
        first(scrubbed.losses.iter().map(|loss| &loss.what))
    );
    // The store is no truth; that it is mended is what the scrub is for.
    if !scrubbed.repaired.is_empty() {
        println!("the scrub mended what the event store has of {} queues", scrubbed.repaired.len());
    }
    let histories = history::read(&config.dir)?;
    history::same_as_served(&journal, &histories)?;
    let mut wrong = history::check(&journal, &histories, &told);
    wrong.extend(blobs::check(&Config::new(dir.join("data")), &told).await?);
    wrong.iter().take(history::WRONG_MAX).for_each(|text| println!("{text}"));
    ensure!(
        wrong.is_empty(),
        "{} of {} things that were told are not so; the first: {}",
        wrong.len(),
        told.len(),
        wrong[0]
    );

    let records: u64 = histories.values().map(|history| history.state.head().seq).sum();
    journal.close();
    let mut ledger = OpenOptions::new().create(true).append(true).open(ledger)?;
    for told in &this_round {
        writeln!(ledger, "{}", told.line())?;
    }
    ledger.sync_all()?;
    println!("{} acknowledgements and {} other things told are in {records} records", counted, told.len() - counted);
    Ok(())
}

/// What was told, of a file with other lines among it.
fn read(path: &Path) -> anyhow::Result<Vec<Told>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(Told::parse).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn first<'a>(mut texts: impl Iterator<Item = &'a String>) -> &'a str {
    texts.next().map_or("", String::as_str)
}

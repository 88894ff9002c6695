//! `soak powercut`: many rounds of `deploy/powercut` with the real broker, half of them in chains on one disk.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::process::built;

/// How many cuts one disk goes through, in the half that is chained.
const CHAIN: u32 = 5;

/// What the rig says with this code: this machine cannot do it.
const SKIPPED: i32 = 4;

/// Options of `soak powercut`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often the power is cut
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Take the sync out of each write, and expect that the rig finds it
    #[arg(long)]
    unsynced: bool,
}

/// Runs it; whether all was well.
pub(crate) async fn run(args: &Args) -> anyhow::Result<bool> {
    let writer = built("examples/powercut_writer")?;
    let writer = if args.unsynced { format!("{} --unsynced", writer.display()) } else { writer.display().to_string() };
    let checker = built("examples/powercut_checker")?;
    // What is missing once stays missing: a chain shows nothing more.
    let chained = if args.unsynced { 0 } else { args.rounds / 2 / CHAIN * CHAIN };
    let fresh = args.rounds - chained;
    let mut good = true;
    for (rounds, chain) in [(fresh, 1), (chained, CHAIN)] {
        if rounds == 0 {
            continue;
        }
        println!(
            "  {rounds} cuts, {}",
            if chain == 1 { "a fresh disk each".to_owned() } else { format!("{chain} on each disk") }
        );
        let mut rig = Command::new(rig());
        rig.args(["--chain", &chain.to_string(), &rounds.to_string(), &writer]).arg(&checker);
        let status = rig.status().await?;
        if status.code() == Some(SKIPPED) {
            println!("powercut: skipped");
            return Ok(false);
        }
        good &= status.success();
    }
    println!(
        "powercut: {} cuts, {chained} of them in chains of {CHAIN}: {}",
        args.rounds,
        match (args.unsynced, good) {
            (false, true) => "nothing that was acknowledged is missing",
            (false, false) => "BAD",
            (true, false) => "without the sync the rig finds what is missing, as it must",
            (true, true) => "BAD: without the sync something must be missing, and the rig does not find it",
        }
    );
    Ok(good != args.unsynced)
}

fn rig() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/powercut")
}

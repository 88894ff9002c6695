//! `gridsocket worker upgrade`: exchanges the containers of workers, and tells how that goes.

use std::process::ExitCode;

use worker::upgrade::{Outcome, Step, Upgrade, upgrade};

use crate::exit;
use crate::progress::{one_line, print, say};

/// Exchanges them; ends with 1 if one is not what it was to become.
pub(crate) async fn run(plan: &Upgrade) -> anyhow::Result<ExitCode> {
    let mut is_restored = false;
    let tell = |name: &str, step: Step| say(&format!("{}: {}", one_line(name), in_words(step)));
    let done = |name: &str, outcome: Outcome| {
        let name = one_line(name);
        match outcome {
            Outcome::Upgraded { image } => drop(print(&format!("{name}: now runs {image}"))),
            Outcome::Current { image } => drop(print(&format!("{name}: runs {image} already"))),
            Outcome::Restored { why, log } => {
                is_restored = true;
                say(&format!("error: {name} is as it was: {}", one_line(&why)));
                if !log.is_empty() {
                    say("the new container said last:");
                    log.iter().for_each(|line| say(&format!("  {}", one_line(line))));
                }
            }
        }
    };
    upgrade(plan, tell, done).await?;
    Ok(ExitCode::from(if is_restored { exit::FAILED } else { exit::OK }))
}

fn in_words(step: Step) -> &'static str {
    match step {
        Step::Found => "an upgrade that was interrupted is gone on with",
        Step::Fetching => "fetching the image",
        Step::Made => "made the new container",
        Step::Stopped => "stopped the old one; its jobs run on",
        Step::SetAside => "set it aside",
        Step::Named => "gave its name to the new one",
        Step::Started => "started that; seeing whether it is well",
        Step::Well => "it is well",
        Step::Ill => "it is not well: the old one comes back",
    }
}

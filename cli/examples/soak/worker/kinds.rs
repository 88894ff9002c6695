//! The kinds of jobs, and how each must end.

use protocol::event::RunOutcome;
use serde_json::{Value, json};

use super::daemon::image;
use crate::random::Random;

/// What is written to `/outputs/large`: too large to travel inside a result.
const LARGE_BYTES: u64 = 3_000;
/// How many different images are built.
const BUILDS: u64 = 12;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Nothing,
    ExitCode,
    Lines,
    Outputs,
    Inputs,
    /// Sleeps for so many tenths of a second.
    Sleep(u64),
    /// Sleeps until it is cancelled or deleted, or for as long as workers allow.
    SleepOn,
    Overtime,
    /// The same, and ignores the signal to end.
    Stubborn,
    NoImage,
    NoProgram,
    /// With an image that is built first.
    Built(u64),
}

/// What happens to it from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing.
    Left,
    /// Somebody cancels it after so many milliseconds.
    Cancelled(u64),
    /// Somebody deletes it.
    Deleted(u64),
    /// When it has failed it is asked for once more, after so many milliseconds.
    Retried(u64),
}

/// A job.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    pub(super) fate: Fate,
    /// What makes it another than all others.
    pub(super) name: String,
}

impl Plan {
    pub(super) fn random(random: &mut Random, name: String) -> Self {
        let mut kind = match random.between(0, 100) {
            0..22 => Kind::Nothing,
            22..35 => Kind::ExitCode,
            35..50 => Kind::Lines,
            50..62 => Kind::Outputs,
            62..74 => Kind::Inputs,
            74..82 => Kind::Sleep(random.between(0, 30)),
            82..85 => Kind::Overtime,
            85..88 => Kind::Stubborn,
            88..92 => Kind::NoImage,
            92..97 => Kind::NoProgram,
            _ => Kind::Built(random.between(0, BUILDS)),
        };
        let fate = match random.between(0, 100) {
            0..8 => Fate::Cancelled(random.between(0, 3_000)),
            8..13 => Fate::Deleted(random.between(0, 3_000)),
            13..20 if kind.fails() => Fate::Retried(random.between(0, 2_000)),
            _ => Fate::Left,
        };
        if matches!(fate, Fate::Cancelled(_) | Fate::Deleted(_)) && random.percent(50) {
            kind = Kind::SleepOn;
        }
        Self { kind, fate, name }
    }

    pub(super) fn definition(&self) -> Value {
        let shell = |script: &str| json!(["sh", "-c", script]);
        let name = &self.name;
        let mut definition = match self.kind {
            Kind::Nothing => json!({ "command": ["true"] }),
            Kind::ExitCode => json!({ "command": shell("exit 3") }),
            Kind::Lines => json!({ "command": shell("for n in 1 2 3 4 5 6 7 8; do echo \"$NAME $n\"; done") }),
            Kind::Outputs => json!({ "command": shell(&format!(
                "echo \"$NAME\" > /outputs/small; head -c {LARGE_BYTES} /dev/zero > /outputs/large"
            )) }),
            Kind::Inputs => json!({
                "command": ["cat", "/inputs/folder/text"],
                "inputs": { "folder/text": { "type": "utf8", "value": format!("{name}\n") } },
            }),
            Kind::Sleep(tenths) => json!({ "command": ["sleep", format!("{}.{}", tenths / 10, tenths % 10)] }),
            Kind::SleepOn => json!({ "command": ["sleep", "600"] }),
            Kind::Overtime => json!({ "command": ["sleep", "600"], "requirements": { "maxDuration": "2s" } }),
            Kind::Stubborn => json!({
                "command": shell("trap '' TERM INT HUP; while true; do sleep 1; done"),
                "requirements": { "maxDuration": "2s" },
            }),
            Kind::NoImage => json!({ "image": format!("localhost:1/nothing:{name}"), "command": ["true"] }),
            Kind::NoProgram => json!({ "command": ["/no/such/program"] }),
            Kind::Built(number) => json!({
                "build": { "dockerfile": format!("FROM {}\nRUN echo {number} > /number\n", image()) },
                "command": ["cat", "/number"],
            }),
        };
        if definition.get("image").is_none() && definition.get("build").is_none() {
            definition["image"] = image().into();
        }
        definition["env"] = json!({ "NAME": name });
        definition
    }

    /// What is wrong with how it ended by itself.
    pub(super) fn judge(&self, outcome: RunOutcome, code: Option<i64>, result: &Value) -> Result<(), String> {
        let text: String = result["logs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|line| line[2] != true)
            .filter_map(|line| line[0].as_str())
            .collect();
        let name = &self.name;
        let ended = |expected: RunOutcome, expected_code: Option<i64>| {
            if (outcome, code) == (expected, expected_code) {
                return Ok(());
            }
            Err(format!("ended as {outcome:?} with {code:?}, and should have as {expected:?} with {expected_code:?}"))
        };
        let says = |expected: String| {
            if text == expected { Ok(()) } else { Err(format!("said {text:?} instead of {expected:?}")) }
        };
        match self.kind {
            Kind::Nothing | Kind::Sleep(_) => ended(RunOutcome::Success, Some(0)),
            Kind::ExitCode => ended(RunOutcome::Success, Some(3)),
            Kind::Lines => {
                ended(RunOutcome::Success, Some(0))?;
                says((1..=8).map(|n| format!("{name} {n}\n")).collect())
            }
            Kind::Outputs => {
                ended(RunOutcome::Success, Some(0))?;
                let names: Vec<&String> =
                    result["outputs"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
                let are_good = names == ["large", "small"] && result["outputs"]["large"]["type"] == "url";
                if are_good { Ok(()) } else { Err(format!("has other outputs: {}", result["outputs"])) }
            }
            Kind::Inputs => {
                ended(RunOutcome::Success, Some(0))?;
                says(format!("{name}\n"))
            }
            Kind::SleepOn => Err(format!("ended by itself as {outcome:?} with {code:?}")),
            Kind::Overtime | Kind::Stubborn => ended(RunOutcome::TimedOut, Some(137)),
            Kind::NoImage | Kind::NoProgram => ended(RunOutcome::Error, None),
            Kind::Built(number) => {
                ended(RunOutcome::Success, Some(0))?;
                says(format!("{number}\n"))
            }
        }
    }
}

impl Kind {
    /// Whether its end is a failure, so that it can be asked for once more.
    const fn fails(self) -> bool {
        matches!(self, Self::ExitCode | Self::Overtime | Self::Stubborn | Self::NoImage | Self::NoProgram)
    }
}

//! Rows: printed as they come, and once more as a table and as JSON at the end.

mod peer;

use std::path::Path;

use serde_json::{Value, json};

pub(crate) use self::peer::{PeerRow, Side};
use crate::process::Usage;

/// What a row should reach.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    fn is_met(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(least) => measured >= least,
            Self::AtMost(most) => measured <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {}", number(least)),
            Self::AtMost(most) => format!("≤ {}", number(most)),
        }
    }
}

/// One measurement.
pub(crate) struct Row {
    part: &'static str,
    what: String,
    measured: f64,
    unit: &'static str,
    target: Option<Target>,
    floor: Option<(&'static str, f64)>,
    usage: Option<Usage>,
    note: String,
}

impl Row {
    pub(crate) fn new(part: &'static str, what: impl Into<String>, measured: f64, unit: &'static str) -> Self {
        Self { part, what: what.into(), measured, unit, target: None, floor: None, usage: None, note: String::new() }
    }

    pub(crate) fn target(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// What the machine allows, in the same unit.
    pub(crate) fn floor(self, name: &'static str, value: f64) -> Self {
        Self { floor: Some((name, value)), ..self }
    }

    pub(crate) fn usage(self, usage: Usage) -> Self {
        Self { usage: Some(usage), ..self }
    }

    pub(crate) fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    fn ratio(&self) -> Option<f64> {
        self.floor.map(|(_, floor)| self.measured / floor)
    }

    /// What one of them takes of the broker's CPU time, in microseconds: the number that a busy machine changes least.
    fn cpu_each(&self) -> Option<f64> {
        self.usage.filter(|_| self.unit.ends_with("/s")).map(|usage| usage.broker / self.measured * 1e6)
    }

    fn verdict(&self) -> &'static str {
        match self.target {
            None => "",
            Some(target) if target.is_met(self.measured) => "met",
            Some(_) => "**missed**",
        }
    }

    fn cells(&self) -> [String; 7] {
        let floor = match (self.floor, self.ratio()) {
            (Some((name, value)), Some(ratio)) => format!("{ratio:.2} × {} ({name})", number(value)),
            _ => String::new(),
        };
        [
            self.what.clone(),
            format!("{} {}", number(self.measured), self.unit),
            self.target.map(Target::text).unwrap_or_default(),
            self.verdict().to_owned(),
            floor,
            self.usage.map(|usage| usage.text()).unwrap_or_default(),
            [self.cpu_each().map(|us| format!("{us:.0} µs CPU each")), Some(self.note.clone())]
                .into_iter()
                .flatten()
                .filter(|note| !note.is_empty())
                .collect::<Vec<_>>()
                .join("; "),
        ]
    }

    fn json(&self) -> Value {
        let target = self.target.map(|target| {
            let (kind, value) = match target {
                Target::AtLeast(value) => ("at_least", value),
                Target::AtMost(value) => ("at_most", value),
            };
            json!({ "kind": kind, "value": value, "met": target.is_met(self.measured) })
        });
        json!({
            "part": self.part,
            "what": self.what,
            "measured": self.measured,
            "unit": self.unit,
            "target": target,
            "floor": self.floor.map(|(name, value)| json!({ "name": name, "value": value })),
            "ratio_to_floor": self.ratio(),
            "cores": self.usage.map(|usage| json!({
                "broker": usage.broker, "client": usage.client, "others": usage.others,
            })),
            "broker_cpu_us_each": self.cpu_each(),
            "note": self.note,
        })
    }
}

/// A number with as many digits as say something.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        small if small < 1.0 => 3,
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) =
        text.split_once('.').map_or((text.as_str(), None), |(whole, fraction)| (whole, Some(fraction)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 && digit != '-' && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    fraction.map_or(grouped.clone(), |fraction| format!("{grouped}.{fraction}"))
}

/// All rows of a run.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    peers: Vec<PeerRow>,
    skipped: Vec<String>,
    has_failed: bool,
}

const HEADINGS: [&str; 6] =
    ["what", "measured", "target", "", "ratio to the floor", "cores: broker + client (+ others)"];

/// What the parts are called in the tables.
fn title(part: &str) -> &str {
    match part {
        "floor" => "Floors",
        "idle" => "An idle broker",
        "rest" => "Durable submits over REST",
        "socket" => "Durable submits over one connection",
        "life" => "Whole lives of jobs that do nothing",
        "dispatch" => "From submission to grant",
        "wire" => "What a change costs each subscriber",
        "fanout" => "A thousand watchers",
        "original" => "Pages of the original's kind",
        "restart" => "Starting with a long log",
        "replay" => "Replay",
        "container" => "Container jobs",
        "overhead" => "What a worker adds to a container",
        other => other,
    }
}

impl Report {
    pub(crate) fn add(&mut self, row: Row) {
        let cells = row.cells();
        let text: Vec<&str> = cells.iter().map(String::as_str).filter(|cell| !cell.is_empty()).collect();
        eprintln!("{}: {}", row.part, text.join(" | "));
        self.rows.push(row);
    }

    pub(crate) fn add_peer(&mut self, row: PeerRow) {
        eprintln!("peers: {}", row.cells().join(" | "));
        self.peers.push(row);
    }

    pub(crate) fn skipped(&mut self, part: &str, why: &str) {
        eprintln!("{part}: skipped: {why}");
        self.skipped.push(format!("{part}: skipped: {why}"));
    }

    pub(crate) fn failed(&mut self, part: &str, error: &anyhow::Error) {
        eprintln!("{part}: FAILED: {error:#}");
        self.has_failed = true;
        self.skipped.push(format!("{part}: FAILED: {error:#}"));
    }

    /// Prints the tables, writes the JSON.
    ///
    /// # Errors
    ///
    /// When a part failed; a missed target or a peer that is not there is no failure.
    pub(crate) fn finish(&self, json: Option<&Path>) -> anyhow::Result<()> {
        let mut part = "";
        for row in &self.rows {
            if row.part != part {
                part = row.part;
                println!("\n### {}\n\n| {} | |", title(part), HEADINGS.join(" | "));
                println!("|{} --- |", " --- |".repeat(HEADINGS.len()));
            }
            println!("| {} |", row.cells().join(" | "));
        }
        if !self.peers.is_empty() {
            println!("\n### Peers\n\n| {} |", peer::HEADINGS.join(" | "));
            println!("|{}", " --- |".repeat(peer::HEADINGS.len()));
            self.peers.iter().for_each(|row| println!("| {} |", row.cells().join(" | ")));
        }
        for line in &self.skipped {
            println!("\n{line}");
        }
        if let Some(path) = json {
            let peers = self.peers.iter().map(PeerRow::json);
            let rows: Vec<Value> = self.rows.iter().map(Row::json).chain(peers).collect();
            std::fs::write(path, serde_json::to_vec_pretty(&json!({ "rows": rows, "skipped": self.skipped }))?)?;
        }
        anyhow::ensure!(!self.has_failed, "a part failed; see above");
        Ok(())
    }
}

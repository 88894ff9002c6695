//! Rows that put us beside a peer under the same load.

use serde_json::{Value, json};

use super::number;
use crate::process::Usage;

/// What one of the two did.
#[derive(Clone)]
pub(crate) struct Side {
    measured: f64,
    usage: Usage,
    note: String,
}

impl Side {
    pub(crate) const fn new(measured: f64, usage: Usage) -> Self {
        Self { measured, usage, note: String::new() }
    }

    pub(crate) fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    fn json(&self) -> Value {
        let Usage { broker, client, others } = self.usage;
        json!({
            "measured": self.measured,
            "cores": { "server": broker, "client": client, "others": others },
            "note": self.note,
        })
    }
}

/// The same load on both.
pub(crate) struct PeerRow {
    peer: String,
    what: String,
    unit: &'static str,
    ours: Side,
    theirs: Side,
    note: String,
}

pub(super) const HEADINGS: [&str; 8] =
    ["what", "ours", "peer", "theirs", "ours ÷ theirs", "cores: our broker + client", "their server + client", ""];

impl PeerRow {
    pub(crate) fn new(peer: &str, what: impl Into<String>, unit: &'static str, ours: Side, theirs: Side) -> Self {
        Self { peer: peer.to_owned(), what: what.into(), unit, ours, theirs, note: String::new() }
    }

    pub(crate) fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    fn ratio(&self) -> f64 {
        self.ours.measured / self.theirs.measured
    }

    pub(super) fn cells(&self) -> [String; 8] {
        let notes =
            [("ours", &self.ours.note), ("theirs", &self.theirs.note)].map(|(whose, note)| match note.as_str() {
                "" => String::new(),
                note => format!("{whose} {note}"),
            });
        let notes: Vec<&str> =
            notes.iter().chain([&self.note]).map(String::as_str).filter(|note| !note.is_empty()).collect();
        [
            self.what.clone(),
            format!("{} {}", number(self.ours.measured), self.unit),
            self.peer.clone(),
            format!("{} {}", number(self.theirs.measured), self.unit),
            format!("{:.2}", self.ratio()),
            self.ours.usage.text(),
            self.theirs.usage.text(),
            notes.join("; "),
        ]
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "part": "peers",
            "what": self.what,
            "peer": self.peer,
            "unit": self.unit,
            "ours": self.ours.json(),
            "theirs": self.theirs.json(),
            "ratio": self.ratio(),
            "note": self.note,
        })
    }
}

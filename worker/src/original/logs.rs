//! Lines that the server would throw away if they were sent now: it takes them only while it shows the run as ours.

use std::collections::BTreeMap;

use protocol::native::HeldRun;

/// How long they are held back at most: the server tells all its jobs every ten seconds. After that they are sent for what it
/// is worth, so that one run's lines do not stop those of others.
const HOLD_MS: u64 = 15_000;

/// See the module. What is in here has room in the outbox: no more goes out of it until the server has taken this.
#[derive(Debug, Default)]
pub(super) struct HeldLogs(BTreeMap<HeldRun, Held>);

#[derive(Debug)]
struct Held {
    since_ms: u64,
    frames: Vec<String>,
}

impl HeldLogs {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn holds(&self, run: HeldRun) -> bool {
        self.0.contains_key(&run)
    }

    pub(super) fn push(&mut self, run: HeldRun, frame: String, now_ms: u64) {
        self.0.entry(run).or_insert(Held { since_ms: now_ms, frames: Vec::new() }).frames.push(frame);
    }

    /// The frames that may go now.
    pub(super) fn release(&mut self, now_ms: u64, is_ours: impl Fn(HeldRun) -> bool) -> Vec<String> {
        let may_go = |run: &HeldRun, held: &mut Held| is_ours(*run) || now_ms.saturating_sub(held.since_ms) >= HOLD_MS;
        self.0.extract_if(.., may_go).flat_map(|(_, held)| held.frames).collect()
    }
}

//! Whether a worker can work: for whoever restarts what is broken.

use serde_json::json;

use super::snapshot::{Snapshot, Standing};

/// What keeps the worker from working; nothing: it is well.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Health(Vec<&'static str>);

impl Health {
    /// A worker is well whose engine answers, and that is connected for at least one queue.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut reasons = Vec::new();
        if !snapshot.engine.is_reachable {
            reasons.push("the container engine does not answer");
        }
        if snapshot.queues.iter().all(|queue| queue.connected_since_ms.is_none()) {
            reasons.push("no queue is connected to its broker");
        }
        Self(reasons)
    }

    pub(super) const fn is_healthy(&self) -> bool {
        self.0.is_empty()
    }

    /// As the body of an answer.
    pub(super) fn body(&self, snapshot: &Snapshot) -> String {
        let standing = match snapshot.standing {
            Standing::Working => "working",
            Standing::Draining => "draining",
            Standing::Stopping => "stopping",
        };
        let connected = snapshot.queues.iter().filter(|queue| queue.connected_since_ms.is_some()).count();
        let body = json!({
            "healthy": self.is_healthy(),
            "reasons": self.0,
            "standing": standing,
            "engine": snapshot.engine.is_reachable,
            "queues": snapshot.queues.len(),
            "queuesConnected": connected,
            "version": env!("CARGO_PKG_VERSION"),
        });
        format!("{body}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::{EngineView, QueueView};
    use super::*;

    fn worker(engine: bool, connected: &[bool]) -> Snapshot {
        let queue = |is: &bool| QueueView { connected_since_ms: is.then_some(1), ..QueueView::default() };
        Snapshot {
            engine: EngineView { is_reachable: engine, ..EngineView::default() },
            queues: connected.iter().map(queue).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_worker_is_well_with_its_engine_and_one_queue() {
        let of = |engine, connected: &[bool]| Health::of(&worker(engine, connected)).0.len();
        assert_eq!([of(true, &[true]), of(true, &[false, true])], [0, 0]);
        assert_eq!([of(false, &[true]), of(true, &[false]), of(false, &[false, false])], [1, 1, 2]);
        let snapshot = worker(false, &[true]);
        let body: serde_json::Value = serde_json::from_str(&Health::of(&snapshot).body(&snapshot)).unwrap();
        assert_eq!(body["healthy"], false);
        assert_eq!(body["reasons"][0], "the container engine does not answer");
    }
}

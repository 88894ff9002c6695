//! A desk in a test's hands.

use protocol::id::{JobId, UnixMillis};
use protocol::native::{Capacity, FromBroker, HeldRun, RequestId, StopReason, ToBroker, WorkerHello};
use serde_json::{Value, json};

use super::super::{Desk, Now};
use super::{ME, hello, queued, running};

/// A desk with a connection, and what it said.
pub(super) struct Bench {
    pub(super) desk: Desk,
    pub(super) now: Now,
    pub(super) frames: Vec<Value>,
    pub(super) words: Vec<FromBroker>,
    pub(super) grants: u64,
}

impl Bench {
    pub(super) fn new(cpus: u32) -> Self {
        Self::of(hello(ME, cpus), &[])
    }

    pub(super) fn of(me: WorkerHello, holds: &[HeldRun]) -> Self {
        let now = Now { ms: 1_000, at: UnixMillis(1_700_000_000_000) };
        let total = me.total;
        let mut bench = Self { desk: Desk::new(me), now, frames: Vec::new(), words: Vec::new(), grants: 0 };
        bench.desk.open(now, holds);
        bench.look();
        bench.free(total);
        bench
    }

    pub(super) fn look(&mut self) {
        while let Some(frame) = self.desk.next_frame(self.now) {
            self.frames.push(serde_json::from_str(&frame).unwrap());
        }
        while let Some(word) = self.desk.next_word() {
            self.grants += u64::from(matches!(word, FromBroker::Granted { .. }));
            self.words.push(word);
        }
    }

    pub(super) fn free(&mut self, free: Capacity) {
        self.order(ToBroker::Claim { free, grants_seen: self.grants, req: None });
    }

    pub(super) fn order(&mut self, order: ToBroker) {
        self.desk.on_order(self.now, order);
        self.look();
    }

    pub(super) fn hear(&mut self, frame: &str) {
        self.desk.on_frame(self.now, frame).unwrap();
        self.look();
    }

    /// The server shows all its jobs.
    pub(super) fn show(&mut self, jobs: Value) {
        self.hear(&json!({"type": "JobStates", "payload": {"state": {"jobs": jobs}, "isSubset": false}}).to_string());
    }

    pub(super) fn update(&mut self, jobs: Value) {
        let update = json!({"type": "JobStateUpdates", "payload": {"state": {"jobs": jobs}, "isSubset": true}});
        self.hear(&update.to_string());
    }

    pub(super) fn define(&mut self, (job, text): (JobId, String)) {
        self.hear(&format!(r#"{{"type":"BroadcastJobDefinitions","payload":{{"definitions":{{"{job}":{text}}}}}}}"#));
    }

    pub(super) fn pass(&mut self, ms: u64, holds: &[HeldRun]) {
        self.now = Now { ms: self.now.ms + ms, at: self.now.at.plus(ms) };
        self.desk.tick(self.now, holds);
        self.look();
    }

    pub(super) fn reconnect(&mut self, holds: &[HeldRun]) {
        self.frames.clear();
        self.words.clear();
        self.grants = 0;
        self.desk.open(self.now, holds);
        self.look();
        let total = self.desk.me.total;
        self.free(total);
    }

    /// The job runs here; its grant is taken out of what was said.
    pub(super) fn started(&mut self, (id, text): (JobId, String)) -> HeldRun {
        self.show(json!({id.to_string(): queued(1)}));
        self.define((id, text));
        self.update(json!({id.to_string(): running(ME)}));
        let Some(FromBroker::Granted { run, .. }) = self.words.pop() else { panic!("{:?}", self.words) };
        (self.frames, self.words) = (Vec::new(), Vec::new());
        run
    }

    /// The frames of that kind, and for changes of that state.
    pub(super) fn sent(&self, kind: &str) -> Vec<&Value> {
        let is = |frame: &&Value| frame["type"] == kind || frame["payload"]["state"] == kind;
        self.frames.iter().filter(is).map(|frame| &frame["payload"]).collect()
    }

    pub(super) fn stops(&self) -> Vec<(HeldRun, StopReason)> {
        let stop = |word: &FromBroker| if let FromBroker::Stop { run, why } = word { Some((*run, *why)) } else { None };
        self.words.iter().filter_map(stop).collect()
    }

    pub(super) fn settled(&self) -> Vec<RequestId> {
        let ok = |word: &FromBroker| if let FromBroker::Ok { req, .. } = word { Some(*req) } else { None };
        self.words.iter().filter_map(ok).collect()
    }

    pub(super) fn granted(&self) -> Vec<JobId> {
        let granted = |word: &FromBroker| if let FromBroker::Granted { run, .. } = word { Some(run.job) } else { None };
        self.words.iter().filter_map(granted).collect()
    }
}

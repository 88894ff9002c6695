//! The desk between the server and the worker: what it keeps, and what goes out of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::id::{Digest, Head, JobId, RunNumber, UnixMillis};
use protocol::native::{Capacity, FromBroker, HeldRun, RequestId, WorkerHello};
use protocol::original::to_server;
use protocol::raw::RawJson;

use super::definitions::Definitions;
use super::logs::HeldLogs;
use super::mine::{Doubt, Live, Mine, Word};
use super::view::View;
use super::{FIRST_RUN, Now};
use crate::state_machine::capacity::NOTHING;

/// How often an end of a run is sent while the server does not show that it knows.
const REPORT_AGAIN_MS: u64 = 10_000;
/// What grants say of a lease: there is none.
pub(super) const LEASE_MS: u64 = 30_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(super) me: WorkerHello,
    pub(super) view: View,
    pub(super) definitions: Definitions,
    pub(super) mine: BTreeMap<JobId, Mine>,
    /// Jobs that are not claimed before their time.
    pub(super) refused: BTreeMap<JobId, u64>,
    /// Jobs that wait, and can never run here.
    pub(super) unfit: BTreeSet<JobId>,
    /// What the worker has free, by its newest claim.
    pub(super) free: Capacity,
    /// Grants that the newest claim does not know of: their number, and what they take.
    pub(super) unseen: VecDeque<(u64, Capacity)>,
    pub(super) granted: u64,
    /// The claim that wants an answer.
    pub(super) ask: Option<RequestId>,
    /// Runs of earlier attempts, of which there is a newer one.
    pub(super) outdated: Vec<HeldRun>,
    last_run: RunNumber,
    last_claim: UnixMillis,
    pub(super) registered_ms: u64,
    frames: VecDeque<String>,
    words: VecDeque<FromBroker>,
    pub(super) logs: HeldLogs,
}

impl Desk {
    pub(crate) fn new(me: WorkerHello) -> Self {
        Self {
            view: View::new(me.id.clone()),
            me,
            definitions: Definitions::default(),
            mine: BTreeMap::new(),
            refused: BTreeMap::new(),
            unfit: BTreeSet::new(),
            free: NOTHING,
            unseen: VecDeque::new(),
            granted: 0,
            ask: None,
            outdated: Vec::new(),
            last_run: FIRST_RUN,
            last_claim: UnixMillis(0),
            registered_ms: 0,
            frames: VecDeque::new(),
            words: VecDeque::new(),
            logs: HeldLogs::default(),
        }
    }

    /// A connection stands; the worker holds these runs, ended ones included.
    pub(crate) fn open(&mut self, now: Now, holds: &[HeldRun]) {
        self.view.clear();
        self.definitions.reconnected();
        self.logs.clear();
        self.frames.clear();
        self.words.clear();
        self.unseen.clear();
        self.unfit.clear();
        (self.free, self.granted, self.ask) = (NOTHING, 0, None);
        // Claims and what is parked: the server shows it again if it is ours.
        self.mine.retain(|job, mine| mine.run().is_some_and(|run| holds.contains(&HeldRun { job: *job, run })));
        for held in holds {
            self.take_up(*held);
        }
        for mine in self.mine.values_mut() {
            match mine {
                Mine::Live(live) => live.doubt = Doubt::default(),
                Mine::Reported(reported) => (reported.doubt, reported.sent_ms) = (Doubt::default(), None),
                Mine::Claiming(_) | Mine::Parked(_) | Mine::Stopping { .. } => {}
            }
        }
        self.register(now);
    }

    /// Notes a run that the worker holds.
    fn take_up(&mut self, held: HeldRun) {
        let HeldRun { job, run } = held;
        self.last_run = self.last_run.max(run);
        match self.mine.get(&job).and_then(Mine::run) {
            Some(known) if known == run => {}
            Some(known) if known > run => self.outdated.push(held),
            known => {
                self.outdated.extend(known.map(|run| HeldRun { job, run }));
                let live = Live { run, at: None, said_ms: 0, is_held: true, doubt: Doubt::default() };
                self.mine.insert(job, Mine::Live(live));
            }
        }
    }

    /// Says who the worker is, and which runs it has. Of those of an earlier process the server says first since when.
    pub(super) fn register(&mut self, now: Now) {
        self.registered_ms = now.ms;
        self.say(to_server::registration(&self.me, now.at));
        let runs: Vec<_> = self
            .mine
            .iter_mut()
            .filter_map(|(job, mine)| match mine {
                Mine::Live(live) => {
                    live.said_ms = now.ms;
                    Some((*job, live.at?))
                }
                Mine::Claiming(_) | Mine::Parked(_) | Mine::Stopping { .. } | Mine::Reported(_) => None,
            })
            .collect();
        for (job, at) in runs {
            self.say(to_server::running(job, &self.me.id, at));
        }
    }

    pub(super) fn say(&mut self, frame: String) {
        self.frames.push_back(frame);
    }

    /// How many frames the server has not taken.
    pub(super) fn waiting_frames(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn tell(&mut self, word: FromBroker) {
        self.words.push_back(word);
    }

    pub(super) fn is_shown_as_ours(&self, job: JobId) -> bool {
        matches!(Word::of(self.view.get(job), &self.me.id), Word::Ours(_))
    }

    /// Whether lines wait here for the server to show their runs.
    pub(crate) fn holds_logs(&self) -> bool {
        !self.logs.is_empty()
    }

    /// When [`Self::tick`] is to be called at the latest, if that is sooner than its time.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        let doubts = self.mine.values().filter_map(|mine| match mine {
            Mine::Live(live) => live.doubt.due_ms(),
            Mine::Reported(reported) => reported.doubt.due_ms(),
            Mine::Claiming(_) | Mine::Parked(_) | Mine::Stopping { .. } => None,
        });
        doubts.min()
    }

    /// The next frame for the server. Ends of runs come last, when nothing of their runs waits before them.
    pub(crate) fn next_frame(&mut self, now: Now) -> Option<String> {
        if let Some(frame) = self.frames.pop_front() {
            return Some(frame);
        }
        if !self.view.is_known() {
            return None;
        }
        let (logs, view, me) = (&self.logs, &self.view, &self.me.id);
        let (job, reported, word) = self.mine.iter_mut().find_map(|(job, mine)| match mine {
            Mine::Reported(reported) => {
                let is_due = reported.sent_ms.is_none_or(|sent| now.ms.saturating_sub(sent) >= REPORT_AGAIN_MS);
                let is_next = is_due && !logs.holds(HeldRun { job: *job, run: reported.run });
                let word = Word::of(view.get(*job), me);
                // Where another has the job, this would end that one's run.
                (is_next && word.is_ours()).then_some((*job, reported, word))
            }
            Mine::Claiming(_) | Mine::Parked(_) | Mine::Live(_) | Mine::Stopping { .. } => None,
        })?;
        reported.sent_ms = Some(now.ms);
        let (finished, at) = (to_server::finished(job, me, &reported.finished), reported.at);
        if word != Word::Waits {
            return Some(finished);
        }
        // It is ours again before it ends.
        let at = at.unwrap_or_else(|| self.next_claim(now));
        self.say(finished);
        Some(to_server::running(job, &self.me.id, at))
    }

    /// What a broker would say to the worker, in order.
    pub(crate) fn next_word(&mut self) -> Option<FromBroker> {
        self.words.pop_front()
    }

    /// What the worker asked for is done.
    pub(super) fn settled(&mut self, req: RequestId) {
        self.tell(FromBroker::Ok { req, head: HEAD, job: None });
    }

    /// Gives the worker a run.
    pub(super) fn grant(&mut self, now: Now, job: JobId, at: UnixMillis, definition: RawJson, takes: Capacity) {
        let run = self.next_run(now);
        self.granted += 1;
        self.unseen.push_back((self.granted, takes));
        self.mine
            .insert(job, Mine::Live(Live { run, at: Some(at), said_ms: now.ms, is_held: false, doubt: Doubt::NONE }));
        let run = HeldRun { job, run };
        self.tell(FromBroker::Granted { run, definition, lease_ms: LEASE_MS, debug: false });
    }

    /// A number that no earlier run has, of an earlier process neither: the seconds, unless more than one began in this one.
    fn next_run(&mut self, now: Now) -> RunNumber {
        let seconds = RunNumber::try_from(now.at.0 / 1000 % u64::from(FIRST_RUN)).unwrap_or(0);
        self.last_run = (FIRST_RUN + seconds).max(self.last_run.saturating_add(1));
        self.last_run
    }

    /// A time for a claim that no other has: together with the worker it names the attempt.
    pub(super) fn next_claim(&mut self, now: Now) -> UnixMillis {
        self.last_claim = now.at.max(self.last_claim.plus(1));
        self.last_claim
    }
}

/// There is no chain here.
pub(super) const HEAD: Head = Head { seq: 0, hash: Digest::from_bytes([0; 32]) };

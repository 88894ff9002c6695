//! The webhooks in memory: which wait for what, and which call is next. No IO and no clock; what must be written or removed
//! after a change is its answer.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use protocol::event::Event;
use protocol::id::{JobId, Namespace, QueueKey, Seq, UnixMillis};
use protocol::record::Record;

use super::call::{CallId, HookId, Kind};
use super::fate::{Ending, Fate};
use super::limits::Limits;
use super::line::Line;
use super::look::Found;
use super::stored::Stored;

/// The webhooks whose files are to be brought up to date.
pub(super) type Changed = Vec<HookId>;

/// Where a call stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// What it tells of has not happened.
    Waiting,
    /// To be tried then.
    Due { next_at: UnixMillis },
    /// Being tried.
    UnderWay,
    /// Tried often enough.
    Dead { at: UnixMillis },
}

/// One call of a webhook.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) host: Box<str>,
    pub(super) standing: Standing,
    pub(super) tries: u32,
    /// What the last try came to.
    pub(super) error: Option<Box<str>>,
}

/// A webhook.
#[derive(Clone, Debug)]
pub(super) struct Hook {
    pub(super) queue: QueueKey,
    pub(super) job: JobId,
    pub(super) namespace: Namespace,
    /// Where the queue stood before the submission.
    pub(super) seen: Seq,
    bytes: u64,
    /// Whether it is known that, and when, the queue took the submission.
    pub(super) is_sure: bool,
    /// Records after this one are listened to.
    after: Option<Seq>,
    fate: Fate,
    /// How its job ended, once that is to be told.
    pub(super) ending: Option<Ending>,
    pub(super) queued: Option<Call>,
    pub(super) finished: Option<Call>,
}

impl Hook {
    /// A webhook as it is stored, whose calls go to these hosts.
    pub(super) fn new(stored: &Stored, bytes: u64, now: UnixMillis, limits: &Limits) -> Self {
        let call = |kind: Kind| {
            let stored = stored.call(kind)?;
            let standing = match (stored.dead_at_ms, stored.next_at_ms) {
                (Some(at), _) => Standing::Dead { at },
                // Never later than today's settings, and today's clock, have it.
                (None, Some(at)) => Standing::Due { next_at: at.min(limits.next_try(now, stored.tries, 0)) },
                (None, None) => Standing::Waiting,
            };
            let host = reqwest::Url::parse(&stored.url).ok().and_then(|url| super::address::host_of(&url));
            let error = stored.error.as_deref().map(Into::into);
            Some(Call { host: host.unwrap_or_default(), standing, tries: stored.tries, error })
        };
        Self {
            queue: QueueKey::of(&stored.queue),
            job: stored.job,
            namespace: stored.namespace.clone(),
            seen: stored.seen,
            bytes,
            is_sure: false,
            after: None,
            fate: Fate::default(),
            ending: stored.ending.clone(),
            queued: call(Kind::Queued),
            finished: call(Kind::Finished),
        }
    }

    pub(super) const fn call(&self, kind: Kind) -> Option<&Call> {
        match kind {
            Kind::Queued => self.queued.as_ref(),
            Kind::Finished => self.finished.as_ref(),
        }
    }

    const fn call_mut(&mut self, kind: Kind) -> &mut Option<Call> {
        match kind {
            Kind::Queued => &mut self.queued,
            Kind::Finished => &mut self.finished,
        }
    }

    /// Whether any of its calls waits for its job.
    fn waits(&self) -> bool {
        [&self.queued, &self.finished].into_iter().flatten().any(|call| call.standing == Standing::Waiting)
    }
}

/// The webhooks of one queue.
#[derive(Debug, Default)]
struct OfQueue {
    hooks: BTreeSet<HookId>,
    /// How many listen.
    listening: usize,
    dead: BTreeSet<(UnixMillis, CallId)>,
}

/// All webhooks.
#[derive(Debug)]
pub(super) struct State {
    limits: Limits,
    hooks: HashMap<HookId, Hook>,
    /// Those that wait for their job.
    listening: HashMap<(QueueKey, JobId), Vec<HookId>>,
    queues: HashMap<QueueKey, OfQueue>,
    line: Line,
    dead: BTreeSet<(UnixMillis, CallId)>,
    /// Those whose job is to be looked at.
    looks: BTreeMap<QueueKey, BTreeSet<HookId>>,
    bytes: u64,
}

/// There are as many webhooks as there may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// In this queue.
    Queue,
    /// In all queues.
    Broker,
}

impl State {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            line: Line::new(limits.at_once_max, limits.per_host_max),
            limits,
            hooks: HashMap::new(),
            listening: HashMap::new(),
            queues: HashMap::new(),
            dead: BTreeSet::new(),
            looks: BTreeMap::new(),
            bytes: 0,
        }
    }

    pub(super) fn hook(&self, id: HookId) -> Option<&Hook> {
        self.hooks.get(&id)
    }

    /// How many there are, and how many of their calls are dead letters.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.hooks.len(), self.dead.len())
    }

    pub(super) fn listens(&self, queue: QueueKey) -> bool {
        self.queues.get(&queue).is_some_and(|of| of.listening > 0)
    }

    /// Makes room for one more of that size: the oldest dead letters go first.
    pub(super) fn make_room(&mut self, queue: QueueKey, bytes: u64) -> Result<Changed, Full> {
        let mut changed = Changed::new();
        while self.queues.get(&queue).is_some_and(|of| of.hooks.len() >= self.limits.per_queue_max) {
            let oldest = self.queues.get(&queue).and_then(|of| of.dead.first().copied()).ok_or(Full::Queue)?;
            changed.extend(self.drop_call(oldest.1));
        }
        while self.hooks.len() >= self.limits.count_max || self.bytes.saturating_add(bytes) > self.limits.bytes_max {
            let oldest = self.dead.first().copied().ok_or(Full::Broker)?;
            changed.extend(self.drop_call(oldest.1));
        }
        Ok(changed)
    }

    /// Takes one in that is stored, or is about to be.
    pub(super) fn add(&mut self, id: HookId, hook: Hook) {
        let of = self.queues.entry(hook.queue).or_default();
        of.hooks.insert(id);
        if hook.waits() {
            of.listening += 1;
            self.listening.entry((hook.queue, hook.job)).or_default().push(id);
        }
        self.bytes += hook.bytes;
        for (kind, call) in [(Kind::Queued, &hook.queued), (Kind::Finished, &hook.finished)] {
            let call_id = CallId { hook: id, kind };
            match call {
                Some(Call { standing: Standing::Due { next_at }, host, .. }) => self.line.add(host, *next_at, call_id),
                Some(Call { standing: Standing::Dead { at }, .. }) => {
                    self.dead.insert((*at, call_id));
                    of.dead.insert((*at, call_id));
                }
                Some(Call { standing: Standing::Waiting | Standing::UnderWay, .. }) | None => {}
            }
        }
        self.hooks.insert(id, hook);
    }

    /// Its job is to be looked at, if it waits for it.
    pub(super) fn look(&mut self, id: HookId) {
        if let Some(hook) = self.hooks.get(&id).filter(|hook| hook.waits()) {
            self.looks.entry(hook.queue).or_default().insert(id);
        }
    }

    /// A queue and those of its webhooks whose job is to be looked at.
    pub(super) fn take_looks(&mut self) -> Option<(QueueKey, BTreeSet<HookId>)> {
        self.looks.pop_first()
    }

    /// From here on what the queue's task tells is listened to; what was before is looked up.
    pub(super) fn listen_after(&mut self, id: HookId, seq: Seq) {
        if let Some(hook) = self.hooks.get_mut(&id)
            && !hook.is_sure
        {
            hook.after = Some(seq);
            hook.fate = Fate::default();
        }
    }

    /// The queue took the submission, and it is on disk.
    pub(super) fn taken(&mut self, id: HookId, is_new: bool, seq: Seq, now: UnixMillis) -> Changed {
        let Some(hook) = self.hooks.get_mut(&id) else { return Changed::new() };
        hook.is_sure = true;
        hook.after = Some(seq);
        hook.fate = Fate { is_submitted: true, ..Fate::default() };
        self.happened(id, Kind::Queued, is_new, now);
        let mut changed = self.supersede(id);
        if !is_new {
            // It may be over already; then nothing more will be heard.
            self.look(id);
        }
        changed.extend(self.settle(id, now));
        changed
    }

    /// A later submission's `finished` takes the place of an earlier one's that still waits.
    fn supersede(&mut self, id: HookId) -> Changed {
        let Some(hook) = self.hooks.get(&id).filter(|hook| hook.finished.is_some()) else { return Changed::new() };
        let is_earlier = |other: &HookId| {
            *other != id
                && self.hooks.get(other).is_some_and(|other| {
                    let waits = other.finished.as_ref().is_some_and(|finished| finished.standing == Standing::Waiting);
                    waits && other.is_sure && other.namespace == hook.namespace
                })
        };
        let listening = self.listening.get(&(hook.queue, hook.job));
        let earlier: Vec<HookId> = listening.into_iter().flatten().copied().filter(is_earlier).collect();
        earlier.into_iter().flat_map(|other| self.drop_call(CallId { hook: other, kind: Kind::Finished })).collect()
    }

    /// The queue's task tells what is on disk now.
    pub(super) fn hear<'a>(
        &mut self,
        queue: QueueKey,
        records: impl Iterator<Item = &'a [u8]>,
        now: UnixMillis,
    ) -> Changed {
        let mut touched = BTreeSet::new();
        for record in records.filter_map(|bytes| Record::decode(bytes).ok()) {
            let Some(ids) = record.event.job().and_then(|job| self.listening.get(&(queue, job))) else { continue };
            for id in ids {
                let Some(hook) = self.hooks.get_mut(id) else { continue };
                // Who runs a job may have been decided with its submission, before what is listened to.
                let is_claim = matches!(record.event, Event::RunClaimed { .. });
                if is_claim || hook.after.is_some_and(|after| record.seq > after) {
                    hook.fate.fold(&hook.namespace, &record);
                    touched.insert(*id);
                }
            }
        }
        touched.into_iter().flat_map(|id| self.settle(id, now)).collect()
    }

    /// What the queue and the journal know of its job.
    pub(super) fn looked(&mut self, id: HookId, found: Found, now: UnixMillis) -> Changed {
        let Some(hook) = self.hooks.get_mut(&id) else { return Changed::new() };
        let heard = std::mem::take(&mut hook.fate);
        if hook.is_sure {
            let ending = heard.ending.clone().or(found.ended);
            hook.fate = Fate { ending, ..heard.with_worker(found.worker) };
            return self.settle(id, now);
        }
        let is_submitted = found.past.is_submitted || found.past.ending.is_some() || found.is_wanted;
        if !is_submitted {
            return self.forget(id);
        }
        let is_new = found.past.is_new;
        let ending = found.past.ending.or(heard.ending).or(found.ended);
        hook.is_sure = true;
        hook.fate = Fate { is_submitted, is_new, ending, ..Fate::default() }.with_worker(found.worker);
        self.happened(id, Kind::Queued, is_new, now);
        let mut changed = self.settle(id, now);
        changed.push(id);
        changed
    }

    /// What a waiting call tells of has happened, or never will.
    fn happened(&mut self, id: HookId, kind: Kind, has_happened: bool, now: UnixMillis) {
        let Some(hook) = self.hooks.get_mut(&id) else { return };
        let slot = hook.call_mut(kind);
        let Some(call) = slot.as_mut().filter(|call| call.standing == Standing::Waiting) else { return };
        if has_happened {
            call.standing = Standing::Due { next_at: now };
            self.line.add(&call.host, now, CallId { hook: id, kind });
        } else {
            *slot = None;
        }
    }

    /// Makes the last call due when the job is over; forgets what has nothing left to tell.
    fn settle(&mut self, id: HookId, now: UnixMillis) -> Changed {
        let Some(hook) = self.hooks.get_mut(&id).filter(|hook| hook.is_sure) else { return Changed::new() };
        if let Some(ending) = hook.fate.ending.take() {
            hook.ending.get_or_insert(ending);
            self.happened(id, Kind::Finished, true, now);
        }
        self.tidy(id)
    }

    /// Keeps the indexes true after a call has changed.
    fn tidy(&mut self, id: HookId) -> Changed {
        let Some(hook) = self.hooks.get(&id) else { return Changed::new() };
        if !hook.waits() {
            let key = (hook.queue, hook.job);
            if let Some(ids) = self.listening.get_mut(&key)
                && let Some(index) = ids.iter().position(|other| *other == id)
            {
                ids.swap_remove(index);
                if ids.is_empty() {
                    self.listening.remove(&key);
                }
                if let Some(of) = self.queues.get_mut(&key.0) {
                    of.listening -= 1;
                }
            }
        }
        if hook.queued.is_some() || hook.finished.is_some() {
            return Changed::new();
        }
        let queue = hook.queue;
        self.bytes -= hook.bytes;
        self.hooks.remove(&id);
        if let Some(of) = self.queues.get_mut(&queue) {
            of.hooks.remove(&id);
            if of.hooks.is_empty() {
                self.queues.remove(&queue);
            }
        }
        vec![id]
    }

    /// Takes a call away, wherever it stands.
    fn drop_call(&mut self, id: CallId) -> Changed {
        let Some(hook) = self.hooks.get_mut(&id.hook) else { return Changed::new() };
        let queue = hook.queue;
        match hook.call_mut(id.kind).take() {
            None => return Changed::new(),
            Some(Call { standing: Standing::Due { next_at }, host, .. }) => self.line.remove(&host, next_at, id),
            Some(Call { standing: Standing::Dead { at }, .. }) => self.bury(queue, at, id),
            Some(Call { standing: Standing::Waiting | Standing::UnderWay, .. }) => {}
        }
        self.tidy(id.hook);
        vec![id.hook]
    }

    fn bury(&mut self, queue: QueueKey, at: UnixMillis, id: CallId) {
        self.dead.remove(&(at, id));
        if let Some(of) = self.queues.get_mut(&queue) {
            of.dead.remove(&(at, id));
        }
    }

    /// Takes a webhook away.
    pub(super) fn forget(&mut self, id: HookId) -> Changed {
        Kind::ALL.into_iter().flat_map(|kind| self.drop_call(CallId { hook: id, kind })).collect()
    }

    /// When [`State::next`] has something to give.
    pub(super) fn next_at(&self) -> Option<UnixMillis> {
        self.line.next_at()
    }

    /// The next call to try.
    pub(super) fn next(&mut self, now: UnixMillis) -> Option<(CallId, Box<str>)> {
        let id = self.line.take(now)?;
        let call = self.hooks.get_mut(&id.hook).and_then(|hook| hook.call_mut(id.kind).as_mut())?;
        call.standing = Standing::UnderWay;
        Some((id, call.host.clone()))
    }

    /// A call was tried. Answers whether it became a dead letter, and what has changed.
    pub(super) fn tried(
        &mut self,
        id: CallId,
        host: &str,
        result: Result<(), String>,
        now: UnixMillis,
    ) -> (bool, Changed) {
        self.line.done(host);
        let (limits, hook) = (&self.limits, self.hooks.get_mut(&id.hook));
        let Some(hook) = hook else { return (false, Changed::new()) };
        let queue = hook.queue;
        let Some(call) = hook.call_mut(id.kind).as_mut().filter(|call| call.standing == Standing::UnderWay) else {
            return (false, Changed::new());
        };
        let Err(error) = result else { return (false, self.drop_call(id)) };
        call.tries += 1;
        call.error = Some(error.into());
        if call.tries < limits.tries_max {
            let next_at = limits.next_try(now, call.tries, id.hook.salt().wrapping_add(call.tries.into()));
            call.standing = Standing::Due { next_at };
            self.line.add(host, next_at, id);
            return (false, vec![id.hook]);
        }
        call.standing = Standing::Dead { at: now };
        self.dead.insert((now, id));
        let mut changed = vec![id.hook];
        let of = self.queues.entry(queue).or_default();
        of.dead.insert((now, id));
        if of.dead.len() > self.limits.dead_per_queue_max
            && let Some((_, oldest)) = of.dead.first().copied()
        {
            changed.extend(self.drop_call(oldest));
        }
        (true, changed)
    }

    /// Tries a queue's dead letters again: one, or all. Answers how many.
    pub(super) fn revive(&mut self, queue: QueueKey, only: Option<CallId>, now: UnixMillis) -> Changed {
        let dead = self.queues.get(&queue).into_iter().flat_map(|of| of.dead.iter().copied());
        let dead: Vec<_> = dead.filter(|(_, id)| only.is_none_or(|only| only == *id)).collect();
        for (at, id) in &dead {
            self.bury(queue, *at, *id);
            if let Some(call) = self.hooks.get_mut(&id.hook).and_then(|hook| hook.call_mut(id.kind).as_mut()) {
                (call.standing, call.tries) = (Standing::Due { next_at: now }, 0);
                self.line.add(&call.host, now, *id);
            }
        }
        dead.into_iter().map(|(_, id)| id.hook).collect()
    }

    /// Forgets the dead letters that have lain long enough.
    pub(super) fn sweep(&mut self, now: UnixMillis) -> Changed {
        let mut changed = Changed::new();
        while let Some((_, id)) =
            self.dead.first().copied().filter(|(at, _)| now.since(*at) >= self.limits.dead_stays_ms())
        {
            changed.extend(self.drop_call(id));
        }
        changed
    }

    /// A queue's webhooks.
    pub(super) fn of_queue(&self, queue: QueueKey) -> impl Iterator<Item = (HookId, &Hook)> {
        let ids = self.queues.get(&queue).into_iter().flat_map(|of| of.hooks.iter());
        ids.filter_map(|id| Some((*id, self.hooks.get(id)?)))
    }
}

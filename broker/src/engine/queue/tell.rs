//! What watchers are told, and how often: few are told at once, many as fast as their number allows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::id::Seq;
use protocol::native::FromBroker;
use tokio::time::Instant;

use super::Task;
use super::watch::{RECORDS_PER_MESSAGE, Wants, events};
use crate::engine::PresenceView;
use crate::engine::outbox::Shared;
use crate::engine::stats::Counters;
use crate::journal::EncodedRecord;

/// How often those that are behind are looked at, and how soon watchers hear of a change in who is connected.
pub(super) const TELL_EVERY: Duration = Duration::from_millis(50);

/// Up to so many watchers are told of each batch at once.
const WATCHERS_FEW: usize = 16;

/// What telling one watcher costs a core and the kernel, about; more are told less often, what came in between in one message, so
/// that telling takes at most about half of a core.
const TELLING_ONE: Duration = Duration::from_micros(25);

/// However many watch, changes do not wait longer than this: pages still feel live.
const NEWS_WAIT_MAX: Duration = Duration::from_millis(250);

/// Bytes a second that may be spent on telling who is connected, all watchers together: a tenth of a slow network.
const PRESENCE_BYTES_PER_SECOND: u64 = 20_000_000;

/// What a frame costs beside its bytes, in bytes.
const FRAME_COST_BYTES: usize = 1_000;

/// However many workers and watchers there are, who is connected is not older than this.
const PRESENCE_WAIT_MAX: Duration = Duration::from_secs(30);

/// Records that are on disk and not yet told.
#[derive(Default)]
pub(super) struct News {
    records: Vec<EncodedRecord>,
    told_at: Option<Instant>,
    /// When they are told.
    pub(super) due: Option<Instant>,
}

/// When watchers hear who is connected.
#[derive(Default)]
pub(super) struct PresencePace {
    pub(super) due: Option<Instant>,
    next: Option<Instant>,
    last: Option<Arc<Shared>>,
}

fn pause(watching: usize) -> Duration {
    if watching <= WATCHERS_FEW {
        return Duration::ZERO;
    }
    TELLING_ONE.saturating_mul(u32::try_from(watching).unwrap_or(u32::MAX)).min(NEWS_WAIT_MAX)
}

fn presence_pause(bytes: usize, watching: usize) -> Duration {
    let cost = (bytes + FRAME_COST_BYTES).saturating_mul(watching) as u64;
    Duration::from_millis(cost.saturating_mul(1_000) / PRESENCE_BYTES_PER_SECOND).clamp(TELL_EVERY, PRESENCE_WAIT_MAX)
}

impl Task {
    /// Takes records that are on disk; watchers are told at once, or as soon as their number allows.
    pub(super) fn news(&mut self, records: Vec<EncodedRecord>) {
        if self.watching == 0 {
            // What waited was for those that have left; news are without a gap.
            self.news.records.clear();
            self.news.due = None;
            return;
        }
        if records.is_empty() {
            return;
        }
        self.news.records.extend(records);
        let at = self.news.told_at.map(|told_at| told_at + pause(self.watching));
        if self.news.records.len() >= RECORDS_PER_MESSAGE || at.is_none_or(|at| at <= Instant::now()) {
            self.tell_news();
        } else {
            self.news.due = at;
        }
    }

    pub(super) fn tell_news(&mut self) {
        self.news.due = None;
        let records = std::mem::take(&mut self.news.records);
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return };
        let (first, last) = (first.seq, last.seq);
        // Those that came in between have some of it already.
        let mut parts: BTreeMap<Seq, Arc<Shared>> = BTreeMap::new();
        let mut part = |since: Seq| {
            let from = usize::try_from((since + 1).saturating_sub(first)).unwrap_or(usize::MAX);
            let news = records.get(from..).and_then(events)?;
            Some(Arc::clone(parts.entry(since.max(first - 1)).or_insert_with(|| Shared::new(&news))))
        };
        let all = part(first - 1);
        for session in self.sessions.values_mut() {
            if !session.watches || session.wants.is_some() || session.since >= last {
                continue;
            }
            let news = if session.since < first { all.clone() } else { part(session.since) };
            if news.is_some_and(|news| !session.outbox.may(&news)) {
                session.wants = Some(Wants::Again);
                Counters::count(&self.engine.0.counters.outbox_drops);
                self.lagging_due.get_or_insert_with(|| Instant::now() + TELL_EVERY);
            }
        }
        self.news.told_at = Some(Instant::now());
    }

    /// Somebody misses something.
    pub(super) fn lags(&mut self) {
        self.lagging_due.get_or_insert_with(|| Instant::now() + TELL_EVERY);
    }

    pub(super) fn presence_changed(&mut self) {
        let soon = Instant::now() + TELL_EVERY;
        let next = self.presence_pace.next.unwrap_or(soon);
        self.presence_pace.due.get_or_insert(soon.max(next));
    }

    pub(super) fn presence(&self) -> PresenceView {
        let clients = self.sessions.values().map(|session| session.pages).sum();
        PresenceView { workers: self.core.presence().view(self.core.state()), clients }
    }

    /// Presence rests on nothing stored, and whoever misses one gets the newest when it has read what waits for it.
    pub(super) fn tell_presence(&mut self) {
        self.presence_pace.due = None;
        if self.watching == 0 {
            self.presence_pace.last = None;
            return;
        }
        let PresenceView { workers, clients } = self.presence();
        let presence = Shared::new(&FromBroker::Presence { workers, clients });
        self.presence_pace.next = Some(Instant::now() + presence_pause(presence.len(), self.watching));
        for session in self.sessions.values_mut().filter(|session| session.watches) {
            session.misses_presence = !session.is_welcomed() || !session.outbox.may(&presence);
            if session.misses_presence {
                self.lagging_due.get_or_insert_with(|| Instant::now() + TELL_EVERY);
            }
        }
        self.presence_pace.last = Some(presence);
    }

    /// Sessions that missed something and have read most of what waited for them get it: a fresh snapshot, who is connected.
    pub(super) fn make_good(&mut self) {
        let mut is_lagging = false;
        let mut wanting = Vec::new();
        for (id, session) in &mut self.sessions {
            let has_drained = session.outbox.has_drained();
            if has_drained
                && session.misses_presence
                && session.is_welcomed()
                && let Some(presence) = &self.presence_pace.last
            {
                session.misses_presence = !session.outbox.may(presence);
            }
            match session.wants {
                Some(why) if has_drained => wanting.push((*id, why)),
                Some(_) | None => {}
            }
            is_lagging |= session.wants.is_some() || session.misses_presence;
        }
        self.lagging_due = is_lagging.then(|| Instant::now() + TELL_EVERY);
        if wanting.is_empty() {
            return;
        }
        self.seal();
        for (id, why) in wanting {
            self.ask_for_snapshot(id, why);
            if why == Wants::Again && self.sessions.get(&id).is_some_and(|session| session.wants.is_none()) {
                Counters::count(&self.engine.0.counters.snapshots_for_lag);
            }
        }
        self.seal();
    }

    /// Ends those that have been reading the oldest snapshot for so long that too many are in memory.
    pub(super) fn cut_off_slowest(&self) {
        let Some(oldest) = self.snapshots.one_too_many() else { return };
        self.sessions
            .values()
            .filter(|session| session.given.ptr_eq(&oldest))
            .for_each(|session| session.outbox.cut_off());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_told_at_once_and_many_as_often_as_their_number_allows() {
        assert_eq!(pause(1), Duration::ZERO);
        assert_eq!(pause(WATCHERS_FEW), Duration::ZERO);
        assert_eq!(pause(1_000), Duration::from_millis(25));
        assert_eq!(pause(1_000_000), NEWS_WAIT_MAX);
    }

    #[test]
    fn who_is_connected_is_told_as_often_as_its_size_allows() {
        assert_eq!(presence_pause(100, 10), TELL_EVERY);
        assert_eq!(
            presence_pause(150_000, 1_000),
            Duration::from_millis(7_550),
            "a thousand workers, a thousand pages"
        );
        assert_eq!(presence_pause(usize::MAX / 2, 100_000), PRESENCE_WAIT_MAX);
    }
}

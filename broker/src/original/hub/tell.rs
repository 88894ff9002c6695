//! What the hub tells its sockets: each message is encoded once for all of a role.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use protocol::id::{JobId, Namespace};
use protocol::original::to_peer;
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{Asked, STATUS_WITHIN, STATUSES_BYTES_MAX, Statuses, Task, Wanted};
use crate::clock;
use crate::engine::{Counters, SessionId};
use crate::logs::Logged;
use crate::original::line::{Item, Whole};
use crate::original::place;
use crate::session::Role;

/// How soon everyone hears of a change in who is there, and how often at most: each worker that comes is told to all.
const WORKERS_SOON: Duration = Duration::from_millis(50);
const WORKERS_EVERY: Duration = Duration::from_secs(1);

/// How many bytes of log lines travel in one message; a page has the rest when the run is over, or from the logs.
const LOG_BYTES_MAX: usize = 64 * 1024;

impl Task {
    /// Tells everyone what was gathered.
    pub(super) fn tell_news(&mut self) {
        self.news_at = None;
        let Some(view) = &self.view else { return };
        let version = view.version();
        for role in [Role::Client, Role::Worker] {
            let gathered = &mut self.news[place(role)];
            let waits = |job: &JobId| role == Role::Client && self.loading.contains(job);
            let (later, now): (BTreeSet<_>, BTreeSet<_>) = std::mem::take(gathered).into_iter().partition(waits);
            *gathered = later;
            let Some(text) = view.news(&now, role) else { continue };
            for member in self.members.values_mut().filter(|member| member.role == role && !member.behind) {
                self.is_lagging |= member.put(Item::News { version, text: text.clone() });
            }
        }
    }

    /// A job is gone that somebody may be at work on: everyone is to be sent a whole state.
    pub(super) fn withdrawn(&mut self) {
        let now = Instant::now();
        for role in [Role::Client, Role::Worker] {
            let bytes = self.whole_bytes(role);
            self.paces[place(role)].withdrawn(role, bytes, &self.times, now);
        }
    }

    /// An ended job has left.
    pub(super) fn left(&mut self) {
        let (jobs, now) = (self.view.as_ref().map_or(0, |view| view.state().jobs().len()), Instant::now());
        for role in [Role::Client, Role::Worker] {
            let bytes = self.whole_bytes(role);
            self.paces[place(role)].left(jobs, bytes, &self.times, now);
        }
    }

    fn whole_bytes(&self, role: Role) -> usize {
        self.newest[place(role)].get().map_or(0, |whole| whole.text.len())
    }

    /// Sends everyone of a role the whole state.
    pub(super) fn tell_whole(&mut self, role: Role) {
        self.paces[place(role)].told(Instant::now());
        if !self.has(role) || !self.refresh(role) {
            return;
        }
        self.news[place(role)].retain(|job| role == Role::Client && self.loading.contains(job));
        for member in self.members.values_mut().filter(|member| member.role == role && !member.behind) {
            self.is_lagging |= member.put(Item::Whole { is_wanted: false });
        }
    }

    /// Sends one socket the whole state, or notes that it needs it.
    pub(super) fn give_whole(&mut self, socket: SessionId) {
        let Some(role) = self.members.get(&socket).map(|member| member.role) else { return };
        if !self.refresh(role) {
            return; // Everyone is sent it when there is one.
        }
        if let Some(member) = self.members.get_mut(&socket) {
            self.is_lagging |= member.put(Item::Whole { is_wanted: true });
        }
    }

    /// Sockets that missed news and have read most of what waited for them start anew from a whole state.
    pub(super) fn catch_up(&mut self) {
        if !std::mem::take(&mut self.is_lagging) {
            return;
        }
        let behind = self.members.iter().filter(|(_, member)| member.behind);
        let (ready, later): (Vec<_>, Vec<_>) = behind.partition(|(_, member)| member.line.has_drained());
        let ready: Vec<_> = ready.into_iter().map(|(socket, _)| *socket).collect();
        self.is_lagging = !later.is_empty();
        for socket in ready {
            Counters::count(&self.originals.0.engine.counters().snapshots_for_lag);
            self.give_whole(socket);
        }
    }

    /// Makes the newest whole state of a role, unless there is one; `false` when nothing is known yet.
    fn refresh(&self, role: Role) -> bool {
        let Some(view) = &self.view else { return false };
        let newest = &self.newest[place(role)];
        if !newest.is_at(view.version()) {
            newest.set(Whole { version: view.version(), text: view.whole(role) });
        }
        true
    }

    /// Shows jobs to those that wait to see them, unless everyone is about to be told of them.
    pub(super) fn show_wanted(&mut self) {
        let Some(view) = &self.view else { return };
        let (seq, version) = (view.seq(), view.version());
        let (ready, later): (Vec<_>, Vec<_>) = self.wanted.drain(..).partition(|wanted| wanted.seq <= seq);
        self.wanted = later;
        for Wanted { member, job, .. } in ready {
            let Some(member) = self.members.get_mut(&member).filter(|member| !member.behind) else { continue };
            if self.news[place(member.role)].contains(&job) {
                continue;
            }
            if let Some(text) = view.news(&BTreeSet::from([job]), member.role) {
                self.is_lagging |= member.put(Item::News { version, text });
            }
        }
    }

    pub(super) fn workers_changed(&mut self) {
        let soon = Instant::now() + WORKERS_SOON;
        let at = self.workers_was.map_or(soon, |was| soon.max(was + WORKERS_EVERY));
        self.workers_at.get_or_insert(at);
    }

    /// Tells everyone who is there.
    pub(super) fn tell_workers(&mut self) {
        self.workers_at = None;
        self.workers_was = Some(Instant::now());
        // Before the first whole state workers are told nothing: it comes first.
        let role = if self.view.is_some() { None } else { Some(Role::Client) };
        self.tell(role, &self.workers.message(clock::now()));
    }

    pub(super) fn tell_heartbeat(&self) {
        self.tell(Some(Role::Worker), &Utf8Bytes::from_static(to_peer::HEARTBEAT));
    }

    /// Tells workers to wipe what they have of a deleted job, and before that what it was: one that does not know it dies.
    pub(super) fn tell_deleted(&self, job: JobId, definition: Utf8Bytes) {
        let clear: Utf8Bytes = to_peer::clear_job_cache(job, Namespace::DEFAULT).into();
        for member in self.members.values().filter(|member| member.role == Role::Worker) {
            // Without the definition the order to wipe would kill it; a copy that stays is only a copy.
            if member.line.put(Item::Text(definition.clone())) {
                member.line.tell(clear.clone());
            }
        }
    }

    /// Tells pages what runs print.
    pub(super) fn tell_logs(&self, logged: &Logged) {
        if !self.has(Role::Client) {
            return;
        }
        let mut room = LOG_BYTES_MAX;
        let fits = logged.lines.iter().take_while(|line| {
            let fits = line.text.len() <= room;
            room = room.saturating_sub(line.text.len());
            fits
        });
        let fitting = fits.count();
        let text = to_peer::job_logs(logged.job, logged.step, &logged.lines[..fitting]).into();
        for member in self.members.values().filter(|member| member.role == Role::Client) {
            member.line.tell_logs(&text);
        }
    }

    fn tell(&self, role: Option<Role>, text: &Utf8Bytes) {
        for member in self.members.values().filter(|member| role.is_none_or(|role| member.role == role)) {
            member.line.tell(text.clone());
        }
    }

    /// Asks all workers what they do.
    pub(super) fn ask_status(&mut self, reply: oneshot::Sender<Arc<Statuses>>) {
        if let Some(asked) = &mut self.asked {
            return asked.replies.push(reply);
        }
        let waits_for: BTreeSet<_> =
            self.members.iter().filter(|(_, member)| member.worker.is_some()).map(|(socket, _)| *socket).collect();
        let until = Instant::now() + STATUS_WITHIN;
        self.asked = Some(Asked { replies: vec![reply], answers: Statuses::new(), bytes: 0, waits_for, until });
        self.tell(Some(Role::Worker), &Utf8Bytes::from_static(to_peer::STATUS_REQUEST));
        self.answer_status_if_complete();
    }

    pub(super) fn status_answered(&mut self, socket: SessionId, status: Box<RawValue>) {
        let Some(worker) = self.members.get(&socket).and_then(|member| member.worker.clone()) else { return };
        if let Some(asked) = &mut self.asked
            // The first answer of a worker counts: one that asks for nothing may say it as often as it likes.
            && !asked.answers.contains_key(&worker)
            && asked.bytes + status.get().len() <= STATUSES_BYTES_MAX
        {
            asked.bytes += status.get().len();
            asked.answers.insert(worker, status);
        }
        self.status_not_coming(socket);
    }

    /// Nothing (more) is to be waited for from that socket.
    pub(super) fn status_not_coming(&mut self, socket: SessionId) {
        if let Some(asked) = &mut self.asked {
            asked.waits_for.remove(&socket);
        }
        self.answer_status_if_complete();
    }

    fn answer_status_if_complete(&mut self) {
        if self.asked.as_ref().is_some_and(|asked| asked.waits_for.is_empty()) {
            self.answer_status();
        }
    }

    pub(super) fn answer_status(&mut self) {
        let Some(asked) = self.asked.take() else { return };
        let answers = Arc::new(asked.answers);
        for reply in asked.replies {
            let _ = reply.send(Arc::clone(&answers));
        }
    }
}

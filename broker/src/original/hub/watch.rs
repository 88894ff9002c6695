//! What the hub hears from its queue, and what follows from it.

use std::ops::ControlFlow;

use protocol::event::Event;
use protocol::id::JobId;
use protocol::native::{FromBroker, WorkerView};
use protocol::queue::{QueueState, Status};
use protocol::raw::{RecordBytes, StateBytes};
use tokio::time::Instant;
use tracing::error;

use super::{Loaded, Task};
use crate::engine::outbox::Outgoing;
use crate::original::results::parse;
use crate::original::view::View;
use crate::original::{definitions::Definition, place};
use crate::session::Role;

/// Results that are read from disk at once; of more the pages fetch what they look at.
const LOADS_MAX: usize = 64;

impl Task {
    /// Takes one message of the queue; breaks when there will be no more.
    pub(super) fn hear(&mut self, outgoing: Outgoing) -> ControlFlow<()> {
        let message = match outgoing {
            Outgoing::Message(message) | Outgoing::Large(message, _) => *message,
            Outgoing::Shared(shared) => shared.message(),
            Outgoing::Close { .. } => return ControlFlow::Break(()),
        };
        match message {
            FromBroker::Snapshot { state, .. } => self.start(&state),
            FromBroker::Events { records, .. } => records.iter().try_for_each(|record| self.fold(record)),
            FromBroker::Presence { workers, .. } => {
                self.connected(workers);
                ControlFlow::Continue(())
            }
            // What it did not ask for.
            FromBroker::Welcome { .. }
            | FromBroker::Ok { .. }
            | FromBroker::Rejected { .. }
            | FromBroker::Granted { .. }
            | FromBroker::Claimed { .. }
            | FromBroker::Definitions { .. }
            | FromBroker::Explained { .. }
            | FromBroker::Stop { .. }
            | FromBroker::Logs { .. } => ControlFlow::Continue(()),
        }
    }

    /// Begins, or begins anew after the hub could not keep up.
    fn start(&mut self, state: &StateBytes) -> ControlFlow<()> {
        let state = match QueueState::decode(&state.0) {
            Ok(state) => state,
            Err(failure) => {
                error!(error = %failure, "a snapshot cannot be read: {failure}");
                return ControlFlow::Break(());
            }
        };
        match &mut self.view {
            Some(view) => *view.state_mut() = state,
            None => {
                self.tell_workers();
                let mut view = View::new(state);
                self.workers.sessions().for_each(|(id, _)| view.add_registered(id.clone()));
                view.set_native(self.workers.native().clone());
                self.view = Some(view);
            }
        }
        [Role::Client, Role::Worker].into_iter().for_each(|role| self.tell_whole(role));
        ControlFlow::Continue(())
    }

    fn fold(&mut self, record: &RecordBytes) -> ControlFlow<()> {
        let Some(view) = &mut self.view else { return ControlFlow::Continue(()) };
        match view.state_mut().apply_bytes(&record.0) {
            Ok(record) => {
                self.note(&record.event);
                ControlFlow::Continue(())
            }
            Err(failure) => {
                error!(error = %failure, "a record does not follow: {failure}");
                ControlFlow::Break(())
            }
        }
    }

    /// Notes what an event means for sockets. What is only absent afterwards can only be told by a whole state.
    fn note(&mut self, event: &Event) {
        match event {
            Event::JobQueued { job, .. }
            | Event::NamespaceJoined { job, .. }
            | Event::NamespaceLeft { job, .. }
            | Event::RunClaimed { job, .. }
            | Event::RunLost { job, .. }
            | Event::RunResumed { job, .. }
            | Event::JobRequeued { job } => self.changed(*job),
            Event::RunFinished { job, .. } | Event::JobAbandoned { job, .. } | Event::JobRecalled { job, .. } => {
                self.load_result(*job);
                self.changed(*job);
            }
            Event::JobCancelled { .. } | Event::JobReplaced { .. } => self.withdrawn(),
            Event::JobDeleted { job } => {
                self.load_deleted(*job);
                self.withdrawn();
            }
            Event::JobRemoved { .. } => self.left(),
            Event::WorkerJoined { .. }
            | Event::WorkerLeft { .. }
            | Event::PresenceReset {}
            | Event::Checkpoint { .. } => {}
        }
    }

    /// A job is shown otherwise than before.
    pub(super) fn changed(&mut self, job: JobId) {
        for role in [Role::Client, Role::Worker] {
            if self.has(role) {
                self.news[place(role)].insert(job);
                self.news_at.get_or_insert_with(|| Instant::now() + self.times.gather);
            }
        }
    }

    fn connected(&mut self, workers: Vec<WorkerView>) {
        if !self.workers.set_connected(workers) {
            return;
        }
        let native = self.workers.native().clone();
        let jobs = self.view.as_mut().map(|view| view.set_native(native)).unwrap_or_default();
        jobs.into_iter().for_each(|job| self.changed(job));
        self.workers_changed();
    }

    /// Reads the result of a job that ended, for pages: each would fetch it otherwise.
    fn load_result(&mut self, job: JobId) {
        let Some(view) = &self.view else { return };
        let Some(Status::Finished { result, .. }) = view.state().job(job).map(|job| &job.status) else { return };
        let digest = *result;
        if view.results.has(digest) || self.loads.len() >= LOADS_MAX || !self.has(Role::Client) {
            return;
        }
        self.loading.insert(job);
        let queue = self.queue.clone();
        self.loads.push(Box::pin(async move {
            let text = queue.body(digest).await.ok().flatten();
            Loaded::Result { job, digest, text: text.and_then(|text| parse(&text)) }
        }));
    }

    /// Reads the definition of a deleted job: a worker that is told to wipe a job whose definition it cannot get dies.
    fn load_deleted(&mut self, job: JobId) {
        // Of a great many the rest keep their copies until workers tidy up by themselves.
        if !self.has(Role::Worker) || self.loads.len() >= LOADS_MAX {
            return;
        }
        let (queue, definitions) = (self.queue.clone(), self.definitions.clone());
        self.loads
            .push(Box::pin(async move { Loaded::Deleted { job, definition: definitions.get(&queue, job).await } }));
    }

    pub(super) fn loaded(&mut self, loaded: Loaded) {
        match loaded {
            Loaded::Result { job, digest, text } => {
                self.loading.remove(&job);
                if let (Some(view), Some(text)) = (&mut self.view, text) {
                    view.results.put(digest, text);
                    view.changed();
                }
                if self.news[place(Role::Client)].contains(&job) {
                    self.news_at.get_or_insert_with(|| Instant::now() + self.times.gather);
                }
            }
            Loaded::Deleted { job, definition: Some(Definition::Frame(frame)) } => self.tell_deleted(job, frame),
            Loaded::Deleted { definition: Some(Definition::Unfit(_)) | None, .. } => {}
        }
    }
}

//! A handle to one queue: what it can be asked.

use std::sync::Arc;

use bytes::Bytes;
use protocol::id::{Digest, Head, JobId, Namespace, QueueKey, QueueName};
use protocol::queue::Job;
use tokio::sync::oneshot;

use super::{
    Ask, CancelBefore, CancelScope, Cancelled, Counts, Done, Engine, INLINE_BODY_BYTES_MAX, JobRecord, PresenceView,
    ReplyTo, SubmitJob, ask, blocking,
};
use crate::clock;
use crate::journal::Archived;
use crate::refusal::Refusal;
use crate::rules::command::{Answer, Command, Submit};
use crate::rules::core::Core;
use crate::submission;

/// One queue. Cheap to clone; every answer rests on what is on disk.
#[derive(Clone)]
pub struct QueueHandle {
    pub(super) engine: Engine,
    pub(super) key: QueueKey,
    /// Known when the queue was asked for by its name.
    pub(super) name: Option<Arc<QueueName>>,
}

impl QueueHandle {
    /// The queue's key.
    #[must_use]
    pub const fn key(&self) -> QueueKey {
        self.key
    }

    /// Puts a job into the queue. Submitting twice is the same as once.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the definition or the namespace is refused, or a limit is reached.
    pub async fn submit(&self, submit: SubmitJob) -> Result<Done, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.begin_submit(submit, ReplyTo::Caller(reply)).await?;
        answer.await.map_err(|_| Refusal::stopping())?
    }

    /// As [`QueueHandle::submit`], but returns when the queue has it; the answer goes where `reply` says.
    pub(crate) async fn begin_submit(&self, submit: SubmitJob, reply: ReplyTo) -> Result<(), Refusal> {
        let checked = submission::check(submit.id, &submit.definition, &self.engine.0.config.blob_uses)?;
        let book = self.engine.webhooks().filter(|_| !submit.callbacks.is_empty());
        book.map(|book| book.check(&submit.callbacks)).transpose()?;
        let text = self.store_body(checked.body, checked.text).await?;
        self.engine.0.journal.room().await;
        let namespace = submit.namespace.unwrap_or_default();
        let reply = match (book, &self.name) {
            (Some(book), Some(name)) => {
                // Before the submission: nothing that is acknowledged lacks its webhook.
                let seen = self.head().await?.seq;
                let ticket = book.admit(name, checked.job, &namespace, seen, submit.callbacks).await?;
                ReplyTo::Hooked(Box::new((ticket, reply)))
            }
            (Some(_) | None, _) => reply,
        };
        let command = Command::Submit(Box::new(Submit {
            job: checked.job,
            body: checked.body,
            text,
            namespace,
            needs: checked.needs,
            priority: submit.priority,
            debug: submit.debug,
            retry: submit.retry,
            via: submit.via,
            archived: None,
        }));
        self.command(command, reply).await
    }

    /// Stores a body that is too large for a batch; gives back one that is not.
    pub(crate) async fn store_body(&self, digest: Digest, text: Arc<[u8]>) -> Result<Option<Arc<[u8]>>, Refusal> {
        if text.len() <= INLINE_BODY_BYTES_MAX {
            return Ok(Some(text));
        }
        let (journal, key) = (self.engine.0.journal.clone(), self.key);
        blocking(move || journal.store_large_body(key, digest, &text)).await?;
        Ok(None)
    }

    /// Withdraws a wish for a job.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the queue cannot be used.
    pub async fn cancel(&self, job: JobId, scope: CancelScope, message: Option<String>) -> Result<Cancelled, Refusal> {
        let done = self.ask(Command::Cancel { job, scope, message }).await?;
        let before = match done.answer {
            Answer::Cancelled(before) => before,
            Answer::Done | Answer::Queued | Answer::Connected { .. } | Answer::Claimed { .. } => CancelBefore::Unknown,
        };
        Ok(Cancelled { head: done.head, before })
    }

    /// Withdraws a wish for a job and forgets its result.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the queue cannot be used.
    pub async fn delete(&self, job: JobId, scope: CancelScope) -> Result<Done, Refusal> {
        self.ask(Command::Delete { job, scope, archived: None }).await
    }

    /// All jobs in the queue, ended ones that have not left included.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the queue cannot be used.
    pub async fn jobs(&self) -> Result<Vec<(JobId, Job)>, Refusal> {
        self.read(|core| core.state().jobs().iter().map(|(id, job)| (*id, job.clone())).collect()).await
    }

    /// One job, in the queue or as it is kept.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the queue cannot be used.
    pub async fn job(&self, id: JobId) -> Result<Option<JobRecord>, Refusal> {
        if let Some(job) = self.read(move |core| core.state().job(id).cloned()).await? {
            return Ok(Some(JobRecord { job, live: true }));
        }
        Ok(self.archived(id).await?.map(|kept| JobRecord { job: kept.into_job(), live: false }))
    }

    pub(super) async fn archived(&self, id: JobId) -> Result<Option<Archived>, Refusal> {
        let (journal, key) = (self.engine.0.journal.clone(), self.key);
        blocking(move || journal.archived(key, id)).await
    }

    /// How much there is to do.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the queue cannot be used.
    pub async fn counts(&self) -> Result<Counts, Refusal> {
        let now = clock::now();
        self.read(move |core| {
            let state = core.state();
            Counts {
                waiting: state.waiting_count() as u64,
                running: state.running_count() as u64,
                oldest_waiting_ms: state.waiting().map(|(_, job)| now.since(job.queued_at_ms)).max(),
            }
        })
        .await
    }

    /// Who is connected.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the queue cannot be used.
    pub async fn presence(&self) -> Result<PresenceView, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Ask::Presence(reply)).await?;
        answer.await.map_err(|_| Refusal::stopping())?
    }

    /// A definition's or result's bytes.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the journal cannot be read.
    pub async fn body(&self, digest: Digest) -> Result<Option<Bytes>, Refusal> {
        let (journal, key) = (self.engine.0.journal.clone(), self.key);
        blocking(move || journal.body(key, digest)).await.map(|body| body.map(Bytes::from))
    }

    /// The chain's position and hash.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the queue cannot be used.
    pub async fn head(&self) -> Result<Head, Refusal> {
        self.read(|core| core.state().head()).await
    }

    async fn ask(&self, command: Command) -> Result<Done, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.command(command, ReplyTo::Caller(reply)).await?;
        answer.await.map_err(|_| Refusal::stopping())?
    }

    pub(crate) async fn command(&self, command: Command, reply: ReplyTo) -> Result<(), Refusal> {
        self.send(Ask::Command(Box::new(command), reply)).await
    }

    /// Reads the state; the answer comes once what was read is on disk.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        let read = move |core: Result<&Core, &Refusal>| -> ask::Release {
            let value = core.map(read).map_err(Clone::clone);
            Box::new(move || {
                let _ = reply.send(value);
            })
        };
        self.send(Ask::Read(Box::new(read))).await?;
        answer.await.map_err(|_| Refusal::stopping())?
    }

    pub(crate) async fn send(&self, ask: Ask) -> Result<(), Refusal> {
        self.engine.mailbox(self.key)?.send(ask).await.map_err(|_| Refusal::stopping())
    }
}

/// The namespace that a caller means who names none.
#[must_use]
pub fn scope_of(namespace: Option<Namespace>) -> CancelScope {
    match namespace {
        Some(namespace) if namespace.as_str() == "*" => CancelScope::All,
        Some(namespace) => CancelScope::One(namespace),
        None => CancelScope::One(Namespace::default()),
    }
}

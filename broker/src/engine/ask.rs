//! What a queue's task can be asked, and where its answers go.

use protocol::id::{Head, JobId};
use protocol::native::{FromBroker, Hello, RequestId};
use tokio::sync::oneshot;

use super::PresenceView;
use super::outbox::Outbox;
use crate::refusal::{Refusal, RefusalKind};
use crate::rules::command::{Answer, Command, Rejection, SessionId};
use crate::rules::core::Core;
use crate::webhooks::Ticket;

/// Something to do once what it rests on is on disk.
pub(crate) type Release = Box<dyn FnOnce() + Send>;

/// A look at the state, or at why there is none; what it gives is done once what was seen is on disk.
pub(crate) type Read = Box<dyn FnOnce(Result<&Core, &Refusal>) -> Release + Send>;

/// An ask.
pub(crate) enum Ask {
    /// A command.
    Command(Box<Command>, ReplyTo),
    /// Look at the state.
    Read(Read),
    /// Who is connected; rests on nothing stored.
    Presence(oneshot::Sender<Result<PresenceView, Refusal>>),
    /// A socket opened.
    Attach(Box<Attach>),
    /// A socket that comes back was sent what is on disk up to a head; `None`: it must start from a snapshot.
    CaughtUp {
        /// The socket.
        session: SessionId,
        /// Where it is now.
        to: Option<Head>,
    },
    /// A session inside the broker stands for that many pages now.
    StandsFor(SessionId, u32),
    /// A socket closed.
    Detach(SessionId),
    /// Time has come for something.
    Wake,
}

/// A socket that opened.
pub(crate) struct Attach {
    pub(crate) session: SessionId,
    pub(crate) outbox: Outbox,
    pub(crate) hello: Hello,
}

/// A command that is done and on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The chain after it.
    pub head: Head,
    /// The job it was about; for the broker's own commands the zero id.
    pub job: JobId,
    pub(crate) answer: Answer,
}

/// Where a command's answer goes.
pub(crate) enum ReplyTo {
    /// To a waiting caller.
    Caller(oneshot::Sender<Result<Done, Refusal>>),
    /// To a socket, as an answer to its request.
    Socket(Outbox, RequestId),
    /// To a socket, but only a refusal: its command has no answer.
    SocketIfRefused(Outbox),
    /// Also to a submission's webhook.
    Hooked(Box<(Ticket, Self)>),
    /// Nowhere.
    Nobody,
}

impl ReplyTo {
    pub(crate) fn give(self, result: Result<Done, Refusal>) {
        match (self, result) {
            (Self::Caller(reply), result) => {
                let _ = reply.send(result);
            }
            (Self::Socket(outbox, req), Ok(done)) => outbox.must(answered(req, &done)),
            (Self::Socket(outbox, req), Err(refusal)) => outbox.must(rejected(Some(req), &refusal)),
            (Self::SocketIfRefused(outbox), Err(refusal)) => outbox.must(rejected(None, &refusal)),
            (Self::Hooked(hooked), result) => {
                let (ticket, reply) = *hooked;
                match &result {
                    Ok(done) => ticket.taken(done.answer == Answer::Queued, done.head.seq),
                    Err(_) => ticket.refused(),
                }
                reply.give(result);
            }
            (Self::SocketIfRefused(_), Ok(_)) | (Self::Nobody, _) => {}
        }
    }
}

/// What was done as a message.
const fn answered(req: RequestId, done: &Done) -> FromBroker {
    match done.answer {
        Answer::Claimed { granted } => FromBroker::Claimed { req, granted },
        Answer::Done | Answer::Queued | Answer::Cancelled(_) | Answer::Connected { .. } => {
            FromBroker::Ok { req, head: done.head, job: Some(done.job) }
        }
    }
}

/// A refusal as a message.
pub(crate) fn rejected(req: Option<RequestId>, refusal: &Refusal) -> FromBroker {
    FromBroker::Rejected { req, code: refusal.code.to_owned(), message: refusal.message.clone().into_owned() }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        let (kind, code) = match rejection {
            Rejection::StaleRun(_) => (RefusalKind::Conflict, "stale_run"),
            Rejection::NotAWorker => (RefusalKind::Conflict, "not_a_worker"),
            Rejection::QueueFull { .. } => (RefusalKind::Busy, "queue_full"),
            Rejection::NamespacesFull { .. } => (RefusalKind::TooLarge, "namespaces_full"),
        };
        Self::new(kind, code, rejection.to_string())
    }
}

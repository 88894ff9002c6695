//! Whoever wants every line of a queue as it is written, whatever the job.
//!
//! One tap per queue; a slow one loses lines, which can be read from the logs.

use std::collections::HashMap;
use std::sync::Mutex;

use protocol::id::{JobId, QueueKey};
use protocol::native::{LogLine, LogStep};
use tokio::sync::mpsc;

use super::lock;

/// How many pieces may wait for a tap.
const PIECES_MAX: usize = 256;

/// Lines that were written.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    /// The job.
    pub job: JobId,
    /// What they come from.
    pub step: LogStep,
    /// The lines.
    pub lines: Vec<LogLine>,
}

#[derive(Debug, Default)]
pub(super) struct Taps(Mutex<HashMap<QueueKey, mpsc::Sender<Logged>>>);

impl Taps {
    /// A tap, in the place of the one that was there.
    pub(super) fn open(&self, queue: QueueKey) -> mpsc::Receiver<Logged> {
        let (sender, receiver) = mpsc::channel(PIECES_MAX);
        let mut taps = lock(&self.0);
        taps.retain(|_, tap| !tap.is_closed());
        taps.insert(queue, sender);
        receiver
    }

    /// The tap of a queue, if someone listens.
    pub(super) fn of(&self, queue: QueueKey) -> Option<mpsc::Sender<Logged>> {
        lock(&self.0).get(&queue).filter(|tap| !tap.is_closed()).cloned()
    }
}

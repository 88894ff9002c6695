//! A thousand watchers of one queue, in one thread of this process.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::StreamExt;
use protocol::id::Head;
use protocol::native::FromBroker;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::definitions::{Fit, submit};
use crate::socket::{Native, binary, decode};
use crate::watch::{Board, Watcher};

/// One watcher in that many folds what it is told; all make the chain again.
const ONE_FOLDS_IN: usize = 100;

/// How long the last watcher may take to have what all are to have.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two changes is a multiple of this.
const TICK: Duration = Duration::from_millis(1);

/// The watchers, and one who submits.
pub(crate) struct Crowd {
    port: u16,
    queue: String,
    pub(crate) board: Rc<Board>,
    tasks: JoinSet<anyhow::Result<()>>,
    submitter: Native,
    submitted: u64,
}

impl Crowd {
    pub(crate) async fn new(port: u16, queue: &str, watchers: usize) -> anyhow::Result<Self> {
        let submitter = Native::client(port, queue, false).await?;
        let (board, tasks) = (Board::new(watchers), JoinSet::new());
        Ok(Self { port, queue: queue.to_owned(), board, tasks, submitter, submitted: 0 })
    }

    /// Connects all, `at_once` at a time: a watcher that has what it is to have makes room for the next.
    pub(crate) fn connect(&mut self, at_once: usize) {
        let room = Rc::new(Semaphore::new(at_once));
        for number in 0..self.board.seen.len() {
            let (port, queue, board, room) = (self.port, self.queue.clone(), self.board.clone(), room.clone());
            self.tasks.spawn_local(async move {
                let permit = room.acquire().await?;
                let watcher = Watcher::connect(port, &queue, number, number % ONE_FOLDS_IN == 0, board.clone()).await?;
                let mut reading = std::pin::pin!(watcher.run());
                tokio::select! {
                    ended = &mut reading => return ended,
                    () = board.there(number) => drop(permit),
                }
                reading.await
            });
        }
    }

    /// All sockets break at once.
    pub(crate) async fn disconnect(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Waits until all have reached `seq`.
    pub(crate) async fn all_at(&mut self, seq: u64) -> anyhow::Result<()> {
        self.board.aim(seq);
        let board = self.board.clone();
        let arrived = async {
            tokio::select! {
                () = board.all_there() => Ok(()),
                Some(ended) = self.tasks.join_next() => bail!("a watcher ended: {ended:?}"),
            }
        };
        timeout(PATIENCE, arrived).await.context("a watcher never got there")?
    }

    /// Whether every watcher has exactly this head.
    pub(crate) fn check(&self, head: Head) -> anyhow::Result<()> {
        for (number, seen) in self.board.seen.iter().enumerate() {
            ensure!(
                seen.head.get() == Some(head),
                "watcher {number} is at {:?}, the queue at {head:?}",
                seen.head.get()
            );
        }
        Ok(())
    }

    /// Submits `count` jobs at a steady rate. Each is one change, and its sending is noted on the board. Gives the head after the last one, and how
    /// long each took to be acknowledged.
    pub(crate) async fn change(&mut self, count: u64, per_second: u32) -> anyhow::Result<(Head, Vec<Duration>)> {
        let (board, first) = (self.board.clone(), self.submitted);
        board.sent.borrow_mut().clear();
        let Native { sink, stream, .. } = &mut self.submitter;
        let send = async {
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let started = Instant::now();
            for number in 0..count {
                while started.elapsed() * per_second < Duration::from_secs(1) * u32::try_from(number)? {
                    ticks.tick().await;
                }
                board.sent.borrow_mut().push(Instant::now());
                let message = crate::socket::frame(&submit(number, "change", first + number, Fit::Plain));
                futures_util::SinkExt::send(sink, message).await?;
            }
            anyhow::Ok(())
        };
        let answers = async {
            let mut each = Vec::new();
            loop {
                let Some(bytes) = binary(stream.next().await)? else { continue };
                let FromBroker::Ok { req, head, .. } = decode(&bytes)? else { bail!("a submission was not accepted") };
                let sent = board.sent.borrow().get(usize::try_from(req)?).copied().context("answered before asked")?;
                each.push(sent.elapsed());
                if each.len() as u64 == count {
                    return Ok((head, each));
                }
            }
        };
        let ((), answers) = tokio::try_join!(send, answers)?;
        self.submitted += count;
        Ok(answers)
    }
}

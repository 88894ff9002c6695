//! Submitting many jobs, and waiting until all of them have ended.

use std::cell::{Cell, RefCell};
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use protocol::id::{JobId, Seq};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::api::Api;
use super::bulk::{self, Answer, Lines, Sent};
use super::crowd::{Crowd, End, failure};
use super::patience::{Again, Patience};
use super::verdict::Verdict;
use crate::args::job::Target;
use crate::exit;
use crate::progress::{Counter, one_line};
use crate::socket::Socket;

/// How many acknowledged jobs may be on their way to whoever waits for them.
const ACKNOWLEDGED_MAX: usize = 1024;

/// How often a result is asked for while the broker is away, and how long apart: it restarts in seconds, a machine in a minute or two.
const RESULT_TRIES: u32 = 90;
const RESULT_PAUSE: Duration = Duration::from_secs(2);

/// How things stand.
#[derive(Debug, Default)]
struct Tally {
    /// Jobs acknowledged.
    queued: u64,
    /// Lines, or jobs of arrays, refused.
    refused: u64,
    /// Jobs that are waited for or have ended: of one that was submitted twice there is one.
    awaited: u64,
    /// Those of them that have ended.
    ended: u64,
    /// Those that did not succeed.
    failed: u64,
    /// The last line that was answered.
    line: u64,
}

struct Many<'a> {
    api: &'a Api,
    target: &'a Target,
    counter: Counter,
    tally: RefCell<Tally>,
    sent: Arc<Sent>,
    retry: bool,
    wait: bool,
    /// Whether someone still reads the ids.
    prints: Cell<bool>,
}

/// Submits all lines; with `wait`, ends when all of their jobs have ended. Ctrl-C ends only this.
/// `retry`: those of all lines that have ended without success run again.
pub(super) async fn run(api: &Api, target: &Target, lines: Lines, retry: bool, wait: bool) -> anyhow::Result<ExitCode> {
    let many = Many {
        api,
        target,
        counter: Counter::start(),
        tally: RefCell::default(),
        sent: Arc::new(Sent::default()),
        retry,
        wait,
        prints: Cell::new(true),
    };
    let (acknowledged, awaited) = mpsc::channel(ACKNOWLEDGED_MAX);
    let working = async {
        if wait {
            tokio::try_join!(many.submit(lines, Some(acknowledged)), many.wait_for_all(awaited)).map(|_| ())
        } else {
            many.submit(lines, None).await
        }
    };
    tokio::select! {
        done = working => {
            done?;
            Ok(many.sum_up())
        }
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            many.interrupted();
            Ok(ExitCode::from(exit::INTERRUPTED))
        }
    }
}

impl Many<'_> {
    async fn submit(&self, lines: Lines, acknowledged: Option<mpsc::Sender<(JobId, Seq)>>) -> anyhow::Result<()> {
        let each = async |answers: Vec<Answer>| -> anyhow::Result<()> {
            let ids = self.take(&answers);
            self.print(&ids)?;
            self.show();
            if let Some(acknowledged) = &acknowledged {
                for answer in &answers {
                    if let Answer::Queued { job, seq, .. } = answer {
                        // Nobody waits any more when waiting has failed, and that ends all of this.
                        let _ = acknowledged.send((*job, *seq)).await;
                    }
                }
            }
            Ok(())
        };
        bulk::submit(self.api, &self.target.queue, lines, self.retry, &self.sent, each).await
    }

    /// Prints ids. A reader that has enough (`… | head`) ends the printing, not the submitting.
    fn print(&self, ids: &str) -> io::Result<()> {
        if !self.prints.get() {
            return Ok(());
        }
        match self.counter.print(ids) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.prints.set(false);
                Ok(())
            }
            printed => printed,
        }
    }

    /// Counts answers; answers the ids to be printed.
    fn take(&self, answers: &[Answer]) -> String {
        let mut ids = String::new();
        let mut tally = self.tally.borrow_mut();
        for answer in answers {
            match answer {
                Answer::Queued { line, job, .. } => {
                    tally.queued += 1;
                    tally.line = *line;
                    ids.push_str(&job.to_string());
                    ids.push('\n');
                }
                Answer::Refused { line, index, message } => {
                    tally.refused += 1;
                    tally.line = *line;
                    let index = index.map_or_else(String::new, |index| format!(", index {index}"));
                    self.counter.note(&format!("line {line}{index}: {}", one_line(message)));
                }
                Answer::Sum => {}
            }
        }
        ids
    }

    /// Watches the queue until everything that is acknowledged has ended.
    async fn wait_for_all(&self, mut acknowledged: mpsc::Receiver<(JobId, Seq)>) -> anyhow::Result<()> {
        let mut crowd = Crowd::default();
        let mut patience = Patience::new();
        let mut is_open = true;
        loop {
            let talked = self.converse(&mut crowd, &mut acknowledged, &mut is_open, &mut patience).await;
            // What was learned before the socket broke counts.
            self.tell(&mut crowd).await?;
            let Err(error) = talked else { return Ok(()) };
            if patience.after(error, |text| self.counter.note(text)).await? == Again::Afresh {
                crowd.start_afresh();
            }
        }
    }

    async fn converse(
        &self,
        crowd: &mut Crowd,
        acknowledged: &mut mpsc::Receiver<(JobId, Seq)>,
        is_open: &mut bool,
        patience: &mut Patience,
    ) -> anyhow::Result<()> {
        let mut socket = Socket::open(self.api, &self.api.socket_url(&self.target.queue)).await?;
        socket.send(&crowd.opening()).await?;
        while *is_open || crowd.len() > 0 {
            tokio::select! {
                message = socket.receive() => {
                    crowd.on(message?)?;
                    patience.renew();
                }
                job = acknowledged.recv(), if *is_open => match job {
                    Some((job, seq)) => self.tally.borrow_mut().awaited += u64::from(crowd.add(job, seq)),
                    None => *is_open = false,
                },
            }
            self.tell(crowd).await?;
        }
        socket.close().await;
        Ok(())
    }

    async fn tell(&self, crowd: &mut Crowd) -> anyhow::Result<()> {
        for end in crowd.take_ended() {
            let (job, wrong) = match end {
                End::Ended(job, view) => (job, failure(&view)),
                End::Left(job) => (job, self.failure_of_left(job).await?),
            };
            {
                let mut tally = self.tally.borrow_mut();
                tally.ended += 1;
                tally.failed += u64::from(wrong.is_some());
            }
            if let Some(wrong) = wrong {
                self.counter.note(&format!("job {job} {wrong}"));
            }
            self.show();
        }
        Ok(())
    }

    async fn failure_of_left(&self, job: JobId) -> anyhow::Result<Option<String>> {
        let mut tries = RESULT_TRIES;
        let result = loop {
            tries -= 1;
            match self.api.result(self.target, job).await {
                Err(error) if error.is_transient() && tries > 0 => sleep(RESULT_PAUSE).await,
                result => break result?,
            }
        };
        Ok(match result {
            Some(document) => {
                let verdict = Verdict::of_result(&document);
                (verdict.code != exit::OK).then_some(verdict.text)
            }
            None => Some("ended without a result: it was cancelled, replaced or deleted".to_owned()),
        })
    }

    fn show(&self) {
        self.counter.set(|| {
            let tally = self.tally.borrow();
            let mut text = format!("{} read, {} queued", HumanBytes(self.sent.bytes()), HumanCount(tally.queued));
            for (count, word, is_shown) in [
                (tally.refused, "refused", tally.refused > 0),
                (tally.ended, "ended", self.wait),
                (tally.failed, "failed", tally.failed > 0),
            ] {
                if is_shown {
                    text.push_str(&format!(", {} {word}", HumanCount(count)));
                }
            }
            text
        });
    }

    fn sum_up(&self) -> ExitCode {
        let tally = self.tally.borrow();
        let refused = match tally.refused {
            0 => String::new(),
            count => format!(", {count} refused"),
        };
        self.counter.note(&format!("{} queued{refused}", jobs(tally.queued)));
        if self.wait {
            self.counter.note(&match tally.failed {
                0 => format!("all ended with success: {}", jobs(tally.ended)),
                failed => format!("{failed} of {} did not succeed", jobs(tally.ended)),
            });
        }
        ExitCode::from(if tally.refused + tally.failed > 0 { exit::FAILED } else { exit::OK })
    }

    fn interrupted(&self) {
        let tally = self.tally.borrow();
        let live = match tally.awaited - tally.ended {
            0 => String::new(),
            live => format!("; {} not ended yet, they go on without us", jobs(live)),
        };
        self.counter.note(&format!(
            "\ninterrupted after the answer to line {}: {} queued{live}\n\
             submitting twice is the same as once, so the same command can be run again",
            tally.line,
            jobs(tally.queued),
        ));
    }
}

fn jobs(count: u64) -> String {
    if count == 1 { "1 job".to_owned() } else { format!("{count} jobs") }
}

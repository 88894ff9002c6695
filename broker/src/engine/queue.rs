//! The task of one live queue: mailbox, rules, batches on their way to disk, and the gate that holds everything back until
//! its batch is there.

mod gate;
mod lane;
mod memory;
mod snapshots;
mod tell;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use protocol::id::{JobId, QueueKey, UnixMillis};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::error;

use self::gate::{Held, InFlight, next_commit};
use self::lane::Reader;
use self::memory::{FreshBodies, RecentRecords};
use self::snapshots::Snapshots;
use self::tell::{News, PresencePace};
use self::watch::Session;
use super::ask::{Ask, Done, ReplyTo, rejected};
use super::outbox::Outgoing;
use super::stats::Counters;
use super::{Engine, refuse};
use crate::clock;
use crate::journal::{Archived, Body, JournalError, Tail};
use crate::refusal::Refusal;
use crate::rules::command::{Command, SessionId};
use crate::rules::core::{Core, Step};

/// Batches of one queue on their way to disk: while one is synced the next is decided and a third can be filled.
const BATCHES_IN_FLIGHT_MAX: usize = 3;

/// Asks taken into one batch: bounds how long the first of them waits for the rest.
const ASKS_PER_BATCH_MAX: usize = 1024;

/// How long a queue without sockets stays live, so that a burst of requests loads it once.
const IDLE: Duration = Duration::from_secs(30);

/// The same for a queue that has never held anything: a probe of a made-up name must not cost memory for long.
const IDLE_EMPTY: Duration = Duration::from_millis(500);

/// How stale the next due time may be: it is looked up at most this often.
const DUE_FRESH: Duration = Duration::from_millis(50);

struct Task {
    engine: Engine,
    core: Core,
    sessions: BTreeMap<SessionId, Session>,
    /// The batch being filled.
    batch: Held,
    bodies: Vec<Body>,
    archives: Vec<(JobId, Archived)>,
    in_flight: VecDeque<InFlight>,
    fresh_bodies: FreshBodies,
    recent: RecentRecords,
    /// Reads definitions that are not in memory; started when one is granted.
    reader: Option<Reader>,
    snapshots: Snapshots,
    /// How many of the sessions watch.
    watching: usize,
    /// When those that miss something are looked at; none when nobody does.
    lagging_due: Option<Instant>,
    news: News,
    presence_pace: PresencePace,
    /// When time alone will change something, and when that was looked up.
    due: (Option<UnixMillis>, Instant),
    /// Whether something was decided since then.
    stale: bool,
    idle_since: Instant,
    /// What came since the last snapshot, to know when the next is wanted.
    tail: Tail,
}

/// Runs a queue until it is idle or the engine stops.
pub(super) async fn run(engine: Engine, key: QueueKey, mut asks: mpsc::Receiver<Ask>) {
    let journal = engine.0.journal.clone();
    let loaded = tokio::task::spawn_blocking(move || journal.load_with_tail(key)).await;
    let (state, tail) = match loaded {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(failure)) => {
            error!(queue = %key.short(), error = %failure, "cannot load queue {}", key.short());
            return refuse_all(&engine, key, asks, &refuse(&failure)).await;
        }
        Err(_) => return refuse_all(&engine, key, asks, &Refusal::stopping()).await,
    };
    let now = clock::now();
    let mut task = Task {
        recent: RecentRecords::after(state.head()),
        reader: None,
        snapshots: Snapshots::default(),
        watching: 0,
        lagging_due: None,
        news: News::default(),
        presence_pace: PresencePace::default(),
        core: Core::new(state, engine.0.config.limits.clone(), now),
        engine: engine.clone(),
        sessions: BTreeMap::new(),
        batch: Held::default(),
        bodies: Vec::new(),
        archives: Vec::new(),
        in_flight: VecDeque::new(),
        fresh_bodies: FreshBodies::default(),
        due: (None, Instant::now()),
        stale: true,
        idle_since: Instant::now(),
        tail,
    };
    if let Some(step) = task.core.reset_presence(now) {
        task.take(step, ReplyTo::Nobody, None);
        task.seal();
    }
    engine.counters().note(&task.core);
    task.refresh_due();
    task.serve(&mut asks).await;
    asks.close();
    if engine.0.failed.is_cancelled() {
        refuse_rest(&mut asks, &Refusal::stopping());
    }
    leave(&engine, key);
}

/// Answers everything with the same refusal for a while: a queue whose journal cannot be used.
async fn refuse_all(engine: &Engine, key: QueueKey, mut asks: mpsc::Receiver<Ask>, refusal: &Refusal) {
    let stop = engine.0.stop.clone();
    loop {
        let ask = tokio::select! {
            ask = tokio::time::timeout(IDLE, asks.recv()) => ask,
            () = stop.cancelled() => break,
        };
        let Ok(Some(ask)) = ask else { break };
        refuse_one(ask, refusal);
    }
    asks.close();
    refuse_rest(&mut asks, refusal);
    leave(engine, key);
}

/// Takes a task whose mailbox is closed off the list; one that has taken its place since stays.
fn leave(engine: &Engine, key: QueueKey) {
    let mut live = engine.live();
    if live.get(&key).is_some_and(mpsc::Sender::is_closed) {
        live.remove(&key);
    }
}

fn refuse_rest(asks: &mut mpsc::Receiver<Ask>, refusal: &Refusal) {
    while let Ok(ask) = asks.try_recv() {
        refuse_one(ask, refusal);
    }
}

fn refuse_one(ask: Ask, refusal: &Refusal) {
    match ask {
        Ask::Command(_, reply) => reply.give(Err(refusal.clone())),
        Ask::Attach(attach) => {
            attach.outbox.must(rejected(None, refusal));
            attach.outbox.must_out(Outgoing::Close { code: refusal.code, message: "the queue cannot be used" });
        }
        Ask::Read(read) => read(Err(refusal))(),
        Ask::Presence(reply) => {
            let _ = reply.send(Err(refusal.clone()));
        }
        Ask::CaughtUp { .. } | Ask::StandsFor(..) | Ask::Detach(_) | Ask::Wake => {}
    }
}

impl Task {
    async fn serve(&mut self, asks: &mut mpsc::Receiver<Ask>) {
        let (stop, failed) = (self.engine.0.stop.clone(), self.engine.0.failed.clone());
        loop {
            // Also while asks keep coming without a pause.
            self.on_time();
            let wake_at = self.wake_at();
            tokio::select! {
                biased;
                () = failed.cancelled() => return self.drop_all(&Refusal::stopping()),
                committed = next_commit(&mut self.in_flight) => match committed {
                    Ok(held) => self.release(held),
                    // The others go on; this one is loaded again from what is on disk.
                    Err(failure) if concerns_one_queue(&failure) => {
                        error!(queue = %self.core.queue().short(), error = %failure, "a batch was refused: {failure}");
                        return self.drop_all(&refuse(&failure));
                    }
                    Err(failure) => {
                        error!(error = %failure, "cannot write the journal: {failure}; the broker stops");
                        failed.cancel();
                        return self.drop_all(&Refusal::stopping());
                    }
                },
                ask = asks.recv(), if self.in_flight.len() < BATCHES_IN_FLIGHT_MAX => {
                    let Some(ask) = ask else { return };
                    self.idle_since = Instant::now();
                    self.take_ask(ask);
                    for _ in 1..ASKS_PER_BATCH_MAX {
                        let Ok(ask) = asks.try_recv() else { break };
                        self.take_ask(ask);
                    }
                    self.seal();
                }
                () = stop.cancelled(), if self.in_flight.is_empty() => return self.close_sessions(),
                () = tokio::time::sleep_until(wake_at) => {
                    self.on_time();
                    if self.is_idle() && self.put_away(asks).await {
                        return;
                    }
                }
            }
        }
    }

    /// When to look at the time again, with nothing else happening.
    fn wake_at(&self) -> Instant {
        let soon = Instant::now() + Duration::from_millis(1);
        let (due, looked_up) = self.due;
        let due = due.map(|at| Instant::now() + Duration::from_millis(at.since(clock::now())));
        // What was decided since the last look may have made something due earlier.
        let fresh = self.stale.then_some(looked_up + DUE_FRESH);
        let quiet = self.sessions.is_empty() && self.in_flight.is_empty() && self.core.presence().is_empty();
        let idle = quiet.then(|| self.idle_since + self.idle_for());
        let at =
            [due, fresh, idle, self.lagging_due, self.presence_pace.due, self.news.due].into_iter().flatten().min();
        at.unwrap_or_else(|| Instant::now() + IDLE).max(soon)
    }

    fn on_time(&mut self) {
        let (now, instant) = (clock::now(), Instant::now());
        let (due, looked_up) = self.due;
        if due.is_some_and(|due| due <= now) || (self.stale && looked_up + DUE_FRESH <= instant) {
            self.refresh_due();
            if self.due.0.is_some_and(|due| due <= now) {
                self.command(Command::Tick, ReplyTo::Nobody);
                self.refresh_due();
            }
        }
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= instant);
        if is_due(self.news.due) {
            self.tell_news();
        }
        if is_due(self.presence_pace.due) {
            self.tell_presence();
        }
        if is_due(self.lagging_due) {
            self.make_good();
            self.cut_off_slowest();
        }
        self.seal();
    }

    fn refresh_due(&mut self) {
        self.due = (self.core.due(), Instant::now());
        self.stale = false;
    }

    fn take_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Command(command, reply) => self.command(*command, reply),
            Ask::Read(read) => {
                let release = read(Ok(&self.core));
                self.batch.releases.push(release);
            }
            Ask::Presence(reply) => {
                let _ = reply.send(Ok(self.presence()));
            }
            Ask::Attach(attach) => self.attach(*attach),
            Ask::CaughtUp { session, to } => self.caught_up(session, to),
            Ask::StandsFor(session, pages) => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.pages = pages;
                    self.presence_changed();
                }
            }
            Ask::Detach(session) => {
                self.detach(session);
                self.command(Command::Disconnect { session }, ReplyTo::Nobody);
                self.presence_changed();
            }
            Ask::Wake => {}
        }
    }

    fn command(&mut self, mut command: Command, reply: ReplyTo) {
        let job = job_of(&command);
        if let Err(refusal) = self.complete(&mut command) {
            return self.batch.replies.push((reply, Err(refusal)));
        }
        let (submits, finishes) = (matches!(command, Command::Submit(_)), matches!(command, Command::Finish { .. }));
        self.stale = true;
        match self.core.handle(command, clock::now()) {
            Ok(step) => {
                let counters = &self.engine.0.counters;
                let counted = [(submits, &counters.submits), (finishes, &counters.finishes)];
                counted.into_iter().filter(|(is_one, _)| *is_one).for_each(|(_, counter)| Counters::count(counter));
                self.take(step, reply, job);
            }
            Err(rejection) => self.batch.replies.push((reply, Err(rejection.into()))),
        }
    }

    /// Adds what the rules need to know and only the journal has: what is kept of a job that left decides whether it starts anew.
    fn complete(&mut self, command: &mut Command) -> Result<(), Refusal> {
        let left = |job: &JobId| self.core.state().job(*job).is_none();
        if let Command::Submit(submit) = command {
            if left(&submit.job) {
                submit.archived = self.archived(submit.job)?;
            }
            if let Some(text) = &submit.text {
                self.fresh_bodies.put(submit.body, text.clone());
            }
        } else if let Command::Delete { job, archived, .. } = command
            && left(job)
        {
            *archived = self.archived(*job)?;
        }
        Ok(())
    }

    fn archived(&self, job: JobId) -> Result<Option<Archived>, Refusal> {
        self.engine.0.journal.archived(self.core.queue(), job).map_err(|failure| refuse(&failure))
    }

    /// Takes a step into the batch being filled.
    fn take(&mut self, step: Step, reply: ReplyTo, job: Option<JobId>) {
        let Step { records, bodies, archives, effects, answer } = step;
        let job = job.unwrap_or(JobId::from_bytes([0; 32]));
        let done = Done { head: self.core.state().head(), job, answer };
        self.batch.records.extend(records);
        self.bodies.extend(bodies);
        self.archives.extend(archives);
        self.batch.effects.extend(effects);
        self.batch.replies.push((reply, Ok(done)));
    }

    fn idle_for(&self) -> Duration {
        if self.core.state().head().seq == 0 { IDLE_EMPTY } else { IDLE }
    }

    fn is_idle(&self) -> bool {
        self.sessions.is_empty()
            && self.in_flight.is_empty()
            && self.core.presence().is_empty()
            && self.idle_since.elapsed() >= self.idle_for()
    }

    /// Leaves the list of live queues; what time will do here is noted for the engine.
    async fn put_away(&mut self, asks: &mpsc::Receiver<Ask>) -> bool {
        let (journal, key, due) = (self.engine.0.journal.clone(), self.core.queue(), self.core.due());
        if self.core.state().head().seq > 0
            && tokio::task::spawn_blocking(move || journal.set_due(key, due)).await.is_err()
        {
            return false;
        }
        self.engine.put_away(key, asks)
    }

    /// The engine stops: everything begun is on disk, sockets are told to come back.
    fn close_sessions(&mut self) {
        self.tell_news();
        for session in self.sessions.values() {
            session.outbox.must_out(Outgoing::Close {
                code: "stopping",
                message: "the broker is stopping; come back in a moment",
            });
        }
    }

    /// A write failed: nothing that rests on it may go out.
    fn drop_all(&mut self, refusal: &Refusal) {
        let held = self.in_flight.drain(..).map(|batch| batch.held).chain([std::mem::take(&mut self.batch)]);
        for (reply, _) in held.flat_map(|held| held.replies) {
            reply.give(Err(refusal.clone()));
        }
        self.close_sessions();
    }
}

const fn concerns_one_queue(failure: &JournalError) -> bool {
    matches!(failure, JournalError::Quarantined { .. } | JournalError::Busy | JournalError::Invalid { .. })
}

const fn job_of(command: &Command) -> Option<JobId> {
    match command {
        Command::Submit(submit) => Some(submit.job),
        Command::Cancel { job, .. } | Command::Delete { job, .. } => Some(*job),
        Command::Finish { finish, .. } => Some(finish.run.job),
        Command::HandBack { run, .. } | Command::Abandon { run, .. } => Some(run.job),
        Command::ClaimJob { job, .. } => Some(*job),
        Command::Connect { .. }
        | Command::Register { .. }
        | Command::Disconnect { .. }
        | Command::Claim { .. }
        | Command::Renew { .. }
        | Command::Tick => None,
    }
}

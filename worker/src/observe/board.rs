//! What the agent and the runs write on as they go. One lock, held for microseconds and never over a wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use protocol::definition::{CommandLine, Definition};
use protocol::event::RunOutcome;
use protocol::id::{QueueKey, QueueName};
use protocol::native::HeldRun;
use serde_json::Value;
use tokio::time::Instant;

use super::snapshot::{Capacity, Counts, GpuView, Outcome, Phase, QueueView, ResultView, RunView, Snapshot, Standing};
use super::steps::Steps;
use crate::clock::unix_now;
use crate::outcome::Ending;
use crate::state_machine::slots::{Share, Slots};
use crate::sync::lock;

/// How many ends are remembered: more than fit on a screen.
const RESULTS_MAX: usize = 50;
/// The longest that a text of a job may be here.
const TEXT_CHARS_MAX: usize = 200;
/// The longest part of a queue's name that is shown.
const NAME_CHARS_MAX: usize = 6;
/// Names up to this long are shown whole: they can be guessed anyway.
const NAME_CHARS_PLAIN: usize = 5;

/// See the module.
#[derive(Debug)]
pub(crate) struct Board(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    standing: Standing,
    obstacle: Option<String>,
    offered: Capacity,
    taken: Capacity,
    gpus: Vec<GpuView>,
    queues: Vec<(QueueKey, QueueView)>,
    runs: BTreeMap<(QueueKey, HeldRun), Run>,
    results: VecDeque<ResultView>,
    ended: [u64; Outcome::ALL.len()],
    engine_errors: u64,
    starts: Steps,
}

#[derive(Debug)]
struct Run {
    came: Instant,
    phase: Phase,
    since: Instant,
    is_adopted: bool,
    share: Share,
    image: String,
    command: String,
}

/// How a run ended, for the board.
pub(crate) struct Finished {
    outcome: Outcome,
    exit_code: Option<i64>,
    why: Option<String>,
    is_engine: bool,
}

impl Finished {
    /// Because somebody wanted it to.
    pub(crate) fn stopped(why: &str) -> Self {
        Self { outcome: Outcome::Stopped, exit_code: None, why: Some(why.to_owned()), is_engine: false }
    }

    pub(crate) fn of(ending: &Ending) -> Self {
        let exit_code = ending.result.status_code;
        let outcome = match (ending.outcome, exit_code) {
            (RunOutcome::Success, None | Some(0)) => Outcome::Success,
            (RunOutcome::Success, Some(_)) => Outcome::Failed,
            (RunOutcome::Error, _) => Outcome::Error,
            (RunOutcome::TimedOut, _) => Outcome::TimedOut,
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let (why, is_engine) = match &ending.result.error {
            // As the original has it, this says no more than that there is one; the log's first line does.
            Some(Value::String(why)) if why == "Error" => {
                (ending.result.logs.last().map(|line| line.text.clone()), false)
            }
            Some(Value::String(why)) => (Some(why.clone()), false),
            Some(Value::Object(error)) => {
                let said = error.get("json").and_then(|json| json.get("message")).and_then(text);
                (said.or_else(|| error.get("reason").and_then(text)), true)
            }
            Some(_) | None => (None, false),
        };
        let why = why.map(|why| tidy(&why, TEXT_CHARS_MAX));
        Self { outcome, exit_code, why, is_engine }
    }
}

impl Board {
    /// A board for these queues, nothing on it.
    pub(crate) fn new(queues: &[QueueName]) -> Self {
        let view = |name: &QueueName| {
            let key = QueueKey::of(name);
            (key, QueueView { name: shortened(name.as_str()), key: key.short(), ..QueueView::default() })
        };
        Self(Mutex::new(State { queues: queues.iter().map(view).collect(), ..State::default() }))
    }

    /// A run is here. One that goes on already has its container.
    pub(crate) fn came(
        &self,
        queue: QueueKey,
        run: HeldRun,
        definition: Option<&Definition>,
        share: &Share,
        is_adopted: bool,
    ) {
        let now = Instant::now();
        let phase = if is_adopted { Phase::Running } else { Phase::Inputs };
        let (image, command) = definition.map(in_short).unwrap_or_default();
        let share = share.clone();
        let run_here = Run { came: now, phase, since: now, is_adopted, share, image, command };
        lock(&self.0).runs.insert((queue, run), run_here);
    }

    /// A run has come so far.
    pub(crate) fn phase(&self, queue: QueueKey, run: HeldRun, phase: Phase) {
        let now = Instant::now();
        let mut state = lock(&self.0);
        let State { runs, starts, .. } = &mut *state;
        let Some(known) = runs.get_mut(&(queue, run)).filter(|known| known.phase != phase) else { return };
        (known.phase, known.since) = (phase, now);
        if phase == Phase::Running {
            starts.add(now.duration_since(known.came));
        }
    }

    /// A run has ended here.
    pub(crate) fn ended(&self, queue: QueueKey, run: HeldRun, finished: Finished) {
        let (now, at_ms) = (Instant::now(), unix_now().0);
        let mut state = lock(&self.0);
        let came = state.runs.remove(&(queue, run)).map(|known| known.came);
        let Finished { outcome, exit_code, why, is_engine } = finished;
        state.ended[outcome as usize] += 1;
        state.engine_errors += u64::from(is_engine);
        if state.results.len() == RESULTS_MAX {
            state.results.pop_back();
        }
        state.results.push_front(ResultView {
            job: run.job.to_string(),
            run: run.run,
            queue: queue.short(),
            outcome,
            exit_code,
            duration_ms: came.map_or(0, |came| millis(now, came)),
            why,
            at_ms,
        });
    }

    /// A run is not here any more, and nothing is to be said of it.
    pub(crate) fn left(&self, queue: QueueKey, run: HeldRun) {
        lock(&self.0).runs.remove(&(queue, run));
    }

    /// A run was handed back.
    pub(crate) fn handed_back(&self, queue: QueueKey, run: HeldRun) {
        let mut state = lock(&self.0);
        state.runs.remove(&(queue, run));
        state.ended[Outcome::HandedBack as usize] += 1;
    }

    /// The engine refused or lost something that is no run's end.
    pub(crate) fn engine_failed(&self) {
        lock(&self.0).engine_errors += 1;
    }

    /// What there is, what is held of it, and what keeps the worker from giving the rest to new jobs.
    pub(crate) fn room(&self, slots: &Slots, standing: Standing, obstacle: Option<String>) {
        let ((cpus, memory), (cpus_held, memory_held)) = (slots.offered(), slots.held());
        let offered = Capacity { cpus_milli: cpus.into(), memory_bytes: memory };
        let taken = Capacity { cpus_milli: cpus_held, memory_bytes: memory.map(|_| memory_held) };
        let gpus = slots.gpu_holders();
        let gpus = gpus.into_iter().map(|(name, run)| GpuView { name, job: run.map(|run| run.run.job.to_string()) });
        let gpus = gpus.collect();
        let mut state = lock(&self.0);
        (state.offered, state.taken, state.gpus) = (offered, taken, gpus);
        (state.standing, state.obstacle) = (standing, obstacle);
    }

    /// A queue is connected.
    pub(crate) fn connected(&self, queue: QueueKey, dialect: &str) {
        let at_ms = unix_now().0;
        self.with_queue(queue, |view| {
            view.connected_since_ms = Some(at_ms);
            view.connects += 1;
            dialect.clone_into(&mut view.dialect);
        });
    }

    /// A queue's line broke.
    pub(crate) fn lost(&self, queue: QueueKey) {
        self.with_queue(queue, |view| {
            view.connected_since_ms = None;
            view.losses += 1;
        });
    }

    fn with_queue(&self, queue: QueueKey, change: impl FnOnce(&mut QueueView)) {
        if let Some((_, view)) = lock(&self.0).queues.iter_mut().find(|(key, _)| *key == queue) {
            change(view);
        }
    }

    /// Writes what is here into `snapshot`.
    pub(super) fn copy_to(&self, snapshot: &mut Snapshot) {
        let now = Instant::now();
        let state = lock(&self.0);
        snapshot.standing = state.standing;
        snapshot.obstacle.clone_from(&state.obstacle);
        (snapshot.offered, snapshot.taken) = (state.offered, state.taken);
        snapshot.gpus.clone_from(&state.gpus);
        snapshot.queues = state.queues.iter().map(|(_, view)| view.clone()).collect();
        snapshot.results = state.results.iter().cloned().collect();
        snapshot.counts = Counts {
            ended: state.ended,
            engine_errors: state.engine_errors,
            start_steps: state.starts.cumulated(),
            starts: state.starts.count,
            start_sum_us: state.starts.sum_us,
            ..Counts::default()
        };
        let view = |((queue, run), known): (&(QueueKey, HeldRun), &Run)| RunView {
            job: run.job.to_string(),
            run: run.run,
            queue: queue.short(),
            phase: known.phase,
            phase_ms: millis(now, known.since),
            age_ms: millis(now, known.came),
            is_adopted: known.is_adopted,
            cpus_milli: known.share.cpus_milli,
            memory_bytes: known.share.memory_bytes,
            gpus: known.share.gpus.clone(),
            image: known.image.clone(),
            command: known.command.clone(),
        };
        snapshot.runs = state.runs.iter().map(view).collect();
        drop(state);
        snapshot.runs.sort_by_key(|run| std::cmp::Reverse(run.age_ms));
    }
}

fn millis(now: Instant, since: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX)
}

/// What a job runs, in short.
fn in_short(definition: &Definition) -> (String, String) {
    let image = match (&definition.build, &definition.image) {
        (Some(_), _) => "(built)",
        (None, Some(image)) => image,
        (None, None) => "",
    };
    // Long ones are cut before they are joined: a command may have megabytes.
    let line = |command: &CommandLine| match command {
        CommandLine::Text(text) => tidy(text, TEXT_CHARS_MAX),
        CommandLine::Argv(words) => {
            let words: Vec<String> = words.iter().take(TEXT_CHARS_MAX).map(|word| tidy(word, TEXT_CHARS_MAX)).collect();
            tidy(&words.join(" "), TEXT_CHARS_MAX)
        }
    };
    let parts = [&definition.entrypoint, &definition.command].into_iter().flatten().map(line);
    (tidy(image, TEXT_CHARS_MAX), tidy(&parts.collect::<Vec<_>>().join(" "), TEXT_CHARS_MAX))
}

/// A text in one line of at most so many characters, without what moves a terminal's cursor.
pub(crate) fn tidy(text: &str, chars_max: usize) -> String {
    let mut chars = text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut tidied: String = chars.by_ref().take(chars_max).collect();
    if chars.next().is_some() {
        tidied.pop();
        tidied.push('…');
    }
    tidied
}

/// As much of a queue's name as tells its owner which one it is.
fn shortened(name: &str) -> String {
    let chars = name.chars().count();
    if chars <= NAME_CHARS_PLAIN {
        return tidy(name, NAME_CHARS_PLAIN);
    }
    let shown: String = name.chars().take((chars / 3).clamp(2, NAME_CHARS_MAX)).collect();
    format!("{}…", tidy(&shown, NAME_CHARS_MAX))
}

#[cfg(test)]
mod tests;

//! What earlier processes of this worker left at the engine: runs to go on with, and remains to clear away.
//!
//! Only containers with this worker's own id, or of its own data directory, are looked at. Another worker with the same id (which
//! should not be) has another data directory; nobody else's containers are ever touched.

use std::path::Path;

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum as State};
use protocol::definition::{Definition, Needs};
use protocol::id::QueueName;
use protocol::native::HeldRun;
use protocol::raw::RawJson;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::clock;
use crate::config::Identity;
use crate::container::{LABEL_DATA, LABEL_GPUS, LABEL_ID, LABEL_QUEUE, LABEL_RUN, LABEL_WORKER};
use crate::context::Context;
use crate::error::WorkerError;

/// Where a run's directory says when its container was started.
const START_FILE: &str = "started.json";

/// A container that ran, or runs.
#[derive(Debug)]
pub(crate) struct Adopted {
    pub(crate) run: HeldRun,
    pub(crate) container: String,
    pub(crate) gpus: Vec<String>,
    /// As received; `None` when it is not there any more.
    pub(crate) definition: Option<RawJson>,
}

/// What is to be done with what was left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Runs to go on with: their containers run, or ended while nobody looked.
    pub(crate) adopted: Vec<Adopted>,
    /// Containers that are of no use.
    pub(crate) remains: Vec<Remains>,
}

/// A container to be cleared away.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) container: String,
    pub(crate) run: HeldRun,
    /// Until it is gone it may hold these: also when it was never started, for an earlier process may have asked for that.
    pub(crate) gpus: Vec<String>,
}

impl Adopted {
    /// What the run takes; one CPU when its definition is lost.
    pub(crate) fn needs(&self) -> Needs {
        let definition = self.definition.as_ref();
        definition
            .and_then(|text| Definition::parse(text.as_str().as_bytes()).ok())
            .map(|definition| definition.needs())
            .unwrap_or_default()
    }
}

/// Looks at what is there of a queue. `ended` are runs whose results are known already.
pub(crate) async fn look(context: &Context, ended: &[HeldRun]) -> Result<Left, WorkerError> {
    let found = context.engine.own(&context.worker, &context.queue, None).await;
    let found = found.map_err(|source| WorkerError::Engine { what: "list containers", source })?;
    let mut left = Left::default();
    for summary in found {
        if let Some(found) = Found::read(context, summary) {
            found.sort(context, ended, &mut left);
        }
    }
    Ok(left)
}

/// Looks for containers of this data directory that no queue's [`look`] finds: the worker had another id then, or worked for a
/// queue that it works for no more. Nobody can take their results, and nobody else would ever end them.
pub(crate) async fn strays(context: &Context, queues: &[QueueName]) -> Result<Vec<Remains>, WorkerError> {
    let found = context.engine.of_directory(&context.data).await;
    let found = found.map_err(|source| WorkerError::Engine { what: "list containers", source })?;
    let is_stray = |summary: &ContainerSummary| {
        let label = |name: &str| summary.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str);
        let is_served = label(LABEL_QUEUE).is_some_and(|queue| queues.iter().any(|served| served.as_str() == queue));
        label(LABEL_WORKER) != Some(context.worker.as_str()) || !is_served
    };
    let strays = found.into_iter().filter(is_stray).filter_map(|summary| Found::read(context, summary));
    Ok(strays
        .map(|stray| {
            let run = stray.run;
            warn!(job.id = %run.job, "ends the container of run {} of job {}: it is of an id or a queue that this worker has no more", run.run, run.job);
            Remains { container: stray.container, run, gpus: stray.gpus }
        })
        .collect())
}

/// One container, as its labels say.
struct Found {
    container: String,
    run: HeldRun,
    gpus: Vec<String>,
    is_unstarted: bool,
}

impl Found {
    /// `None`: it is left alone.
    fn read(context: &Context, summary: ContainerSummary) -> Option<Self> {
        let container = summary.id?;
        let labels = summary.labels.unwrap_or_default();
        if let Some(data) = labels.get(LABEL_DATA)
            && *data != context.data
            // A kept id is the data directory's own, wherever that was then.
            && context.config.id != Identity::Kept
        {
            warn!(
                container.id = container,
                "container {container} has this worker's id, but is of the data directory {data:?}: it is left alone; give each worker an id of its own"
            );
            return None;
        }
        let run = labels
            .get(LABEL_ID)
            .and_then(|job| job.parse().ok())
            .zip(labels.get(LABEL_RUN).and_then(|run| run.parse().ok()))
            .map(|(job, run)| HeldRun { job, run });
        let Some(run) = run else {
            warn!(container.id = container, "container {container} has this worker's id but no run: it is left alone");
            return None;
        };
        let gpus = labels.get(LABEL_GPUS).map(String::as_str).unwrap_or_default();
        let gpus = gpus.split(',').filter(|gpu| !gpu.is_empty()).map(|gpu| context.gpus.name_of(gpu)).collect();
        Some(Self { container, run, gpus, is_unstarted: matches!(summary.state, Some(State::CREATED)) })
    }

    fn sort(self, context: &Context, ended: &[HeldRun], left: &mut Left) {
        let Self { container, run, gpus, is_unstarted } = self;
        // A run has one container: of two, which an engine that failed may have made, the first in its list is it.
        let is_second = left.adopted.iter().any(|adopted| adopted.run == run);
        if is_unstarted || is_second || ended.contains(&run) {
            left.remains.push(Remains { container, run, gpus });
            return;
        }
        let kept = std::fs::read_to_string(context.files.dirs(run).definition);
        left.adopted.push(Adopted { run, container, gpus, definition: kept.ok().map(RawJson::new) });
    }
}

/// When a container was started, by a clock that nobody can set and that stands still while the machine sleeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Start {
    boot: String,
    awake_ms: u64,
}

impl Start {
    /// `None`: it says nothing, as the machine was started anew.
    fn ran_ms(&self, boot: Option<&str>, awake_ms: u64) -> Option<u64> {
        (boot == Some(self.boot.as_str())).then(|| awake_ms.saturating_sub(self.awake_ms))
    }
}

/// Writes down in the run's directory that its container was started just now. Fifty bytes into the page cache.
pub(crate) fn write_start(directory: &Path) {
    let Some(boot) = clock::boot() else { return };
    let start = Start { boot: boot.to_owned(), awake_ms: clock::awake_ms() };
    // Without it the engine's own time is taken.
    let _ = serde_json::to_vec(&start).map(|bytes| std::fs::write(directory.join(START_FILE), bytes));
}

/// For how long a container has run; `None` where that was not written down.
pub(crate) fn ran_ms(directory: &Path) -> Option<u64> {
    let start: Start = serde_json::from_slice(&std::fs::read(directory.join(START_FILE)).ok()?).ok()?;
    start.ran_ms(clock::boot(), clock::awake_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_container_ran_does_not_depend_on_the_wall_clock() {
        let start = Start { boot: "this".to_owned(), awake_ms: 10_000 };
        assert_eq!(start.ran_ms(Some("this"), 15_000), Some(5_000));
        assert_eq!(start.ran_ms(Some("another"), 15_000), None, "it counts from another moment");
        assert_eq!(start.ran_ms(None, 15_000), None);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(ran_ms(folder.path()), None);
        write_start(folder.path());
        assert!(clock::boot().is_none() || ran_ms(folder.path()).is_some_and(|ran| ran < 60_000));
        std::fs::write(folder.path().join(START_FILE), "{").unwrap();
        assert_eq!(ran_ms(folder.path()), None);
    }
}

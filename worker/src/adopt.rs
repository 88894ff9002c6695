//! What an earlier process of this worker left at the engine: runs to go on with, and remains to clear away.
//!
//! Only containers with this worker's own id and one of its queues are looked at.

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum as State};
use protocol::definition::{Definition, Needs};
use protocol::native::HeldRun;
use protocol::raw::RawJson;
use tracing::warn;

use crate::container::{LABEL_GPUS, LABEL_ID, LABEL_RUN};
use crate::context::Context;
use crate::error::WorkerError;

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
    /// The run, if it was started: until it is gone, it may hold [`Self::gpus`].
    pub(crate) ended: Option<HeldRun>,
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

/// Looks at what is there. `ended` are runs whose results are known already.
pub(crate) async fn look(context: &Context, ended: &[HeldRun]) -> Result<Left, WorkerError> {
    let found = context.engine.own(&context.worker, &context.queue, None).await;
    let found = found.map_err(|source| WorkerError::Engine { what: "list containers", source })?;
    let mut left = Left::default();
    for summary in found {
        sort(context, summary, ended, &mut left);
    }
    Ok(left)
}

fn sort(context: &Context, summary: ContainerSummary, ended: &[HeldRun], left: &mut Left) {
    let Some(container) = summary.id else { return };
    let labels = summary.labels.unwrap_or_default();
    let run = labels
        .get(LABEL_ID)
        .and_then(|job| job.parse().ok())
        .zip(labels.get(LABEL_RUN).and_then(|run| run.parse().ok()))
        .map(|(job, run)| HeldRun { job, run });
    let Some(run) = run else {
        warn!(container.id = container, "container {container} has this worker's id but no run: it is left alone");
        return;
    };
    let gpus = labels.get(LABEL_GPUS).map(String::as_str).unwrap_or_default();
    let gpus = gpus.split(',').filter(|gpu| !gpu.is_empty()).map(|gpu| context.gpus.name_of(gpu)).collect();
    let is_unstarted = matches!(summary.state, Some(State::CREATED));
    if is_unstarted || ended.contains(&run) {
        left.remains.push(Remains { container, ended: (!is_unstarted).then_some(run), gpus });
        return;
    }
    let kept = std::fs::read_to_string(context.files.dirs(run).definition);
    left.adopted.push(Adopted { run, container, gpus, definition: kept.ok().map(RawJson::new) });
}

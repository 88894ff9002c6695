//! The jobs of a queue as one peer has been told of them.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::Value;

/// What no peer may ever be shown.
const NEVER_SHOWN: [&str; 4] = ["Cancelled", "Deleted", "JobReplacedByClient", "WorkerLost"];

/// What one peer knows.
#[derive(Default)]
pub(super) struct View {
    pub(super) jobs: BTreeMap<String, Value>,
    /// The ids of the workers, for pages.
    pub(super) workers: Vec<String>,
    /// How many whole states came.
    pub(super) wholes: u64,
}

impl View {
    /// Takes in `JobStates`.
    pub(super) fn replace(&mut self, payload: &Value) -> anyhow::Result<()> {
        self.jobs.clear();
        self.wholes += 1;
        self.merge(payload, false)
    }

    /// Takes in `JobStateUpdates`.
    pub(super) fn update(&mut self, payload: &Value) -> anyhow::Result<()> {
        self.merge(payload, true)
    }

    fn merge(&mut self, payload: &Value, is_subset: bool) -> anyhow::Result<()> {
        ensure!(payload["isSubset"] == is_subset, "isSubset is {}", payload["isSubset"]);
        // The original's worker dies when this is missing.
        let jobs = payload["state"]["jobs"].as_object().context("state.jobs is no object")?;
        for (id, job) in jobs {
            let state = job["state"].as_str().context("a job without a state")?;
            ensure!(["Queued", "Running", "Finished"].contains(&state), "job {id} is shown as {state}");
            let reason = job["finishedReason"].as_str().unwrap_or_default();
            ensure!(!NEVER_SHOWN.contains(&reason), "job {id} is shown as {reason}");
            self.jobs.insert(id.clone(), job.clone());
        }
        Ok(())
    }

    /// `Queued`, `Running`, `Finished` or, of a job that is not shown, nothing.
    pub(super) fn state(&self, job: &str) -> Option<&str> {
        self.jobs.get(job)?["state"].as_str()
    }

    /// Who has a job, as it is shown.
    pub(super) fn owner(&self, job: &str) -> &str {
        self.jobs.get(job).and_then(|job| job["worker"].as_str()).unwrap_or_default()
    }

    /// How a job ended.
    pub(super) fn reason(&self, job: &str) -> Option<&str> {
        self.jobs.get(job)?["finishedReason"].as_str()
    }

    /// All that two peers must agree on: results travel with the news or not, and to workers owners of another kind are
    /// shown with a space in front.
    pub(super) fn essence(&self) -> BTreeMap<String, Value> {
        essence(self.jobs.iter())
    }
}

/// The same of any jobs, such as those of a list.
pub(super) fn essence<'a>(jobs: impl Iterator<Item = (&'a String, &'a Value)>) -> BTreeMap<String, Value> {
    let without = |job: &Value| {
        let mut job = job.clone();
        if let Some(fields) = job.as_object_mut() {
            fields.remove("finished");
        }
        if let Some(owner) = job["worker"].as_str().map(|owner| owner.trim_start().to_owned()) {
            job["worker"] = owner.into();
        }
        job
    };
    jobs.map(|(id, job)| (id.clone(), without(job))).collect()
}

/// The first thing in which two of them differ.
pub(super) fn difference(ours: &BTreeMap<String, Value>, theirs: &BTreeMap<String, Value>) -> Option<String> {
    let show = |job: Option<&Value>| job.map_or("absent".to_owned(), Value::to_string);
    let ids = ours.keys().chain(theirs.keys());
    let mut differing = ids.filter(|id| ours.get(*id) != theirs.get(*id));
    let id = differing.next()?;
    Some(format!("job {id:.8}: {} and {}", show(ours.get(id)), show(theirs.get(id))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn states(jobs: Value, is_subset: bool) -> Value {
        json!({ "state": { "jobs": jobs }, "isSubset": is_subset })
    }

    #[test]
    fn a_whole_state_replaces_and_news_are_merged() {
        let mut view = View::default();
        view.replace(&states(json!({ "a": { "state": "Queued", "worker": "" } }), false)).unwrap();
        view.update(&states(json!({ "b": { "state": "Running", "worker": " w" } }), true)).unwrap();
        assert_eq!((view.state("a"), view.owner("b")), (Some("Queued"), " w"));
        view.replace(&states(json!({}), false)).unwrap();
        assert_eq!(view.state("a"), None);
    }

    #[test]
    fn what_would_hurt_a_peer_is_noticed() {
        let mut view = View::default();
        assert!(view.update(&json!({ "isSubset": true, "state": {} })).is_err(), "a worker dies of this");
        assert!(view.replace(&states(json!({}), true)).is_err());
        let cancelled = json!({ "a": { "state": "Finished", "finishedReason": "Cancelled" } });
        assert!(view.update(&states(cancelled, true)).is_err());
    }

    #[test]
    fn views_differ_when_anything_but_the_result_and_the_space_differs() {
        let (mut page, mut worker) = (View::default(), View::default());
        let shown = json!({ "a": { "state": "Running", "worker": "w", "time": 1, "finished": {} } });
        page.replace(&states(shown, false)).unwrap();
        worker.replace(&states(json!({ "a": { "state": "Running", "worker": " w", "time": 1 } }), false)).unwrap();
        assert_eq!(difference(&page.essence(), &worker.essence()), None);
        worker.update(&states(json!({ "a": { "state": "Running", "worker": "w", "time": 2 } }), true)).unwrap();
        assert!(difference(&page.essence(), &worker.essence()).unwrap().contains("job a"));
    }
}

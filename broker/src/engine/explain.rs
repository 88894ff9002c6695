//! Why a job stands where it stands, also when it has left the queue.

use std::collections::BTreeSet;

use protocol::explain::{Explanation, Fit, Standing};
use protocol::id::{JobId, WorkerId};
use protocol::original::fitness::{self, Unfit};

use super::QueueHandle;
use crate::clock;
use crate::journal::Archived;
use crate::refusal::Refusal;
use crate::rules::explain::{ended, unknown};

impl QueueHandle {
    /// Why a job stands where it stands; [`Standing::Unknown`] when the queue neither has nor keeps it.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the queue cannot be used.
    pub async fn explain(&self, job: JobId) -> Result<Explanation, Refusal> {
        let read = self.read(move |core| {
            let by_themselves = core.presence().workers().filter(|(_, worker)| worker.takes_by_itself);
            let by_themselves: BTreeSet<_> = by_themselves.map(|(id, _)| id.clone()).collect();
            (core.explain(job, clock::now()), by_themselves, core.state().job(job).map(|job| job.body))
        });
        let (mut explanation, by_themselves, body) = read.await?;
        if explanation.standing == Standing::Waiting
            && !by_themselves.is_empty()
            && let Some(body) = body
            && let Some(text) = self.body(body).await?
            && let Err(unfit) = fitness::check(&text)
        {
            not_for(&mut explanation, &by_themselves, &unfit);
        }
        if explanation.standing != Standing::Unknown {
            return Ok(explanation);
        }
        Ok(match self.archived(job).await? {
            Some(kept) => of_kept(job, kept),
            None => explanation,
        })
    }
}

/// Corrects an explanation: workers of the original's kind are not given the job.
fn not_for(explanation: &mut Explanation, by_themselves: &BTreeSet<WorkerId>, unfit: &Unfit) {
    for worker in explanation.workers.iter_mut().filter(|worker| by_themselves.contains(&worker.id)) {
        (worker.fit, worker.lacks) = (Fit::Never, Vec::new());
    }
    explanation.workers.sort_by(|a, b| a.fit.cmp(&b.fit).then_with(|| a.id.cmp(&b.id)));
    if explanation.workers.iter().any(|worker| !by_themselves.contains(&worker.id)) {
        explanation.reason.push_str(&format!(" Workers of the original's kind are not given it: {unfit}."));
    } else {
        explanation.reason = format!("all workers of this queue are of the original's kind and not given it: {unfit}.");
        explanation.estimate = None;
    }
}

/// What can be said of a job that left the queue.
fn of_kept(job: JobId, kept: Archived) -> Explanation {
    let (standing, reason) = ended(&kept.status, kept.lost);
    let reason = format!("{reason}, and has left the queue since");
    Explanation {
        standing,
        reason,
        since_ms: Some(kept.changed_at_ms),
        run: kept.run,
        worker: kept.worker,
        lost: kept.lost,
        ..unknown(job)
    }
}

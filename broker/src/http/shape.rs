//! Jobs as the original's clients know them.

use protocol::id::JobId;
pub(super) use protocol::original::JobEntry;
use protocol::original::job::is_shown;
pub(super) use protocol::original::job::{Cpus, finished_reason, state};
use protocol::queue::Job;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// The sendable ones of a queue's jobs, by id, each written by `shape`.
pub(super) struct Sendable<'a, F>(pub(super) &'a [(JobId, Job)], pub(super) F);

impl<'a, F, T> Serialize for Sendable<'a, F>
where
    F: Fn(&'a Job) -> T,
    T: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (id, job) in self.0.iter().filter(|(_, job)| is_shown(&job.status)) {
            map.serialize_entry(id, &(self.1)(job))?;
        }
        map.end()
    }
}

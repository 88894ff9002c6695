//! What the original's workers are sent, read: the other end of [`super::to_peer`].

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::envelope::Envelope;
use super::from_peer::{ReadError, whole};
use super::to_peer::PONG;
use crate::id::{JobId, UnixMillis};

/// One frame.
#[derive(Debug)]
pub enum FromServer<'a> {
    /// The answer to a heartbeat.
    Pong {
        /// Which worker the server takes this socket for.
        worker: &'a str,
    },
    /// Jobs and where they stand.
    Jobs(Jobs),
    /// Definitions that somebody asked for, verbatim. Nobody has checked them.
    Definitions(Vec<(JobId, &'a RawValue)>),
    /// Asks what the worker does.
    StatusRequest,
    /// A job was deleted: all that is here of it has to go, at once.
    ClearJobCache {
        /// The job.
        job: JobId,
    },
    /// Something that is not for workers, or that this version does not know.
    Other,
}

/// Jobs and where they stand.
#[derive(Debug, Default)]
pub struct Jobs {
    /// Whether these are all: what is absent is gone.
    pub is_full: bool,
    /// What could be read of them.
    pub jobs: Vec<(JobId, JobSeen)>,
    /// How many could not.
    pub unread: usize,
}

/// A job, as workers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSeen {
    /// Where it stands.
    pub stand: Stand,
    /// When it was queued.
    pub queued_at: UnixMillis,
    /// Who wants it.
    pub namespaces: Vec<String>,
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It waits.
    Queued,
    /// It runs.
    Running {
        /// Where.
        worker: String,
        /// Since when, by that worker's clock.
        since: UnixMillis,
    },
    /// It ended, with a result.
    Finished,
}

#[derive(Deserialize)]
struct States<'a> {
    #[serde(borrow)]
    state: State<'a>,
}

#[derive(Deserialize)]
struct State<'a> {
    #[serde(borrow)]
    jobs: HashMap<Cow<'a, str>, &'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    #[serde(borrow)]
    state: Cow<'a, str>,
    #[serde(default)]
    queued_time: Option<f64>,
    #[serde(default)]
    time: Option<f64>,
    #[serde(default)]
    worker: Option<String>,
    #[serde(default)]
    namespaces: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Definitions<'a> {
    #[serde(borrow)]
    definitions: HashMap<Cow<'a, str>, &'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Clear {
    job_id: JobId,
}

impl<'a> FromServer<'a> {
    /// Reads one frame. A job that cannot be read is left out of its message and counted.
    ///
    /// # Errors
    ///
    /// [`ReadError`] when the frame says nothing.
    pub fn read(frame: &'a str) -> Result<Self, ReadError> {
        if let Some(worker) = frame.strip_prefix(PONG) {
            return Ok(Self::Pong { worker: worker.trim() });
        }
        if !frame.starts_with('{') {
            return Err(ReadError::NotAMessage);
        }
        let Envelope { kind, payload } = serde_json::from_str(frame)?;
        let payload = payload.map_or("null", RawValue::get);
        match kind.as_ref() {
            "JobStates" => jobs(payload, true),
            "JobStateUpdates" => jobs(payload, false),
            "BroadcastJobDefinitions" => {
                let Definitions { definitions } = serde_json::from_str(payload)?;
                let known = definitions.into_iter().filter_map(|(job, text)| Some((job.parse().ok()?, text)));
                Ok(Self::Definitions(known.collect()))
            }
            "StatusRequest" => Ok(Self::StatusRequest),
            "ClearJobCache" => {
                let Clear { job_id } = serde_json::from_str(payload)?;
                Ok(Self::ClearJobCache { job: job_id })
            }
            _ => Ok(Self::Other),
        }
    }
}

fn jobs(payload: &str, is_full: bool) -> Result<FromServer<'_>, ReadError> {
    let States { state: State { jobs: entries } } = serde_json::from_str(payload)?;
    let mut jobs = Jobs { is_full, jobs: Vec::with_capacity(entries.len()), unread: 0 };
    for (job, entry) in entries {
        let read = job.parse().ok().zip(serde_json::from_str(entry.get()).ok().and_then(seen));
        match read {
            Some(read) => jobs.jobs.push(read),
            None => jobs.unread += 1,
        }
    }
    Ok(FromServer::Jobs(jobs))
}

fn seen(entry: Entry<'_>) -> Option<JobSeen> {
    let Entry { state, queued_time, time, worker, namespaces } = entry;
    let at = |time| UnixMillis(whole(time).unwrap_or(0));
    let stand = match state.as_ref() {
        "Queued" => Stand::Queued,
        "Running" => Stand::Running { worker: worker.unwrap_or_default(), since: at(time) },
        // A removed one is hidden by the server; should it be told all the same, nobody is to run it.
        "Finished" | "Removed" => Stand::Finished,
        _ => return None,
    };
    Some(JobSeen { stand, queued_at: at(queued_time), namespaces: namespaces.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::original::to_peer;

    const ID: &str = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1";

    fn read(frame: &str) -> FromServer<'_> {
        FromServer::read(frame).unwrap_or_else(|error| panic!("{frame}: {error}"))
    }

    #[test]
    fn states_are_read_and_what_cannot_be_is_left_out() {
        let frame = format!(
            r#"{{"type":"JobStates","payload":{{"isSubset":false,"state":{{"jobs":{{
                "{ID}":{{"state":"Running","queuedTime":7.0,"time":9,"worker":"w1","namespaces":["n"],"requirements":{{"gpus":1}}}},
                "../x":{{"state":"Queued","queuedTime":1,"time":1,"worker":"","namespaces":["_"]}},
                "{}":{{"state":3}}}}}}}}}}"#,
            ID.replace('a', "b")
        );
        let FromServer::Jobs(jobs) = read(&frame) else { panic!() };
        assert!(jobs.is_full);
        assert_eq!(jobs.unread, 2);
        let stand = Stand::Running { worker: "w1".to_owned(), since: UnixMillis(9) };
        let seen = JobSeen { stand, queued_at: UnixMillis(7), namespaces: vec!["n".to_owned()] };
        assert_eq!(jobs.jobs, [(ID.parse().unwrap(), seen)]);
        let FromServer::Jobs(none) = read(to_peer::HEARTBEAT) else { panic!() };
        assert!(!none.is_full && none.jobs.is_empty());
    }

    #[test]
    fn what_the_other_end_writes_is_read() {
        let job: JobId = ID.parse().unwrap();
        let worker = "w1".parse().unwrap();
        assert!(matches!(read(&to_peer::worker_pong(Some(&worker))), FromServer::Pong { worker: "w1" }));
        assert!(matches!(read(&to_peer::worker_pong(None)), FromServer::Pong { worker: "unknown" }));
        assert!(matches!(read(to_peer::STATUS_REQUEST), FromServer::StatusRequest));
        let clear = to_peer::clear_job_cache(job, "_");
        assert!(matches!(read(&clear), FromServer::ClearJobCache { job: read } if read == job));
        let text = RawValue::from_string(r#"{"image": 1.0}"#.to_owned()).unwrap();
        let frame = to_peer::definitions(std::iter::once((job, &*text)));
        let FromServer::Definitions(read) = read(&frame) else { panic!() };
        assert_eq!((read[0].0, read[0].1.get()), (job, text.get()));
        assert!(matches!(FromServer::read(&to_peer::workers(&[])), Ok(FromServer::Other)));
    }

    #[test]
    fn rubbish_is_an_error_and_no_panic() {
        for frame in
            ["", "hello", "{", "{}", "[]", r#"{"type":"JobStates"}"#, r#"{"type":"JobStates","payload":{"state":{}}}"#]
        {
            assert!(FromServer::read(frame).is_err(), "{frame}");
        }
    }
}

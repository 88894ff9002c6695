//! What a call says.

use protocol::id::{JobId, Namespace, QueueName, RunNumber, UnixMillis, WorkerId};
use protocol::raw::RawJson;
use serde::Serialize;
use serde_json::value::RawValue;

use super::call::Kind;
use super::fate::{Ending, Reason};
use super::stored::Stored;

/// The first four are the original's, to the letter; the others come with `finished`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    job_id: JobId,
    queue: &'a QueueName,
    namespace: &'a Namespace,
    config: &'a RawValue,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    finished: Option<Finished<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Finished<'a> {
    reason: Reason,
    time: UnixMillis,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<RunNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a WorkerId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced_by: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_url: Option<String>,
}

/// The body of a call; `None` when it tells of an end that is not known.
pub(super) fn body(
    stored: &Stored,
    kind: Kind,
    ending: Option<&Ending>,
    public_url: Option<&str>,
) -> Option<serde_json::Result<Vec<u8>>> {
    let payload = stored.call(kind)?.payload.as_ref().map_or("{}", RawJson::as_str);
    let finished = match kind {
        Kind::Queued => None,
        Kind::Finished => Some(finished(stored, ending?, public_url)),
    };
    let Stored { job, queue, namespace, .. } = stored;
    let body = serde_json::from_str(payload)
        .and_then(|config| serde_json::to_vec(&Body { job_id: *job, queue, namespace, config, finished }));
    Some(body)
}

fn finished<'a>(stored: &Stored, ending: &'a Ending, public_url: Option<&str>) -> Finished<'a> {
    let has_result = matches!(ending.reason, Reason::Success | Reason::Error | Reason::TimedOut);
    let queue = percent_encoding::utf8_percent_encode(stored.queue.as_str(), percent_encoding::NON_ALPHANUMERIC);
    let result_url = public_url.filter(|_| has_result);
    Finished {
        reason: ending.reason,
        time: ending.at_ms,
        exit_code: ending.exit_code,
        run: ending.run,
        worker: ending.worker.as_ref(),
        message: ending.message.as_deref(),
        replaced_by: ending.replaced_by,
        result_url: result_url.map(|url| format!("{url}/q/{queue}/j/{}/result.json", stored.job)),
    }
}

#[cfg(test)]
mod tests {
    use protocol::id::JobId;

    use super::super::stored::StoredCall;
    use super::*;

    fn stored(payload: Option<&str>) -> Stored {
        let call = StoredCall {
            url: "https://example.org/".to_owned(),
            payload: payload.map(RawJson::new),
            tries: 0,
            next_at_ms: None,
            dead_at_ms: None,
            error: None,
        };
        let (queue, job) = ("my queue".parse().unwrap(), JobId::from_bytes([0xa1; 32]));
        let namespace = "alice/doc1".parse().unwrap();
        Stored::new(queue, job, namespace, 1, UnixMillis(2), Some(call.clone()), Some(call))
    }

    fn text(stored: &Stored, kind: Kind, ending: Option<&Ending>, public_url: Option<&str>) -> String {
        String::from_utf8(body(stored, kind, ending, public_url).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn what_is_told_of_a_queued_job_is_the_originals_and_nothing_else() {
        let id = "a1".repeat(32);
        assert_eq!(
            text(&stored(Some(r#"{"z":1,"a":1e400,"s":"\ud800"}"#)), Kind::Queued, None, Some("https://g")),
            format!(
                r#"{{"jobId":"{id}","queue":"my queue","namespace":"alice/doc1","config":{{"z":1,"a":1e400,"s":"\ud800"}}}}"#
            )
        );
        assert_eq!(
            text(&stored(None), Kind::Queued, None, None),
            format!(r#"{{"jobId":"{id}","queue":"my queue","namespace":"alice/doc1","config":{{}}}}"#)
        );
    }

    #[test]
    fn what_is_told_of_a_finished_job_has_its_end_too() {
        let ending = Ending {
            reason: Reason::Success,
            at_ms: UnixMillis(9),
            run: Some(2),
            worker: Some("w".parse().unwrap()),
            exit_code: Some(0),
            message: None,
            replaced_by: None,
        };
        let told = text(&stored(None), Kind::Finished, Some(&ending), Some("https://grid.example"));
        let id = "a1".repeat(32);
        assert_eq!(
            told,
            format!(
                "{{\"jobId\":\"{id}\",\"queue\":\"my queue\",\"namespace\":\"alice/doc1\",\"config\":{{}},\"reason\":\"Success\",\
                 \"time\":9,\"exitCode\":0,\"run\":2,\"worker\":\"w\",\"resultUrl\":\"https://grid.example/q/my%20queue/j/{id}/result.json\"}}"
            )
        );
        assert!(body(&stored(None), Kind::Finished, None, None).is_none(), "an end that is not known is not told");
    }
}

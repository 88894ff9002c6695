//! A queue's jobs as a table for people, or as JSON lines for programs.

use comfy_table::{ContentArrangement, Table, presets};
use protocol::json::{self, Value};

use crate::progress::one_line;

/// A time as people read it: UTC, to the second.
pub(crate) fn utc(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| "-".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// A table without rules: ids are to be copied from it.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}

/// The jobs, oldest first.
pub(crate) fn as_table(jobs: &[(String, Value)]) -> String {
    let mut jobs: Vec<_> = jobs.iter().map(|(id, job)| (queued_ms(job), id, job)).collect();
    jobs.sort_by_key(|(queued, id, _)| (*queued, *id));
    let mut table = table(&["JOB", "STATE", "QUEUED (UTC)", "WORKER", "NAMESPACES"]);
    for (queued, id, job) in jobs {
        let text = |field| job.get(field).and_then(Value::as_str).unwrap_or_default();
        let state = match (text("state"), text("finishedReason")) {
            ("Finished", reason) if !reason.is_empty() => reason.to_owned(),
            (state, _) => state.to_owned(),
        };
        let namespaces = job.get("namespaces").and_then(Value::as_array).unwrap_or_default();
        let namespaces: Vec<_> = namespaces.iter().filter_map(Value::as_str).map(one_line).collect();
        let (worker, namespaces) = (one_line(text("worker")).into_owned(), namespaces.join(" "));
        table.add_row([one_line(id).into_owned(), one_line(&state).into_owned(), utc(queued), worker, namespaces]);
    }
    table.trim_fmt()
}

/// The jobs, one JSON object a line.
pub(crate) fn as_lines(jobs: &[(String, Value)]) -> Vec<String> {
    let line = |(id, job): &(String, Value)| {
        json::to_json(&Value::object([("id", Value::from(id.as_str())), ("job", job.clone())]))
    };
    jobs.iter().map(line).collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate, and it is only shown")]
fn queued_ms(job: &Value) -> u64 {
    job.get("queuedTime").and_then(Value::as_f64).unwrap_or(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs() -> Vec<(String, Value)> {
        let job = |text: &str| json::parse(text.as_bytes()).unwrap();
        vec![
            (
                "b".into(),
                job(r#"{"queuedTime":1793793601000,"state":"Finished","finishedReason":"Error","worker":"w\u001b"}"#),
            ),
            ("a".into(), job(r#"{"queuedTime":1793793600000,"state":"Queued","worker":"","namespaces":["_","x"]}"#)),
        ]
    }

    #[test]
    fn the_oldest_is_first_and_an_end_is_shown_by_its_reason() {
        let table = as_table(&jobs());
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["a", "Queued", "2026-11-04", "12:00:00", "_", "x"]);
        assert_eq!(rows[2], ["b", "Error", "2026-11-04", "12:00:01", "w\u{fffd}"]);
    }

    #[test]
    fn a_program_gets_one_object_a_line() {
        assert!(as_lines(&jobs())[1].starts_with(r#"{"id":"a","job":{"queuedTime":1793793600000,"#));
    }
}

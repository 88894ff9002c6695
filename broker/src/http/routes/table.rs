//! The routes: every address, what serves it, and what is said of it. The router, `/openapi.json` and `/llms.txt` are made of
//! this one table.
//!
//! The examples are true: a test sends each of them to a broker that holds [`EXAMPLE_JOB`] and compares the answers.

use axum::routing::{get, post, put};

use super::route::Content::{Json, JsonLines, Nothing, Of};
use super::route::{Route, Tag, Verb};
use crate::http::{
    blobs, bulk, cancel, documents, explain, files, history, jobs, logs, metrics, openapi, page, status, stream,
    submit, transfer, webhooks,
};

/// The job of the examples: [`EXAMPLE_SUBMISSION`]'s.
pub(in crate::http) const EXAMPLE_JOB: &str = "ce1f6d7880fa8cba71a6c21a4e21245ef29a4e3f168b16e9b53f1744f5162926";

macro_rules! definition {
    () => {
        r#"{"image":"alpine:3.20","command":"sh -c 'cat /inputs/hello.txt > /outputs/o.txt'","inputs":{"hello.txt":{"type":"utf8","value":"hello\n"}}}"#
    };
}
macro_rules! submission {
    () => {
        concat!(r#"{"definition":"#, definition!(), r#","control":{"namespace":"alice/doc1"}}"#)
    };
}
macro_rules! entry {
    ($more:expr) => {
        concat!(
            r#"{"queuedTime":1730000000000,"state":"Finished","time":1730000004200,"worker":"worker-1","namespaces":["alice/doc1"],"finishedReason":"Success""#,
            $more,
            "}"
        )
    };
}
macro_rules! result {
    () => {
        entry!(
            r#","finished":{"type":"Finished","reason":"Success","worker":"worker-1","time":9,"result":{"StatusCode":0,"duration":184,"isTimedOut":false,"logs":[["hello\n",5]],"outputs":{"o.txt":{"type":"utf8","value":"hello\n"}}}}"#
        )
    };
}

const TEXT: &str = "text/plain;charset=UTF-8";
const HTML: &str = "text/html; charset=UTF-8";
const BYTES: &str = "application/octet-stream";

const DEFINITION: &str = concat!(r#"{"data":"#, definition!(), "}");
const RESULT: &str = concat!(r#"{"data":"#, result!(), "}");
const SINGLE: &str = concat!(
    r#"{"data":{"definition":"#,
    definition!(),
    r#","results":"#,
    result!(),
    r#","status":{"state":"Finished","finishedReason":"Success","run":1,"exitCode":0}}}"#
);
const LIST: &str =
    concat!(r#"{"data":{"ce1f6d7880fa8cba71a6c21a4e21245ef29a4e3f168b16e9b53f1744f5162926":"#, entry!(""), "}}");
const SUBMITTED: &str =
    r#"{"success":true,"jobId":"ce1f6d7880fa8cba71a6c21a4e21245ef29a4e3f168b16e9b53f1744f5162926"}"#;
const CANCELLED: &str = r#"{"success":true,"jobId":"ce1f6d7880fa8cba71a6c21a4e21245ef29a4e3f168b16e9b53f1744f5162926","namespace":"alice/doc1"}"#;
const QUEUE_LENGTH: &str =
    "\n# HELP queue_length The number of outstanding jobs in the queue\n# TYPE queue_length gauge\nqueue_length 0\n";

/// All of them.
pub(super) fn routes() -> Vec<Route> {
    let mut routes = queues();
    for route in of_a_job() {
        routes.push(route.at(&format!("/q/{{queue}}/j/{{job}}{}", route.path)));
        let mut anywhere = route.at(&format!("/j/{{job}}{}", route.path));
        anywhere.summary.push_str(" Whatever its queue: there is an answer while all queues that keep the job agree.");
        routes.push(anywhere);
    }
    routes.extend(jobs_in_queues());
    routes.extend(jobs_anywhere());
    routes.extend(blob_routes());
    routes.extend(broker_routes());
    routes
}

fn queues() -> Vec<Route> {
    let submit = || {
        Route::get("/q/{queue}", || post(submit::submit), Tag::Jobs, "Submits a job; answered when it is on disk. Submitting twice is the same as once; a job that has ended is answered with the result that is kept, unless `retry` is asked for.", Json("Submitted"), (200, Some(SUBMITTED)))
            .taking(Verb::Post, Json("Submission"), Some(submission!()))
            .with("retry", "boolean", "`1`: a job that has ended without success runs again.")
    };
    let list = || {
        Route::get(
            "/q/{queue}",
            || get(jobs::list),
            Tag::Queues,
            "Lists the jobs of a queue: those that wait, run, or ended with a result lately.",
            Json("JobList"),
            (200, Some(LIST)),
        )
    };
    let metrics = || {
        Route::get(
            "/q/{queue}/metrics",
            || get(metrics::of_queue),
            Tag::Queues,
            "The queue's numbers for Prometheus and scalers.",
            Of("text/plain"),
            (200, Some(QUEUE_LENGTH)),
        )
    };
    let status = || {
        Route::get(
            "/q/{queue}/status",
            || get(status::status),
            Tag::Queues,
            "Who is connected to a queue and what they do.",
            Json("Status"),
            (
                200,
                Some(
                    r#"{"jobs":{"ce1f6d7880fa8cba71a6c21a4e21245ef29a4e3f168b16e9b53f1744f5162926":{"state":"Finished","finishedReason":"Success"}},"otherServers":{},"localWorkers":{"worker-1":{"time":1730000004200,"id":"worker-1","version":"0.1.0","cpus":1,"gpus":0,"queue":{}}},"clientCount":0,"queueInfo":{"address":"my-queue","serverId":"gridsocket","broadcastChannel":"in-isolate","jobCount":1,"localWorkerCount":1,"otherWorkerCount":0,"clientCount":0,"jobStates":[{"id":"ce1f6d","state":"Finished","worker":"none"}]}}"#,
                ),
            ),
        )
    };
    vec![
        submit(),
        submit().at("/q/{queue}/j"),
        list(),
        list().at("/q/{queue}/j"),
        Route::get("/q/{queue}/bulk", || post(bulk::bulk), Tag::Jobs, "Submits many jobs: a submission a line in, an answer a line out, each as soon as its job is on disk. A submission with `array` is one job for each number.", JsonLines("BulkAnswer"), (200, Some(concat!(
            r#"{"line":1,"success":true,"jobId":"ce1f6d7880fa8cba71a6c21a4e21245ef29a4e3f168b16e9b53f1744f5162926","seq":4}"#, "\n",
            r#"{"lines":1,"queued":1,"refused":0,"head":{"seq":4,"hash":"0000000000000000000000000000000000000000000000000000000000000000"}}"#, "\n",
        ))))
        .taking(Verb::Post, JsonLines("Submission"), Some(submission!()))
        .with("retry", "boolean", "`1`: those that have ended without success run again, as with `control.retry` of each."),
        Route::get(
            "/q/{queue}/webhooks.json",
            || get(webhooks::list),
            Tag::Queues,
            "What became of the queue's webhooks: how many calls wait for their jobs, which are to be tried (again), and which were given up. Of each the first hundred.",
            Json("Webhooks"),
            (200, Some(r#"{"data":{"waiting":0,"pending":[],"dead":[]}}"#)),
        ),
        Route::get(
            "/q/{queue}/webhooks/retry",
            || post(webhooks::retry),
            Tag::Queues,
            "Tries calls that were given up again: all of the queue's, or one.",
            Json("Retried"),
            (200, Some(r#"{"success":true,"retried":0}"#)),
        )
        .taking(Verb::Post, Nothing, None)
        .with("id", "string", "Which one: its `id` in webhooks.json."),
        status(),
        status().at("/{queue}/status").deprecated(),
        metrics(),
        metrics().at("/{queue}/metrics").deprecated(),
    ]
}

/// What a job has in its queue and without one.
fn of_a_job() -> Vec<Route> {
    let result = |path| {
        Route::get(
            path,
            || get(jobs::result),
            Tag::Results,
            "How a job ended; null before that, and when it ended without a result.",
            Json("ResultOrNull"),
            (200, Some(RESULT)),
        )
    };
    let since = "The first line to answer, counted from 0; `nextCursor` of the answer before.";
    let logs = |path, serve, summary, answer| {
        Route::get(path, serve, Tag::Logs, summary, Json("Log"), (200, Some(answer)))
            .with_example("since", "number", since, "0")
    };
    let file = |path, serve, summary, status, answer| {
        Route::get(path, serve, Tag::Results, summary, Of(BYTES), (status, answer))
    };
    vec![
        Route::get(
            "/definition.json",
            || get(jobs::definition),
            Tag::Jobs,
            "A job's definition, as it was sent; null when there is no such job.",
            Json("DefinitionOrNull"),
            (200, Some(DEFINITION)),
        ),
        result("/result.json"),
        result("/results.json"),
        file("/inputs/{*name}", || get(files::input), "The bytes of one of a job's inputs.", 200, Some("hello\n")),
        file("/inputs/", || get(files::missing_name), "Says that a name is missing.", 400, Some("Missing filename")),
        file("/outputs/{*name}", || get(files::output), "The bytes of one of a job's outputs.", 200, Some("hello\n")),
        file("/outputs/", || get(files::missing_name), "Says that a name is missing.", 400, Some("Missing filename")),
        logs(
            "/build-logs.json",
            || get(logs::build),
            "What was printed while a job's image was pulled or built.",
            r#"{"data":[],"sliceStart":0,"nextCursor":0,"isFinal":true}"#,
        ),
        logs(
            "/run-logs.json",
            || get(logs::run),
            "What a job printed.",
            r#"{"data":[["hello\n",5]],"sliceStart":0,"nextCursor":1,"isFinal":true}"#,
        ),
    ]
}

fn jobs_in_queues() -> Vec<Route> {
    let cancel = |path| {
        Route::get(path, || post(cancel::cancel), Tag::Jobs, "Withdraws a namespace's wish for a job; a job that nobody wants any more is stopped. A job that has ended is left as it is.", Json("CancelAnswer"), (200, Some(CANCELLED)))
            .taking(Verb::Post, Nothing, None)
            .with("message", "string", "Why, for whoever asks later.")
    };
    vec![
        Route::get("/q/{queue}/j/{job}", || get(jobs::single), Tag::Jobs, "A job: its definition, where it stands, and its result when it has one.", Json("SingleJob"), (200, Some(SINGLE))),
        Route::get("/q/{queue}/j/{job}/namespaces.json", || get(jobs::namespaces), Tag::Jobs, "Who wants a job.", Json("Namespaces"), (200, Some(r#"{"data":["alice/doc1"]}"#))),
        Route::get("/q/{queue}/j/{job}/history.json", || get(history::history), Tag::Jobs, "What happened to a job: its records in the queue's journal, the oldest first, of its newest life in the queue; `before` of the answer leads on to what was before.", Json("History"), (200, Some(concat!(
            r#"{"data":["#,
            r#"{"v":1,"seq":1,"at_ms":1730000000000,"event":{"JobQueued":{"job":"ce1f6d7880fa8cba71a6c21a4e21245ef29a4e3f168b16e9b53f1744f5162926","body":"0000000000000000000000000000000000000000000000000000000000000000","namespace":"alice/doc1","via":"Http"}},"hash":"0000000000000000000000000000000000000000000000000000000000000000"},"#,
            r#"{"v":1,"seq":3,"at_ms":1730000000400,"event":{"RunClaimed":{"job":"ce1f6d7880fa8cba71a6c21a4e21245ef29a4e3f168b16e9b53f1744f5162926","run":1,"worker":"worker-1"}},"hash":"0000000000000000000000000000000000000000000000000000000000000000"},"#,
            r#"{"v":1,"seq":4,"at_ms":1730000004200,"event":{"RunFinished":{"job":"ce1f6d7880fa8cba71a6c21a4e21245ef29a4e3f168b16e9b53f1744f5162926","run":1,"outcome":"Success","result":"0000000000000000000000000000000000000000000000000000000000000000","exit_code":0}},"hash":"0000000000000000000000000000000000000000000000000000000000000000"}"#,
            r#"],"before":null}"#,
        ))))
        .with("before", "integer", "Only what was before this position; `before` of the answer before."),
        Route::get("/q/{queue}/j/{job}/explain", || get(explain::explain), Tag::Jobs, "Why a job stands where it stands.", Json("Explanation"), (200, Some(
            r#"{"job":"ce1f6d7880fa8cba71a6c21a4e21245ef29a4e3f168b16e9b53f1744f5162926","standing":"finished","reason":"it ended with exit code 0","since_ms":1730000004200,"run":1,"worker":"worker-1","lost":0,"workers_total":0}"#,
        ))),
        Route::get("/q/{queue}/j/{job}/stream", || get(stream::stream), Tag::Logs, "A job's logs and states as server-sent events, until it is over. An event's id, sent back as `Last-Event-ID`, goes on from there.", Of("text/event-stream"), (200, Some(
            "event: run-log\ndata: {\"lines\":[[\"hello\\n\",5]],\"cursor\":1}\nid: 0-1\n\nevent: state\ndata: {\"state\":\"Finished\",\"reason\":\"Success\"}\nid: 0-1\n\nevent: final\ndata: {\"state\":\"Finished\",\"reason\":\"Success\"}\nid: 0-1\n\n",
        ))),
        cancel("/q/{queue}/j/{job}/cancel").with_example("namespace", "string", "Whose wish; `_` when none is named, `*` for all.", "alice/doc1"),
        cancel("/q/{queue}/j/{job}/{namespace}/cancel"),
        Route::get("/{queue}/j/{job}/result.json", || get(jobs::result), Tag::Results, "How a job ended.", Json("ResultOrNull"), (200, Some(RESULT))).deprecated(),
    ]
}

fn jobs_anywhere() -> Vec<Route> {
    vec![
        Route::get(
            "/j/{job}.json",
            || get(page::job_page),
            Tag::Jobs,
            "A job, whatever its queue: there is an answer while all queues that keep it agree.",
            Json("SingleJob"),
            (200, Some(SINGLE)),
        )
        .within(),
        Route::get(
            "/j/{job}",
            || get(page::job_page),
            Tag::Broker,
            "The page that shows a job.",
            Of(HTML),
            (200, None),
        ),
        Route::get(
            "/j/{job}/metaframe.json",
            || get(page::metaframe),
            Tag::Broker,
            "What the page is to a page that embeds it.",
            Json("Metaframe"),
            (200, None),
        ),
        Route::get(
            "/j/{job}/copy",
            || post(submit::copy),
            Tag::Jobs,
            "Submits a job that this broker knows to another queue. Its result stays where it is.",
            Json("Copied"),
            (200, Some(r#"{"success":true}"#)),
        )
        .taking(
            Verb::Post,
            Json("Copy"),
            Some(r#"{"queue":"other-queue","control":{"namespace":"alice/doc1"}}"#),
        ),
    ]
}

fn blob_routes() -> Vec<Route> {
    vec![
        Route::get("/f/{key}", || put(blobs::put), Tag::Blobs, "Stores a blob; with a bucket, answers 302 with the address where its bytes go. A key of 64 hex digits is the SHA-256 of the bytes, and is checked; any other key is written once.", Of(TEXT), (200, Some("file saved to f/5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")))
            .taking(Verb::Put, Of(BYTES), Some("hello\n")),
        Route::get("/f/{key}", || get(blobs::get), Tag::Blobs, "A blob's bytes; with a bucket, 302 to where they are. Ranges can be asked for.", Of(BYTES), (200, Some("hello\n")))
            .with("filename", "string", "What to call the download, and what its type is told by."),
        Route::get("/f/{key}/exists", || get(blobs::exists), Tag::Blobs, "Whether there is such a blob; 404 when there is not.", Json("Exists"), (200, Some(r#"{"exists":true}"#))),
        Route::get("/upload/{key}", || get(transfer::upload), Tag::Blobs, "Where to put a blob.", Json("Transfer"), (200, Some(
            r#"{"url":"http://grid.example/f/5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03","ref":{"value":"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03","type":"key"}}"#,
        )))
        .deprecated(),
        Route::get("/download/{key}", || get(transfer::download), Tag::Blobs, "Where to get a blob.", Json("Transfer"), (200, Some(
            r#"{"url":"http://grid.example/f/5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03","ref":{"value":"http://grid.example/f/5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03","type":"url"}}"#,
        )))
        .deprecated(),
    ]
}

fn broker_routes() -> Vec<Route> {
    let health = |path| {
        Route::get(path, || get(page::healthy), Tag::Broker, "Whether the broker answers.", Of(TEXT), (200, Some("OK")))
    };
    vec![
        health("/healthz"),
        health("/health"),
        Route::get(
            "/metrics",
            || get(metrics::of_broker),
            Tag::Broker,
            "The broker's numbers for Prometheus. None names a queue.",
            Of(metrics::CONTENT_TYPE),
            (200, None),
        ),
        Route::get(
            "/openapi.json",
            || get(openapi::document),
            Tag::Broker,
            "This document.",
            Json("OpenApi"),
            (200, None),
        ),
        Route::get(
            "/metaframe.json",
            || get(page::metaframe),
            Tag::Broker,
            "What the page is to a page that embeds it.",
            Json("Metaframe"),
            (200, None),
        ),
        Route::get("/", || get(page::page), Tag::Broker, "The page.", Of(HTML), (200, None)),
        Route::get(
            "/docs",
            || get(documents::to_index),
            Tag::Broker,
            "Leads to the documentation.",
            Of(TEXT),
            (301, Some("")),
        ),
        Route::get("/docs/", || get(documents::index), Tag::Broker, "The documentation.", Of(HTML), (200, None)),
        Route::get(
            "/docs/{*page}",
            || get(documents::document),
            Tag::Broker,
            "A page of the documentation; with `.md` as it was written.",
            Of(HTML),
            (200, None),
        ),
        Route::get(
            "/llms.txt",
            || get(documents::for_models),
            Tag::Broker,
            "What a language model should know.",
            Of(TEXT),
            (200, None),
        ),
    ]
}

//! The shapes of requests and answers, as JSON Schema. That the broker's answers have them is proven by sending every example.

use serde_json::{Value, json};

pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn text(says: &str) -> Value {
    json!({ "type": "string", "description": says })
}

fn number(says: &str) -> Value {
    json!({ "type": "integer", "description": says })
}

fn list(of: Value) -> Value {
    json!({ "type": "array", "items": of })
}

fn map(of: Value) -> Value {
    json!({ "type": "object", "additionalProperties": of })
}

fn or_null(of: Value) -> Value {
    json!({ "oneOf": [of, { "type": "null" }] })
}

/// An object with exactly these fields; those with a `?` may be missing.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).filter(|name| !name.ends_with('?')).collect();
    let properties: serde_json::Map<String, Value> =
        fields.iter().map(|(name, schema)| (name.trim_end_matches('?').to_owned(), schema.clone())).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// The same with others beside them.
fn open<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let mut schema = object(fields);
    schema["additionalProperties"] = true.into();
    schema
}

fn data(of: Value) -> Value {
    object([("data", of)])
}

fn id() -> Value {
    json!({ "type": "string", "pattern": "^[0-9a-f]{64}$" })
}

fn time() -> Value {
    number("Milliseconds since 1970 UTC")
}

fn flag() -> Value {
    json!({ "type": "boolean" })
}

fn job_state() -> Value {
    json!({ "type": "string", "enum": ["Queued", "Running", "Finished"] })
}

fn reason() -> Value {
    json!({ "type": "string", "enum": ["Success", "Error", "TimedOut", "Cancelled", "JobReplacedByClient", "Deleted"] })
}

pub(super) fn all() -> Value {
    let mut all = inputs();
    for more in [jobs(), answers(), of_queues()] {
        if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
            all.extend(more);
        }
    }
    all
}

/// Whom to call.
fn callback() -> Value {
    open([
        ("url?", text("Where to: an https or http address, of a public host unless the broker allows others")),
        ("payload?", json!({ "description": "Sent along as `config`" })),
    ])
}

/// A call of a webhook, and more that is said of it.
fn call<const N: usize>(more: [(&str, Value); N]) -> Value {
    let mut call = object([
        ("id", text("The id that its receiver sees")),
        ("event", json!({ "type": "string", "enum": ["queued", "finished"] })),
        ("jobId", id()),
        ("namespace", text("Who wanted the job")),
        ("url", text("Where it goes, without user, password and query")),
        ("tries", number("How often it was tried")),
        ("error?", text("What the last try came to")),
    ]);
    for (name, schema) in more {
        call["properties"][name] = schema;
        if let Some(required) = call["required"].as_array_mut() {
            required.push(name.into());
        }
    }
    call
}

/// What is sent.
fn inputs() -> Value {
    let control = open([
        (
            "namespace?",
            text("Who wants the job; of those submitted under one name only the last is kept, except under `_`"),
        ),
        ("retry?", json!({ "description": "True: a job that has ended without success runs again" })),
        ("callbacks?", open([("queued?", callback()), ("finished?", callback())])),
    ]);
    let data_ref = open([
        ("value", json!({ "description": "Text; with the type json any value" })),
        ("type?", json!({ "type": "string", "enum": ["utf8", "base64", "json", "url", "key"] })),
        ("hash?", text("The SHA-256 of the bytes that a url leads to")),
    ]);
    let requirements = open([
        ("cpus?", json!({ "type": "number" })),
        ("gpus?", json!({ "type": "number" })),
        ("memory?", json!({ "description": "A size such as `4g`" })),
        ("maxDuration?", json!({ "description": "A time such as `10m`" })),
    ]);
    json!({
        "Error": object([("error", text("For people")), ("code", text("For programs"))]),
        "Submission": open([
            ("definition", reference("Definition")),
            ("id?", text("The job's id; one that is not the definition's is refused")),
            ("control?", control.clone()),
            ("debug?", flag()),
            ("array?", json!({ "description": "In a bulk: one job for each of these numbers, such as `{\"from\": 0, \"to\": 99, \"step\": 1, \"index\": \"i\"}`; `{{i}}` in the definition stands for the number" })),
        ]),
        "Definition": open([
            ("image?", text("The image to run")),
            ("build?", open([])),
            ("command?", text("What to run, split into words as a shell does")),
            ("entrypoint?", text("Instead of the image's")),
            ("workdir?", text("Where to start")),
            ("env?", map(json!({}))),
            ("inputs?", map(reference("DataRef"))),
            ("configFiles?", map(reference("DataRef"))),
            ("requirements?", requirements),
            ("tags?", list(text("A worker that has tags must have one of these"))),
            ("maxDuration?", text("How long it may run")),
            ("shmSize?", text("The size of /dev/shm")),
        ]),
        "DataRef": data_ref,
        "Copy": open([("queue", text("Where to")), ("control?", control)]),
    })
}

/// Jobs as they are shown.
fn jobs() -> Value {
    let entry = [
        ("queuedTime", time()),
        ("state", job_state()),
        ("time", number("When it came to that state")),
        ("worker", text("Who runs or ran it; empty before")),
        ("namespaces", list(text("Who wants it"))),
        ("debug?", flag()),
        ("tags?", list(text("A tag"))),
        (
            "requirements?",
            object([("cpus?", json!({ "type": "number" })), ("gpus?", number("How many")), ("memory?", text("Bytes"))]),
        ),
        ("finishedReason?", reason()),
    ];
    let result = open([
        ("StatusCode?", number("The container's exit code")),
        ("duration?", number("Milliseconds")),
        ("isTimedOut?", flag()),
        ("error?", json!({ "description": "Why there is no exit code" })),
        ("logs?", list(reference("Line"))),
        ("outputs?", map(reference("DataRef"))),
    ]);
    let finished = open([
        ("type", json!({ "const": "Finished" })),
        ("reason", reason()),
        ("worker?", text("Who ran it")),
        ("time", time()),
        ("result?", result),
    ]);
    let mut with_result = object(entry.clone());
    with_result["properties"]["finished"] = finished;
    let status = object([
        ("state", job_state()),
        ("finishedReason?", reason()),
        ("run", number("The number of its newest run; 0 before the first")),
        ("exitCode?", number("The container's exit code")),
        ("message?", text("What the canceller said")),
        ("replacedBy?", id()),
    ]);
    json!({
        "Job": object(entry),
        "JobWithResult": with_result,
        "JobList": data(map(reference("Job"))),
        "SingleJob": data(object([
            ("definition", reference("Definition")),
            ("results?", reference("JobWithResult")),
            ("status?", status),
        ])),
        "DefinitionOrNull": data(or_null(reference("Definition"))),
        "ResultOrNull": data(or_null(reference("JobWithResult"))),
        "Namespaces": data(list(text("A namespace"))),
        "Line": json!({
            "type": "array",
            "description": "Text, time in milliseconds, and true when it is from standard error",
            "prefixItems": [{ "type": "string" }, { "type": "number" }, { "type": "boolean" }],
            "minItems": 2,
            "maxItems": 3,
        }),
        "Log": object([
            ("data", list(reference("Line"))),
            ("sliceStart", number("The number of the first line asked for")),
            ("nextCursor", number("How many lines there are")),
            ("isFinal", flag()),
        ]),
    })
}

/// What commands are answered with.
fn answers() -> Value {
    let head = object([("seq", number("How many records the queue has")), ("hash", id())]);
    let event = json!({ "type": "object", "description": "One field: the event's name, and what it says", "minProperties": 1, "maxProperties": 1 });
    let worker = object([
        ("id", text("The worker")),
        (
            "fit",
            json!({ "type": "string", "enum": ["now", "held", "later", "held_for_others", "handed_back", "silent", "never"] }),
        ),
        (
            "lacks?",
            list(object([
                ("what", json!({ "type": "string", "enum": ["cpus_milli", "memory_bytes", "gpus", "tags"] })),
                ("needs", number("How much the job needs")),
                ("free", number("How much is free")),
                ("total", number("How much the worker has")),
            ])),
        ),
    ]);
    json!({
        "Submitted": object([("success", flag()), ("jobId", id())]),
        "Copied": object([("success", flag())]),
        "CancelAnswer": json!({ "oneOf": [
            object([("success", flag()), ("jobId", id()), ("namespace", text("Whose wish"))]),
            object([("success", flag())]),
            object([("message", text("Why nothing was done"))]),
        ] }),
        "BulkAnswer": json!({ "oneOf": [
            object([("line", number("The submission's line")), ("index?", number("Which of an array")), ("success", flag()), ("jobId", id()), ("seq", number("Where the queue's chain stood"))]),
            object([("line", number("The submission's line")), ("index?", number("Which of an array")), ("error", text("For people")), ("code", text("For programs"))]),
            object([("lines", number("Submissions")), ("queued", number("Jobs taken")), ("refused", number("Jobs refused")), ("head", head)]),
        ] }),
        "History": object([
            ("data", list(object([
                ("v", number("The version of the record's shape")),
                ("seq", number("Its position in the queue")),
                ("at_ms", time()),
                ("event", event),
                ("hash", id()),
            ]))),
            ("before", or_null(number("Where to ask on"))),
        ]),
        "Explanation": object([
            ("job", id()),
            ("standing", json!({ "type": "string", "enum": ["waiting", "running", "finished", "abandoned", "cancelled", "replaced", "deleted"] })),
            ("reason", text("One sentence")),
            ("since_ms?", time()),
            ("run", number("The number of its newest run")),
            ("worker?", text("Who runs or ran it")),
            ("lost", number("Runs lost")),
            ("line?", object([
                ("ahead", number("Jobs that come before it")),
                ("ahead_in_namespace", number("Those of its own namespace")),
                ("namespace", text("Whose turns it takes")),
                ("waiting", number("How many jobs wait")),
                ("priority", number("Higher goes first")),
                ("needs", open([])),
            ])),
            ("workers?", list(worker)),
            ("workers_total", number("How many workers there are")),
            ("estimate?", object([
                ("starts_in_ms", number("A guess")),
                ("median_run_ms", number("What it is made of")),
                ("runs", number("How many runs that is a median of")),
                ("slots", number("How many such jobs can run at once")),
            ])),
        ]),
        "Exists": object([("exists", flag())]),
        "Transfer": object([("url", text("Where")), ("ref", object([("value", text("For a definition")), ("type", text("key or url"))]))]),
    })
}

fn of_queues() -> Value {
    let state = object([("state", job_state()), ("finishedReason?", reason())]);
    let running = object([("jobId", id()), ("definition", or_null(reference("Definition"))), ("finished", flag())]);
    let worker = object([
        ("time", time()),
        ("id", text("The worker")),
        ("version", text("Its software's")),
        ("cpus", json!({ "type": "number" })),
        ("gpus", number("How many")),
        ("queue", map(running)),
    ]);
    let info = object([
        ("address", text("The queue's name")),
        ("serverId", text("The broker")),
        ("broadcastChannel", text("Always in-isolate")),
        ("jobCount", number("Jobs in the queue")),
        ("localWorkerCount", number("Workers, silent ones included")),
        ("otherWorkerCount", number("Always 0")),
        ("clientCount", number("Pages and programs that watch")),
        (
            "jobStates",
            list(object([
                ("id", text("The first six digits")),
                ("state", job_state()),
                ("worker", text("The first six letters, or none")),
            ])),
        ),
    ]);
    json!({
        "Status": object([
            ("jobs", map(state)),
            ("otherServers", object([])),
            ("localWorkers", map(worker)),
            ("clientCount", number("Pages and programs that watch")),
            ("queueInfo", info),
        ]),
        "Webhooks": data(object([
            ("waiting", number("Calls that wait for what they tell of")),
            ("pending", list(call([("nextTime", number("When it is tried, in milliseconds since 1970 UTC; 0: now"))]))),
            ("dead", list(call([("time", number("When it was given up, in milliseconds since 1970 UTC"))]))),
        ])),
        "Retried": object([("success", flag()), ("retried", number("How many"))]),
        "Metaframe": open([("version", text("Of the format")), ("metadata", open([])), ("inputs", open([])), ("outputs", open([]))]),
        "OpenApi": open([("openapi", text("Of the format")), ("paths", open([]))]),
    })
}

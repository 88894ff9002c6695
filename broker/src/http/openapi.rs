//! `GET /openapi.json`: the table of routes as OpenAPI 3.1.

mod schemas;

use std::sync::LazyLock;

use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::reply;
use super::routes::{Content, EXAMPLE_JOB, Query, ROUTES, Route};

const ABOUT: &str = "Container jobs in queues. A queue's name is the key to it: whoever knows it may submit, read and work. \
                     A request that cannot be done is answered with a 4xx or 5xx and `{\"error\": text, \"code\": word}`; where old clients know a text, with that. \
                     Websockets are at `/q/{queue}/client` and `/q/{queue}/worker`; see `/docs/websocket`.";

/// `GET /openapi.json`
pub(super) async fn document() -> Response {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| written().to_string().into());
    reply::raw_json(StatusCode::OK, TEXT.clone())
}

fn written() -> Value {
    let mut paths = Map::new();
    for route in ROUTES.iter() {
        let path = paths.entry(route.shown_path()).or_insert_with(|| json!({}));
        if let Value::Object(path) = path {
            path.insert(route.verb.name().to_lowercase(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Gridsocket",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": schemas::all() },
    })
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "operationId": operation_id(route),
        "tags": [route.tag.name()],
        "summary": route.summary,
    });
    if route.is_deprecated {
        operation["deprecated"] = true.into();
    }
    let parameters: Vec<Value> =
        path_names(&route.path).map(path_parameter).chain(route.query.iter().map(query)).collect();
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(content) = content(route.takes, route.example.body) {
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    let mut good = json!({ "description": description(route.example.status) });
    if let Some(content) = content(route.gives, route.example.answer) {
        good["content"] = content;
    }
    let error = json!({ "description": "Not done, and why", "content": { "application/json": { "schema": schemas::reference("Error") } } });
    operation["responses"] = json!({ route.example.status.to_string(): good, "default": error });
    operation
}

fn operation_id(route: &Route) -> String {
    let words = route.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut id = words.fold(route.verb.name().to_lowercase(), |id, word| id + "_" + word);
    if route.path.ends_with('/') {
        id.push_str("_all");
    }
    id
}

fn description(status: u16) -> &'static str {
    match status {
        301 => "It is elsewhere",
        400 => "Something is missing",
        _ => "Done",
    }
}

fn path_names(path: &str) -> impl Iterator<Item = &str> {
    path.split('{').skip(1).filter_map(|rest| rest.split('}').next()).map(|name| name.trim_start_matches('*'))
}

fn path_parameter(name: &str) -> Value {
    let (says, pattern, example) = match name {
        "queue" => ("The queue's name: 1 to 256 bytes, percent-encoded", None, "my-queue"),
        "job" => ("The job's id: the SHA-256 of its definition", Some("^[0-9a-f]{64}$"), EXAMPLE_JOB),
        "namespace" => ("Whose wish, percent-encoded; `*` for all", None, "alice/doc1"),
        "key" => (
            "The blob's key",
            Some("^[0-9A-Za-z][0-9A-Za-z._-]{0,254}$"),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ),
        "page" => ("The page's name", None, "websocket"),
        _ => ("The file's name; slashes in it may stand as they are", None, "hello.txt"),
    };
    let mut schema = json!({ "type": "string" });
    if let Some(pattern) = pattern {
        schema["pattern"] = pattern.into();
    }
    json!({ "name": name, "in": "path", "required": true, "description": says, "schema": schema, "example": example })
}

fn query(query: &Query) -> Value {
    let mut parameter =
        json!({ "name": query.name, "in": "query", "description": query.says, "schema": { "type": query.kind } });
    if let Some(example) = query.example {
        parameter["example"] = serde_json::from_str(example).unwrap_or_else(|_| example.into());
    }
    parameter
}

fn content(content: Content, example: Option<&str>) -> Option<Value> {
    let (kind, schema, is_json) = match content {
        Content::Nothing => return None,
        Content::Json(name) => ("application/json", schemas::reference(name), true),
        // Each line is of the schema; OpenAPI 3.1 has no word for that.
        Content::JsonLines(_) => ("application/x-ndjson", json!({ "type": "string" }), false),
        Content::Of(kind) => (kind, json!({ "type": "string" }), false),
    };
    let mut body = json!({ "schema": schema });
    if let Content::JsonLines(name) = content {
        body["schema"]["description"] = format!("A JSON value a line, each a #/components/schemas/{name}").into();
    }
    if let Some(example) = example {
        let value = if is_json { serde_json::from_str(example).ok() } else { None };
        body["example"] = value.unwrap_or_else(|| example.into());
    }
    Some(json!({ kind: body }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_of_the_router_is_in_the_document() {
        let document = written();
        for route in ROUTES.iter() {
            let operation = &document["paths"][route.shown_path()][route.verb.name().to_lowercase()];
            assert!(operation["summary"].as_str().is_some_and(|text| text.ends_with('.')), "{route:?}");
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let ids: BTreeSet<String> = ROUTES.iter().map(operation_id).collect();
        assert_eq!(ids.len(), ROUTES.len());
    }

    #[test]
    fn every_schema_that_is_named_is_there_and_every_one_is_named() {
        let text = written().to_string();
        let schemas = schemas::all();
        let named: BTreeSet<&str> =
            text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let there: BTreeSet<&str> = schemas.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(named, there);
    }

    #[test]
    fn examples_that_should_be_json_are() {
        for route in ROUTES.iter() {
            for (content, example) in [(route.takes, route.example.body), (route.gives, route.example.answer)] {
                if let (Content::Json(_), Some(example)) = (content, example) {
                    serde_json::from_str::<Value>(example).unwrap_or_else(|error| panic!("{error}: {example}"));
                }
            }
        }
    }
}

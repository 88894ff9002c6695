//! The description of the REST API is true: every example in it is sent, and every answer has the shape that it is said to have.

use serde_json::{Map, Value, json};

use crate::support::{TestBroker, Worker, within};

const JOB: &str = "ce1f6d7880fa8cba71a6c21a4e21245ef29a4e3f168b16e9b53f1744f5162926";
const BLOB: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

/// A broker that holds the job of the examples, with its worker still there.
struct Example {
    broker: TestBroker,
    _worker: Option<Worker>,
}

/// Where the job of the examples stands.
#[derive(Clone, Copy, PartialEq)]
enum Given {
    Waiting,
    Finished,
}

impl Example {
    async fn start(document: &Value, given: Given) -> Self {
        let broker = TestBroker::start().await;
        let body = &document["paths"]["/q/{queue}"]["post"]["requestBody"]["content"]["application/json"]["example"];
        let (status, answer) = broker.post("/q/my-queue", body.to_string()).await;
        assert_eq!((status, &answer["jobId"]), (200, &json!(JOB)));
        let worker = if given == Given::Finished { Some(Self::finish(&broker).await) } else { None };
        Self { broker, _worker: worker }
    }

    async fn finish(broker: &TestBroker) -> Worker {
        use protocol::id::UnixMillis;
        use protocol::native::{LogLine, LogStep};

        let mut worker = broker.worker("my-queue", "worker-1", 1).await;
        let (run, _) = worker.claim().await;
        let line = LogLine { text: "hello\n".to_owned(), at_ms: UnixMillis(5), stderr: false };
        worker.logs(run, LogStep::Run, 0, vec![line]).await;
        let result = json!({
            "StatusCode": 0, "duration": 184, "isTimedOut": false, "logs": [["hello\n", 5]],
            "outputs": { "o.txt": { "type": "utf8", "value": "hello\n" } },
        });
        worker.finish(run, result).await;
        worker
    }
}

async fn document() -> Value {
    let broker = TestBroker::start().await;
    let (status, document) = broker.get_json("/openapi.json").await;
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    document
}

/// One operation of the document.
struct Operation<'a> {
    path: &'a str,
    method: &'a str,
    says: &'a Value,
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let paths = document["paths"].as_object().unwrap();
    let mut operations = Vec::new();
    for (path, item) in paths {
        operations.extend(item.as_object().unwrap().iter().map(|(method, says)| Operation { path, method, says }));
    }
    operations
}

impl Operation<'_> {
    /// The address of the example.
    fn address(&self) -> String {
        let (mut path, mut query) = (self.path.to_owned(), Vec::new());
        for parameter in self.says["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            let example = match &parameter["example"] {
                Value::Null => continue,
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            if parameter["in"] == "path" {
                let value =
                    if self.path.contains("/outputs/") && name == "name" { "o.txt".to_owned() } else { example };
                path = path.replace(&format!("{{{name}}}"), &value.replace('/', "%2F"));
            } else {
                query.push(format!("{name}={}", example.replace('/', "%2F")));
            }
        }
        assert!(!path.contains('{'), "{path}");
        if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
    }

    fn body(&self) -> Option<String> {
        let content = self.says["requestBody"]["content"].as_object()?;
        let example = &content.values().next().unwrap()["example"];
        Some(example.as_str().map_or_else(|| example.to_string(), str::to_owned))
    }

    async fn send(&self, broker: &TestBroker) -> (u16, String) {
        let method = self.method.to_uppercase().parse().unwrap();
        let request = broker.http.request(method, broker.url(&self.address())).header("host", "grid.example");
        let request = request.body(self.body().unwrap_or_default());
        let answer = within(self.path, request.send()).await.unwrap();
        (answer.status().as_u16(), within(self.path, answer.text()).await.unwrap())
    }
}

#[tokio::test]
async fn every_example_is_answered_as_the_document_says() {
    let document = document().await;
    let finished = Example::start(&document, Given::Finished).await;
    let waiting = Example::start(&document, Given::Waiting).await;
    let mut sent = 0;
    for operation in operations(&document) {
        let given = if operation.path.ends_with("/cancel") {
            // The one before cancelled it.
            let submit =
                document["paths"]["/q/{queue}"]["post"]["requestBody"]["content"]["application/json"]["example"]
                    .to_string();
            assert_eq!(waiting.broker.post("/q/my-queue", submit).await.0, 200);
            &waiting
        } else {
            &finished
        };
        let what = format!("{} {}", operation.method, operation.address());
        let (status, text) = operation.send(&given.broker).await;
        let good = &operation.says["responses"][status.to_string()];
        assert!(good.is_object(), "{what}: {status} {text}");
        let content = good["content"].as_object().unwrap_or_else(|| panic!("{what}: nothing is said of its answer"));
        let (kind, said) = content.iter().next().unwrap();
        compare(&document, &what, kind, said, &text);
        sent += 1;
    }
    assert!(sent > 50, "{sent}");
}

fn compare(document: &Value, what: &str, kind: &str, said: &Value, text: &str) {
    let example = &said["example"];
    match kind {
        "application/json" => {
            let answer: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{what}: {error}: {text}"));
            fits(document, &said["schema"], &answer, what);
            if !example.is_null() {
                fits(document, &said["schema"], example, what);
                assert_eq!(masked(&answer), masked(example), "{what}");
            }
        }
        "application/x-ndjson" => {
            let name = said["schema"]["description"].as_str().unwrap().rsplit('/').next().unwrap();
            let schema = &document["components"]["schemas"][name];
            let read = |text: &str| -> Vec<Value> {
                text.lines()
                    .map(|line| serde_json::from_str(line).unwrap())
                    .inspect(|line| fits(document, schema, line, what))
                    .collect()
            };
            let (answer, example) = (read(text), read(example.as_str().unwrap()));
            assert_eq!(
                answer.iter().map(masked).collect::<Vec<_>>(),
                example.iter().map(masked).collect::<Vec<_>>(),
                "{what}"
            );
        }
        // More follows what the original's scalers read.
        "text/plain" => assert!(text.starts_with(example.as_str().unwrap()), "{what}: {text}"),
        _ => {
            if let Some(example) = example.as_str() {
                assert_eq!(text, example, "{what}");
            } else {
                assert!(!text.is_empty(), "{what}");
            }
        }
    }
}

/// The value without times, hashes and versions, which are different each time.
fn masked(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.as_f64().is_some_and(|number| number > 1e12) => json!("a time"),
        Value::String(text) if is_hash(text) && text != JOB && text != BLOB => json!("a hash"),
        Value::Array(values) => values.iter().map(masked).collect(),
        Value::Object(fields) => {
            let mask = |(name, value): (&String, &Value)| {
                let value = if name == "version" { json!("a version") } else { masked(value) };
                (name.clone(), value)
            };
            Value::Object(fields.iter().map(mask).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Fails when a value is not of a schema. Knows the words that the document uses, and fails at others.
fn fits(document: &Value, schema: &Value, value: &Value, what: &str) {
    if let Err(why) = check(document, schema, value) {
        panic!("{what}: {why}\n{value:#}");
    }
}

fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    for (word, rule) in schema.as_object().unwrap() {
        let holds = match word.as_str() {
            "description" => true,
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/components/schemas/").unwrap();
                let schema = document["components"]["schemas"].get(name).unwrap_or_else(|| panic!("no schema {name}"));
                check(document, schema, value)?;
                true
            }
            "oneOf" => {
                let fitting = rule.as_array().unwrap().iter().filter(|schema| check(document, schema, value).is_ok());
                fitting.count() == 1
            }
            "type" => match rule.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "number" => value.is_number(),
                "integer" => value.is_i64() || value.is_u64(),
                "boolean" => value.is_boolean(),
                "null" => value.is_null(),
                other => panic!("no type {other}"),
            },
            "enum" => rule.as_array().unwrap().contains(value),
            "const" => rule == value,
            "pattern" => {
                assert_eq!(rule, "^[0-9a-f]{64}$");
                value.as_str().is_none_or(is_hash)
            }
            "properties" => {
                for (name, schema) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        check(document, schema, value).map_err(|why| format!("{name}: {why}"))?;
                    }
                }
                true
            }
            "required" => rule.as_array().unwrap().iter().all(|name| value.get(name.as_str().unwrap()).is_some()),
            "additionalProperties" => {
                let known = |name: &String| schema["properties"].get(name).is_some();
                let mut others = value.as_object().into_iter().flatten().filter(|(name, _)| !known(name));
                match rule {
                    Value::Bool(true) => true,
                    Value::Bool(false) => others.next().is_none(),
                    schema => {
                        for (name, value) in others {
                            check(document, schema, value).map_err(|why| format!("{name}: {why}"))?;
                        }
                        true
                    }
                }
            }
            "items" => {
                for value in value.as_array().into_iter().flatten() {
                    check(document, rule, value)?;
                }
                true
            }
            "prefixItems" => {
                for (schema, value) in rule.as_array().unwrap().iter().zip(value.as_array().into_iter().flatten()) {
                    check(document, schema, value)?;
                }
                true
            }
            "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= rule.as_u64().unwrap()),
            "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= rule.as_u64().unwrap()),
            "minProperties" => value.as_object().is_none_or(|fields| fields.len() as u64 >= rule.as_u64().unwrap()),
            "maxProperties" => value.as_object().is_none_or(|fields| fields.len() as u64 <= rule.as_u64().unwrap()),
            other => panic!("the word {other} is not checked"),
        };
        if !holds {
            return Err(format!("{word}: {rule} does not hold"));
        }
    }
    Ok(())
}

/// What old clients know and programs do not read.
const TEXTS: [&str; 4] = ["Missing filename", "Job not found", "Finished job not found", "File not found"];

#[tokio::test]
async fn what_is_asked_wrongly_is_answered_as_an_error_with_a_text_and_a_word() {
    let document = document().await;
    let broker = TestBroker::start().await;
    let unknown = "0".repeat(64);
    let mut errors = 0;
    for operation in operations(&document) {
        let right = operation.address().replace(JOB, &unknown);
        let wrong = [
            right.clone(),
            right.replace(&unknown, "x"),
            right.replace("my-queue", "%00"),
            right.replace(BLOB, "%2e%2e"),
            right.replace("alice%2Fdoc1", "%ff"),
            format!("{right}/more"),
        ];
        for address in wrong {
            let method: reqwest::Method = operation.method.to_uppercase().parse().unwrap();
            let answer = broker.http.request(method.clone(), broker.url(&address)).body("{").send().await.unwrap();
            let status = answer.status().as_u16();
            let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
            let is_page = kind.as_deref().is_some_and(|kind| kind.starts_with("text/html"));
            let text = answer.text().await.unwrap();
            assert!(status < 500, "{method} {address}: {status} {text}");
            if status < 400 || is_page || text == r#"{"exists":false}"# || TEXTS.contains(&text.as_str()) {
                continue;
            }
            let told =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{method} {address}: {error}: {text}"));
            fits(&document, &document["components"]["schemas"]["Error"], &told, &address);
            errors += 1;
        }
    }
    assert!(errors > 100, "{errors}");
}

#[tokio::test]
async fn every_route_that_reads_answers_head_and_every_address_its_preflight() {
    let document = document().await;
    let Example { broker, _worker } = Example::start(&document, Given::Finished).await;
    broker.put(&format!("/f/{BLOB}"), "hello\n").await;
    for operation in operations(&document) {
        let url = broker.url(&operation.address());
        if operation.method == "get" {
            let whole = broker.http.get(&url).send().await.unwrap();
            let head = broker.http.head(&url).send().await.unwrap();
            assert_eq!(head.status(), whole.status(), "{url}");
            assert_eq!(head.headers().get("content-type"), whole.headers().get("content-type"), "{url}");
            assert!(head.bytes().await.unwrap().is_empty(), "{url}");
        }
        let preflight = broker.http.request(reqwest::Method::OPTIONS, &url).send().await.unwrap();
        assert_eq!(preflight.status(), 204, "{url}");
    }
}

//! Inputs and outputs over real sockets, with a server that breaks as it is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use protocol::definition::Definition;
use protocol::id::QueueName;
use protocol::raw::RawJson;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::FetchPrivate;

/// What was asked: the first line and the headers in lower case, and the body.
#[derive(Clone, Debug)]
struct Asked {
    head: String,
    body: Vec<u8>,
}

impl Asked {
    fn is(&self, method: &str, path: &str) -> bool {
        self.head.starts_with(&format!("{method} {path} ").to_lowercase())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// What is answered: status and headers, the body, and how much of it is sent before the line is cut.
struct Answer {
    head: String,
    body: Vec<u8>,
    sent: usize,
}

fn answer(status: &str, body: &[u8]) -> Answer {
    Answer { head: format!("{status}\r\n"), body: body.to_vec(), sent: body.len() }
}

struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// `answers` is told how many requests there were before.
    async fn start(answers: impl Fn(usize, &Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, answers) = (Arc::clone(&asked), Arc::new(answers));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&seen), Arc::clone(&answers)));
            }
        });
        Self { port, asked }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn number(&self, method: &str, path: &str) -> usize {
        self.asked().iter().filter(|asked| asked.is(method, path)).count()
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Vec<Asked>>>, answers: Arc<impl Fn(usize, &Asked) -> Answer>) {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let mut asked = Asked { head, body: bytes.split_off(end) };
    let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while asked.body.len() < length {
        if stream.read_buf(&mut asked.body).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let before = {
        let mut seen = seen.lock().unwrap();
        seen.push(asked.clone());
        seen.len() - 1
    };
    let answer = answers(before, &asked);
    let head = format!("HTTP/1.1 {}connection: close\r\ncontent-length: {}\r\n\r\n", answer.head, answer.body.len());
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(&answer.body[..answer.sent]).await;
    let _ = stream.shutdown().await;
}

struct Place {
    files: Files,
    data: TempDir,
}

impl Place {
    fn new(server: &Server, change: impl FnOnce(&mut Config)) -> Self {
        let data = TempDir::new().unwrap();
        let queue: QueueName = "test".parse().unwrap();
        let mut config = Config::new(vec![queue.clone()], server.url("").parse().unwrap(), data.path().to_owned());
        change(&mut config);
        let tls = crate::tls::client_config().unwrap();
        Self { files: Files::open(&config, QueueKey::of(&queue), &tls).unwrap(), data }
    }

    /// The run's directories once the inputs are there, or why they are not.
    async fn materialise(&self, number: u64, inputs: Value) -> Result<RunDirs, String> {
        let text = json!({ "image": "x", "env": { "N": number.to_string() }, "inputs": inputs }).to_string();
        let definition = Definition::parse(text.as_bytes()).unwrap();
        let dirs = self.files.dirs(HeldRun { job: definition.job_id(), run: 1 });
        let made = self.files.materialise(&definition, &RawJson::new(text), &dirs).await;
        made.map(|()| dirs).map_err(|error| error.to_string())
    }

    fn cached(&self) -> usize {
        fs::read_dir(self.data.path().join("f")).unwrap().count()
    }

    fn incoming(&self) -> usize {
        fs::read_dir(self.data.path().join("incoming")).unwrap().count()
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that differ everywhere.
fn large(bytes: usize) -> Vec<u8> {
    (0_u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).take(bytes).collect()
}

/// Answers ranges as a server does that has `bytes`, in a version named `etag`, and breaks off in the middle of the first answer.
fn breaking(bytes: Vec<u8>, etag: Option<&'static str>) -> impl Fn(usize, &Asked) -> Answer + Send + Sync {
    move |before, asked| {
        let etag = etag.map_or_else(String::new, |etag| format!("etag: {etag}\r\n"));
        let from =
            asked.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let (status, rest) = match from {
            Some(from) => {
                let total = bytes.len();
                let range = format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{total}", total - 1);
                (range, bytes[from..].to_vec())
            }
            None => ("200 OK".to_owned(), bytes.clone()),
        };
        let sent = if before == 0 { rest.len() / 2 } else { rest.len() };
        Answer { head: format!("{status}\r\n{etag}"), body: rest, sent }
    }
}

#[tokio::test]
async fn a_fetch_that_breaks_off_is_gone_on_with_where_the_bytes_are_known_to_be_the_same() {
    let bytes = large(5_000_000);
    let known = hex(&bytes);
    for (hash, etag, resumes) in [
        (Some(&known), None, true),
        (None, Some("\"v1\""), true),
        // A server's word that it is nearly the same is not enough.
        (None, Some("w/\"v1\""), false),
        (None, None, false),
    ] {
        let server = Server::start(breaking(bytes.clone(), etag)).await;
        let place = Place::new(&server, |_| {});
        let mut input = json!({ "type": "url", "value": server.url("/model") });
        if let Some(hash) = hash {
            input["hash"] = hash.as_str().into();
        }
        let dirs = place.materialise(1, json!({ "deep/model": input })).await.unwrap();
        let file = dirs.inputs.join("deep/model");
        assert!(fs::read(&file).unwrap() == bytes);
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o644);
        let asked = server.asked();
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[1].header("range").is_some(), resumes, "{hash:?} {etag:?}");
        assert_eq!(asked[1].header("if-range"), etag.filter(|_| resumes));
        assert_eq!((place.cached(), place.incoming()), (usize::from(hash.is_some()), 0));
    }
}

#[tokio::test]
async fn pieces_of_two_versions_are_never_one_file() {
    let (old, new) = (large(3_000_000), vec![7; 3_000_000]);
    let (first, second) = (breaking(old, None), breaking(new.clone(), None));
    let server =
        Server::start(move |before, asked| if before == 0 { first(0, asked) } else { second(before, asked) }).await;
    let place = Place::new(&server, |_| {});
    let input = json!({ "type": "url", "value": server.url("/model"), "hash": hex(&new) });
    let dirs = place.materialise(1, json!({ "model": input })).await.unwrap();
    assert!(fs::read(dirs.inputs.join("model")).unwrap() == new);
    let ranges: Vec<bool> = server.asked().iter().map(|asked| asked.header("range").is_some()).collect();
    assert_eq!(ranges, [false, true, false], "the two pieces did not fit, so it was fetched anew");
}

#[tokio::test]
async fn what_many_runs_want_at_once_is_fetched_once() {
    let server = Server::start(|_, _| answer("200 OK", b"model")).await;
    let place = Place::new(&server, |_| {});
    let input = json!({ "type": "url", "value": server.url("/model"), "hash": hex(b"model") });
    let runs = join_all((0..20).map(|number| place.materialise(number, json!({ "a": input, "b": input })))).await;
    for dirs in runs {
        let dirs = dirs.unwrap();
        assert_eq!(fs::read(dirs.inputs.join("a")).unwrap(), b"model");
        // A run's files are its own: nothing that happens to one reaches the others.
        fs::write(dirs.inputs.join("a"), "spoilt").unwrap();
        assert_eq!(fs::read(dirs.inputs.join("b")).unwrap(), b"model");
    }
    assert_eq!(server.asked().len(), 1);
    assert_eq!(fs::read(place.data.path().join("f").join(hex(b"model"))).unwrap(), b"model");
}

#[tokio::test]
async fn the_cache_keeps_to_its_size_and_what_is_larger_is_given_and_not_kept() {
    let server = Server::start(|_, asked| {
        let name = asked.head.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
        answer("200 OK", name.repeat(10).as_bytes())
    })
    .await;
    let place = Place::new(&server, |config| config.files.cache_bytes_max = Some(45));
    let input = |name: &str| {
        let bytes = name.repeat(10);
        json!({ "x": { "type": "url", "value": server.url(&format!("/{name}")), "hash": hex(bytes.as_bytes()) } })
    };
    for (number, name) in ["aa", "bb", "aa", "cc", "too-large"].into_iter().enumerate() {
        let dirs = place.materialise(number as u64, input(name)).await.unwrap();
        assert_eq!(fs::read_to_string(dirs.inputs.join("x")).unwrap(), name.repeat(10));
    }
    let fetched = |name: &str| server.number("GET", &format!("/{name}"));
    assert_eq!([fetched("aa"), fetched("bb"), fetched("cc")], [1, 1, 1]);
    place.materialise(9, input("aa")).await.unwrap();
    place.materialise(9, input("bb")).await.unwrap();
    assert_eq!([fetched("aa"), fetched("bb")], [1, 2], "the least recently used was gone");
    assert_eq!((place.cached(), place.incoming()), (2, 0));
}

#[tokio::test]
async fn inputs_take_no_more_disk_than_a_job_may() {
    let server = Server::start(|_, _| answer("200 OK", &[0; 100])).await;
    let place = Place::new(&server, |config| config.limits.disk_bytes = Some(250));
    let input = |path: &str| json!({ "type": "url", "value": server.url(path), "hash": hex(&[0; 100]) });
    place.materialise(1, json!({ "a": input("/a"), "b": input("/b") })).await.unwrap();
    // Also of what is here already.
    let why = place.materialise(2, json!({ "a": input("/a"), "b": input("/b"), "c": input("/c") })).await.unwrap_err();
    assert!(why.contains("250"), "{why}");
    let place = Place::new(&server, |config| config.limits.disk_bytes = Some(99));
    let why = place.materialise(1, json!({ "a": input("/a") })).await.unwrap_err();
    assert!(why.contains("\"a\"") && why.contains("larger than the 99 bytes"), "{why}");
    assert_eq!((place.cached(), place.incoming()), (0, 0));
}

#[tokio::test]
async fn an_input_that_fails_is_named_and_nothing_of_it_stays() {
    let server = Server::start(|_, asked| {
        if asked.is("GET", "/gone") { answer("404 Not Found", b"no") } else { answer("200 OK", b"other bytes") }
    })
    .await;
    let place = Place::new(&server, |_| {});
    let long = "x".repeat(200) + "/" + &"y".repeat(255);
    for (name, path, words) in [("a/gone", "/gone", "404"), (long.as_str(), "/wrong", "SHA-256")] {
        let input = json!({ "type": "url", "value": server.url(path), "hash": hex(b"expected") });
        let why = place.materialise(1, json!({ name: input, "fine": { "value": "x" } })).await.unwrap_err();
        assert!(why.contains(words) && why.contains(&name[..6]) && why.len() < 1000, "{why}");
    }
    assert_eq!((place.cached(), place.incoming()), (0, 0));
}

#[tokio::test]
async fn private_addresses_are_fetched_from_as_the_worker_was_told() {
    let inside = Server::start(|_, _| answer("200 OK", b"secret")).await;
    let to = inside.url("/secret");
    let broker = Server::start(move |_, asked| {
        if asked.is("GET", "/f/kept") || asked.is("GET", "/j/x/outputs/y") {
            answer(&format!("302 Found\r\nlocation: {to}"), b"")
        } else {
            answer("200 OK", b"blob")
        }
    })
    .await;
    let input = |url: String| json!({ "x": { "type": "url", "value": url } });
    for (network, told, is_reached) in [
        (None, FetchPrivate::AsContainers, true),
        (Some("none"), FetchPrivate::AsContainers, false),
        (Some("internet-only"), FetchPrivate::AsContainers, false),
        (Some("internet-only"), FetchPrivate::Allow, true),
        (None, FetchPrivate::Refuse, false),
    ] {
        let place = Place::new(&broker, |config| {
            config.network = network.map(str::to_owned);
            config.files.fetch_private = told;
        });
        let before = inside.asked().len();
        for url in [inside.url("/secret"), broker.url("/j/x/outputs/y")] {
            let made = place.materialise(1, input(url.clone())).await;
            assert_eq!(made.is_ok(), is_reached, "{network:?} {told:?} {url}: {made:?}");
            assert!(is_reached || made.unwrap_err().contains("--fetch-private"));
        }
        assert_eq!(inside.asked().len() > before, is_reached);
        // The broker itself, and where it says that its blobs are, are reached in any case.
        for url in [broker.url("/f/blob"), broker.url("/f/kept")] {
            place.materialise(2, input(url)).await.unwrap();
        }
    }
}

/// A store that has nothing, fails as it is told and then takes everything.
async fn store(fails: impl Fn(usize, &Asked) -> Option<Answer> + Send + Sync + 'static) -> Server {
    let kept = Mutex::new(std::collections::BTreeSet::new());
    Server::start(move |before, asked| {
        if let Some(failure) = fails(before, asked) {
            return failure;
        }
        let path = asked.head.split(' ').nth(1).unwrap().to_owned();
        let mut kept = kept.lock().unwrap();
        match path.strip_suffix("/exists") {
            Some(blob) if kept.contains(blob) => answer("200 OK", b"{}"),
            Some(_) => answer("404 Not Found", b""),
            None => {
                kept.insert(path);
                answer("200 OK", b"")
            }
        }
    })
    .await
}

fn outputs(files: &[(&str, &[u8])]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

#[tokio::test]
async fn outputs_are_uploaded_once_and_tried_again_when_the_broker_stumbles() {
    let (a, b) = (large(300_000), large(1_000));
    let server = store(|_, _| None).await;
    let place = Place::new(&server, |_| {});
    let folder = outputs(&[("a", &a), ("deep/b", &b), ("same", &b), ("small", b"42"), ("empty", b"")]);
    let collected = place.files.collect(folder.path(), None).await.unwrap();
    assert_eq!(collected.failure(), None);
    let outputs = Value::Object(collected.outputs);
    assert_eq!(outputs["a"], json!({ "type": "url", "value": server.url(&format!("/f/{}", hex(&a))) }));
    assert_eq!(outputs["same"], outputs["deep/b"]);
    assert_eq!(outputs["small"], json!({ "type": "base64", "value": "NDI=" }));
    assert_eq!(outputs["empty"], json!({ "type": "base64", "value": "" }));
    let put = server.asked().into_iter().find(|asked| asked.is("PUT", &format!("/f/{}", hex(&a)))).unwrap();
    assert!(put.body == a && put.header("x-amz-checksum-sha256").is_some());
    // Again: all of it is there.
    let puts = |server: &Server| server.asked().iter().filter(|asked| asked.head.starts_with("put")).count();
    let before = puts(&server);
    place.files.collect(folder.path(), None).await.unwrap();
    assert_eq!(puts(&server), before);
    // A broker that stumbles: an error, then a line that is cut before anything was answered.
    let stumbling = store(|before, asked| match before {
        0 | 1 => Some(answer("503 Service Unavailable", b"")),
        _ if asked.head.starts_with("put") && before < 6 => {
            Some(Answer { head: "200 OK\r\n".to_owned(), body: vec![0; 9], sent: 0 })
        }
        _ => None,
    })
    .await;
    let place = Place::new(&stumbling, |_| {});
    let collected = place.files.collect(folder.path(), None).await.unwrap();
    assert_eq!((collected.failure(), collected.outputs.len()), (None, 5));
}

#[tokio::test]
async fn an_output_that_cannot_be_uploaded_is_named_and_the_rest_is_there() {
    let (good, bad) = (large(1_000), large(2_000));
    let refused = format!("/f/{}", hex(&bad));
    let server = store(move |_, asked| asked.is("PUT", &refused).then(|| answer("400 Bad Request", b"no"))).await;
    let place = Place::new(&server, |_| {});
    let folder = outputs(&[("good", &good), ("bad", &bad), ("small", b"42")]);
    let collected = place.files.collect(folder.path(), None).await.unwrap();
    let names: Vec<&String> = collected.outputs.keys().collect();
    assert_eq!(names, ["good", "small"]);
    let why = collected.failure().unwrap();
    assert!(why.contains("\"bad\"") && why.contains("400") && !why.contains("good"), "{why}");
    // All of many: the text stays short.
    let server = store(|_, asked| asked.head.starts_with("put").then(|| answer("400 Bad Request", b"no"))).await;
    let place = Place::new(&server, |_| {});
    let many: Vec<(String, Vec<u8>)> = (0..50).map(|number| (number.to_string(), large(300 + number))).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let collected = place.files.collect(outputs(&many).path(), None).await.unwrap();
    let why = collected.failure().unwrap();
    assert!(collected.outputs.is_empty() && why.ends_with("and 45 more") && why.len() < 2_000, "{why}");
}

#[tokio::test]
async fn outputs_of_a_stopped_job_are_collected_as_far_as_time_allows() {
    let (quick, slow) = (large(1_000), large(2_000));
    let stuck = format!("/f/{}", hex(&slow));
    // One upload is refused again and again for a reason that may pass.
    let server = store(move |_, asked| asked.is("PUT", &stuck).then(|| answer("503 Service Unavailable", b""))).await;
    let place = Place::new(&server, |_| {});
    let folder = outputs(&[("quick", &quick), ("slow", &slow), ("small", b"42")]);
    let collected = place.files.collect(folder.path(), Some(Duration::from_secs(2))).await.unwrap();
    let names: Vec<&String> = collected.outputs.keys().collect();
    assert_eq!(names, ["quick", "small"]);
    assert!(collected.failure().unwrap().contains("no more time"), "{:?}", collected.failure());
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_sent_is_read_anew_and_given_up_if_it_goes_on() {
    let first = large(1_000);
    let folder = outputs(&[("x", &first)]);
    let (path, change) = (folder.path().join("x"), Mutex::new(1));
    let server = store(move |_, asked| {
        if asked.head.starts_with("put") {
            let mut left = change.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                fs::write(&path, large(2_000)).unwrap();
            }
        }
        None
    })
    .await;
    let place = Place::new(&server, |_| {});
    let collected = place.files.collect(folder.path(), None).await.unwrap();
    let second = format!("/f/{}", hex(&large(2_000)));
    assert_eq!(collected.outputs["x"]["value"], server.url(&second));
    let path = folder.path().join("x");
    let server = store(move |before, asked| {
        if asked.head.starts_with("put") {
            fs::write(&path, large(3_000 + before)).unwrap();
        }
        None
    })
    .await;
    let place = Place::new(&server, |_| {});
    let collected = place.files.collect(folder.path(), None).await.unwrap();
    assert!(collected.failure().unwrap().contains("changes while it is read"), "{:?}", collected.failure());
}

#[tokio::test]
async fn what_runs_left_is_found_and_removed_whatever_is_in_it() {
    let server = Server::start(|_, _| answer("200 OK", b"")).await;
    let place = Place::new(&server, |_| {});
    let dirs = place.materialise(1, json!({ "a": { "value": "x" } })).await.unwrap();
    let jobs = place.data.path().join("j");
    let held = place.materialise(2, json!({ "a": { "value": "x" } })).await.unwrap();
    fs::create_dir_all(dirs.outputs.join("a/b/c")).unwrap();
    fs::set_permissions(dirs.outputs.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
    // What is no job's.
    fs::write(jobs.join("stray"), "x").unwrap();
    let run = |dirs: &RunDirs| HeldRun {
        job: dirs.root.parent().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap(),
        run: 1,
    };
    let left = place.files.left_over(vec![run(&held)]).await;
    assert_eq!(left, std::slice::from_ref(&dirs.root));
    place.files.sweep(left).await;
    assert!(!dirs.root.exists() && held.root.exists());
    // Of a queue that is served no more.
    let other = place.files.of(QueueKey::from_bytes([7; 16])).dirs(run(&held));
    fs::create_dir_all(&other.outputs).unwrap();
    let left = place.files.left_by_other_queues(vec![place.files.queue]).await;
    assert_eq!(left, std::slice::from_ref(&other.root));
    place.files.sweep(left).await;
    assert!(!other.root.exists() && held.root.exists());
    place.files.remove(run(&held)).await;
    let rest: Vec<_> = fs::read_dir(&jobs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(rest, ["stray"]);
}

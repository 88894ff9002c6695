//! Many jobs at once, and why one waits: the commands against a real broker, with a worker played by the test.

use std::process::Stdio;

use protocol::canonical::job_id;
use protocol::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::grid::{DEADLINE, Serving, Worker};
use crate::run::{Said, finish, gridsocket, run};

const ECHO: &str = r#"{"definition":{"image":"alpine:3.20","command":"echo hello"}}"#;
const ECHO_ID: &str = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";

fn submission(number: usize) -> String {
    format!(r#"{{"definition":{{"image":"a","command":"{number}"}}}}"#)
}

fn id(definition: &str) -> String {
    job_id(&json::parse(definition.as_bytes()).unwrap()).to_string()
}

fn interrupt(child: &tokio::process::Child) {
    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
}

#[tokio::test]
async fn a_file_of_jobs_prints_their_ids_in_order_and_bad_lines_by_number() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let file = data.path().join("jobs.jsonl");
    let words = ["job", "add", "q", "--api", &broker.api, "--from", file.to_str().unwrap()];
    std::fs::write(&file, format!("{ECHO}\n\n{}", submission(1))).unwrap();
    let ids = format!("{ECHO_ID}\n{}\n", id(r#"{"image":"a","command":"1"}"#));
    let good = run(&words).await;
    assert_eq!((good.code, good.out.as_str(), good.err.as_str()), (Some(0), &*ids, "2 jobs queued\n"));
    std::fs::write(&file, format!("{ECHO}\nhello\n{}\n{{\"array\":7,\"definition\":{{}}}}\n", submission(1))).unwrap();
    let bad = run(&words).await;
    assert_eq!((bad.code, &bad.out), (Some(1), &ids), "{bad:?}");
    let err: Vec<_> = bad.err.lines().collect();
    assert!(err[0].starts_with("line 2: ") && err[1].starts_with("line 4: ") && err[1].contains("array"), "{bad:?}");
    assert_eq!(err[2], "2 jobs queued, 2 refused");
    let missing = run(&["job", "add", "q", "--api", &broker.api, "--from", "/does/not/exist"]).await;
    assert_eq!(missing.code, Some(1));
    assert!(missing.err.contains("/does/not/exist"), "{missing:?}");
}

#[tokio::test]
async fn a_reader_that_has_enough_ends_the_printing_and_not_the_submitting() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let mut command = gridsocket(&["job", "add", "q", "--api", &broker.api, "--from", "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // As `… | head -1` does.
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    input.write_all(format!("{}\n", submission(0)).as_bytes()).await.unwrap();
    tokio::time::timeout(DEADLINE, out.next_line()).await.unwrap().unwrap().unwrap();
    drop(out);
    for number in 1..4 {
        input.write_all(format!("{}\n", submission(number)).as_bytes()).await.unwrap();
    }
    drop(input);
    let said = Said::from(tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap());
    assert_eq!((said.code, said.err.as_str()), (Some(0), "4 jobs queued\n"), "{said:?}");
}

#[tokio::test]
async fn lines_on_standard_input_are_acknowledged_as_they_come() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let mut command = gridsocket(&["job", "add", "q", "--api", &broker.api, "--from", "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    for number in 0..3 {
        input.write_all(format!("{}\n", submission(number)).as_bytes()).await.unwrap();
        let line = tokio::time::timeout(DEADLINE, out.next_line()).await.unwrap().unwrap().unwrap();
        assert_eq!(line, id(&format!(r#"{{"image":"a","command":"{number}"}}"#)));
    }
    drop(input);
    let said = Said::from(child.wait_with_output().await.unwrap());
    assert_eq!((said.code, said.err.as_str()), (Some(0), "3 jobs queued\n"));
}

#[tokio::test]
async fn an_array_made_of_flags_has_the_ids_of_its_jobs_written_by_hand() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let api = ["--api", &broker.api];
    let flags = ["job", "add", "q", "--image", "a", "-c", "x {{index}}", "--namespace", "_"];
    let said = run(&[&flags[..], &["--array", "1-9:4"], &api].concat()).await;
    let by_hand: String = [1, 5, 9].map(|i| id(&format!(r#"{{"image":"a","command":"x {i}"}}"#)) + "\n").concat();
    assert_eq!((said.code, said.out, said.err.as_str()), (Some(0), by_hand, "3 jobs queued\n"));
    let same = run(&[&["job", "add", "q", "--image", "a", "-c", "x", "--array", "0-9"][..], &api].concat()).await;
    assert_eq!(same.code, Some(2));
    assert!(same.err.contains("--array") && same.err.contains("{{index}}"), "{same:?}");
}

#[tokio::test]
async fn waiting_for_all_ends_well_when_all_have() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let words = ["job", "add", "q", "--api", &broker.api, "-c", "{{index}}", "--array", "1-20", "--wait"];
    let waiting = tokio::spawn(finish(gridsocket(&words)));
    let mut worker = Worker::connect(&broker.api, Vec::new()).await;
    for _ in 1..=20 {
        let held = worker.claim().await;
        worker.finish_with(held, 0).await;
    }
    let said = tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap();
    assert_eq!(said.out.lines().count(), 20, "{said:?}");
    assert_eq!((said.code, said.err.as_str()), (Some(0), "20 jobs queued\nall ended with success: 20 jobs\n"));
    // Asked again, what there is answers at once.
    let again = run(&words).await;
    assert_eq!((again.code, again.out), (Some(0), said.out), "{}", again.err);
}

#[tokio::test]
async fn a_job_that_fails_is_named_and_fails_the_command() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let file = data.path().join("jobs.jsonl");
    let lines: Vec<_> = (0..5).map(submission).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let words = ["job", "add", "q", "--api", &broker.api, "--from", file.to_str().unwrap(), "--wait"];
    let waiting = tokio::spawn(finish(gridsocket(&words)));
    let mut worker = Worker::connect(&broker.api, Vec::new()).await;
    let failing = id(r#"{"image":"a","command":"3"}"#);
    for _ in 0..5 {
        let held = worker.claim().await;
        let fails = held.job.to_string() == failing;
        worker.finish_with(held, if fails { 7 } else { 0 }).await;
    }
    let said = tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap();
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains(&format!("job {failing} finished with exit code 7\n")), "{said:?}");
    assert!(said.err.ends_with("5 jobs queued\n1 of 5 jobs did not succeed\n"), "{said:?}");
}

#[tokio::test]
async fn of_many_jobs_only_those_that_failed_run_again() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let file = data.path().join("jobs.jsonl");
    std::fs::write(&file, (0..3).map(|i| submission(i) + "\n").collect::<String>()).unwrap();
    let from = ["job", "add", "q", "--api", &broker.api, "--from", file.to_str().unwrap(), "--wait", "--retry"];
    let array = [
        "job",
        "add",
        "q",
        "--api",
        &broker.api,
        "--image",
        "a",
        "-c",
        "{{index}}",
        "--array",
        "0-2",
        "--wait",
        "--retry",
    ];
    let mut worker = Worker::connect(&broker.api, Vec::new()).await;
    let first = tokio::spawn(finish(gridsocket(&from)));
    for number in 0..3 {
        let held = worker.claim().await;
        worker.finish_with(held, number).await;
    }
    assert_eq!(tokio::time::timeout(DEADLINE, first).await.unwrap().unwrap().code, Some(1));
    // The same jobs, of which two fail again, as an array; then none.
    for (words, code, ends) in [(&array[..], 1, [3, 0].as_slice()), (&from[..], 0, [0].as_slice()), (&from[..], 0, &[])]
    {
        let again = tokio::spawn(finish(gridsocket(words)));
        for exit_code in ends {
            let held = worker.claim().await;
            worker.finish_with(held, *exit_code).await;
        }
        let said = tokio::time::timeout(DEADLINE, again).await.unwrap().unwrap();
        assert_eq!(said.code, Some(code), "{words:?} {said:?}");
    }
}

#[tokio::test]
async fn interrupted_it_leaves_the_jobs_running_and_says_so() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let words = ["job", "add", "q", "--api", &broker.api, "-c", "{{index}}", "--array", "0-2", "--wait"];
    let mut child = gridsocket(&words).spawn().unwrap();
    let mut worker = Worker::connect(&broker.api, Vec::new()).await;
    let held = worker.claim().await;
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        assert!(tokio::time::timeout(DEADLINE, out.next_line()).await.unwrap().unwrap().is_some());
    }
    interrupt(&child);
    let said = Said::from(child.wait_with_output().await.unwrap());
    assert_eq!(said.code, Some(130), "{said:?}");
    assert!(said.err.contains("3 jobs queued") && said.err.contains("run again"), "{said:?}");
    worker.finish_with(held, 0).await;
    let listed = run(&["job", "ls", "q", "--json", "--api", &broker.api]).await;
    assert_eq!(listed.out.matches(r#""state":"Queued""#).count(), 2, "{listed:?}");
}

#[tokio::test]
async fn a_connection_that_ends_in_the_middle_is_told_with_the_line() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = format!("http://{}", listener.local_addr().unwrap());
    let broker = tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains("\"command\":\"1\"") {
            assert!(peer.read_buf(&mut seen).await.unwrap() > 0);
        }
        let answer = format!("{{\"line\":1,\"success\":true,\"jobId\":\"{ECHO_ID}\",\"seq\":1}}\n");
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
        let text = format!("{head}{:x}\r\n{answer}\r\n", answer.len());
        peer.write_all(text.as_bytes()).await.unwrap();
    });
    let mut command = gridsocket(&["job", "add", "q", "--api", &api, "--from", "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(format!("{ECHO}\n{}\n", submission(1)).as_bytes()).await.unwrap();
    tokio::time::timeout(DEADLINE, broker).await.unwrap().unwrap();
    let said = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    let said = Said::from(said);
    drop(input);
    assert_eq!((said.code, said.out.as_str()), (Some(1), &*format!("{ECHO_ID}\n")), "{said:?}");
    assert!(said.err.contains("after the answer to line 1,") && said.err.contains("run again"), "{said:?}");
}

#[tokio::test]
async fn a_waiting_job_is_explained_to_people_and_to_programs() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(data.path(), "127.0.0.1:0").await;
    let added = run(&["job", "add", "q", "--api", &broker.api, "-c", "x", "--gpus", "2"]).await;
    let job = added.out.trim();
    let _worker = Worker::connect(&broker.api, Vec::new()).await;
    let explained = run(&["job", "explain", "q", job, "--api", &broker.api]).await;
    assert_eq!(explained.code, Some(0), "{explained:?}");
    assert!(explained.out.starts_with("waiting: "), "{explained:?}");
    assert!(explained.out.contains("needs 2 GPUs, has 0"), "{explained:?}");
    assert!(explained.out.lines().all(|line| line.len() <= 80), "{explained:?}");
    let json = run(&["job", "explain", "q", job, "--json", "--api", &broker.api]).await;
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&json["job"], &json["standing"]), (&job.into(), &"waiting".into()));
    let unknown = run(&["job", "explain", "q", ECHO_ID, "--api", &broker.api]).await;
    assert_eq!((unknown.code, unknown.err.as_str()), (Some(1), "error: the queue has no job of that id\n"));
}

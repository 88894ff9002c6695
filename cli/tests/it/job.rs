//! The job commands against a scripted broker.

use std::process::Stdio;

use protocol::event::RunOutcome;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::peer::{Act, Peer};
use crate::run::{gridsocket, run, run_in};

const ECHO_HELLO: &str = "84696046848ef38f50a2f6182fc7674eaee3d1fac23fe57466d6cb5f771794e4";
const SUCCESS: &str =
    r#"{"finishedReason":"Success","finished":{"result":{"StatusCode":0,"duration":184,"outputs":{}}}}"#;
const CODE_3: &str = r#"{"finishedReason":"Success","finished":{"result":{"StatusCode":3,"outputs":{}}}}"#;

fn finish_with(result: &'static str) -> Act {
    Act::Finish(RunOutcome::Success, result)
}

async fn add(peer: &Peer, words: &[&str]) -> crate::run::Said {
    let api = peer.api();
    run(&[&["job", "add", "q", "--api", &api, "--image", "alpine:3.20", "-c", "echo hello"], words].concat()).await
}

#[tokio::test]
async fn adding_a_job_prints_the_id_that_everyone_computes_and_nothing_else() {
    let peer = Peer::start(&[]).await;
    let said = add(&peer, &[]).await;
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), &*format!("{ECHO_HELLO}\n"), ""));
    let posted = format!(r#"{{"id":"{ECHO_HELLO}","definition":{{"image":"alpine:3.20","command":"echo hello"}}}}"#);
    peer.held(|held| assert_eq!(held.posted, [posted]));
}

#[tokio::test]
async fn waiting_passes_on_output_streams_states_and_the_exit_code() {
    let script = [
        Act::BuildLine("latest: Pulling\n"),
        Act::Claim,
        Act::Line("one\n"),
        Act::ErrLine("two\n"),
        Act::Line("three\n"),
        finish_with(CODE_3),
    ];
    let said = add(&Peer::start(&script).await, &["--wait"]).await;
    assert_eq!(said.code, Some(3));
    assert_eq!(said.out, "one\nthree\n");
    let expected = [
        &*format!("job {ECHO_HELLO}"),
        "queued",
        "latest: Pulling",
        "running on w1",
        "two",
        "finished with exit code 3",
    ];
    assert_eq!(said.err.lines().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn an_end_without_success_is_1_and_a_sentence() {
    let error = r#"{"finishedReason":"Error","finished":{"result":{"error":"no such image"}}}"#;
    let cases = [
        (Act::Finish(RunOutcome::Error, error), "the job could not be run: no such image"),
        (Act::Finish(RunOutcome::TimedOut, r#"{"finishedReason":"TimedOut"}"#), "time limit"),
        (Act::Cancel("enough"), "the job was cancelled: enough"),
    ];
    for (end, sentence) in cases {
        let said = add(&Peer::start(&[Act::Claim, end]).await, &["--wait"]).await;
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.err.contains(sentence), "{said:?}");
    }
}

#[tokio::test]
async fn a_broken_socket_is_replaced_without_a_line_lost_or_repeated() {
    let script = [
        Act::Claim,
        Act::Line("one\n"),
        Act::Break,
        Act::Line("two\n"),
        Act::Break,
        Act::Line("three\n"),
        finish_with(SUCCESS),
    ];
    let peer = Peer::start(&script).await;
    let said = add(&peer, &["--wait"]).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "one\ntwo\nthree\n"), "{said:?}");
    assert_eq!(said.err.matches("running on w1").count(), 1, "{said:?}");
    peer.held(|held| {
        let resumed: Vec<_> = held.resumes.iter().map(|resume| resume.map(|head| head.seq)).collect();
        assert_eq!(resumed, [None, Some(2), Some(2)]);
    });
}

#[tokio::test]
async fn small_files_travel_inside_and_large_ones_are_uploaded_once() {
    let folder = tempfile::tempdir().unwrap();
    let large = vec![b'x'; 300_000];
    std::fs::write(folder.path().join("small.txt"), "hello\n").unwrap();
    std::fs::write(folder.path().join("large.bin"), &large).unwrap();
    let peer = Peer::start(&[]).await;
    let api = peer.api();
    let words = ["job", "add", "q", "--api", &api, "--file", "small.txt", "--file", "data/l=large.bin"];
    let first = run_in(folder.path(), &words).await;
    assert_eq!(first.code, Some(0), "{first:?}");
    let key: String = Sha256::digest(&large).iter().map(|byte| format!("{byte:02x}")).collect();
    let inputs = format!(
        r#""inputs":{{"small.txt":{{"type":"base64","value":"aGVsbG8K"}},"data/l":{{"type":"url","value":"{api}/f/{key}","hash":"{key}"}}}}"#
    );
    peer.held(|held| {
        assert!(held.posted[0].contains(&inputs), "{}", held.posted[0]);
        assert_eq!(held.blobs.get(&key), Some(&large));
    });
    assert!(first.err.contains("uploading data/l"), "{first:?}");
    let again = run_in(folder.path(), &words).await;
    assert_eq!((again.code, again.out), (Some(0), first.out));
    let uploads = peer.held(|held| held.requests.iter().filter(|request| request.starts_with("PUT")).count());
    assert_eq!(uploads, 1);
}

#[tokio::test]
async fn result_files_land_in_the_folder_and_hostile_ones_nowhere() {
    let result = r#"{"finishedReason":"Success","finished":{"result":{"StatusCode":0,
        "outputs":{"a b/c#1.txt":{},"../evil":{},"/tmp/evil":{}}}}}"#;
    let peer = Peer::start(&[finish_with(result)]).await;
    peer.held(|held| held.outputs.insert("a%20b/c%231.txt".into(), b"content".to_vec()));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("deep/out");
    let said = add(&peer, &["--wait", "--output-dir", out.to_str().unwrap()]).await;
    assert_eq!(said.code, Some(1), "a result file that is left out is a failure: {said:?}");
    assert_eq!(std::fs::read(out.join("a b/c#1.txt")).unwrap(), b"content");
    assert!(said.err.contains("\"../evil\"") && said.err.contains("\"/tmp/evil\""), "{said:?}");
    let names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["a b"]);
    assert_eq!(std::fs::read_dir(folder.path().join("deep")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_definition_on_standard_input_goes_on_as_it_was_written() {
    let peer = Peer::start(&[]).await;
    let api = peer.api();
    let mut command = gridsocket(&["job", "add", "-", "--api", &api]);
    command.env("GRIDSOCKET_QUEUE", "q").stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b" {\"image\": \"alpine:3.20\", \"command\":\"echo hello\", \"mine\": 1.0}\n").await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), ECHO_HELLO);
    let definition = r#""definition":{"image": "alpine:3.20", "command":"echo hello", "mine": 1.0}"#;
    peer.held(|held| assert!(held.posted[0].contains(definition), "{}", held.posted[0]));
}

#[tokio::test]
async fn logs_result_list_and_cancel_say_what_the_broker_has() {
    let script =
        [Act::BuildLine("pull\n"), Act::Claim, Act::Line("out\n"), Act::ErrLine("err\n"), finish_with(SUCCESS)];
    let peer = Peer::start(&script).await;
    let api = peer.api();
    assert_eq!(add(&peer, &["--wait"]).await.code, Some(0));
    let of = |command: &'static str, words: &'static [&'static str]| {
        let api = api.clone();
        async move { run(&[&["job", command, "q", ECHO_HELLO, "--api", &api], words].concat()).await }
    };
    let logs = of("logs", &[]).await;
    assert_eq!((logs.code, logs.out.as_str(), logs.err.as_str()), (Some(0), "out\n", "err\n"));
    assert_eq!(of("logs", &["--kind", "both"]).await.out, "pull\nout\n");
    let result = of("result", &[]).await;
    assert!(result.out.starts_with("{\n  \"finishedReason\": \"Success\""), "{result:?}");
    assert_eq!(of("cancel", &[]).await.code, Some(0));
    let awaited = of("await", &[]).await;
    assert_eq!((awaited.code, awaited.out.as_str()), (Some(0), "out\n"));
    let listed = run(&["job", "ls", "q", "--api", &api]).await;
    assert!(listed.out.contains(ECHO_HELLO) && listed.out.contains("2026-11-04 12:00:00"), "{listed:?}");
}

#[tokio::test]
async fn a_job_that_nobody_submitted_is_told_as_such() {
    let peer = Peer::start(&[]).await;
    assert_eq!(add(&peer, &[]).await.code, Some(0));
    let api = peer.api();
    let unknown = "0".repeat(64);
    for command in ["logs", "result", "cancel"] {
        let said = run(&["job", command, "q", &unknown, "--api", &api]).await;
        assert_eq!(said.code, Some(1), "{command}: {said:?}");
        assert!(said.err.contains("the queue has no"), "{command}: {said:?}");
    }
}

#[tokio::test]
async fn where_no_broker_is_the_words_say_how_to_get_one() {
    // Bound and dropped: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let api = format!("http://127.0.0.1:{port}");
    let id = "0".repeat(64);
    for words in [&["add", "q", "-c", "x"][..], &["await", "q", &id], &["logs", "q", &id, "--follow"], &["ls", "q"]] {
        let said = run(&[&["job"], words, &["--api", &api]].concat()).await;
        assert_eq!(said.code, Some(1), "{words:?}: {said:?}");
        let expected = format!(
            "error: no broker answers at {api}: start one with `gridsocket local`, or give the address of yours with --api\n"
        );
        assert_eq!(said.err, expected, "{words:?}");
    }
}

#[tokio::test]
async fn a_closed_reader_ends_the_output_without_a_word() {
    let peer = Peer::start(&[Act::Claim, Act::Line("one\n"), Act::Stay]).await;
    let api = peer.api();
    let mut command = gridsocket(&["job", "add", "q", "--api", &api, "-c", "yes"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer);
    let said = finish_without_stdout(command).await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
}

async fn finish_without_stdout(mut command: tokio::process::Command) -> crate::run::Said {
    let child = command.spawn().unwrap();
    drop(command);
    child.wait_with_output().await.unwrap().into()
}

#[tokio::test]
async fn ctrl_c_leaves_the_job_running_and_says_how_to_cancel_it() {
    let peer = Peer::start(&[Act::Claim, Act::Line("one\n"), Act::Stay]).await;
    let api = peer.api();
    let mut child = gridsocket(&["job", "add", "q", "--api", &api, "-c", "x", "--wait"]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(out.next_line().await.unwrap().as_deref(), Some("one"));
    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let said = crate::run::Said::from(child.wait_with_output().await.unwrap());
    assert_eq!(said.code, Some(130));
    let job = peer.held(|held| held.job.unwrap());
    assert!(said.err.contains(&format!("gridsocket job cancel q {job} --api {api}")), "{said:?}");
    let cancels = peer.held(|held| held.requests.iter().filter(|request| request.contains("cancel")).count());
    assert_eq!(cancels, 0);
}

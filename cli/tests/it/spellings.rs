//! The words of earlier command lines, as scripts have them.

use std::process::Stdio;

use crate::grid::{Serving, Worker};
use crate::run::{Said, finish, gridsocket, run};

/// With the broker where an earlier command line looks for it.
async fn with_api(words: &[&str], api: &str) -> Said {
    let mut command = gridsocket(words);
    command.env("API_SERVER_ADDRESS", api);
    finish(command).await
}

#[tokio::test]
async fn a_job_is_added_waited_for_and_fetched_by_the_originals_words() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(&data.path().join("broker"), "127.0.0.1:0").await;
    let out = |name: &str| data.path().join(name).to_str().unwrap().to_owned();
    let adding = tokio::spawn({
        let (api, out) = (broker.api.clone(), out("first"));
        async move { with_api(&["job", "add", "q", "-m", "busybox", "-c", "x", "-w", "-o", &out], &api).await }
    });
    let mut worker = Worker::connect(&broker.api, Vec::new()).await;
    let held = worker.claim().await;
    worker.write(held, 0, &[("one\n", false)]).await;
    worker.finish(held).await;
    let said = adding.await.unwrap();
    assert_eq!((said.code, said.out.as_str()), (Some(5), "one\n"), "{said:?}");
    assert_eq!(std::fs::read_to_string(data.path().join("first/o.txt")).unwrap(), "hello\n");

    let job = held.job.to_string();
    let said = with_api(&["job", "await", "q", &job, "--outputs", &out("second")], &broker.api).await;
    assert_eq!(said.code, Some(5), "{said:?}");
    assert_eq!(std::fs::read_to_string(data.path().join("second/o.txt")).unwrap(), "hello\n");
    let said = with_api(&["job", "get", "q", &job], &broker.api).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("\"StatusCode\": 5"), "{said:?}");
    assert_eq!(with_api(&["job", "wait", &job, "--queue=q"], &broker.api).await.code, Some(5));
    assert_eq!(broker.end("-TERM").await, Some(0));
}

#[tokio::test]
async fn a_whole_definition_is_read_from_standard_input() {
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(&data.path().join("broker"), "127.0.0.1:0").await;
    let file = data.path().join("job.json");
    std::fs::write(&file, r#"{"image":"busybox","command":"x"}"#).unwrap();
    let mut command = gridsocket(&["job", "add", "q", "-", "--debug"]);
    command.env("CQ_API", &broker.api).stdin(Stdio::from(std::fs::File::open(&file).unwrap()));
    let by_definition = finish(command).await;
    assert_eq!(by_definition.code, Some(0), "{by_definition:?}");
    let by_flags =
        with_api(&["job", "submit", "--queue", "q", "-m", "busybox", "-c", "x", "-o", "out"], &broker.api).await;
    assert_eq!(by_flags.out, by_definition.out, "the same job");
    assert!(by_flags.err.contains("--wait"), "an option without effect is told: {by_flags:?}");
    assert_eq!(broker.end("-TERM").await, Some(0));
}

#[tokio::test]
async fn what_is_done_by_other_words_is_refused_with_them() {
    let cases: [(&[&str], &str); 6] = [
        (&["job", "run", "--queue", "q", "--image", "a"], "job add <queue> --wait"),
        (&["job", "outputs", "84", "--output-dir", "o"], "job await"),
        (&["job", "upload", "file"], "--file"),
        (&["job", "status"], "job ls"),
        (&["job", "url", "--image", "a"], "page"),
        (&["job", "add", "q", "--git", "git@github.com:o/r"], "--git"),
    ];
    for (words, hint) in cases {
        let said = run(words).await;
        assert_eq!(said.code, Some(2), "{words:?}: {said:?}");
        assert!(said.err.starts_with("error: ") && said.err.contains(hint), "{words:?}: {}", said.err);
    }
}

#[tokio::test]
async fn an_upgrade_without_an_engine_or_of_nothing_is_told() {
    let mut command = gridsocket(&["worker", "upgrade", "-v", "1.2.3"]);
    command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let said = finish(command).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("gridsocket doctor"), "{said:?}");
    let said = run(&["worker", "upgrade", "-v", "a:b"]).await;
    assert_eq!(said.code, Some(2), "{said:?}");
}

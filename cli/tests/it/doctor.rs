//! `gridsocket doctor` as a newcomer meets it: each thing that can be wrong, made wrong for real where that can be done.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::grid::{DEADLINE, Serving};
use crate::run::{Said, finish, gridsocket};

/// A place where nothing listens.
const NO_ENGINE: &str = "unix:///nowhere/docker.sock";

/// The Engine of the tests, if one answers there.
fn engine() -> Option<String> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let answers = host.strip_prefix("unix://").is_none_or(|path| std::os::unix::net::UnixStream::connect(path).is_ok());
    if !answers {
        let is_required = std::env::var("GRIDSOCKET_TEST_ENGINE").is_ok_and(|value| value == "required");
        assert!(!is_required, "a Docker Engine is required, but none answers at {host}");
        println!("skipped: no Docker Engine");
    }
    answers.then_some(host)
}

/// What `gridsocket doctor --json` says, with these words, of an engine at `host`.
async fn doctor(host: &str, data: &Path, words: &[&str]) -> (Said, Value) {
    let said = ask(host, data, &[words, &["--json"]].concat()).await;
    let told = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    (said, told)
}

async fn ask(host: &str, data: &Path, words: &[&str]) -> Said {
    let data = format!("--data-directory={}", data.display());
    let mut command = gridsocket(&[&["doctor", &data], words].concat());
    command.env("DOCKER_HOST", host);
    finish(command).await
}

/// The finding of a check.
fn found<'a>(told: &'a Value, check: &str) -> &'a Value {
    let all = told["findings"].as_array().unwrap();
    all.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("nothing of {check}: {told:#}"))
}

fn assert_is(told: &Value, check: &str, level: &str, words: &str) {
    let finding = found(told, check);
    assert_eq!(finding["level"], level, "{finding:#}");
    let all = format!("{} {}", finding["seen"], finding["advice"]);
    assert!(all.contains(words), "{words:?} is not in {finding:#}");
}

/// Answers each connection with these bytes.
async fn server(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

#[tokio::test]
async fn where_all_is_there_it_says_so_and_leaves_nothing_behind() {
    let Some(host) = engine() else { return };
    let data = tempfile::tempdir().unwrap();
    let broker = Serving::start(&data.path().join("broker"), "127.0.0.1:0").await;
    let place = data.path().join("worker");
    let (said, told) = doctor(&host, &place, &["-a", &broker.api, "--min-free-disk", "0"]).await;
    assert_eq!((said.code, &told["ok"]), (Some(0), &Value::Bool(true)), "{said:?}");
    for check in
        ["engine", "engine api", "data directory", "same path", "broker", "clock", "network", "gpus", "open files"]
    {
        assert_eq!(found(&told, check)["level"], "ok", "{told:#}");
    }
    assert_is(&told, "broker", "ok", "gridsocket.v1");
    assert!(!place.exists(), "the data directory is made by a worker, not by who looks");
    assert_eq!(broker.end("-TERM").await, Some(0));
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_told_with_the_way_to_one() {
    let data = tempfile::tempdir().unwrap();
    let (said, told) = doctor(NO_ENGINE, data.path(), &["-a", "http://127.0.0.1:1"]).await;
    assert_eq!((said.code, &told["ok"]), (Some(1), &Value::Bool(false)));
    assert_is(&told, "engine", "fail", "systemctl start docker");
    // The rest is looked at all the same.
    assert_is(&told, "data directory", "ok", "written");
    assert_is(&told, "broker", "fail", "nothing answers");

    let socket = data.path().join("file");
    std::fs::write(&socket, "x").unwrap();
    let (_, told) = doctor(&format!("unix://{}", socket.display()), data.path(), &[]).await;
    assert_is(&told, "engine", "fail", "no socket");
    let (_, told) = doctor("tcp://127.0.0.1:1", data.path(), &[]).await;
    assert_is(&told, "engine", "fail", "DOCKER_HOST");
}

#[tokio::test]
async fn a_socket_that_this_user_may_not_use_is_told_with_the_group_that_may() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can be somebody else");
        return;
    }
    const NOBODY: u32 = 65534;
    let data = tempfile::tempdir().unwrap();
    let open = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    open(data.path(), 0o777);
    let socket = data.path().join("docker.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    open(&socket, 0o660);
    // A group that has a name on every system: tty's number differs, daemon's is 1 or 2.
    let groups = std::fs::read_to_string("/etc/group").unwrap();
    let (group, number) = groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .map(|entry| (entry[0].to_owned(), entry[2].parse::<u32>().unwrap()))
        .find(|(_, number)| *number != 0 && *number != NOBODY)
        .unwrap();
    std::os::unix::fs::chown(&socket, None, Some(number)).unwrap();
    // Nobody may not be let to where the binary was built.
    let program = data.path().join("gridsocket");
    if std::fs::hard_link(env!("CARGO_BIN_EXE_gridsocket"), &program).is_err() {
        std::fs::copy(env!("CARGO_BIN_EXE_gridsocket"), &program).unwrap();
    }
    open(&program, 0o755);
    let mut command = tokio::process::Command::new(&program);
    command.args(["doctor", "--json", "-a", "http://127.0.0.1:1", "-d"]).arg(data.path()).env_clear();
    command.env("DOCKER_HOST", format!("unix://{}", socket.display())).uid(NOBODY).gid(NOBODY).current_dir("/");
    let said = finish(command).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    let told: Value = serde_json::from_str(&said.out).unwrap();
    assert_is(&told, "engine", "fail", &format!("usermod -aG {group} $USER"));
}

#[tokio::test]
async fn what_is_no_broker_is_told_by_what_it_is() {
    let data = tempfile::tempdir().unwrap();
    let cases = [
        ("HTTP/1.1 421 Misdirected Request\r\nContent-Length: 0\r\n\r\n", "--public-url"),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "no broker"),
        ("HTTP/1.1 301 Moved\r\nLocation: https://b.example/q\r\nContent-Length: 0\r\n\r\n", "https://b.example/q"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "breaks the line"),
    ];
    for (answer, words) in cases {
        let api = server(answer).await;
        let (said, told) = doctor(NO_ENGINE, data.path(), &["-a", &api]).await;
        assert_eq!(said.code, Some(1));
        assert_is(&told, "broker", "fail", words);
    }
    let plain = server("HTTP/1.1 400 Bad Request\r\n\r\n").await.replace("http:", "https:");
    let (_, told) = doctor(NO_ENGINE, data.path(), &["-a", &plain]).await;
    assert_is(&told, "broker", "fail", "certificate");
    let (_, told) = doctor(NO_ENGINE, data.path(), &["-a", "http://no-such-name.invalid"]).await;
    assert_is(&told, "broker", "fail", "not known");
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_told() {
    let data = tempfile::tempdir().unwrap();
    let api =
        server("HTTP/1.1 404 Not Found\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n").await;
    let (_, told) = doctor(NO_ENGINE, data.path(), &["-a", &api]).await;
    assert_is(&told, "clock", "warn", "ahead of");
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_to_is_told() {
    // Nothing can be made there, whoever one is.
    let (said, told) = doctor(NO_ENGINE, Path::new("/proc/gridsocket"), &["-a", "http://127.0.0.1:1"]).await;
    assert_eq!(said.code, Some(1));
    assert_is(&told, "data directory", "fail", "--data-directory");
}

#[tokio::test]
async fn what_the_engine_has_not_is_told_with_what_it_has() {
    let Some(host) = engine() else { return };
    let data = tempfile::tempdir().unwrap();
    let words = ["-a", "http://127.0.0.1:1", "--network", "no-such-network", "--runtime", "no-such-runtime"];
    let (said, told) = doctor(&host, data.path(), &words).await;
    assert_eq!(said.code, Some(1));
    assert_is(&told, "network", "fail", "docker network create no-such-network");
    assert_is(&told, "network", "fail", "host");
    assert_is(&told, "runtime", "fail", "only ");
    let gpus = Path::new("/proc/driver/nvidia/gpus").exists();
    if !gpus {
        let (_, told) = doctor(&host, data.path(), &["-a", "http://127.0.0.1:1", "--gpus", "all"]).await;
        assert_is(&told, "gpus", "fail", "Toolkit");
    }
}

#[tokio::test]
async fn a_disk_with_less_than_was_asked_for_is_told() {
    let data = tempfile::tempdir().unwrap();
    let (said, told) =
        doctor(NO_ENGINE, data.path(), &["-a", "http://127.0.0.1:1", "--min-free-disk", "100000t"]).await;
    assert_eq!(said.code, Some(1));
    assert_is(&told, "disk", "fail", "--min-free-disk");
}

#[tokio::test]
async fn for_people_it_is_text_with_a_last_word_and_without_colours_where_there_is_no_terminal() {
    let data = tempfile::tempdir().unwrap();
    let said = ask(NO_ENGINE, data.path(), &["-a", "http://127.0.0.1:1"]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.out.contains("FAIL  engine  ") && said.out.contains("-> "), "{}", said.out);
    assert!(!said.out.contains('\x1b'));
    assert!(
        said.out.trim_end().ends_with("are mended.") || said.out.trim_end().ends_with("is mended."),
        "{}",
        said.out
    );
    assert_eq!(ask(NO_ENGINE, data.path(), &["--cpus", "0"]).await.code, Some(2));
    let local = ask(NO_ENGINE, data.path(), &["--mode=local", "-p", "0"]).await;
    assert!(local.out.contains("port  ") && !local.out.contains("broker  "), "{}", local.out);
}

#[tokio::test]
async fn a_worker_refuses_at_its_start_what_each_job_would_fail_on() {
    let data = tempfile::tempdir().unwrap();
    let place = format!("--data-directory={}", data.path().display());
    let run = |words: &[&str]| gridsocket(&[&["run", "q", "-a", "http://127.0.0.1:1", &place], words].concat());
    let said = finish(run(&["--drop-capabilities", "NET_RAWW"])).await;
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("--drop-capabilities") && said.err.contains("NET_RAWW"), "{said:?}");
    let Some(host) = engine() else { return };
    let mut command = run(&["--network", "no-such-network"]);
    command.env("DOCKER_HOST", &host);
    let said = finish(command).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("no network \"no-such-network\", only ") && said.err.contains("bridge"), "{said:?}");
}

#[tokio::test]
async fn a_worker_warns_of_gpus_that_nobody_has_seen() {
    let Some(host) = engine() else { return };
    let (_, told) =
        doctor(&host, tempfile::tempdir().unwrap().path(), &["-a", "http://127.0.0.1:1", "--gpus", "2"]).await;
    if found(&told, "gpus")["level"] != "warn" {
        println!("skipped: this machine, or its engine, knows of GPUs");
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let place = format!("--data-directory={}", data.path().display());
    let mut command = gridsocket(&["run", "q", "-a", "http://127.0.0.1:1", "--network", "none", "--gpus", "2", &place]);
    let mut worker = command.env("DOCKER_HOST", &host).spawn().unwrap();
    let mut lines = BufReader::new(worker.stderr.take().unwrap()).lines();
    let warned = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("--gpus 2 is offered") && line.contains("gridsocket doctor") {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(DEADLINE, warned).await.unwrap());
    worker.kill().await.unwrap();
}

//! The view of a worker: once as text, and live in a real terminal that is to be found afterwards as it was.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::process::{Child, ChildStdout, Command};

use crate::grid::DEADLINE;
use crate::run::run;

/// What a terminal is told when a view takes it, and when it gives it back.
const TAKEN: &str = "\u{1b}[?1049h";
const GIVEN_BACK: &str = "\u{1b}[?1049l";
/// What the shell around says when the terminal is set as before.
const AS_BEFORE: &str = "AS-BEFORE";

/// A worker of which there is only the socket.
struct Played {
    data: tempfile::TempDir,
    _telling: tokio_util::task::AbortOnDropHandle<()>,
}

impl Played {
    fn new(snapshot: Value) -> Self {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("remote");
        std::fs::create_dir(&folder).unwrap();
        let listener = UnixListener::bind(worker::observe::socket_path(&folder)).unwrap();
        let telling = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let _ = socket.write_all(snapshot.to_string().as_bytes()).await;
            }
        });
        Self { data, _telling: tokio_util::task::AbortOnDropHandle::new(telling) }
    }

    fn folder(&self) -> &str {
        self.data.path().to_str().unwrap()
    }
}

fn busy() -> Value {
    json!({
        "worker": "w1", "version": "9", "started_ms": 1_000, "at_ms": 61_000,
        "offered": { "cpus_milli": 2000 }, "taken": { "cpus_milli": 500 },
        "queues": [{ "name": "my-se…", "key": "1a2b", "connected_since_ms": 2_000 }],
        "engine": { "address": "unix:///d.sock", "is_reachable": true, "version": "20.10" },
        "runs": [{
            "job": "abcdef0123456789", "run": 1, "queue": "1a2b", "phase": "running", "phase_ms": 5_000, "age_ms": 9_000,
            "is_adopted": false, "cpus_milli": 500, "memory_bytes": 0, "gpus": [], "image": "alpine",
            "command": "echo \u{1b}]0;evil\u{7}\u{1b}[2J\u{202e}"
        }],
        "something": "that a later version tells"
    })
}

#[tokio::test]
async fn a_worker_is_shown_once_as_text_and_as_json() {
    let played = Played::new(busy());
    let text = run(&["top", "-d", played.folder(), "--once"]).await;
    assert_eq!(text.code, Some(0), "{text:?}");
    for part in [
        "worker w1 9 up 1m00s, working",
        "connected 59s",
        "CPUs 0.5 of 2",
        "abcdef01 run 1 running 9.0s",
        "alpine echo",
    ] {
        assert!(text.out.contains(part), "{part}: {}", text.out);
    }
    assert!(!text.out.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    // What is no terminal gets text without being asked.
    assert_eq!(run(&["top", "-d", played.folder()]).await.out, text.out);
    let json = run(&["top", "-d", played.folder(), "--json"]).await;
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&json["worker"], &json["runs"][0]["phase"]), (&"w1".into(), &"running".into()));
}

#[tokio::test]
async fn where_no_worker_is_the_way_to_one_is_said() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let nobody = run(&["top", "-d", folder]).await;
    assert_eq!(nobody.code, Some(1));
    for part in ["no worker runs here", folder, "gridsocket local", "--data-directory"] {
        assert!(nobody.err.contains(part), "{part}: {}", nobody.err);
    }
}

/// A command in a terminal of its own, with a shell around it that compares the terminal's settings.
struct Pty {
    child: Child,
    out: ChildStdout,
    said: String,
    pid: PathBuf,
}

impl Pty {
    fn start(folder: &Path, words: &str, env: &[(&str, &str)]) -> Self {
        let pid = folder.join("pid");
        let line = format!(
            "stty rows 24 cols 80; before=$(stty -g); sh -c 'echo $$ > {pid}; exec {binary} {words}'; code=$?; \
             [ \"$before\" = \"$(stty -g)\" ] && echo {AS_BEFORE} $code",
            pid = pid.display(),
            binary = env!("CARGO_BIN_EXE_gridsocket"),
        );
        let mut command = Command::new("script");
        command.args(["-q", "-e", "-c", &line, "/dev/null"]).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("TERM", "xterm").env("SHELL", "/bin/sh");
        command.envs(env.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.kill_on_drop(true).spawn().expect("script, of util-linux");
        let out = child.stdout.take().unwrap();
        Self { child, out, said: String::new(), pid }
    }

    /// Reads until it has said so.
    async fn until(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        let reading = async {
            while !self.said.contains(text) {
                let read = self.out.read(&mut buffer).await.unwrap();
                assert!(read > 0, "it ended without {text:?}: {:?}", self.said);
                self.said.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        };
        let done = tokio::time::timeout(DEADLINE, reading).await;
        assert!(done.is_ok(), "it does not say {text:?}: {:?}", self.said);
    }

    async fn press(&mut self, keys: &[u8]) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(keys).await.unwrap();
        stdin.flush().await.unwrap();
    }

    fn signal(&self, name: &str) {
        let pid = std::fs::read_to_string(&self.pid).unwrap();
        assert!(std::process::Command::new("kill").args([name, pid.trim()]).status().unwrap().success());
    }

    /// Nobody has the other end of its terminal any more.
    async fn hang_up(&mut self) -> PathBuf {
        let pid = std::fs::read_to_string(&self.pid).unwrap();
        self.child.kill().await.unwrap();
        PathBuf::from(format!("/proc/{}/stat", pid.trim()))
    }

    /// It ends, and the terminal is as it was.
    async fn restored(mut self, code: i32) {
        self.until(&format!("{AS_BEFORE} {code}")).await;
        let after = self.said.rsplit_once(TAKEN).unwrap().1;
        assert!(after.contains(GIVEN_BACK) && after.contains("\u{1b}[?25h"), "{after:?}");
    }
}

#[tokio::test]
async fn the_live_view_gives_the_terminal_back_however_it_ends() {
    let played = Played::new(busy());
    let words = format!("top -d {}", played.folder());
    for end in ["q", "\u{3}", "\u{1b}", "-TERM", "-INT"] {
        let mut pty = Pty::start(played.data.path(), &words, &[]);
        pty.until(TAKEN).await;
        pty.until("abcdef01").await;
        match end.strip_prefix('-') {
            Some(_) => pty.signal(end),
            None => pty.press(end.as_bytes()).await,
        }
        pty.restored(0).await;
    }
}

/// Whether the process of this `stat` is there; one that has ended may stay listed until somebody asks for its code.
fn lives(stat: &Path) -> bool {
    let said = std::fs::read_to_string(stat).unwrap_or_default();
    said.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

async fn ends(stat: &Path) {
    let ending = async {
        while lives(stat) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, ending).await.unwrap_or_else(|_| panic!("it goes on: {}", stat.display()));
}

#[tokio::test]
async fn a_view_whose_terminal_is_gone_ends() {
    let played = Played::new(busy());
    let mut pty = Pty::start(played.data.path(), &format!("top -d {}", played.folder()), &[]);
    pty.until("abcdef01").await;
    let stat = pty.hang_up().await;
    ends(&stat).await;
}

#[tokio::test]
async fn a_worker_whose_terminal_is_gone_works_on_without_a_view_and_can_be_ended() {
    let data = tempfile::tempdir().unwrap();
    let log = data.path().join("log");
    let words = format!("run q --tui -a http://127.0.0.1:9 -d {} 2>{}", data.path().display(), log.display());
    let engine = data.path().join("engine.sock");
    let _mute = UnixListener::bind(&engine).unwrap();
    let engine = format!("unix://{}", engine.display());
    let mut pty = Pty::start(data.path(), &words, &[("DOCKER_HOST", &engine)]);
    pty.until("q ends the worker").await;
    let stat = pty.hang_up().await;
    let told = async {
        while !std::fs::read_to_string(&log).unwrap().contains("the view has ended") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, told).await.expect("it does not say that its view has ended");
    assert!(lives(&stat));
    pty.signal("-TERM");
    ends(&stat).await;
}

#[tokio::test]
async fn a_view_without_colours_has_none() {
    let played = Played::new(busy());
    for (env, has_colour) in [(&[("NO_COLOR", "1")][..], false), (&[], true)] {
        let mut pty = Pty::start(played.data.path(), &format!("top -d {}", played.folder()), env);
        pty.until("abcdef01").await;
        pty.until("the worker goes on").await;
        // Green, as the crate that writes it spells it.
        let said = pty.said.clone();
        assert_eq!(said.contains("[38;5;2;"), has_colour, "{said:?}");
        assert_eq!(said.contains("[38;") || said.contains("[48;"), has_colour, "{said:?}");
        pty.press(b"q").await;
        pty.restored(0).await;
    }
}

#[tokio::test]
async fn a_worker_with_a_view_asks_before_it_ends() {
    let data = tempfile::tempdir().unwrap();
    let words = format!("run q --tui -a http://127.0.0.1:9 -d {}", data.path().display());
    // An engine that never answers, so that the worker waits for it.
    let engine = data.path().join("engine.sock");
    let _mute = UnixListener::bind(&engine).unwrap();
    let engine = format!("unix://{}", engine.display());
    let mut pty = Pty::start(data.path(), &words, &[("DOCKER_HOST", &engine)]);
    pty.until(TAKEN).await;
    pty.until("q ends the worker").await;
    pty.press(b"q").await;
    pty.until("end the worker?").await;
    pty.press(b"n").await;
    pty.press(b"\x03").await;
    pty.press(b"y").await;
    pty.restored(0).await;
}

#[tokio::test]
async fn where_there_is_no_terminal_the_flag_changes_nothing() {
    let data = tempfile::tempdir().unwrap();
    let mut command = crate::run::gridsocket(&[
        "run",
        "q",
        "--tui",
        "--log-format",
        "json",
        "-a",
        "http://127.0.0.1:9",
        "-d",
        data.path().to_str().unwrap(),
    ]);
    command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let mut child = command.spawn().unwrap();
    let mut err = String::new();
    let mut stderr = child.stderr.take().unwrap();
    let reading = async {
        let mut buffer = [0; 1024];
        while !err.contains('\n') {
            let read = stderr.read(&mut buffer).await.unwrap();
            assert!(read > 0, "{err}");
            err.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.unwrap();
    let line: Value = serde_json::from_str(err.lines().next().unwrap()).unwrap();
    assert_eq!(line["level"], "WARN");
    assert!(line["message"].as_str().unwrap().contains("no container engine"), "{line}");
    child.kill().await.unwrap();
}

//! Images that jobs describe, built by the real Engine with both of its builders.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use protocol::definition::Definition;
use protocol::event::RunOutcome;
use protocol::native::{HeldRun, LogKind, StopReason};
use serde_json::{Value, json};
use worker::Config;
use worker::config::Builder;

use crate::support::engine::IMAGE;
use crate::support::own_engine::{How, OwnEngine};
use crate::support::peer::{self, until};
use crate::support::registry::{LABEL, PASSWORD, Registry, USER, clear, tag};
use crate::support::{Line, Site, with_id};

const BOTH: [Builder; 2] = [Builder::Classic, Builder::BuildKit];

fn with(builder: Builder) -> impl FnOnce(&mut Config) {
    move |config| config.builds.builder = builder
}

/// A mark for all that one test builds.
fn mark() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A block that nobody built before: its text holds a word of its own.
fn fresh(mark: &str, dockerfile: &str) -> Value {
    json!({"dockerfile": format!("{}\n{dockerfile}\n", from(mark, IMAGE))})
}

/// The start of a Dockerfile that is like no other.
fn from(mark: &str, base: &str) -> String {
    format!("FROM {base}\nLABEL {LABEL}={mark}\nENV FRESH={}", uuid::Uuid::new_v4())
}

fn job(build: &Value, command: &str, n: u32) -> (protocol::id::JobId, String) {
    with_id(&json!({"build": build, "command": ["sh", "-c", command], "env": {"N": n.to_string()}}))
}

/// The image's name, which is the same everywhere.
fn name(build: &Value) -> String {
    use sha2::Digest as _;
    let text = json!({ "build": build }).to_string();
    let block = Definition::parse(text.as_bytes()).unwrap().build.unwrap().value;
    let hash = sha2::Sha256::digest(protocol::json::to_canonical_json(&block));
    format!("ttl.sh/{}:1d", hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn build_log(line: &Line, run: HeldRun) -> String {
    line.logs.of(run, LogKind::Build).into_iter().map(|line| line.text).collect()
}

async fn succeeds(line: &mut Line, run: HeldRun) -> String {
    let (finished, told) = line.end(run).await;
    assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(0)), "{told}");
    line.logs.text(run, false)
}

async fn fails(line: &mut Line, run: HeldRun) -> Value {
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Error, "{told}");
    assert_eq!(told["result"]["error"], "Error");
    told["result"]["logs"].clone()
}

fn tar_gz(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dockerfiles_text_is_built_once_for_all_runs_that_want_it() {
    let Some(mut site) = Site::new().await else { return };
    let mark = mark();
    for builder in BOTH {
        let (worker, mut line) = site.started_with(with(builder)).await;
        let build = fresh(
            &mark,
            "RUN id=$(cat /proc/sys/kernel/random/uuid); echo \"made $id\"; echo careful >&2; echo $id > /id",
        );
        let runs = [line.grant(job(&build, "cat /id", 1)).await, line.grant(job(&build, "cat /id", 2)).await];
        let first = succeeds(&mut line, runs[0]).await;
        assert_eq!(succeeds(&mut line, runs[1]).await, first, "{builder:?}: one build serves both");
        for run in runs {
            let log = build_log(&line, run);
            assert!(log.contains(&format!("made {first}")) && log.contains("careful\n"), "{builder:?}: {log}");
        }
        worker.stop(worker::ShutdownMode::Leave).await;
        let (worker, mut line) = site.started_with(with(builder)).await;
        let later = line.grant(job(&build, "cat /id", 3)).await;
        assert_eq!(succeeds(&mut line, later).await, first, "{builder:?}: a later run finds it");
        assert_eq!(build_log(&line, later), "");
        worker.stop(worker::ShutdownMode::Leave).await;
        site.engine.docker.inspect_image(&name(&build)).await.expect("its name is that of the existing system");
    }
    site.assert_clean().await;
    clear(&site.engine, &mark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archives_files_are_built_by_all_the_words_of_the_block() {
    let Some(mut site) = Site::new().await else { return };
    let mark = mark();
    let dockerfile = format!(
        "FROM {IMAGE} AS base\nLABEL {LABEL}={mark}\nARG WORD=none\nENV FRESH={}\nRUN echo \"$WORD\" > /word\nFROM base AS wanted\nCOPY . /app\nFROM base\nRUN false\n",
        uuid::Uuid::new_v4()
    );
    let files = [
        ("top/sub/file", "from the archive"),
        ("top/sub/secret", "left at home"),
        ("top/sub/.dockerignore", "secret\n"),
        ("top/docker/My.dockerfile", dockerfile.as_str()),
    ];
    site.peer.blobs.put("/grid/f/context", &tar_gz(&files));
    let build = json!({
        "context": format!("{}/f/context", site.peer.address()), "buildContext": "sub", "filename": "docker/My.dockerfile",
        "target": "wanted", "buildArgs": ["WORD=given"],
    });
    for builder in BOTH {
        let (worker, mut line) = site.started_with(with(builder)).await;
        let run = line.grant(job(&build, "cat /word /app/file; ls -a /app", 1)).await;
        let said = succeeds(&mut line, run).await;
        let log = build_log(&line, run);
        assert!(said.starts_with("given\nfrom the archive") && !said.contains("secret"), "{builder:?}: {said}\n{log}");
        assert!(log.contains("/grid/f/context") && log.contains("with WORD") && !log.contains("WORD=given"), "{log}");
        worker.stop(worker::ShutdownMode::Leave).await;
        // The other builder builds it, too.
        clear(&site.engine, &mark).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_fails_says_why_and_the_worker_goes_on() {
    let Some(mut site) = Site::new().await else { return };
    let mark = mark();
    for builder in BOTH {
        let (worker, mut line) = site.started_with(with(builder)).await;
        let run = line.grant(job(&fresh(&mark, "RUN echo so far; exit 7"), "true", 1)).await;
        let logs = fails(&mut line, run).await.to_string();
        assert!(logs.contains("so far") && logs.contains("could not be built"), "{builder:?}: {logs}");
        let next = line.grant(with_id(&json!({"image": IMAGE, "command": "echo still here"}))).await;
        assert_eq!(succeeds(&mut line, next).await, "still here\n");
        worker.stop(worker::ShutdownMode::Leave).await;
    }
    site.assert_clean().await;
    clear(&site.engine, &mark).await;
}

/// Whether a process with that word among its arguments runs on this machine.
fn is_running(word: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .any(|line| line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_nobody_wants_any_more_is_ended_in_the_engine() {
    let Some(mut site) = Site::new().await else { return };
    let mark = mark();
    for (builder, seconds) in BOTH.into_iter().zip(["98761", "98762"]) {
        let (worker, mut line) = site.started_with(with(builder)).await;
        let run = line.grant(job(&fresh(&mark, &format!("RUN sleep {seconds}")), "true", 1)).await;
        until("the build runs", async || is_running(seconds)).await;
        line.stop(run, StopReason::Cancelled).await;
        until("the build is ended", async || !is_running(seconds)).await;
        line.until(|line| line.claims.last().is_some_and(|free| free.cpus_milli == 2000)).await;
        worker.stop(worker::ShutdownMode::Leave).await;
    }
    site.assert_clean().await;
    clear(&site.engine, &mark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_ends_at_its_time_limit() {
    let Some(mut site) = Site::new().await else { return };
    let mark = mark();
    let (_worker, mut line) = site.started_with(|config| config.builds.duration_ms_max = 3_000).await;
    let run = line.grant(job(&fresh(&mark, "RUN sleep 98763"), "true", 1)).await;
    let logs = fails(&mut line, run).await.to_string();
    assert!(logs.contains("stopped after 3 s"), "{logs}");
    until("the build is ended", async || !is_running("98763")).await;
    clear(&site.engine, &mark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_builds_nothing_says_so() {
    let Some(mut site) = Site::new().await else { return };
    let mark = mark();
    let (_worker, mut line) = site.started_with(|config| config.builds.at_once = 0).await;
    let run = line.grant(job(&fresh(&mark, ""), "true", 1)).await;
    assert!(fails(&mut line, run).await.to_string().contains("builds no images"));
    clear(&site.engine, &mark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_files_are_refused_before_the_engine_sees_them() {
    let Some(mut site) = Site::new().await else { return };
    let dockerfile = format!("FROM {IMAGE}");
    let mut escape = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..12].copy_from_slice(b"../../escape");
    header.set_size(0);
    header.set_cksum();
    escape.append(&header, std::io::empty()).unwrap();
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&tar_of_zeros(3 << 20)).unwrap();
    let archives = [
        ("escape", escape.into_inner().unwrap(), "`..` segment"),
        ("bomb", bomb.finish().unwrap(), "1048576 bytes that this worker allows"),
        ("page", b"<html>no archive</html>".to_vec(), "web page"),
    ];
    let (_worker, mut line) = site.started_with(|config| config.builds.context_bytes_max = 1 << 20).await;
    for (name, bytes, words) in archives {
        site.peer.blobs.put(&format!("/grid/f/{name}"), &bytes);
        let build = json!({"context": format!("{}/f/{name}", site.peer.address()), "dockerfile": dockerfile});
        let run = line.grant(job(&build, "true", 1)).await;
        let logs = fails(&mut line, run).await.to_string();
        assert!(logs.contains(words), "{name}: {logs}");
    }
    let builds = site.data.path().join("remote/builds");
    assert_eq!(std::fs::read_dir(builds).unwrap().count(), 0, "nothing is left");
    site.assert_clean().await;
}

fn tar_of_zeros(bytes: u64) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    tar.append_data(&mut header, "zeros", std::io::Read::take(std::io::repeat(0), bytes)).unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_in_an_address_is_in_no_log() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let address = site.peer.address().replace("http://", "");
    for context in [
        format!("http://me:t0ken-a@{address}/nothing.tar.gz?sig=t0ken-b"),
        "ssh://me:t0ken-a@h/x".to_owned(),
        "https://t0ken-a@github.com/a/b/blob/x".to_owned(),
        format!("http://me:t0ken-a@{address}/nothing.git#main"),
    ] {
        let run = line.grant(job(&json!({ "context": context }), "true", 1)).await;
        let logs = fails(&mut line, run).await.to_string();
        assert!(!logs.contains("t0ken") && !build_log(&line, run).contains("t0ken"), "{logs}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_base_is_fetched_with_the_workers_login() {
    let (Some(mut site), Some(registry)) = (Site::new().await, Registry::start(true).await) else { return };
    for (builder, base) in BOTH.into_iter().zip(["gs/base:1", "gs/base:2"]) {
        let base = registry.publish(&site.engine, base, "private base").await;
        let login = format!("{}={USER}:{PASSWORD}", registry.host).parse().unwrap();
        let (worker, mut line) = site
            .started_with(|config| {
                with(builder)(config);
                config.images.logins = vec![login];
            })
            .await;
        let build = json!({"dockerfile": format!("FROM {base}\nENV FRESH={}", uuid::Uuid::new_v4())});
        let definition = with_id(&json!({"build": build, "command": ["/busybox", "cat", "/word"]}));
        let run = line.grant(definition).await;
        assert_eq!(succeeds(&mut line, run).await, "private base", "{builder:?}");
        assert!(!build_log(&line, run).contains(PASSWORD));
        worker.stop(worker::ShutdownMode::Leave).await;
    }
    clear(&site.engine, &registry.host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_came_from_a_registry_is_never_taken_for_a_built_one() {
    let (Some(mut site), Some(registry)) = (Site::new().await, Registry::start(false).await) else { return };
    let mark = mark();
    let evil = registry.publish(&site.engine, "gs/evil:1", "evil").await;
    let (worker, mut line) = site.started().await;
    let pull = line.grant(with_id(&json!({"image": evil, "command": ["/busybox", "true"]}))).await;
    succeeds(&mut line, pull).await;
    let build = fresh(&mark, "RUN echo good > /word");
    tag(&site.engine, &evil, &name(&build)).await;
    let run = line.grant(job(&build, "cat /word", 1)).await;
    assert_eq!(succeeds(&mut line, run).await, "good\n");
    worker.stop(worker::ShutdownMode::Leave).await;
    clear(&site.engine, &mark).await;
    clear(&site.engine, &registry.host).await;
}

/// A repository with two branches, served as git servers do; gives its address and the first commit.
async fn repository(folder: &std::path::Path, dockerfile: &str) -> Option<(String, String)> {
    let work = folder.join("work");
    let git = |arguments: &[&str]| {
        let said = std::process::Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=trunk"])
            .args(arguments)
            .current_dir(if work.exists() { &work } else { folder })
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .ok()?;
        said.status.success().then(|| String::from_utf8(said.stdout).unwrap().trim().to_owned())
    };
    git(&["init", "-q", "work"])?;
    std::fs::create_dir(work.join("app")).unwrap();
    std::fs::write(work.join("app/Dockerfile"), dockerfile).unwrap();
    std::fs::write(work.join("app/word"), "first").unwrap();
    git(&["add", "."])?;
    git(&["commit", "-q", "-m", "one"])?;
    let first = git(&["rev-parse", "HEAD"])?;
    std::fs::write(work.join("app/word"), "second").unwrap();
    git(&["commit", "-q", "-a", "-m", "two"])?;
    git(&["branch", "side/x", &first])?;
    git(&["clone", "-q", "--bare", ".", "../served.git"])?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let root = folder.to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(peer::git_backend(stream, root.clone()));
        }
    });
    Some((format!("http://{address}/served.git"), first))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_is_built_at_the_version_that_its_address_names() {
    let Some(mut site) = Site::new().await else { return };
    let mark = mark();
    let folder = tempfile::tempdir().unwrap();
    let dockerfile = format!("{}\nCOPY word /word\n", from(&mark, IMAGE));
    let Some((address, first)) = repository(folder.path(), &dockerfile).await else {
        println!("skipped: no git");
        return;
    };
    let (_worker, mut line) = site.started().await;
    let versions = [
        ("#:app".to_owned(), "second"),
        ("#trunk:app".to_owned(), "second"),
        ("#side/x:app".to_owned(), "first"),
        (format!("#{first}:app"), "first"),
        (format!("#{}:app", &first[..10]), "first"),
    ];
    for (version, word) in versions {
        let build = json!({"context": format!("{}{version}", address.replace("http://", "http://me:t0ken@"))});
        let run = line.grant(job(&build, "cat /word", 1)).await;
        assert_eq!(succeeds(&mut line, run).await, word, "{version}");
        let log = build_log(&line, run);
        assert!(log.contains("is commit") && !log.contains("t0ken"), "{log}");
    }
    let run = line.grant(job(&json!({"context": format!("{address}#nothing")}), "true", 1)).await;
    assert!(fails(&mut line, run).await.to_string().contains("git says"));
    clear(&site.engine, &mark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_at_private_addresses_are_not_fetched_where_jobs_may_not_reach_them() {
    let Some(mut site) = Site::new().await else { return };
    let refusing = |config: &mut Config| config.files.fetch_private = worker::config::FetchPrivate::Refuse;
    let (_worker, mut line) = site.started_with(refusing).await;
    // Whoever asks is seen, and answered with what could be built.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let inside = listener.local_addr().unwrap();
    let (sender, mut asked) = tokio::sync::mpsc::channel::<()>(16);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            let _ = sender.send(()).await;
        }
    });
    for context in [
        format!("http://{inside}/x.tar.gz"),
        format!("http://localhost:{}/x.tar.gz", inside.port()),
        format!("http://{inside}/x.git"),
        format!("http://2130706433:{}/x.git#main", inside.port()),
        format!("http://me:t0ken@{inside}/x.git"),
    ] {
        let run = line.grant(job(&json!({ "context": context, "dockerfile": "FROM scratch" }), "true", 1)).await;
        let logs = fails(&mut line, run).await.to_string();
        assert!(logs.contains("private address") || logs.contains("git program"), "{context}: {logs}");
        assert!(!logs.contains("t0ken"));
    }
    assert!(asked.try_recv().is_err(), "nobody came");
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_of_a_deleted_job_goes_unless_something_else_uses_it() {
    let Some(mut site) = Site::new().await else { return };
    let mark = mark();
    let (_worker, mut line) = site.started().await;
    let builds = [fresh(&mark, "RUN true"), fresh(&mark, "RUN true")];
    let waits = "echo up; while [ ! -e /outputs/go ]; do sleep 0.1; done";
    let mut runs = Vec::new();
    for (build, n) in [(&builds[0], 1), (&builds[1], 2)] {
        let run = line.grant(job(build, waits, n)).await;
        line.until(|line| line.logs.text(run, false) == "up\n").await;
        runs.push(run);
    }
    // One image is also that of a container that nobody here knows of.
    let body = bollard::models::ContainerCreateBody { image: Some(name(&builds[1])), ..Default::default() };
    let other = site.engine.docker.create_container(None, body).await.unwrap();
    for run in runs {
        line.stop(run, StopReason::Deleted).await;
    }
    let is_there = async |build: &Value| site.engine.docker.inspect_image(&name(build)).await.is_ok();
    until("the image is gone", async || !is_there(&builds[0]).await).await;
    site.engine.until_containers(&site.queue, 0).await;
    assert!(is_there(&builds[1]).await, "it is in use");
    site.engine.docker.remove_container(&other.id, None).await.unwrap();
    // A job that only ended leaves its image to the next.
    let run = line.grant(job(&builds[0], "true", 3)).await;
    succeeds(&mut line, run).await;
    site.engine.until_containers(&site.queue, 0).await;
    assert!(is_there(&builds[0]).await);
    clear(&site.engine, &mark).await;
}

/// A registry for builds at `registry`.
fn kept_at(registry: &Registry) -> impl Fn(&mut Config) + use<> {
    let place = format!("{}/builds/of/tests", registry.host);
    move |config| config.builds.registry = Some(place.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_with_a_registry_of_its_own_builds_an_image_once() {
    let (Some(mut site), Some(mut registry)) = (Site::new().await, Registry::start(true).await) else { return };
    let Some(own) = OwnEngine::start(How::default()).await else { return };
    registry.is_also_at(&own).await;
    let mark = mark();
    let login: worker::config::RegistryLogin = format!("{}={USER}:{PASSWORD}", registry.host).parse().unwrap();
    let kept = kept_at(&registry);
    let with_login = |config: &mut Config| {
        kept(config);
        config.images.logins = vec![login.clone()];
    };
    let build = fresh(&mark, "RUN cat /proc/sys/kernel/random/uuid > /id");
    let (worker, mut line) = site.started_with(with_login).await;
    let run = line.grant(job(&build, "cat /id", 1)).await;
    let first = succeeds(&mut line, run).await;
    let log = build_log(&line, run);
    assert!(log.contains("not there yet") && log.contains("\nsent\n") && !log.contains(PASSWORD), "{log}");
    let names = site.engine.docker.inspect_image(&name(&build)).await.unwrap().repo_tags.unwrap();
    assert_eq!(names, [name(&build)], "its other name is only for the way");
    worker.stop(worker::ShutdownMode::Leave).await;

    // Another machine, as it were, with a data directory of its own.
    let (here, data) = (std::mem::replace(&mut site.engine, own.client().await), tempfile::tempdir().unwrap());
    let elsewhere = |config: &mut Config| {
        with_login(config);
        config.data_directory = data.path().to_owned();
    };
    let (worker, mut line) = site.started_with(elsewhere).await;
    let run = line.grant(job(&build, "cat /id", 2)).await;
    let said = succeeds(&mut line, run).await;
    let log = build_log(&line, run);
    assert_eq!(said, first, "it was not built again: {log}");
    assert!(log.contains("which was built before") && !log.contains("building ") && !log.contains(PASSWORD), "{log}");
    let again = line.grant(job(&build, "cat /id", 3)).await;
    assert_eq!(succeeds(&mut line, again).await, first);
    assert_eq!(build_log(&line, again), "", "what was fetched is taken for what was built");
    worker.stop(worker::ShutdownMode::Leave).await;
    site.assert_clean().await;

    // And here, after somebody removed it.
    site.engine = here;
    clear(&site.engine, &mark).await;
    let (_worker, mut line) = site.started_with(with_login).await;
    let run = line.grant(job(&build, "cat /id", 4)).await;
    assert_eq!(succeeds(&mut line, run).await, first);
    clear(&site.engine, &mark).await;
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_does_not_take_images_is_a_warning_and_the_job_runs() {
    let (Some(mut site), Some(registry)) = (Site::new().await, Registry::start(true).await) else { return };
    let mark = mark();
    // It asks for a login, and there is none.
    let (worker, mut line) = site.started_with(kept_at(&registry)).await;
    let run = line.grant(job(&fresh(&mark, "RUN true"), "echo ran", 1)).await;
    assert_eq!(succeeds(&mut line, run).await, "ran\n");
    let log = build_log(&line, run);
    assert!(log.contains("warning: cannot send it") && log.contains("cannot fetch"), "{log}");
    worker.stop(worker::ShutdownMode::Leave).await;
    // Nobody listens there any more.
    let gone = kept_at(&registry);
    drop(registry);
    let (_worker, mut line) = site.started_with(gone).await;
    let run = line.grant(job(&fresh(&mark, "RUN true"), "echo ran", 2)).await;
    assert_eq!(succeeds(&mut line, run).await, "ran\n");
    clear(&site.engine, &mark).await;
    site.assert_clean().await;
}

//! Images from a real registry: when they are fetched, as whom, and how many are kept.

use protocol::event::RunOutcome;
use protocol::native::{HeldRun, LogKind};
use serde_json::{Value, json};
use worker::config::{PullPolicy, RegistryLogin};

use crate::support::peer::until;
use crate::support::registry::{Broken, PASSWORD, Registry, USER, clear, forget, make, tag};
use crate::support::{Line, Site, with_id};

/// A job that tells the image's word; each `n` is another job.
fn job(image: &str, n: u32) -> (protocol::id::JobId, String) {
    with_id(&json!({"image": image, "command": ["/busybox", "cat", "/word"], "env": {"N": n.to_string()}}))
}

/// Runs the job and gives what its image says.
async fn word(line: &mut Line, image: &str, n: u32) -> String {
    let run = line.grant(job(image, n)).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Success, "{told}");
    line.logs.text(run, false)
}

/// Runs the job, which must fail for want of its image, and gives all that was said.
async fn refused(line: &mut Line, image: &str, n: u32) -> (HeldRun, Value) {
    let run = line.grant(job(image, n)).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Error, "{told}");
    assert_eq!(told["result"]["error"], "Error");
    (run, told)
}

fn build_log(line: &Line, run: HeldRun) -> String {
    line.logs.of(run, LogKind::Build).into_iter().map(|line| line.text).collect()
}

async fn is_there(site: &Site, image: &str) -> bool {
    site.engine.docker.inspect_image(image).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_image_needs_a_login_and_nobody_hears_it() {
    let (Some(mut site), Some(registry)) = (Site::new().await, Registry::start(true).await) else { return };
    let image = registry.publish(&site.engine, "gs/private:1", "private").await;
    let (worker, mut line) = site.started().await;
    let (_, told) = refused(&mut line, &image, 1).await;
    assert!(told.to_string().contains("cannot pull"), "{told}");
    worker.stop(worker::ShutdownMode::Leave).await;
    let login: RegistryLogin = format!("{}={USER}:{PASSWORD}", registry.host).parse().unwrap();
    let (worker, mut line) = site.started_with(|config| config.images.logins = vec![login]).await;
    let run = line.grant(job(&image, 2)).await;
    let (_, told) = line.end(run).await;
    assert_eq!(line.logs.text(run, false), "private", "{told}");
    assert!(!told.to_string().contains(PASSWORD) && !build_log(&line, run).contains(PASSWORD));
    worker.stop(worker::ShutdownMode::Leave).await;
    clear(&site.engine, &registry.host).await;
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_login_of_dockers_own_file_is_taken() {
    use base64::Engine as _;
    let (Some(mut site), Some(registry)) = (Site::new().await, Registry::start(true).await) else { return };
    let image = registry.publish(&site.engine, "gs/private:1", "private").await;
    let docker = tempfile::tempdir().unwrap();
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let file = json!({"auths": {registry.host.clone(): {"auth": auth}}});
    std::fs::write(docker.path().join("config.json"), file.to_string()).unwrap();
    let folder = Some(docker.path().to_owned());
    let (_worker, mut line) = site.started_with(|config| config.images.docker_config = folder).await;
    assert_eq!(word(&mut line, &image, 1).await, "private");
    clear(&site.engine, &registry.host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_breaks_in_the_middle_is_an_error_and_the_next_one_is_whole() {
    let (Some(mut site), Some(registry)) = (Site::new().await, Registry::start(false).await) else { return };
    let direct = registry.publish(&site.engine, "gs/broken:1", "whole").await;
    let way = Broken::before(&registry).await;
    let image = direct.replace(&registry.host, &way.host);
    let (_worker, mut line) = site.started().await;
    let (_, told) = refused(&mut line, &image, 1).await;
    assert!(told["result"]["logs"].to_string().contains("cannot pull"), "{told}");
    assert!(way.cuts.load(std::sync::atomic::Ordering::Relaxed) > 0);
    way.is_broken.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(word(&mut line, &image, 2).await, "whole");
    clear(&site.engine, &registry.host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_an_image_is_fetched_is_the_workers_word() {
    let (Some(mut site), Some(registry)) = (Site::new().await, Registry::start(false).await) else { return };
    let floating = registry.publish(&site.engine, "gs/float:latest", "old").await;
    let fixed = registry.publish(&site.engine, "gs/fixed:1.0", "old").await;
    let policy = |pull| move |config: &mut worker::Config| config.images.pull = pull;
    let (worker, mut line) = site.started_with(policy(PullPolicy::Never)).await;
    let (_, told) = refused(&mut line, &floating, 0).await;
    assert!(told.to_string().contains("fetches none"), "{told}");
    worker.stop(worker::ShutdownMode::Leave).await;

    let (worker, mut line) = site.started_with(policy(PullPolicy::Missing)).await;
    assert_eq!(word(&mut line, &floating, 1).await, "old");
    assert_eq!(word(&mut line, &fixed, 2).await, "old");
    // Published anew: only a name is taken away here, the images stay.
    for image in [&floating, &fixed] {
        let kept = image.replace("/gs/", "/kept/");
        tag(&site.engine, image, &kept).await;
        registry.publish(&site.engine, image.split_once('/').unwrap().1, "new").await;
        tag(&site.engine, &kept, image).await;
        forget(&site.engine, &kept).await;
    }
    assert_eq!(word(&mut line, &floating, 3).await, "old");
    worker.stop(worker::ShutdownMode::Leave).await;

    let (worker, mut line) = site.started_with(policy(PullPolicy::Floating { after_ms: 3_600_000 })).await;
    assert_eq!(word(&mut line, &floating, 4).await, "old", "it was named less than an hour ago");
    worker.stop(worker::ShutdownMode::Leave).await;
    let (worker, mut line) = site.started_with(policy(PullPolicy::Floating { after_ms: 1 })).await;
    assert_eq!(word(&mut line, &floating, 5).await, "new");
    assert_eq!(word(&mut line, &fixed, 6).await, "old", "a version is not looked for again");
    worker.stop(worker::ShutdownMode::Leave).await;

    let (worker, mut line) = site.started_with(policy(PullPolicy::Always)).await;
    assert_eq!(word(&mut line, &fixed, 7).await, "new");
    worker.stop(worker::ShutdownMode::Leave).await;

    let mark = registry.host.clone();
    drop(registry);
    let (_worker, mut line) = site.started_with(policy(PullPolicy::Floating { after_ms: 1 })).await;
    let run = line.grant(job(&floating, 8)).await;
    assert_eq!(line.end(run).await.0.outcome, RunOutcome::Success, "what is here serves while the registry is away");
    assert!(build_log(&line, run).contains("cannot look for a newer"));
    clear(&site.engine, &mark).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_the_worker_fetched_the_least_recently_used_goes_and_nothing_else() {
    let (Some(mut site), Some(registry)) = (Site::new().await, Registry::start(false).await) else { return };
    let mut images = Vec::new();
    for name in ["gs/a:1", "gs/b:1", "gs/c:1", "gs/ready:1"] {
        images.push(registry.publish(&site.engine, name, name).await);
    }
    let theirs = format!("{}/gs/theirs:1", registry.host);
    make(&site.engine, &theirs, "theirs").await;
    let [a, b, c, ready] = images.as_slice() else { unreachable!() };
    let bytes = u64::try_from(site.engine.docker.inspect_image(&theirs).await.unwrap().size.unwrap()).unwrap();
    // Room for three, one of which was asked for at the start.
    let room = |config: &mut worker::Config| {
        config.images.cache_bytes_max = Some(bytes * 3 + bytes / 2);
        config.images.prepull = vec![ready.clone()];
    };
    let (worker, mut line) = site.started_with(room).await;
    until("the image that was asked for is there", async || is_there(&site, ready).await).await;
    assert_eq!(word(&mut line, &theirs, 0).await, "theirs");
    assert_eq!(word(&mut line, a, 1).await, "gs/a:1");
    assert_eq!(word(&mut line, b, 2).await, "gs/b:1");
    assert_eq!(word(&mut line, a, 3).await, "gs/a:1");
    worker.stop(worker::ShutdownMode::Leave).await;
    // A restarted worker still knows which are its own, and which it used last.
    let (_worker, mut line) = site.started_with(room).await;
    assert_eq!(word(&mut line, c, 4).await, "gs/c:1");
    until("the image unused for longest is gone", async || !is_there(&site, b).await).await;
    for image in [a, c, ready, &theirs] {
        assert!(is_there(&site, image).await, "{image} is still here");
    }
    clear(&site.engine, &registry.host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_name_of_an_image_never_reaches_the_engine() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    for (n, bad) in ["../info", "x/../../info?y=", "a b", "https://github.com/a/b"].into_iter().enumerate() {
        let (_, told) = refused(&mut line, bad, u32::try_from(n).unwrap()).await;
        assert!(told.to_string().contains("not the name of an image"), "{told}");
    }
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_one_however_it_is_spelled() {
    let (Some(mut site), Some(registry)) = (Site::new().await, Registry::start(false).await) else { return };
    let full = registry.publish(&site.engine, "gs/one:latest", "one").await;
    let short = full.trim_end_matches(":latest").to_owned();
    let ready = registry.publish(&site.engine, "gs/ready:latest", "ready").await;
    let asked_for = ready.trim_end_matches(":latest").to_owned();
    // Nothing is kept but what was asked for at the start, by another spelling than jobs have.
    let (worker, mut line) = site
        .started_with(|config| {
            config.images.cache_bytes_max = Some(0);
            config.images.prepull = vec![asked_for];
        })
        .await;
    until("the image that was asked for is there", async || is_there(&site, &ready).await).await;
    assert_eq!(word(&mut line, &ready, 1).await, "ready");
    let runs = [line.grant(job(&full, 2)).await, line.grant(job(&short, 3)).await];
    for run in runs {
        let (finished, told) = line.end(run).await;
        assert_eq!(finished.outcome, RunOutcome::Success, "{told}");
        assert_eq!(line.logs.text(run, false), "one");
    }
    assert!(is_there(&site, &ready).await, "it is kept");
    worker.stop(worker::ShutdownMode::Leave).await;
    let ledger = std::fs::read(site.data.path().join("remote/images.json")).unwrap();
    let ledger: serde_json::Map<String, Value> = serde_json::from_slice(&ledger).unwrap();
    assert!(ledger.contains_key(&ready) && ledger.keys().all(|name| name.ends_with(":latest")), "{ledger:?}");
    clear(&site.engine, &registry.host).await;
    site.assert_clean().await;
}

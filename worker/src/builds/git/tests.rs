//! The program itself, with words that make it do what no repository should.

use std::path::Path;
use std::time::{Duration, Instant};

use super::program::End;
use super::*;

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn program(home: &Path) -> Program<'_> {
    Program { home, settings: &[], bytes_max: 1 << 20, memory_kib_max: 256 * 1024 }
}

/// Git runs what is behind a `!` in a shell.
async fn run(program: &Program<'_>, words: &str) -> Option<End> {
    let alias = format!("alias.x=!{words}");
    let ended = tokio::time::timeout(PATIENCE, program.run(&["-c", &alias, "x"])).await.expect("it ends").unwrap();
    if matches!(ended, End::NoGit) {
        println!("skipped: no git");
        return None;
    }
    Some(ended)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "a test's patience is real time")]
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn git_gives_what_it_says_and_how_it_ended() {
    let home = tempfile::tempdir().unwrap();
    let Some(End::Done(said)) = run(&program(home.path()), "echo fine").await else { return };
    assert_eq!(said, "fine\n");
    let Some(End::Failed { said }) = run(&program(home.path()), "echo bad >&2; false").await else { panic!() };
    assert!(said.contains("bad"), "{said}");
}

#[tokio::test]
async fn git_gets_no_more_memory_than_it_may_have() {
    let home = tempfile::tempdir().unwrap();
    // All of what has no line end is one line, which is kept.
    let ended = run(&program(home.path()), "tail -n 1 /dev/zero > /dev/null 2>&1; echo ended: $? >&2; false").await;
    let Some(ended) = ended else { return };
    let End::Failed { said } = ended else { panic!("it had all the memory it wanted") };
    assert!(said.contains("ended:") && !said.contains("ended: 0"), "{said}");
}

#[tokio::test]
async fn neither_one_large_file_nor_many_small_ones_fill_the_disk() {
    for words in
        ["head -c 100000000 /dev/zero > big", "i=0; while :; do i=$((i+1)); head -c 10000 /dev/zero > f$i; done"]
    {
        let home = tempfile::tempdir().unwrap();
        let Some(ended) = run(&program(home.path()), words).await else { return };
        assert!(matches!(ended, End::TooLarge), "{words}");
        let taken = crate::container::below(home.path(), u64::MAX);
        assert!(taken < 1 << 30, "{taken}");
    }
}

#[tokio::test]
async fn when_the_worker_is_killed_all_that_it_started_ends() {
    use rustix::process::{Pid, test_kill_process_group};
    let home = tempfile::tempdir().unwrap();
    let program = program(home.path());
    let mut child = program.command(&["-c", "alias.x=!echo up; sleep 98764 & sleep 98764", "x"]).spawn().unwrap();
    let group = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    let mut said = [0; 3];
    let mut stdout = child.stdout.take().unwrap();
    if tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut said).await.is_err() {
        println!("skipped: no git");
        return;
    }
    // What the system does with it when the process ends.
    drop(child.stdin.take());
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert!(!ended.success());
    until("nothing of it runs", || {
        test_kill_process_group(group).is_err() || only_zombies(group.as_raw_nonzero().get())
    });
}

/// Who has ended and was not asked for is nobody any more; not every machine has somebody who asks.
fn only_zombies(group: i32) -> bool {
    let stats = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = stats.filter_map(|process| std::fs::read_to_string(process.path().join("stat")).ok());
    let of_group = stats.filter_map(|stat| {
        let rest: Vec<String> = stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect();
        (rest.get(2)?.parse() == Ok(group)).then(|| rest[0].clone())
    });
    of_group.into_iter().all(|state| state == "Z" || state == "X")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_nobody_waits_for_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::new(folder.path()).unwrap();
    let path = home.path().to_owned();
    let fetch = tokio::spawn(async move {
        let program = Program { bytes_max: u64::MAX / 4, ..program(home.path()) };
        // It makes folders faster than one can remove them.
        run(&program, "i=0; while :; do i=$((i+1)); mkdir -p d/$i/$i; : > d/$i/x; done").await;
    });
    until("it is at work", || path.join("d/9").exists() || fetch.is_finished());
    fetch.abort();
    until("the folder is gone", || !path.exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn addresses_are_told_as_curl_reads_them_to_a_git_that_listens() {
    let addresses = ["93.184.216.34", "2606:2800:220:1::1"].map(|text| text.parse().unwrap());
    assert_eq!(pinned("h.example", 443, &addresses), "h.example:443:93.184.216.34,[2606:2800:220:1::1]");
    assert!(pins("git version 2.47.3\n") && pins("git version 2.37.0.windows.1") && pins("git version 3.0"));
    assert!(!pins("git version 2.36.9") && !pins("git version 1.99") && !pins("something else"));
}

#[tokio::test]
async fn a_repository_at_a_private_address_is_not_asked() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = crate::tls::client_config().unwrap();
    let web = Web::new(&tls, &"http://broker.example".parse().unwrap(), false, PATIENCE).unwrap();
    for host in ["127.0.0.1", "localhost", "[::1]", "2130706433", "[::ffff:7f00:1]"] {
        let url = Url::parse(&format!("http://{host}:{port}/x.git")).unwrap();
        let repository = Repository { url: &url, reference: None, login: None, bytes_max: 1 << 20, web: &web };
        match repository.fetch(folder.path(), &BuildLog::new()).await {
            Err(GitError::Web { source: WebError::Private, .. }) => {}
            Err(GitError::NoGit | GitError::TooOld { .. }) => println!("skipped: no git that can be told addresses"),
            other => panic!("{host}: {:?}", other.map(drop)),
        }
    }
    assert!(listener.accept().is_err(), "nobody came");
}

//! Logs: numbers that never move, bounded size, files that survive a crash.

use std::path::PathBuf;

use broker::logs::{LogLimits, LogPage, LogStore};
use proptest::prelude::*;
use protocol::id::{JobId, QueueKey, UnixMillis};
use protocol::native::{LogKind, LogLine, LogStep};
use tempfile::TempDir;

use crate::support::{SmallDisk, within};

const QUEUE: QueueKey = QueueKey::from_bytes([7; 16]);
const JOB: JobId = JobId::from_bytes([9; 32]);

const SMALL: LogLimits =
    LogLimits { job_bytes_max: 1 << 20, line_bytes_max: 100, chunk_bytes_max: 400, open_jobs_max: 2 };

fn line(text: &str) -> LogLine {
    LogLine { text: text.to_owned(), at_ms: UnixMillis(5), stderr: false }
}

fn numbered(from: u64, count: u64) -> Vec<LogLine> {
    (from..from + count).map(|number| line(&format!("line {number}\n"))).collect()
}

fn texts(page: &LogPage) -> Vec<&str> {
    page.lines.iter().map(|line| line.text.as_str()).collect()
}

async fn append(store: &LogStore, run: u32, first: u64, lines: Vec<LogLine>) {
    store.append(QUEUE, JOB, run, LogStep::Run, first, lines).await.unwrap();
}

async fn read(store: &LogStore, since: u64) -> LogPage {
    store.read(QUEUE, JOB, LogKind::Run, since, 10_000).await.unwrap()
}

/// Every line with its number, read page by page from `since` on.
async fn read_all(store: &LogStore, since: u64) -> Vec<(u64, LogLine)> {
    let mut all = Vec::new();
    let mut cursor = since;
    loop {
        let page = store.read(QUEUE, JOB, LogKind::Run, cursor, 7).await.unwrap();
        if page.lines.is_empty() {
            assert_eq!(page.next, cursor);
            return all;
        }
        assert!(page.from >= cursor && page.next == page.from + page.lines.len() as u64);
        all.extend((page.from..).zip(page.lines));
        cursor = page.next;
    }
}

fn files(dir: &TempDir) -> Vec<PathBuf> {
    let folder = dir.path().join(QUEUE.to_string()).join(JOB.to_string());
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn a_log_that_was_never_written_is_empty_and_makes_no_file() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    let page = read(&store, 3).await;
    assert_eq!((page.from, page.lines.len(), page.next, page.end), (3, 0, 3, 0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn build_and_run_lines_are_numbered_apart() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    for (step, first) in [(LogStep::Pull, 0), (LogStep::Build, 1)] {
        store.append(QUEUE, JOB, 1, step, first, vec![line("b\n")]).await.unwrap();
    }
    append(&store, 1, 0, vec![line("r\n")]).await;
    assert_eq!(store.read(QUEUE, JOB, LogKind::Build, 0, 10).await.unwrap().end, 2);
    assert_eq!(texts(&read(&store, 0).await), ["r\n"]);
}

#[tokio::test]
async fn repeated_lines_are_kept_once_also_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    append(&store, 1, 0, numbered(0, 5)).await;
    append(&store, 1, 3, numbered(3, 4)).await;
    drop(store);
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    append(&store, 1, 0, numbered(0, 9)).await;
    let all = read_all(&store, 0).await;
    assert_eq!(all, (0..9).zip(numbered(0, 9)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_new_run_goes_on_numbering_and_ends_the_old_one() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    append(&store, 1, 0, vec![line("one\n")]).await;
    append(&store, 2, 0, vec![line("two\n")]).await;
    append(&store, 1, 1, vec![line("late\n")]).await;
    assert_eq!(read_all(&store, 0).await, vec![(0, line("one\n")), (1, line("two\n"))]);
}

#[tokio::test]
async fn a_gap_keeps_its_numbers_and_says_so() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    append(&store, 1, 0, numbered(0, 2)).await;
    append(&store, 1, 5, numbered(5, 1)).await;
    let gap = read(&store, 2).await;
    assert_eq!((gap.from, gap.next), (4, 5));
    assert!(gap.lines[0].text.contains("3 lines are not kept"), "{:?}", gap.lines);
    assert_eq!(texts(&read(&store, 5).await), ["line 5\n"]);
    assert_eq!(read(&store, 0).await.end, 6);
}

#[tokio::test]
async fn over_the_limit_the_oldest_lines_go_and_the_tail_keeps_its_numbers() {
    let dir = TempDir::new().unwrap();
    let limits = LogLimits { job_bytes_max: 2_000, ..SMALL };
    let store = LogStore::open(dir.path(), limits).unwrap();
    for first in 0..500 {
        append(&store, 1, first, numbered(first, 1)).await;
    }
    let stored: u64 = files(&dir).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(stored <= 2_000, "{stored}");
    let all = read_all(&store, 0).await;
    let (marker, kept) = all.split_first().unwrap();
    assert!(marker.1.text.contains("not kept"), "{marker:?}");
    assert!(kept.len() > 20, "{}", kept.len());
    assert_eq!(kept.last().unwrap(), &(499, line("line 499\n")));
    for (number, line) in kept {
        assert_eq!(line.text, format!("line {number}\n"));
    }
    assert_eq!(read(&store, 0).await.end, 500);
}

#[tokio::test]
async fn a_line_of_the_limit_is_kept_and_one_byte_more_is_cut() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    let (fits, longer) = ("x".repeat(100), "é".repeat(51));
    append(&store, 1, 0, vec![line(&fits), line(&longer)]).await;
    let page = read(&store, 0).await;
    assert_eq!(page.lines[0].text, fits);
    let cut = &page.lines[1].text;
    assert!(cut.len() <= 100 && cut.starts_with('é') && cut.contains("not kept"), "{cut}");
}

#[tokio::test]
async fn a_line_that_a_crash_tore_is_cut_and_its_number_used_again() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    append(&store, 1, 0, numbered(0, 3)).await;
    drop(store);
    let path = files(&dir).pop().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();

    let store = LogStore::open(dir.path(), SMALL).unwrap();
    assert_eq!(read(&store, 0).await.end, 2);
    append(&store, 1, 2, numbered(2, 2)).await;
    assert_eq!(read_all(&store, 0).await, (0..4).zip(numbered(0, 4)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_damaged_line_keeps_its_number() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    append(&store, 1, 0, numbered(0, 3)).await;
    let path = files(&dir).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] = b'#';
    std::fs::write(&path, bytes).unwrap();
    let all = read_all(&store, 0).await;
    assert!(all[0].1.text.contains("damaged"));
    assert_eq!(all[1..], [(1, line("line 1\n")), (2, line("line 2\n"))]);
}

#[tokio::test]
async fn more_jobs_than_may_be_open_lose_nothing() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    let jobs: Vec<JobId> = (0..7).map(|byte| JobId::from_bytes([byte; 32])).collect();
    for first in 0..10 {
        for job in &jobs {
            store.append(QUEUE, *job, 1, LogStep::Run, first, numbered(first, 1)).await.unwrap();
        }
    }
    for job in &jobs {
        let page = store.read(QUEUE, *job, LogKind::Run, 0, 100).await.unwrap();
        assert_eq!(page.lines, numbered(0, 10));
    }
}

#[tokio::test]
async fn writers_and_readers_at_once_see_whole_lines_in_order() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for first in 0..200 {
                append(&store, 1, first, numbered(first, 1)).await;
            }
        }
    });
    let mut watch = store.watch(QUEUE, JOB, LogKind::Run);
    let mut seen = 0;
    within("all lines", async {
        while seen < 200 {
            let page = read(&store, seen).await;
            if page.lines.is_empty() {
                watch.changed().await;
            }
            assert_eq!(page.lines, numbered(seen, page.lines.len() as u64));
            seen = page.next;
        }
    })
    .await;
    writer.await.unwrap();
}

#[tokio::test]
async fn a_touched_log_wakes_its_followers() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    let mut watch = store.watch(QUEUE, JOB, LogKind::Build);
    store.touch(QUEUE, JOB);
    within("the touch", watch.changed()).await;
}

#[tokio::test]
async fn a_removed_log_is_gone_and_may_begin_again() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    append(&store, 1, 0, numbered(0, 3)).await;
    store.remove(QUEUE, JOB).await.unwrap();
    assert_eq!(read(&store, 0).await.end, 0);
    assert!(files(&dir).is_empty());
    append(&store, 2, 0, numbered(0, 1)).await;
    assert_eq!(read_all(&store, 0).await, vec![(0, line("line 0\n"))]);
}

#[tokio::test]
async fn a_sweep_takes_logs_that_are_old_whether_their_files_are_open_or_not() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    append(&store, 1, 0, numbered(0, 1)).await;
    let never = UnixMillis(0);
    let always = UnixMillis(u64::MAX / 2);
    let sweep = async |store: &LogStore, before| {
        let silent = store.silent(QUEUE, store.jobs(QUEUE).await.unwrap(), before).await.unwrap();
        let mut removed = 0;
        for job in silent {
            removed += usize::from(store.remove_silent(QUEUE, job, before).await.unwrap());
        }
        removed
    };
    assert_eq!(sweep(&store, never).await, 0, "it is not old");
    assert!(!store.remove_silent(QUEUE, JOB, never).await.unwrap());
    assert_eq!(sweep(&store, always).await, 1, "its files are open");
    assert!(files(&dir).is_empty());
    append(&store, 2, 0, numbered(0, 1)).await;
    drop(store);
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    assert_eq!(store.queues().await.unwrap(), [QUEUE]);
    assert_eq!(sweep(&store, always).await, 1, "they are not");
    assert!(store.jobs(QUEUE).await.unwrap().is_empty() && store.queues().await.unwrap().is_empty());
    assert!(files(&dir).is_empty());
}

#[tokio::test]
async fn a_full_disk_refuses_lines_and_keeps_whole_ones() {
    let Some(disk) = SmallDisk::mount("size=256k") else { return };
    let store = LogStore::open(disk.path(), LogLimits { chunk_bytes_max: 50_000, ..SMALL }).unwrap();
    let mut first = 0;
    while store.append(QUEUE, JOB, 1, LogStep::Run, first, numbered(first, 100)).await.is_ok() {
        first += 100;
        assert!(first < 100_000, "the disk must be full by now");
    }
    let kept = read_all(&store, 0).await;
    assert!(kept.len() as u64 >= first);
    assert_eq!(kept, (0..).zip(numbered(0, kept.len() as u64)).collect::<Vec<_>>());
    // With room again the same lines are sent again.
    let mut files: Vec<_> = std::fs::read_dir(disk.path().join(QUEUE.to_string()).join(JOB.to_string()))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    std::fs::remove_file(&files[0]).unwrap();
    let store = LogStore::open(disk.path(), SMALL).unwrap();
    append(&store, 1, first, numbered(first, 100)).await;
    let kept = read_all(&store, 0).await;
    assert_eq!(kept.last().unwrap(), &(first + 99, line(&format!("line {}\n", first + 99))));
}

#[tokio::test]
async fn a_line_number_beyond_reason_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = LogStore::open(dir.path(), SMALL).unwrap();
    assert!(store.append(QUEUE, JOB, 1, LogStep::Run, u64::MAX, numbered(0, 1)).await.is_err());
    append(&store, 1, 0, numbered(0, 1)).await;
}

#[derive(Clone, Debug)]
enum Step {
    /// Lines of the same run or a newer one, that overlap, follow, or leave a gap.
    Append {
        newer_run: bool,
        offset: i64,
        count: u64,
    },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let append = (prop::bool::weighted(0.15), -4..4i64, 0..30u64).prop_map(|(newer_run, offset, count)| Step::Append {
        newer_run,
        offset,
        count,
    });
    prop::collection::vec(prop_oneof![6 => append, 1 => Just(Step::Reopen)], 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is sent, each line kept has the number it was first given, from any position, before and after restarts.
    #[test]
    fn every_kept_line_is_found_under_its_number(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = TempDir::new().unwrap();
            let mut store = LogStore::open(dir.path(), SMALL).unwrap();
            // What is at each number; nothing in a gap.
            let mut model: Vec<Option<LogLine>> = Vec::new();
            let (mut run, mut next) = (1, 0_u64);
            for step in steps {
                match step {
                    Step::Append { newer_run, offset, count } => {
                        if newer_run {
                            (run, next) = (run + 1, 0);
                        }
                        let first = next.saturating_add_signed(offset);
                        let lines: Vec<LogLine> =
                            (first..first + count).map(|number| line(&format!("{run}.{number}\n"))).collect();
                        append(&store, run, first, lines.clone()).await;
                        let fresh: Vec<LogLine> = lines.into_iter().skip((next.saturating_sub(first)) as usize).collect();
                        if !fresh.is_empty() {
                            let gap = first.saturating_sub(next);
                            model.extend((0..gap).map(|_| None));
                            next = next.max(first) + fresh.len() as u64;
                            model.extend(fresh.into_iter().map(Some));
                        }
                    }
                    Step::Reopen => store = LogStore::open(dir.path(), SMALL).unwrap(),
                }
            }
            for since in (0..=model.len() as u64 + 1).step_by(1 + model.len() / 25) {
                let found = read_all(&store, since).await;
                let kept: Vec<(u64, LogLine)> =
                    found.into_iter().filter(|(number, _)| model[*number as usize].is_some()).collect();
                let expected: Vec<(u64, LogLine)> = (0..)
                    .zip(&model)
                    .filter(|(number, _)| *number >= since)
                    .filter_map(|(number, line)| line.clone().map(|line| (number, line)))
                    .collect();
                assert_eq!(kept, expected);
                assert_eq!(read(&store, since).await.end, model.len() as u64);
            }
        });
    }
}

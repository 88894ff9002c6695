use protocol::id::JobId;
use protocol::native::LogLine;

use super::*;

fn held(number: u8) -> HeldRun {
    HeldRun { job: JobId::from_bytes([number; 32]), run: 1 }
}

fn board() -> (Board, QueueKey) {
    let name: QueueName = "my-secret-queue".parse().unwrap();
    (Board::new(std::slice::from_ref(&name)), QueueKey::of(&name))
}

fn seen(board: &Board) -> Snapshot {
    let mut snapshot = Snapshot::default();
    board.copy_to(&mut snapshot);
    snapshot
}

#[tokio::test(start_paused = true)]
async fn a_run_is_followed_from_its_grant_to_its_end() {
    let (board, queue) = board();
    let definition = Definition::parse(br#"{"image":"alpine","command":"echo hello"}"#).unwrap();
    let share = Share { cpus_milli: 500, memory_bytes: 7, gpus: vec!["0".to_owned()] };
    board.came(queue, held(1), Some(&definition), &share, false);
    board.phase(queue, held(1), Phase::Pulling);
    tokio::time::advance(std::time::Duration::from_millis(300)).await;
    board.phase(queue, held(1), Phase::Running);
    tokio::time::advance(std::time::Duration::from_millis(50)).await;
    let run = seen(&board).runs.remove(0);
    assert_eq!((run.phase, run.phase_ms, run.age_ms), (Phase::Running, 50, 350));
    assert_eq!((run.image.as_str(), run.command.as_str(), run.cpus_milli), ("alpine", "echo hello", 500));
    board.ended(queue, held(1), Finished::of(&Ending::success(3, 50, Vec::new(), serde_json::Map::new())));
    let after = seen(&board);
    assert!(after.runs.is_empty());
    let result = &after.results[0];
    assert_eq!((result.outcome, result.exit_code, result.duration_ms), (Outcome::Failed, Some(3), 350));
    assert_eq!((after.counts.starts, after.counts.start_sum_us), (1, 300_000));
    assert_eq!(after.counts.ended, [0, 1, 0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn an_adopted_run_was_not_started_here_and_what_goes_unsaid_is_not_counted() {
    let (board, queue) = board();
    board.came(queue, held(1), None, &Share::default(), true);
    board.phase(queue, held(1), Phase::Outputs);
    board.came(queue, held(2), None, &Share::default(), false);
    board.left(queue, held(1));
    board.handed_back(queue, held(2));
    let seen = seen(&board);
    assert_eq!((seen.runs.len(), seen.results.len(), seen.counts.starts), (0, 0, 0));
    assert_eq!(seen.counts.ended, [0, 0, 0, 0, 0, 1]);
}

#[test]
fn only_so_many_ends_are_remembered_the_newest_first() {
    let (board, queue) = board();
    for number in 0..=u8::try_from(RESULTS_MAX).unwrap() {
        board.ended(queue, held(number), Finished::stopped("cancelled"));
    }
    let results = seen(&board).results;
    assert_eq!((results.len(), &results[0].job[..2]), (RESULTS_MAX, "32"));
    assert_eq!(&results[RESULTS_MAX - 1].job[..2], "01");
}

#[test]
fn why_a_run_failed_is_said_in_one_short_line() {
    let said = |ending: Ending| {
        let finished = Finished::of(&ending);
        (finished.outcome, finished.why.unwrap_or_default(), finished.is_engine)
    };
    let no_image = Ending::no_image("cannot pull the image x: gone", protocol::id::UnixMillis(1));
    assert_eq!(said(no_image), (Outcome::Error, "cannot pull the image x: gone".to_owned(), false));
    let error = bollard::errors::Error::DockerResponseServerError { status_code: 500, message: "no\nroom".to_owned() };
    let engine = Ending::engine("cannot start the container", &error, protocol::id::UnixMillis(1));
    assert_eq!(said(engine), (Outcome::Error, "no room".to_owned(), true));
    let long = Ending::bad_input("x".repeat(5000), protocol::id::UnixMillis(1));
    assert_eq!(said(long).1.chars().count(), TEXT_CHARS_MAX);
    let logs = vec![LogLine { text: "out\n".to_owned(), at_ms: protocol::id::UnixMillis(1), stderr: false }];
    assert_eq!(said(Ending::timed_out(9, logs)), (Outcome::TimedOut, String::new(), false));
}

#[test]
fn what_jobs_say_of_themselves_is_short_and_moves_no_cursor() {
    let text = serde_json::json!({ "image": "a\u{1b}[2J", "command": format!("echo {}\u{7}", "x".repeat(100_000)) });
    let (image, command) = in_short(&Definition::parse(text.to_string().as_bytes()).unwrap());
    assert_eq!(image, "a [2J");
    assert_eq!(command.chars().count(), TEXT_CHARS_MAX);
    assert!(command.ends_with('…'));
    let words = serde_json::json!({ "image": "a", "command": ["sh", "-c", "exit 1\nexit 2"], "entrypoint": "/bin/e" });
    let (_, command) = in_short(&Definition::parse(words.to_string().as_bytes()).unwrap());
    assert_eq!(command, "/bin/e sh -c exit 1 exit 2");
}

#[test]
fn a_queues_name_is_told_only_in_part_and_its_line_is_followed() {
    let (board, queue) = board();
    board.connected(queue, "gridsocket.v1");
    board.lost(queue);
    board.connected(queue, "gridsocket.v1");
    let view = seen(&board).queues.remove(0);
    assert_eq!((view.name.as_str(), view.key), ("my-se…", queue.short()));
    assert_eq!((view.connects, view.losses, view.connected_since_ms.is_some()), (2, 1, true));
    assert_eq!([shortened("local"), shortened("public1"), shortened("éééééé")], ["local", "pu…", "éé…"]);
}

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use worker::observe::{
    Capacity, Counts, Disk, EngineView, GpuView, Line as Said, Phase, QueueView, ResultView, RunView,
};

use super::*;

const HOUR: u64 = 3_600_000;
const NOW: u64 = 1_800_000_000_000;

fn run(job: &str, phase: Phase, age_ms: u64, command: &str) -> RunView {
    RunView {
        job: job.repeat(8),
        run: 1,
        queue: "1a2b3c4d".into(),
        phase,
        phase_ms: age_ms / 2,
        age_ms,
        is_adopted: false,
        cpus_milli: 1500,
        memory_bytes: 2 << 30,
        gpus: vec!["0".into(), "1".into()],
        image: "python:3.12-slim".into(),
        command: command.into(),
    }
}

fn result(job: &str, outcome: worker::observe::Outcome, code: Option<i64>, why: Option<&str>) -> ResultView {
    ResultView {
        job: job.repeat(8),
        run: 1,
        queue: "1a2b3c4d".into(),
        outcome,
        exit_code: code,
        duration_ms: 4_200,
        why: why.map(str::to_owned),
        at_ms: NOW - 75_000,
    }
}

fn busy() -> Snapshot {
    use worker::observe::Outcome::{Error, Failed, Success, TimedOut};
    let queue = |name: &str, since: Option<u64>, losses| QueueView {
        name: name.into(),
        key: "1a2b3c4d".into(),
        connected_since_ms: since,
        dialect: "gridsocket.v1".into(),
        connects: 1,
        losses,
    };
    let said = |level: &str, text: &str| Said { at_ms: NOW - 12_000, level: level.into(), text: text.into() };
    Snapshot {
        worker: "6e1b0c9a-aaaa".into(),
        version: "0.1.0".into(),
        started_ms: NOW - 27 * HOUR,
        at_ms: NOW,
        offered: Capacity { cpus_milli: 8000, memory_bytes: Some(16 << 30) },
        taken: Capacity { cpus_milli: 3500, memory_bytes: Some(4 << 30) },
        gpus: (0..4).map(|gpu| GpuView { name: gpu.to_string(), job: (gpu < 2).then(|| "aaaaaaaa".into()) }).collect(),
        queues: vec![queue("my-se…", Some(NOW - 3 * HOUR), 1), queue("our-…", None, 0)],
        engine: EngineView {
            address: "unix:///var/run/docker.sock".into(),
            is_reachable: true,
            version: Some("20.10.24".into()),
            why: None,
        },
        runs: vec![
            run("a", Phase::Running, 754_000, "python /inputs/train.py --epochs 10"),
            run("b", Phase::Pulling, 3_100, "sh -c 'echo \u{1b}[2J\u{202e}evil'"),
        ],
        results: vec![
            result("c", Success, Some(0), None),
            result("d", Failed, Some(3), None),
            result("e", Error, None, Some("cannot pull the image nope:1: not found")),
            result("f", TimedOut, Some(137), None),
        ],
        counts: Counts { ended: [41, 2, 1, 1, 0, 0], ..Counts::default() },
        unacknowledged: 1,
        disk: Some(Disk { path: "/tmp".into(), free_bytes: 1 << 30, total_bytes: 100 << 30 }),
        lines: vec![said("INFO", "starts run 1 of job aaaaaaaa"), said("WARN", "cannot reach the broker\u{7}")],
        ..Snapshot::default()
    }
}

fn screen(view: &View<'_>, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view)).unwrap();
    terminal
}

fn look(snapshot: &Snapshot) -> View<'_> {
    View { snapshot: Some(snapshot), trouble: None, footer: "q quits", is_asking: false, has_colour: true }
}

/// What stands on the screen, without the spaces at the ends of lines.
fn text(terminal: &Terminal<TestBackend>) -> String {
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let line: String = (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Compares with a frozen screen; with `GRIDSOCKET_FREEZE` set it is written anew, to be looked at before it is kept.
fn assert_frozen(name: &str, frozen: &str, terminal: &Terminal<TestBackend>) {
    let text = text(terminal);
    if std::env::var_os("GRIDSOCKET_FREEZE").is_some() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/top/view/frozen").join(name);
        std::fs::write(path, &text).unwrap();
        return;
    }
    assert_eq!(text, frozen, "{name} looks otherwise:\n{text}");
}

macro_rules! frozen {
    ($name:literal, $terminal:expr) => {
        assert_frozen($name, include_str!(concat!("frozen/", $name)), $terminal)
    };
}

#[test]
fn a_busy_worker_on_screens_of_several_sizes() {
    let busy = busy();
    frozen!("busy-60x20.txt", &screen(&look(&busy), 60, 20));
    frozen!("busy-80x24.txt", &screen(&look(&busy), 80, 24));
    frozen!("busy-140x40.txt", &screen(&look(&busy), 140, 40));
}

#[test]
fn a_worker_with_nothing_to_do() {
    let idle = Snapshot {
        offered: Capacity { cpus_milli: 2000, memory_bytes: None },
        taken: Capacity::default(),
        gpus: Vec::new(),
        runs: Vec::new(),
        results: Vec::new(),
        lines: Vec::new(),
        counts: Counts::default(),
        unacknowledged: 0,
        ..busy()
    };
    frozen!("idle-60x20.txt", &screen(&look(&idle), 60, 20));
}

#[test]
fn a_worker_that_is_gone() {
    let mut snapshot = busy();
    snapshot.engine.is_reachable = false;
    snapshot.engine.why = Some("connection refused".into());
    snapshot.standing = Standing::Draining;
    snapshot.runs = (0..30).map(|_| run("a", Phase::Running, 1000, "sleep 100")).collect();
    snapshot.gpus = (0..20).map(|gpu| GpuView { name: gpu.to_string(), job: Some("a".into()) }).collect();
    let view =
        View { trouble: Some("it does not run"), footer: "end the worker? y", is_asking: true, ..look(&snapshot) };
    frozen!("gone-80x24.txt", &screen(&view, 80, 24));
}

#[test]
fn a_worker_that_takes_nothing_new() {
    let obstacle = Some("only 1 GiB are free below /tmp, less than --min-free-disk".to_owned());
    let mut busy = Snapshot { obstacle, ..busy() };
    assert!(text(&screen(&look(&busy), 140, 20)).contains("takes no new jobs: only 1 GiB are free below /tmp"));
    busy.standing = Standing::Draining;
    assert!(text(&screen(&look(&busy), 140, 20)).contains("waiting for its jobs, takes no new ones"));
}

#[test]
fn no_worker_yet() {
    let nothing = Snapshot::default();
    let nobody = View { snapshot: None, ..look(&nothing) };
    assert_eq!(text(&screen(&nobody, 40, 3)), "looking for the worker …\n\nq quits\n");
    let gone = View { trouble: Some("no such file"), ..nobody };
    assert_eq!(text(&screen(&gone, 40, 3)), "no worker: no such file\n\nq quits\n");
}

#[test]
fn any_size_will_do() {
    let mut busy = busy();
    busy.queues = vec![busy.queues[0].clone(); 9];
    for width in [1, 2, 5, 7, 20, 59, 300] {
        for height in [1, 2, 3, 7, 10, 100] {
            let screen = screen(&look(&busy), width, height);
            assert!(!text(&screen).trim().is_empty(), "{width}x{height}");
        }
    }
}

#[test]
fn without_colour_there_is_none_and_nothing_of_a_job_moves_the_cursor() {
    let busy = busy();
    let plain = screen(&View { has_colour: false, ..look(&busy) }, 140, 40);
    let coloured = screen(&look(&busy), 140, 40);
    assert_eq!(text(&plain), text(&coloured));
    let colours = |terminal: &Terminal<TestBackend>| {
        terminal
            .backend()
            .buffer()
            .content
            .iter()
            .filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
            .count()
    };
    assert_eq!(colours(&plain), 0);
    assert!(colours(&coloured) > 20);
    assert!(!text(&plain).chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'));
}

#[test]
fn lines_are_divided_so_that_each_part_is_seen() {
    assert_eq!(share(30, [5, 5, 5]), [5, 5, 5]);
    assert_eq!(share(12, [40, 40, 40]), [4, 4, 4]);
    assert_eq!(share(13, [40, 2, 40]), [7, 2, 4]);
    assert_eq!(share(0, [1, 1, 1]), [0, 0, 0]);
    for room in 0..50 {
        assert!(share(room, [9, 30, 4]).iter().sum::<usize>() <= room);
    }
}

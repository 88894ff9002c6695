//! A snapshot as numbers for monitoring. No number is of one queue, and nothing of a job or of a queue's name is in them.

use protocol::exposition::{Exposition, Kind, Times};

use super::health::Health;
use super::snapshot::{Outcome, Phase, Snapshot, Standing};

/// All numbers, in Prometheus's text format.
pub(super) fn text(snapshot: &Snapshot) -> String {
    let mut text = Exposition::default();
    write_standing(&mut text, snapshot);
    write_room(&mut text, snapshot);
    write_counts(&mut text, snapshot);
    write_process(&mut text, snapshot);
    text.into_text()
}

fn write_standing(text: &mut Exposition, snapshot: &Snapshot) {
    let healthy = u64::from(Health::of(snapshot).is_healthy());
    let connected = snapshot.queues.iter().filter(|queue| queue.connected_since_ms.is_some()).count();
    let of_queues = |count: fn(&super::QueueView) -> u64| snapshot.queues.iter().map(count).sum::<u64>();
    let mut gauge = |name: &str, help: &str, value: u64| text.metric(name, Kind::Gauge, help, value);
    let takes = u64::from(snapshot.standing == Standing::Working && snapshot.obstacle.is_none());
    gauge("gridsocket_worker_takes_jobs", "Whether it takes new jobs when it has room", takes);
    gauge("gridsocket_worker_healthy", "Whether /healthz says that all is well", healthy);
    let engine = u64::from(snapshot.engine.is_reachable);
    gauge("gridsocket_worker_engine_up", "Whether the container engine answers", engine);
    gauge("gridsocket_worker_queues", "Queues that it works for", snapshot.queues.len() as u64);
    gauge("gridsocket_worker_queues_connected", "Queues whose broker it is connected to", connected as u64);
    let unacknowledged = snapshot.unacknowledged;
    gauge("gridsocket_worker_results_unacknowledged", "Results that the broker has not confirmed", unacknowledged);
    let mut counter = |name: &str, help: &str, value: u64| text.metric(name, Kind::Counter, help, value);
    counter("gridsocket_worker_connects_total", "Connections to brokers made", of_queues(|queue| queue.connects));
    counter("gridsocket_worker_connection_losses_total", "Connections lost", of_queues(|queue| queue.losses));
    let here = |phase: Phase| snapshot.runs.iter().filter(|run| run.phase == phase).count() as u64;
    text.labelled(
        "gridsocket_worker_runs",
        Kind::Gauge,
        "Jobs that are here, by what is being done for them",
        "phase",
        Phase::ALL.map(|phase| (phase.word(), here(phase))),
    );
}

fn write_room(text: &mut Exposition, snapshot: &Snapshot) {
    let (offered, taken) = (snapshot.offered, snapshot.taken);
    let mut gauge = |name: &str, help: &str, value: f64| text.metric(name, Kind::Gauge, help, value);
    gauge("gridsocket_worker_cpus", "CPUs on offer", thousandths(offered.cpus_milli));
    gauge("gridsocket_worker_cpus_taken", "CPUs that jobs hold", thousandths(taken.cpus_milli));
    let mut gauge = |name: &str, help: &str, value: u64| text.metric(name, Kind::Gauge, help, value);
    // Missing where memory is not counted.
    if let (Some(offered), Some(taken)) = (offered.memory_bytes, taken.memory_bytes) {
        gauge("gridsocket_worker_memory_bytes", "Memory on offer", offered);
        gauge("gridsocket_worker_memory_taken_bytes", "Memory that jobs hold", taken);
    }
    let gpus_taken = snapshot.gpus.iter().filter(|gpu| gpu.job.is_some()).count();
    gauge("gridsocket_worker_gpus", "GPUs on offer", snapshot.gpus.len() as u64);
    gauge("gridsocket_worker_gpus_taken", "GPUs that jobs hold, or whose containers are not gone", gpus_taken as u64);
    if let Some(disk) = &snapshot.disk {
        gauge("gridsocket_worker_disk_bytes", "Size of the data directory's disk", disk.total_bytes);
        gauge("gridsocket_worker_disk_free_bytes", "What is free of it", disk.free_bytes);
    }
}

fn write_counts(text: &mut Exposition, snapshot: &Snapshot) {
    let counts = &snapshot.counts;
    text.labelled(
        "gridsocket_worker_runs_ended_total",
        Kind::Counter,
        "Jobs that ended here since start, by how",
        "outcome",
        Outcome::ALL.map(|outcome| (outcome.word(), counts.ended[outcome as usize])),
    );
    let starts = Times { steps: counts.start_steps.clone(), count: counts.starts, sum_us: counts.start_sum_us };
    text.histogram("gridsocket_worker_start_seconds", "From the grant of a job to its started container", &starts);
    let mut counter = |name: &str, help: &str, value: u64| text.metric(name, Kind::Counter, help, value);
    counter(
        "gridsocket_worker_engine_errors_total",
        "Times that the container engine refused or lost something",
        counts.engine_errors,
    );
    counter("gridsocket_worker_pulls_total", "Images fetched since start, failures included", counts.pulls);
    counter("gridsocket_worker_pull_failures_total", "Images that could not be fetched", counts.pull_failures);
    counter("gridsocket_worker_builds_total", "Images built since start, failures included", counts.builds);
    counter("gridsocket_worker_build_failures_total", "Images that could not be built", counts.build_failures);
    counter(
        "gridsocket_worker_log_lines_dropped_total",
        "Lines of jobs' output that were lost while a broker could not be reached",
        counts.log_lines_dropped,
    );
}

fn write_process(text: &mut Exposition, snapshot: &Snapshot) {
    let started = thousandths(snapshot.started_ms);
    text.metric("process_start_time_seconds", Kind::Gauge, "When the worker started, since 1970", started);
    // Missing where the system does not say.
    if let Some(bytes) = snapshot.process.resident_bytes {
        text.metric("process_resident_memory_bytes", Kind::Gauge, "Memory in use", bytes);
    }
    if let Some(files) = snapshot.process.open_files {
        text.metric("process_open_fds", Kind::Gauge, "Open files and sockets", files);
    }
    let version = [(env!("CARGO_PKG_VERSION"), 1)];
    text.labelled("gridsocket_worker_info", Kind::Gauge, "Which build this is", "version", version);
}

#[expect(clippy::cast_precision_loss, reason = "what is shown is not exact to a thousandth in thousands of years")]
fn thousandths(value: u64) -> f64 {
    value as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::{Capacity, Disk, GpuView, Process, QueueView};
    use super::*;

    fn full() -> Snapshot {
        let memory = |bytes| Capacity { cpus_milli: 1500, memory_bytes: Some(bytes) };
        Snapshot {
            offered: memory(9),
            taken: memory(4),
            gpus: vec![GpuView { name: "0".into(), job: Some("secret-job".into()) }, GpuView::default()],
            queues: vec![QueueView { name: "secret".into(), connects: 2, losses: 1, ..QueueView::default() }],
            disk: Some(Disk { path: "/secret".into(), free_bytes: 5, total_bytes: 6 }),
            process: Process { pid: 1, resident_bytes: Some(7), open_files: Some(8) },
            ..Snapshot::default()
        }
    }

    /// The names of the series.
    fn names(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
    }

    #[test]
    fn the_manual_names_every_series() {
        let manual = include_str!("../../../docs/workers.md");
        let text = text(&full());
        assert!(names(&text).len() > 20, "{text}");
        for name in names(&text) {
            assert!(manual.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn every_series_of_the_dashboard_is_told() {
        let dashboard = include_str!("../../../deploy/grafana-dashboard.json");
        let text = text(&full());
        let samples: Vec<&str> = text.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
        let words = dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let used: Vec<&str> = words.filter(|word| word.starts_with("gridsocket_worker_")).collect();
        assert!(used.len() > 10, "{used:?}");
        for name in used {
            assert!(samples.contains(&name), "{name}");
        }
    }

    #[test]
    fn numbers_tell_nothing_of_queues_jobs_and_folders() {
        let text = text(&full());
        assert!(!text.contains("secret"), "{text}");
        for line in [
            "gridsocket_worker_cpus 1.5",
            "gridsocket_worker_memory_taken_bytes 4",
            "gridsocket_worker_gpus_taken 1",
            "gridsocket_worker_connects_total 2",
            "gridsocket_worker_healthy 0",
            "gridsocket_worker_takes_jobs 1",
            "gridsocket_worker_runs{phase=\"running\"} 0",
            "gridsocket_worker_runs_ended_total{outcome=\"timed_out\"} 0",
            "gridsocket_worker_start_seconds_bucket{le=\"+Inf\"} 0",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_worker_with_something_against_new_jobs_takes_none() {
        let full = Snapshot { obstacle: Some("the disk is full".into()), ..Snapshot::default() };
        let draining = Snapshot { standing: Standing::Draining, ..Snapshot::default() };
        assert!([full, draining].iter().all(|snapshot| text(snapshot).contains("gridsocket_worker_takes_jobs 0\n")));
    }

    #[test]
    fn memory_that_is_not_counted_is_not_told() {
        assert!(!text(&Snapshot::default()).contains("gridsocket_worker_memory"));
    }
}

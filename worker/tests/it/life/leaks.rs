//! What is left after many runs: nothing.

use std::path::Path;

use serde_json::json;
use worker::ShutdownMode;

use crate::support::peer::until;
use crate::support::{Line, Site, job};

const RUNS: usize = 200;
/// At once.
const CPUS: u32 = 8;

/// What a process has open. Other tests have some too where they share the process: then it says nothing.
fn descriptors() -> Option<usize> {
    std::env::var_os("NEXTEST")?;
    std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count)
}

fn entries(below: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(below).into_iter().flatten().flatten() {
        let path = entry.path();
        // These are files of the worker's own, made when they are first needed.
        if path.is_dir() {
            found.extend(entries(&path));
        }
        found.push(path.to_string_lossy().into_owned());
    }
    found.sort();
    found
}

/// Runs that end well, badly, too late and never, `CPUS` at a time.
async fn runs(line: &mut Line, numbers: std::ops::Range<usize>) {
    let numbers: Vec<usize> = numbers.collect();
    for some in numbers.chunks(CPUS as usize) {
        let mut granted = Vec::new();
        for number in some {
            let definition = match number % 5 {
                0 => json!({"command": ["no-such-program"]}),
                1 => json!({"command": "sh -c 'echo out > /outputs/file; exit 3'"}),
                2 => json!({"command": "sleep 300", "maxDuration": "1s"}),
                3 => json!({"command": "cat /inputs/a", "inputs": {"a": {"type": "utf8", "value": "text"}}}),
                _ => json!({"command": "seq 1 1000"}),
            };
            let mut definition = definition;
            definition["env"] = json!({"N": number.to_string()});
            granted.push(line.grant(job(definition)).await);
        }
        for run in granted {
            line.end(run).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_runs_leave_no_task_no_descriptor_no_file_and_no_container() {
    let Some(mut site) = Site::new().await else { return };
    let data = site.config().data_directory;
    let (worker, mut line) = site.started_with(|config| config.cpus = CPUS).await;
    let all_free = |line: &Line| line.claims.last().is_some_and(|free| free.cpus_milli == CPUS * 1000);
    // What is made once is made by then.
    runs(&mut line, 0..2 * CPUS as usize).await;
    line.until(all_free).await;
    site.engine.until_containers(&site.queue, 0).await;
    until("the first runs' files are gone", async || entries(&data.join("j")).is_empty()).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = (tasks(), descriptors(), entries(&data));
    runs(&mut line, 2 * CPUS as usize..RUNS).await;
    line.until(all_free).await;
    site.engine.until_containers(&site.queue, 0).await;
    // Connections to the engine are kept for a while, as many as runs were begun at once.
    let spare = CPUS as usize * 2;
    until("the tasks of runs are over", async || tasks() <= before.0 + spare).await;
    until("their descriptors are closed", async || descriptors() <= before.1.map(|count| count + spare)).await;
    until("their files are gone", async || entries(&data) == before.2).await;
    worker.stop(ShutdownMode::Leave).await;
    site.assert_clean().await;
}

//! Files in and out of real containers: what a stopped job leaves, a broker that is away at the end, many names, folders that resist.

use std::path::Path;

use protocol::event::RunOutcome;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use worker::ShutdownMode;
use worker::config::FetchPrivate;

use crate::support::peer::until;
use crate::support::{Grid, Site, job};

/// The directories of runs that are there.
fn runs(site: &Site) -> usize {
    let jobs = std::fs::read_dir(site.config().data_directory.join("j")).into_iter().flatten().flatten();
    jobs.flat_map(|job| std::fs::read_dir(job.path()).into_iter().flatten()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_job_left_when_its_time_was_up_is_there() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let script =
        "cd /outputs; echo small > small; mkdir d; seq 1 1000 > d/large; ln -s /etc/passwd link; echo ready; sleep 300";
    let run = line.grant(job(json!({ "command": ["sh", "-c", script], "maxDuration": "3s" }))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::TimedOut, "{told}");
    let outputs = told["result"]["outputs"].as_object().unwrap();
    assert_eq!(outputs.keys().collect::<Vec<_>>(), ["d/large", "small"]);
    let blob = outputs["d/large"]["value"].as_str().unwrap().rsplit_once("/f/").unwrap().1;
    let bytes = site.peer.blobs.get(&format!("/grid/f/{blob}")).unwrap();
    assert_eq!(bytes, (1..=1000).map(|n| format!("{n}\n")).collect::<String>().as_bytes());
    assert!(line.logs.text(run, true).contains("\"link\" is not collected"));
    site.assert_clean().await;
    until("nothing of the run is left", async || runs(&site) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_when_a_job_ends_gets_its_outputs_when_it_is_back() {
    let Some(grid) = Grid::start().await else { return };
    let script = "echo up; while [ ! -e /job-cache/go-$JOB_ID ]; do sleep 0.05; done; rm /job-cache/go-$JOB_ID; \
                  seq 1 100000 > /outputs/numbers; echo 42 > /outputs/small";
    let job = grid.submit(json!({ "command": ["sh", "-c", script] })).await;
    grid.until_logged(&job, "up").await;
    let go = format!("go-{job}");
    let grid = grid
        .restart_broker_after(async |engine, queue| {
            engine.touch_in_cache(queue, &go).await;
            until("the job has ended", async || {
                let containers = engine.containers(queue).await;
                containers
                    .iter()
                    .all(|container| container.state != Some(bollard::models::ContainerSummaryStateEnum::RUNNING))
            })
            .await;
        })
        .await;
    let result = grid.result(&job).await;
    assert_eq!(result["finished"]["reason"], "Success", "{result}");
    let output = grid.url(&format!("/q/{}/j/{job}/outputs/numbers", grid.queue()));
    let bytes = grid.http.get(output).send().await.unwrap().bytes().await.unwrap();
    assert_eq!(bytes, (1..=100_000).map(|n| format!("{n}\n")).collect::<String>().as_bytes());
    grid.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_inputs_with_odd_names_are_all_there() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let mut inputs: Map<String, Value> = (0..10_000)
        .map(|number| (format!("f{}/{number} é", number % 7), json!({ "value": number.to_string() })))
        .collect();
    let odd = ["A", "a", "-rf", "...", " ", "a b\n", "c\\d", "*", "$(reboot)", "definition.json", &"x".repeat(255)];
    inputs.extend(odd.iter().map(|name| ((*name).to_owned(), json!({ "value": "odd" }))));
    let script = "cd /inputs; find . -type f | grep -c '^\\./f[0-6]/'; cat 'f3/9999 é' -- A a ./-rf ... ' ' 'a b\n' 'c\\d' '*' '$(reboot)'";
    let run = line.grant(job(json!({ "command": ["sh", "-c", script], "inputs": inputs }))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Success, "{told}");
    let expected = format!("10000\n9999{}", "odd".repeat(9));
    assert_eq!(line.logs.text(run, false), expected, "{}", line.logs.text(run, true));
    site.assert_clean().await;
    until("nothing of the run is left", async || runs(&site) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_that_resist_are_removed_after_the_run() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    // Closed to everyone, not writable, and three thousand folders deep, which is more than a path can name.
    let script = "cd /outputs; mkdir closed; echo x > closed/file; chmod 000 closed/file closed; mkdir ro; echo y > ro/file; chmod 555 ro; \
                  p=d; i=0; while [ $i -lt 499 ]; do p=$p/d; i=$((i+1)); done; mkdir deep; \
                  for n in 1 2 3 4 5 6; do mkdir -p next/$p && mv deep next/$p/deep && mv next deep && echo $n; done";
    let run = line.grant(job(json!({ "command": ["sh", "-c", script] }))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Success, "{told}");
    assert_eq!(line.logs.text(run, false), "1\n2\n3\n4\n5\n6\n", "{}", line.logs.text(run, true));
    assert!(line.logs.text(run, true).contains("nested too deep"), "{}", line.logs.text(run, true));
    until("nothing of the run is left", async || runs(&site) == 0).await;
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_worker_left_is_removed_at_the_next_start() {
    let Some(mut site) = Site::new().await else { return };
    let (worker, mut line) = site.started().await;
    let run = line.grant(job(json!({ "command": "true" }))).await;
    line.end(run).await;
    worker.stop(ShutdownMode::Leave).await;
    // As a worker leaves it that was killed in the middle of a fetch, and of a run whose container is gone.
    let data = site.config().data_directory;
    let short = protocol::id::QueueKey::of(&site.queue).short();
    let left = data.join(format!("j/{}/{short}.7", "ab".repeat(32)));
    let deep: std::path::PathBuf = std::iter::repeat_n("d", 500).collect();
    std::fs::create_dir_all(left.join("outputs").join(&deep)).unwrap();
    let half = data.join("incoming/.half");
    std::fs::write(&half, "half").unwrap();
    let whole = data.join("f").join("0".repeat(64));
    std::fs::write(&whole, "kept for later jobs").unwrap();
    let (_worker, _line) = site.started().await;
    until("it is all gone", async || !left.exists() && !half.exists()).await;
    assert!(whole.exists() && !Path::new(&data).join("j").join("ab".repeat(32)).exists());
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_are_kept_from_private_addresses_where_containers_are() {
    let Some(mut site) = Site::new().await else { return };
    let inside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = inside.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = inside.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\nsecret").await;
            let _ = stream.shutdown().await;
        }
    });
    site.peer.blobs.put("/grid/f/fine", b"fine");
    let reading =
        |url: String| job(json!({ "command": "cat /inputs/x", "inputs": { "x": { "type": "url", "value": url } } }));
    // Containers have no network here, so the default is to refuse.
    let default = FetchPrivate::default();
    let (worker, mut line) = site.started_with(|config| config.files.fetch_private = default).await;
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f000001"] {
        let run = line.grant(reading(format!("http://{host}:{port}/latest/meta-data"))).await;
        let (finished, told) = line.end(run).await;
        assert_eq!(finished.outcome, RunOutcome::Error, "{host}");
        let error = told["result"]["error"].as_str().unwrap();
        assert!(error.contains("\"x\"") && error.contains("private") && !told.to_string().contains("secret"), "{told}");
    }
    let run = line.grant(reading(format!("{}/f/fine", site.peer.address()))).await;
    assert_eq!(line.end(run).await.0.outcome, RunOutcome::Success, "the broker's own address is reached");
    worker.stop(ShutdownMode::Leave).await;
    let (_worker, mut line) = site.started().await;
    let run = line.grant(reading(format!("http://127.0.0.1:{port}/allowed"))).await;
    assert_eq!(line.end(run).await.0.outcome, RunOutcome::Success, "where the operator allows it");
    assert_eq!(line.logs.text(run, false), "secret");
    site.assert_clean().await;
}

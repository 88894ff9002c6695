//! Jobs that try to get at the machine, at other jobs, or at the worker's own folders, as real containers; beside each the honest
//! form of the same.

use std::path::{Path, PathBuf};

use protocol::event::RunOutcome;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::peer::sha256;
use crate::support::{Line, Site, job};

/// Files below a folder that hold `marker` in their bytes or their name.
fn holding(folder: &Path, marker: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_named_so = path.file_name().is_some_and(|name| name.to_string_lossy().contains(marker));
            let holds = || {
                std::fs::read(&path)
                    .is_ok_and(|bytes| bytes.windows(marker.len()).any(|window| window == marker.as_bytes()))
            };
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !is_named_so => folders.push(path),
                Ok(kind) if is_named_so || kind.is_file() && holds() => found.push(path),
                Ok(_) | Err(_) => {}
            }
        }
    }
    found
}

/// Runs a job and gives how it ended, its result, and what it printed.
async fn run(line: &mut Line, fields: Value) -> (RunOutcome, Value, String) {
    let run = line.grant(job(fields)).await;
    let (finished, mut told) = line.end(run).await;
    (finished.outcome, told["result"].take(), line.logs.text(run, false))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_are_written_nowhere_else() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let marker = format!("evil-{}", uuid::Uuid::new_v4());
    let (data, parent) = (site.data.path().to_owned(), std::env::temp_dir());
    let outside = [PathBuf::from(format!("/tmp/{marker}")), parent.join(&marker), PathBuf::from(format!("/{marker}"))];
    // What would be written; what is said about the name is kept for the broker and may quote it.
    let written = format!("bytes-{}", uuid::Uuid::new_v4());
    let evil = json!({ "type": "utf8", "value": written });
    // The broker refuses all of these; this one grants them.
    for field in ["inputs", "configFiles"] {
        for name in [
            format!("../{marker}"),
            format!("../../../{marker}"),
            format!("a/../../../../{marker}"),
            format!("/../../../../../tmp/{marker}"),
            format!("./../{marker}"),
            format!("a/./../../{marker}"),
            format!("{marker}/.."),
            format!("{marker}\u{0}"),
        ] {
            let (outcome, result, _) =
                run(&mut line, json!({ "command": "true", field: { name.as_str(): evil } })).await;
            assert_eq!(outcome, RunOutcome::Error, "{field} {name:?}: {result}");
            assert!(
                result["error"].to_string().contains("name") || result["error"].to_string().contains(".."),
                "{result}"
            );
            assert_eq!(holding(&data, &written), Vec::<PathBuf>::new(), "{field} {name:?}");
            assert!(outside.iter().all(|path| !path.exists()), "{field} {name:?}");
        }
    }
    // An absolute config file is the container's, never the machine's.
    let config = format!("/tmp/{marker}/app.conf");
    let fields = json!({
        "command": ["cat", "/inputs/deep/er/x", config],
        "inputs": { "deep//./er/x": { "value": "honest " } },
        "configFiles": { config.as_str(): { "value": "conf" } },
    });
    let (outcome, result, said) = run(&mut line, fields).await;
    assert_eq!((outcome, said.as_str()), (RunOutcome::Success, "honest conf"), "{result}");
    assert!(outside.iter().all(|path| !path.exists()));
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_lead_out_of_no_folder() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    // What is on the machine but not in the container.
    let marker = format!("secret-{}", uuid::Uuid::new_v4());
    let secret = site.data.path().join("secret.txt");
    std::fs::write(&secret, &marker).unwrap();
    let (path, folder) = (secret.display(), site.data.path().display());
    let script = format!(
        "ln -s {path} /outputs/file; ln -s {folder} /outputs/folder; ln -s /etc/passwd /outputs/passwd; ln -s /proc/1/environ /outputs/env; \
         mkdir /outputs/d; ln -s ../../../../../../../../{path} /outputs/d/up; ln -s /outputs /outputs/d/loop; \
         ln /inputs/in /outputs/hard 2>/dev/null; \
         (echo changed > /inputs/in) 2>/dev/null && echo inputs were written; (ln -s {path} /inputs/link) 2>/dev/null && echo inputs were linked; \
         (rm /inputs/in) 2>/dev/null && echo inputs were removed; \
         cat {path} 2>/dev/null; printf honest > /outputs/plain; cat /inputs/in"
    );
    let fields = json!({ "command": ["sh", "-c", script], "inputs": { "in": { "value": "input" } } });
    let (outcome, result, said) = run(&mut line, fields).await;
    assert_eq!((outcome, said.as_str()), (RunOutcome::Success, "input"), "{result}");
    let outputs = result["outputs"].as_object().unwrap();
    let names: Vec<&str> = outputs.keys().map(String::as_str).filter(|name| *name != "hard").collect();
    assert_eq!(names, ["plain"], "only what is a file is an output");
    assert!(!result.to_string().contains(&marker) && !result.to_string().contains("root:"), "{result}");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), marker);
    std::fs::remove_file(secret).unwrap();
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_cannot_be_poisoned_through_a_claimed_hash() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let (good, evil) = (b"the real model".to_vec(), b"the poisoned one".to_vec());
    let hash = sha256(&good).strip_prefix("sha256:").unwrap().to_owned();
    let api = site.peer.address();
    site.peer.blobs.put("/grid/elsewhere/evil", &evil);
    site.peer.blobs.put(&format!("/grid/f/{hash}"), &evil);
    let reading = |input: Value| json!({ "command": ["cat", "/inputs/x"], "inputs": { "x": input } });
    // With the hash of the good one claimed beside it, in the address, as a key, and in another spelling.
    for input in [
        json!({ "type": "url", "value": format!("{api}/elsewhere/evil"), "hash": hash }),
        json!({ "type": "url", "value": format!("{api}/f/{hash}") }),
        json!({ "type": "key", "value": hash }),
        json!({ "type": "url", "value": format!("{api}/elsewhere/evil"), "hash": hash.to_uppercase() }),
    ] {
        let (outcome, result, said) = run(&mut line, reading(input.clone())).await;
        assert_eq!((outcome, said.as_str()), (RunOutcome::Error, ""), "{input}: {result}");
        assert!(result["error"].to_string().contains("SHA-256"), "{input}: {result}");
    }
    let poisoned = String::from_utf8(evil).unwrap();
    assert_eq!(holding(site.data.path(), &poisoned), Vec::<PathBuf>::new(), "no trace is left");
    site.peer.blobs.put(&format!("/grid/f/{hash}"), &good);
    // Of one more variable, for the same input is the same job.
    let honest = |variable: &str, input: Value| {
        let mut fields = reading(input);
        fields["env"] = json!({ variable: "1" });
        fields
    };
    let by_address = json!({ "type": "url", "value": format!("{api}/f/{hash}"), "hash": hash });
    let (outcome, result, said) = run(&mut line, honest("FIRST", by_address)).await;
    assert_eq!((outcome, said.as_bytes()), (RunOutcome::Success, &good[..]), "{result}");
    // Now that it is cached, a job that changes its copy changes nobody else's.
    let fields = json!({
        "command": ["sh", "-c", "(echo changed >> /inputs/x) 2>/dev/null; chmod 777 /inputs/x 2>/dev/null; cat /inputs/x"],
        "inputs": { "x": { "type": "key", "value": hash } },
    });
    let (_, result, said) = run(&mut line, fields).await;
    assert_eq!(said.as_bytes(), &good[..], "{result}");
    let (_, _, said) = run(&mut line, honest("LATER", json!({ "type": "key", "value": hash, "hash": hash }))).await;
    assert_eq!(said.as_bytes(), &good[..]);
    site.assert_clean().await;
}

/// A server that answers everything with a redirect to one address, but the first path after that with bytes.
async fn redirecting(to: impl Fn(u16) -> String + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let location = to(port);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).await.unwrap_or(0);
            let is_end = String::from_utf8_lossy(&head[..read]).starts_with("GET /end");
            let answer = if is_end {
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nthere".to_owned()
            } else {
                format!("HTTP/1.1 302 Found\r\nconnection: close\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
            };
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_web_is_fetched() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let reading =
        |url: &str| json!({ "command": ["cat", "/inputs/x"], "inputs": { "x": { "type": "url", "value": url } } });
    let to_file = redirecting(|_| "file:///etc/passwd".to_owned()).await;
    let endless = redirecting(|port| format!("http://127.0.0.1:{port}/again")).await;
    for url in [
        "file:///etc/passwd".to_owned(),
        "FILE:/etc/passwd".to_owned(),
        "ftp://127.0.0.1/x".to_owned(),
        "data:text/plain,x".to_owned(),
        "unix:///var/run/docker.sock".to_owned(),
        "/etc/passwd".to_owned(),
        "//127.0.0.1/x".to_owned(),
        format!("http://127.0.0.1:{to_file}/x"),
        format!("http://127.0.0.1:{endless}/x"),
    ] {
        let (outcome, result, said) = run(&mut line, reading(&url)).await;
        assert_eq!((outcome, said.as_str()), (RunOutcome::Error, ""), "{url}: {result}");
        assert!(!result.to_string().contains("root:"), "{url}: {result}");
    }
    let honest = redirecting(|port| format!("http://127.0.0.1:{port}/end")).await;
    let (outcome, result, said) = run(&mut line, reading(&format!("http://127.0.0.1:{honest}/x"))).await;
    assert_eq!((outcome, said.as_str()), (RunOutcome::Success, "there"), "{result}");
    site.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_sees_nothing_of_another() {
    let Some(mut site) = Site::new().await else { return };
    let (_worker, mut line) = site.started().await;
    let marker = format!("secret-{}", uuid::Uuid::new_v4());
    // One runs, with a secret as input, as output, in its environment and on its command line.
    let owner = line
        .grant(job(json!({
            "command": ["sh", "-c", format!("cat /inputs/key > /outputs/{marker}; echo ready; trap 'exit 0' TERM; sleep 600 & wait; : {marker}")],
            "inputs": { "key": { "value": marker } },
            "env": { "KEY": marker },
        })))
        .await;
    line.until(|line| line.logs.text(owner, false).contains("ready")).await;
    // Another looks everywhere it can.
    let script = "find / -path /proc -prune -o -path /sys -prune -o -print 2>/dev/null | head -c 4000000; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; \
                  cat /inputs/* /outputs/* 2>/dev/null; cat /proc/self/mountinfo; ps; hostname";
    let thief =
        line.grant(job(json!({ "command": ["sh", "-c", script], "inputs": { "own": { "value": "mine" } } }))).await;
    let (finished, told) = line.end(thief).await;
    assert_eq!(finished.outcome, RunOutcome::Success, "{told}");
    let said = line.logs.text(thief, false);
    assert!(said.contains("mine") && said.contains("/inputs/own"), "it sees its own");
    assert!(!said.contains(&marker) && !said.contains(&owner.job.to_string()));
    line.stop(owner, protocol::native::StopReason::Cancelled).await;
    site.assert_clean().await;
}

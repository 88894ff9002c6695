//! Names that try to be paths: in blob keys, job ids, file names, documents.

use broker::config::Flavour;
use serde_json::json;

use super::peers::{Native, Stranger, all_below, ask, fenced, job, outside, send};
use crate::support::{TestBroker, until};

/// Spellings of a way out.
const WAYS_OUT: [&str; 12] = [
    "..%2f..%2f..%2fevil",
    "%2e%2e%2f%2e%2e%2fevil",
    "..%5c..%5cevil",
    "%252e%252e%252fevil",
    "....%2f%2fevil",
    "%2ftmp%2fevil",
    "%2e%2e",
    ".",
    "evil%00.txt",
    "%c0%ae%c0%ae%c0%afevil",
    "..%ef%bc%8fevil",
    "-evil",
];

#[tokio::test]
async fn no_blob_key_reads_or_writes_outside_of_the_store() {
    for flavour in [Flavour::Local, Flavour::Remote] {
        let (broker, before) = fenced(|config| config.flavour = flavour).await;
        let secret = broker.path().join("a/b/secret.txt");
        std::fs::write(&secret, "not yours").unwrap();
        for key in WAYS_OUT.iter().chain(&["..%2fsecret.txt", "..%2f..%2fsecret.txt", "..%2fjournal%2flock"]) {
            let put = send(&broker, "PUT", &format!("/f/{key}"), "evil").await;
            assert!((400..500).contains(&put.status), "{key}: {} {}", put.status, put.body);
            for path in
                [format!("/f/{key}"), format!("/f/{key}/exists"), format!("/download/{key}"), format!("/upload/{key}")]
            {
                let got = ask(&broker, "GET", &path, "").await;
                assert!((400..500).contains(&got.status) && !got.body.contains("not yours"), "{path}: {}", got.body);
            }
        }
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "not yours");
        std::fs::remove_file(secret).unwrap();
        assert_eq!(outside(&broker), before, "nothing was written outside");
        assert!(!all_below(broker.path()).iter().any(|path| path.to_string_lossy().contains("evil")));

        assert_eq!(send(&broker, "PUT", "/f/honest.txt", "good").await.status, 200);
        assert_eq!(ask(&broker, "GET", "/f/honest.txt", "").await.body, "good");
    }
}

#[tokio::test]
async fn records_of_jobs_cannot_be_reached_as_blobs() {
    let broker = TestBroker::start().await;
    let job = broker.submit("abc", json!({ "image": "alpine:3.20" })).await;
    broker.run_next("abc", json!({ "StatusCode": 0 })).await;
    let before = broker.get_json(&format!("/q/abc/j/{job}/result.json")).await;
    for key in [
        format!("j%2F{job}%2Fresult.json"),
        format!("j/{job}/result.json"),
        format!("..%2Fjournal%2Fbodies%2F{job}"),
        format!("f%2F{job}"),
        format!("{job}%2Fresult.json"),
    ] {
        let put = send(&broker, "PUT", &format!("/f/{key}"), r#"{"forged":true}"#).await;
        assert!((400..500).contains(&put.status), "{key}: {}", put.status);
        // With real slashes it is the address of a job in a queue called `f`, which has none.
        let got = ask(&broker, "GET", &format!("/f/{key}"), "").await;
        let is_nothing = (400..500).contains(&got.status) || got.body == r#"{"data":null}"#;
        assert!(is_nothing && !got.body.contains("StatusCode"), "{key}: {}", got.body);
    }
    // A name that a record might have in a store is a name like any other here.
    for key in ["result.json", &format!("{job}.json"), &format!("{job}-result.json")] {
        assert_eq!(send(&broker, "PUT", &format!("/f/{key}"), r#"{"forged":true}"#).await.status, 200, "{key}");
    }
    assert_eq!(broker.get_json(&format!("/q/abc/j/{job}/result.json")).await, before);
}

#[tokio::test]
async fn a_job_id_that_is_a_path_is_refused_in_every_dialect_and_writes_nothing() {
    for flavour in [Flavour::Local, Flavour::Remote] {
        let (broker, before) = fenced(|config| config.flavour = flavour).await;
        let definition = json!({ "image": "evil-image" });
        let mut page = Stranger::connect(&broker, "/q/local/client").await;
        let mut native = Native::connect(&broker, "/q/local/client").await;
        for id in
            ["../../evil", "..", "/tmp/evil", "a/../../../evil", "evil\\..\\..\\evil", "%2e%2e%2fevil", "evil\u{0}"]
        {
            let body = json!({ "id": id, "definition": definition }).to_string();
            assert_eq!(broker.post("/q/local", body.clone()).await.1["code"], "bad_job_id", "{id}");
            let bulk = broker.http.post(broker.url("/q/local/bulk")).body(format!("{body}\n")).send().await.unwrap();
            assert!(bulk.text().await.unwrap().contains("bad_job_id"), "{id}");
            page.submit(id, &definition).await;
            assert_eq!(
                native.submit(json!({ "id": id, "definition": definition })).await,
                Err("bad_message".to_owned())
            );
        }
        page.settle().await;
        assert_eq!(broker.get_json("/q/local").await.1["data"], json!({}), "nothing was queued");
        assert_eq!(outside(&broker), before);

        let (id, definition) = job(definition);
        assert_eq!(native.submit(json!({ "id": id, "definition": definition })).await.as_deref(), Ok(id.as_str()));
        let (id, definition) = job(json!({ "image": "honest" }));
        page.submit(&id, &definition).await;
        until("the honest one", async || broker.get_json("/q/local").await.1["data"][&id].is_object()).await;
    }
}

#[tokio::test]
async fn an_id_that_is_a_path_is_never_forwarded_to_workers() {
    let broker = TestBroker::start_with(|config| config.original.gather = std::time::Duration::from_millis(1)).await;
    let mut page = Stranger::connect(&broker, "/q/abc/client").await;
    let mut worker = Stranger::worker(&broker, "abc", "worker-1").await;
    let mut ours = broker.worker("abc", "worker-2", 1).await;
    for id in
        ["../../../home", "..", "/", ".", "", "a/b", "84696046848EF38F50A2F6182FC7674EAEE3D1FAC23FE57466D6CB5F771794E4"]
    {
        for reason in ["Deleted", "Cancelled"] {
            page.change(id, "Finished", json!({ "type": "Finished", "reason": reason, "time": 1 })).await;
        }
        page.say(json!({ "type": "ClearJobCache", "payload": { "jobId": id } })).await;
        worker.say(json!({ "type": "ClearJobCache", "payload": { "jobId": id } })).await;
        page.say(json!({ "type": "QueryJob", "payload": { "jobId": id } })).await;
        let encoded: String = id.bytes().map(|byte| format!("%{byte:02x}")).collect();
        assert!(broker.post(&format!("/q/abc/j/{encoded}/cancel"), "").await.0 >= 400, "{id}");
    }
    page.settle().await;
    // An honest deletion reaches the worker, and everything sent before it has then, too.
    let (id, definition) = job(json!({ "image": "alpine:3.20" }));
    page.submit(&id, &definition).await;
    ours.claim().await;
    page.change(&id, "Finished", json!({ "type": "Finished", "reason": "Deleted", "time": 1 })).await;
    let clear = worker.until("the deletion", |text| text.contains("ClearJobCache")).await;
    assert!(clear.contains(&id), "{clear}");
    for heard in &worker.heard {
        assert!(!heard.contains("..") && !heard.contains("ClearJobCache") || *heard == clear, "{heard}");
    }
}

#[tokio::test]
async fn file_names_that_lead_out_are_refused_in_every_dialect() {
    let broker = TestBroker::start().await;
    let mut page = Stranger::connect(&broker, "/q/abc/client").await;
    let mut native = Native::connect(&broker, "/q/abc/client").await;
    let text = json!({ "type": "utf8", "value": "evil" });
    let names = [
        "../x",
        "a/../../x",
        "..",
        "a/..",
        "/../../etc/cron.d/x",
        "x/../../../root/.ssh/authorized_keys",
        "a\u{0}b",
        "",
    ];
    for (field, name) in ["inputs", "configFiles"].into_iter().flat_map(|field| names.map(|name| (field, name))) {
        let (id, definition) = job(json!({ "image": "a", field: { name: text } }));
        let body = json!({ "definition": definition }).to_string();
        assert_eq!(broker.post("/q/abc", body.clone()).await.1["code"], "bad_file_name", "{field} {name:?}");
        let bulk = broker.http.post(broker.url("/q/abc/bulk")).body(format!("{body}\n")).send().await.unwrap();
        assert!(bulk.text().await.unwrap().contains("bad_file_name"), "{field} {name:?}");
        assert_eq!(native.submit(json!({ "definition": definition })).await, Err("bad_file_name".to_owned()));
        page.submit(&id, &definition).await;
        let refused = page.until("the refusal", |text| text.contains(&id)).await;
        assert!(refused.contains("Error") && refused.contains("name"), "{refused}");
    }
    assert_eq!(broker.get_json("/q/abc").await.1["data"], json!({}));
    for name in ["a/b/c.txt", "..x", "x..", "a b", "é.txt"] {
        let body = json!({ "definition": { "image": "a", "inputs": { name: text } } }).to_string();
        assert_eq!(broker.post("/q/abc", body).await.0, 200, "{name}");
    }
    let config = json!({ "definition": { "image": "a", "configFiles": { "/etc/app.toml": text } } }).to_string();
    assert_eq!(broker.post("/q/abc", config).await.0, 200);
}

#[tokio::test]
async fn documents_are_a_list_and_no_folder() {
    let broker = TestBroker::start().await;
    for page in [
        "../Cargo.toml",
        "..%2fCargo.toml",
        "%2e%2e/README.md",
        "..%2f..%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "operating.md%00",
        "operating/../../Cargo.toml",
        "operating%2f..%2f..%2fREADME",
        "websocket.rs",
        "OPERATING",
        "http:%2f%2fevil.example",
        "<script>alert(1)<%2fscript>",
    ] {
        let found = ask(&broker, "GET", &format!("/docs/{page}"), "").await;
        assert!((400..500).contains(&found.status), "{page}: {}", found.status);
        assert!(
            !found.body.contains("[package]") && !found.body.contains("root:") && !found.body.contains("<script>alert")
        );
    }
    for page in ["operating", "operating.md", "security"] {
        assert_eq!(ask(&broker, "GET", &format!("/docs/{page}"), "").await.status, 200, "{page}");
    }
}

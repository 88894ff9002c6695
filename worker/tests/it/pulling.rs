//! Images from a registry: a small one on this machine, which every Engine takes without TLS.

use protocol::event::RunOutcome;
use protocol::native::LogKind;
use serde_json::json;

use crate::support::peer::sha256;
use crate::support::{Site, with_id};

/// Puts an image into the scripted registry; gives its reference and its layer's path.
async fn publish(site: &Site, name: &str) -> (String, String) {
    // Some bytes behind the archive's end, so that no Engine has this layer already.
    let mut layer = site.engine.busybox_layer().await;
    layer.extend_from_slice(&[0; 512]);
    layer.extend_from_slice(uuid::Uuid::new_v4().as_bytes());
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Labels": {"made": uuid::Uuid::new_v4().to_string()}},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]},
    })
    .to_string();
    let part = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "size": bytes.len(), "digest": sha256(bytes)});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": part("application/vnd.docker.container.image.v1+json", config.as_bytes()),
        "layers": [part("application/vnd.docker.image.rootfs.diff.tar.gzip", &layer)],
    })
    .to_string();
    let repository = format!("/v2/{name}");
    let blob = |bytes: &[u8]| format!("{repository}/blobs/{}", sha256(bytes));
    site.peer.blobs.put("/v2/", b"{}");
    site.peer.blobs.put(&format!("{repository}/manifests/1"), manifest.as_bytes());
    site.peer.blobs.put(&format!("{repository}/manifests/{}", sha256(manifest.as_bytes())), manifest.as_bytes());
    site.peer.blobs.put(&blob(config.as_bytes()), config.as_bytes());
    site.peer.blobs.put(&blob(&layer), &layer);
    let host = site.peer.address().replace("http://", "").replace("/grid", "");
    (format!("{host}/{name}:1"), blob(&layer))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_image_is_pulled_with_its_progress_in_the_build_log() {
    let Some(mut site) = Site::new().await else { return };
    let (image, _) = publish(&site, "gs/pulled").await;
    let (_worker, mut line) = site.started().await;
    let definition =
        |n: u32| json!({"image": image, "command": ["/busybox", "echo", "pulled"], "env": {"N": n.to_string()}});
    // Two at once: one pull serves both.
    let runs = [line.grant(with_id(&definition(1))).await, line.grant(with_id(&definition(2))).await];
    for run in runs {
        let (finished, told) = line.end(run).await;
        assert_eq!((finished.outcome, finished.exit_code), (RunOutcome::Success, Some(0)), "{told}");
        assert_eq!(line.logs.text(run, false), "pulled\n");
        assert_eq!(told["result"]["logs"].as_array().unwrap().len(), 1, "progress is no part of the result");
    }
    let progress: String =
        runs.iter().flat_map(|run| line.logs.of(*run, LogKind::Build)).map(|line| line.text).collect();
    assert!(progress.contains("Pulling") && progress.contains(": "), "{progress}");
    site.assert_clean().await;
    site.engine.docker.remove_image(&image, None::<bollard::query_parameters::RemoveImageOptions>, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_the_middle_of_a_pull_is_an_error() {
    let Some(mut site) = Site::new().await else { return };
    let (image, layer) = publish(&site, "gs/broken").await;
    site.peer.blobs.remove(&layer);
    let (_worker, mut line) = site.started().await;
    let run = line.grant(with_id(&json!({"image": image, "command": ["/busybox", "true"]}))).await;
    let (finished, told) = line.end(run).await;
    assert_eq!(finished.outcome, RunOutcome::Error, "{told}");
    assert_eq!(told["result"]["error"], "Error");
    assert!(told["result"]["logs"][0][0].as_str().unwrap().contains("cannot pull"), "{told}");
    site.assert_clean().await;
}

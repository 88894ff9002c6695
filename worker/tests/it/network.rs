//! The workers' own network, when several make it at once.

use bollard::models::NetworkCreateRequest;
use serde_json::json;

use crate::support::own_engine::{How, OwnEngine};
use crate::support::{Site, TestEngine, job};

const NAME: &str = "metaframe-container-worker-network";

/// Makes it as another worker does that asks in the same moment; whether the Engine lets that be.
async fn made_by_another(engine: &TestEngine) -> bool {
    let option = |name: &str, value: &str| (format!("com.docker.network.bridge.{name}"), value.to_owned());
    let request = NetworkCreateRequest {
        name: NAME.to_owned(),
        driver: Some("bridge".to_owned()),
        options: Some([option("enable_icc", "false"), option("enable_ip_masquerade", "true")].into()),
        labels: Some([("container.mtfm.io".to_owned(), "true".to_owned())].into()),
        ..NetworkCreateRequest::default()
    };
    engine.docker.create_network(request).await.is_ok()
}

async fn count(engine: &TestEngine) -> usize {
    let networks = engine.docker.list_networks(None).await.unwrap();
    networks.iter().filter(|network| network.name.as_deref() == Some(NAME)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_networks_of_one_name_one_is_left_and_jobs_run_on_it() {
    let Some(mut site) = Site::new().await else { return };
    let Some(own) = OwnEngine::start(How::default()).await else { return };
    site.engine = own.client().await;
    if !(made_by_another(&site.engine).await && made_by_another(&site.engine).await) {
        println!("skipped: this Engine makes no two networks of one name");
        return;
    }
    // There before the worker is.
    let (_worker, mut line) = site.started_with(|config| config.network = None).await;
    let first = line.grant(job(json!({"command": "echo first"}))).await;
    assert_eq!(line.end(first).await.0.exit_code, Some(0));
    assert_eq!(count(&site.engine).await, 1);
    // And made by somebody who is late.
    assert!(made_by_another(&site.engine).await);
    let second = line.grant(job(json!({"command": "echo second"}))).await;
    let (finished, told) = line.end(second).await;
    assert_eq!(finished.exit_code, Some(0), "{told}");
    assert_eq!(count(&site.engine).await, 1);
    site.assert_clean().await;
}

//! Local mode from the image: reached through a published port, by those who may.

use reqwest::StatusCode;

use super::support::{Site, http};

#[tokio::test]
async fn the_documented_local_command_works_with_only_the_images_name_changed() {
    let Some(site) = Site::find() else { return };
    let data = format!("--data-directory={}", site.folder("worker"));
    let words = ["run", "--max-job-duration=20m", &data, "--cpus=2", "--mode=local"];
    site.worker("worker", &["-p", "127.0.0.1::8000", "--rm"], &words);
    let api = site.address("worker", 8000).await;

    let out = site.data.path().join("out");
    let command = "sh -c 'echo written > /outputs/out.txt; echo said'";
    let said = site.job(&api, "local", &["--output-dir", out.to_str().unwrap()], command).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "said\n"), "{said:?}");
    assert_eq!(std::fs::read_to_string(out.join("out.txt")).unwrap(), "written\n");

    let http = http();
    let page = http.get(&api).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let get = async |host: &str| http.get(format!("{api}/q/local")).header("host", host).send().await.unwrap().status();
    assert_eq!(get("localhost:8000").await, StatusCode::OK);
    assert_eq!(get("192.168.7.7:8000").await, StatusCode::OK);
    assert_eq!(get("evil.example:8000").await, StatusCode::MISDIRECTED_REQUEST, "a name that was made to point here");

    let post = async |origin: &str| {
        let definition = r#"{"definition":{"image":"none","command":"x"},"control":{"namespace":"n"}}"#;
        let request = http.post(format!("{api}/q/elsewhere")).header("origin", origin).body(definition);
        request.send().await.unwrap().status()
    };
    for origin in [api.as_str(), "http://localhost:8000", "https://container.mtfm.io"] {
        assert_eq!(post(origin).await, StatusCode::OK, "{origin}");
    }
    assert_eq!(post("https://evil.example").await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn variables_make_it_local_and_let_an_origin_in() {
    let Some(site) = Site::find() else { return };
    let data = format!("METAPAGE_IO_WORKER_DATA_DIRECTORY={}", site.folder("worker"));
    let variables = [
        "METAPAGE_IO_WORKER_MODE=local",
        "METAPAGE_IO_WORKER_PORT=8123",
        "METAPAGE_IO_WORKER_CPUS=2",
        "GRIDSOCKET_ALLOW_ORIGIN=https://app.example",
        "GRIDSOCKET_PUBLIC_URL=https://grid.example",
        &data,
    ];
    let before: Vec<&str> = variables.iter().flat_map(|variable| ["-e", variable]).collect();
    site.worker("worker", &[&["-p", "127.0.0.1::8123"], before.as_slice()].concat(), &["run"]);
    let api = site.address("worker", 8123).await;
    let http = http();
    let get = http.get(format!("{api}/q/local")).header("origin", "https://app.example").send().await.unwrap();
    assert_eq!(get.headers()["access-control-allow-origin"], "https://app.example");
    assert_eq!(get.headers()["access-control-allow-credentials"], "true");
    let named = http.get(format!("{api}/q/local")).header("host", "grid.example").send().await.unwrap();
    assert_eq!(named.status(), StatusCode::OK);
}

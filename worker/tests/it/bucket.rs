//! The worker and the real broker, whose blobs are in a bucket: inputs come from there and outputs go there.

use broker::config::{Access, BlobsUrl};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::s3::S3Server;
use crate::support::Grid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_come_from_a_bucket_and_outputs_go_there() {
    // One holds uploads to their checksums, so that they go where blobs are; the other leaves that to the broker.
    for (is_strict, server) in [(true, S3Server::strict().await), (false, S3Server::lax().await)] {
        let mut url: BlobsUrl = server.url("", "").parse().unwrap();
        if let BlobsUrl::Bucket(bucket) = &mut url {
            bucket.access = Access::read(S3Server::variable);
        }
        let Some(mut grid) = Grid::without_worker_with(1, |config| config.blobs = url).await else { return };
        grid.start_worker(|_| {});

        let input: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
        let key: String = Sha256::digest(&input).iter().map(|byte| format!("{byte:02x}")).collect();
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let sent_on = client.put(grid.url(&format!("/f/{key}"))).body(input.clone()).send().await.unwrap();
        assert_eq!(sent_on.status(), 302);
        let address = sent_on.headers()["location"].to_str().unwrap();
        assert_eq!(client.put(address).body(input.clone()).send().await.unwrap().status(), 200);

        let job = grid
            .submit(json!({
                "command": ["sh", "-c", "wc -l < /inputs/numbers; sort -rn /inputs/numbers > /outputs/sorted; cp /inputs/again /outputs/same"],
                "inputs": {
                    "numbers": {"type": "url", "value": grid.url(&format!("/f/{key}"))},
                    "again": {"type": "key", "value": key},
                },
            }))
            .await;
        let told = grid.result(&job).await.to_string();
        assert!(told.contains("\"StatusCode\":0"), "{told}");
        grid.until_logged(&job, "100000\\n").await;
        let sorted: String = (1..=100_000).rev().map(|n| format!("{n}\n")).collect();
        for (name, expected) in [("sorted", &sorted), ("same", &input)] {
            let output = grid.url(&format!("/q/{}/j/{job}/outputs/{name}", grid.queue()));
            let got = client.get(&output).send().await.unwrap();
            assert!(got.headers()["location"].to_str().unwrap().starts_with(&server.endpoint));
            let bytes = grid.http.get(output).send().await.unwrap().bytes().await.unwrap();
            assert_eq!(bytes, expected.as_bytes(), "{name}");
        }
        assert_eq!(server.objects("").len(), 2, "{:?}", server.objects(""));
        assert!(server.objects("").iter().all(|object| object.starts_with("f/")));
        // The input came past the broker without a promise; the output promised its checksum, which one of the two kept to.
        assert_eq!(server.reads("checking").len(), if is_strict { 1 } else { 2 });
        grid.stop().await;
    }
}

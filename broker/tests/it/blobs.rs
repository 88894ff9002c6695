//! Blobs over HTTP: what a key promises, and what becomes of uploads that break it.

use std::path::PathBuf;

use broker::config::{BlobsUrl, Config};
use futures_util::{StreamExt, stream};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{SmallDisk, TestBroker, json_of, until, within};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// More than is gathered in memory before it goes to disk.
fn large() -> Vec<u8> {
    (0..3_500_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn files_under(broker: &TestBroker, folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(broker.path().join("blobs").join(folder)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

async fn stored(broker: &TestBroker, key: &str) -> Option<Vec<u8>> {
    let response = broker.get(&format!("/f/{key}")).await;
    match response.status().as_u16() {
        200 => Some(response.bytes().await.unwrap().to_vec()),
        404 => None,
        status => panic!("{status}"),
    }
}

#[tokio::test]
async fn bytes_put_under_their_digest_come_back() {
    let broker = TestBroker::start().await;
    for bytes in [Vec::new(), b"hello\n".to_vec(), vec![7; 1024 * 1024], large()] {
        let key = sha256(&bytes);
        assert_eq!(broker.get_json(&format!("/f/{key}/exists")).await, (404, json!({ "exists": false })));
        let put = broker.put(&format!("/f/{key}"), bytes.clone()).await;
        assert_eq!(put.status(), 200);
        assert_eq!(put.text().await.unwrap(), format!("file saved to f/{key}"));
        assert_eq!(broker.get_json(&format!("/f/{key}/exists")).await, (200, json!({ "exists": true })));
        let got = broker.get(&format!("/f/{key}")).await;
        assert_eq!(got.headers()["content-length"], bytes.len().to_string().as_str());
        assert_eq!(got.headers()["content-type"], "application/octet-stream");
        assert_eq!(got.headers()["content-disposition"], format!("attachment; filename=\"{key}\"").as_str());
        assert_eq!(got.headers()["x-content-type-options"], "nosniff");
        assert_eq!(got.bytes().await.unwrap(), bytes);
        assert_eq!(broker.put(&format!("/f/{key}"), bytes).await.status(), 200, "the same again");
    }
    assert!(files_under(&broker, "uploads").is_empty());
}

#[tokio::test]
async fn blobs_outlive_a_restart() {
    let broker = TestBroker::start().await;
    let bytes = large();
    let key = sha256(&bytes);
    broker.put(&format!("/f/{key}"), bytes.clone()).await;
    let broker = broker.restart().await;
    assert_eq!(stored(&broker, &key).await.unwrap(), bytes);
}

#[tokio::test]
async fn bytes_that_are_not_those_of_the_key_are_refused_with_both_digests() {
    let broker = TestBroker::start().await;
    for bytes in [b"other".to_vec(), large()] {
        let key = sha256(b"promised");
        let (status, told) = json_of(broker.put(&format!("/f/{key}"), bytes.clone()).await).await;
        assert_eq!((status, &told["code"]), (422, &json!("wrong_digest")));
        let text = told["error"].as_str().unwrap();
        assert!(text.contains(&key) && text.contains(&sha256(&bytes)), "{text}");
        assert_eq!(stored(&broker, &key).await, None);
    }
    until("the upload's file to go", || async { files_under(&broker, "uploads").is_empty() }).await;
    assert!(files_under(&broker, "f").is_empty());
}

#[tokio::test]
async fn wrong_bytes_do_not_replace_right_ones() {
    let broker = TestBroker::start().await;
    let key = sha256(b"promised");
    broker.put(&format!("/f/{key}"), "promised").await;
    assert_eq!(broker.put(&format!("/f/{key}"), "other").await.status(), 422);
    assert_eq!(stored(&broker, &key).await.unwrap(), b"promised");
}

#[tokio::test]
async fn a_digest_has_one_spelling() {
    let broker = TestBroker::start().await;
    let key = sha256(b"promised").to_uppercase();
    assert_eq!(broker.put(&format!("/f/{key}"), "promised").await.status(), 422);
}

#[tokio::test]
async fn a_key_that_is_no_digest_is_written_once() {
    let broker = TestBroker::start().await;
    let bytes = large();
    let same_size: Vec<u8> = bytes.iter().rev().copied().collect();
    for (key, first, other) in [
        ("1730000000000-x7-my_file.txt", b"one".to_vec(), b"two".to_vec()),
        ("abc.tar.gz", b"one".to_vec(), b"longer".to_vec()),
        ("large.bin", bytes, same_size),
    ] {
        let path = format!("/f/{key}");
        assert_eq!(broker.put(&path, first.clone()).await.status(), 200);
        assert_eq!(broker.put(&path, first.clone()).await.status(), 200, "the same again");
        let (status, told) = json_of(broker.put(&path, other).await).await;
        assert_eq!((status, &told["code"]), (409, &json!("blob_key_taken")));
        assert_eq!(stored(&broker, key).await.unwrap(), first);
    }
    assert!(files_under(&broker, "uploads").is_empty());
}

/// A request as it is written here: clients tidy `..` away before they send.
async fn raw_status(broker: &TestBroker, method: &str, path: &str) -> u16 {
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nbytes");
    peer.write_all(request.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    within(path, peer.read_exact(&mut status)).await.unwrap();
    std::str::from_utf8(&status[9..]).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_key_that_is_no_plain_file_name_is_refused() {
    let broker = TestBroker::start().await;
    let long = "a".repeat(256);
    for key in ["..%2F..%2Fetc%2Fpasswd", "..", "%2e%2e", ".hidden", "a%20b", "a%00", "a%231", "%C3%A9", "-x", &long] {
        for method in ["PUT", "GET"] {
            assert_eq!(raw_status(&broker, method, &format!("/f/{key}")).await, 400, "{method} {key}");
        }
    }
    for path in ["/f/../x", "/f/j/result.json", "/f//etc/passwd"] {
        assert_eq!(raw_status(&broker, "PUT", path).await, 404, "{path}");
    }
    assert!(files_under(&broker, "f").is_empty());
    assert!(files_under(&broker, "uploads").is_empty());
    assert_eq!(raw_status(&broker, "PUT", &format!("/f/{}", &long[1..])).await, 200, "255 is not too long");
}

#[tokio::test]
async fn a_blob_of_the_limit_is_kept_and_one_byte_more_is_not() {
    for limit in [1000, 2_000_000] {
        let broker = TestBroker::start_with(|config: &mut Config| config.limits.blob_bytes_max = limit as u64).await;
        let (fits, over) = (vec![1; limit], vec![1; limit + 1]);
        assert_eq!(broker.put("/f/fits", fits).await.status(), 200);
        let (status, told) = json_of(broker.put("/f/over", over.clone()).await).await;
        assert_eq!((status, &told["code"]), (413, &json!("blob_too_large")));
        assert!(told["error"].as_str().unwrap().contains(&limit.to_string()));
        // The same without a length said beforehand.
        let pieces =
            stream::iter(over.chunks(999).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>());
        let response = broker.put("/f/over", reqwest::Body::wrap_stream(pieces)).await;
        assert_eq!(response.status(), 413);
        assert_eq!(stored(&broker, "over").await, None);
        until("the upload's file to go", || async { files_under(&broker, "uploads").is_empty() }).await;
    }
}

#[tokio::test]
async fn of_many_uploads_to_one_key_one_is_kept_whole() {
    let broker = TestBroker::start().await;
    for size in [10_000, 1_500_000] {
        let key = format!("contested-{size}");
        let uploads = (0..12_u8).map(|n| {
            let (broker, path) = (&broker, format!("/f/{key}"));
            async move { (n, broker.put(&path, vec![n; size]).await.status().as_u16()) }
        });
        let answers: Vec<(u8, u16)> = stream::iter(uploads).buffer_unordered(12).collect().await;
        let winners: Vec<u8> = answers.iter().filter(|(_, status)| *status == 200).map(|(n, _)| *n).collect();
        assert_eq!(winners.len(), 1, "{answers:?}");
        assert!(answers.iter().all(|(_, status)| matches!(status, 200 | 409)), "{answers:?}");
        assert_eq!(stored(&broker, &key).await.unwrap(), vec![winners[0]; size]);
    }
    assert!(files_under(&broker, "uploads").is_empty());
}

#[tokio::test]
async fn many_uploads_of_the_same_bytes_all_succeed() {
    let broker = TestBroker::start().await;
    let bytes = large();
    let key = sha256(&bytes);
    let uploads = (0..6).map(|_| {
        let (broker, path, bytes) = (&broker, format!("/f/{key}"), bytes.clone());
        async move { broker.put(&path, bytes).await.status().as_u16() }
    });
    let answers: Vec<u16> = stream::iter(uploads).buffer_unordered(6).collect().await;
    assert_eq!(answers, [200; 6]);
    assert_eq!(stored(&broker, &key).await.unwrap(), bytes);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let broker = TestBroker::start().await;
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    let head = "PUT /f/half HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n";
    peer.write_all(head.as_bytes()).await.unwrap();
    peer.write_all(&vec![1; 3_000_000]).await.unwrap();
    until("the upload to begin", || async { !files_under(&broker, "uploads").is_empty() }).await;
    drop(peer);
    until("the upload's file to go", || async { files_under(&broker, "uploads").is_empty() }).await;
    assert_eq!(stored(&broker, "half").await, None);
}

#[tokio::test]
async fn a_stalled_upload_is_given_up() {
    let broker =
        TestBroker::start_with(|config| config.limits.body_idle_timeout = std::time::Duration::from_millis(50)).await;
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    peer.write_all(b"PUT /f/stalled HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc").await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&answer).contains("body_stalled") {
        let count = within("the answer", peer.read(&mut buffer)).await.unwrap();
        assert!(count > 0, "closed without an answer: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..count]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 408"));
}

#[tokio::test]
async fn an_upload_that_asks_first_is_told_to_go_on() {
    let broker = TestBroker::start().await;
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    peer.write_all(b"PUT /f/asked HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    let mut told = [0; 25];
    within("the go-ahead", peer.read_exact(&mut told)).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    peer.write_all(b"bytes").await.unwrap();
    let mut status = [0; 15];
    within("the answer", peer.read_exact(&mut status)).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200 OK");
    assert_eq!(stored(&broker, "asked").await.unwrap(), b"bytes");
}

#[tokio::test]
async fn a_part_of_a_blob_can_be_had() {
    let broker = TestBroker::start().await;
    let bytes = large();
    broker.put("/f/large.json", bytes.clone()).await;
    let part = |range: &'static str| broker.http.get(broker.url("/f/large.json")).header("range", range).send();
    let size = bytes.len();
    for (range, start, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1000000-2999999", 1_000_000, 3_000_000),
        ("bytes=3499990-", 3_499_990, size),
        ("bytes=-10", size - 10, size),
        ("bytes=3499990-99999999", 3_499_990, size),
    ] {
        let got = part(range).await.unwrap();
        assert_eq!(got.status(), 206, "{range}");
        assert_eq!(got.headers()["content-range"], format!("bytes {start}-{}/{size}", end - 1).as_str());
        assert_eq!(got.bytes().await.unwrap(), bytes[start..end]);
    }
    let beyond = part("bytes=3500000-").await.unwrap();
    assert_eq!(beyond.status(), 416);
    assert_eq!(beyond.headers()["content-range"], format!("bytes */{size}").as_str());
    let several = part("bytes=0-1,5-6").await.unwrap();
    assert_eq!(several.status(), 200);
    assert_eq!(several.headers()["content-type"], "application/json");
    assert_eq!(several.bytes().await.unwrap(), bytes);
}

#[tokio::test]
async fn head_answers_as_get_without_the_bytes() {
    let broker = TestBroker::start().await;
    broker.put("/f/some", "bytes").await;
    let head = broker.http.head(broker.url("/f/some")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), &head.headers()["content-length"].to_str().unwrap()), (200, &"5"));
    assert!(head.bytes().await.unwrap().is_empty());
    assert_eq!(broker.http.head(broker.url("/f/none")).send().await.unwrap().status(), 404);
    assert_eq!(broker.get("/f/none").await.text().await.unwrap(), "File not found");
}

#[tokio::test]
async fn a_full_store_refuses_what_does_not_fit_and_keeps_the_rest() {
    let Some(disk) = SmallDisk::mount("size=4m") else { return };
    let blobs = BlobsUrl::Folder(disk.path().to_owned());
    let broker = TestBroker::start_with(|config| config.blobs = blobs).await;
    assert_eq!(broker.put("/f/before", "bytes").await.status(), 200);
    let (status, told) = json_of(broker.put("/f/large", vec![1; 6_000_000]).await).await;
    assert_eq!((status, &told["code"]), (507, &json!("store_full")), "{told}");
    assert_eq!(stored(&broker, "large").await, None);
    let uploads = disk.path().join("uploads");
    until("the upload's file to go", || async { std::fs::read_dir(&uploads).unwrap().count() == 0 }).await;
    assert_eq!(broker.put("/f/after", "bytes").await.status(), 200);
    assert_eq!(stored(&broker, "before").await.unwrap(), b"bytes");
}

//! Blobs in a bucket: who is sent there, and what of what they upload becomes a blob.

use std::time::Duration;

use base64::Engine as _;
use broker::Broker;
use broker::blobs::Blobs;
use broker::config::{Access, BlobsUrl, Config, Flavour};
use futures_util::{StreamExt, stream};
use protocol::id::UnixMillis;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::s3::{BUCKET, S3Server};
use crate::support::{TestBroker, json_of, until, within};

const CHECKSUM: &str = "x-amz-checksum-sha256";

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn checksum(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(Sha256::digest(bytes))
}

fn blobs_url(text: &str) -> BlobsUrl {
    let mut url: BlobsUrl = text.parse().unwrap();
    if let BlobsUrl::Bucket(bucket) = &mut url {
        bucket.access = Access::read(S3Server::variable);
    }
    url
}

async fn broker_on(url: &str) -> TestBroker {
    let url = blobs_url(url);
    TestBroker::start_with(|config| config.blobs = url).await
}

async fn started() -> (S3Server, TestBroker) {
    let server = S3Server::lax().await;
    let broker = broker_on(&server.url("", "")).await;
    (server, broker)
}

/// Where the broker sends on to.
fn location(response: &reqwest::Response) -> String {
    assert_eq!(response.status(), 302);
    assert_eq!(response.headers()["cache-control"], "no-store");
    response.headers()["location"].to_str().unwrap().to_owned()
}

/// Where an upload of that key goes that promises `promised`.
async fn address_for(broker: &TestBroker, key: &str, promised: Option<&[u8]>) -> String {
    let mut request = broker.http.put(broker.url(&format!("/f/{key}")));
    if let Some(promised) = promised {
        request = request.header(CHECKSUM, checksum(promised));
    }
    location(&within("an address", request.send()).await.unwrap())
}

async fn put_at(broker: &TestBroker, address: &str, bytes: impl Into<reqwest::Body>) -> u16 {
    within("an upload", broker.http.put(address).body(bytes).send()).await.unwrap().status().as_u16()
}

/// Uploads as a client does that follows redirects.
async fn upload(broker: &TestBroker, key: &str, bytes: &[u8]) {
    let response = broker.put(&format!("/f/{key}"), bytes.to_vec()).await;
    if response.status() != 200 {
        assert_eq!(put_at(broker, &location(&response), bytes.to_vec()).await, 200);
    }
}

/// A blob's bytes as a client gets them that follows redirects; else the status.
async fn download(broker: &TestBroker, path: &str) -> Result<Vec<u8>, u16> {
    let response = broker.get(path).await;
    let response = match response.status().as_u16() {
        302 => within("a download", broker.http.get(location(&response)).send()).await.unwrap(),
        _ => response,
    };
    if response.status() == 200 {
        Ok(response.bytes().await.unwrap().to_vec())
    } else {
        Err(response.status().as_u16())
    }
}

async fn exists(broker: &TestBroker, key: &str) -> bool {
    let (status, answer) = broker.get_json(&format!("/f/{key}/exists")).await;
    assert_eq!(answer, json!({ "exists": status == 200 }));
    status == 200
}

#[tokio::test]
async fn clients_are_sent_to_the_bucket_with_their_bytes_and_for_them() {
    for server in [S3Server::lax().await, S3Server::strict().await] {
        let broker = broker_on(&server.url("", "")).await;
        for bytes in [Vec::new(), b"hello\n".to_vec(), vec![7; 3_000_000]] {
            let key = sha256(&bytes);
            assert!(!exists(&broker, &key).await);
            assert_eq!(download(&broker, &format!("/f/{key}")).await, Err(404));
            upload(&broker, &key, &bytes).await;
            assert!(exists(&broker, &key).await);
            assert_eq!(download(&broker, &format!("/f/{key}")).await, Ok(bytes));
        }
        assert_eq!(server.objects("incoming").len(), 0, "what became a blob is not kept twice");
        assert_eq!(server.objects("checking").len(), 0);
        assert_eq!(server.objects("probe").len(), 0);
    }
}

#[tokio::test]
async fn an_address_is_good_for_an_hour_and_for_nothing_else() {
    let (server, broker) = started().await;
    let address = address_for(&broker, &sha256(b"x"), None).await;
    assert!(address.starts_with(&format!("{}/{BUCKET}/incoming/{}/", server.endpoint, sha256(b"x"))), "{address}");
    assert!(address.contains("X-Amz-Expires=3600"), "{address}");
    assert_ne!(address, address_for(&broker, &sha256(b"x"), None).await, "each upload has a place of its own");
    let other_place = address.replace("incoming", "f");
    assert_eq!(put_at(&broker, &other_place, "x").await, 403);
    assert_eq!(broker.http.get(&address).send().await.unwrap().status(), 403);
    assert_eq!(broker.http.delete(&address).send().await.unwrap().status(), 403);
    assert!(server.objects("f").is_empty());
}

#[tokio::test]
async fn a_download_from_the_bucket_has_its_type_and_its_name_whatever_the_uploader_said() {
    let (_server, broker) = started().await;
    let address = address_for(&broker, "page.json", None).await;
    let lies = broker.http.put(address).header("content-type", "text/html").header("content-disposition", "inline");
    assert_eq!(lies.body("{}").send().await.unwrap().status(), 200);
    for (path, content_type, disposition) in [
        ("/f/page.json", "application/json", "attachment; filename=\"page.json\""),
        (
            "/f/page.json?filename=a%22%C3%A9.png",
            "image/png",
            "attachment; filename=\"a__.png\"; filename*=UTF-8''a%22%C3%A9.png",
        ),
    ] {
        let got = broker.http.get(location(&broker.get(path).await)).send().await.unwrap();
        assert_eq!(got.headers()["content-type"], content_type);
        assert_eq!(got.headers()["content-disposition"], disposition);
        assert_eq!(got.text().await.unwrap(), "{}");
    }
    let head = broker.http.head(broker.url("/f/page.json")).send().await.unwrap();
    let head = broker.http.head(location(&head)).send().await.unwrap();
    assert_eq!((head.status().as_u16(), head.headers()["content-length"].to_str().unwrap()), (200, "2"));
    let part = broker.http.get(location(&broker.get("/f/page.json").await)).header("range", "bytes=1-").send();
    assert_eq!(part.await.unwrap().status(), 206);
    let known = broker.http.get(broker.url("/f/page.json")).header("if-none-match", "\"page.json\"").send();
    assert_eq!(known.await.unwrap().status(), 304);
}

#[tokio::test]
async fn curl_uploads_as_the_documents_say() {
    let (_server, broker) = started().await;
    let folder = tempfile::TempDir::new().unwrap();
    // The larger one makes curl ask before it sends.
    for size in [10_usize, 5_000_000] {
        let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let (file, key) = (folder.path().join("file"), sha256(&bytes));
        std::fs::write(&file, &bytes).unwrap();
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["--noproxy", "*", "-sS", "--fail", "-X", "PUT", "--location", "--upload-file"]);
        let Ok(ran) = within("curl", curl.arg(&file).arg(broker.url(&format!("/f/{key}"))).output()).await else {
            eprintln!("skipped: there is no curl");
            return;
        };
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        assert_eq!(download(&broker, &format!("/f/{key}")).await, Ok(bytes));
    }
}

#[tokio::test]
async fn other_bytes_than_the_key_says_are_found_when_first_asked_for_and_never_served() {
    for ask in ["GET", "exists", "HEAD"] {
        let (server, broker) = started().await;
        let key = sha256(b"promised");
        upload(&broker, &key, b"forged").await;
        match ask {
            "GET" => {
                let got = broker.get(&format!("/f/{key}")).await;
                assert_eq!(got.status(), 404);
                let text = got.text().await.unwrap();
                assert!(text.starts_with("File not found") && text.contains(&sha256(b"forged")), "{text}");
            }
            "HEAD" => {
                let head = broker.http.head(broker.url(&format!("/f/{key}"))).send().await.unwrap();
                assert_eq!(head.status(), 404);
            }
            _ => assert!(!exists(&broker, &key).await),
        }
        assert_eq!(server.objects(""), Vec::<String>::new(), "{ask}: the wrong bytes are gone");
        assert!(!exists(&broker, &key).await);
        upload(&broker, &key, b"promised").await;
        assert_eq!(download(&broker, &format!("/f/{key}")).await, Ok(b"promised".to_vec()));
    }
}

#[tokio::test]
async fn among_wrong_uploads_the_right_one_is_found() {
    let (server, broker) = started().await;
    let key = sha256(b"promised");
    for n in 0..5 {
        upload(&broker, &key, format!("forged {n}").as_bytes()).await;
        if n == 2 {
            upload(&broker, &key, b"promised").await;
        }
    }
    assert!(exists(&broker, &key).await);
    assert_eq!(server.objects(""), [format!("f/{key}")]);
}

#[tokio::test]
async fn an_address_that_is_still_good_does_not_reach_the_blob_that_came_of_it() {
    let (server, broker) = started().await;
    for (key, bytes) in [(sha256(b"right"), b"right"), ("plain.bin".to_owned(), b"first")] {
        let address = address_for(&broker, &key, None).await;
        assert_eq!(put_at(&broker, &address, bytes.as_slice()).await, 200);
        assert!(exists(&broker, &key).await);
        assert_eq!(put_at(&broker, &address, "other").await, 200, "the address is good for an hour");
        assert_eq!(download(&broker, &format!("/f/{key}")).await, Ok(bytes.to_vec()));
        assert_eq!(std::fs::read(server.file(&format!("f/{key}"))).unwrap(), bytes);
        assert!(exists(&broker, &key).await);
    }
}

#[tokio::test]
async fn an_upload_that_is_changed_while_it_is_checked_does_not_become_the_blob() {
    let (server, broker) = started().await;
    let (right, wrong) = (b"right".as_slice(), b"wrong".as_slice());
    let key = sha256(right);
    upload(&broker, &key, right).await;
    let staged = server.objects("incoming").remove(0);
    server.swap_before_next_read(&staged, wrong);
    assert!(exists(&broker, &key).await);
    assert_eq!(std::fs::read(server.file(&format!("f/{key}"))).unwrap(), right);
}

#[tokio::test]
async fn many_who_ask_at_once_wait_for_one_check() {
    let (server, broker) = started().await;
    let bytes = vec![3; 2_000_000];
    let key = sha256(&bytes);
    upload(&broker, &key, &bytes).await;
    let asked = stream::iter(0..12).map(|_| exists(&broker, &key)).buffer_unordered(12);
    assert!(asked.all(|exists| async move { exists }).await);
    assert_eq!(server.reads("checking").len(), 1);
    assert!(server.reads("incoming").is_empty());
}

#[tokio::test]
async fn a_store_that_checks_what_was_promised_is_trusted_with_it() {
    let server = S3Server::strict().await;
    let broker = broker_on(&server.url("", "")).await;
    let (right, key) = (b"right".as_slice(), sha256(b"right"));
    let address = address_for(&broker, &key, Some(right)).await;
    assert!(address.contains(&format!("/f/{key}?")), "{address}");
    let put = |sum: Option<String>, body: &'static [u8]| {
        let mut request = broker.http.put(&address).body(body);
        if let Some(sum) = sum {
            request = request.header(CHECKSUM, sum);
        }
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(put(Some(checksum(right)), b"wrong").await, 400, "other bytes");
    assert_eq!(put(None, b"wrong").await, 403, "without the promise");
    assert_eq!(put(Some(checksum(b"wrong")), b"wrong").await, 403, "another promise");
    assert!(!exists(&broker, &key).await);
    assert_eq!(put(Some(checksum(right)), right).await, 200);
    assert!(exists(&broker, &key).await);
    assert_eq!(download(&broker, &format!("/f/{key}")).await, Ok(right.to_vec()));
    assert!(server.reads("checking").is_empty(), "nothing had to be read again");
    let again = broker.http.put(broker.url(&format!("/f/{key}"))).header(CHECKSUM, checksum(right)).body("right");
    assert_eq!(again.send().await.unwrap().status(), 200, "it is there already");
}

#[tokio::test]
async fn a_store_that_does_not_check_is_not_trusted() {
    let (server, broker) = started().await;
    let (right, key) = (b"right".as_slice(), sha256(b"right"));
    let address = address_for(&broker, &key, Some(right)).await;
    assert!(address.contains("/incoming/"), "{address}");
    let put = broker.http.put(&address).header(CHECKSUM, checksum(right)).body("right");
    assert_eq!(put.send().await.unwrap().status(), 200);
    assert!(exists(&broker, &key).await);
    assert_eq!(server.reads("checking").len(), 1);
}

#[tokio::test]
async fn a_promise_that_is_not_what_the_key_says_is_refused_at_once() {
    let (_server, broker) = started().await;
    let path = format!("/f/{}", sha256(b"right"));
    let put = |sum: &str| broker.http.put(broker.url(&path)).header(CHECKSUM, sum).body("wrong").send();
    let (status, told) = json_of(put(&checksum(b"wrong")).await.unwrap()).await;
    assert_eq!((status, &told["code"]), (422, &json!("wrong_digest")));
    let (status, told) = json_of(put("nonsense").await.unwrap()).await;
    assert_eq!((status, &told["code"]), (400, &json!("bad_checksum")));
}

#[tokio::test]
async fn a_key_that_is_no_digest_is_written_once_in_a_bucket_too() {
    let (server, broker) = started().await;
    upload(&broker, "some.tar.gz", b"first").await;
    let too_late = address_for(&broker, "other.tar.gz", None).await;
    upload(&broker, "other.tar.gz", b"first").await;
    for key in ["some.tar.gz", "other.tar.gz"] {
        let path = format!("/f/{key}");
        assert_eq!(download(&broker, &path).await, Ok(b"first".to_vec()));
        assert_eq!(broker.put(&path, "first").await.status(), 200, "the same again");
        let (status, told) = json_of(broker.put(&path, "other").await).await;
        assert_eq!((status, &told["code"]), (409, &json!("blob_key_taken")));
    }
    assert_eq!(put_at(&broker, &too_late, "other").await, 200);
    assert_eq!(download(&broker, "/f/other.tar.gz").await, Ok(b"first".to_vec()));
    settle(&server).await;
    assert_eq!(server.objects(""), ["f/other.tar.gz", "f/some.tar.gz"]);
    assert_eq!(std::fs::read(server.file("f/other.tar.gz")).unwrap(), b"first");
}

#[tokio::test]
async fn of_two_uploads_to_a_free_key_the_one_that_was_there_first_stands() {
    let (server, broker) = started().await;
    let (one, two) = (address_for(&broker, "free", None).await, address_for(&broker, "free", None).await);
    assert_eq!(put_at(&broker, &two, "two").await, 200);
    let two_at = std::fs::metadata(server.file(&server.objects("incoming")[0])).unwrap().modified().unwrap();
    // Stores tell times in whole seconds or better; the later one must be later for any of them.
    assert_eq!(put_at(&broker, &one, "one").await, 200);
    for object in server.objects("incoming") {
        let file = std::fs::File::options().write(true).open(server.file(&object)).unwrap();
        let later = if std::fs::read(server.file(&object)).unwrap() == b"one" { 5 } else { 0 };
        file.set_modified(two_at + Duration::from_secs(later)).unwrap();
    }
    assert_eq!(download(&broker, "/f/free").await, Ok(b"two".to_vec()));
    assert_eq!(server.objects(""), ["f/free"]);
}

/// What a broker does from time to time.
async fn settle(server: &S3Server) {
    let blobs = Blobs::open(&blobs_url(&server.url("", "")), u64::MAX).await.unwrap();
    blobs.settle_uploads(UnixMillis(u64::MAX)).await.unwrap();
}

#[tokio::test]
async fn uploads_that_nobody_asks_for_are_settled_too() {
    let (server, broker) = started().await;
    let key = sha256(b"right");
    upload(&broker, &key, b"right").await;
    upload(&broker, &sha256(b"promised"), b"forged").await;
    upload(&broker, "plain", b"bytes").await;
    let blobs = Blobs::open(&blobs_url(&server.url("", "")), u64::MAX).await.unwrap();
    blobs.settle_uploads(UnixMillis(1)).await.unwrap();
    assert_eq!(server.objects("incoming").len(), 3, "what is not old enough is left alone");
    settle(&server).await;
    assert_eq!(server.objects(""), [format!("f/{key}"), "f/plain".to_owned()]);
}

#[tokio::test]
async fn an_upload_that_cannot_be_settled_does_not_keep_others_from_it() {
    let (server, broker) = started().await;
    upload(&broker, "a-broken", b"bytes").await;
    upload(&broker, "b-good", b"bytes").await;
    server.refuse_copies_of("a-broken");
    settle(&server).await;
    assert_eq!(server.objects("f/"), ["f/b-good"]);
    assert_eq!(server.objects("incoming").len(), 1, "the other is tried again the next time");
}

#[tokio::test]
async fn an_upload_over_the_limit_does_not_become_a_blob() {
    let server = S3Server::lax().await;
    let url = blobs_url(&server.url("", ""));
    let broker = TestBroker::start_with(|config: &mut Config| {
        config.blobs = url;
        config.limits.blob_bytes_max = 1000;
    })
    .await;
    let (status, told) = json_of(broker.put("/f/over", vec![1; 1001]).await).await;
    assert_eq!((status, &told["code"]), (413, &json!("blob_too_large")));
    // Nobody is held to the length that was said first.
    for key in ["over".to_owned(), sha256(&[1; 1001])] {
        let address = address_for(&broker, &key, None).await;
        assert_eq!(put_at(&broker, &address, vec![1; 1001]).await, 200);
        assert!(!exists(&broker, &key).await);
    }
    upload(&broker, "fits", &[1; 1000]).await;
    assert!(exists(&broker, "fits").await);
    assert_eq!(server.objects(""), ["f/fits"]);
}

#[tokio::test]
async fn no_key_leads_to_anything_but_blobs() {
    let (server, broker) = started().await;
    std::fs::create_dir_all(server.file("j/job")).unwrap();
    std::fs::write(server.file("j/job/result.json"), "ours").unwrap();
    std::fs::write(server.file("secret"), "ours").unwrap();
    for key in ["j%2Fjob%2Fresult.json", "..%2Fsecret", "%2e%2e%2fsecret"] {
        for path in
            [format!("/f/{key}"), format!("/f/{key}/exists"), format!("/upload/{key}"), format!("/download/{key}")]
        {
            assert_eq!(broker.get(&path).await.status(), 400, "{path}");
        }
        assert_eq!(broker.put(&format!("/f/{key}"), "theirs").await.status(), 400, "{key}");
    }
    assert!(!exists(&broker, "secret").await);
}

#[tokio::test]
async fn everything_is_below_the_prefix() {
    let server = S3Server::strict().await;
    let broker = broker_on(&server.url("/some/where", "")).await;
    let key = sha256(b"right");
    upload(&broker, &key, b"right").await;
    assert_eq!(download(&broker, &format!("/f/{key}")).await, Ok(b"right".to_vec()));
    let (large, path) = (vec![1; 9_000_000], "/f/large".to_owned());
    let pieces: Vec<_> = large.chunks(700_000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    assert_eq!(broker.put(&path, reqwest::Body::wrap_stream(stream::iter(pieces))).await.status(), 200);
    assert_eq!(server.objects(""), [format!("some/where/f/{key}"), "some/where/f/large".to_owned()]);
}

#[tokio::test]
async fn clients_are_sent_where_they_reach_the_store() {
    let server = S3Server::lax().await;
    let broker = broker_on(&server.url("", "&public_endpoint=https://files.example")).await;
    upload(&TestBroker::start_with(|config| config.blobs = blobs_url(&server.url("", ""))).await, "blob", b"bytes")
        .await;
    let address = location(&broker.get("/f/blob").await);
    assert!(address.starts_with(&format!("https://files.example/{BUCKET}/f/blob?")), "{address}");
}

#[tokio::test]
async fn what_a_bucket_cannot_take_from_a_client_goes_through_the_broker() {
    let (server, broker) = started().await;
    let bytes: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let key = sha256(&bytes);
    let pieces = || {
        let pieces: Vec<_> = bytes.chunks(999_999).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
        reqwest::Body::wrap_stream(stream::iter(pieces))
    };
    let put = broker.put(&format!("/f/{key}"), pieces()).await;
    assert_eq!(put.status(), 200, "a body without a length");
    assert_eq!(server.parts(), [8_388_608, 8_388_608, 3_222_784], "no part is small or large");
    assert_eq!(download(&broker, &format!("/f/{key}")).await, Ok(bytes.clone()));
    let (status, told) = json_of(broker.put(&format!("/f/{}", sha256(b"other")), pieces()).await).await;
    assert_eq!((status, &told["code"]), (422, &json!("wrong_digest")));
    assert_eq!(server.objects(""), [format!("f/{key}")]);
    until("the parts to be called off", || async { server.aborts() == 1 }).await;
}

#[tokio::test]
async fn with_redirects_off_all_bytes_go_through_the_broker() {
    let server = S3Server::lax().await;
    let through = broker_on(&server.url("", "&redirect=false")).await;
    // Pages on this machine cannot be expected to reach the bucket.
    let url = blobs_url(&server.url("/local", ""));
    let local = TestBroker::start_with(|config| (config.blobs, config.flavour) = (url, Flavour::Local)).await;
    for broker in [through, local] {
        let large: Vec<u8> = (0..9_000_000_u32).map(|n| (n % 251) as u8).collect();
        for bytes in [Vec::new(), b"hello\n".to_vec(), large.clone()] {
            let path = format!("/f/{}", sha256(&bytes));
            assert_eq!(broker.get(&path).await.status(), 404);
            let (status, told) = json_of(broker.put(&path, "wrong").await).await;
            assert_eq!((status, &told["code"]), (422, &json!("wrong_digest")));
            assert_eq!(
                broker.put(&path, bytes.clone()).await.text().await.unwrap(),
                format!("file saved to {}", &path[1..])
            );
            assert_eq!(broker.put(&path, bytes.clone()).await.status(), 200, "the same again");
            let got = broker.get(&path).await;
            assert_eq!(got.status(), 200);
            assert_eq!(got.headers()["x-content-type-options"], "nosniff");
            assert_eq!(got.bytes().await.unwrap(), bytes);
        }
        let other: Vec<u8> = large.iter().rev().copied().collect();
        assert_eq!(broker.put("/f/large.bin", large.clone()).await.status(), 200);
        assert_eq!(broker.put("/f/large.bin", large.clone()).await.status(), 200, "the same again");
        assert_eq!(broker.put("/f/large.bin", other).await.status(), 409);
        let part = |range| broker.http.get(broker.url("/f/large.bin")).header("range", range).send();
        assert_eq!(part("bytes=8000000-8000009").await.unwrap().bytes().await.unwrap(), large[8_000_000..8_000_010]);
        assert_eq!(part("bytes=-7").await.unwrap().bytes().await.unwrap(), large[8_999_993..]);
        assert_eq!(part("bytes=9000000-").await.unwrap().status(), 416);
        let nothing = broker.http.get(broker.url(&format!("/f/{}", sha256(b"")))).header("range", "bytes=-7").send();
        assert_eq!(nothing.await.unwrap().status(), 200);
        let (_, told) = broker.get_json(&format!("/upload/{}", sha256(b"x"))).await;
        assert_eq!(told["url"], broker.url(&format!("/f/{}", sha256(b"x"))));
    }
}

#[tokio::test]
async fn of_many_uploads_through_the_broker_one_is_kept_whole() {
    let server = S3Server::lax().await;
    let broker = broker_on(&server.url("", "&redirect=false")).await;
    for size in [10_000, 9_000_000] {
        let key = format!("contested-{size}");
        let uploads = (0..6_u8).map(|n| {
            let (broker, path) = (&broker, format!("/f/{key}"));
            async move { (n, broker.put(&path, vec![n; size]).await.status().as_u16()) }
        });
        let answers: Vec<(u8, u16)> = stream::iter(uploads).buffer_unordered(6).collect().await;
        let winners: Vec<u8> = answers.iter().filter(|(_, status)| *status == 200).map(|(n, _)| *n).collect();
        assert_eq!(winners.len(), 1, "{answers:?}");
        assert!(answers.iter().all(|(_, status)| matches!(status, 200 | 409)), "{answers:?}");
        assert_eq!(download(&broker, &format!("/f/{key}")).await, Ok(vec![winners[0]; size]));
    }
}

#[tokio::test]
async fn an_upload_through_the_broker_that_breaks_off_leaves_nothing() {
    let server = S3Server::lax().await;
    let broker = broker_on(&server.url("", "&redirect=false")).await;
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    peer.write_all(b"PUT /f/half HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n").await.unwrap();
    peer.write_all(&vec![1; 20_000_000]).await.unwrap();
    until("the upload to begin", || async { !server.parts().is_empty() }).await;
    drop(peer);
    until("the parts to be called off", || async { server.aborts() == 1 }).await;
    assert!(!exists(&broker, "half").await);
}

#[tokio::test]
async fn an_upload_that_asks_first_is_sent_on_before_it_sends() {
    let (_server, broker) = started().await;
    let mut peer = TcpStream::connect(broker.handle.addr()).await.unwrap();
    let head = format!(
        "PUT /f/asked HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        broker.host()
    );
    peer.write_all(head.as_bytes()).await.unwrap();
    let mut told = [0; 18];
    within("the answer", peer.read_exact(&mut told)).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 302 Found");
}

#[tokio::test]
async fn old_clients_that_ask_first_are_told_addresses_in_the_bucket() {
    let (server, broker) = started().await;
    let key = sha256(b"right");
    let (_, told) = broker.get_json(&format!("/upload/{key}")).await;
    assert_eq!(told["ref"], json!({ "value": key, "type": "key" }));
    let address = told["url"].as_str().unwrap();
    assert!(address.starts_with(&server.endpoint), "{address}");
    assert_eq!(put_at(&broker, address, "right").await, 200);
    let (_, told) = broker.get_json(&format!("/download/{key}")).await;
    let stable = broker.url(&format!("/f/{key}"));
    assert_eq!(told["ref"], json!({ "value": stable, "type": "url" }), "what goes into definitions does not expire");
    let got = broker.http.get(told["url"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(got.text().await.unwrap(), "right");
    // What is taken can only be compared, and that the broker does.
    let (_, told) = broker.get_json(&format!("/upload/{key}")).await;
    assert_eq!(told["url"], stable);
}

#[tokio::test]
async fn inputs_and_outputs_lead_to_the_bucket() {
    let (server, broker) = started().await;
    let digest = sha256(b"digest");
    upload(&broker, &digest, b"digest").await;
    upload(&broker, "plain.csv", b"plain").await;
    upload(&broker, &sha256(b"promised"), b"forged").await;
    let url = |value: String| json!({ "type": "url", "value": value });
    let refs = json!({
        "a.txt": url(broker.url(&format!("/f/{digest}"))),
        "b.txt": url(format!("https://elsewhere.example/f/{digest}")),
        "c.csv": url(broker.url("/f/plain.csv")),
        "d.csv": { "type": "key", "value": "plain.csv" },
        "forged": url(broker.url(&format!("/f/{}", sha256(b"promised")))),
        "forged key": { "type": "key", "value": sha256(b"promised") },
    });
    let job = broker.submit("q", json!({ "image": "alpine", "command": "true", "inputs": refs })).await;
    broker.run_next("q", json!({ "StatusCode": 0, "outputs": refs })).await;
    for folder in ["inputs", "outputs"] {
        let at = |name: &str| format!("/q/q/j/{job}/{folder}/{name}");
        for (name, bytes) in [("a.txt", "digest"), ("b.txt", "digest"), ("c.csv", "plain"), ("d.csv", "plain")] {
            let address = location(&broker.get(&at(name)).await);
            assert!(address.starts_with(&server.endpoint), "{address}");
            let got = broker.http.get(address).send().await.unwrap();
            assert_eq!(got.headers()["content-disposition"], format!("attachment; filename=\"{name}\"").as_str());
            assert!(got.headers()["content-type"].to_str().unwrap().starts_with("text/"), "{name}");
            assert_eq!(got.text().await.unwrap(), bytes);
        }
        let forged = broker.get(&at("forged")).await;
        assert_eq!(forged.headers()["location"], broker.url(&format!("/f/{}", sha256(b"promised"))).as_str());
        assert_eq!(broker.get(&at("forged%20key")).await.status(), 404);
    }
}

/// What a start is refused with.
async fn refusal(url: BlobsUrl) -> String {
    let folder = tempfile::TempDir::new().unwrap();
    let mut config = Config::new(folder.path());
    config.blobs = url;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = within("the start", Broker::start(config, listener)).await.err().expect("a broker that does not start");
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(!text.contains(crate::s3::SECRET), "{text}");
    text
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_keeps_the_broker_from_starting_and_says_why() {
    // Installs what TLS needs.
    let (server, _broker) = started().await;
    let url = |text: &str, change: fn(&str) -> Option<String>| {
        let mut url = blobs_url(text);
        if let BlobsUrl::Bucket(bucket) = &mut url {
            bucket.access = Access::read(change);
        }
        url
    };
    let missing = server.url("", "").replace(BUCKET, "no-such-bucket");
    let text = refusal(url(&missing, S3Server::variable)).await;
    assert!(text.contains("no-such-bucket") && text.contains("there is no such bucket; make it"), "{text}");
    let wrong = |name: &str| {
        S3Server::variable(name).map(|value| if value == crate::s3::SECRET { "guess".into() } else { value })
    };
    let text = refusal(url(&server.url("", ""), wrong)).await;
    assert!(text.contains("does not know these credentials"), "{text}");
    let text = refusal(url("s3://bucket?endpoint=http://127.0.0.1:1", S3Server::variable)).await;
    assert!(text.contains("http://127.0.0.1:1") && text.contains("check the endpoint"), "{text}");
    let text = refusal(url("s3://bucket?endpoint=http://127.0.0.1:1", |_| None)).await;
    assert!(text.contains("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), "{text}");
    assert!(server.path().exists());
}

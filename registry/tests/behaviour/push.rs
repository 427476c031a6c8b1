//! Pushing: uploads in one piece and in several, and mounts.

use bytes::Bytes;
use penstock_blob::Digest;
use penstock_registry::Config;
use reqwest::{Method, Response};

use crate::client::{Pair, code, header, noise};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

async fn begin(pair: &Pair, query: &str, body: Bytes) -> Response {
    pair.request(Method::POST, &format!("/v2/a/blobs/uploads/{query}")).body(body).send().await.unwrap()
}

async fn send(pair: &Pair, method: Method, path: &str, body: Bytes) -> Response {
    pair.request(method, path).body(body).send().await.unwrap()
}

async fn push_whole(pair: &Pair, bytes: &Bytes) -> String {
    let answer = begin(pair, &format!("?digest={}", Digest::of(bytes)), bytes.clone()).await;
    assert_eq!(answer.status(), 201);
    header(&answer, "location").to_owned()
}

#[tokio::test]
async fn a_blob_is_pushed_whole_or_in_two_steps() {
    let pair = Pair::start(Config::default()).await;
    let bytes = noise(300_000);
    let at = push_whole(&pair, &bytes).await;
    assert_eq!(pair.pull(&at).await.bytes().await.unwrap(), bytes);

    let other = noise(200_000);
    let begun = begin(&pair, "", Bytes::new()).await;
    assert_eq!(begun.status(), 202);
    let path = format!("{}?digest={}", header(&begun, "location"), Digest::of(&other));
    let done = send(&pair, Method::PUT, &path, other.clone()).await;
    assert_eq!(header(&done, "docker-content-digest"), Digest::of(&other).to_string());
    assert_eq!(pair.pull(header(&done, "location")).await.bytes().await.unwrap(), other);
}

#[tokio::test]
async fn a_blob_is_pushed_in_pieces_that_must_follow_each_other() {
    let pair = Pair::start(Config::default()).await;
    let bytes = noise(1000);
    let begun = begin(&pair, "", Bytes::new()).await;
    let path = header(&begun, "location").to_owned();
    let piece = async |range: std::ops::Range<usize>| {
        let stated = format!("{}-{}", range.start, range.end - 1);
        let request = pair.request(Method::PATCH, &path).header("content-range", stated);
        request.body(bytes.slice(range)).send().await.unwrap()
    };
    let first = piece(0..400).await;
    assert_eq!((first.status().as_u16(), header(&first, "range")), (202, "0-399"));
    assert_eq!(piece(500..1000).await.status(), 416);
    let at = pair.pull(&path).await;
    assert_eq!((at.status().as_u16(), header(&at, "range")), (204, "0-399"));
    assert_eq!(piece(400..1000).await.status(), 202);
    let done = send(&pair, Method::PUT, &format!("{path}?digest={}", Digest::of(&bytes)), Bytes::new()).await;
    assert_eq!(done.status(), 201);
    assert_eq!(pair.pull(header(&done, "location")).await.bytes().await.unwrap(), bytes);
    assert_eq!(code(pair.pull(&path).await).await, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn a_blob_with_another_digest_is_not_kept() {
    let pair = Pair::start(Config::default()).await;
    let wrong = Digest::of(b"other");
    let answer = begin(&pair, &format!("?digest={wrong}"), noise(10)).await;
    assert_eq!((answer.status().as_u16(), code(answer).await.as_str()), (400, "DIGEST_INVALID"));
    assert_eq!(pair.pull(&format!("/v2/a/blobs/{wrong}")).await.status(), 404);
    assert_eq!(pair.pull(&format!("/v2/a/blobs/{}", Digest::of(&noise(10)))).await.status(), 404);
}

#[tokio::test]
async fn an_upload_is_cancelled() {
    let pair = Pair::start(Config::default()).await;
    let path = header(&begin(&pair, "", Bytes::new()).await, "location").to_owned();
    assert_eq!(pair.ask(Method::DELETE, &path).await.status(), 204);
    assert_eq!(pair.pull(&path).await.status(), 404);
}

#[tokio::test]
async fn a_blob_beyond_the_limit_is_refused() {
    let pair = Pair::start(Config { max_upload_bytes: 999, ..Config::default() }).await;
    let bytes = noise(1000);
    let answer = begin(&pair, &format!("?digest={}", Digest::of(&bytes)), bytes).await;
    assert_eq!((answer.status().as_u16(), code(answer).await.as_str()), (413, "SIZE_INVALID"));
    push_whole(&pair, &noise(999)).await;
}

#[tokio::test]
async fn uploads_under_way_are_bounded() {
    let pair = Pair::start(Config::default()).await;
    let mut last = 202;
    let mut begun = 0;
    while last == 202 {
        last = begin(&pair, "", Bytes::new()).await.status().as_u16();
        begun += 1;
    }
    assert_eq!((begun, last), (65, 429));
}

#[tokio::test]
async fn a_blob_is_mounted_from_another_repository() {
    let pair = Pair::start(Config::default()).await;
    let bytes = noise(100);
    push_whole(&pair, &bytes).await;
    let digest = Digest::of(&bytes);
    let mount =
        async |from: &str| pair.ask(Method::POST, &format!("/v2/b/blobs/uploads/?mount={digest}&from={from}")).await;
    assert_eq!(mount("none").await.status(), 202, "what cannot be mounted is uploaded");
    assert_eq!(pair.pull(&format!("/v2/b/blobs/{digest}")).await.status(), 404);
    assert_eq!(mount("a").await.status(), 201);
    assert_eq!(pair.pull(&format!("/v2/b/blobs/{digest}")).await.bytes().await.unwrap(), bytes);
}

#[tokio::test]
async fn a_manifest_is_taken_when_all_it_names_is_there() {
    let pair = Pair::start(Config::default()).await;
    let layer = noise(100);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "layers": [{ "mediaType": "x", "digest": Digest::of(&layer), "size": 100 }],
        "subject": { "mediaType": MANIFEST, "digest": Digest::of(b"later"), "size": 5 },
    })
    .to_string();
    let put = async |name: &str, content_type: &str, body: String| {
        let request =
            pair.request(Method::PUT, &format!("/v2/a/manifests/{name}")).header("content-type", content_type);
        request.body(body).send().await.unwrap()
    };
    assert_eq!(code(put("1", MANIFEST, manifest.clone()).await).await, "MANIFEST_BLOB_UNKNOWN");
    push_whole(&pair, &layer).await;
    let answer = put("1", MANIFEST, manifest.clone()).await;
    let digest = Digest::of(manifest.as_bytes());
    assert_eq!(
        (answer.status().as_u16(), header(&answer, "docker-content-digest")),
        (201, digest.to_string().as_str())
    );
    assert_eq!(header(&answer, "oci-subject"), Digest::of(b"later").to_string());
    assert_eq!(pair.pull("/v2/a/manifests/1").await.bytes().await.unwrap(), manifest);
    assert_eq!(put(&digest.to_string(), MANIFEST, manifest.clone()).await.status(), 201);
    assert_eq!(code(put(&Digest::of(b"x").to_string(), MANIFEST, manifest.clone()).await).await, "DIGEST_INVALID");
    assert_eq!(code(put("1", "application/other", manifest).await).await, "MANIFEST_INVALID");
    assert_eq!(code(put("1", MANIFEST, "no json".to_owned()).await).await, "MANIFEST_INVALID");
    assert_eq!(code(put("1", MANIFEST, " ".repeat((4 << 20) + 1)).await).await, "SIZE_INVALID");
}

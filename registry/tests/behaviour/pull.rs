//! Pulling: manifests, blobs and their ranges.

use std::collections::BTreeMap;

use bytes::Bytes;
use penstock_blob::{Blob, ByteRange, Digest};
use penstock_registry::{Artifact, ArtifactError, Config, Counts, Kind, Layer, LayoutError};
use reqwest::Method;

use crate::client::{Pair, code, header, noise};

fn image(layers: &[Blob]) -> Artifact {
    let layer = |&blob| Layer {
        blob,
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        annotations: BTreeMap::from([("size".to_owned(), blob.size_bytes.to_string())]),
    };
    Artifact { config: Bytes::from_static(b"{}"), layers: layers.iter().map(layer).collect(), ..Artifact::default() }
}

#[tokio::test]
async fn a_manifest_is_had_by_tag_and_by_digest() {
    let pair = Pair::start(Config::default()).await;
    let layer = pair.registry.put_blob(noise(1000));
    let manifest = pair.registry.put_image("library/a", "1.0", image(&[layer])).unwrap();
    assert_eq!(pair.pull("/v2/").await.status(), 200);
    for name in ["1.0".to_owned(), manifest.digest.to_string()] {
        let path = format!("/v2/library/a/manifests/{name}");
        let head = pair.ask(Method::HEAD, &path).await;
        let got = pair.pull(&path).await;
        for answer in [&head, &got] {
            assert_eq!(answer.status(), 200);
            assert_eq!(header(answer, "content-type"), "application/vnd.oci.image.manifest.v1+json");
            assert_eq!(header(answer, "docker-content-digest"), manifest.digest.to_string());
            assert_eq!(header(answer, "content-length"), manifest.size_bytes.to_string());
        }
        assert_eq!(head.bytes().await.unwrap(), "");
        let bytes = got.bytes().await.unwrap();
        assert_eq!(Digest::of(&bytes), manifest.digest);
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["layers"][0]["digest"], layer.digest.to_string());
        assert_eq!(json["layers"][0]["annotations"]["size"], "1000");
        let config = json["config"]["digest"].as_str().unwrap();
        assert_eq!(pair.pull(&format!("/v2/library/a/blobs/{config}")).await.bytes().await.unwrap(), "{}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_refused_with_the_codes_of_the_specification() {
    let pair = Pair::start(Config::default()).await;
    let unknown = Digest::of(b"unknown");
    let private = Bytes::from_static(b"{\"private\":1}");
    let config = Artifact { config: private.clone(), ..Artifact::default() };
    pair.registry.put_image("a", "1", config).unwrap();
    for (path, status, expected) in [
        ("/v2/a/manifests/2".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("/v2/none/manifests/1".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/a/blobs/{unknown}"), 404, "BLOB_UNKNOWN"),
        (format!("/v2/b/blobs/{}", Digest::of(&private)), 404, "BLOB_UNKNOWN"),
        ("/v2/a/blobs/sha256:12".to_owned(), 400, "DIGEST_INVALID"),
        ("/v2/A/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/none/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        ("/v1/".to_owned(), 404, "UNSUPPORTED"),
        ("/token".to_owned(), 404, "UNSUPPORTED"),
    ] {
        let answer = pair.pull(&path).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "content-type")), (status, "application/json"), "{path}");
        assert_eq!(code(answer).await, expected, "{path}");
    }
    let answer = pair.ask(Method::DELETE, "/v2/a/manifests/1").await;
    assert_eq!((answer.status().as_u16(), code(answer).await.as_str()), (405, "UNSUPPORTED"));
}

#[tokio::test]
async fn a_range_of_a_blob_is_answered_exactly_from_memory_and_from_a_file() {
    let pair = Pair::start(Config::default()).await;
    let bytes = noise(700_001);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blob");
    std::fs::write(&path, &bytes[..]).unwrap();
    for from_file in [false, true] {
        let blob = if from_file {
            pair.registry.put_file(&path).await.unwrap()
        } else {
            pair.registry.put_blob(bytes.clone())
        };
        assert_eq!(blob, Blob { digest: Digest::of(&bytes), size_bytes: 700_001 });
        let url = format!("/v2/any/blobs/{}", blob.digest);
        let whole = pair.pull(&url).await;
        assert_eq!((whole.status().as_u16(), header(&whole, "accept-ranges")), (200, "bytes"));
        assert_eq!(header(&whole, "docker-content-digest"), blob.digest.to_string());
        assert_eq!(whole.bytes().await.unwrap(), bytes);
        for (start, end) in [(0, 1), (5, 300_000), (700_000, 700_001), (262_143, 524_289)] {
            let part = pair.range(&url, &format!("bytes={start}-{}", end - 1)).await;
            assert_eq!(part.status(), 206);
            assert_eq!(header(&part, "content-range"), format!("bytes {start}-{}/700001", end - 1));
            assert_eq!(part.bytes().await.unwrap(), bytes[start..end]);
        }
        assert_eq!(pair.range(&url, "bytes=-3").await.bytes().await.unwrap(), bytes[699_998..]);
        let beyond = pair.range(&url, "bytes=700001-").await;
        assert_eq!((beyond.status().as_u16(), header(&beyond, "content-range")), (416, "bytes */700001"));
        let head = pair.ask(Method::HEAD, &url).await;
        assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, "700001"));
    }
}

#[tokio::test]
async fn an_unlinked_file_is_served_on() {
    let pair = Pair::start(Config::default()).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"kept").unwrap();
    let blob = pair.registry.put_file(file.path()).await.unwrap();
    file.close().unwrap();
    assert_eq!(pair.pull(&format!("/v2/a/blobs/{}", blob.digest)).await.bytes().await.unwrap(), "kept");
}

#[tokio::test]
async fn tags_are_listed_in_pages() {
    let pair = Pair::start(Config::default()).await;
    for tag in ["b", "a", "c"] {
        pair.registry.put_image("x/y", tag, image(&[])).unwrap();
    }
    let tags = |answer: reqwest::Response| async move {
        let link = header(&answer, "link").to_owned();
        (answer.json::<serde_json::Value>().await.unwrap()["tags"].clone(), link)
    };
    let all = tags(pair.pull("/v2/x/y/tags/list").await).await;
    assert_eq!(all, (serde_json::json!(["a", "b", "c"]), String::new()));
    let (first, link) = tags(pair.pull("/v2/x/y/tags/list?n=2").await).await;
    assert_eq!((first, link.as_str()), (serde_json::json!(["a", "b"]), "</v2/x/y/tags/list?n=2&last=b>; rel=\"next\""));
    let last = tags(pair.pull("/v2/x/y/tags/list?n=2&last=b").await).await;
    assert_eq!(last, (serde_json::json!(["c"]), String::new()));
}

#[tokio::test]
async fn referrers_of_a_manifest_are_found_by_type() {
    let pair = Pair::start(Config::default()).await;
    let subject = pair.registry.put_image("a", "1", image(&[])).unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let mut digests = Vec::new();
    for artifact_type in ["application/x", "application/y"] {
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type, "artifactType": artifact_type, "annotations": { "k": "v" },
            "subject": { "mediaType": media_type, "digest": subject.digest, "size": subject.size_bytes },
        });
        digests.push(pair.registry.put_manifest("a", None, media_type, manifest.to_string()).unwrap().digest);
    }
    let path = format!("/v2/a/referrers/{}", subject.digest);
    let all: serde_json::Value = pair.pull(&path).await.json().await.unwrap();
    assert_eq!(all["manifests"].as_array().unwrap().len(), 2);
    let answer = pair.pull(&format!("{path}?artifactType=application%2Fy")).await;
    assert_eq!(header(&answer, "oci-filters-applied"), "artifactType");
    assert_eq!(header(&answer, "content-type"), "application/vnd.oci.image.index.v1+json");
    let one: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(one["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(one["manifests"][0]["digest"], digests[1].to_string());
    assert_eq!(one["manifests"][0]["annotations"]["k"], "v");
    let none: serde_json::Value =
        pair.pull(&format!("/v2/a/referrers/{}", Digest::of(b"no"))).await.json().await.unwrap();
    assert_eq!(none["manifests"], serde_json::json!([]));
}

#[tokio::test]
async fn every_request_and_every_body_byte_is_recorded() {
    let pair = Pair::start(Config::default()).await;
    let blob = pair.registry.put_blob(noise(10_000));
    let url = format!("/v2/a/blobs/{}", blob.digest);
    pair.range(&url, "bytes=100-299").await.bytes().await.unwrap();
    pair.pull(&url).await.bytes().await.unwrap();
    pair.ask(Method::HEAD, &url).await;
    pair.pull("/v2/").await.bytes().await.unwrap();
    let requests = pair.registry.requests();
    let facts: Vec<_> = requests.iter().map(|r| (r.kind, r.range, r.status, r.bytes)).collect();
    let range = ByteRange::new(100, 300).ok();
    assert_eq!(
        facts,
        [
            (Kind::Blob, range, 206, 200),
            (Kind::Blob, None, 200, 10_000),
            (Kind::Blob, None, 200, 0),
            (Kind::Ping, None, 200, 2)
        ]
    );
    assert_eq!((requests[0].path.as_str(), requests[0].repository.as_deref()), (url.as_str(), Some("a")));
    assert_eq!((requests[0].digest, &requests[2].method), (Some(blob.digest), &Method::HEAD));
    let expected = Counts { requests: 4, blob_requests: 3, bytes: 10_202, blob_bytes: 10_200, ..Counts::default() };
    assert_eq!(pair.registry.counts(), expected);
    pair.registry.reset_counts();
    assert_eq!((pair.registry.counts(), pair.registry.requests().len()), (Counts::default(), 0));
}

#[tokio::test]
async fn a_removed_blob_is_unknown() {
    let pair = Pair::start(Config::default()).await;
    let blob = pair.registry.put_blob(noise(10));
    assert!(pair.registry.remove_blob(&blob.digest));
    assert!(!pair.registry.remove_blob(&blob.digest));
    assert_eq!(pair.pull(&format!("/v2/a/blobs/{}", blob.digest)).await.status(), 404);
}

#[tokio::test]
async fn an_image_must_have_good_names_and_known_layers() {
    let pair = Pair::start(Config::default()).await;
    let put = |repository, tag, image| pair.registry.put_image(repository, tag, image).unwrap_err();
    assert_eq!(put("A", "1", image(&[])), ArtifactError::Repository("A".to_owned()));
    assert_eq!(put("a", "x y", image(&[])), ArtifactError::Tag("x y".to_owned()));
    let unknown = Blob { digest: Digest::of(b"?"), size_bytes: 1 };
    assert_eq!(put("a", "1", image(&[unknown])), ArtifactError::BlobUnknown(unknown.digest));
}

/// A layout with one image of one layer, tagged `v1`, inside a nested index; answers the layer.
fn write_layout(dir: &std::path::Path) -> Bytes {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        std::fs::write(blobs.join(Digest::of(bytes).to_hex()), bytes).unwrap();
        serde_json::json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() })
    };
    let layer = noise(300_000);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": put(b"{}", "application/vnd.oci.image.config.v1+json"),
        "layers": [put(&layer, "application/vnd.oci.image.layer.v1.tar")],
    });
    let manifest = put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    let inner = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    let mut inner = put(inner.to_string().as_bytes(), "application/vnd.oci.image.index.v1+json");
    inner["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "v1" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [inner] });
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    layer
}

#[tokio::test]
async fn a_layout_is_loaded_with_all_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let layer = write_layout(dir.path());
    let pair = Pair::start(Config::default()).await;
    assert_eq!(pair.registry.load_layout(dir.path(), "from/layout").await.unwrap(), ["v1"]);
    let index = pair.pull("/v2/from/layout/manifests/v1").await;
    assert_eq!(header(&index, "content-type"), "application/vnd.oci.image.index.v1+json");
    let index: serde_json::Value = index.json().await.unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let manifest: serde_json::Value =
        pair.pull(&format!("/v2/from/layout/manifests/{digest}")).await.json().await.unwrap();
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    assert_eq!(pair.pull(&format!("/v2/from/layout/blobs/{digest}")).await.bytes().await.unwrap(), layer);
    assert_eq!(pair.pull(&format!("/v2/other/blobs/{digest}")).await.status(), 404);
}

#[tokio::test]
async fn a_damaged_layout_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let layer = write_layout(dir.path());
    let path = dir.path().join("blobs/sha256").join(Digest::of(&layer).to_hex());
    let pair = Pair::start(Config::default()).await;
    let load = || pair.registry.load_layout(dir.path(), "a");
    std::fs::write(&path, &layer[..299_999]).unwrap();
    assert!(matches!(load().await, Err(LayoutError::Damaged { path: p, .. }) if p == path));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(load().await, Err(LayoutError::Read { path: p, .. }) if p == path));
    std::fs::write(dir.path().join("index.json"), "[").unwrap();
    assert!(matches!(load().await, Err(LayoutError::Malformed { .. })));
    assert!(matches!(pair.registry.load_layout(dir.path(), "A").await, Err(LayoutError::Artifact(_))));
}

//! Pushing through `oci-distribution`, and reading back.

use std::time::Duration;

use penstock_blob::{Blob, BlobSource as _, Digest, Purpose};
use penstock_fetcher::{Config, Content, CredentialSources, PushError, Upload};
use penstock_registry::{Auth, Config as RegistryConfig, Credentials};
use serde_json::json;

use crate::support::{config, content, fetcher, reference, registry};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

struct Image {
    uploads: Vec<Upload>,
    manifest: bytes::Bytes,
    layer: bytes::Bytes,
    blob: Blob,
    _dir: tempfile::TempDir,
}

/// A config in memory and a layer in a file of more than one piece.
fn image() -> Image {
    let dir = tempfile::tempdir().unwrap();
    let layer = content(5 << 20, 3);
    let path = dir.path().join("layer");
    std::fs::write(&path, &layer).unwrap();
    let blob_of = |bytes: &[u8]| Blob { digest: Digest::of(bytes), size_bytes: bytes.len() as u64 };
    let (config, blob) = (blob_of(b"{}"), blob_of(&layer));
    let descriptor = |kind: &str, blob: &Blob| json!({"mediaType": kind, "digest": blob.digest.to_string(), "size": blob.size_bytes});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": IMAGE,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &blob)],
    });
    let uploads = vec![
        Upload { blob: config, content: Content::Bytes("{}".into()) },
        Upload { blob, content: Content::File(path) },
    ];
    Image { uploads, manifest: manifest.to_string().into(), layer, blob, _dir: dir }
}

#[tokio::test]
async fn what_was_pushed_is_read_back() {
    let credentials = Credentials::new("user", "hunter2");
    for auth in [
        Auth::None,
        Auth::Basic(credentials.clone()),
        Auth::Token { credentials: Some(credentials.clone()), ttl: Duration::from_secs(600) },
    ] {
        let registry = registry(RegistryConfig { auth: auth.clone(), ..RegistryConfig::default() }).await;
        let image = image();
        let docker_config = image._dir.path().join("config.json");
        std::fs::write(
            &docker_config,
            format!(r#"{{"auths": {{"{}": {{"auth": "dXNlcjpodW50ZXIy"}}}}}}"#, registry.host()),
        )
        .unwrap();
        let fetcher = fetcher(Config {
            credentials: CredentialSources { docker_config: Some(docker_config), ..CredentialSources::default() },
            ..config()
        });
        let to = reference(&registry, "team/app:pushed");
        let digest = fetcher
            .push(&to, &image.uploads, image.manifest.clone(), IMAGE)
            .await
            .unwrap_or_else(|e| panic!("{auth:?}: {e}"));
        assert_eq!(digest, Digest::of(&image.manifest));
        let manifest = fetcher.resolve(&to, &penstock_fetcher::Platform::host()).await.unwrap();
        assert_eq!(manifest.digest, digest);
        fetcher.serve(image.blob, &manifest.reference);
        let read = fetcher.read(image.blob, image.blob.all().unwrap(), Purpose::Demand).await.unwrap();
        assert!(read == image.layer);
    }
}

#[tokio::test]
async fn a_blob_of_another_repository_of_the_same_registry_is_taken_over_without_being_sent() {
    let (one, other) = (registry(RegistryConfig::default()).await, registry(RegistryConfig::default()).await);
    let (image, fetcher) = (image(), fetcher(config()));
    let from = reference(&one, "team/app:pushed");
    fetcher.push(&from, &image.uploads, image.manifest.clone(), IMAGE).await.unwrap();
    one.reset_counts();
    let to = reference(&one, "elsewhere/app:1");
    assert!(fetcher.mount(&to, &from, image.blob).await.unwrap());
    assert!(fetcher.mount(&to, &from, image.blob).await.unwrap(), "it has it by now");
    fetcher.serve(image.blob, &to);
    assert!(fetcher.read(image.blob, image.blob.all().unwrap(), Purpose::Demand).await.unwrap() == image.layer);
    let unknown = Blob { digest: Digest::of(b"unknown"), size_bytes: 7 };
    assert!(!fetcher.mount(&to, &from, unknown).await.unwrap(), "nobody has it");
    assert!(!fetcher.mount(&reference(&other, "team/app:1"), &from, image.blob).await.unwrap(), "another registry");
}

#[tokio::test]
async fn a_push_that_may_not_be_says_so() {
    let auth = Auth::Basic(Credentials::new("user", "hunter2"));
    let registry = registry(RegistryConfig { auth, ..RegistryConfig::default() }).await;
    let image = image();
    let to = reference(&registry, "team/app:pushed");
    let error = fetcher(config()).push(&to, &image.uploads, image.manifest, IMAGE).await.unwrap_err();
    assert!(matches!(error, PushError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let registry = registry(RegistryConfig::default()).await;
    let mut image = image();
    let missing = image._dir.path().join("missing");
    image.uploads[1].content = Content::File(missing.clone());
    let to = reference(&registry, "team/app:pushed");
    let error = fetcher(config()).push(&to, &image.uploads, image.manifest, IMAGE).await.unwrap_err();
    assert!(matches!(&error, PushError::File { path, .. } if *path == missing), "{error}");
}

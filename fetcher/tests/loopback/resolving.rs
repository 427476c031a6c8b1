//! References to verified manifests.

use bytes::Bytes;
use penstock_blob::{Blob, Digest};
use penstock_fetcher::{ManifestError, Platform, ResolveError};
use penstock_registry::{Artifact, Config as RegistryConfig, Fault, Kind, Layer, Registry, Target};
use serde_json::json;

use crate::support::{config, content, fetcher, hasty, reference, registry};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

fn linux(architecture: &str) -> Platform {
    format!("linux/{architecture}").parse().unwrap()
}

/// An image with one layer named after it.
fn put_image(registry: &Registry, tag: &str) -> Blob {
    let layer = registry.put_blob(content(100, tag.len() as u64));
    let layer = Layer {
        blob: layer,
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        annotations: [("name".to_owned(), tag.to_owned())].into(),
    };
    registry
        .put_image("team/app", tag, Artifact { config: "{}".into(), layers: vec![layer], ..Artifact::default() })
        .unwrap()
}

fn put_index(registry: &Registry, tag: &str, media_type: &str, entries: &[(Blob, &str, serde_json::Value)]) -> Blob {
    let entries: Vec<_> = entries
        .iter()
        .map(|(blob, kind, platform)| json!({"mediaType": kind, "digest": blob.digest.to_string(), "size": blob.size_bytes, "platform": platform}))
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).to_string();
    registry.put_manifest("team/app", Some(tag), media_type, index).unwrap()
}

fn on_manifests(fault: Fault) -> penstock_registry::Rule {
    fault.on(Target::Kind(Kind::Manifest))
}

#[tokio::test]
async fn a_tag_is_resolved_to_a_pinned_manifest() {
    let registry = registry(RegistryConfig::default()).await;
    let image = put_image(&registry, "v1");
    let fetcher = fetcher(config());
    let manifest = fetcher.resolve(&reference(&registry, "team/app:v1"), &linux("amd64")).await.unwrap();
    assert_eq!(manifest.digest, image.digest);
    assert_eq!(manifest.reference, reference(&registry, "team/app:v1").with_digest(image.digest));
    assert_eq!(manifest.media_type, IMAGE);
    assert_eq!(manifest.layers[0].annotations["name"], "v1");
    let again = fetcher.resolve(&manifest.reference, &linux("amd64")).await.unwrap();
    assert_eq!(again, manifest);
}

#[tokio::test]
async fn the_entry_of_the_platform_is_followed() {
    let registry = registry(RegistryConfig::default()).await;
    let [amd, arm] = ["amd64", "armv6"].map(|tag| put_image(&registry, tag));
    for media_type in [INDEX, DOCKER_INDEX] {
        put_index(
            &registry,
            "multi",
            media_type,
            &[
                (amd, IMAGE, json!({"os": "linux", "architecture": "amd64"})),
                (arm, IMAGE, json!({"os": "linux", "architecture": "arm", "variant": "v6"})),
            ],
        );
        let fetcher = fetcher(config());
        let reference = reference(&registry, "team/app:multi");
        for (platform, expected) in [("amd64", amd), ("arm/v7", arm), ("arm64", arm)] {
            let manifest = fetcher.resolve(&reference, &linux(platform)).await.unwrap();
            assert_eq!(manifest.digest, expected.digest, "{platform}");
            assert_eq!(manifest.reference.digest(), Some(expected.digest));
        }
        let error = fetcher.resolve(&reference, &linux("s390x")).await.unwrap_err();
        assert!(
            matches!(&error, ResolveError::Platform { offered, .. } if offered == "linux/amd64, linux/arm/v6"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn indexes_of_indexes_are_followed_to_a_bound() {
    let registry = registry(RegistryConfig::default()).await;
    let mut inner = put_image(&registry, "image");
    let fetcher = fetcher(config());
    for depth in 1..=4 {
        let kind = if depth == 1 { IMAGE } else { INDEX };
        inner =
            put_index(&registry, "nested", INDEX, &[(inner, kind, json!({"os": "linux", "architecture": "amd64"}))]);
        let resolved = fetcher.resolve(&reference(&registry, "team/app:nested"), &linux("amd64")).await;
        match depth {
            1..=3 => assert!(resolved.is_ok(), "{depth}: {resolved:?}"),
            _ => assert!(matches!(resolved, Err(ResolveError::Depth { depth: 3, .. })), "{resolved:?}"),
        }
    }
}

#[tokio::test]
async fn other_bytes_than_the_digest_names_are_refused() {
    let registry = registry(RegistryConfig::default()).await;
    let image = put_image(&registry, "v1");
    let fetcher = fetcher(config());
    let tagged = reference(&registry, "team/app:v1");
    for reference in [tagged.clone(), tagged.with_digest(image.digest)] {
        registry.clear_faults();
        registry.fail(on_manifests(Fault::WrongBytes).always());
        let error = fetcher.resolve(&reference, &linux("amd64")).await.unwrap_err();
        assert!(matches!(error, ResolveError::Digest { expected, .. } if expected == image.digest), "{error}");
    }
    registry.clear_faults();
    registry.fail(on_manifests(Fault::WrongBytes));
    assert!(fetcher.resolve(&tagged, &linux("amd64")).await.is_ok(), "once is forgiven");
}

#[tokio::test]
async fn missing_tags_and_refused_access_say_what_to_do() {
    let registry = registry(RegistryConfig::default()).await;
    put_image(&registry, "v1");
    let fetcher = fetcher(config());
    let missing = reference(&registry, "team/app:v2");
    let error = fetcher.resolve(&missing, &linux("amd64")).await.unwrap_err();
    assert!(matches!(error, ResolveError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("check the name and the tag") && !error.to_string().contains('\n'), "{error}");
    registry.fail(on_manifests(Fault::Status(403)));
    let error = fetcher.resolve(&missing, &linux("amd64")).await.unwrap_err();
    assert!(matches!(error, ResolveError::Denied { .. }), "{error}");
    assert!(error.to_string().contains("docker login"), "{error}");
}

#[tokio::test]
async fn what_is_no_image_is_named() {
    let registry = registry(RegistryConfig::default()).await;
    let text = Bytes::from_static(br#"{"schemaVersion": 1, "name": "x", "fsLayers": []}"#);
    let fetcher = fetcher(config());
    let media_type = "application/vnd.docker.distribution.manifest.v1+json";
    registry.put_manifest("team/app", Some("old"), media_type, text).unwrap();
    let error = fetcher.resolve(&reference(&registry, "team/app:old"), &linux("amd64")).await.unwrap_err();
    assert!(matches!(&error, ResolveError::Manifest { error: ManifestError::Unsupported { .. }, .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_larger_than_the_bound_is_not_read() {
    let registry = registry(RegistryConfig::default()).await;
    let config_blob = registry.put_blob("{}");
    let descriptor = json!({"mediaType": "x", "digest": config_blob.digest.to_string(), "size": 2});
    let padding = "x".repeat(5 << 20);
    let manifest = json!({"schemaVersion": 2, "mediaType": IMAGE, "config": descriptor, "layers": [], "annotations": {"padding": padding}});
    registry.put_manifest("team/app", Some("huge"), IMAGE, manifest.to_string()).unwrap();
    let error = fetcher(config()).resolve(&reference(&registry, "team/app:huge"), &linux("amd64")).await.unwrap_err();
    assert!(matches!(error, ResolveError::Manifest { error: ManifestError::TooLarge, .. }), "{error}");
    assert_eq!(registry.counts().manifest_requests, 1);
}

#[tokio::test]
async fn passing_faults_are_survived_and_lasting_ones_end_at_the_deadline() {
    let registry = registry(RegistryConfig::default()).await;
    put_image(&registry, "v1");
    let reference = reference(&registry, "team/app:v1");
    let patient = fetcher(config());
    for fault in [Fault::Status(500), Fault::ResetMidBody { after_bytes: 10 }, Fault::ShortBody] {
        registry.fail(on_manifests(fault.clone()).times(2));
        assert!(patient.resolve(&reference, &linux("amd64")).await.is_ok(), "{fault:?}");
    }
    registry.fail(on_manifests(Fault::Stall).always());
    let error = fetcher(hasty()).resolve(&reference, &linux("amd64")).await.unwrap_err();
    assert!(matches!(error, ResolveError::Deadline { .. }), "{error}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn an_unknown_digest_is_not_found() {
    let registry = registry(RegistryConfig::default()).await;
    put_image(&registry, "v1");
    let unknown = reference(&registry, "team/app").with_digest(Digest::of(b"unknown"));
    let error = fetcher(config()).resolve(&unknown, &linux("amd64")).await.unwrap_err();
    assert!(matches!(error, ResolveError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn the_size_of_a_blob_that_no_manifest_names_is_asked_for_by_its_first_byte() {
    let registry = registry(RegistryConfig::default()).await;
    let (fetcher, app) = (fetcher(hasty()), reference(&registry, "team/app:1"));
    let blob = registry.put_blob(content(100_000, 1));
    registry.fail(Fault::Status(503).times(1));
    assert_eq!(fetcher.blob_size(&app, blob.digest).await.unwrap(), 100_000);
    let asked = registry.requests().pop().unwrap();
    assert_eq!((asked.kind, asked.bytes), (Kind::Blob, 1));
    let unknown = fetcher.blob_size(&app, Digest::of(b"unknown")).await.unwrap_err();
    assert!(matches!(unknown, ResolveError::NotFound { .. }), "{unknown}");
    for fault in [Fault::IgnoreRange, Fault::WrongContentRange] {
        registry.fail(fault.clone().always());
        let failed = fetcher.blob_size(&app, blob.digest).await.unwrap_err();
        assert!(
            matches!(failed, ResolveError::Unavailable { .. } | ResolveError::Deadline { .. }),
            "{fault:?}: {failed}"
        );
        registry.clear_faults();
    }
}

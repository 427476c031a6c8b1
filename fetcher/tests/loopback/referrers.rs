//! Artifacts beside an image: through the referrers API, and through the tag where there is none.

use bytes::Bytes;
use penstock_blob::{Blob, Digest};
use penstock_fetcher::{Attached, Content, Descriptor, Fetcher, ResolveError, Upload};
use penstock_registry::{Config as RegistryConfig, Fault, Kind, Registry, Target};
use serde_json::json;

use crate::mirrors::Mirrored;
use crate::support::{config, content, fetcher, hasty, reference, registry};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const TYPE: &str = "application/vnd.example.proof.v1";

fn subject() -> Digest {
    Digest::of(b"the image's manifest")
}

fn blob_of(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::of(bytes), size_bytes: bytes.len() as u64 }
}

/// An artifact of one layer about [`subject`].
fn artifact(artifact_type: &'static str, layer: &Bytes) -> (Vec<Upload>, Attached<'static>) {
    let descriptor = |kind: &str, blob: &Blob| json!({"mediaType": kind, "digest": blob.digest.to_string(), "size": blob.size_bytes});
    let (config, layer) = (Bytes::from_static(b"{}"), layer.clone());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": IMAGE, "artifactType": artifact_type,
        "config": descriptor("application/vnd.oci.empty.v1+json", &blob_of(&config)),
        "layers": [descriptor("application/octet-stream", &blob_of(&layer))],
        "subject": descriptor(IMAGE, &Blob { digest: subject(), size_bytes: 20 }),
    });
    let uploads = [config, layer].map(|bytes| Upload { blob: blob_of(&bytes), content: Content::Bytes(bytes) });
    let manifest = manifest.to_string().into();
    (uploads.to_vec(), Attached { subject: subject(), artifact_type, manifest, media_type: IMAGE })
}

async fn push(fetcher: &Fetcher, registry: &Registry, artifact_type: &'static str, layer: &Bytes) -> Blob {
    let (uploads, artifact) = artifact(artifact_type, layer);
    fetcher.push_artifact(&reference(registry, "team/app:1"), &uploads, artifact).await.unwrap()
}

async fn listed(fetcher: &Fetcher, registry: &Registry) -> Vec<Descriptor> {
    fetcher.referrers(&reference(registry, "team/app:1"), subject(), TYPE).await.unwrap()
}

/// The registry does not know the referrers API, as docker-registry 2.8.
fn without_api(registry: &Registry, status: u16) {
    registry.fail(Fault::Status(status).on(Target::Kind(Kind::Referrers)).always());
}

#[tokio::test]
async fn artifacts_are_found_by_their_subject_and_type_with_and_without_the_api() {
    for api in [None, Some(404), Some(400), Some(405)] {
        let registry = registry(RegistryConfig::default()).await;
        let fetcher = fetcher(config());
        if let Some(status) = api {
            without_api(&registry, status);
        }
        assert!(listed(&fetcher, &registry).await.is_empty());
        let other = push(&fetcher, &registry, "application/other", &content(10, 1)).await;
        assert!(listed(&fetcher, &registry).await.is_empty(), "{} is of another type", other.digest);
        let mine = push(&fetcher, &registry, TYPE, &content(10, 2)).await;
        let found = listed(&fetcher, &registry).await;
        assert_eq!(found.iter().map(Descriptor::blob).collect::<Vec<_>>(), [mine], "{api:?}");
        let bytes = fetcher.artifact(&reference(&registry, "team/app:1"), &found[0]).await.unwrap();
        assert_eq!(blob_of(&bytes), mine);
    }
}

#[tokio::test]
async fn pushing_again_changes_nothing() {
    for api in [true, false] {
        let registry = registry(RegistryConfig::default()).await;
        let fetcher = fetcher(config());
        if !api {
            without_api(&registry, 404);
        }
        let first = push(&fetcher, &registry, TYPE, &content(10, 1)).await;
        registry.reset_counts();
        assert_eq!(push(&fetcher, &registry, TYPE, &content(10, 1)).await, first);
        assert_eq!(listed(&fetcher, &registry).await.len(), 1);
        let written = registry.requests().into_iter().filter(|request| request.method == "PUT").count();
        assert_eq!(written, 1, "the manifest itself, and no tag");
    }
}

#[tokio::test]
async fn a_registry_that_fails_is_not_one_without_artifacts() {
    let registry = registry(RegistryConfig::default()).await;
    let fetcher = fetcher(hasty());
    push(&fetcher, &registry, TYPE, &content(10, 1)).await;
    registry.fail(Fault::Status(503).on(Target::Kind(Kind::Referrers)).always());
    let refused = fetcher.referrers(&reference(&registry, "team/app:1"), subject(), TYPE).await.unwrap_err();
    assert!(matches!(refused, ResolveError::Deadline { .. }), "{refused}");
    registry.clear_faults();
    registry.fail(Fault::WrongBytes.on(Target::Kind(Kind::Manifest)).always());
    let found = listed(&fetcher, &registry).await;
    let refused = fetcher.artifact(&reference(&registry, "team/app:1"), &found[0]).await.unwrap_err();
    assert!(matches!(refused, ResolveError::Digest { .. }), "{refused}");
}

#[tokio::test]
async fn a_mirror_that_lists_nothing_does_not_hide_what_the_registry_lists() {
    for api in [true, false] {
        let scene = Mirrored::new(1, config()).await;
        if !api {
            without_api(&scene.origin, 404);
        }
        assert!(listed(&scene.fetcher, &scene.origin).await.is_empty());
        // Pushing goes to the registry itself.
        let mine = push(&scene.fetcher, &scene.origin, TYPE, &content(10, 1)).await;
        let found = listed(&scene.fetcher, &scene.origin).await;
        assert_eq!(found.iter().map(Descriptor::blob).collect::<Vec<_>>(), [mine], "referrers API: {api}");
    }
}

#[tokio::test]
async fn an_empty_list_of_a_mirror_counts_while_the_registry_is_away() {
    let scene = Mirrored::new(1, hasty()).await;
    scene.origin.set_down(true);
    assert!(listed(&scene.fetcher, &scene.origin).await.is_empty());
}

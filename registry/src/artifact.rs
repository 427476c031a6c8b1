//! Writing an image manifest for blobs that the registry holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use penstock_blob::{Blob, Digest};

use crate::{refusal::Refusal, route, store::Content, store::Store};

/// An image to be put in a repository: its config and its layers, bottom first.
#[derive(Debug, Clone, Default)]
pub struct Artifact {
    /// The config's bytes, usually JSON.
    pub config: Bytes,
    /// The config's media type; empty means an OCI image config.
    pub config_media_type: String,
    /// The layers, which the registry holds already.
    pub layers: Vec<Layer>,
    /// `artifactType` of the manifest.
    pub artifact_type: Option<String>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// One layer of an [`Artifact`].
#[derive(Debug, Clone)]
pub struct Layer {
    /// The blob, given to the registry before.
    pub blob: Blob,
    /// Its media type.
    pub media_type: String,
    /// Annotations of its descriptor.
    pub annotations: BTreeMap<String, String>,
}

/// Why a manifest could not be put.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    /// The repository's name is not one of the distribution specification.
    #[error("{0:?} is not a repository name: lower-case letters, digits, single separators, slashes")]
    Repository(String),
    /// The tag is not one of the distribution specification.
    #[error("{0:?} is not a tag: letters, digits, `_`, `.`, `-`, at most 128 of them")]
    Tag(String),
    /// A blob that the manifest names is not here.
    #[error("the registry does not hold blob {0}: put it before the image")]
    BlobUnknown(Digest),
    /// The manifest is not one.
    #[error("the manifest is not acceptable: {0}")]
    Manifest(String),
}

/// Refuses names that no client could ask for.
pub(crate) fn check_names(repository: &str, tag: Option<&str>) -> Result<(), ArtifactError> {
    if !route::is_repository(repository) {
        return Err(ArtifactError::Repository(repository.to_owned()));
    }
    match tag {
        Some(tag) if !matches!(route::Name::of(tag), Ok(route::Name::Tag(_))) => {
            Err(ArtifactError::Tag(tag.to_owned()))
        }
        _ => Ok(()),
    }
}

impl From<Refusal> for ArtifactError {
    fn from(refusal: Refusal) -> Self {
        Self::Manifest(refusal.message().to_owned())
    }
}

impl Artifact {
    /// Puts the config and the manifest, and links the layers to the repository.
    pub(crate) fn put(self, store: &Store, repository: &str, tag: &str) -> Result<Blob, ArtifactError> {
        const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
        check_names(repository, Some(tag))?;
        for layer in &self.layers {
            let digest = layer.blob.digest;
            let held = store.any_blob(&digest).ok_or(ArtifactError::BlobUnknown(digest))?;
            store.put_blob(repository, digest, held);
        }
        let config_digest = Digest::of(&self.config);
        store.put_blob(repository, config_digest, Content::Memory(self.config.clone()));
        let bytes = Bytes::from(self.manifest(config_digest).to_string());
        let size_bytes = bytes.len() as u64;
        let stamp = store.put_manifest(repository, Some(tag), MANIFEST, bytes)?;
        Ok(Blob { digest: stamp.digest, size_bytes })
    }

    /// The manifest (image specification, "Image Manifest"), with a config of that digest.
    fn manifest(&self, config_digest: Digest) -> serde_json::Value {
        let config_media_type = match self.config_media_type.as_str() {
            "" => "application/vnd.oci.image.config.v1+json",
            stated => stated,
        };
        let layers: Vec<_> = self.layers.iter().map(Layer::descriptor).collect();
        let mut manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": config_media_type, "digest": config_digest, "size": self.config.len() },
            "layers": layers,
        });
        if let Some(artifact_type) = &self.artifact_type {
            manifest["artifactType"] = artifact_type.as_str().into();
        }
        if !self.annotations.is_empty() {
            manifest["annotations"] = serde_json::json!(self.annotations);
        }
        manifest
    }
}

impl Layer {
    fn descriptor(&self) -> serde_json::Value {
        let mut descriptor = serde_json::json!({
            "mediaType": self.media_type,
            "digest": self.blob.digest,
            "size": self.blob.size_bytes,
        });
        if !self.annotations.is_empty() {
            descriptor["annotations"] = serde_json::json!(self.annotations);
        }
        descriptor
    }
}

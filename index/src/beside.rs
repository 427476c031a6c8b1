//! What lies beside an image in its registry: an artifact that names the image as its subject. Its manifest is written and read purely. Format: the OCI
//! image specification 1.1, "Image Manifest", with the empty descriptor for its config.

use std::collections::BTreeMap;

use penstock_blob::{Blob, Digest};
use serde::{Deserialize, Serialize};

/// The media type of an artifact's manifest: an OCI image manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The content of an artifact's config: the empty descriptor of the OCI image specification.
pub const EMPTY_CONFIG: &[u8] = b"{}";
/// The media type of the empty descriptor.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// Largest manifest read, in bytes: what registries must take at least.
pub const MAX_BYTES: usize = 4 << 20;
/// Longest text of a manifest repeated in an error, in characters.
const SHOWN_CHARS: usize = 128;

/// A blob of an artifact, or the image that it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What else is said of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The bytes themselves in base64 ("Embedded Content").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// An artifact beside an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beside {
    /// The image.
    pub subject: Descriptor,
    /// What the artifact holds.
    pub layers: Vec<Descriptor>,
}

/// Why bytes are not the manifest of such an artifact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BesideError {
    /// Too large.
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// Not JSON, or a field is missing or of the wrong kind.
    #[error("it cannot be read: {0}")]
    Malformed(String),
    /// Another kind of artifact.
    #[error("it is an artifact of type {found:?}, not {wanted:?}")]
    Type {
        /// What it says, at most 128 characters.
        found: String,
        /// What was looked for.
        wanted: &'static str,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
    subject: Descriptor,
}

impl Descriptor {
    /// One that says nothing more of a blob.
    #[must_use]
    pub fn new(media_type: &str, blob: Blob) -> Self {
        let (media_type, annotations) = (media_type.to_owned(), BTreeMap::new());
        Self { media_type, digest: blob.digest, size: blob.size_bytes, annotations, data: None }
    }

    /// The blob.
    #[must_use]
    pub const fn blob(&self) -> Blob {
        Blob { digest: self.digest, size_bytes: self.size }
    }
}

/// The blob that `bytes` are.
#[must_use]
pub fn blob_of(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::of(bytes), size_bytes: bytes.len() as u64 }
}

impl Beside {
    /// The manifest's bytes: the same for the same artifact, so that a second push changes nothing.
    ///
    /// # Errors
    /// [`BesideError`]: it would not be read back.
    pub fn to_manifest(&self, artifact_type: &str) -> Result<Vec<u8>, BesideError> {
        let raw = RawManifest {
            schema_version: 2,
            media_type: MANIFEST_TYPE.to_owned(),
            artifact_type: artifact_type.to_owned(),
            config: Descriptor::new(EMPTY_TYPE, blob_of(EMPTY_CONFIG)),
            layers: self.layers.clone(),
            subject: self.subject.clone(),
        };
        let bytes = serde_json::to_vec(&raw).map_err(malformed)?;
        if bytes.len() > MAX_BYTES { Err(BesideError::TooLarge) } else { Ok(bytes) }
    }

    /// Reads the manifest of an artifact of this type. What it says is not compared with anything.
    ///
    /// # Errors
    /// [`BesideError`], for any bytes that are none.
    pub fn parse(bytes: &[u8], artifact_type: &'static str) -> Result<Self, BesideError> {
        if bytes.len() > MAX_BYTES {
            return Err(BesideError::TooLarge);
        }
        let raw: RawManifest = serde_json::from_slice(bytes).map_err(malformed)?;
        if raw.artifact_type != artifact_type {
            return Err(BesideError::Type { found: shown(&raw.artifact_type), wanted: artifact_type });
        }
        Ok(Self { subject: raw.subject, layers: raw.layers })
    }
}

fn malformed(error: serde_json::Error) -> BesideError {
    BesideError::Malformed(shown(&error.to_string()))
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

//! Manifests and indexes, OCI and Docker: bytes from a registry to checked types. Pure, total and bounded.

use std::collections::BTreeMap;

use penstock_blob::{Blob, Digest};

use crate::{Platform, Reference};

#[cfg(test)]
mod tests;

/// Largest manifest or index read, in bytes: the size that the distribution specification asks registries to accept at least
/// and containerd to read at most (4 MiB). A larger one is refused before it is read.
pub(crate) const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Most layers of an image. overlayfs takes 500 lower directories and OverlayBD 255 layers; more means nothing good.
const MAX_LAYERS: usize = 1000;
/// Most entries of an index; the largest published ones have some dozens.
const MAX_ENTRIES: usize = 4096;
/// Longest media type repeated in an error, in characters.
const SHOWN_CHARS: usize = 128;

/// `application/vnd.oci.image.manifest.v1+json`
const OCI_IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
/// `application/vnd.oci.image.index.v1+json`
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's image manifest, version 2 schema 2.
const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's manifest list.
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// All media types asked for, best first.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_IMAGE, OCI_INDEX, DOCKER_IMAGE, DOCKER_INDEX];

/// Where and what one blob or manifest is (OCI image specification, "Descriptor").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type as written.
    pub media_type: String,
    /// sha256 of the bytes.
    pub digest: Digest,
    /// How many bytes.
    pub size_bytes: u64,
    /// The annotations, empty when there are none.
    pub annotations: BTreeMap<String, String>,
    /// What an entry of an index is for.
    pub platform: Option<Platform>,
    /// What kind of artifact an entry of an index is.
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// The blob described.
    #[must_use]
    pub const fn blob(&self) -> Blob {
        Blob { digest: self.digest, size_bytes: self.size_bytes }
    }

    /// BuildKit stores provenance beside the images of an index, for a platform that does not exist.
    fn is_attestation(&self) -> bool {
        self.annotations.get("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
            || self.platform.as_ref().is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
    }
}

/// One image of one platform, as its registry describes it; its bytes were verified against `digest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The reference resolved, pinned to this manifest's digest.
    pub reference: Reference,
    /// sha256 of the manifest's bytes.
    pub digest: Digest,
    /// How many bytes the manifest has.
    pub size_bytes: u64,
    /// The manifest's media type.
    pub media_type: String,
    /// What kind of artifact this is, when it says so.
    pub artifact_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// The annotations, empty when there are none.
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// The image manifest in `bytes`, of the repository of `reference`; its digest is theirs. `media_type` is what the registry said they are; the
    /// document's own word goes before it.
    ///
    /// # Errors
    /// [`ManifestError`]; an index is [`ManifestError::Ambiguous`] here.
    pub fn parse(reference: &Reference, bytes: &[u8], media_type: &str) -> Result<Self, ManifestError> {
        match Document::parse(bytes, Some(media_type))? {
            Document::Image(image) => Ok(Self::of(reference, bytes, *image)),
            Document::Index(_) => Err(ManifestError::Ambiguous { media_type: shown(media_type) }),
        }
    }

    pub(crate) fn of(reference: &Reference, bytes: &[u8], image: ImageDocument) -> Self {
        let digest = Digest::of(bytes);
        Self {
            reference: reference.with_digest(digest),
            digest,
            size_bytes: bytes.len() as u64,
            media_type: image.media_type,
            artifact_type: image.artifact_type,
            config: image.config,
            layers: image.layers,
            annotations: image.annotations,
        }
    }
}

/// What a registry answers for a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Image(Box<ImageDocument>),
    /// Several, for different platforms.
    Index(Vec<Descriptor>),
}

/// The facts of an image manifest, before it is tied to a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDocument {
    /// The manifest's media type.
    pub media_type: String,
    /// What kind of artifact this is, when it says so.
    pub artifact_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// The annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Why bytes are not a manifest that Penstock can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Larger than 4 MiB.
    #[error("it is larger than {MAX_MANIFEST_BYTES} bytes; no real image needs that much")]
    TooLarge,
    /// Not JSON, or a field is missing or of the wrong kind.
    #[error("it cannot be read: {reason}")]
    Malformed {
        /// What the JSON reader or a digest said.
        reason: String,
    },
    /// A media type that is neither an image manifest nor an index, or Docker's retired schema 1.
    #[error("{media_type:?} is not supported; push the image again with a current tool, as an OCI or Docker v2 image")]
    Unsupported {
        /// The media type or what stands for it, cut to 128 characters.
        media_type: String,
    },
    /// It says one thing and holds another: refused, because two readers could see two images (CVE-2021-41190).
    #[error("it is both an image and an index, or not what its media type {media_type:?} says")]
    Ambiguous {
        /// The media type it claims, cut to 128 characters.
        media_type: String,
    },
    /// More layers or index entries than the bound.
    #[error("it lists {count} {what}, more than the {max} allowed")]
    TooMany {
        /// `layers` or `entries`.
        what: &'static str,
        /// How many it lists.
        count: usize,
        /// The bound.
        max: usize,
    },
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    #[serde(deserialize_with = "served")]
    digest: Digest,
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<RawPlatform>,
    artifact_type: Option<String>,
}

/// A digest that a blob in a registry can have: not the name of something that is derived from one, whose bytes the node believes.
fn served<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    let digest = <Digest as serde::Deserialize>::deserialize(deserializer)?;
    if digest.is_derived() {
        return Err(serde::de::Error::custom(format!("{digest} is a name that no blob can have")));
    }
    Ok(digest)
}

#[derive(serde::Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

impl From<RawDescriptor> for Descriptor {
    fn from(raw: RawDescriptor) -> Self {
        let platform = raw.platform.map(|p| Platform { os: p.os, architecture: p.architecture, variant: p.variant });
        Self {
            media_type: raw.media_type,
            digest: raw.digest,
            size_bytes: raw.size,
            annotations: raw.annotations.unwrap_or_default(),
            platform,
            artifact_type: raw.artifact_type,
        }
    }
}

impl Document {
    /// Reads a manifest or an index. `content_type` is what the registry's header says; the document's own word goes before it.
    ///
    /// # Errors
    /// [`ManifestError`], for any bytes that are not exactly one of the four supported kinds.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge);
        }
        let raw: RawDocument = serde_json::from_slice(bytes).map_err(malformed)?;
        let header = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
        let header = header.filter(|text| ACCEPTED.contains(text));
        let media_type = raw.media_type.clone().or_else(|| header.map(str::to_owned));
        if raw.schema_version == Some(1) {
            return Err(ManifestError::Unsupported { media_type: "a Docker schema 1 manifest".to_owned() });
        }
        if let Some(other) = media_type.as_deref().filter(|text| !ACCEPTED.contains(text)) {
            return Err(ManifestError::Unsupported { media_type: shown(other) });
        }
        let says_index = media_type.as_deref().map(|text| text == OCI_INDEX || text == DOCKER_INDEX);
        let is_index = raw.manifests.is_some();
        let is_image = raw.config.is_some() || raw.layers.is_some();
        if is_index == is_image || says_index.is_some_and(|says| says != is_index) {
            return Err(ManifestError::Ambiguous { media_type: shown(media_type.as_deref().unwrap_or_default()) });
        }
        if is_index { Self::index(raw) } else { Self::image(raw, media_type) }
    }

    fn index(raw: RawDocument) -> Result<Self, ManifestError> {
        let entries = raw.manifests.unwrap_or_default();
        bounded("entries", entries.len(), MAX_ENTRIES)?;
        Ok(Self::Index(entries.into_iter().map(Descriptor::from).collect()))
    }

    fn image(raw: RawDocument, media_type: Option<String>) -> Result<Self, ManifestError> {
        let layers = raw.layers.unwrap_or_default();
        bounded("layers", layers.len(), MAX_LAYERS)?;
        let missing = || ManifestError::Malformed { reason: "the image configuration is missing".to_owned() };
        Ok(Self::Image(Box::new(ImageDocument {
            media_type: media_type.unwrap_or_else(|| OCI_IMAGE.to_owned()),
            artifact_type: raw.artifact_type,
            config: raw.config.ok_or_else(missing)?.into(),
            layers: layers.into_iter().map(Descriptor::from).collect(),
            annotations: raw.annotations.unwrap_or_default(),
        })))
    }
}

/// A manifest or an index as its registry gave it; its bytes were verified against `digest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// sha256 of the bytes.
    pub digest: Digest,
    /// The media type: the document's own word, else the registry's.
    pub media_type: String,
    /// The bytes.
    pub bytes: bytes::Bytes,
    /// Of an index, which of its entries was followed, and its digest.
    pub followed: Option<(usize, Digest)>,
}

/// The media type of an index that [`Document::parse`] took.
pub(crate) fn index_type(bytes: &[u8], content_type: Option<&str>) -> String {
    let own = serde_json::from_slice::<RawDocument>(bytes).ok().and_then(|raw| raw.media_type);
    let header = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    let header = header.filter(|text| ACCEPTED.contains(text)).map(str::to_owned);
    own.or(header).unwrap_or_else(|| OCI_INDEX.to_owned())
}

/// The entry of an index that fits `wanted` best; the first of equals. Attestations are no images and are passed over.
pub(crate) fn choose<'a>(entries: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    let ranked = entries.iter().filter(is_image).filter_map(|e| Some((wanted.rank(e.platform.as_ref())?, e)));
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
}

/// Whether an entry of an index is an image, or an index of images.
fn is_image(entry: &&Descriptor) -> bool {
    ACCEPTED.contains(&entry.media_type.as_str()) && !entry.is_attestation()
}

/// The platforms that the images of an index are for, in its order, each once.
pub(crate) fn platforms(entries: &[Descriptor]) -> Vec<Platform> {
    let mut platforms: Vec<Platform> = Vec::new();
    for platform in entries.iter().filter(is_image).filter_map(|entry| entry.platform.as_ref()) {
        if !platforms.contains(platform) {
            platforms.push(platform.clone());
        }
    }
    platforms
}

/// The platforms of an index, for an error: at most eight, then a count.
pub(crate) fn offered(entries: &[Descriptor]) -> String {
    let platforms = || entries.iter().filter(|e| !e.is_attestation()).filter_map(|e| e.platform.as_ref());
    let mut texts: Vec<String> = platforms().take(8).map(|p| shown(&p.to_string())).collect();
    let more = platforms().count() - texts.len();
    if more > 0 {
        texts.push(format!("{more} more"));
    }
    if texts.is_empty() { "nothing".to_owned() } else { texts.join(", ") }
}

fn bounded(what: &'static str, count: usize, max: usize) -> Result<(), ManifestError> {
    if count > max {
        return Err(ManifestError::TooMany { what, count, max });
    }
    Ok(())
}

fn malformed(error: serde_json::Error) -> ManifestError {
    ManifestError::Malformed { reason: shown(&error.to_string()) }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

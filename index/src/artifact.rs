//! The OCI manifest that holds the lists of one image: written and read. Pure. Format: docs/formats/index.md.

use std::collections::BTreeMap;

use penstock_blob::{Blob, ChunkSize, Digest};

use crate::{
    beside::{Beside, BesideError, Descriptor},
    shape::{Listed, Root},
};

/// The artifact type of an index.
pub const ARTIFACT_TYPE: &str = "application/vnd.penstock.index.v1";

/// The media type of a list.
const LIST_TYPE: &str = "application/vnd.penstock.index.list.v1";
/// Annotations of a list's descriptor: the blob that it is of, and how it is cut.
const BLOB: &str = "io.penstock.index.blob.digest";
const BLOB_SIZE: &str = "io.penstock.index.blob.size";
const CHUNK_SIZE: &str = "io.penstock.index.chunk.size";
const ROOT: &str = "io.penstock.index.root";
/// Most lists of an index: as many as an image may have layers elsewhere in Penstock.
const MAX_LISTS: usize = 1000;

/// The image manifest that an index is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its media type.
    pub media_type: String,
    /// Its digest and size.
    pub manifest: Blob,
}

/// The index of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The image.
    pub subject: Subject,
    /// A list for each of its blobs, in the order of its layers.
    pub lists: Vec<Listed>,
}

/// Why bytes are not the index of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// No artifact beside an image, or one of another kind.
    #[error(transparent)]
    Beside(#[from] BesideError),
    /// An annotation of a list is missing or makes no sense.
    #[error("a list has no usable annotation {0:?}")]
    Annotation(&'static str),
    /// It is about another image.
    #[error("it is the index of {of}, not of {image}")]
    Subject {
        /// The image it names.
        of: Digest,
        /// The image it was looked for.
        image: Digest,
    },
    /// A list is of no blob of the image, or of one of another size.
    #[error("it lists blob {} of {} bytes, which the image does not have", .0.digest, .0.size_bytes)]
    Foreign(Blob),
    /// Two lists are of one blob.
    #[error("it lists blob {0} twice")]
    Twice(Digest),
    /// A blob of the image has no list.
    #[error("it does not list blob {0}")]
    Unlisted(Digest),
    /// A list is not as large as its blob makes it.
    #[error("its list of blob {blob} has {actual} bytes; for that blob it would have {expected:?}")]
    ListSize {
        /// The blob.
        blob: Digest,
        /// By the descriptor.
        actual: u64,
        /// By the blob's size; `None` when such a blob can have no list.
        expected: Option<u64>,
    },
    /// More lists than an image has layers.
    #[error("it has {0} lists; at most {MAX_LISTS} are read")]
    TooMany(usize),
}

impl Artifact {
    /// The manifest's bytes: the same for the same index, so that a second push changes nothing.
    ///
    /// # Errors
    /// [`ArtifactError::TooMany`], [`BesideError::TooLarge`]: it would not be read back.
    pub fn to_manifest(&self) -> Result<Vec<u8>, ArtifactError> {
        let layer = |listed: &Listed| Descriptor {
            annotations: BTreeMap::from([
                (BLOB.to_owned(), listed.blob.digest.to_string()),
                (BLOB_SIZE.to_owned(), listed.blob.size_bytes.to_string()),
                (CHUNK_SIZE.to_owned(), listed.grid.bytes().to_string()),
                (ROOT.to_owned(), listed.root.to_string()),
            ]),
            ..Descriptor::new(LIST_TYPE, listed.list)
        };
        let subject = Descriptor::new(&self.subject.media_type, self.subject.manifest);
        let bytes = Beside { subject, layers: self.lists.iter().map(layer).collect() }.to_manifest(ARTIFACT_TYPE)?;
        Self::parse(&bytes)?;
        Ok(bytes)
    }

    /// Reads a manifest. What it says is not compared with anything yet: that is [`Artifact::lists_of`].
    ///
    /// # Errors
    /// [`ArtifactError`], for any bytes that are no index.
    pub fn parse(bytes: &[u8]) -> Result<Self, ArtifactError> {
        let Beside { subject, layers } = Beside::parse(bytes, ARTIFACT_TYPE)?;
        if layers.len() > MAX_LISTS {
            return Err(ArtifactError::TooMany(layers.len()));
        }
        let manifest = subject.blob();
        let subject = Subject { media_type: subject.media_type, manifest };
        Ok(Self { subject, lists: layers.iter().map(listed).collect::<Result<_, _>>()? })
    }

    /// The lists, when they are exactly those of the image with this manifest and these blobs. Empty blobs need none; a blob
    /// that is a layer twice has one.
    ///
    /// # Errors
    /// [`ArtifactError`]: what does not fit.
    pub fn lists_of(&self, manifest: Digest, blobs: &[Blob]) -> Result<&[Listed], ArtifactError> {
        if self.subject.manifest.digest != manifest {
            return Err(ArtifactError::Subject { of: self.subject.manifest.digest, image: manifest });
        }
        let mut wanted: BTreeMap<Digest, (u64, bool)> = BTreeMap::new();
        for blob in blobs.iter().filter(|blob| blob.size_bytes > 0) {
            wanted.insert(blob.digest, (blob.size_bytes, false));
        }
        for Listed { blob, grid, list, .. } in &self.lists {
            match wanted.get_mut(&blob.digest) {
                Some((size_bytes, seen)) if *size_bytes == blob.size_bytes => {
                    if std::mem::replace(seen, true) {
                        return Err(ArtifactError::Twice(blob.digest));
                    }
                }
                _ => return Err(ArtifactError::Foreign(*blob)),
            }
            let expected = Listed::list_bytes(*blob, *grid);
            if expected != Some(list.size_bytes) {
                return Err(ArtifactError::ListSize { blob: blob.digest, actual: list.size_bytes, expected });
            }
        }
        match wanted.into_iter().find(|(_, (_, seen))| !seen) {
            Some((digest, _)) => Err(ArtifactError::Unlisted(digest)),
            None => Ok(&self.lists),
        }
    }
}

fn listed(layer: &Descriptor) -> Result<Listed, ArtifactError> {
    let missing = ArtifactError::Annotation;
    let text = |key: &'static str| layer.annotations.get(key).ok_or(missing(key));
    let digest = text(BLOB)?.parse().map_err(|_| missing(BLOB))?;
    let size_bytes = number(text(BLOB_SIZE)?).ok_or(missing(BLOB_SIZE))?;
    let grid = number(text(CHUNK_SIZE)?).and_then(|bytes| ChunkSize::new(bytes).ok()).ok_or(missing(CHUNK_SIZE))?;
    let root: Root = text(ROOT)?.parse().map_err(|_| missing(ROOT))?;
    Ok(Listed { blob: Blob { digest, size_bytes }, grid, list: layer.blob(), root })
}

/// Decimal digits and nothing else.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests;

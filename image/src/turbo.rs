//! Stacks in which there are TurboOCI layers: metadata of a file system whose extents point into the archive of an ordinary layer.
//!
//! Such a layer is two files: the metadata, an LSMT file like others, and the archive, whose bytes are whoever decodes it to give. Each has a
//! number of its own in the stack's map. Format: docs/formats/turbooci.md.

use std::{path::Path, path::PathBuf, sync::Arc};

use penstock_blob::{Blob, BlobSource, ByteRange};

use crate::{
    image::{Image, MAX_LAYERS, OpenError},
    layer::Site,
    maps::Maps,
    stack::Stack,
};

/// A layer of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    /// An OverlayBD layer.
    OverlayBd(Blob),
    /// A TurboOCI layer.
    Turbo {
        /// The blob that holds the metadata.
        metadata: Blob,
        /// Where in it the metadata is: an LSMT file, in a ZFile or not.
        file: ByteRange,
        /// The archive of the ordinary layer.
        archive: Blob,
    },
}

impl Member {
    /// The blob of its own file, and of the archive that this points into.
    pub(crate) const fn blobs(&self) -> (Blob, Option<Blob>) {
        match *self {
            Self::OverlayBd(blob) => (blob, None),
            Self::Turbo { metadata, archive, .. } => (metadata, Some(archive)),
        }
    }

    /// Where its own file is, when that is known.
    pub(crate) const fn file(&self) -> Option<ByteRange> {
        match *self {
            Self::OverlayBd(_) => None,
            Self::Turbo { file, .. } => Some(file),
        }
    }
}

/// The blobs of a stack, in the order of their numbers in its map.
pub(crate) fn blobs(members: &[Member]) -> Vec<Blob> {
    let of = |member: &Member| {
        let (own, archive) = member.blobs();
        std::iter::once(own).chain(archive)
    };
    members.iter().flat_map(of).collect()
}

/// As [`crate::tables`], of [`Image::open_stack`].
#[must_use]
pub fn stack_tables(members: &[Member], maps_dir: &Path) -> Vec<PathBuf> {
    let frames = members.iter().map(|member| crate::frames::path(maps_dir, &member.blobs().0.digest));
    frames.chain([crate::map::path_of(maps_dir, &blobs(members))]).collect()
}

impl Image {
    /// As [`Image::open_in`], of a stack of which some layers are TurboOCI ones, bottom first. `source` must have their archives. Each counts
    /// twice among the [`MAX_LAYERS`].
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open_stack(members: Vec<Member>, source: Arc<dyn BlobSource>, maps: &Maps) -> Result<Self, OpenError> {
        let files = blobs(&members).len();
        if members.is_empty() {
            return Err(OpenError::NoLayers);
        }
        if files > MAX_LAYERS {
            return Err(OpenError::TooManyLayers { layers: files });
        }
        let site = Site { source, maps_dir: maps.dir().to_owned(), maps: maps.clone(), layers: members.len() };
        Ok(Self::stacked(Box::pin(Stack::open(&site, members, None)).await?))
    }
}

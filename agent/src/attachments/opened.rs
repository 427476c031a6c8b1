//! An image that is opened: its blobs can be read, its maps are built, its index is in use. What a device is made of, and what a pull does ahead.

use std::sync::Arc;

use bytes::Bytes;
use penstock_blob::{Blob, ByteRange, Digest};
use penstock_cache::Cache;
use penstock_fetcher::{Fetcher, Reference};
use penstock_image::Image;

use super::{AttachError, Parts};
use crate::{
    indexes::{self, Ask, Proof},
    mount::found::LOOKED_AT_BYTES,
    state::record::LayerRecord,
};

/// What of which image is to be opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meant<'a> {
    /// Pinned to the manifest: names the repository that has the blobs.
    pub(super) reference: &'a Reference,
    /// Digest of its manifest.
    pub(super) manifest: Digest,
    /// Where its index is looked for.
    pub(super) ask: Ask,
    /// All layers of the image, bottom first.
    pub(super) layers: &'a [LayerRecord],
    /// Those that are shown, bottom first.
    pub(super) shown: &'a [LayerRecord],
}

/// An image that is opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) image: Arc<Image>,
    /// The index that its reads are verified by.
    pub(super) proof: Proof,
    /// Lets the blobs go when everything else has.
    pub(super) served: Served,
}

impl Opened {
    /// Opens it. The maps stay on disk, and what was read in the cache: opened again, it needs no registry.
    pub(super) async fn open(parts: &Parts, meant: Meant<'_>) -> Result<Self, AttachError> {
        let served = Served::new(parts, meant.reference, meant.shown);
        let blobs: Vec<Blob> = meant.layers.iter().map(LayerRecord::blob).collect();
        let image = indexes::Image { reference: meant.reference, manifest: meant.manifest, blobs: &blobs };
        // The index first: reads of the other wait for it from its first step on.
        let proving = parts.unless_stopping(parts.indexes.settle(image, meant.ask));
        let (proof, image) = tokio::try_join!(proving, parts.open(meant.reference, meant.shown))?;
        Ok(Self { image, proof, served })
    }
}

/// The beginning of the disk, by which its file system is told.
pub(super) async fn head(parts: &Parts, image: &Arc<Image>) -> Result<Bytes, AttachError> {
    match ByteRange::at(0, image.size_bytes().min(LOOKED_AT_BYTES as u64)) {
        Ok(range) => {
            let reading = penstock_image::read(image, &parts.source, range);
            parts.unless_stopping(async { reading.await.map_err(AttachError::Head) }).await
        }
        Err(_) => Ok(Bytes::new()),
    }
}

/// Blobs that the fetcher knows where to find and the cache prefers to keep. Dropping it takes that back.
#[derive(Debug)]
pub(super) struct Served {
    fetcher: Arc<Fetcher>,
    cache: Arc<Cache>,
    reference: Reference,
    blobs: Vec<Blob>,
}

impl Served {
    fn new(parts: &Parts, reference: &Reference, layers: &[LayerRecord]) -> Self {
        let mut blobs: Vec<Blob> = layers.iter().map(LayerRecord::blob).collect();
        blobs.sort_unstable_by_key(|blob| blob.digest);
        blobs.dedup();
        for blob in &blobs {
            parts.fetcher.serve(*blob, reference);
            parts.cache.retain(&blob.digest);
        }
        Self {
            fetcher: Arc::clone(&parts.fetcher),
            cache: Arc::clone(&parts.cache),
            reference: reference.clone(),
            blobs,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        for blob in self.blobs.iter().rev() {
            self.cache.release(&blob.digest);
            self.fetcher.forget(&blob.digest, &self.reference);
        }
    }
}

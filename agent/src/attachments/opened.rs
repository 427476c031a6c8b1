//! An image that is opened: its blobs can be read, its maps are built, its index is in use. What a device is made of, and what a pull does ahead.

use std::sync::Arc;

use bytes::Bytes;
use penstock_blob::{Blob, ByteRange, Digest, SPANS};
use penstock_cache::Cache;
use penstock_fetcher::{Fetcher, Reference};
use penstock_image::Image;
use penstock_layers::Registered;
use tracing::{field::Empty, info_span};

use super::{AttachError, Parts};
use crate::{
    indexes::{self, Ask, Proof},
    layers::{self, Ready, merged, turbo},
    mount::found::LOOKED_AT_BYTES,
    recordings::{Hints, Opening},
    state::record::LayerRecord,
    traces::traced,
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
    /// Opens it. The maps stay on disk, and what was read in the cache: opened again, it needs no registry. A start that waits for it is told when its
    /// blobs can be read.
    pub(super) async fn open(
        parts: &Parts,
        meant: Meant<'_>,
        start: Option<&mut Opening>,
    ) -> Result<Self, AttachError> {
        let span = info_span!(target: SPANS, "open", reference = %meant.reference, error = Empty);
        traced(span, Self::open_any(parts, meant, start)).await
    }

    async fn open_any(parts: &Parts, meant: Meant<'_>, start: Option<&mut Opening>) -> Result<Self, AttachError> {
        let mut served = Served::new(parts, meant.reference, meant.shown);
        let blobs: Vec<Blob> = meant.layers.iter().map(LayerRecord::blob).collect();
        let image = indexes::Image { reference: meant.reference, manifest: meant.manifest, blobs: &blobs };
        if let Some(ready) = ordinary(parts, meant).await? {
            // Its frames are verified by its own index: none of compressed chunks is looked for.
            let proof = parts.unless_stopping(parts.indexes.settle(image, Ask::Recorded)).await?;
            let (image, registered) = ready.register(&parts.layers);
            served.decode(registered);
            return Ok(Self { image: Arc::new(image), proof, served });
        }
        if turbo::is_any(meant.shown.iter().map(|layer| &layer.annotations)) {
            return Box::pin(Self::over_archives(parts, (meant, image), served)).await;
        }
        if let Some(found) = ordinary_image(parts, meant).await? {
            let proof = parts.unless_stopping(parts.indexes.settle(image, Ask::Recorded)).await?;
            found.registered.into_iter().for_each(|registered| served.decode(registered));
            return Ok(Self { image: Arc::new(found.image), proof, served });
        }
        // The index first: reads of the other wait for it from its first step on.
        let proving = parts.unless_stopping(parts.indexes.settle(image, meant.ask));
        let opening = async {
            if let Some(start) = start {
                start.readable(served.blobs.clone());
            }
            parts.open(meant.reference, meant.shown).await
        };
        let (proof, image) = tokio::try_join!(proving, opening)?;
        Ok(Self { image, proof, served })
    }
}

impl Opened {
    /// Opens a TurboOCI image. What its files hold is in layers of another image, of which no index of this one says anything.
    async fn over_archives(
        parts: &Parts,
        (meant, of): (Meant<'_>, indexes::Image<'_>),
        mut served: Served,
    ) -> Result<Self, AttachError> {
        if matches!(meant.ask, Ask::Registry { require: true } | Ask::Pulled { require: true }) {
            return Err(indexes::unverified(of, turbo::UNVERIFIABLE.to_owned(), false).into());
        }
        let proof = parts.unless_stopping(parts.indexes.settle(of, Ask::Recorded)).await?;
        let Meant { reference, manifest, layers, shown, .. } = meant;
        let failed = |error| AttachError::Layer { reference: reference.to_string(), error: Box::new(error) };
        let finding = parts.layers.turbo(turbo::Wanted { reference, manifest, layers, shown });
        let found = parts.unless_stopping(async { finding.await.map_err(failed) }).await?;
        for registered in found.registered {
            served.serve(parts, registered.index().layer().packed);
            served.decode(registered);
        }
        let _known = parts.known(served.blobs.iter().copied());
        let opening = Box::pin(Image::open_stack(found.members, Arc::clone(&parts.source), &parts.maps));
        let failed = |error| AttachError::Open { reference: reference.to_string(), error };
        let image = parts.unless_stopping(async { opening.await.map(Arc::new).map_err(failed) }).await?;
        Ok(Self { image, proof, served })
    }
}

/// The one layer that is shown, when it is an ordinary one that is read by an index of it.
async fn ordinary(parts: &Parts, meant: Meant<'_>) -> Result<Option<Ready>, AttachError> {
    let [layer] = meant.shown else { return Ok(None) };
    // Of layers with one digest any is as good.
    let (packed, nth) = (layer.blob(), meant.layers.iter().position(|other| other.blob() == layer.blob()));
    let failed = |error| AttachError::Layer { reference: meant.reference.to_string(), error: Box::new(error) };
    let looking = async {
        if let Some(ready) = parts.layers.kept((packed, meant.manifest), &layer.annotations).await? {
            return Ok(Some(ready));
        }
        // An index that was kept and is gone is found again, where there is still one.
        match (layers::is_packed(&layer.media_type, &layer.annotations), nth) {
            (true, Some(nth)) => {
                let manifest = parts.layers.manifest(meant.reference, meant.manifest).await?;
                parts.layers.find(&manifest, nth).await
            }
            _ => Ok(None),
        }
    };
    parts.unless_stopping(async { looking.await.map_err(failed) }).await
}

/// All layers of an image, when they are ordinary ones, which are merged then.
async fn ordinary_image(parts: &Parts, meant: Meant<'_>) -> Result<Option<merged::Found>, AttachError> {
    if meant.shown.len() != meant.layers.len() {
        return Ok(None);
    }
    let failed = |error| AttachError::Layer { reference: meant.reference.to_string(), error: Box::new(error) };
    let Meant { reference, manifest, layers, .. } = meant;
    let finding = async {
        match merged::are_archives(layers, &*parts.source).await? {
            true => parts.layers.merged(merged::Wanted { reference, manifest, layers }).await.map(Some),
            false => Ok(None),
        }
    };
    Box::pin(parts.unless_stopping(async { finding.await.map_err(failed) })).await
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
    /// The archives that are decoded.
    decoded: Vec<Registered>,
}

impl Served {
    fn new(parts: &Parts, reference: &Reference, layers: &[LayerRecord]) -> Self {
        let mut blobs: Vec<Blob> = layers.iter().map(LayerRecord::blob).collect();
        blobs.sort_unstable_by_key(|blob| blob.digest);
        blobs.dedup();
        let mut served = Self {
            fetcher: Arc::clone(&parts.fetcher),
            cache: Arc::clone(&parts.cache),
            reference: reference.clone(),
            blobs: Vec::new(),
            decoded: Vec::new(),
        };
        blobs.into_iter().for_each(|blob| served.serve(parts, blob));
        served
    }

    /// A blob is read.
    fn serve(&mut self, parts: &Parts, blob: Blob) {
        parts.fetcher.serve(blob, &self.reference);
        parts.cache.retain(&blob.digest);
        self.blobs.push(blob);
    }

    /// What is known of how it is to be read.
    pub(super) fn hints(&self) -> Hints {
        let streamed =
            self.decoded.iter().map(|registered| registered.index().layer()).filter(|layer| layer.is_streamed);
        Hints { landmark: self.landmark(), streamed: streamed.map(|layer| layer.unpacked).collect() }
    }

    /// What a start reads first, as whoever made the layer says.
    fn landmark(&self) -> Option<(Blob, Vec<ByteRange>)> {
        let [only] = &self.decoded[..] else { return None };
        let (index, first) = (only.index(), only.index().first());
        (!first.is_empty()).then(|| (index.layer().unpacked, first.to_vec()))
    }

    /// The archive of a layer is read, too.
    fn decode(&mut self, registered: Registered) {
        self.cache.retain(&registered.index().layer().unpacked.digest);
        self.decoded.push(registered);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        for registered in self.decoded.drain(..) {
            self.cache.release(&registered.index().layer().unpacked.digest);
        }
        for blob in self.blobs.iter().rev() {
            self.cache.release(&blob.digest);
            self.fetcher.forget(&blob.digest, &self.reference);
        }
    }
}

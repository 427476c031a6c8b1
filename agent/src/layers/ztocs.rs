//! Layers of which SOCI has a table of contents, a *ztoc*, beside the image. The ztoc becomes the layer's index.

use std::{collections::VecDeque, path::Path, sync::Arc};

use penstock_blob::{Blob, BlobSource, Digest};
use penstock_fetcher::{Fetcher, Manifest, Platform};
use penstock_layers::foreign::soci::{self, MAX_PREFETCH_BYTES, Prefetch};

use super::origin::{Finding, Looking, Offered, Origin, OriginError, Wanted};
use crate::{config::Way, lent::Lent};

/// The annotation of an image manifest that pins its SOCI index (version 2).
const PINNED: &str = "com.amazon.soci.index-digest";
/// The type of an index that refers to an image (version 1).
const REFERRER: &str = "application/vnd.amazon.soci.index.v1+json";
/// The annotation of a ztoc in an index, and of what is said of prefetching: the digest of the layer that it is of.
const LAYER: &str = "com.amazon.soci.image-layer-digest";
/// The media type of what is said of prefetching. Ztocs have another.
const PREFETCH: &str = "application/vnd.amazon.soci.prefetch.v1+json";
/// Indexes remembered: the layers of an image ask one after the other.
const REMEMBERED: usize = 8;

/// SOCI indexes: those that an image's manifest pins, and those that refer to it where that is believed.
#[derive(Debug)]
pub(crate) struct Ztocs {
    fetcher: Arc<Fetcher>,
    /// Reads ztocs: whole blobs, once each.
    source: Arc<dyn BlobSource>,
    platform: Platform,
    /// Whether anybody who may push to the repository is believed.
    referrers: bool,
    /// By the digest of the image's manifest.
    indexes: tokio::sync::Mutex<VecDeque<(Digest, Arc<Manifest>)>>,
}

impl Ztocs {
    pub(crate) fn new(
        fetcher: &Arc<Fetcher>,
        source: Arc<dyn BlobSource>,
        platform: &Platform,
        referrers: bool,
    ) -> Self {
        let (fetcher, platform, indexes) = (Arc::clone(fetcher), platform.clone(), tokio::sync::Mutex::default());
        Self { fetcher, source, platform, referrers, indexes }
    }

    /// The SOCI index of an image.
    async fn index(&self, image: &Manifest) -> Result<Option<Arc<Manifest>>, OriginError> {
        // Held while it is asked for: the others want the same.
        let mut indexes = self.indexes.lock().await;
        if let Some((_, index)) = indexes.iter().find(|(of, _)| *of == image.digest) {
            return Ok(Some(Arc::clone(index)));
        }
        let Some(digest) = self.digest(image).await? else { return Ok(None) };
        let index = self.fetcher.resolve(&image.reference.with_digest(digest), &self.platform).await;
        let index = Arc::new(index.map_err(|error| OriginError { reason: error.to_string() })?);
        indexes.truncate(REMEMBERED - 1);
        indexes.push_front((image.digest, Arc::clone(&index)));
        Ok(Some(index))
    }

    /// The ztoc of a layer, and the index that lists it.
    async fn ztoc(&self, wanted: Wanted<'_>) -> Result<Option<(Blob, Arc<Manifest>)>, OriginError> {
        let Some(index) = self.index(wanted.manifest).await? else { return Ok(None) };
        // SOCI leaves out layers that are too small to be worth it.
        let ztoc = said_of(&index, &wanted.layer.digest, |media_type| media_type != PREFETCH);
        Ok(ztoc.map(|ztoc| (ztoc, index)))
    }

    /// What a start reads, as the index says; nothing when that cannot be read: it is a hint.
    async fn prefetch(&self, index: &Manifest, blob: Blob) -> Prefetch {
        let Some(range) = blob.all().filter(|range| range.len() <= MAX_PREFETCH_BYTES) else {
            return Prefetch::default();
        };
        let lent = Lent::new(&self.fetcher, blob, &index.reference);
        let parsed = match lent.read(&*self.source, range).await {
            Ok(bytes) if Digest::of(&bytes) == blob.digest => {
                Prefetch::parse(&bytes).map_err(|error| error.to_string())
            }
            Ok(_) => Err("its bytes are not those of its digest".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        parsed.unwrap_or_else(|reason| {
            tracing::debug!(blob = %blob.digest, reason, "what a SOCI index says of prefetching is not used");
            Prefetch::default()
        })
    }

    async fn digest(&self, image: &Manifest) -> Result<Option<Digest>, OriginError> {
        if let Some(pinned) = image.annotations.get(PINNED) {
            let parsed = pinned.parse().map_err(|error| OriginError { reason: format!("{PINNED}: {error}") });
            return parsed.map(Some);
        }
        if !self.referrers {
            return Ok(None);
        }
        let listed = self.fetcher.referrers(&image.reference, image.digest, REFERRER).await;
        let listed = listed.map_err(|error| OriginError { reason: error.to_string() })?;
        Ok(listed.first().map(|index| index.digest))
    }
}

/// What an index has of a layer, of such a media type.
fn said_of(index: &Manifest, layer: &Digest, is_meant: impl Fn(&str) -> bool) -> Option<Blob> {
    let layer = layer.to_string();
    let mut of_layer = index.layers.iter().filter(|said| said.annotations.get(LAYER) == Some(&layer));
    of_layer.find(|said| is_meant(&said.media_type)).map(penstock_fetcher::Descriptor::blob)
}

impl Origin for Ztocs {
    fn name(&self) -> &'static str {
        "soci"
    }

    fn way(&self) -> Way {
        Way::Soci
    }

    fn what(&self) -> &'static str {
        "a SOCI index of the image"
    }

    fn is_of_one_image(&self) -> bool {
        true
    }

    fn find<'a>(&'a self, wanted: Wanted<'a>, to: &'a Path) -> Finding<'a> {
        Box::pin(async move {
            let Some((ztoc, index)) = self.ztoc(wanted).await? else { return Ok(false) };
            let layer = wanted.layer.blob();
            let prefetch = match said_of(&index, &layer.digest, |media_type| media_type == PREFETCH) {
                Some(blob) => self.prefetch(&index, blob).await,
                None => Prefetch::default(),
            };
            let _lent = Lent::new(&self.fetcher, ztoc, &index.reference);
            let translated = soci::translate(&*self.source, (ztoc, prefetch), layer, to).await;
            let translated = translated.map_err(|error| OriginError { reason: error.to_string() })?;
            tracing::debug!(layer = %layer.digest, ?translated, "a ztoc became a layer index");
            Ok(true)
        })
    }

    fn look<'a>(&'a self, wanted: Wanted<'a>) -> Looking<'a> {
        Box::pin(async move {
            let Some((ztoc, _)) = self.ztoc(wanted).await? else { return Ok(None) };
            let bytes = ztoc.size_bytes;
            Ok(Some(Offered { what: "SOCI".to_owned(), index_bytes: bytes, fetched_bytes: bytes }))
        })
    }
}

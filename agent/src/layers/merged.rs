//! All layers of an ordinary image as one device, for who attaches the image: containers are shown each layer by itself.
//!
//! Each layer is read by an index of it, as for a container; their trees are merged as unpacking would, and the table of that is kept among the maps. What
//! a layer cannot say alone, it can here: the attributes of directories that it leaves out, and hard links to files of the layers below.

use std::{collections::BTreeSet, path::PathBuf};

use penstock_blob::{BlobSource, ByteRange, Digest, Purpose};
use penstock_fetcher::Reference;
use penstock_image::{Image, Merged, MergedBuilder, OciLayer, annotated, content};
use penstock_layers::{Index, Registered};

use super::{Asked, Kept, LayerError, Layers, blocking, is_packed, unreadable, verified_by};
use crate::{
    config::Way,
    mount::found::LOOKED_AT_BYTES,
    state::record::{LayerRecord, MAX_LAYERS},
};

/// Layers of an image that are shown together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Pinned to the manifest: names the repository.
    pub(crate) reference: &'a Reference,
    /// Digest of its manifest.
    pub(crate) manifest: Digest,
    /// All its layers, bottom first.
    pub(crate) layers: &'a [LayerRecord],
}

/// They can be shown as long as what is registered is held.
#[derive(Debug)]
pub(crate) struct Found {
    /// Their device.
    pub(crate) image: Image,
    /// The archives that it reads.
    pub(crate) registered: Vec<Registered>,
}

/// Whether these are the layers of an ordinary image, as its manifest says or, where it says too little, the first bytes of the lowest one. Its blob can
/// be read.
///
/// # Errors
/// [`LayerError::Read`].
pub(crate) async fn are_archives(layers: &[LayerRecord], source: &dyn BlobSource) -> Result<bool, LayerError> {
    let [bottom, _, ..] = layers else { return Ok(false) };
    if layers.len() > MAX_LAYERS || layers.iter().any(|layer| annotated(&layer.annotations).is_some()) {
        return Ok(false);
    }
    if layers.iter().any(|layer| is_packed(&layer.media_type, &layer.annotations)) {
        return Ok(true);
    }
    let Ok(head) = ByteRange::new(0, bottom.size_bytes.min(LOOKED_AT_BYTES as u64)) else { return Ok(false) };
    let head = source.read(bottom.blob(), head, Purpose::Demand).await?;
    Ok(content(&head, bottom.size_bytes).is_archive())
}

impl Layers {
    /// The device of all layers of an ordinary image, whose indexes and whose table are kept from then on.
    ///
    /// # Errors
    /// [`LayerError`]; [`LayerError::NoIndex`] when there is none of a layer.
    pub(crate) async fn merged(&self, wanted: Wanted<'_>) -> Result<Found, LayerError> {
        let mut kept = Vec::with_capacity(wanted.layers.len());
        for nth in 0..wanted.layers.len() {
            kept.push(self.index_of(wanted, nth).await?);
        }
        let (merged, how) = (merge(&kept), self.how_verified(&kept)?);
        let indexes: Vec<Index> = kept.into_iter().map(|kept| kept.index).collect();
        let maps = self.store.maps().to_path_buf();
        if let Some(image) = Image::open_merged(&merged, &maps, how.clone()).await? {
            return Ok(Found { image, registered: self.register(indexes) });
        }
        let (of, dir) = (merged.clone(), maps.clone());
        let indexes = blocking(move || lay_out(&of, indexes, &dir)).await??;
        match Image::open_merged(&merged, &maps, how).await? {
            Some(image) => Ok(Found { image, registered: self.register(indexes) }),
            None => Err(LayerError::Crashed("the table of an image was gone as soon as it was made".to_owned())),
        }
    }

    fn register(&self, indexes: Vec<Index>) -> Vec<Registered> {
        indexes.into_iter().map(|index| self.unpacked.register(index)).collect()
    }

    /// The index of one layer: kept, or found in whatever way that this node takes.
    async fn index_of(&self, wanted: Wanted<'_>, nth: usize) -> Result<Kept, LayerError> {
        let of = wanted.layers.len();
        let layer = wanted.layers.get(nth).ok_or(LayerError::NoIndex { layer: nth + 1, of })?;
        if let Some(kept) = self.stored((layer.blob(), wanted.manifest), &layer.annotations, (&Way::ALL, None)).await? {
            return Ok(kept);
        }
        let manifest = self.manifest(wanted.reference, wanted.manifest).await?;
        for way in self.prefer.ways() {
            if let Asked::Kept(kept) = Box::pin(self.seek(&manifest, nth, *way)).await? {
                return Ok(*kept);
            }
        }
        Err(LayerError::NoIndex { layer: nth + 1, of })
    }

    /// How the reads of layers with these indexes are verified, in words.
    fn how_verified(&self, kept: &[Kept]) -> Result<String, LayerError> {
        let by: BTreeSet<&str> = kept.iter().map(|kept| Ok(self.way_of(kept)?.1)).collect::<Result<_, LayerError>>()?;
        let is_whole = kept.iter().all(|kept| !kept.layer().blob.digest.is_derived());
        Ok(verified_by(&by.into_iter().collect::<Vec<_>>().join(" or "), is_whole))
    }

    /// Where the table of the device of these layers of an image is, as far as their indexes are kept; nothing of a single one. Blocks.
    pub(crate) fn merged_table(&self, image: Digest, layers: &[LayerRecord]) -> Option<PathBuf> {
        let words = self.words(image);
        let found = |layer: &LayerRecord| self.store.find(&layer.blob(), &words).ok().flatten();
        let kept = (layers.len() > 1).then(|| layers.iter().map(found).collect::<Option<Vec<Kept>>>()).flatten()?;
        Some(merge(&kept).table(self.store.maps()))
    }
}

fn merge(kept: &[Kept]) -> Merged {
    Merged::new(&kept.iter().map(Kept::layer).collect::<Vec<OciLayer>>())
}

/// Makes the table of the merge from the entries of the indexes.
fn lay_out(merged: &Merged, indexes: Vec<Index>, maps: &std::path::Path) -> Result<Vec<Index>, LayerError> {
    let mut builder = MergedBuilder::new(merged, maps);
    for index in &indexes {
        builder.layer(|| {
            let entries = index.entries().map_err(unreadable)?;
            Ok::<_, LayerError>(entries.map(|entry| entry.map_err(LayerError::from)))
        })?;
    }
    builder.finish()?;
    Ok(indexes)
}

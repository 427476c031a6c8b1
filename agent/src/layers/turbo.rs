//! TurboOCI images: each layer is a small one of file-system metadata, over an ordinary one that stays as it is in the same repository.
//!
//! The small layer is read whole, once, and an index made of it, as of any ordinary layer; its digest and diff ID are verified then. What it says of
//! the ordinary layer's gzip stream becomes an index of that. Both are kept under the small layer's name, so that the image is shown again without
//! asking anybody. docs/formats/turbooci.md.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use penstock_blob::Digest;
use penstock_fetcher::Reference;
use penstock_image::{Annotated, Member, annotated, stack_tables, turbo_target};
use penstock_layers::{
    Index, Registered,
    foreign::turbo::{self, Pair, Parts},
};

use super::{
    LayerError, Layers, blocking, make,
    store::{Of, Store, Word},
    unreadable,
};
use crate::{lent::Lent, state::record::LayerRecord};

/// The names of the two indexes in the names of files that are kept.
const METADATA: Word = Word::any("turbo");
const TARGET: Word = Word::any("target");

/// A TurboOCI image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Pinned to the manifest: names the repository.
    pub(crate) reference: &'a Reference,
    /// Digest of its manifest.
    pub(crate) manifest: Digest,
    /// All its layers, bottom first.
    pub(crate) layers: &'a [LayerRecord],
    /// Those that are shown, bottom first.
    pub(crate) shown: &'a [LayerRecord],
}

/// A TurboOCI image that can be opened for as long as what is registered is held.
#[derive(Debug)]
pub(crate) struct Found {
    /// What its device is made of.
    pub(crate) members: Vec<Member>,
    /// The archives that it reads.
    pub(crate) registered: Vec<Registered>,
}

/// Why a TurboOCI image cannot be shown where an index is to verify every read.
pub(crate) const UNVERIFIABLE: &str = "no index can verify the original layers of a TurboOCI image";

/// Whether any layer with these annotations is a TurboOCI one: then all of the image are one disk.
pub(crate) fn is_any<'a>(annotations: impl IntoIterator<Item = &'a BTreeMap<String, String>>) -> bool {
    annotations.into_iter().any(|of| annotated(of) == Some(Annotated::Turbo))
}

/// A layer of which these are the indexes and the parts of the small layer.
const fn turbo_member(metadata: &Index, parts: Parts, target: &Index) -> Member {
    Member::Turbo { metadata: metadata.layer().unpacked, file: parts.metadata, archive: target.layer().unpacked }
}

impl Layers {
    /// The layers of a TurboOCI image, whose indexes are kept from then on. Its blobs can be read.
    ///
    /// # Errors
    /// [`LayerError`].
    pub(crate) async fn turbo(self: &Arc<Self>, wanted: Wanted<'_>) -> Result<Found, LayerError> {
        let mut found = Found { members: Vec::new(), registered: Vec::new() };
        for layer in wanted.shown {
            let pair = match annotated(&layer.annotations) {
                Some(Annotated::Recording) => continue,
                Some(Annotated::Turbo) => pair(layer)?,
                Some(Annotated::OverlayBd) | None => {
                    found.members.push(Member::OverlayBd(layer.blob()));
                    continue;
                }
            };
            let _turn = self.turns.take(layer.digest).await;
            let metadata = self.metadata(wanted, layer).await?;
            // Its gzip index is read by it, and only then is the other one known.
            let metadata = self.unpacked.register(metadata);
            let (parts, target) = self.target(wanted.reference, &metadata, pair).await?;
            found.members.push(turbo_member(metadata.index(), parts, &target));
            found.registered.extend([metadata, self.unpacked.register(target)]);
        }
        Ok(found)
    }

    /// The index of a small layer: kept, or made now.
    async fn metadata(&self, wanted: Wanted<'_>, layer: &LayerRecord) -> Result<Index, LayerError> {
        let (store, blob) = (Arc::clone(&self.store), layer.blob());
        if let Some(kept) = blocking(move || store.find(&blob, &[METADATA])).await?? {
            return Ok(kept.index);
        }
        let manifest = self.manifest(wanted.reference, wanted.manifest).await?;
        let nth = wanted.layers.iter().position(|other| other.digest == layer.digest);
        let nth = nth.ok_or_else(|| LayerError::Turbo("it is not among the layers of its image".to_owned()))?;
        let diff_id = self.diff_id(&manifest, nth).await?;
        let scratch = self.scratch().await?;
        let _lent = Lent::new(&self.fetcher, blob, wanted.reference);
        make::index(&*self.source, (blob, diff_id), &scratch, |_| ()).await?;
        let store = Arc::clone(&self.store);
        Ok(blocking(move || store.keep(scratch, &blob, METADATA)).await??.index)
    }

    /// Where the parts of a small layer are, and the index of its ordinary layer: kept, or translated now.
    async fn target(
        &self,
        reference: &Reference,
        metadata: &Registered,
        pair: Pair,
    ) -> Result<(Parts, Index), LayerError> {
        let entries = metadata.index().entries().map_err(unreadable)?;
        let parts = blocking(move || Parts::of(entries)).await??;
        let store = Arc::clone(&self.store);
        if let Some(kept) = blocking(move || store.find(Of::Target(pair), &[TARGET])).await?? {
            return Ok((parts, kept.index));
        }
        let scratch = self.scratch().await?;
        let archive = metadata.index().layer().unpacked;
        let translated = match parts.gzip_index {
            Some(index) => turbo::translate(&*self.source, (archive, index), pair, &scratch).await?,
            None => {
                let failed = |error| LayerError::Turbo(format!("its original layer is not there: {error}"));
                let size_bytes = self.fetcher.blob_size(reference, pair.target).await.map_err(failed)?;
                turbo::plain(size_bytes, pair, &scratch).await?
            }
        };
        tracing::debug!(layer = %pair.metadata, ?translated, "what a small layer says became a layer index");
        let store = Arc::clone(&self.store);
        Ok((parts, blocking(move || store.keep(scratch, Of::Target(pair), TARGET)).await??.index))
    }

    /// Where what is made of a TurboOCI image of these layers is, as far as its indexes are kept; nothing of other images. Blocks.
    pub(crate) fn turbo_tables(&self, shown: &[LayerRecord]) -> Vec<PathBuf> {
        let disks = || shown.iter().filter(|layer| annotated(&layer.annotations) != Some(Annotated::Recording));
        let members: Option<Vec<Member>> = is_any(shown.iter().map(|layer| &layer.annotations))
            .then(|| disks().map(|layer| member(&self.store, layer)).collect())
            .flatten();
        members.map_or_else(Vec::new, |members| stack_tables(&members, self.store.maps()))
    }
}

/// A layer as it was shown last, by what is kept of it.
fn member(store: &Store, layer: &LayerRecord) -> Option<Member> {
    if annotated(&layer.annotations) != Some(Annotated::Turbo) {
        return Some(Member::OverlayBd(layer.blob()));
    }
    let of = Of::Target(pair(layer).ok()?);
    let metadata = store.find(&layer.blob(), &[METADATA]).ok()??.index;
    let target = store.find(of, &[TARGET]).ok()??.index;
    let parts = Parts::of(metadata.entries().ok()?).ok()?;
    Some(turbo_member(&metadata, parts, &target))
}

/// What a layer's annotations say that it is about.
fn pair(layer: &LayerRecord) -> Result<Pair, LayerError> {
    let target = turbo_target(&layer.annotations).and_then(|digest| digest.parse().ok());
    let target =
        target.ok_or_else(|| LayerError::Turbo("its annotations do not name its original layer".to_owned()))?;
    Ok(Pair { metadata: layer.digest, target })
}

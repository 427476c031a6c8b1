//! Where an index of a layer can come from.

use std::{fmt::Debug, future::Future, path::Path, pin::Pin};

use penstock_blob::Digest;
use penstock_fetcher::{Descriptor, Manifest};

use crate::config::Way;

/// A layer whose index is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Its image; the reference is pinned to it, and names the repository.
    pub(crate) manifest: &'a Manifest,
    /// The layer, as the manifest describes it.
    pub(crate) layer: &'a Descriptor,
    /// How many layers lie below it.
    pub(crate) nth: usize,
    /// The digest of its archive, by the image's config.
    pub(crate) diff_id: Digest,
}

/// Why an origin has no index although it may have one.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct OriginError {
    /// In words, with what to do.
    pub(crate) reason: String,
}

/// An index that an origin has, before it is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offered {
    /// What it is made of, for people: `eStargz`.
    pub(crate) what: String,
    /// Bytes of that as it is stored.
    pub(crate) index_bytes: u64,
    /// Bytes that are fetched to have it.
    pub(crate) fetched_bytes: u64,
}

/// What [`Origin::look`] answers: what it has, if it has something.
pub(crate) type Looking<'a> = Pin<Box<dyn Future<Output = Result<Option<Offered>, OriginError>> + Send + 'a>>;

/// What [`Origin::find`] answers: whether it wrote an index.
pub(crate) type Finding<'a> = Pin<Box<dyn Future<Output = Result<bool, OriginError>> + Send + 'a>>;

/// Somewhere an index of a layer can come from: this node, a registry, a foreign format that the layer is in. Each is asked in turn; the first that
/// has one is believed, so one that cannot prove what it says must not have one. No two are of the same way.
pub(crate) trait Origin: Debug + Send + Sync + 'static {
    /// Its name in the names of files that are kept: lower-case letters and digits, and never another meaning.
    fn name(&self) -> &'static str;

    /// The way of which it is.
    fn way(&self) -> Way;

    /// What verifies the frames of its indexes, for people: `its layer index, made on this node`.
    fn what(&self) -> &'static str;

    /// Whether what it says of a layer is believed for the image alone for which it said so: nothing but that image, or who may push beside it, vouches for it.
    fn is_of_one_image(&self) -> bool {
        false
    }

    /// Whether the archives of its indexes are known by their diff IDs: each is compared with that once it is whole.
    fn is_of_diff_id(&self) -> bool {
        false
    }

    /// Writes an index of the layer (docs/formats/layer-index.md) to the file `to`, which exists and is empty, and answers true; or answers false when
    /// it has none. The index names the layer as [`penstock_layers::Layer::packed`]; which archive it is of, its [`penstock_layers::Layer::unpacked`], is
    /// the origin's to prove. Small: what it asks of registries is bounded. Can be dropped at any await.
    fn find<'a>(&'a self, wanted: Wanted<'a>, to: &'a Path) -> Finding<'a>;

    /// What [`find`](Self::find) would fetch, as far as that is known without fetching it. An error: there is something, but it would not be used.
    fn look<'a>(&'a self, wanted: Wanted<'a>) -> Looking<'a>;
}

/// Indexes that this node made itself of whole layers. It has those that are kept, and no others.
#[derive(Debug)]
pub(crate) struct Own;

impl Own {
    /// As [`Origin::name`].
    pub(crate) const NAME: &'static str = "own";
}

impl Origin for Own {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn way(&self) -> Way {
        Way::Own
    }

    fn what(&self) -> &'static str {
        "a layer index that this node made"
    }

    fn is_of_diff_id(&self) -> bool {
        true
    }

    fn find<'a>(&'a self, _: Wanted<'a>, _: &'a Path) -> Finding<'a> {
        Box::pin(std::future::ready(Ok(false)))
    }

    fn look<'a>(&'a self, _: Wanted<'a>) -> Looking<'a> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

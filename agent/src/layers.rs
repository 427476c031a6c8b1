//! Ordinary layers (tar, tar+gzip, tar+zstd) that are read piece by piece: where an index of one is found, what is kept of it, and the device that is made of it.
//!
//! An index comes from an [`Origin`]; which of them is asked when, and what follows from what they have, is decided elsewhere
//! (`mounter/choice.rs`). An index that is had is kept in `<state_dir>/layers/`, and the table of its device
//! among the maps, so that the layer is shown again without asking anybody. Whatever the origin, from there on a layer is the same thing: an
//! index whose frames have a sha256 each, and a table.

pub(crate) mod artifact;
pub(crate) mod config;
pub(crate) mod make;
pub(crate) mod merged;
pub(crate) mod origin;
pub(crate) mod push;
pub(crate) mod pushed;
pub(crate) mod signed;
mod store;
pub(crate) mod tables;
pub(crate) mod turbo;
pub(crate) mod ztocs;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use penstock_blob::{Blob, BlobSource, Digest};
use penstock_fetcher::{Fetcher, Manifest, Platform, Reference, ResolveError};
use penstock_image::{Image, LayerBuilder, OciLayer, OpenError};
use penstock_layers::{EntriesError, Index, Registered, Unpacked};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    config::{Prefer, Way},
    events::{Events, Kind},
    shelf::Shelf,
    turns::Turns,
};
use origin::{Offered, Origin, OriginError, Own, Wanted};
use store::{Kept, Store, StoreError, Word};

/// Why a layer cannot be read piece by piece although there may be an index of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    /// The image's config does not say what its layers are.
    #[error("the image's config {0}")]
    Config(String),
    /// The registry does not say what the image is.
    #[error(transparent)]
    Resolve(Box<ResolveError>),
    /// Something of it cannot be read.
    #[error(transparent)]
    Read(#[from] penstock_blob::ReadError),
    /// What is kept cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The entries of the index are wrong.
    #[error("its layer index is wrong: {0}")]
    Entries(#[from] EntriesError),
    /// No device can be made of it.
    #[error(transparent)]
    Build(#[from] penstock_image::BuildError),
    /// The table of its device cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The index cannot be made.
    #[error(transparent)]
    Make(#[from] make::MakeError),
    /// What a foreign format says of it cannot be used.
    #[error(transparent)]
    Foreign(#[from] penstock_layers::foreign::ForeignError),
    /// It is annotated as a TurboOCI layer, and is none.
    #[error("it is annotated as a TurboOCI layer, and {0}; convert the image again")]
    Turbo(String),
    /// One of several layers that are to be shown together has no index.
    #[error(
        "layer {layer} of {of} is an ordinary one, of which this node has no index and may use none; `penstock index` makes one for all nodes that layers.accept allows"
    )]
    NoIndex {
        /// Which, from 1.
        layer: usize,
        /// Layers of the image.
        of: usize,
    },
    /// A task ended abnormally.
    #[error("the agent failed while laying out a layer: {0}")]
    Crashed(String),
}

impl LayerError {
    /// Whether another try may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Read(error) => error.is_transient(),
            Self::Resolve(error) => error.is_transient(),
            Self::Make(error) => error.is_transient(),
            Self::Foreign(error) => error.is_transient(),
            Self::Store(_) => true,
            Self::Config(_) | Self::Turbo(_) | Self::Entries(_) | Self::Build(_) | Self::Open(_) => false,
            Self::NoIndex { .. } | Self::Crashed(_) => false,
        }
    }
}

/// A layer that is ready to be shown.
#[derive(Debug)]
pub(crate) struct Ready {
    /// Its device.
    pub(crate) image: Image,
    /// Of which way its index is.
    pub(crate) way: Way,
    /// Where its index is from, in words.
    pub(crate) origin: &'static str,
    /// Bytes of its index, on this node's disk.
    pub(crate) index_bytes: u64,
    index: Index,
}

/// What came of asking for the index of a layer.
#[derive(Debug)]
pub(crate) enum Found {
    /// It is on this node now, and the layer can be shown.
    Ready(Box<Ready>),
    /// There is none.
    Absent,
    /// There is one that is not used; why.
    Refused(String),
}

/// What an origin has for a layer, when nothing but that is asked.
#[derive(Debug)]
pub(crate) enum Sight {
    /// An index of its is kept on this node.
    Kept(Box<Ready>),
    /// It could be had.
    Offered {
        /// What would be fetched.
        offered: Offered,
        /// What would verify the layer, in words.
        by: &'static str,
        /// How it would be verified, in words.
        how_verified: String,
    },
    /// There is none.
    Absent,
    /// There is one that would not be used; why.
    Refused(String),
}

impl Ready {
    /// Whether some of it decodes only from its beginning: it can be shown at once, but is not lazy.
    pub(crate) const fn is_streamed(&self) -> bool {
        self.index.layer().is_streamed
    }

    /// From now on its bytes can be read, until the answer is dropped.
    pub(crate) fn register(self, layers: &Layers) -> (Image, Registered) {
        (self.image, layers.unpacked.register(self.index))
    }
}

/// What ordinary layers of images are found and made by.
#[derive(Debug)]
pub(crate) struct Layers {
    fetcher: Arc<Fetcher>,
    /// Reads what is small of images, and keeps it.
    source: Arc<dyn BlobSource>,
    unpacked: Arc<Unpacked>,
    store: Arc<Store>,
    origins: Vec<Box<dyn Origin>>,
    /// The ways that this node takes, the best first.
    prefer: Prefer,
    shelf: Arc<Shelf>,
    platform: Platform,
    /// Whose index is being looked for.
    turns: Turns<Digest>,
    events: Events,
}

/// What [`Layers`] stand on.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) fetcher: Arc<Fetcher>,
    /// Reads what is small of images, and keeps it: the cache.
    pub(crate) source: Arc<dyn BlobSource>,
    pub(crate) unpacked: Arc<Unpacked>,
    /// The manifests that are kept.
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) platform: Platform,
    pub(crate) prefer: Prefer,
    pub(crate) events: Events,
}

impl Layers {
    /// Keeps indexes in `dir`, which exists, and tables in `maps`.
    pub(crate) fn new(base: Base, (dir, maps): (&Path, &Path), origins: Vec<Box<dyn Origin>>) -> Arc<Self> {
        let Base { fetcher, source, unpacked, shelf, platform, prefer, events } = base;
        let (store, turns) = (Arc::new(Store::new(dir, maps)), Turns::default());
        Arc::new(Self { fetcher, source, unpacked, store, origins, prefer, shelf, platform, turns, events })
    }

    /// What decodes them.
    pub(crate) const fn unpacked(&self) -> &Arc<Unpacked> {
        &self.unpacked
    }

    /// The ways in which this node reads ordinary layers on demand, the best first.
    pub(crate) const fn prefer(&self) -> &Prefer {
        &self.prefer
    }

    /// The layer of the image with this manifest, if an index of it is kept on this node that is believed for that image and is one of a layer with these
    /// annotations: also of a way that is not taken any more, because containers read it.
    pub(crate) async fn kept(
        &self,
        of: (Blob, Digest),
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<Ready>, LayerError> {
        match self.stored(of, annotations, (&Way::ALL, None)).await? {
            Some(kept) => self.ready(kept).await.map(Some),
            None => Ok(None),
        }
    }

    /// The layer `nth` of an image that is pulled, if an index of it is kept, of the first of these ways of which there is one.
    pub(crate) async fn kept_of(
        &self,
        (manifest, nth): (&Manifest, usize),
        ways: &[Way],
    ) -> Result<Option<Ready>, LayerError> {
        let Some(layer) = manifest.layers.get(nth).filter(|_| !ways.is_empty()) else { return Ok(None) };
        let diff_id = Some(self.diff_id(manifest, nth).await?);
        match self.stored((layer.blob(), manifest.digest), &layer.annotations, (ways, diff_id)).await? {
            Some(kept) => self.ready(kept).await.map(Some),
            None => Ok(None),
        }
    }

    /// Its index alone, of the first of these ways of which there is one, and not of an archive that is known to be another than `diff_id`.
    async fn stored(
        &self,
        (packed, image): (Blob, Digest),
        annotations: &BTreeMap<String, String>,
        (ways, diff_id): (&[Way], Option<Digest>),
    ) -> Result<Option<Kept>, LayerError> {
        let words: Vec<Word> =
            ways.iter().filter_map(|way| self.origin(*way)).map(|origin| word(origin, image)).collect();
        let (store, annotations) = (Arc::clone(&self.store), annotations.clone());
        let find = move || {
            for word in words {
                let is_meant = |kept: &Kept| {
                    let (layer, archive) = (kept.index.layer(), kept.index.layer().unpacked.digest);
                    let is_other = !archive.is_derived() && diff_id.is_some_and(|diff_id| diff_id != archive);
                    !is_other && tables::is_meant(word.origin, layer, &annotations)
                };
                if let Some(kept) = store.find(&packed, &[word])?.filter(is_meant) {
                    return Ok(Some(kept));
                }
            }
            Ok::<_, StoreError>(None)
        };
        Ok(blocking(find).await??)
    }

    /// Whose word may be kept for an image.
    fn words(&self, image: Digest) -> Vec<Word> {
        self.origins.iter().map(|origin| word(origin.as_ref(), image)).collect()
    }

    /// The origin of a way.
    fn origin(&self, way: Way) -> Option<&dyn Origin> {
        self.origins.iter().map(AsRef::as_ref).find(|origin| origin.way() == way)
    }

    /// The layer `nth` of an image that was shown before, in whatever way that this node takes there still is.
    ///
    /// # Errors
    /// [`LayerError`].
    pub(crate) async fn find(&self, manifest: &Manifest, nth: usize) -> Result<Option<Ready>, LayerError> {
        for way in self.prefer.ways() {
            if let Found::Ready(ready) = Box::pin(self.look(manifest, nth, *way)).await? {
                return Ok(Some(*ready));
            }
        }
        Ok(None)
    }

    /// Asks for an index of the layer `nth` of an image in one way; it is kept from then on.
    ///
    /// # Errors
    /// [`LayerError`]. That the origin fails is an event, and [`Found::Refused`].
    pub(crate) async fn look(&self, manifest: &Manifest, nth: usize, way: Way) -> Result<Found, LayerError> {
        match self.seek(manifest, nth, way).await? {
            Asked::Kept(kept) => Ok(Found::Ready(Box::new(self.ready(*kept).await?))),
            Asked::Nothing => Ok(Found::Absent),
            Asked::Refused(why) => Ok(Found::Refused(why)),
        }
    }

    /// The same of its index alone.
    async fn seek(&self, manifest: &Manifest, nth: usize, way: Way) -> Result<Asked, LayerError> {
        let Some((layer, origin)) = manifest.layers.get(nth).zip(self.origin(way)) else { return Ok(Asked::Nothing) };
        let packed = layer.blob();
        let _turn = self.turns.take(packed.digest).await;
        // First: an index that was made for another image says nothing of what this one's config says.
        let diff_id = self.diff_id(manifest, nth).await?;
        let of = (packed, manifest.digest);
        if let Some(kept) = self.stored(of, &layer.annotations, (&[way], Some(diff_id))).await? {
            return Ok(Asked::Kept(Box::new(kept)));
        }
        self.ask(origin, Wanted { manifest, layer, nth, diff_id }).await
    }

    /// What there is for the layer `nth` of an image in one way. Fetches no index, and keeps nothing.
    ///
    /// # Errors
    /// [`LayerError`].
    pub(crate) async fn sight(&self, manifest: &Manifest, nth: usize, way: Way) -> Result<Sight, LayerError> {
        let Some((layer, origin)) = manifest.layers.get(nth).zip(self.origin(way)) else { return Ok(Sight::Absent) };
        let diff_id = self.diff_id(manifest, nth).await?;
        let of = (layer.blob(), manifest.digest);
        if let Some(kept) = self.stored(of, &layer.annotations, (&[way], Some(diff_id))).await? {
            return Ok(Sight::Kept(Box::new(self.ready(kept).await?)));
        }
        Ok(match origin.look(Wanted { manifest, layer, nth, diff_id }).await {
            Ok(Some(offered)) => {
                let by = origin.what();
                Sight::Offered { offered, by, how_verified: verified_by(by, origin.is_of_diff_id()) }
            }
            Ok(None) => Sight::Absent,
            Err(OriginError { reason }) => Sight::Refused(reason),
        })
    }

    /// Makes the index of the layer `nth` of an image by reading all of it, and keeps it. `progress` is told the bytes done. Answers whether the layer is
    /// streamed; of one that has an index already, false.
    ///
    /// # Errors
    /// [`LayerError`]; above all when the layer cannot be read piece by piece.
    pub(crate) async fn make(
        &self,
        (manifest, nth): (&Manifest, usize),
        below: &dyn BlobSource,
        progress: impl Fn(u64) + Send,
    ) -> Result<bool, LayerError> {
        let Some(layer) = manifest.layers.get(nth) else { return Ok(false) };
        let packed = layer.blob();
        let of = (packed, manifest.digest);
        if self.stored(of, &layer.annotations, (self.prefer.ways(), None)).await?.is_some() {
            return Ok(false);
        }
        let diff_id = self.diff_id(manifest, nth).await?;
        let scratch = self.scratch().await?;
        let _lent = crate::lent::Lent::new(&self.fetcher, packed, &manifest.reference);
        make::index(below, (packed, diff_id), &scratch, progress).await?;
        let store = Arc::clone(&self.store);
        let kept = blocking(move || store.keep(scratch, &packed, Word::any(Own::NAME))).await??;
        self.ready(kept).await.map(|ready| ready.is_streamed())
    }

    /// The manifest of an image, from this node if it is kept here, else from the registry.
    ///
    /// # Errors
    /// [`LayerError::Resolve`].
    pub(crate) async fn manifest(&self, reference: &Reference, manifest: Digest) -> Result<Manifest, LayerError> {
        let (shelf, of) = (Arc::clone(&self.shelf), reference.clone());
        // One that cannot be used is as good as none.
        if let Ok(Some((found, _))) = blocking(move || shelf.find(&of, manifest)).await? {
            return Ok(found);
        }
        let pinned = reference.with_digest(manifest);
        let resolved = self.fetcher.resolve(&pinned, &self.platform).await;
        resolved.map_err(|error| LayerError::Resolve(Box::new(error)))
    }

    /// The indexes that this node made itself of an image's layers, and where they are: what can be pushed.
    pub(crate) async fn own(&self, manifest: &Manifest) -> Result<Vec<(artifact::Listed, PathBuf)>, LayerError> {
        let (store, mut packed) = (Arc::clone(&self.store), Vec::<Blob>::new());
        for blob in manifest.layers.iter().map(penstock_fetcher::Descriptor::blob) {
            if !packed.contains(&blob) {
                packed.push(blob);
            }
        }
        let own = move || packed.iter().filter_map(|packed| store.own(packed).transpose()).collect::<Result<_, _>>();
        blocking(move || own().map_err(LayerError::Store)).await?
    }

    /// What the registry's config says is the digest of the layer's archive.
    async fn diff_id(&self, manifest: &Manifest, nth: usize) -> Result<Digest, LayerError> {
        let diff_ids = self.diff_ids(manifest).await?;
        diff_ids.get(nth).copied().ok_or_else(|| LayerError::Config("lists fewer layers than the manifest".to_owned()))
    }

    /// The diff IDs of an image's layers, the lowest first, from its config.
    pub(crate) async fn diff_ids(&self, manifest: &Manifest) -> Result<Vec<Digest>, LayerError> {
        config::diff_ids(&self.fetcher, &*self.source, manifest).await
    }

    /// Asks an origin, and keeps what it has.
    async fn ask(&self, origin: &dyn Origin, wanted: Wanted<'_>) -> Result<Asked, LayerError> {
        let Wanted { manifest, layer, nth, diff_id } = wanted;
        tracing::debug!(reference = %manifest.reference, nth, layer = %layer.digest, %diff_id, origin = origin.name(), "looking for a layer index");
        let scratch = self.scratch().await?;
        let refused = match origin.find(wanted, &scratch).await {
            Ok(false) => return Ok(Asked::Nothing),
            Ok(true) => {
                let (store, packed, word) = (Arc::clone(&self.store), layer.blob(), word(origin, manifest.digest));
                match blocking(move || store.keep(scratch, &packed, word)).await? {
                    Ok(kept) => return Ok(Asked::Kept(Box::new(kept))),
                    Err(StoreError::Refused { reason }) => reason,
                    Err(error) => return Err(error.into()),
                }
            }
            Err(OriginError { reason }) => reason,
        };
        let (reference, layer) = (&manifest.reference, layer.digest.to_string());
        let text = format!("{reference}: {} of layer {layer} is not used: {refused}", origin.what());
        self.events.record(Kind::LayersIndexRefused, &text, &[("layer", &layer)]);
        Ok(Asked::Refused(refused))
    }

    async fn scratch(&self) -> Result<tempfile::TempPath, LayerError> {
        let store = Arc::clone(&self.store);
        Ok(blocking(move || store.scratch()).await??)
    }

    /// Of which way an index is that is kept, and what that is in words.
    fn way_of(&self, kept: &Kept) -> Result<(Way, &'static str), LayerError> {
        let found = self.origins.iter().find(|origin| origin.name() == kept.origin);
        let unknown = || LayerError::Crashed(format!("a layer index is kept of {}, which nobody makes", kept.origin));
        found.map(|origin| (origin.way(), origin.what())).ok_or_else(unknown)
    }

    /// The device of a layer whose index is kept: its table is there, or is made now.
    async fn ready(&self, kept: Kept) -> Result<Ready, LayerError> {
        let (way, what) = self.way_of(&kept)?;
        let layer = kept.layer();
        let index_bytes = kept.size_bytes;
        let how = verified_by(what, !layer.blob.digest.is_derived());
        let maps = self.store.maps().to_path_buf();
        if let Some(image) = Image::open_layer(layer, &maps, how.clone()).await? {
            return Ok(Ready { image, way, origin: what, index_bytes, index: kept.index });
        }
        let dir = maps.clone();
        let index = blocking(move || lay_out(kept.index, layer, &dir)).await??;
        match Image::open_layer(layer, &maps, how).await? {
            Some(image) => Ok(Ready { image, way, origin: what, index_bytes, index }),
            None => Err(LayerError::Crashed("the table of a layer was gone as soon as it was made".to_owned())),
        }
    }

    /// Removes what is kept of layers that are neither `named` nor of an image whose manifest is kept, and were not opened since `before`; the bytes freed. Blocks.
    pub(crate) fn collect(&self, named: &HashSet<Digest>, before: SystemTime) -> io::Result<u64> {
        let mut named = named.clone();
        named.extend(self.shelf.layers()?);
        self.store.collect(&named, before)
    }

    /// The tables of devices of these layers, each of the image with this manifest, as far as their indexes are kept. Blocks.
    pub(crate) fn tables(&self, layers: &[(Blob, Digest)]) -> Vec<PathBuf> {
        let find = |(packed, image): &(Blob, Digest)| self.store.find(packed, &self.words(*image)).ok().flatten();
        let kept = layers.iter().filter_map(find);
        kept.map(|kept| penstock_image::layer_table(&kept.layer(), self.store.maps())).collect()
    }
}

/// Whose word an index is that an origin has for an image.
fn word(origin: &dyn Origin, image: Digest) -> Word {
    Word { origin: origin.name(), image: origin.is_of_one_image().then_some(image) }
}

/// What an origin answered.
enum Asked {
    Kept(Box<Kept>),
    Nothing,
    Refused(String),
}

/// How a layer is verified that is read by an index, in words: `by` says by which. `is_whole` says whether its archive is known as a whole.
fn verified_by(by: &str, is_whole: bool) -> String {
    let whole = if is_whole { "; sha256 of the archive once it is whole" } else { "" };
    format!("sha256 of every frame, by {by}{whole}")
}

/// Whether a layer is an archive by what its manifest says, compressed in a way that is read here. Nothing else has such a media type, and what is
/// served under it is unpacked by every other node: it is believed.
pub(crate) fn is_packed(media_type: &str, annotations: &BTreeMap<String, String>) -> bool {
    let is = |suffix: &&str| media_type.ends_with(suffix);
    penstock_image::annotated(annotations).is_none() && ["+gzip", ".gzip", ".gz", "+zstd", ".zstd"].iter().any(is)
}

/// Makes the table of a layer from the entries of its index.
fn lay_out(index: Index, layer: OciLayer, maps: &Path) -> Result<Index, LayerError> {
    let mut builder = LayerBuilder::new(layer, maps);
    for entry in index.entries().map_err(unreadable)? {
        builder.add(&entry?)?;
    }
    builder.finish()?;
    Ok(index)
}

fn unreadable(error: io::Error) -> LayerError {
    LayerError::Store(StoreError::Io { doing: "reading a layer index", error })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, LayerError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| LayerError::Crashed(error.to_string()))
}

/// What the decoding source has to say goes into the agent's events.
pub(crate) async fn pass_on(mut events: broadcast::Receiver<penstock_layers::Event>, to: Events) {
    loop {
        match events.recv().await {
            Ok(event) => to.record(Kind::LayersWrongBytes, &event.to_string(), &[]),
            // Older ones are of the same kind, and counted in a metric.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

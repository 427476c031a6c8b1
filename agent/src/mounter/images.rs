//! Images that containerd unpacks or mounts: their manifests, and what their layers are. Resolved once for all layers of an image.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use penstock_blob::{BlobSource, ByteRange, Digest, ReadError};
use penstock_fetcher::{Fetcher, Manifest, Platform, Reference, ResolveError, Served};
use penstock_snapshotter::Layer;
use tokio::sync::OnceCell;

use super::{
    chain,
    kind::{self, Kind},
};
use crate::{
    attachments::Parts,
    layers::{LayerError, Layers},
    lent::Lent,
    shelf::Shelf,
    turns::Turns,
};

/// Images known at once. A node pulls a few at a time; one that is forgotten is resolved again.
const KNOWN: usize = 64;
/// Failures remembered at once, and how long: the other layers of an image whose registry does not answer need not find out for themselves, and the
/// next try of a pull is to find out anew.
const FAILED: (usize, Duration) = (64, Duration::from_secs(5));
/// Bytes looked at to see what a layer is.
const HEAD_BYTES: u64 = 4096;

/// Why nothing is known of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unknown {
    pub(super) reason: String,
    /// Whether another try may help.
    pub(super) is_transient: bool,
}

/// One image as its registry described it.
#[derive(Debug)]
pub(super) struct Known {
    /// As containerd named it.
    reference: Reference,
    pub(super) manifest: Arc<Manifest>,
    kinds: Vec<OnceCell<Kind>>,
    chains: OnceCell<Vec<Digest>>,
    /// The manifest's bytes.
    served: Served,
    /// Why it is refused; set once its index was looked for.
    refused: OnceCell<Option<String>>,
}

impl Known {
    /// An image as its registry served it: the last document is its own, those before led to it.
    pub(super) fn served(
        reference: &Reference,
        (manifest, mut served): (Manifest, Vec<Served>),
    ) -> Result<Self, Unknown> {
        let served = served.pop().ok_or_else(|| unusable("the registry gave no manifest".to_owned()))?;
        Ok(Self::new(reference.clone(), (manifest, served)))
    }

    fn new(reference: Reference, (manifest, served): (Manifest, Served)) -> Self {
        let kinds = manifest.layers.iter().map(|_| OnceCell::new()).collect();
        let (chains, refused) = (OnceCell::new(), OnceCell::new());
        Self { reference, manifest: Arc::new(manifest), kinds, chains, served, refused }
    }

    /// As containerd named it.
    pub(super) const fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Why the image is refused, if it is; `look` finds out, once.
    pub(super) async fn refused<F>(&self, look: F) -> Result<Option<String>, Unknown>
    where
        F: Future<Output = Result<Option<String>, Unknown>>,
    {
        self.refused.get_or_try_init(|| look).await.cloned()
    }

    /// Whether this image has `layer` where containerd says.
    pub(super) fn has(&self, layer: &Layer) -> bool {
        self.manifest.layers.get(layer.depth).is_some_and(|known| known.digest == layer.digest)
            && layer.manifest.is_none_or(|manifest| manifest == self.manifest.digest)
    }
}

/// The images.
#[derive(Debug)]
pub(super) struct Images {
    fetcher: Arc<Fetcher>,
    /// What reads blobs: the cache, so that what was looked at to tell a layer is not fetched again to open it.
    source: Arc<dyn BlobSource>,
    /// What their configs are read by.
    layers: Arc<Layers>,
    shelf: Arc<Shelf>,
    platform: Platform,
    /// The latest used last.
    known: Mutex<VecDeque<Arc<Known>>>,
    failed: Mutex<VecDeque<(String, Instant, Unknown)>>,
    turns: Turns<String>,
}

impl From<ResolveError> for Unknown {
    fn from(error: ResolveError) -> Self {
        Self { is_transient: error.is_transient(), reason: error.to_string() }
    }
}

impl From<LayerError> for Unknown {
    fn from(error: LayerError) -> Self {
        Self { is_transient: error.is_transient(), reason: error.to_string() }
    }
}

impl From<ReadError> for Unknown {
    fn from(error: ReadError) -> Self {
        Self { is_transient: error.is_transient(), reason: error.to_string() }
    }
}

fn unusable(reason: String) -> Unknown {
    Unknown { reason, is_transient: false }
}

/// There is no layer `nth`, counted from 0.
pub(super) fn missing(nth: usize) -> Unknown {
    unusable(format!("the image has no layer {}", nth + 1))
}

impl Images {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            fetcher: Arc::clone(&parts.fetcher),
            source: Arc::clone(&parts.source),
            layers: Arc::clone(&parts.layers),
            shelf: Arc::clone(&parts.shelf),
            platform: parts.platform.clone(),
            known: Mutex::default(),
            failed: Mutex::default(),
            turns: Turns::default(),
        }
    }

    /// The image that `layer` is of. The registry is asked once for all layers.
    ///
    /// # Errors
    /// [`Unknown`], also when the registry's image has another layer there, or another chain ID.
    pub(super) async fn of(&self, layer: &Layer) -> Result<Arc<Known>, Unknown> {
        let reference: Reference = layer.reference.parse().map_err(|error: penstock_fetcher::ReferenceError| {
            unusable(format!("the image reference that containerd passed is not understood: {error}"))
        })?;
        if let Some(known) = self.find(&reference, layer).await? {
            return Ok(known);
        }
        let key = layer.manifest.map_or_else(|| reference.to_string(), |digest| format!("{reference} {digest}"));
        let _turn = self.turns.take(key.clone()).await;
        if let Some(known) = self.find(&reference, layer).await? {
            return Ok(known);
        }
        if let Some(failure) = self.failed_lately(&key) {
            return Err(failure);
        }
        let known = match self.resolve(&reference, layer.manifest).await {
            Ok(known) => known,
            Err(failure) => {
                self.remember_failure(key, failure.clone());
                return Err(failure);
            }
        };
        if !known.has(layer) {
            let nth = layer.depth + 1;
            return Err(unusable(format!(
                "the image has another layer {nth} than {}: its tag was moved",
                layer.digest
            )));
        }
        if !self.is_chain(&known, layer).await? {
            let nth = layer.depth + 1;
            return Err(unusable(format!(
                "the chain ID up to layer {nth} is not {}: the image's config says otherwise",
                layer.chain
            )));
        }
        Ok(known)
    }

    /// Keeps the manifest on disk: containerd is about to be told that a layer of it is there.
    pub(super) async fn keep(&self, known: &Known) {
        let (shelf, served) = (Arc::clone(&self.shelf), known.served.clone());
        let kept = tokio::task::spawn_blocking(move || shelf.put(&served)).await;
        if let Err(error) = kept.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            let reference = &known.reference;
            tracing::warn!(%reference, %error, "its manifest cannot be kept; after a restart of the agent its first mount asks the registry for it");
        }
    }

    /// The manifest, where it is kept on disk.
    async fn kept(&self, reference: &Reference, manifest: Digest) -> Option<(Manifest, Served)> {
        let (shelf, of) = (Arc::clone(&self.shelf), reference.clone());
        let found = tokio::task::spawn_blocking(move || shelf.find(&of, manifest)).await;
        found.map_err(|error| error.to_string()).and_then(|found| found).unwrap_or_else(|reason| {
            tracing::warn!(%reference, reason, "a kept manifest cannot be used; its registry is asked");
            None
        })
    }

    /// The manifest of an image that was offered, from the registry if it was forgotten.
    pub(super) async fn manifest(&self, reference: &Reference, manifest: Digest) -> Result<Arc<Manifest>, Unknown> {
        let known = self.known.lock().iter().find(|known| known.manifest.digest == manifest).cloned();
        match known.filter(|known| known.reference == *reference) {
            Some(known) => Ok(Arc::clone(&known.manifest)),
            None => Ok(Arc::clone(&self.resolve(reference, Some(manifest)).await?.manifest)),
        }
    }

    async fn find(&self, reference: &Reference, layer: &Layer) -> Result<Option<Arc<Known>>, Unknown> {
        let fitting: Vec<Arc<Known>> = {
            let known = self.known.lock();
            known.iter().rev().filter(|known| known.reference == *reference && known.has(layer)).cloned().collect()
        };
        for known in fitting {
            if self.is_chain(&known, layer).await? {
                return Ok(Some(known));
            }
        }
        Ok(None)
    }

    async fn resolve(&self, reference: &Reference, manifest: Option<Digest>) -> Result<Arc<Known>, Unknown> {
        let pinned = manifest.map_or_else(|| reference.clone(), |digest| reference.with_digest(digest));
        let kept = match manifest {
            Some(manifest) => self.kept(reference, manifest).await,
            None => None,
        };
        let known = match kept {
            Some(found) => Known::new(reference.clone(), found),
            None => Known::served(reference, self.fetcher.resolve_served(&pinned, &self.platform).await?)?,
        };
        let known = Arc::new(known);
        let mut all = self.known.lock();
        all.retain(|other| other.reference != known.reference || other.manifest.digest != known.manifest.digest);
        if all.len() == KNOWN {
            all.pop_front();
        }
        all.push_back(Arc::clone(&known));
        Ok(known)
    }

    fn failed_lately(&self, key: &str) -> Option<Unknown> {
        let mut failed = self.failed.lock();
        failed.retain(|(_, at, _)| at.elapsed() < FAILED.1);
        failed.iter().find(|(known, ..)| known == key).map(|(.., failure)| failure.clone())
    }

    fn remember_failure(&self, key: String, failure: Unknown) {
        let mut failed = self.failed.lock();
        if failed.len() == FAILED.0 {
            failed.pop_front();
        }
        failed.push_back((key, Instant::now(), failure));
    }

    /// Whether containerd means the same layers by the chain ID: where it named the manifest, it has compared them itself.
    async fn is_chain(&self, known: &Known, layer: &Layer) -> Result<bool, Unknown> {
        if layer.manifest.is_some() {
            return Ok(true);
        }
        let chains = known.chains.get_or_try_init(|| self.chains(&known.manifest)).await?;
        Ok(chains.get(layer.depth) == Some(&layer.chain))
    }

    async fn chains(&self, manifest: &Manifest) -> Result<Vec<Digest>, Unknown> {
        Ok(chain::ids(self.layers.diff_ids(manifest).await?))
    }

    /// What the layer `nth` of an image is, and, as far as that counts for it, what those below it are, the lowest first.
    pub(super) async fn around(&self, known: &Known, nth: usize) -> Result<(Kind, Vec<Kind>), Unknown> {
        let kind = self.kind(known, nth).await?;
        if kind != Kind::OverlayBd {
            // Each is shown alone, or not at all: how many there are below counts, not what they are.
            let below = vec![kind.clone(); nth];
            return Ok((kind, below));
        }
        let mut below = Vec::with_capacity(nth);
        for nth in 0..nth {
            below.push(self.kind(known, nth).await?);
        }
        Ok((kind, below))
    }

    /// What all layers of an image are, the lowest first.
    pub(super) async fn kinds(&self, known: &Known) -> Result<Vec<Kind>, Unknown> {
        let mut kinds = Vec::with_capacity(known.manifest.layers.len());
        for nth in 0..known.manifest.layers.len() {
            kinds.push(self.kind(known, nth).await?);
        }
        Ok(kinds)
    }

    /// What the layer `nth` of an image is; its first bytes are fetched when the manifest does not say.
    pub(super) async fn kind(&self, known: &Known, nth: usize) -> Result<Kind, Unknown> {
        let layer = known.manifest.layers.get(nth).zip(known.kinds.get(nth));
        let (layer, cell) = layer.ok_or_else(|| missing(nth))?;
        let looked = cell.get_or_try_init(|| async {
            if let Some(kind) = kind::described(layer) {
                return Ok(kind);
            }
            let blob = layer.blob();
            let head = match ByteRange::new(0, blob.size_bytes.min(HEAD_BYTES)) {
                Ok(range) => {
                    Lent::new(&self.fetcher, blob, &known.manifest.reference).read(&*self.source, range).await?
                }
                Err(_) => Bytes::new(),
            };
            Ok::<_, Unknown>(kind::seen(penstock_image::content(&head, blob.size_bytes)))
        });
        looked.await.cloned()
    }
}

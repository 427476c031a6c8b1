//! Images are opened while containerd still pulls them, so that the first mount is only a mount.
//!
//! Nothing of it is held once it is done: the maps are on disk, the index is remembered, and what was read is in the cache.

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use penstock_blob::{Blob, Digest, SPANS};
use penstock_fetcher::{Descriptor, Manifest, Reference};
use tokio::{sync::watch, time::timeout};
use tracing::{field::Empty, info_span};

use super::{
    AttachError, Attachments,
    opened::{self, Meant, Opened},
};
use crate::{
    events::Kind,
    indexes::{self, Ask, Unverified},
    layers::turbo,
    state::record::{LayerRecord, Part},
    traces::traced,
};

/// Most images that are opened ahead at once. One more is opened by its first mount.
const IMAGES: usize = 8;
/// Parts of one image that are opened at once: its layers, where each is a disk of its own.
const PARTS_AT_ONCE: usize = 8;
/// How long one image may take. What is left then is done by the first mount, which says what is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// The images that are being opened ahead.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// By their manifests; the sender of each goes when it is done.
    under_way: Mutex<HashMap<Digest, watch::Receiver<()>>>,
}

/// One image is being opened, until this is dropped.
struct Begun {
    attachments: Arc<Attachments>,
    manifest: Digest,
    _done: watch::Sender<()>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.attachments.ahead.under_way.lock().remove(&self.manifest);
    }
}

impl Ahead {
    fn begin(&self, manifest: Digest) -> Option<watch::Sender<()>> {
        let mut under_way = self.under_way.lock();
        if under_way.len() >= IMAGES {
            return None;
        }
        match under_way.entry(manifest) {
            hash_map::Entry::Occupied(_) => None,
            hash_map::Entry::Vacant(place) => {
                let (done, waits) = watch::channel(());
                place.insert(waits);
                Some(done)
            }
        }
    }

    /// Waits until nobody opens this image ahead.
    pub(super) async fn join(&self, manifest: Digest) {
        let waits = self.under_way.lock().get(&manifest).cloned();
        if let Some(mut waits) = waits {
            // An error is the end: nothing is ever sent.
            let _ended = waits.changed().await;
        }
    }
}

impl Attachments {
    /// Opens the parts that `parts` answers of an image, in the background: who mounts one of them waits for that. An image that is being opened
    /// already, or is one too many, is left alone.
    pub(crate) fn open_ahead<F>(self: &Arc<Self>, (reference, manifest): (Reference, Arc<Manifest>), parts: F)
    where
        F: Future<Output = Vec<Part>> + Send + 'static,
    {
        let Some(done) = self.ahead.begin(manifest.digest) else { return };
        let begun = Begun { attachments: Arc::clone(self), manifest: manifest.digest, _done: done };
        self.fetch_recording(&reference, &manifest);
        let span = info_span!(target: SPANS, "open_ahead", %reference, error = Empty);
        self.tasks.spawn(async move {
            let attachments = Arc::clone(&begun.attachments);
            let opening = async {
                let opened = attachments.open_parts(&reference, &manifest, parts).await?;
                // Who waits goes on: what is left is made for a device as well as for nobody.
                drop(begun);
                attachments.complete(&opened).await
            };
            let (kind, text) = match timeout(PATIENCE, traced(span, opening)).await {
                Ok(Ok(())) => (Kind::SnapshotOpened, format!("{reference} is opened, and its maps are made")),
                Ok(Err(error)) => (Kind::SnapshotOpenFailed, format!("{reference} could not be opened: {error}")),
                Err(_) => (Kind::SnapshotOpenFailed, format!("{reference} was not opened within {PATIENCE:?}")),
            };
            attachments.parts.events.record(kind, &text, &[("reference", &reference.to_string())]);
        });
    }

    /// Waits until the maps of all of them are whole: opened again, they need no registry.
    async fn complete(&self, opened: &[Opened]) -> Result<(), AttachError> {
        for opened in opened {
            self.parts.unless_stopping(async { opened.image.completed().await.map_err(AttachError::Maps) }).await?;
        }
        Ok(())
    }

    async fn open_parts(
        &self,
        reference: &Reference,
        manifest: &Manifest,
        parts: impl Future<Output = Vec<Part>>,
    ) -> Result<Vec<Opened>, AttachError> {
        let parts = self.parts.unless_stopping(async { Ok::<_, AttachError>(parts.await) }).await;
        let reference = reference.with_digest(manifest.digest);
        let layers: Vec<LayerRecord> = manifest.layers.iter().map(LayerRecord::from).collect();
        let (reference, layers) = (&reference, &layers);
        let open = |part: Part| async move {
            let Some(shown) = part.of(layers) else { return Ok::<_, AttachError>(None) };
            let ask = Ask::Registry { require: self.parts.indexes.require };
            let meant = Meant { reference, manifest: manifest.digest, ask, layers, shown };
            let opened = Opened::open(&self.parts, meant, None).await?;
            opened::head(&self.parts, &opened.image).await?;
            Ok(Some(opened))
        };
        let opened: Vec<Option<Opened>> = stream::iter(parts?).map(open).buffered(PARTS_AT_ONCE).try_collect().await?;
        Ok(opened.into_iter().flatten().collect())
    }

    /// Whether an image may be attached: it has an index that can be used, or needs none.
    ///
    /// # Errors
    /// [`Unverified`] when one is required and there is none.
    pub(crate) async fn check_verifiable(&self, manifest: &Manifest) -> Result<(), Unverified> {
        let indexes = &self.parts.indexes;
        if !indexes.require {
            return Ok(());
        }
        let blobs: Vec<Blob> = manifest.layers.iter().map(Descriptor::blob).collect();
        let image = indexes::Image { reference: &manifest.reference, manifest: manifest.digest, blobs: &blobs };
        if turbo::is_any(manifest.layers.iter().map(|layer| &layer.annotations)) {
            return Err(indexes::unverified(image, turbo::UNVERIFIABLE.to_owned(), false));
        }
        indexes.settle(image, Ask::Registry { require: true }).await.map(drop)
    }

    /// Forgets what is remembered of images that neither an attachment nor a snapshot is of.
    pub(crate) async fn forget_images(&self, manifests: Vec<Digest>) {
        for manifest in manifests {
            let is_attached = {
                let table = self.table.lock();
                table.entries.iter().any(|entry| entry.record.as_ref().is_some_and(|r| r.manifest == manifest))
            };
            if !is_attached {
                self.parts.indexes.forget(manifest).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_comes_while_an_image_is_opened_waits_and_there_are_not_too_many() {
        let ahead = Ahead::default();
        let image = |nth: usize| Digest::of(&[u8::try_from(nth).unwrap()]);
        let mut begun: Vec<_> = (0..IMAGES).map(|nth| ahead.begin(image(nth)).unwrap()).collect();
        assert!(ahead.begin(image(IMAGES)).is_none(), "one too many");
        assert!(ahead.join(image(IMAGES)).now_or_never().is_some(), "nobody opens it");
        let mut waiting = std::pin::pin!(ahead.join(image(0)));
        assert!(waiting.as_mut().now_or_never().is_none());
        // As `Begun` does it: out of the map first, so that who comes now does not wait.
        ahead.under_way.lock().remove(&image(0));
        drop(begun.swap_remove(0));
        waiting.await;
        assert!(ahead.begin(image(0)).is_some() && ahead.begin(image(1)).is_none(), "each once at a time");
    }
}

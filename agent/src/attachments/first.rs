//! The first time that a node pulls an image without indexes of its layers: they are made in the background, of each layer once containerd has unpacked it,
//! from what containerd has fetched. What it has no more comes from the registry. The next pull of the image on this node is lazy.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, Digest};
use penstock_fetcher::{Descriptor, Manifest, Reference};
use penstock_snapshotter::content::{Store, StoreError};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{AttachError, Attachments};
use crate::{
    config::IndexPulled,
    events::Kind,
    layers::{LayerError, make::MakeError, push::push},
};

/// Layers indexed at the same time: a CPU for each, behind all that somebody waits for.
const AT_ONCE: usize = 1;
/// Images that may wait for their turn. One more is not indexed; its next pull asks again.
const MOST: usize = 64;
/// How long one layer may take to be fetched and unpacked by containerd after the one before it. Then the pull was given up; the next one asks again.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Images whose layers are being indexed, or wait for it, by their manifests.
#[derive(Debug)]
pub(super) struct First {
    under_way: Mutex<HashMap<Digest, Pull>>,
    turns: Semaphore,
}

impl Default for First {
    fn default() -> Self {
        Self { under_way: Mutex::default(), turns: Semaphore::new(AT_ONCE) }
    }
}

/// What became of an image's layers: those that containerd has unpacked, with the namespace in which it has them, and those that are read on demand.
type Settled = BTreeMap<Digest, Option<String>>;

/// A pull of an image whose layers are indexed.
#[derive(Debug)]
struct Pull {
    layers: Vec<Digest>,
    settled: watch::Sender<Settled>,
}

impl First {
    /// Begins to listen what becomes of the image's layers; `None` when somebody does already, or it is one image too many.
    fn begin(&self, manifest: &Manifest) -> Option<watch::Receiver<Settled>> {
        let mut under_way = self.under_way.lock();
        if under_way.len() >= MOST || under_way.contains_key(&manifest.digest) {
            return None;
        }
        let (settled, told) = watch::channel(Settled::new());
        let layers = manifest.layers.iter().map(|layer| layer.digest).collect();
        under_way.insert(manifest.digest, Pull { layers, settled });
        Some(told)
    }

    fn settle(&self, layer: Digest, namespace: Option<&str>) {
        for pull in self.under_way.lock().values().filter(|pull| pull.layers.contains(&layer)) {
            pull.settled.send_modify(|settled| drop(settled.insert(layer, namespace.map(str::to_owned))));
        }
    }
}

/// What came of the layers of an image.
#[derive(Debug, Default)]
struct Counts {
    made: usize,
    /// Of these, from what containerd has.
    stored: usize,
    /// Of those that were made, which are not lazy, but streamed.
    streamed: usize,
    not_lazy: usize,
}

impl Attachments {
    /// Has those of an image's layers indexed that `archives` answers and that have no index, if the config says so and they are not being indexed
    /// already. containerd is about to fetch and unpack those from the one at `lowest` on; it has those below.
    pub(crate) fn index_later<F>(
        self: &Arc<Self>,
        (reference, manifest): (&Reference, &Arc<Manifest>),
        lowest: usize,
        archives: F,
    ) where
        F: Future<Output = Vec<usize>> + Send + 'static,
    {
        if self.parts.index_pulled == IndexPulled::No {
            return;
        }
        let Some(told) = self.first.begin(manifest) else { return };
        let (this, reference, manifest) = (Arc::clone(self), reference.clone(), Arc::clone(manifest));
        self.tasks.spawn(async move {
            let work = async {
                let (above, below): (Vec<usize>, Vec<usize>) =
                    archives.await.into_iter().partition(|nth| *nth >= lowest);
                this.index_all((&reference, &manifest), (above, below), told).await
            };
            let stopped = this.parts.unless_stopping(Box::pin(work)).await;
            this.first.under_way.lock().remove(&manifest.digest);
            if let Err(error) = stopped {
                tracing::info!(%reference, %error, "its layers are not indexed");
            }
        });
    }

    /// containerd has unpacked this layer, and has its blob in this namespace; or, without one, the layer is read on demand.
    pub(crate) fn layer_settled(&self, layer: Digest, namespace: Option<&str>) {
        self.first.settle(layer, namespace);
    }

    /// Indexes one layer after the other: those that are being pulled as they are there, then those below them. Says how it ended.
    async fn index_all(
        &self,
        (reference, manifest): (&Reference, &Manifest),
        (above, below): (Vec<usize>, Vec<usize>),
        mut told: watch::Receiver<Settled>,
    ) -> Result<(), AttachError> {
        let mut counts = Counts::default();
        for (nth, is_pulled) in
            above.into_iter().map(|nth| (nth, true)).chain(below.into_iter().map(|nth| (nth, false)))
        {
            let Some(layer) = manifest.layers.get(nth) else { continue };
            if is_pulled {
                let settled = told.wait_for(|settled| settled.contains_key(&layer.digest));
                if timeout(PATIENCE, settled).await.is_err() {
                    let text = format!("layer {} of {reference} is not indexed: containerd did not unpack it", nth + 1);
                    self.not_indexed(layer, &text);
                    break;
                }
            }
            let namespace = {
                let settled = told.borrow();
                let own = settled.get(&layer.digest).cloned().flatten();
                own.or_else(|| settled.values().flatten().next().cloned())
            };
            self.index_one((manifest, nth), namespace.as_deref(), &mut counts).await;
        }
        let Counts { made, stored, streamed, not_lazy } = counts;
        let in_order = match streamed {
            0 => String::new(),
            some => format!(", {some} of them not lazy: streamed, prefetched in parallel"),
        };
        let text = format!(
            "{made} of {} layers of {reference} are indexed ({stored} from what containerd had fetched){in_order}, {not_lazy} can only be read whole; from the next pull on they are read on demand",
            manifest.layers.len()
        );
        self.parts.events.record(Kind::LayersIndexed, &text, &[("reference", &reference.to_string())]);
        if made > 0 && self.parts.index_pulled == IndexPulled::Push {
            self.push_indexes(reference, manifest).await;
        }
        Ok(())
    }

    /// Indexes one layer, when it is its turn.
    async fn index_one(&self, (manifest, nth): (&Manifest, usize), namespace: Option<&str>, counts: &mut Counts) {
        let Some(layer) = manifest.layers.get(nth) else { return };
        // Never closed.
        let _turn = self.first.turns.acquire().await;
        let below: Arc<dyn BlobSource> = Arc::clone(&self.parts.indexes.verified) as _;
        let (layers, of) = (&self.parts.layers, (manifest, nth));
        let made = match stored(&self.parts.containerd, namespace, layer.blob()).await {
            Ok(Some(source)) => match layers.make(of, &*source, |_| {}).await {
                // It was collected meanwhile, or cannot be read.
                Err(LayerError::Make(MakeError::Read(error))) => {
                    tracing::info!(layer = %layer.digest, %error, "a layer is indexed from the registry: containerd does not give it");
                    layers.make(of, &*below, |_| {}).await
                }
                made => {
                    counts.stored += usize::from(made.is_ok());
                    made
                }
            },
            Ok(None) => layers.make(of, &*below, |_| {}).await,
            Err(error) => {
                tracing::info!(layer = %layer.digest, %error, "a layer is indexed from the registry: containerd does not say what it has");
                layers.make(of, &*below, |_| {}).await
            }
        };
        match made {
            Ok(is_streamed) => {
                counts.made += 1;
                counts.streamed += usize::from(is_streamed);
            }
            Err(error) => {
                let is_not_lazy = matches!(&error, LayerError::Make(error) if MakeError::is_not_lazy(error));
                counts.not_lazy += usize::from(is_not_lazy);
                let text = format!("layer {} of {} is not indexed: {error}", nth + 1, manifest.reference);
                self.not_indexed(layer, &text);
            }
        }
    }

    fn not_indexed(&self, layer: &Descriptor, text: &str) {
        self.parts.events.record(Kind::LayersIndexFailed, text, &[("layer", &layer.digest.to_string())]);
    }

    /// Pushes what this node has indexed of an image beside it.
    async fn push_indexes(&self, reference: &Reference, manifest: &Manifest) {
        let name = reference.to_string();
        let pushed = match self.parts.layers.own(manifest).await {
            Ok(indexes) if indexes.is_empty() => return,
            Ok(indexes) => push(&self.parts.fetcher, manifest, indexes).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match pushed {
            Ok(artifact) => {
                let text = format!("the indexes of the layers of {name} are beside it in the registry, as {artifact}");
                self.parts.events.record(Kind::LayersPushed, &text, &[("reference", &name)]);
            }
            Err(reason) => {
                let text = format!("the indexes of the layers of {name} are kept, but not in the registry: {reason}");
                self.parts.events.record(Kind::LayersPushFailed, &text, &[("reference", &name)]);
            }
        }
    }
}

/// The blob as containerd has it, in the namespace in which the image is pulled; `None` when it has not.
async fn stored(
    containerd: &Path,
    namespace: Option<&str>,
    blob: Blob,
) -> Result<Option<Arc<dyn BlobSource>>, StoreError> {
    let Some(namespace) = namespace else { return Ok(None) };
    let store = Store::connect(containerd, namespace).await?;
    Ok(store.has(&blob).await?.then(|| Arc::new(store.stored()) as Arc<dyn BlobSource>))
}

#[cfg(test)]
mod tests {
    use penstock_fetcher::Manifest;

    use super::*;

    fn manifest(nth: usize) -> Manifest {
        let layer = |name: &str| {
            let digest = Digest::of(name.as_bytes());
            serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 1})
        };
        let text = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"c"), "size": 1},
            "layers": [layer("shared"), layer(&nth.to_string())],
        });
        let reference: Reference = "r.example/a:1".parse().unwrap();
        Manifest::parse(&reference, text.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json").unwrap()
    }

    #[test]
    fn all_pulls_of_a_layer_are_told_what_became_of_it_and_there_are_not_too_many() {
        let first = First::default();
        let told: Vec<_> = (0..MOST).map(|nth| first.begin(&manifest(nth)).unwrap()).collect();
        assert!(first.begin(&manifest(MOST)).is_none() && first.begin(&manifest(0)).is_none());
        first.settle(Digest::of(b"shared"), Some("k8s.io"));
        first.settle(Digest::of(b"1"), None);
        first.settle(Digest::of(b"unknown"), Some("other"));
        assert!(told.iter().all(|told| told.borrow()[&Digest::of(b"shared")].as_deref() == Some("k8s.io")));
        let counts: Vec<usize> = told.iter().take(3).map(|told| told.borrow().len()).collect();
        assert_eq!(counts, [1, 2, 1]);
    }
}

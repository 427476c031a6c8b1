//! A layer that can be read on demand is committed at once.

use std::time::Duration;

use crate::{
    claims::Need,
    dirs::Owner,
    error::SnapshotError,
    labels::{self, TARGET},
    mounter::{Layer, MountError, Offer},
    record::{Content, Kind, Labels, Record, Stamp},
};

use super::{New, Snapshotter, named};

/// How long the mounter may think about an offer before the layer is unpacked instead: a manifest is resolved within the fetch deadline, 30 s.
const OFFER_PATIENCE: Duration = Duration::from_secs(60);
/// What the annotations of an OverlayBD layer begin with (accelerated-container-image, `pkg/label/label.go`), and so its labels.
const OVERLAYBD: &str = "containerd.io/snapshot/overlaybd/";

/// Why a layer is not read on demand.
struct Declined {
    why: String,
    /// Another try may find otherwise.
    is_transient: bool,
}

impl Declined {
    const fn for_good(why: String) -> Self {
        Self { why, is_transient: false }
    }

    const fn for_now(why: String) -> Self {
        Self { why, is_transient: true }
    }
}

impl Snapshotter {
    /// Commits the layer that `new` is meant for, when it can be read on demand: that is the error that it exists. Else, for a layer of an image, why not.
    pub(super) async fn lazily(&self, new: &New) -> Result<Option<String>, SnapshotError> {
        let (depth, there) = {
            let table = self.table.lock();
            (table.chain(new.parent.as_deref())?.len(), table.contains(&new.key))
        };
        let Some(layer) = labels::layer(&new.labels, depth).filter(|_| !there) else { return Ok(None) };
        let declined = match layer {
            Ok(layer) => self.offered(new, layer).await?,
            Err(why) => Declined::for_good(why),
        };
        let why = unpackable(&new.labels, declined)?;
        self.metrics.eager_layers.inc();
        tracing::info!(key = new.key, why, "layer is unpacked");
        Ok(Some(why))
    }

    /// Asks for an offer and takes it. Answers why there is none to take.
    async fn offered(&self, new: &New, layer: Layer) -> Result<Declined, SnapshotError> {
        let chain = layer.chain.to_string();
        let parent = new.parent.as_deref();
        // One at a time for one layer: of several that pull it at once, the first makes it and the others find it.
        let mut names = vec![(format!("layer {chain} {}", parent.unwrap_or_default()), Need::Alone)];
        names.extend(parent.map(|parent| named(parent, Need::Steady)));
        let _claim = self.names.claim(names).await;
        {
            let table = self.table.lock();
            table.chain(parent)?;
            if let Some(name) = table.find_lazy(&chain, parent) {
                return Err(SnapshotError::exists(name));
            }
        }
        let offer = match tokio::time::timeout(OFFER_PATIENCE, self.mounter.offer(&layer)).await {
            Ok(Ok(offer)) => offer,
            Ok(Err(error @ MountError::Permanent { .. })) => return Ok(Declined::for_good(error.to_string())),
            Ok(Err(error)) => return Ok(Declined::for_now(error.to_string())),
            Err(_) => {
                return Ok(Declined::for_now(format!(
                    "it was not known within {OFFER_PATIENCE:?} whether the layer can be read on demand"
                )));
            }
        };
        match offer {
            Offer::Eager { why } => Ok(Declined::for_good(why)),
            Offer::Lazy { shape, stack, how } => {
                let content = Content::Lazy { shape, stack, how };
                Err(SnapshotError::exists(&self.commit_lazily(new, &chain, content).await?))
            }
        }
    }

    async fn commit_lazily(&self, new: &New, chain: &str, content: Content) -> Result<String, SnapshotError> {
        let begun = self.begin();
        let (number, now) = (begun.number, Stamp::now());
        let name = format!("penstock/{number}/{chain}");
        let mut labels = new.labels.clone();
        labels.insert(TARGET.to_owned(), chain.to_owned());
        let record = Record {
            number,
            name: name.clone(),
            kind: Kind::Committed,
            parent: new.parent.clone(),
            labels,
            created: now,
            updated: now,
            content,
            usage: Some(crate::Usage::default()),
        };
        let owner = Owner { mode: 0o755, uid: 0, gid: 0 };
        self.blocking("the layer's directory could not be made", move |dirs| dirs.make(number, owner, false)).await?;
        self.put(record, None).await?;
        self.metrics.lazy_layers.inc();
        tracing::info!(name, "layer is read on demand");
        Ok(name)
    }
}

/// Why the layer is unpacked, unless it must not be: an OverlayBD layer is a disk in a tar, and unpacked it would be a container without files.
fn unpackable(labels: &Labels, declined: Declined) -> Result<String, SnapshotError> {
    let Declined { why, is_transient } = declined;
    if !labels.keys().any(|key| key.starts_with(OVERLAYBD)) {
        return Ok(why);
    }
    let reason = format!("an OverlayBD layer can only be read on demand, and this one cannot be: {why}");
    Err(if is_transient { SnapshotError::unavailable(reason) } else { SnapshotError::precondition(reason) })
}

//! A layer that can be read on demand is committed at once.

use std::time::Duration;

use crate::{
    claims::Need,
    dirs::Owner,
    error::SnapshotError,
    labels::{self, TARGET},
    mounter::{Declined, Layer, MountError, Offer},
    record::{Content, Kind, Labels, Record, Stamp},
};

use super::{New, Snapshotter, named};

/// How long the mounter may think about an offer before the layer is unpacked instead: a manifest is resolved within the fetch deadline, 30 s.
const OFFER_PATIENCE: Duration = Duration::from_secs(60);
/// What the annotations of an OverlayBD layer begin with (accelerated-container-image, `pkg/label/label.go`), and so its labels.
const OVERLAYBD: &str = "containerd.io/snapshot/overlaybd/";

/// What becomes of a layer that is not read on demand.
enum Verdict {
    /// containerd unpacks it; why.
    Unpack(String),
    /// It must not be unpacked.
    Refuse(SnapshotError),
}

impl Snapshotter {
    /// Commits the layer that `new` is meant for, when it can be read on demand: that is the error that it exists. Else, for a layer of an image, why not.
    pub(super) async fn lazily(&self, new: &New) -> Result<Option<String>, SnapshotError> {
        let (depth, there) = {
            let table = self.table.lock();
            (table.chain(new.parent.as_deref())?.len(), table.contains(&new.key))
        };
        let Some(described) = labels::layer(&new.labels, depth).filter(|_| !there) else { return Ok(None) };
        let (layer, verdict) = match described {
            Ok(layer) => {
                let verdict = self.offered(new, &layer).await?;
                (Some(layer), verdict)
            }
            Err(why) => (None, unpackable(&new.labels, why, false)),
        };
        let (why, refused) = match verdict {
            Verdict::Unpack(why) => (why, None),
            Verdict::Refuse(error) => (error.to_string(), Some(error)),
        };
        let (key, layer, is_refused) = (new.key.as_str(), layer.as_ref(), refused.is_some());
        self.mounter.declined(Declined { key, layer, why: &why, is_refused });
        if let Some(error) = refused {
            return Err(error);
        }
        self.metrics.eager_layers.inc();
        tracing::info!(key, why, "layer is unpacked");
        Ok(Some(why))
    }

    /// Asks for an offer and takes it. Answers why there is none to take.
    async fn offered(&self, new: &New, layer: &Layer) -> Result<Verdict, SnapshotError> {
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
        match self.offer(layer).await {
            Ok(Offer::Eager { why }) => Ok(unpackable(&new.labels, why, false)),
            Ok(Offer::Refused { why, is_transient }) => Ok(Verdict::Refuse(refusal(why, is_transient))),
            Ok(Offer::Lazy { shape, stack, how }) => {
                let content = Content::Lazy { shape, stack, how };
                Err(SnapshotError::exists(&self.commit_lazily(new, &chain, content).await?))
            }
            Err(error) => {
                let is_transient = !matches!(error, MountError::Permanent { .. });
                Ok(unpackable(&new.labels, error.to_string(), is_transient))
            }
        }
    }

    /// What the mounter offers, unless that takes too long.
    pub(super) async fn offer(&self, layer: &Layer) -> Result<Offer, MountError> {
        let late = |_elapsed| MountError::Transient {
            reason: format!("it was not known within {OFFER_PATIENCE:?} whether the layer can be read on demand"),
        };
        tokio::time::timeout(OFFER_PATIENCE, self.mounter.offer(layer)).await.map_err(late)?
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

/// The layer is unpacked, unless its labels say that it is an OverlayBD layer: that is a disk in a tar, and unpacked it would be a container without
/// files.
fn unpackable(labels: &Labels, why: String, is_transient: bool) -> Verdict {
    if !labels.keys().any(|key| key.starts_with(OVERLAYBD)) {
        return Verdict::Unpack(why);
    }
    let reason = format!("an OverlayBD layer can only be read on demand, and this one cannot be: {why}");
    Verdict::Refuse(refusal(reason, is_transient))
}

/// What containerd is told of a layer that it must not unpack.
fn refusal(why: String, is_transient: bool) -> SnapshotError {
    if is_transient { SnapshotError::unavailable(why) } else { SnapshotError::precondition(why) }
}

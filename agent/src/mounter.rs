//! What the snapshotter asks of whoever makes devices, answered by the table of attachments.
//!
//! An *offer* says whether a layer can be read on demand: its image is resolved once for all layers, and what a layer is follows from its annotations,
//! its media type or its first bytes. When it can, the manifest is kept on disk, and the image is opened while containerd goes on with the pull. A *mount* is an attachment of some layers of an image, recorded as all attachments are: it is made again at
//! the agent's start without a registry, and lives as long as its snapshot.

mod chain;
mod choice;
mod images;
mod inspect;
mod kind;
mod told;

use std::{
    collections::HashSet,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use penstock_api::NodeError;
use penstock_blob::Digest;
use penstock_fetcher::{Manifest, Reference};
use penstock_snapshotter::{Answer, Declined, Figures, Layer, MountError, Mounter, Offer, Shape, Stack};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    attachments::{At, AttachError, Attachments},
    config::{IndexPulled, Prefer},
    events::{Events, Kind},
    layers::{Found, Ready},
    shelf,
    state::record::Part,
    turns::Turns,
};
use choice::{Choice, Facts, Next, Usable, choose};
use images::{Images, Known, Unknown};
use told::Told;

/// Longest time that an offer may take: containerd waits for it with the pull of the layer, and has nothing to lose by fetching it itself.
const OFFER_DEADLINE: Duration = Duration::from_secs(10);

/// Longest time that a call waits for a device that is being made or unmade on behalf of another.
const SETTLING: Duration = Duration::from_secs(120);

/// Shows layers of images to containers.
#[derive(Debug)]
pub(crate) struct LayerMounter {
    attachments: Arc<Attachments>,
    images: Arc<Images>,
    deadline: Duration,
    events: Events,
    told: Told,
    /// Whose directory is being changed.
    turns: Turns<PathBuf>,
    /// Room for inspections.
    inspecting: Semaphore,
}

impl LayerMounter {
    /// Over `attachments`, from what those are made from. No request to a registry takes longer than `deadline`.
    pub(crate) fn new(attachments: Arc<Attachments>, deadline: Duration) -> Self {
        let (images, events) = (Arc::new(Images::new(attachments.parts())), attachments.parts().events.clone());
        let (deadline, told, turns) = (deadline.min(OFFER_DEADLINE), Told::default(), Turns::default());
        let inspecting = Semaphore::new(inspect::INSPECTIONS);
        Self { attachments, images, deadline, events, told, turns, inspecting }
    }

    /// Forgets images that none of the lazy snapshots, whose manifests are `named`, is of, once they are old.
    pub(crate) async fn forget_images(&self, named: HashSet<Digest>) {
        let Some(before) = SystemTime::now().checked_sub(shelf::UNNAMED) else { return };
        let kept = Arc::clone(&self.attachments.parts().shelf);
        let collected = tokio::task::spawn_blocking(move || kept.collect(&named, before)).await;
        match collected.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(gone) => self.attachments.forget_images(gone).await,
            Err(error) => tracing::warn!(%error, "manifests of images that were removed stay"),
        }
    }

    /// Lets go the attachments whose directory is gone: that of a snapshot which was removed, or of a root that was deleted, while no agent ran.
    pub(crate) async fn forget_missing(&self) {
        for dir in self.attachments.failed_parts() {
            let is_gone =
                tokio::fs::symlink_metadata(&dir).await.is_err_and(|error| error.kind() == ErrorKind::NotFound);
            if is_gone && let Err(error) = self.hide(&dir).await {
                tracing::warn!(dir = %dir.display(), %error, "the attachment of a snapshot that is gone stays listed");
            }
        }
    }

    /// What there is at `target`, once that is settled.
    async fn at(&self, target: &Path) -> Result<At, MountError> {
        let late = |_| MountError::Transient { reason: format!("{} is still being made or unmade", target.display()) };
        timeout(SETTLING, self.attachments.at(target)).await.map_err(late)
    }

    async fn consider(&self, layer: &Layer) -> Result<Offer, Unknown> {
        let known = self.images.of(layer).await?;
        let offer = self.decide(&known, layer).await?;
        if matches!(offer, Offer::Lazy { .. }) {
            self.attachments.layer_settled(layer.digest, None);
            self.images.keep(&known).await;
            self.open_ahead(&known);
        }
        Ok(offer)
    }

    async fn decide(&self, known: &Arc<Known>, layer: &Layer) -> Result<Offer, Unknown> {
        let (shape, way, how) = match self.choice(known, layer).await? {
            Choice::Lazy { shape, way, how } => (shape, way, how),
            Choice::Unpacked { why, is_indexed } => {
                if is_indexed {
                    self.index_later(known, layer.depth);
                }
                return Ok(Offer::Eager { why });
            }
            Choice::Refused(why) => return Ok(Offer::Refused { why, is_transient: false }),
        };
        match if way.is_some() { Ok(None) } else { known.refused(self.unverified(known)).await } {
            Ok(None) => {}
            Ok(Some(why)) => return Ok(Offer::Refused { why, is_transient: false }),
            Err(Unknown { reason: why, is_transient }) => return Ok(Offer::Refused { why, is_transient }),
        }
        let first = if shape == Shape::Merged { 0 } else { layer.depth };
        let shown = known.manifest.layers.iter().take(layer.depth + 1).skip(first);
        let stack = Stack {
            reference: layer.reference.clone(),
            manifest: known.manifest.digest,
            layers: shown.map(|layer| layer.digest).collect(),
            first,
        };
        Ok(Offer::Lazy { shape, stack, how })
    }

    /// What becomes of a layer. What it depends on is asked for, in turn; what is found is kept, and its device laid out.
    async fn choice(&self, known: &Arc<Known>, layer: &Layer) -> Result<Choice, Unknown> {
        let (manifest, nth): (&Manifest, usize) = (&known.manifest, layer.depth);
        let (kind, below) = self.images.around(known, nth).await?;
        let Some(described) = manifest.layers.get(nth) else { return Err(images::missing(nth)) };
        let parts = self.attachments.parts();
        let prefer = choice::allowed(parts.layers.prefer(), (manifest, described), layer.prefer.as_deref());
        let index_pulled = parts.index_pulled != IndexPulled::No;
        let facts = Facts { kind: &kind, below: &below, of: manifest.layers.len(), prefer: &prefer, index_pulled };
        let mut seen = Vec::new();
        let ways = prefer.as_ref().map(Prefer::ways).unwrap_or_default();
        if matches!(kind, kind::Kind::Archive(_)) {
            match parts.layers.kept_of((manifest, nth), ways).await {
                Ok(Some(ready)) => seen.push((ready.way, usable(&ready, true))),
                Ok(None) => {}
                Err(error) => seen.extend(ways.first().map(|way| (*way, impossible(&error)))),
            }
        }
        loop {
            let way = match choose(&facts, &seen) {
                Next::Look(way) => way,
                Next::Made(choice) => return Ok(choice),
            };
            let found = match parts.layers.look(manifest, nth, way).await {
                Ok(Found::Ready(ready)) => usable(&ready, false),
                Ok(Found::Absent) => choice::Known::Absent,
                Ok(Found::Refused(why)) => choice::Known::Refused(why),
                Err(error) => impossible(error),
            };
            seen.push((way, found));
        }
    }

    /// Has the archives of an image indexed, so that its next pull is lazy. containerd unpacks its layers from the one at `lowest` on.
    fn index_later(&self, known: &Arc<Known>, lowest: usize) {
        let (images, of) = (Arc::clone(&self.images), Arc::clone(known));
        let archives = async move {
            let kinds = images.kinds(&of).await.unwrap_or_default();
            let archives = kinds.iter().enumerate().filter(|(_, kind)| matches!(kind, kind::Kind::Archive(_)));
            archives.map(|(nth, _)| nth).collect()
        };
        self.attachments.index_later((known.reference(), &known.manifest), lowest, archives);
    }

    /// Why the image may not be attached, because no index verifies it and one is required.
    async fn unverified(&self, known: &Known) -> Result<Option<String>, Unknown> {
        match self.attachments.check_verifiable(&known.manifest).await {
            Ok(()) => Ok(None),
            Err(error) if error.is_transient => Err(Unknown { reason: error.to_string(), is_transient: true }),
            Err(error) => Ok(Some(error.to_string())),
        }
    }

    /// Begins to open what a container will need of the image.
    fn open_ahead(&self, known: &Arc<Known>) {
        let (images, of) = (Arc::clone(&self.images), Arc::clone(known));
        let needed = async move { images.kinds(&of).await.map(|kinds| kind::needed(&kinds)).unwrap_or_default() };
        self.attachments.open_ahead((known.reference().clone(), Arc::clone(&known.manifest)), needed);
    }

    async fn show(&self, stack: &Stack, target: &Path) -> Result<String, MountError> {
        let _turn = self.turns.take(target.to_path_buf()).await;
        let part = Part { first: stack.first, count: stack.layers.len() };
        let wanted = Some((stack.manifest, Some(part)));
        let id = match self.at(target).await? {
            At::Attached(id, of) if of == wanted => {
                self.attachments.check_mount(&id, target).await.map_err(not_shown)?;
                return Ok(id.to_string());
            }
            At::Failed(id, of) if of == wanted => {
                self.attachments.clear_stray(target, true).await.map_err(not_shown)?;
                self.attachments.attach_again(&id).await.map_err(not_shown)?;
                id
            }
            // Of a snapshot that had the same number before the metadata was lost.
            At::Attached(id, _) | At::Failed(id, _) => {
                self.attachments.detach_part(&id, false).await.map_err(not_shown)?;
                self.attach(stack, part, target).await?
            }
            At::Nothing => self.attach(stack, part, target).await?,
        };
        let text = format!("{} is shown at {} by device {id}", stack.reference, target.display());
        self.events.record(Kind::SnapshotMounted, &text, &[("device", id.as_str())]);
        Ok(id.to_string())
    }

    async fn attach(&self, stack: &Stack, part: Part, target: &Path) -> Result<penstock_device::DeviceId, MountError> {
        let wrong = |reason: String| MountError::Permanent { reason };
        let reference: Reference = stack.reference.parse().map_err(|error: penstock_fetcher::ReferenceError| {
            wrong(format!("{:?} is no reference: {error}", stack.reference))
        })?;
        let late = || Unknown { reason: late(&stack.reference, self.deadline), is_transient: true };
        let asked = timeout(self.deadline, Box::pin(self.images.manifest(&reference, stack.manifest))).await;
        let manifest = asked.unwrap_or_else(|_elapsed| Err(late())).map_err(unknown)?;
        let listed = part.of(&manifest.layers).map(|layers| layers.iter().map(|layer| layer.digest));
        if !listed.is_some_and(|listed| listed.eq(stack.layers.iter().copied())) {
            return Err(wrong(format!("the manifest {} does not list the layers of this snapshot", stack.manifest)));
        }
        self.attachments.clear_stray(target, true).await.map_err(not_shown)?;
        Box::pin(self.attachments.attach_part((reference, manifest), part, target)).await.map_err(not_shown)
    }

    async fn hide(&self, target: &Path) -> Result<(), MountError> {
        let _turn = self.turns.take(target.to_path_buf()).await;
        match self.at(target).await? {
            At::Nothing => self.attachments.clear_stray(target, false).await.map_err(not_hidden),
            At::Attached(id, _) | At::Failed(id, _) => {
                self.attachments.detach_part(&id, false).await.map_err(not_hidden)?;
                let text = format!("{} is not shown any more", target.display());
                self.events.record(Kind::SnapshotUnmounted, &text, &[("device", id.as_str())]);
                Ok(())
            }
        }
    }
}

/// A layer whose device is laid out.
fn usable(ready: &Ready, is_kept: bool) -> choice::Known {
    let implied = match ready.image.kind() {
        penstock_image::Kind::Layer { implied, .. } => implied,
        _ => 0,
    };
    choice::Known::Usable(Usable { by: ready.origin, is_kept, is_streamed: ready.is_streamed(), implied })
}

/// A layer that cannot be read on demand.
fn impossible(error: impl std::fmt::Display) -> choice::Known {
    choice::Known::Impossible(error.to_string())
}

impl Mounter for LayerMounter {
    fn offer<'a>(&'a self, layer: &'a Layer) -> Answer<'a, Offer, MountError> {
        Box::pin(async move {
            let considered = timeout(self.deadline, self.consider(layer)).await;
            let late = || Unknown { reason: late(&layer.reference, self.deadline), is_transient: true };
            considered.unwrap_or_else(|_elapsed| Err(late())).map_err(unknown)
        })
    }

    fn declined(&self, Declined { key, layer, why, is_refused }: Declined<'_>) {
        let image = layer.map_or("", |layer| layer.reference.as_str());
        if !self.told.is_news(image, why) {
            return;
        }
        let kind = if is_refused { Kind::SnapshotRefused } else { Kind::SnapshotEager };
        match layer {
            Some(layer) => {
                let (digest, text) = (layer.digest.to_string(), format!("{image}: {why}"));
                self.events.record(kind, &text, &[("reference", image), ("layer", &digest)]);
            }
            None => self.events.record(kind, &format!("{key}: {why}"), &[("snapshot", key)]),
        }
    }

    fn unpacked(&self, layer: &Layer, namespace: &str) {
        self.attachments.layer_settled(layer.digest, Some(namespace));
    }

    fn mount<'a>(&'a self, stack: &'a Stack, target: &'a Path) -> Answer<'a, String, MountError> {
        Box::pin(self.show(stack, target))
    }

    fn unmount<'a>(&'a self, target: &'a Path) -> Answer<'a, (), MountError> {
        Box::pin(self.hide(target))
    }

    fn figures(&self, target: &Path) -> Option<Figures> {
        let done = self.attachments.done_at(target)?;
        let (read_bytes, fetched_bytes) = (done.read_bytes, done.fetched_bytes);
        Some(Figures { device: done.device, read_bytes, fetched_bytes, waited: done.waited })
    }
}

fn late(reference: &str, deadline: Duration) -> String {
    format!("the registry of {reference} gave no answer within {deadline:?}")
}

fn unknown(error: Unknown) -> MountError {
    let Unknown { reason, is_transient } = error;
    if is_transient { MountError::Transient { reason } } else { MountError::Permanent { reason } }
}

/// Why nothing was shown, as containerd is told.
fn not_shown(error: AttachError) -> MountError {
    let reason = error.to_string();
    match NodeError::from(error) {
        NodeError::Unavailable(_)
        | NodeError::Deadline(_)
        | NodeError::Stopping(_)
        | NodeError::Denied(_)
        | NodeError::NoRoom(_) => MountError::Transient { reason },
        NodeError::Conflict(_) => MountError::Busy { reason },
        _ => MountError::Permanent { reason },
    }
}

/// Why something is still shown, as containerd is told.
fn not_hidden(error: AttachError) -> MountError {
    let reason = error.to_string();
    match NodeError::from(error) {
        NodeError::Conflict(_) => MountError::Busy { reason },
        NodeError::Stopping(_) => MountError::Transient { reason },
        _ => MountError::Permanent { reason },
    }
}

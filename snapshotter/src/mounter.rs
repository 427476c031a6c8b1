//! What the snapshotter asks of whoever makes devices: whether a layer can be read on demand, to show it, to take it away.

use std::{fmt::Debug, future::Future, path::Path, pin::Pin, time::Duration};

use penstock_blob::Digest;
use serde::{Deserialize, Serialize};

/// What a call of a [`Mounter`] answers, when it does.
pub type Answer<'a, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

/// Makes devices of layers and mounts them. Implemented by the agent over its table of attachments.
///
/// Every call may be made again after it was answered or dropped, in any order, and by a process that is not the one which
/// made the first: each is about what there is in the end.
pub trait Mounter: Debug + Send + Sync + 'static {
    /// Whether a layer can be read on demand. May resolve the image's manifest, a few small requests; never fetches a layer.
    ///
    /// An error: it cannot be told what the layer is. The snapshotter then has it unpacked, as with [`Offer::Eager`], but looks at what comes of that.
    fn offer<'a>(&'a self, layer: &'a Layer) -> Answer<'a, Offer, MountError>;

    /// Told of each layer of an image that is not read on demand. Never blocks.
    fn declined(&self, declined: Declined<'_>);

    /// Told of each layer of an image that containerd has unpacked and committed, as it was asked about before; `namespace` is containerd's. At this moment
    /// the layer's blob is in its content store. Never blocks.
    fn unpacked(&self, layer: &Layer, namespace: &str);

    /// Shows `stack`, read-only, at the directory `target`, which exists. It is shown there already: success.
    ///
    /// After the answer it outlives this process, until [`Mounter::unmount`] or a reboot. Answers the device's id.
    fn mount<'a>(&'a self, stack: &'a Stack, target: &'a Path) -> Answer<'a, String, MountError>;

    /// Undoes [`Mounter::mount`] at `target`. Nothing is there: success. Somebody uses it: [`MountError::Busy`], and it stays.
    fn unmount<'a>(&'a self, target: &'a Path) -> Answer<'a, (), MountError>;

    /// What the device that is shown at `target` has done so far; none when there is no device. Never blocks.
    fn figures(&self, target: &Path) -> Option<Figures>;
}

/// One layer, as containerd's labels describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The image that is being pulled, as its user wrote it.
    pub reference: String,
    /// The manifest for this platform, where containerd says which.
    pub manifest: Option<Digest>,
    /// The layer's blob.
    pub digest: Digest,
    /// How many layers of the image lie below it.
    pub depth: usize,
    /// The chain ID of this layer and those below it (OCI image specification, "Layer ChainID").
    pub chain: Digest,
    /// How it is wished to be read, as the label [`PREFER`](crate::PREFER) has it.
    pub prefer: Option<String>,
}

/// Whether a layer can be read on demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// It can.
    Lazy {
        /// What the device will show.
        shape: Shape,
        /// What to hand to [`Mounter::mount`]; kept in the snapshot's record.
        stack: Stack,
        /// For people: `OverlayBD, 7 layers`.
        how: String,
    },
    /// It cannot, and is a layer as others unpack it: containerd is to fetch and unpack it.
    Eager {
        /// For people: why not.
        why: String,
    },
    /// It cannot, and must not be unpacked: it is a disk, of which nothing would be left.
    Refused {
        /// For people: why not, and what to do.
        why: String,
        /// Whether another try may help.
        is_transient: bool,
    },
}

/// A layer that is not read on demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declined<'a> {
    /// containerd's key of the snapshot.
    pub key: &'a str,
    /// The layer, if the labels say which.
    pub layer: Option<&'a Layer>,
    /// For people: why not.
    pub why: &'a str,
    /// Whether it is not even unpacked, so that the pull fails.
    pub is_refused: bool,
}

/// What a device shows. Written into records: names are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// The layer and all that are below it, merged: nothing below is needed as a lower directory.
    Merged,
    /// The layer alone: those below it are further lower directories.
    Single,
}

/// Which layers of which image a device shows. Written into records: names are part of the format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stack {
    /// The image, as its user wrote it.
    pub reference: String,
    /// Its manifest.
    pub manifest: Digest,
    /// The blobs, lowest first: for [`Shape::Merged`] from the image's first on, for [`Shape::Single`] exactly one.
    pub layers: Vec<Digest>,
    /// Which layer of the manifest the first of `layers` is, from 0.
    pub first: usize,
}

/// What a device has done since it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// The device's id.
    pub device: String,
    /// Bytes that were read from it.
    pub read_bytes: u64,
    /// Bytes that were fetched from registries for it.
    pub fetched_bytes: u64,
    /// How long its readers waited for registries, summed.
    pub waited: Duration,
}

/// Why a call of a [`Mounter`] failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// Somebody uses what is shown there.
    #[error("it is in use: {reason}")]
    Busy {
        /// By what, or what the kernel says.
        reason: String,
    },
    /// Another try may help: a registry does not answer, a device could not be made for now.
    #[error("{reason}; another try may help")]
    Transient {
        /// What is in the way.
        reason: String,
    },
    /// Another try will not help before something is changed.
    #[error("{reason}")]
    Permanent {
        /// What is wrong, and what to do.
        reason: String,
    },
}

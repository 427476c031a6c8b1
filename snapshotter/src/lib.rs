//! containerd's `Snapshots` service, for images that are read on demand and for those that are not.
//!
//! containerd asks a *snapshotter* for the file systems of its containers. This one answers as overlayfs would, except that a layer
//! which a [`Mounter`] can show without fetching it is committed at once, so that containerd neither fetches nor unpacks it.
//!
//! # Contract
//!
//! What containerd was told is committed can be mounted again after any restart of this process, of containerd or of the node.
//!
//! Nothing here knows of registries, devices or formats: it decides names, parents and directories, and asks the [`Mounter`].

pub mod mounter;

pub use mounter::{Answer, Figures, Layer, MountError, Mounter, Offer, Shape, Stack};

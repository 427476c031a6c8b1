//! containerd's `Snapshots` service, for images that are read on demand and for those that are not.
//!
//! containerd asks a *snapshotter* for the file systems of its containers. This one answers as overlayfs would, except that a layer
//! which a [`Mounter`] can show without fetching it is committed at once, so that containerd neither fetches nor unpacks it.
//!
//! # Contract
//!
//! 1. What containerd was told is committed can be mounted again after any restart of this process, of containerd or of the node: records are
//!    durable before the answer, in sled and beside each snapshot, and either rebuilds from the other.
//! 2. A call may be given up by its client at any point. What it began runs to its end; the same call again gets the answer.
//! 3. What is removed is gone from containerd's sight at once and from disk after the next `Cleanup` at the latest, whatever crashed between.
//! 4. `Stat` and `List` wait for nothing; `Usage` of what is committed neither.
//! 5. No path comes from a name, label or reference: directories have numbers.
//!
//! # Layout
//!
//! `snapshotter` decides what calls do; `table` holds all records in memory; `keeper` is the one thread that writes them, to `db` (sled)
//! and through `dirs`; `recover` puts both together at the start; `lowers` decides what is mounted; `service` speaks gRPC.
//!
//! Beside the service stand two other ways to and from containerd: [`images`] forwards its image service and hears the credentials of pulls,
//! [`content`] writes images into its content store. Neither knows of the snapshots.
//!
//! Nothing here knows of registries, devices or formats: it decides names, parents and directories, and asks the [`Mounter`].

mod claims;
pub mod content;
mod db;
mod dirs;
mod error;
mod filter;
mod idmap;
pub mod images;
mod keeper;
mod labels;
mod lowers;
mod metrics;
pub mod mounter;
mod proto;
mod record;
mod recover;
mod service;
mod snapshotter;
mod table;
mod usage;

pub use error::{OpenError, SnapshotError};
pub use filter::{FilterError, Filters};
pub use labels::PREFER;
pub use mounter::{Answer, Declined, Figures, Layer, MountError, Mounter, Offer, Shape, Stack};
pub use record::{Kind, Labels, Usage};
pub use recover::{Lost, Repair};
pub use service::ServeError;
pub use snapshotter::{Config, Shown, Snapshotter, Source};

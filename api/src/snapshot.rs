//! containerd's snapshots on this node: what they are made of, and their routes.

use std::path::PathBuf;

use axum::{Json, extract::State};
use penstock_blob::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Problem, Timestamp,
    routes::{Result, Shared},
};

/// The most snapshots in one answer: far more than the images of a node have layers. They are sorted by name; later ones are left out.
pub const SNAPSHOTS_LISTED: usize = 10_000;

/// One snapshot of containerd's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// The key or name by which containerd knows it.
    #[schema(example = "k8s.io/12/sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")]
    pub name: String,
    /// What it is to containerd.
    pub kind: SnapshotKind,
    /// The snapshot that it is built on, if any.
    pub parent: Option<String>,
    /// When it was prepared; of a committed one, when it was committed.
    pub created_at: Timestamp,
    /// Where its files are, or are shown.
    #[schema(value_type = String)]
    pub directory: PathBuf,
    /// What it takes on the disk, its parents not counted; absent while it is active.
    pub usage_bytes: Option<u64>,
    /// Whether its files are read on demand.
    pub lazy: bool,
    /// How it is read on demand, or why it is not, in words; absent for one that nobody asked to be lazy.
    #[schema(example = "OverlayBD, 7 layers")]
    pub detail: Option<String>,
    /// The image that it is a layer of, as it was pulled; absent unless it is lazy.
    pub reference: Option<String>,
    /// The image's manifest.
    #[schema(value_type = Option<String>)]
    pub manifest: Option<Digest>,
    /// How many layers its device shows.
    pub layers: Option<usize>,
    /// Whether its device shows it merged with all layers below.
    pub merged: Option<bool>,
    /// Its device; absent unless it is lazy and a container has needed it.
    pub device: Option<SnapshotDevice>,
}

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// Read-only, of a parent.
    View,
    /// Written by a container, or unpacked into.
    Active,
    /// Done: others are built on it.
    Committed,
}

/// The device of a snapshot, and what it has done since the agent started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotDevice {
    /// The device's name on this node, as used in `/v1/devices/{id}`.
    pub id: String,
    /// Bytes that containers read from it.
    pub bytes_read: u64,
    /// Bytes fetched from registries for its layers.
    pub bytes_fetched: u64,
    /// How long reads waited for bytes that were not on this node, in milliseconds; reads that wait together count each.
    pub waited_ms: u64,
}

/// What a repair of the snapshots' metadata found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct SnapshotsRepaired {
    /// How many snapshots there are.
    pub snapshots: usize,
    /// Why the metadata was built anew when the agent started, if it was.
    pub rebuilt: Option<String>,
    /// Snapshots whose record was written again.
    pub rewritten: Vec<String>,
    /// Directories of no snapshot that were removed.
    pub orphans_removed: usize,
    /// What is lost, and what to do about it.
    pub lost: Vec<LostSnapshot>,
}

/// A snapshot that is lost or damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LostSnapshot {
    /// The number of its directory.
    pub number: u64,
    /// Its name, where that is known.
    pub name: Option<String>,
    /// What is wrong with it.
    pub why: String,
    /// What to do.
    pub advice: String,
}

/// containerd's snapshots on this node, sorted by name: which are read on demand, how or why not, and what their devices have done.
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", responses(
    (status = 200, body = Vec<Snapshot>, description = "The snapshots"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "The agent does not serve containerd"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(crate) async fn snapshots(State(node): State<Shared>) -> Result<Json<Vec<Snapshot>>> {
    Ok(Json(node.snapshots().await?))
}

/// Compares every snapshot's record with what is on the disk, writes records again that are missing there, removes directories that belong to
/// no snapshot, and says what is lost. Changes no snapshot; done again it finds the same.
#[utoipa::path(post, path = "/v1/snapshots/repair", tag = "snapshots", responses(
    (status = 200, body = SnapshotsRepaired, description = "What was found and done"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "The agent does not serve containerd"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(crate) async fn repair(State(node): State<Shared>) -> Result<Json<SnapshotsRepaired>> {
    Ok(Json(node.repair_snapshots().await?))
}

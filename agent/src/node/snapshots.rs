//! containerd's snapshots, between the snapshotter's types and the admin API's.

use std::{sync::Arc, time::SystemTime};

use penstock_api::{self as api, NodeError, Timestamp};
use penstock_snapshotter::{Figures, Kind, Lost, Repair, Shape, Shown, Snapshotter, Source};

/// The snapshotter, where there is one.
pub(super) fn served(snapshotter: Option<&Arc<Snapshotter>>) -> Result<&Arc<Snapshotter>, NodeError> {
    snapshotter.ok_or_else(|| {
        NodeError::Conflict(
            "this agent does not serve containerd; set snapshotter.enable = true, and restart it".to_owned(),
        )
    })
}

/// All snapshots, the first ones by name if there are too many.
pub(super) fn list(snapshotter: &Snapshotter) -> Vec<api::Snapshot> {
    snapshotter.snapshots().into_iter().take(api::SNAPSHOTS_LISTED).map(snapshot).collect()
}

/// Compares what is known of the snapshots with what is on the disk.
pub(super) async fn repair(snapshotter: &Arc<Snapshotter>) -> Result<api::SnapshotsRepaired, NodeError> {
    let report = snapshotter.repair().await.map_err(|error| {
        let text = error.to_string();
        if error.is_transient() { NodeError::Unavailable(text) } else { NodeError::Internal(text) }
    })?;
    Ok(repaired(report))
}

fn snapshot(shown: Shown) -> api::Snapshot {
    let usage = shown.usage;
    let mut snapshot = api::Snapshot {
        name: shown.name,
        kind: match shown.kind {
            Kind::View => api::SnapshotKind::View,
            Kind::Active => api::SnapshotKind::Active,
            Kind::Committed => api::SnapshotKind::Committed,
        },
        parent: shown.parent,
        created_at: time(shown.created),
        directory: shown.directory,
        usage_bytes: usage.map(|usage| usage.size_bytes),
        lazy: false,
        detail: None,
        reference: None,
        manifest: None,
        layers: None,
        merged: None,
        device: None,
    };
    match shown.source {
        Source::Directory { why } => snapshot.detail = why,
        Source::Lazy { shape, reference, manifest, layers, how, figures } => {
            snapshot.lazy = true;
            snapshot.detail = Some(how);
            snapshot.reference = Some(reference);
            snapshot.manifest = Some(manifest);
            snapshot.layers = Some(layers);
            snapshot.merged = Some(shape == Shape::Merged);
            snapshot.device = figures.map(device);
        }
    }
    snapshot
}

fn device(figures: Figures) -> api::SnapshotDevice {
    api::SnapshotDevice {
        id: figures.device,
        bytes_read: figures.read_bytes,
        bytes_fetched: figures.fetched_bytes,
        waited_ms: u64::try_from(figures.waited.as_millis()).unwrap_or(u64::MAX),
    }
}

fn repaired(report: Repair) -> api::SnapshotsRepaired {
    let lost =
        |lost: Lost| api::LostSnapshot { number: lost.number, name: lost.name, why: lost.why, advice: lost.advice };
    api::SnapshotsRepaired {
        snapshots: report.snapshots,
        rebuilt: report.rebuilt,
        rewritten: report.rewritten,
        orphans_removed: report.orphans,
        lost: report.lost.into_iter().map(lost).collect(),
    }
}

fn time(clock: SystemTime) -> Timestamp {
    Timestamp::try_from(clock).unwrap_or(Timestamp::MIN)
}

//! containerd's snapshots, between the snapshotter's types and the admin API's.

use std::{collections::BTreeMap, iter, sync::Arc, time::SystemTime};

use penstock_api::{self as api, NodeError, Timestamp};
use penstock_snapshotter::{Figures, Kind, Lost, Repair, Shape, Shown, Snapshotter, Source};

/// The most snapshots named as users of one device: what fits on a few lines.
const USERS: usize = 16;

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

/// The snapshots of containers and views that stand on the device with this name, the first ones by name.
pub(super) fn users(snapshotter: &Snapshotter, device: &str) -> Vec<String> {
    let all: BTreeMap<String, Shown> =
        snapshotter.snapshots().into_iter().map(|shown| (shown.name.clone(), shown)).collect();
    let shows = |shown: &Shown| matches!(&shown.source, Source::Lazy { figures: Some(figures), .. } if figures.device == device);
    let stands = |top: &&Shown| {
        let parent = |shown: &&Shown| shown.parent.as_ref().and_then(|parent| all.get(parent));
        // A chain is no longer than there are snapshots.
        iter::successors(Some(*top), parent).take(all.len()).any(shows)
    };
    let tops = all.values().filter(|shown| shown.kind != Kind::Committed);
    tops.filter(stands).take(USERS).map(|shown| shown.name.clone()).collect()
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

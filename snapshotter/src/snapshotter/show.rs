//! Mounts: devices of lazy lowers are shown, and containerd is told what to mount.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    claims::Need,
    error::SnapshotError,
    idmap,
    labels::IdMap,
    lowers::{Plan, lowers},
    mounter::Stack,
    proto::types::Mount,
    record::{Content, Kind, Record},
};

use super::{Snapshotter, named};

/// How long one device may take to be shown, or to be detached.
const SHOW_PATIENCE: Duration = Duration::from_secs(120);
/// How many devices of one chain are shown at once.
const SHOWN_AT_ONCE: usize = 8;

impl Snapshotter {
    /// How to mount an active snapshot or a view again.
    pub(crate) async fn mounts(self: &Arc<Self>, key: String) -> Result<Vec<Mount>, SnapshotError> {
        self.owned(move |me| async move {
            let _claim = me.names.claim(vec![named(&key, Need::Steady)]).await;
            let record = me.stat(&key)?;
            if record.kind == Kind::Committed {
                return Err(SnapshotError::precondition(format!(
                    "snapshot {key:?} is committed: a view of it can be mounted"
                )));
            }
            me.plan(&record).await
        })
        .await
    }

    /// How to mount a snapshot that is there.
    pub(super) async fn plan(&self, record: &Record) -> Result<Vec<Mount>, SnapshotError> {
        let chain = self.table.lock().chain(record.parent.as_deref())?;
        self.standing(vec![(record.number, record.name.clone())]).await?;
        self.plan_over(record, &chain).await
    }

    /// How to mount `record` over `chain`; everything that it needs below it is there afterwards.
    pub(super) async fn plan_over(&self, record: &Record, chain: &[Arc<Record>]) -> Result<Vec<Mount>, SnapshotError> {
        let needed = lowers(chain);
        let map = IdMap::of(&record.labels)?;
        let plan = Plan {
            kind: record.kind,
            upper: self.dirs.files(record.number),
            work: self.dirs.work(record.number),
            lowers: needed.iter().map(|lower| self.dirs.files(lower.number)).collect(),
            options: map.options(),
            index_off: self.index_off,
        };
        let mount = plan.mount()?;
        let directories = needed.iter().filter(|lower| !lower.is_lazy());
        self.standing(directories.map(|lower| (lower.number, lower.name.clone())).collect()).await?;
        let shows: Vec<_> = needed.iter().cloned().map(|lower| async move { self.show(&lower).await }).collect();
        stream::iter(shows).buffer_unordered(SHOWN_AT_ONCE).try_collect::<Vec<()>>().await?;
        if map.is_some() {
            self.mappable(needed).await?;
        }
        Ok(vec![mount])
    }

    /// Whether the directories of these snapshots are still there.
    async fn standing(&self, snapshots: Vec<(u64, String)>) -> Result<(), SnapshotError> {
        let gone = self.blocking("directories could not be looked at", move |dirs| {
            Ok(snapshots.into_iter().find(|(number, _)| !dirs.exists(*number)))
        });
        match gone.await? {
            None => Ok(()),
            Some((_, name)) => Err(SnapshotError::precondition(format!(
                "the files of snapshot {name:?} are gone: `penstock snapshotter repair` says what can be done"
            ))),
        }
    }

    /// Has the device of a lazy snapshot shown on its directory.
    async fn show(&self, record: &Record) -> Result<(), SnapshotError> {
        let Content::Lazy { stack, .. } = &record.content else { return Ok(()) };
        let number = record.number;
        let _claim = self.names.claim(vec![(format!("show {number}"), Need::Alone)]).await;
        let files = self.dirs.files(number);
        // Only where nothing is shown: a look at a mounted device may have to wait for a registry.
        self.blocking("a layer's directory could not be made", move |dirs| dirs.make_target(number)).await?;
        let device = self.mount_device(stack, &files).await?;
        tracing::debug!(name = record.name, device, "layer is shown");
        Ok(())
    }

    async fn mount_device(&self, stack: &Stack, files: &Path) -> Result<String, SnapshotError> {
        match tokio::time::timeout(SHOW_PATIENCE, self.mounter.mount(stack, files)).await {
            Ok(shown) => Ok(shown?),
            Err(_) => Err(SnapshotError::unavailable(format!(
                "the device of a layer of {} was not ready within {SHOW_PATIENCE:?}; another try may help",
                stack.reference
            ))),
        }
    }

    /// Has what is shown on the directory of a snapshot taken away.
    pub(super) async fn hide(&self, number: u64) -> Result<(), SnapshotError> {
        let files = self.dirs.files(number);
        match tokio::time::timeout(SHOW_PATIENCE, self.mounter.unmount(&files)).await {
            Ok(hidden) => Ok(hidden?),
            Err(_) => Err(SnapshotError::unavailable(format!(
                "the device of a layer was not detached within {SHOW_PATIENCE:?}; another try may help"
            ))),
        }
    }

    /// Whether the kernel can map the ids of these lowers. Of ordinary directories the kernel says so itself when containerd mounts.
    async fn mappable(&self, lowers: &[Arc<Record>]) -> Result<(), SnapshotError> {
        let lazy = lowers.iter().filter(|lower| lower.is_lazy());
        let lazy: Vec<_> = lazy.map(|lower| (lower.name.clone(), self.dirs.files(lower.number))).collect();
        let refused = self.blocking("file systems could not be looked at", move |_| {
            idmap::kernel().map_or_else(
                |reason| Ok(Some(reason)),
                |kernel| {
                    let mut reasons = lazy.iter().map(|(name, files)| idmap::refusal(kernel, name, files));
                    reasons.find_map(Result::transpose).transpose()
                },
            )
        });
        refused.await?.map_or(Ok(()), |reason| Err(SnapshotError::precondition(reason)))
    }
}

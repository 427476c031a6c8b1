//! Opening: the root is locked, the metadata read or rebuilt, and what was lost is told.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{
    claims::Names,
    db::DbError,
    dirs::{Dirs, Found},
    error::OpenError,
    keeper::{Change, Keeper},
    metrics::Metrics,
    mounter::Mounter,
    recover::{Recovered, recover},
    table::Table,
};

use super::{MAX_CHANGES, MAX_SUMS, Snapshotter};

/// There where overlayfs knows `index`.
const OVERLAY_INDEX: &str = "/sys/module/overlay/parameters/index";

/// What a snapshotter is opened with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where everything is kept. containerd 1.6 looks for a snapshotter's disk usage in
    /// `/var/lib/containerd/io.containerd.snapshotter.v1.<name>`, and nowhere else.
    pub root: PathBuf,
}

impl Snapshotter {
    /// Opens, or creates, the snapshots below `config.root`. Metadata that cannot be read is set aside and rebuilt from the records beside the snapshots;
    /// [`Snapshotter::repair`] says what that found. Blocks, for as long as the file system needs to write what is dirty.
    ///
    /// # Errors
    ///
    /// Another process has the root open, or the root cannot be used.
    pub fn open(config: Config, mounter: Arc<dyn Mounter>, registry: &mut Registry) -> Result<Arc<Self>, OpenError> {
        let root = config.root;
        let failed = |source| OpenError::Io { path: root.clone(), source };
        let dirs = Dirs::create(&root).map_err(failed)?;
        let lock = dirs.lock().map_err(failed)?.ok_or_else(|| OpenError::InUse { root: root.clone() })?;
        let found = dirs.scan().map_err(failed)?;
        let highest = dirs.numbers().map_err(failed)?.into_iter().max();
        let (keeper, recovered) = metadata(&root, &dirs, found)?;
        let metrics = Metrics::register(registry);
        let mut table = Table::default();
        let highest = recovered.records.iter().map(|record| record.number).max().max(highest);
        for record in recovered.records {
            metrics.came(&record);
            table.insert(record);
        }
        Ok(Arc::new(Self {
            dirs,
            table: Mutex::new(table),
            keeper,
            mounter,
            names: Arc::new(Names::default()),
            tasks: TaskTracker::new(),
            permits: Arc::new(Semaphore::new(MAX_CHANGES)),
            sums: Semaphore::new(MAX_SUMS),
            summed: Mutex::default(),
            next_number: AtomicU64::new(highest.map_or(1, |highest| highest.saturating_add(1))),
            unanswered: Mutex::new(HashSet::from_iter(recovered.unanswered)),
            index_off: Path::new(OVERLAY_INDEX).exists(),
            metrics,
            started: recovered.report,
            _lock: lock,
        }))
    }
}

/// Opens the metadata and settles what is true. What cannot be read is set aside, once.
fn metadata(root: &Path, dirs: &Dirs, found: Vec<Found>) -> Result<(Keeper, Recovered), OpenError> {
    let least = found.iter().filter_map(|found| Some(found.record.as_ref()?.as_ref().ok()?.generation)).max();
    let open = || Keeper::open(dirs.metadata(), dirs.clone(), least.unwrap_or(0));
    let broken = |error: DbError| OpenError::Metadata { root: root.to_owned(), reason: error.0 };
    let (keeper, loaded, reason) = match open() {
        Ok((keeper, loaded)) => (keeper, loaded, None),
        Err(error) => {
            let aside = dirs.set_metadata_aside();
            aside.map_err(|source| broken(DbError(format!("{error}, and it cannot be set aside: {source}"))))?;
            let (keeper, loaded) = open().map_err(broken)?;
            (keeper, loaded, Some(error.0))
        }
    };
    let mut recovered = recover(loaded, found);
    recovered.report.rebuilt = reason.or(recovered.report.rebuilt);
    let puts = recovered.rewrite.drain(..).map(|record| Change::Put(Box::new(record)));
    let changes: Vec<Change> = puts.chain(recovered.forget.drain(..).map(Change::Delete)).collect();
    keeper.settle(changes).map_err(broken)?;
    if let Some(reason) = &recovered.report.rebuilt {
        tracing::warn!(reason, snapshots = recovered.report.snapshots, "metadata of snapshots rebuilt");
    }
    for lost in &recovered.report.lost {
        tracing::warn!(
            number = lost.number,
            name = lost.name,
            why = lost.why,
            advice = lost.advice,
            "snapshot damaged"
        );
    }
    Ok((keeper, recovered))
}

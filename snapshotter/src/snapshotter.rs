//! The snapshotter: what each call of containerd does. Calls that change something run on when their client is gone.

mod commit;
mod hollow;
mod lazy;
mod open;
mod prepare;
mod remove;
mod show;
mod tidy;
mod update;

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{
    claims::{Names, Need},
    dirs::{Dirs, RootLock},
    error::SnapshotError,
    filter::Filters,
    keeper::{Change, Keeper},
    metrics::Metrics,
    mounter::Mounter,
    record::{Record, Usage},
    recover::Repair,
    table::Table,
};

pub(crate) use commit::Commit;
pub use open::Config;
pub(crate) use prepare::New;
pub use tidy::{Shown, Source};

/// Most calls that change something at once; further ones wait before they begin.
const MAX_CHANGES: usize = 256;
/// Most directories that are summed at once.
const MAX_SUMS: usize = 2;
/// Most keys remembered whose answer was not heard.
const MAX_UNANSWERED: usize = 1024;

/// containerd's snapshots on this node.
#[derive(Debug)]
pub struct Snapshotter {
    dirs: Dirs,
    table: Mutex<Table>,
    keeper: Keeper,
    mounter: Arc<dyn Mounter>,
    names: Arc<Names>,
    tasks: TaskTracker,
    permits: Arc<Semaphore>,
    sums: Semaphore,
    /// The last sum of each active snapshot, with when it was taken and how long that took.
    summed: Mutex<HashMap<u64, (Usage, Instant, std::time::Duration)>>,
    next_number: AtomicU64,
    /// Keys of active snapshots and views whose maker was gone before the answer: the same call again gets the answer.
    unanswered: Mutex<HashSet<String>>,
    /// Whether this kernel's overlayfs knows `index=off`.
    index_off: bool,
    pub(crate) metrics: Metrics,
    /// What the start found.
    started: Repair,
    /// Held until the keeper is gone: fields are dropped in this order.
    _lock: RootLock,
}

/// A snapshot's name, among the names that are claimed.
fn named(name: &str, need: Need) -> (String, Need) {
    (format!("name {name}"), need)
}

/// A directory's number that somebody works on while no record speaks of it.
struct Begun<'a> {
    snapshotter: &'a Snapshotter,
    number: u64,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.snapshotter.table.lock().end(self.number);
    }
}

impl Snapshotter {
    /// Runs `work` to its end, whether or not the caller waits for it.
    async fn owned<T, F, W>(self: &Arc<Self>, work: W) -> Result<T, SnapshotError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SnapshotError>> + Send,
        W: FnOnce(Arc<Self>) -> F + Send + 'static,
        F: 'static,
    {
        let closed = |_| SnapshotError::unavailable("the snapshotter is closed");
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(closed)?;
        let me = Arc::clone(self);
        let task = self.tasks.spawn(async move {
            let _permit = permit;
            work(me).await
        });
        task.await.map_err(|e| SnapshotError::internal("the work was cut off", &e))?
    }

    /// Runs file work where it may block.
    async fn blocking<T, W>(&self, what: &'static str, work: W) -> Result<T, SnapshotError>
    where
        T: Send + 'static,
        W: FnOnce(&Dirs) -> io::Result<T> + Send + 'static,
    {
        let dirs = self.dirs.clone();
        let done = self.tasks.spawn_blocking(move || work(&dirs)).await;
        let done = done.map_err(|e| SnapshotError::internal(what, &e))?;
        done.map_err(|e| SnapshotError::internal(what, &e))
    }

    /// A number that no directory has.
    fn begin(&self) -> Begun<'_> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.table.lock().begin(number);
        Begun { snapshotter: self, number }
    }

    /// Makes a record durable, then visible, in place of the one called `before`.
    async fn put(&self, record: Record, before: Option<&str>) -> Result<(), SnapshotError> {
        self.keeper.commit(Change::Put(Box::new(record.clone()))).await?;
        let mut table = self.table.lock();
        let old = before.and_then(|name| table.remove(name));
        self.metrics.came(&record);
        let replaced = table.insert(record);
        for gone in [old, replaced].into_iter().flatten() {
            self.metrics.went(&gone);
        }
        Ok(())
    }

    /// What there is of a snapshot, for containerd.
    pub(crate) fn stat(&self, name: &str) -> Result<Arc<Record>, SnapshotError> {
        self.table.lock().find(name)
    }

    /// At most `limit` snapshots that pass `filters`, beyond `after` in the order of names, and where to go on.
    pub(crate) fn page(
        &self,
        after: Option<&str>,
        filters: &Filters,
        limit: usize,
    ) -> (Vec<Arc<Record>>, Option<String>) {
        self.table.lock().page(after, filters, limit)
    }

    /// Waits until all work has ended and the metadata is closed. Calls after it are refused. May be called again.
    pub async fn close(self: &Arc<Self>) {
        self.permits.close();
        self.tasks.close();
        self.tasks.wait().await;
        let me = Arc::clone(self);
        let closed = tokio::task::spawn_blocking(move || me.keeper.close()).await;
        if !closed.unwrap_or(false) {
            tracing::debug!("the metadata was closed before, or does not answer");
        }
    }
}

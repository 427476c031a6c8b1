//! Cleanup, repair, and what there is to see.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use penstock_blob::Digest;

use crate::{
    claims::Need,
    error::SnapshotError,
    keeper::Change,
    mounter::{Figures, Shape},
    record::{Content, Kind, Labels, Record, Usage, Written},
    recover::{Lost, Repair, parentless, without_files},
};

use super::Snapshotter;

/// A snapshot, for people.
#[derive(Debug, Clone)]
pub struct Shown {
    /// containerd's key or name: `<namespace>/<sequence>/<key>`, or `penstock/<number>/<chain ID>` of a lazy layer.
    pub name: String,
    /// The number of its directory.
    pub number: u64,
    /// What it is to containerd.
    pub kind: Kind,
    /// What it is built on.
    pub parent: Option<String>,
    /// containerd's labels.
    pub labels: Labels,
    /// When it was prepared; of a committed one, when it was committed.
    pub created: SystemTime,
    /// When its labels changed last.
    pub updated: SystemTime,
    /// What it takes on disk; none while it is active.
    pub usage: Option<Usage>,
    /// Its directory `fs`, where a device of it is mounted.
    pub directory: PathBuf,
    /// Where its files come from.
    pub source: Source,
}

/// Where a snapshot's files come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// From a directory.
    Directory {
        /// For a layer of an image that was asked for lazily: why it is not.
        why: Option<String>,
    },
    /// From a device, on demand.
    Lazy {
        /// What the device shows.
        shape: Shape,
        /// The image, as its user wrote it.
        reference: String,
        /// Its manifest.
        manifest: Digest,
        /// How many layers the device shows.
        layers: usize,
        /// For people: `OverlayBD, 7 layers`.
        how: String,
        /// What the device has done; none while nobody has needed it.
        figures: Option<Figures>,
    },
}

impl Snapshotter {
    /// Every snapshot, in the order of names.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Shown> {
        let all: Vec<Arc<Record>> = self.table.lock().all().cloned().collect();
        all.iter().map(|record| self.shown(record)).collect()
    }

    fn shown(&self, record: &Record) -> Shown {
        let directory = self.dirs.files(record.number);
        let source = match &record.content {
            Content::Directory { why } => Source::Directory { why: why.clone() },
            Content::Lazy { shape, stack, how } => Source::Lazy {
                shape: *shape,
                reference: stack.reference.clone(),
                manifest: stack.manifest,
                layers: stack.layers.len(),
                how: how.clone(),
                figures: self.mounter.figures(&directory),
            },
        };
        Shown {
            name: record.name.clone(),
            number: record.number,
            kind: record.kind,
            parent: record.parent.clone(),
            labels: record.labels.clone(),
            created: record.created.to_time(),
            updated: record.updated.to_time(),
            usage: record.usage,
            directory,
            source,
        }
    }

    /// Deletes directories that no record speaks of, with the devices that are still shown on them, and answers how many. One that is in use is left.
    pub(crate) async fn cleanup(self: &Arc<Self>) -> Result<usize, SnapshotError> {
        self.owned(|me| async move { me.collect().await }).await
    }

    /// Begins a [`Self::cleanup`] that nobody waits for.
    pub(crate) fn begin_collect(self: &Arc<Self>) {
        let me = Arc::clone(self);
        self.tasks.spawn(async move {
            match me.collect().await {
                Ok(deleted) => tracing::debug!(deleted, "directories of no snapshot"),
                Err(error) => tracing::warn!(%error, "directories of no snapshot were left"),
            }
        });
    }

    async fn collect(&self) -> Result<usize, SnapshotError> {
        // Who asks while another one is at it is answered when everything is done.
        let _alone = self.names.claim(vec![("collect".to_owned(), Need::Alone)]).await;
        let numbers = self.blocking("snapshots could not be listed", |dirs| dirs.numbers()).await?;
        let mut deleted = 0;
        for number in numbers {
            {
                let mut table = self.table.lock();
                if !table.is_orphan(number) {
                    continue;
                }
                table.begin(number);
            }
            let _begun = super::Begun { snapshotter: self, number };
            let outcome = match self.hide(number).await {
                Ok(()) => self.blocking("it could not be deleted", move |dirs| dirs.remove(number)).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => deleted += 1,
                Err(error) => tracing::warn!(number, %error, "left of a removed snapshot; `Cleanup` tries again"),
            }
        }
        Ok(deleted)
    }

    /// Compares every record with what lies on disk, writes anew what is missing beside a snapshot, deletes what no record speaks of, and says
    /// what is lost and what to do. Includes what the start found.
    ///
    /// # Errors
    ///
    /// The disk cannot be read, or the metadata not written.
    pub async fn repair(self: &Arc<Self>) -> Result<Repair, SnapshotError> {
        self.owned(|me| async move { me.repair_owned().await }).await
    }

    async fn repair_owned(&self) -> Result<Repair, SnapshotError> {
        let records: Vec<Arc<Record>> = self.table.lock().all().cloned().collect();
        let mut report = Repair { rebuilt: self.started.rebuilt.clone(), ..Repair::default() };
        report.rewritten.clone_from(&self.started.rewritten);
        report.lost = self.started.lost.iter().filter(|lost| lost.name.is_none()).cloned().collect();
        for record in &records {
            report.lost.extend(self.repair_one(record, &mut report.rewritten).await?);
        }
        report.lost.extend(parentless(records.iter().map(Arc::as_ref).collect::<Vec<_>>()));
        report.orphans = self.collect().await?;
        report.snapshots = self.table.lock().all().count();
        Ok(report)
    }

    /// Looks at one snapshot. Answers that its directory is gone; writes its record again when that is.
    async fn repair_one(
        &self,
        record: &Arc<Record>,
        rewritten: &mut Vec<String>,
    ) -> Result<Option<Lost>, SnapshotError> {
        let name = super::named(&record.name, Need::Alone);
        let _claim = self.names.claim(vec![name]).await;
        let Ok(record) = self.stat(&record.name) else { return Ok(None) };
        let (number, lazy) = (record.number, record.is_lazy());
        let found = self.blocking("a snapshot could not be looked at", move |dirs| {
            if lazy {
                dirs.make_target(number)?;
            }
            Ok((dirs.exists(number), dirs.read_record(number)?))
        });
        let (exists, beside) = found.await?;
        if !exists {
            return Ok(Some(without_files(&record)));
        }
        let same = |written: &Written| written.record == *record;
        if !beside.is_some_and(|beside| beside.is_ok_and(|written| same(&written))) {
            self.keeper.commit(Change::Put(Box::new(Record::clone(&record)))).await?;
            rewritten.push(record.name.clone());
        }
        Ok(None)
    }
}

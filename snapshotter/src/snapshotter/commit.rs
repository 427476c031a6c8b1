//! Commit: an active snapshot gets its name and never changes again.

use std::sync::Arc;

use crate::{
    claims::Need,
    error::SnapshotError,
    labels,
    record::{Kind, Labels, Record, Stamp},
    usage,
};

use super::{Snapshotter, named};

/// The only file in the tar around an OverlayBD layer (docs/formats/overlaybd.md).
const OVERLAYBD_FILE: &str = "overlaybd.commit";

/// What is to be committed, and as what.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) parent: Option<String>,
    pub(crate) labels: Labels,
}

/// containerd's namespace, with which its keys begin: `<namespace>/<number>/<key of the client>`.
fn namespace(key: &str) -> &str {
    key.split_once('/').map_or(key, |(namespace, _)| namespace)
}

impl Snapshotter {
    /// Commits an active snapshot. Its files are durable before the answer, and what it takes is known from then on.
    pub(crate) async fn commit(self: &Arc<Self>, commit: Commit) -> Result<(), SnapshotError> {
        if commit.name.is_empty() {
            return Err(SnapshotError::invalid("a committed snapshot needs a name"));
        }
        self.owned(move |me| async move { me.commit_owned(commit).await }).await
    }

    async fn commit_owned(&self, commit: Commit) -> Result<(), SnapshotError> {
        let mut names = vec![named(&commit.key, Need::Alone), named(&commit.name, Need::Alone)];
        names.extend(commit.parent.as_deref().map(|parent| named(parent, Need::Steady)));
        let _claim = self.names.claim(names).await;
        let active = self.committable(&commit)?;
        let number = active.number;
        let usage = self.blocking("what was written could not be made durable", move |dirs| {
            let files = dirs.files(number);
            // Containerd unpacked it without asking, as `ctr images pull` does, whose requests carry no labels.
            if files.join(OVERLAYBD_FILE).symlink_metadata().is_ok() {
                return Ok(None);
            }
            let is_empty = files.read_dir()?.next().is_none();
            dirs.sync_all()?;
            Ok(Some((usage::of(&files)?, is_empty)))
        });
        let (usage, now) = (usage.await?, Stamp::now());
        let (usage, is_empty) = usage.ok_or_else(|| {
            SnapshotError::precondition(
                "an OverlayBD layer was unpacked, which leaves a disk and no files: pull the image through CRI, or as \
                 docs/containerd.md says for other clients, so that it is read on demand",
            )
        })?;
        let parent = active.parent.clone().or(commit.parent);
        if is_empty {
            self.check_hollow(&active, parent.as_deref()).await?;
        }
        let record = Record {
            name: commit.name,
            kind: Kind::Committed,
            parent,
            labels: labels::kept(commit.labels)?,
            created: now,
            updated: now,
            usage: Some(usage),
            ..Record::clone(&active)
        };
        let depth = self.table.lock().chain(record.parent.as_deref())?.len();
        self.put(record, Some(&commit.key)).await?;
        self.forget_active(&commit.key, number);
        if let Some(Ok(layer)) = labels::layer(&active.labels, depth) {
            self.mounter.unpacked(&layer, namespace(&commit.key));
        }
        Ok(())
    }

    /// The active snapshot, when nothing stands in the way. A parent comes with the request where containerd prepared the layers of an image all at
    /// once, each without one.
    fn committable(&self, commit: &Commit) -> Result<Arc<Record>, SnapshotError> {
        let table = self.table.lock();
        if table.contains(&commit.name) {
            return Err(SnapshotError::exists(&commit.name));
        }
        let active = table.find(&commit.key)?;
        if active.kind != Kind::Active {
            return Err(SnapshotError::precondition(format!(
                "snapshot {:?} is not active but {}: only an active one is committed",
                commit.key,
                active.kind.as_str()
            )));
        }
        if let Some(parent) = &commit.parent {
            table.chain(Some(parent))?;
            if active.parent.as_ref().is_some_and(|before| before != parent) {
                return Err(SnapshotError::invalid(format!(
                    "snapshot {:?} was prepared over {:?} and cannot be committed over {parent:?}",
                    commit.key,
                    active.parent.as_deref().unwrap_or_default()
                )));
            }
        }
        Ok(active)
    }

    /// Forgets what is remembered of an active snapshot only.
    pub(super) fn forget_active(&self, key: &str, number: u64) {
        self.unanswered.lock().remove(key);
        self.summed.lock().remove(&number);
    }
}

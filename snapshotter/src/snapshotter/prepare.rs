//! Prepare and View: a new snapshot that containerd mounts.

use std::sync::Arc;

use crate::{
    claims::Need,
    dirs::Owner,
    error::SnapshotError,
    labels::{self, IdMap},
    proto::types::Mount,
    record::{Content, Kind, Labels, Record, Stamp},
};

use super::{MAX_UNANSWERED, Snapshotter, named};

/// What a new snapshot is to be.
#[derive(Debug, Clone)]
pub(crate) struct New {
    pub(crate) kind: Kind,
    pub(crate) key: String,
    pub(crate) parent: Option<String>,
    pub(crate) labels: Labels,
}

/// While this lives, nobody has heard the answer. Dropped with the caller's wait: remembered, so that the same call again is answered.
struct Waiting<'a> {
    snapshotter: &'a Snapshotter,
    key: Option<String>,
}

impl Waiting<'_> {
    /// The answer is on its way. One that says what was made is the last: nothing is remembered of earlier calls.
    fn answered(mut self, made: bool) {
        if let Some(key) = self.key.take().filter(|_| made) {
            self.snapshotter.unanswered.lock().remove(&key);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut unanswered = self.snapshotter.unanswered.lock();
        if let Some(key) = self.key.take()
            && unanswered.len() < MAX_UNANSWERED
        {
            unanswered.insert(key);
        }
    }
}

impl Snapshotter {
    /// Makes a new active snapshot or view and says how to mount it; or commits the layer it is meant for at once, when that can be
    /// read on demand, and says that it exists.
    pub(crate) async fn prepare(self: &Arc<Self>, mut new: New) -> Result<Vec<Mount>, SnapshotError> {
        if new.key.is_empty() {
            return Err(SnapshotError::invalid("a snapshot needs a key"));
        }
        new.labels = labels::kept(new.labels)?;
        let waiting = Waiting { snapshotter: self, key: Some(new.key.clone()) };
        let outcome = self.owned(move |me| async move { me.make(new).await }).await;
        waiting.answered(outcome.is_ok());
        outcome
    }

    async fn make(&self, new: New) -> Result<Vec<Mount>, SnapshotError> {
        let why = if new.kind == Kind::Active { self.lazily(&new).await? } else { None };
        let mut names = vec![named(&new.key, Need::Alone)];
        names.extend(new.parent.as_deref().map(|parent| named(parent, Need::Steady)));
        let _claim = self.names.claim(names).await;
        let chain = self.table.lock().chain(new.parent.as_deref())?;
        if let Ok(there) = self.stat(&new.key) {
            return if self.take_up(&there, &new) {
                self.plan(&there).await
            } else {
                Err(SnapshotError::exists(&new.key))
            };
        }
        let map = IdMap::of(&new.labels)?;
        let begun = self.begin();
        let now = Stamp::now();
        let record = Record {
            number: begun.number,
            name: new.key,
            kind: new.kind,
            parent: new.parent,
            labels: new.labels,
            created: now,
            updated: now,
            content: Content::Directory { why },
            usage: None,
        };
        // Before anything is made: what cannot be mounted is not prepared, and lowers are shown for their root's owner.
        let mounts = self.plan_over(&record, &chain).await?;
        let (number, above) = (begun.number, chain.first().map(|record| record.number));
        let active = record.kind == Kind::Active;
        self.blocking("the snapshot's directory could not be made", move |dirs| {
            let mut owner = match above {
                Some(above) => dirs.owner(above)?,
                None => Owner { mode: 0o755, uid: 0, gid: 0 },
            };
            let (uid, gid) = map.root();
            owner = Owner { uid: uid.unwrap_or(owner.uid), gid: gid.unwrap_or(owner.gid), ..owner };
            // What was made of it is an orphan, which the next `Cleanup` deletes.
            dirs.make(number, owner, active)
        })
        .await?;
        self.put(record, None).await?;
        Ok(mounts)
    }

    /// Whether `new` asks again for what was made for somebody who did not wait for the answer.
    fn take_up(&self, there: &Record, new: &New) -> bool {
        let same = there.kind == new.kind && there.parent == new.parent && there.labels == new.labels;
        same && self.unanswered.lock().remove(&new.key)
    }
}

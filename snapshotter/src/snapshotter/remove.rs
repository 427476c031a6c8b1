//! Remove: the device goes first, then the record, then the directory.
//!
//! A crash after the first leaves a snapshot whose device is shown again when it is needed; one after the second a directory that no record
//! speaks of, which the next start or `Cleanup` deletes. At no point is there a record without what it promises.

use std::sync::Arc;

use crate::{claims::Need, error::SnapshotError, keeper::Change};

use super::{Begun, Snapshotter, named};

impl Snapshotter {
    /// Removes a snapshot that has no children.
    pub(crate) async fn remove(self: &Arc<Self>, key: String) -> Result<(), SnapshotError> {
        self.owned(move |me| async move { me.remove_owned(&key).await }).await
    }

    async fn remove_owned(&self, key: &str) -> Result<(), SnapshotError> {
        let _claim = self.names.claim(vec![named(key, Need::Alone)]).await;
        let record = {
            let table = self.table.lock();
            let record = table.find(key)?;
            let children = table.children(key);
            if children > 0 {
                return Err(SnapshotError::precondition(format!(
                    "cannot remove snapshot {key:?}: {children} others are built on it; remove them first"
                )));
            }
            record
        };
        let number = record.number;
        if record.is_lazy() {
            let _show = self.names.claim(vec![(format!("show {number}"), Need::Alone)]).await;
            self.hide(number).await.map_err(|error| match error {
                SnapshotError::Precondition { reason } => {
                    SnapshotError::precondition(format!("cannot remove snapshot {key:?}: {reason}"))
                }
                other => other,
            })?;
        }
        self.keeper.commit(Change::Delete(number)).await?;
        {
            let mut table = self.table.lock();
            table.begin(number);
            table.remove(key);
        }
        let _begun = Begun { snapshotter: self, number };
        self.metrics.went(&record);
        self.forget_active(key, number);
        let deleted = self.blocking("its directory could not be deleted", move |dirs| dirs.remove(number)).await;
        if let Err(error) = deleted {
            tracing::warn!(number, name = key, %error, "left of a removed snapshot; `Cleanup` tries again");
        }
        Ok(())
    }
}

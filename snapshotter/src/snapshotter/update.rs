//! Update and Usage.

use std::{sync::Arc, time::Instant};

use crate::{
    claims::Need,
    error::SnapshotError,
    labels,
    record::{Kind, Labels, Record, Stamp, Usage},
    usage,
};

use super::{Snapshotter, named};

/// A sum that took this many times less than it is old is taken anew: sums of big snapshots take at most a tenth of the time.
const SUM_SHARE: u32 = 10;
/// A sum that took no longer than this is always taken anew, in milliseconds.
const QUICK_SUM_MS: u128 = 100;

impl Snapshotter {
    /// Changes labels: all of them, or those that `paths` name (`labels`, `labels.<key>`). Nothing else of a snapshot can be changed.
    pub(crate) async fn update(
        self: &Arc<Self>,
        name: String,
        to: Labels,
        paths: Vec<String>,
    ) -> Result<Record, SnapshotError> {
        self.owned(move |me| async move {
            let _claim = me.names.claim(vec![named(&name, Need::Alone)]).await;
            let before = me.stat(&name)?;
            let labels = labels::kept(masked(&before.labels, to, &paths)?)?;
            let record = Record { labels, updated: Stamp::now(), ..Record::clone(&before) };
            me.put(record.clone(), None).await?;
            Ok(record)
        })
        .await
    }

    /// What a snapshot takes on disk without its parents: known of a committed one, summed of an active one. A view takes nothing; nor does a lazy layer: what
    /// the cache holds of it is shared and may be evicted.
    pub(crate) async fn usage(self: &Arc<Self>, key: String) -> Result<Usage, SnapshotError> {
        let record = self.stat(&key)?;
        match record.usage {
            Some(usage) => Ok(usage),
            None if record.kind == Kind::View => Ok(Usage::default()),
            None => self.owned(move |me| async move { me.sum(record.number).await }).await,
        }
    }

    async fn sum(&self, number: u64) -> Result<Usage, SnapshotError> {
        let closed = |_| SnapshotError::unavailable("the snapshotter is closed");
        let _one_of_few = self.sums.acquire().await.map_err(closed)?;
        if let Some((usage, taken, took)) = self.summed.lock().get(&number)
            && took.as_millis() > QUICK_SUM_MS
            && taken.elapsed() < *took * SUM_SHARE
        {
            return Ok(*usage);
        }
        let begun = Instant::now();
        let usage =
            self.blocking("the snapshot could not be summed", move |dirs| usage::of(&dirs.files(number))).await?;
        self.summed.lock().insert(number, (usage, Instant::now(), begun.elapsed()));
        Ok(usage)
    }
}

/// The labels after an update with a field mask.
fn masked(before: &Labels, to: Labels, paths: &[String]) -> Result<Labels, SnapshotError> {
    if paths.is_empty() {
        return Ok(to);
    }
    let mut labels = before.clone();
    for path in paths {
        if path == "labels" {
            labels.clone_from(&to);
        } else if let Some(key) = path.strip_prefix("labels.") {
            match to.get(key) {
                Some(value) => labels.insert(key.to_owned(), value.clone()),
                None => labels.remove(key),
            };
        } else {
            return Err(SnapshotError::invalid(format!("{path:?} of a snapshot cannot be changed: only labels can")));
        }
    }
    Ok(labels)
}

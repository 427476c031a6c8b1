//! All records in memory: what there is, who is whose child. Answers without waiting; what changes is durable before it is told here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use crate::{
    error::SnapshotError,
    filter::Filters,
    labels::TARGET,
    record::{Kind, Record},
};

#[cfg(test)]
mod tests;

/// What a lazy layer is looked up by: its chain ID and its parent's name.
type Target = (String, Option<String>);

/// Every snapshot by name.
#[derive(Debug, Default)]
pub(crate) struct Table {
    by_name: BTreeMap<String, Arc<Record>>,
    children: HashMap<String, usize>,
    lazy: HashMap<Target, String>,
    numbers: BTreeSet<u64>,
    /// Directories that are being made or deleted, of which no record speaks.
    busy: BTreeSet<u64>,
}

/// What a lazy record is looked up by.
fn target(record: &Record) -> Option<Target> {
    let chain = record.is_lazy().then(|| record.labels.get(TARGET)).flatten()?;
    Some((chain.clone(), record.parent.clone()))
}

impl Table {
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Record>, SnapshotError> {
        self.by_name.get(name).cloned().ok_or_else(|| SnapshotError::not_found(name))
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The committed lazy layer with this chain ID over this parent.
    pub(crate) fn find_lazy(&self, chain: &str, parent: Option<&str>) -> Option<&str> {
        self.lazy.get(&(chain.to_owned(), parent.map(str::to_owned))).map(String::as_str)
    }

    /// Adds a record, in place of one of the same name, and answers that.
    pub(crate) fn insert(&mut self, record: Record) -> Option<Arc<Record>> {
        let before = self.remove(&record.name);
        if let Some(parent) = &record.parent {
            *self.children.entry(parent.clone()).or_default() += 1;
        }
        if let Some(target) = target(&record) {
            self.lazy.insert(target, record.name.clone());
        }
        self.numbers.insert(record.number);
        self.by_name.insert(record.name.clone(), Arc::new(record));
        before
    }

    /// Takes a record out.
    pub(crate) fn remove(&mut self, name: &str) -> Option<Arc<Record>> {
        let record = self.by_name.remove(name)?;
        if let Some(parent) = &record.parent
            && let Some(count) = self.children.get_mut(parent)
        {
            *count -= 1;
            if *count == 0 {
                self.children.remove(parent);
            }
        }
        if let Some(target) = target(&record)
            && self.lazy.get(&target).is_some_and(|of| of == name)
        {
            self.lazy.remove(&target);
        }
        self.numbers.remove(&record.number);
        Some(record)
    }

    /// How many snapshots have this one as their parent.
    pub(crate) fn children(&self, name: &str) -> usize {
        self.children.get(name).copied().unwrap_or(0)
    }

    /// A parent and all above it, from the top down; empty without a parent. The parent must be committed.
    pub(crate) fn chain(&self, parent: Option<&str>) -> Result<Vec<Arc<Record>>, SnapshotError> {
        let mut chain = Vec::new();
        let mut next = parent;
        while let Some(name) = next {
            let record = self.by_name.get(name).ok_or_else(|| match chain.is_empty() {
                true => SnapshotError::not_found(name),
                false => SnapshotError::precondition(format!(
                    "snapshot {name:?}, on which {:?} is built, was lost: remove what is built on it and pull the image again",
                    parent.unwrap_or_default()
                )),
            })?;
            if record.kind != Kind::Committed {
                return Err(SnapshotError::invalid(format!(
                    "parent {name:?} is not committed: it is {}",
                    record.kind.as_str()
                )));
            }
            if chain.len() >= self.by_name.len() {
                return Err(SnapshotError::precondition(format!("snapshot {name:?} is built on itself: remove it")));
            }
            chain.push(Arc::clone(record));
            next = record.parent.as_deref();
        }
        Ok(chain)
    }

    /// At most `limit` records that pass, in the order of names, beyond `after`; and the name to go on from, when there may be more.
    pub(crate) fn page(
        &self,
        after: Option<&str>,
        filters: &Filters,
        limit: usize,
    ) -> (Vec<Arc<Record>>, Option<String>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Vec::with_capacity(limit);
        for record in self.by_name.range::<str, _>((from, Bound::Unbounded)).map(|(_, record)| record) {
            if filters.pass(record) {
                page.push(Arc::clone(record));
            }
            if page.len() == limit {
                let last = record.name.clone();
                return (page, Some(last));
            }
        }
        (page, None)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.by_name.values()
    }

    /// From here on `number` is somebody's work, not an orphan.
    pub(crate) fn begin(&mut self, number: u64) {
        self.busy.insert(number);
    }

    pub(crate) fn end(&mut self, number: u64) {
        self.busy.remove(&number);
    }

    /// Whether nothing speaks of a directory with this number: it may be deleted.
    pub(crate) fn is_orphan(&self, number: u64) -> bool {
        !self.numbers.contains(&number) && !self.busy.contains(&number)
    }
}

//! Blobs that somebody reads along a plan: what is needed next is known better than a miss can tell.

use std::sync::{Arc, atomic::Ordering};

use crate::entry::Entry;

/// While it lives, a miss of its blob brings nothing along but what was missed. [`Cache::follow`](crate::Cache::follow) makes it.
#[derive(Debug)]
#[must_use = "a blob is followed as long as this lives"]
pub struct Followed(Arc<Entry>);

impl Followed {
    pub(crate) fn new(entry: Arc<Entry>) -> Self {
        entry.followers.fetch_add(1, Ordering::Relaxed);
        Self(entry)
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

//! Hashing blobs that are complete, one at a time, at low priority: a chunk-sized step at a time, never in anybody's way.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use penstock_blob::{Digest, Hasher};
use tokio::sync::Notify;

use crate::{
    entry::Entry,
    fill::{self, Trusted, check_run},
    store::Store,
    usage::{Event, Whole},
};

/// Blobs to be hashed. A blob stands here at most once: its state says `Verifying` as long as it does.
#[derive(Debug, Default)]
pub(crate) struct Verifier {
    waiting: Mutex<VecDeque<Arc<Entry>>>,
    wake: Notify,
}

/// How the hashing of one blob ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Match,
    Mismatch(Digest),
    /// Chunks were dropped meanwhile.
    Changed,
}

impl Verifier {
    pub(crate) fn push(&self, entry: Arc<Entry>) {
        self.waiting.lock().push_back(entry);
        self.wake.notify_one();
    }

    async fn next(&self) -> Arc<Entry> {
        loop {
            let waiting = self.waiting.lock().pop_front();
            if let Some(entry) = waiting {
                return entry;
            }
            self.wake.notified().await;
        }
    }
}

/// Hashes blobs until the cache stops.
pub(crate) async fn run(store: Arc<Store>) {
    loop {
        let entry = tokio::select! {
            () = store.stop.cancelled() => return,
            entry = store.verifier.next() => entry,
        };
        let drops = entry.lock().drops;
        let Some(found) = hash(&store, &entry).await else { return };
        settle(&store, &entry, drops, found);
    }
}

/// Hashes the blob from disk. `None` when the cache stops.
async fn hash(store: &Arc<Store>, entry: &Arc<Entry>) -> Option<Found> {
    let mut hasher = Hasher::new();
    for chunk in 0..entry.chunks {
        if store.stop.is_cancelled() {
            return None;
        }
        let (store, entry) = (store.clone(), entry.clone());
        let step = tokio::task::spawn_blocking(move || {
            let found = check_run(&store, (&entry, entry.slots.get()?), (chunk, chunk), Trusted::Checked);
            let fill::Found::Right(bytes) = found else { return None };
            hasher.update(&bytes);
            Some(hasher)
        });
        // An error: the runtime is stopping.
        match step.await.ok()? {
            Some(next) => hasher = next,
            None => return Some(Found::Changed),
        }
    }
    let digest = hasher.finish();
    Some(if digest == entry.blob.digest { Found::Match } else { Found::Mismatch(digest) })
}

/// Draws the conclusion, unless chunks were dropped since `drops` was read.
pub(crate) fn settle(store: &Arc<Store>, entry: &Arc<Entry>, drops: u64, found: Found) {
    let Some(slots) = entry.slots.get() else { return };
    let digest = entry.blob.digest;
    let mut state = entry.lock();
    if state.retired {
        return;
    }
    let found = if state.drops == drops { found } else { Found::Changed };
    let event = match found {
        Found::Changed => {
            state.whole = Whole::Partial;
            store.maybe_verify(entry, &mut state);
            return;
        }
        Found::Match => {
            state.whole = Whole::Verified;
            store.metrics.verified_blobs.inc();
            store.queue().dirty_blob(slots.no, entry);
            Event::BlobVerified { digest }
        }
        Found::Mismatch(found) => {
            state.whole = Whole::Mismatch;
            store.metrics.mismatched_blobs.inc();
            Event::BlobMismatch { digest, found }
        }
    };
    drop(state);
    if matches!(event, Event::BlobMismatch { .. }) {
        store.discard(entry, 0, entry.chunks - 1);
    }
    store.tell(event);
}

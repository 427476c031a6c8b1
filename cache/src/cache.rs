//! The cache as others see it.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Giver, Located, Purpose, ReadFuture};
use prometheus_client::registry::Registry;
use tokio::{runtime::Handle, sync::broadcast, task::JoinSet};

use crate::{
    config::{Config, Seams},
    entry::Entry,
    error::{OpenError, RemoveError},
    follow::Followed,
    metrics::Metrics,
    open::{Opened, Parts, open, take},
    outline::Outline,
    queue::Stop,
    read, scrub,
    store::Store,
    usage::{BlobUsage, Cleared, Event, Memory, Scrubbed, Usage},
};

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

/// Keeps chunks of blobs on this node. See the crate's documentation for what it promises.
#[derive(Debug)]
pub struct Cache {
    pub(crate) store: Arc<Store>,
    committer: tokio::sync::Mutex<Option<std::thread::JoinHandle<()>>>,
    events: Mutex<Option<broadcast::Receiver<Event>>>,
}

impl Cache {
    /// Opens a directory, recovers what is in it, and stands in front of `upstream`. Metrics go under the prefix of `metrics`.
    ///
    /// Tasks run on the tokio runtime of the caller. How long it takes grows with what is cached (about 0.1 s per TiB
    /// after an orderly close) and with what the kernel has to write out: sled calls `sync` twice.
    ///
    /// # Errors
    /// [`OpenError`]; each says what to do. A lost or damaged index is none of them.
    pub async fn open(
        config: Config,
        upstream: Arc<dyn BlobSource>,
        metrics: &mut Registry,
    ) -> Result<Arc<Self>, OpenError> {
        let seams = Seams::real(&config);
        Self::open_with(config, upstream, metrics, seams).await
    }

    /// As [`Cache::open`], with the joints of tests.
    pub(crate) async fn open_with(
        config: Config,
        upstream: Arc<dyn BlobSource>,
        metrics: &mut Registry,
        seams: Seams,
    ) -> Result<Arc<Self>, OpenError> {
        let handle = Handle::try_current().map_err(|_| OpenError::NoRuntime)?;
        let metrics = Metrics::register(metrics);
        let parts = Parts { upstream, metrics, seams, handle: handle.clone() };
        let taken = take(&handle, &config, &parts.seams.disk).await?;
        // Whole before it leaves the pool: when nobody waits for it any more, it is dropped, and with it the lock.
        let opened = handle.spawn_blocking(move || open(config, parts, taken).map(Self::of)).await;
        // An error: the runtime is stopping.
        opened.map_err(|_| OpenError::NoRuntime)?.map(Arc::new)
    }

    fn of(opened: Opened) -> Self {
        let Opened { store, committer, events } = opened;
        let committer = tokio::sync::Mutex::new(Some(committer));
        Self { store, committer, events: Mutex::new(Some(events)) }
    }

    /// Drains: no new fills, those under way end (after [`Config::drain`] they are abandoned), everything stored becomes durable, the
    /// index is closed. What is cached can still be located. A second call waits for the first.
    ///
    /// A cache dropped without this is as one that was killed: safe, with one group of chunks at risk.
    pub async fn close(&self) {
        let mut committer = self.committer.lock().await;
        let Some(thread) = committer.take() else { return };
        let store = &self.store;
        store.closing.store(true, Ordering::SeqCst);
        let mut fills = store.fills.subscribe();
        // A timeout: the fills left are told to stop. The channel cannot close, `store` owns it.
        let _ = tokio::time::timeout(store.config.drain, fills.wait_for(|n| *n == 0)).await;
        store.stop.cancel();
        let _ = fills.wait_for(|n| *n == 0).await;
        store.queue().stop(Stop::Drain);
        if let Ok(Err(_)) = store.handle.spawn_blocking(move || thread.join()).await {
            tracing::error!("the committer of the cache panicked; the next start reads all slot headers");
        }
        let mut tasks: JoinSet<()> = std::mem::take(&mut *store.tasks.lock());
        // All of them look at `stop`; the longest step that one may be in is a read from disk.
        while tasks.join_next().await.is_some() {}
    }

    /// Waits until the fills under way have ended and all that was stored is durable, or the committer found that it cannot be.
    /// A fill that replaces rejected chunks ends when nobody has the old ones pinned any more.
    pub async fn settle(&self) {
        let mut fills = self.store.fills.subscribe();
        // The channel cannot close, `self` owns it.
        let _ = fills.wait_for(|n| *n == 0).await;
        // An error: the cache is closed, and so settled.
        let _ = self.store.queue().flush().await;
    }

    /// How the cache stands.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let metrics = &self.store.metrics;
        Usage {
            cap_bytes: self.store.config.cap_bytes,
            limit_bytes: self.store.room().limit(),
            used_bytes: self.store.room().used(),
            index_bytes: self.store.index_bytes.load(Ordering::Relaxed),
            beside_bytes: self.store.beside_bytes.load(Ordering::Relaxed),
            present_chunks: metrics.present_chunks.get(),
            durable_chunks: metrics.durable_chunks.get(),
            blobs: metrics.blobs.get(),
            hits: metrics.hits.get(),
            fills: metrics.fills.get(),
            bypasses: metrics.bypasses.get(),
            corrupt_chunks: metrics.corrupt_chunks.get(),
            evicted_chunks: metrics.evicted_chunks.get(),
            index: self.store.index.lock().clone(),
        }
    }

    /// What it takes of memory now. Looks at every segment that is cached: for whoever asks now and then.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let store = &self.store;
        let table = store.table.load();
        let slots = table.values().filter_map(|entry| entry.slots.get());
        let entries = (table.len() * size_of::<Entry>()) as u64;
        Memory {
            presence_bytes: slots.map(|slots| slots.memory_bytes()).sum::<u64>()
                + entries
                + store.shared.ghosts.bytes(),
            pending_bytes: store.metrics.pending_bytes.get(),
            index_bytes: store.index_bytes.load(Ordering::Relaxed).min(crate::index::CACHE_BYTES as u64),
        }
    }

    /// How one blob stands; `None` when nothing is known of it.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> Option<BlobUsage> {
        self.blobs().into_iter().filter(|b| b.digest == *digest).max_by_key(|b| b.present_chunks)
    }

    /// How exactly this blob stands, of this size; `None` when nothing is known of it. One look-up, however many blobs there are.
    #[must_use]
    pub fn usage_of(&self, blob: &Blob) -> Option<BlobUsage> {
        let entry = self.store.table.load().get(blob).cloned()?;
        Some(self.blob_usage(&entry))
    }

    /// `blob` in at most `most` parts, and how much of each is here.
    #[must_use]
    pub fn outline(&self, blob: &Blob, most: u32) -> Outline {
        self.store.outline(blob, most)
    }

    /// Every blob that was read or is cached, by digest.
    #[must_use]
    pub fn blobs(&self) -> Vec<BlobUsage> {
        let table = self.store.table.load();
        let mut blobs: Vec<_> = table.values().map(|entry| self.blob_usage(entry)).collect();
        blobs.sort_by_key(|blob| (blob.digest, blob.size_bytes));
        blobs
    }

    fn blob_usage(&self, entry: &Entry) -> BlobUsage {
        let Entry { blob, chunk_size, chunks, .. } = entry;
        let whole = entry.lock().whole;
        let slots = entry.slots.get();
        let present = slots.map_or(0, |s| s.present.load(Ordering::Relaxed));
        let last = chunk_size.range(blob, chunks - 1).map_or(0, ByteRange::len);
        let short = slots.filter(|s| s.is_present(chunks - 1)).map_or(0, |_| u64::from(chunk_size.bytes()) - last);
        BlobUsage {
            digest: blob.digest,
            size_bytes: blob.size_bytes,
            chunk_size: *chunk_size,
            present_bytes: (u64::from(present) * u64::from(chunk_size.bytes())).saturating_sub(short),
            present_chunks: present,
            durable_chunks: slots.map_or(0, |s| s.durable.load(Ordering::Relaxed)),
            chunks: *chunks,
            fetched_bytes: entry.fetched_bytes.load(Ordering::Relaxed),
            whole,
            users: self.store.users(&blob.digest),
        }
    }

    /// What of `range` is not stored and checked, in whole chunks, ascending; neighbours are one. What is being fetched counts as absent. Counts no hit
    /// and pins nothing.
    #[must_use]
    pub fn absent(&self, blob: &Blob, range: ByteRange) -> Vec<ByteRange> {
        if blob.check(range).is_err() {
            return Vec::new();
        }
        let table = self.store.table.load();
        let entry = table.get(blob);
        let chunk_size = entry.map_or(self.store.config.chunk_size, |entry| entry.chunk_size);
        let slots = entry.and_then(|entry| entry.slots.get());
        let mut absent: Vec<ByteRange> = Vec::new();
        for chunk in chunk_size.span(range).filter(|&chunk| !slots.is_some_and(|slots| slots.is_checked(chunk))) {
            match (chunk_size.range(blob, chunk), absent.last_mut()) {
                (Some(chunk), Some(last)) if last.end() == chunk.start() => *last = last.cover(chunk),
                (Some(chunk), _) => absent.push(chunk),
                (None, _) => {}
            }
        }
        absent
    }

    /// Until the answer is dropped, a miss of this blob brings nothing along: its caller knows what is needed next, and reads that ahead. `None` when
    /// the blob has more chunks than can be counted.
    pub fn follow(&self, blob: &Blob) -> Option<Followed> {
        self.store.entry(blob).map(Followed::new)
    }

    /// How many bytes can be stored before anything is evicted.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        let room = self.store.room();
        self.store.config.watermarks.high_of(room.limit()).saturating_sub(room.used())
    }

    /// What operators should hear of, from now on; the first caller also gets what happened at open. A receiver that falls more than
    /// 64 events behind loses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.lock().take().unwrap_or_else(|| self.store.events.subscribe())
    }

    /// One more attachment uses the blob: its chunks are evicted last, and it cannot be removed.
    pub fn retain(&self, digest: &Digest) {
        *self.store.retained.lock().entry(*digest).or_insert(0) += 1;
    }

    /// An attachment uses the blob no more. Without a [`Cache::retain`] before it, nothing happens.
    pub fn release(&self, digest: &Digest) {
        let mut retained = self.store.retained.lock();
        if let Some(users) = retained.get_mut(digest) {
            *users -= 1;
            if *users == 0 {
                retained.remove(digest);
            }
        }
    }

    /// Removes all of a blob from the cache; says how many bytes of disk that frees.
    ///
    /// # Errors
    /// [`RemoveError`]: it is not here, attached, or being read.
    pub async fn remove(&self, digest: &Digest) -> Result<u64, RemoveError> {
        let blob = *digest;
        if self.store.closing.load(Ordering::SeqCst) {
            return Err(RemoveError::Closing);
        }
        let users = self.store.users(digest);
        if users > 0 {
            return Err(RemoveError::Retained { blob, users });
        }
        let table = self.store.table.load();
        let entries: Vec<_> = table.values().filter(|e| e.blob.digest == blob).cloned().collect();
        drop(table);
        if entries.is_empty() {
            return Err(RemoveError::NotFound { blob });
        }
        let store = self.store.clone();
        let retired = self.store.handle.spawn_blocking(move || entries.iter().map(|e| store.retire(e)).sum());
        // An error: the runtime is stopping.
        retired.await.unwrap_or(Err(RemoveError::Closing))
    }

    /// Removes these blobs, or all. What is attached stays unless `force` is set, what is being read at this moment stays in any case; of such
    /// blobs everything goes that nobody reads.
    pub async fn clear(&self, which: Option<&[Digest]>, force: bool) -> Cleared {
        let mut cleared = Cleared::default();
        let digests: BTreeSet<Digest> = match which {
            Some(digests) => digests.iter().copied().collect(),
            None => self.store.stored().iter().map(|(entry, _)| entry.blob.digest).collect(),
        };
        for digest in digests {
            match self.remove(&digest).await {
                Ok(bytes) => cleared.freed.push((digest, bytes)),
                Err(error @ (RemoveError::NotFound { .. } | RemoveError::Closing)) => {
                    cleared.kept.push((digest, error))
                }
                Err(error @ RemoveError::Retained { .. }) if !force => cleared.kept.push((digest, error)),
                Err(error) => {
                    let parts = self.store.stored().into_iter().filter(|(entry, _)| entry.blob.digest == digest);
                    let bytes = parts.map(|(entry, _)| self.store.evict_all(&entry)).sum();
                    cleared.freed.push((digest, bytes));
                    if self.blob(&digest).is_some_and(|blob| blob.present_chunks > 0) {
                        cleared.kept.push((digest, error));
                    }
                }
            }
        }
        self.settle_room().await;
        cleared
    }

    /// Waits until what was dropped has left the disk, or is found not to.
    async fn settle_room(&self) {
        // An error: the cache is closed, and so settled.
        let _ = self.store.queue().flush().await;
    }

    /// Reads everything on disk again, past the page cache, and compares it with its checksums, whole blobs with their digests. What is wrong is
    /// dropped and counted, and with `repair` fetched again at once. Ends early when the cache closes.
    pub async fn verify(&self, repair: bool) -> Scrubbed {
        let mut sum = Scrubbed::default();
        for (entry, slots) in self.store.stored() {
            match scrub::scrub(&self.store, (&entry, &slots), scrub::Pace::Now, repair).await {
                Some(one) => sum.add(&one),
                None => break,
            }
        }
        sum
    }

    /// The look that comes every few seconds, now.
    #[cfg(test)]
    pub(crate) fn look(&self) {
        crate::health::look(&self.store, true);
    }

    #[cfg(test)]
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.store.metrics
    }

    /// What tells whether anything still holds the directory's lock, and the lock's file: for tests that crash.
    #[cfg(test)]
    pub(crate) fn lock_is_held(&self) -> (std::sync::Weak<crate::layout::DirLock>, std::path::PathBuf) {
        (Arc::downgrade(&self.store._lock), self.store.config.dir.join("lock"))
    }

    /// Forgets the cached chunks of `range` and says how many there were.
    fn forget(&self, blob: &Blob, range: ByteRange) -> u32 {
        let table = self.store.table.load();
        let Some(entry) = table.get(blob).filter(|_| range.end() <= blob.size_bytes) else { return 0 };
        let span = entry.chunk_size.span(range);
        self.store.reject(entry, *span.start(), *span.end())
    }
}

impl BlobSource for Cache {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.store.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move { read::read(&self.store, blob, range, purpose).await })
    }

    /// Drops the chunks that hold `range`. When none is here the bytes came straight from below, which is told.
    fn reject(&self, blob: &Blob, range: ByteRange) {
        if self.forget(blob, range) == 0 {
            self.store.upstream.reject(blob, range);
        }
    }

    fn giver(&self, blob: &Blob, range: ByteRange) -> Option<Giver> {
        self.store.upstream.giver(blob, range)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.store.closing.store(true, Ordering::SeqCst);
        self.store.stop.cancel();
        self.store.tasks.lock().abort_all();
        self.store.queue().stop(Stop::Abandon);
    }
}

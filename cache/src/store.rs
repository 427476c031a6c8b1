//! What all parts of a cache share: the table of blobs, and the ways to change a blob's chunks.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Located};
use tokio::{
    runtime::Handle,
    sync::{Notify, broadcast, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    bits::Bits,
    config::Config,
    disk::Disk,
    entry::{Change, Entry, Kept, State},
    error::RemoveError,
    fill::Space,
    format::{Meta, Uuid},
    health::Storing,
    layout::{DirLock, Layout, bounded_count},
    metrics::Metrics,
    pages::Pages,
    queue::{Gone, Queue},
    room::Room,
    slots::{Shared, Slots, Want, by_segment, overhead},
    speculate::{self, Touch},
    usage::{Event, IndexState, Whole},
    verify::Verifier,
};

/// Digest and size to blob. A blob whose manifest lies about its size gets an entry of its own and harms no other.
pub(crate) type Table = HashMap<Blob, Arc<Entry>>;

/// The shared state of a cache.
pub(crate) struct Store {
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) upstream: Arc<dyn BlobSource>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) handle: Handle,
    pub(crate) table: ArcSwap<Table>,
    /// Held while the table is replaced. Taken after an entry's lock, never before.
    pub(crate) table_changes: Mutex<()>,
    pub(crate) shared: Shared,
    pub(crate) metrics: Metrics,
    pub(crate) uuid: Uuid,
    /// Next blob number never used.
    pub(crate) next_no: AtomicU32,
    /// Attachments that use each blob.
    pub(crate) retained: Mutex<HashMap<Digest, u32>>,
    pub(crate) verifier: Verifier,
    pub(crate) index: Mutex<IndexState>,
    pub(crate) events: broadcast::Sender<Event>,
    /// Owns every task of the cache.
    pub(crate) tasks: Mutex<JoinSet<()>>,
    /// Fills under way, with their writes.
    pub(crate) fills: watch::Sender<usize>,
    /// Bytes under way that nobody asked for yet.
    pub(crate) ahead_bytes: AtomicU64,
    /// Marked chunks that were used.
    pub(crate) touches: mpsc::Sender<Touch>,
    /// What was read, and need not stay in the page cache.
    pub(crate) pages: Pages,
    /// Leaving chunks have left.
    pub(crate) left: Notify,
    /// No new fills.
    pub(crate) closing: AtomicBool,
    /// Fills give up.
    pub(crate) stop: CancellationToken,
    /// Held for life: one process per directory.
    pub(crate) _lock: Arc<DirLock>,
    /// Whether chunks are written.
    pub(crate) storing: Storing,
    /// Disk space of the index, and of [`Config::beside`], when they were measured last.
    pub(crate) index_bytes: AtomicU64,
    pub(crate) beside_bytes: AtomicU64,
}

impl Store {
    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.shared.room
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.shared.queue
    }

    /// Tells operators; an event that nobody listens to is in the log at least.
    pub(crate) fn tell(&self, event: Event) {
        match &event {
            Event::BlobVerified { .. } | Event::Scrubbed(_) | Event::Healed { .. } => tracing::info!("{event}"),
            _ => tracing::warn!("{event}"),
        }
        // No receiver is no failure.
        let _ = self.events.send(event);
    }

    /// Where `range` is, when all of it is stored and checked. The whole hit path: a table look-up, pins, bit tests.
    pub(crate) fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        if range.end() > blob.size_bytes {
            return None;
        }
        let table = self.table.load();
        let slots = table.get(blob)?.slots.get()?;
        if !slots.pin(range, Want::Checked) {
            return None;
        }
        self.metrics.hits.inc();
        speculate::used(self, slots, range);
        self.pages.passed(slots, range);
        Some(Located::in_file(slots.clone(), range, range.start()))
    }

    /// The entry of a blob, made when missing; `None` for a blob that has too many chunks to keep.
    pub(crate) fn entry(&self, blob: &Blob) -> Option<Arc<Entry>> {
        if let Some(entry) = self.table.load().get(blob) {
            return Some(entry.clone());
        }
        let chunks = bounded_count(self.config.chunk_size, blob)?;
        let _changes = self.table_changes.lock();
        let mut table = Table::clone(&self.table.load());
        let fresh = || Arc::new(Entry::new(*blob, self.config.chunk_size, chunks));
        let entry = table.entry(*blob).or_insert_with(fresh).clone();
        self.table.store(Arc::new(table));
        Some(entry)
    }

    /// All blobs with files, ascending by number.
    pub(crate) fn stored(&self) -> Vec<(Arc<Entry>, Arc<Slots>)> {
        let table = self.table.load();
        let with = |entry: &Arc<Entry>| Some((entry.clone(), entry.slots.get()?.clone()));
        let mut stored: Vec<_> = table.values().filter_map(with).collect();
        stored.sort_by_key(|(_, slots)| slots.no);
        stored
    }

    pub(crate) fn change<'a>(&'a self, entry: &'a Arc<Entry>, slots: &'a Slots, state: &'a mut State) -> Change<'a> {
        Change { entry, slots, state, metrics: &self.metrics, queue: self.queue() }
    }

    /// The slots of an entry, made from `space` when this is the first chunk stored. Does file operations.
    pub(crate) fn slots(&self, entry: &Arc<Entry>, space: &mut Space) -> std::io::Result<Arc<Slots>> {
        let _creating = entry.creating.lock();
        if let Some(slots) = entry.slots.get() {
            return Ok(slots.clone());
        }
        let take = |no: u32| no.checked_add(1);
        let no = self.next_no.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let no = no.map_err(|_| std::io::Error::other("no blob number is left"))?;
        let meta = Meta { no, uuid: self.uuid, blob: entry.blob, chunk_size: entry.chunk_size };
        let files = self.layout.create(&meta, entry.chunks)?;
        let slots = Arc::new(Slots::new(entry.blob, entry.chunk_size, files, &self.shared));
        space.spend(&slots, overhead(entry.chunks, self.shared.block));
        self.metrics.blobs.inc();
        self.queue().dirty_blob(no, entry);
        Ok(entry.slots.get_or_init(|| slots).clone())
    }

    /// Drops what is stored of chunks `first..=last`; says how many chunks.
    pub(crate) fn discard(&self, entry: &Arc<Entry>, first: u32, last: u32) -> u32 {
        let Some(slots) = entry.slots.get() else { return 0 };
        let mut state = entry.lock();
        let mut change = self.change(entry, slots, &mut state);
        by_segment(first, last).map(|(segment, a, b)| change.discard(segment, Bits::span(a, b))).sum()
    }

    /// Drops chunks that failed a check, and counts them; operators hear of it once for each blob.
    pub(crate) fn discard_corrupt(&self, entry: &Arc<Entry>, first: u32, last: u32) -> u32 {
        let dropped = self.discard(entry, first, last);
        self.metrics.corrupt_chunks.inc_by(u64::from(dropped));
        if dropped > 0 && !entry.was_corrupt.swap(true, Ordering::Relaxed) {
            self.tell(Event::Corrupt { digest: entry.blob.digest });
        }
        dropped
    }

    /// A reader found bytes of chunks `first..=last` wrong: drops what is stored and what is about to be; says how many chunks
    /// were stored.
    pub(crate) fn reject(&self, entry: &Arc<Entry>, first: u32, last: u32) -> u32 {
        let state = entry.lock();
        (first..=last).filter_map(|chunk| state.fills.get(&chunk)).for_each(|fill| fill.reject(&state));
        drop(state);
        self.discard_corrupt(entry, first, last)
    }

    /// Evicts one extent; the bytes that will come free.
    pub(crate) fn evict(&self, entry: &Arc<Entry>, slots: &Slots, extent: u32) -> Result<u64, Kept> {
        let mut state = entry.lock();
        self.change(entry, slots, &mut state).evict(extent)
    }

    /// Marks a blob that is complete for hashing. Called with the entry's lock held. What has a derived name is no blob of a registry: its
    /// parts were verified one by one, and there is nothing to compare the whole with.
    pub(crate) fn maybe_verify(&self, entry: &Arc<Entry>, state: &mut State) {
        let is_due = entry.is_whole() && matches!(state.whole, Whole::Partial | Whole::Mismatch);
        if is_due && !entry.blob.digest.is_derived() {
            state.whole = Whole::Verifying;
            self.verifier.push(entry.clone());
        }
    }

    pub(crate) fn users(&self, digest: &Digest) -> u32 {
        self.retained.lock().get(digest).copied().unwrap_or(0)
    }

    /// Evicts what can be had of a blob: every extent that nobody reads at this moment. The bytes that will come free.
    pub(crate) fn evict_all(&self, entry: &Arc<Entry>) -> u64 {
        let Some(slots) = entry.slots.get() else { return 0 };
        let mut extents = Vec::new();
        slots.each_extent(&mut |extent, _, _| extents.push(extent));
        extents.into_iter().filter_map(|extent| self.evict(entry, slots, extent).ok()).sum()
    }

    /// Takes a blob that nobody reads out of the table and deletes its files; says how many bytes that frees. Does file operations.
    pub(crate) fn retire(&self, entry: &Arc<Entry>) -> Result<u64, RemoveError> {
        let digest = entry.blob.digest;
        let mut state = entry.lock();
        if state.retired {
            return Err(RemoveError::NotFound { blob: digest });
        }
        let slots = entry.slots.get();
        if !state.fills.is_empty() || !slots.is_none_or(|s| s.clear()) {
            return Err(RemoveError::Busy { blob: digest });
        }
        state.retired = true;
        {
            let _changes = self.table_changes.lock();
            let mut table = Table::clone(&self.table.load());
            table.remove(&entry.blob);
            self.table.store(Arc::new(table));
        }
        drop(state);
        let Some(slots) = slots else { return Ok(0) };
        self.metrics.blobs.dec();
        self.metrics.present_chunks.dec_by(u64::from(slots.present.swap(0, Ordering::Relaxed)));
        self.metrics.durable_chunks.dec_by(u64::from(slots.durable.swap(0, Ordering::Relaxed)));
        self.queue().gone(Gone { no: slots.no, segments: slots.segment_count() });
        // Emptied as well as unlinked: somebody may still hold the open files. If either fails the space is counted until they let go.
        let empty = |file| self.disk.set_len(file, 0);
        let emptied =
            self.layout.delete(slots.no).and_then(|()| empty(&slots.data)).and_then(|()| empty(&slots.headers));
        if let Err(e) = emptied {
            tracing::warn!("the files of cached blob number {} could not be deleted: {e}", slots.no);
            return Ok(0);
        }
        let freed = slots.charged.swap(0, Ordering::Relaxed);
        self.room().give(freed);
        Ok(freed)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.config.dir).field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

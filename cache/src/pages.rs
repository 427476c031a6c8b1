//! Not keeping twice what its readers keep.
//!
//! Who reads through a device has the bytes in the page cache of what is mounted there; the same bytes of the data file below would be kept beside
//! them. So the kernel is told to drop the pages of what went up, and of nothing else: what it has read ahead, and what lies around a page that was
//! read, was given to nobody yet. What went up stays for a while all the same, because the next request often needs the rest of a page, and because
//! not everybody has a page cache above: it leaves when some megabytes of *other* bytes went up since and it was not read again. A small set that is
//! read over and over stays for good.
//!
//! Bytes that reached the disk count as if they had gone up; chunks that were fetched ahead and not used yet, and those that are not on the disk yet,
//! keep their pages. Nothing that reads waits for any of this. With [`Config::keep_pages`](crate::Config::keep_pages) nothing is dropped or counted.

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
};

use penstock_blob::{ByteRange, ChunkSize};
use rustix::fs::{Advice, fadvise};
use tokio::sync::Notify;

use crate::{
    bits::{Bits, SEGMENT_CHUNKS},
    slots::{Segment, Slots},
    store::Store,
};

/// Bytes that go up, or to the disk, and had not before, between two looks. What one look finds leaves at the next one unless it was used again; so the page
/// cache keeps twice as much for the whole cache, three times at worst. Small beside any image; dropped by a thread that
/// nobody waits for.
const TURN_BYTES: u64 = 3 << 20;
/// What goes up of one blob is counted for the whole cache in steps of so many bytes: readers of different blobs seldom write to the same
/// cache line. So much of each blob that was read is kept beside [`TURN_BYTES`].
const STEP_BYTES: u64 = 64 << 10;
/// Parts of a chunk that are told apart: two pages each where chunks have [`ChunkSize::DEFAULT`].
const PARTS: u32 = u16::BITS;
/// From how many bytes on a run was read in order.
const LONG_BYTES: u64 = 256 << 10;
/// The largest folio that the kernel makes for what it reads ahead. A folio is dropped by a call that covers all of it: of the one in which the last run ended, the
/// next one covers the beginning too.
const FOLIO_BYTES: u64 = 2 << 20;

/// Counts what went up.
#[derive(Debug)]
pub(crate) struct Pages {
    keep: bool,
    passed: AtomicU64,
    enough: Notify,
}

/// What went up of one blob. A cache line of its own: hits write to it, and read what lies around it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Passed {
    bytes: AtomicU64,
    /// Whether a chunk of the blob is marked.
    any: AtomicBool,
}

/// Of each chunk of a segment, the parts that went up and are not to be dropped yet. Changed by hits without a lock.
#[derive(Debug)]
pub(crate) struct Marks {
    /// Whether there is one.
    any: AtomicBool,
    parts: [AtomicU16; SEGMENT_CHUNKS as usize],
}

/// Parts of chunks: by number of the blob and of the chunk in it.
type Parts = BTreeMap<(u32, u32), u16>;

impl Passed {
    /// Counts `bytes`; answers how many of them, and of those before, are to be counted for the whole cache.
    fn add(&self, bytes: u64) -> u64 {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        (before.wrapping_add(bytes) / STEP_BYTES).saturating_sub(before / STEP_BYTES) * STEP_BYTES
    }
}

impl Default for Marks {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), parts: std::array::from_fn(|_| AtomicU16::new(0)) }
    }
}

impl Marks {
    /// Marks parts of a chunk; how many were not. A chunk whose parts are marked is only looked at.
    fn add(&self, slot: u32, parts: u16) -> u32 {
        let Some(marked) = self.parts.get(slot as usize) else { return 0 };
        if marked.load(Ordering::Relaxed) & parts == parts {
            return 0;
        }
        let fresh = parts & !marked.fetch_or(parts, Ordering::Relaxed);
        self.any.store(true, Ordering::Release);
        fresh.count_ones()
    }

    /// Takes the marks of all chunks but `stay`, in the order of the chunks.
    fn take(&self, stay: Bits) -> Vec<(u32, u16)> {
        if !self.any.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        let marked = (0..).zip(&self.parts).filter(|(_, parts)| parts.load(Ordering::Relaxed) != 0);
        let (later, now): (Vec<_>, Vec<_>) = marked.partition(|(slot, _)| stay.has(*slot));
        if !later.is_empty() {
            self.any.store(true, Ordering::Release);
        }
        now.into_iter().map(|(slot, parts)| (slot, parts.swap(0, Ordering::Relaxed))).collect()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.iter().all(|parts| parts.load(Ordering::Relaxed) == 0)
    }
}

impl Pages {
    /// Counts nothing if pages are kept.
    pub(crate) fn new(keep: bool) -> Self {
        Self { keep, passed: AtomicU64::new(0), enough: Notify::new() }
    }

    /// The bytes `range` of `slots` were read. Lock-free, but for one wake-up every [`TURN_BYTES`]; what is read again writes nothing.
    pub(crate) fn passed(&self, slots: &Slots, range: ByteRange) {
        if self.keep {
            return;
        }
        let mut fresh = 0;
        for chunk in slots.chunk_size.span(range) {
            let Some(segment) = slots.segment(chunk / SEGMENT_CHUNKS) else { continue };
            fresh += segment.in_pages.add(chunk % SEGMENT_CHUNKS, covered(slots.chunk_size, chunk, range));
        }
        self.count(slots, u64::from(fresh) * part_bytes(slots.chunk_size));
    }

    /// Some chunks of a segment reached the disk: their pages can be dropped from now on, but of those that were fetched ahead.
    pub(crate) fn written(&self, slots: &Slots, segment: &Segment, chunks: Bits) {
        if self.keep {
            return;
        }
        for slot in chunks.without(segment.ahead.load()).iter() {
            segment.in_pages.add(slot, u16::MAX);
        }
        self.count(slots, u64::from(chunks.count()) * u64::from(slots.chunk_size.bytes()));
    }

    fn count(&self, slots: &Slots, bytes: u64) {
        if bytes == 0 {
            return;
        }
        slots.passed.any.store(true, Ordering::Release);
        let bytes = slots.passed.add(bytes);
        let before = self.passed.fetch_add(bytes, Ordering::Relaxed);
        if before < TURN_BYTES && before.saturating_add(bytes) >= TURN_BYTES {
            self.enough.notify_one();
        }
    }
}

/// Bytes of a part.
fn part_bytes(chunk_size: ChunkSize) -> u64 {
    u64::from(chunk_size.bytes() / PARTS)
}

/// The parts of `chunk` in which bytes of `range` lie.
fn covered(chunk_size: ChunkSize, chunk: u32, range: ByteRange) -> u16 {
    let base = u64::from(chunk) * u64::from(chunk_size.bytes());
    let nth = |byte: u64| byte.saturating_sub(base) / part_bytes(chunk_size);
    let (first, last) = (nth(range.start()), nth(range.end() - 1).min(u64::from(PARTS - 1)));
    let below = |end: u64| (1_u64 << end.min(u64::from(PARTS))) - 1;
    u16::try_from(below(last + 1) & !below(first)).unwrap_or(u16::MAX)
}

/// Drops pages until the cache stops.
pub(crate) async fn run(store: Arc<Store>) {
    let mut stays = Parts::new();
    loop {
        tokio::select! {
            biased;
            () = store.stop.cancelled() => return,
            () = store.pages.enough.notified() => {}
        }
        store.pages.passed.store(0, Ordering::Relaxed);
        let dropping = Arc::clone(&store);
        match tokio::task::spawn_blocking(move || drop_pages(&dropping, stays)).await {
            Ok(found) => stays = found,
            // The runtime is stopping.
            Err(_) => return,
        }
    }
}

/// Drops the pages of what the last look found (`stays`) and this one does not; answers what this one found.
fn drop_pages(store: &Store, mut stays: Parts) -> Parts {
    let (stored, mut found, mut found_bytes) = (store.stored(), Parts::new(), 0);
    for (_, slots) in stored.iter().filter(|(_, slots)| slots.passed.any.swap(false, Ordering::Acquire)) {
        found_bytes += take_marks(slots, &mut found);
    }
    let leaves = turn(&mut stays, found, found_bytes);
    for (_, slots) in stored {
        if let Err(error) = drop_of(&slots, &leaves) {
            tracing::debug!(blob = %slots.blob.digest, %error, "the kernel does not drop pages of a data file");
        }
    }
    stays
}

/// Takes the marks of what is on the disk, or is no more; how many bytes that is. What is on its way there is looked at again when it has arrived.
fn take_marks(slots: &Slots, found: &mut Parts) -> u64 {
    let mut parts = 0;
    for (number, segment) in slots.known_segments() {
        let on_the_way = segment.present.load().without(segment.durable.load());
        for (slot, marked) in segment.in_pages.take(on_the_way) {
            parts += u64::from(marked.count_ones());
            found.insert((slots.no, number * SEGMENT_CHUNKS + slot), marked);
        }
    }
    parts * part_bytes(slots.chunk_size)
}

/// `found` stays instead of what stayed, of which that leaves which was not found again. More than two turns' worth, from readers faster than this, leaves at once.
fn turn(stays: &mut Parts, found: Parts, found_bytes: u64) -> Parts {
    let mut leaves = std::mem::take(stays);
    if found_bytes > 2 * TURN_BYTES {
        for (chunk, parts) in found {
            *leaves.entry(chunk).or_default() |= parts;
        }
        return leaves;
    }
    leaves.retain(|chunk, parts| {
        *parts &= !found.get(chunk).copied().unwrap_or_default();
        *parts != 0
    });
    *stays = found;
    leaves
}

fn drop_of(slots: &Slots, leaves: &Parts) -> rustix::io::Result<()> {
    let chunks = leaves.range((slots.no, 0)..=(slots.no, u32::MAX)).map(|((_, chunk), parts)| (*chunk, *parts));
    for (start, end) in runs(slots.chunk_size, chunks) {
        fadvise(&slots.data, start, NonZeroU64::new(end - start), Advice::DontNeed)?;
    }
    Ok(())
}

/// The runs of bytes to drop, start and end, ascending. A long one begins where a folio of its first byte may begin.
fn runs(chunk_size: ChunkSize, chunks: impl Iterator<Item = (u32, u16)>) -> Vec<(u64, u64)> {
    let (size, part) = (u64::from(chunk_size.bytes()), part_bytes(chunk_size));
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (chunk, parts) in chunks {
        for nth in (0..PARTS).filter(|nth| parts & (1 << nth) != 0) {
            let start = u64::from(chunk) * size + u64::from(nth) * part;
            match runs.last_mut() {
                Some((_, end)) if *end == start => *end += part,
                _ => runs.push((start, start + part)),
            }
        }
    }
    for (start, end) in &mut runs {
        if *end - *start >= LONG_BYTES {
            *start = start.saturating_sub(1) / FOLIO_BYTES * FOLIO_BYTES;
        }
    }
    runs
}

#[cfg(test)]
mod tests;

//! One blob's files and what is in them: the bits that a hit tests, and the pins that keep chunks in place.

use std::{
    fmt,
    fs::File,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use penstock_blob::{Blob, ByteRange, ChunkSize, Pinned};

use crate::{
    bits::{AtomicBits, Bits, SEGMENT_CHUNKS},
    format::{Sealer, SegmentRecord},
    pages::{Marks, Passed},
    policy::{Clock, Ghosts, Standing, Tier, key},
    queue::Queue,
    room::Room,
};

/// The unit of eviction, in bytes (one chunk when chunks are larger): punching smaller pieces fragments the file system
/// (`docs/formats/cache.md`).
const EXTENT_BYTES: u32 = 1 << 20;
/// Set in an extent's word while one of its chunks is leaving: the last unpin wakes the committer.
const LEAVING: u32 = 1 << 31;
/// Pins counted in an extent's word.
const PINS: u32 = LEAVING - 1;
/// More pins than this on one extent are refused (the read goes the slow way): far from overflow, far above any load.
const MAX_PINS: u32 = 1 << 24;

/// Presence of 256 chunks. Allocated when the first of them is stored, so memory follows what is cached: about 2 KiB per
/// 32 MiB at 128 KiB chunks, 64 MiB per TiB.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Stored on disk.
    pub(crate) present: AtomicBits,
    /// Stored, and known to hold the right bytes in this process's lifetime. Always within `present`. What a hit tests.
    pub(crate) checked: AtomicBits,
    /// Stored, synced and recorded. Always within `present`.
    pub(crate) durable: AtomicBits,
    /// Being given back; not present any more, space still taken.
    pub(crate) leaving: AtomicBits,
    /// Stored, fetched ahead, and not used yet. Changed by hits without a lock.
    pub(crate) ahead: AtomicBits,
    /// Those of `ahead` whose use asks for more.
    pub(crate) marks: AtomicBits,
    /// Of which parts the page cache may hold pages that nobody needs there. Changed by hits without a lock.
    pub(crate) in_pages: Marks,
    /// crc32c of each present chunk.
    pub(crate) crcs: [AtomicU32; SEGMENT_CHUNKS as usize],
    extents: Box<[Extent]>,
}

/// The unit of eviction: 8 bytes for each 1 MiB.
#[derive(Debug, Default)]
struct Extent {
    /// Pins and [`LEAVING`].
    word: AtomicU32,
    standing: Standing,
}

/// What a pin asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Checked bytes for a reader: a hit.
    Checked,
    /// Bytes on disk, to check them.
    Present,
}

/// The files of one blob. Bits change only under the lock of the [`crate::entry::Entry`] that owns this.
pub(crate) struct Slots {
    pub(crate) no: u32,
    pub(crate) blob: Blob,
    pub(crate) chunk_size: ChunkSize,
    pub(crate) sealer: Sealer,
    pub(crate) data: File,
    pub(crate) headers: File,
    pub(crate) present: AtomicU32,
    pub(crate) durable: AtomicU32,
    /// Chunks fetched ahead that were used since somebody looked.
    pub(crate) used_ahead: AtomicU32,
    /// What went up since pages were dropped.
    pub(crate) passed: Passed,
    /// Bytes taken from the room.
    pub(crate) charged: AtomicU64,
    chunks: u32,
    block: u64,
    segments: Box<[OnceLock<Box<Segment>>]>,
    room: Arc<Room>,
    queue: Arc<Queue>,
    clock: Arc<Clock>,
    ghosts: Arc<Ghosts>,
}

/// What new [`Slots`] are made of.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) no: u32,
    pub(crate) data: File,
    pub(crate) headers: File,
}

/// What the slots of a blob share with the whole cache.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) room: Arc<Room>,
    pub(crate) queue: Arc<Queue>,
    /// Allocation unit of the file system, in bytes.
    pub(crate) block: u64,
    pub(crate) clock: Arc<Clock>,
    pub(crate) ghosts: Arc<Ghosts>,
}

/// What presence takes of memory when chunks of this size fill `bytes`.
pub(crate) const fn presence_bytes(bytes: u64, chunk_size: ChunkSize) -> u64 {
    let segment = chunk_size.bytes() as u64 * SEGMENT_CHUNKS as u64;
    let extents = if chunk_size.bytes() > EXTENT_BYTES { SEGMENT_CHUNKS as u64 } else { extents_in(segment) };
    let each =
        (size_of::<Segment>() + size_of::<OnceLock<Box<Segment>>>()) as u64 + extents * size_of::<Extent>() as u64;
    bytes.div_ceil(segment).saturating_mul(each)
}

/// How many extents fill `bytes`.
pub(crate) const fn extents_in(bytes: u64) -> u64 {
    bytes.div_ceil(EXTENT_BYTES as u64)
}

/// Bytes that the files of a blob take beside its chunks: description, slot headers, and at worst the file system's own
/// record of one extent per chunk.
pub(crate) fn overhead(chunks: u32, block: u64) -> u64 {
    let tree = if chunks > 4 { u64::from(chunks.div_ceil(SEGMENT_CHUNKS)) * 4096 } else { 0 };
    4096_u64.next_multiple_of(block) + (u64::from(chunks) * 8).next_multiple_of(block) + tree.next_multiple_of(block)
}

/// Bytes on disk of chunks `first..=last` of `blob`.
pub(crate) fn charge(blob: &Blob, chunk_size: ChunkSize, first: u32, last: u32, block: u64) -> u64 {
    let size = u64::from(chunk_size.bytes());
    let end = (u64::from(last) + 1) * size;
    end.min(blob.size_bytes).next_multiple_of(block).saturating_sub(u64::from(first) * size)
}

/// The parts of chunks `first..=last` in each segment: segment, first slot, last slot.
pub(crate) fn by_segment(first: u32, last: u32) -> impl Iterator<Item = (u32, u32, u32)> {
    (first / SEGMENT_CHUNKS..=last / SEGMENT_CHUNKS).map(move |segment| {
        let base = segment * SEGMENT_CHUNKS;
        (segment, first.max(base) - base, last.min(base + (SEGMENT_CHUNKS - 1)) - base)
    })
}

impl Segment {
    pub(crate) fn new(extents: u32) -> Self {
        Self {
            present: AtomicBits::default(),
            checked: AtomicBits::default(),
            durable: AtomicBits::default(),
            leaving: AtomicBits::default(),
            ahead: AtomicBits::default(),
            marks: AtomicBits::default(),
            in_pages: Marks::default(),
            crcs: std::array::from_fn(|_| AtomicU32::new(0)),
            extents: (0..extents).map(|_| Extent::default()).collect(),
        }
    }

    /// The segment as its record would be now. A chunk that only its header knows is left out until its checksum was compared: after a
    /// power cut a header may have outlived its data, and the index speaks of whole chunks only.
    pub(crate) fn record(&self) -> SegmentRecord {
        let mut record = SegmentRecord::default();
        for slot in self.present.load().and(self.checked.load().or(self.durable.load())).iter() {
            record.put(slot, self.crc(slot));
        }
        record
    }

    pub(crate) fn crc(&self, slot: u32) -> u32 {
        self.crcs[(slot % SEGMENT_CHUNKS) as usize].load(Ordering::Relaxed)
    }

    fn extents(&self, first: u32, last: u32) -> &[Extent] {
        self.extents.get(first as usize..=last as usize).unwrap_or_default()
    }
}

impl Slots {
    /// Slots with nothing in them yet.
    pub(crate) fn new(blob: Blob, chunk_size: ChunkSize, files: Files, shared: &Shared) -> Self {
        let chunks = chunk_size.count(&blob).unwrap_or(u32::MAX);
        Self {
            no: files.no,
            blob,
            chunk_size,
            sealer: Sealer::new(&blob, chunk_size),
            data: files.data,
            headers: files.headers,
            present: AtomicU32::new(0),
            durable: AtomicU32::new(0),
            used_ahead: AtomicU32::new(0),
            passed: Passed::default(),
            charged: AtomicU64::new(0),
            chunks,
            block: shared.block,
            segments: (0..chunks.div_ceil(SEGMENT_CHUNKS)).map(|_| OnceLock::new()).collect(),
            room: shared.room.clone(),
            queue: shared.queue.clone(),
            clock: shared.clock.clone(),
            ghosts: shared.ghosts.clone(),
        }
    }

    pub(crate) const fn room(&self) -> &Arc<Room> {
        &self.room
    }

    pub(crate) fn segment_count(&self) -> u32 {
        self.chunks.div_ceil(SEGMENT_CHUNKS)
    }

    /// The segment, when anything was ever stored in it.
    pub(crate) fn segment(&self, segment: u32) -> Option<&Segment> {
        self.segments.get(segment as usize)?.get().map(|s| &**s)
    }

    /// The segment, made when missing; `None` beyond the blob.
    pub(crate) fn segment_or_new(&self, segment: u32) -> Option<&Segment> {
        let extents = SEGMENT_CHUNKS / self.extent_chunks();
        Some(self.segments.get(segment as usize)?.get_or_init(|| Box::new(Segment::new(extents))))
    }

    /// What all of this takes of memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let places = self.segments.len() * size_of::<OnceLock<Box<Segment>>>();
        let of = |segment: &Segment| size_of::<Segment>() + segment.extents.len() * size_of::<Extent>();
        let segments: usize = self.known_segments().map(|(_, segment)| of(segment)).sum();
        (size_of::<Self>() + places + segments) as u64
    }

    /// All segments in which anything was ever stored.
    pub(crate) fn known_segments(&self) -> impl Iterator<Item = (u32, &Segment)> {
        (0..).zip(self.segments.iter()).filter_map(|(n, s)| Some((n, &**s.get()?)))
    }

    fn extent_chunks(&self) -> u32 {
        (EXTENT_BYTES / self.chunk_size.bytes()).max(1)
    }

    /// Whether `chunk` is stored and checked.
    pub(crate) fn is_checked(&self, chunk: u32) -> bool {
        self.segment(chunk / SEGMENT_CHUNKS).is_some_and(|s| s.checked.has(chunk % SEGMENT_CHUNKS))
    }

    pub(crate) fn is_present(&self, chunk: u32) -> bool {
        self.segment(chunk / SEGMENT_CHUNKS).is_some_and(|s| s.present.has(chunk % SEGMENT_CHUNKS))
    }

    /// Whether `chunk` was fetched ahead and not used yet.
    pub(crate) fn is_ahead(&self, chunk: u32) -> bool {
        self.segment(chunk / SEGMENT_CHUNKS).is_some_and(|s| s.ahead.has(chunk % SEGMENT_CHUNKS))
    }

    /// Whether a chunk of `first..=last` is on its way out.
    pub(crate) fn any_leaving(&self, first: u32, last: u32) -> bool {
        by_segment(first, last).any(|(segment, a, b)| {
            self.segment(segment).is_some_and(|s| !s.leaving.load().and(Bits::span(a, b)).is_empty())
        })
    }

    /// Bytes on disk of some chunks of a segment.
    pub(crate) fn charge(&self, segment: u32, bits: Bits) -> u64 {
        let base = segment * SEGMENT_CHUNKS;
        bits.iter().map(|slot| charge(&self.blob, self.chunk_size, base + slot, base + slot, self.block)).sum()
    }

    /// Pins every chunk of `range` when all are as wanted. Given back by [`Pinned::unpin`] with the same range.
    ///
    /// Pins first, then tests: an evictor clears bits first, then looks at pins. One of the two sees the other.
    pub(crate) fn pin(&self, range: ByteRange, want: Want) -> bool {
        let span = self.chunk_size.span(range);
        for (segment, first, last) in by_segment(*span.start(), *span.end()) {
            let Some(part) = self.segment(segment) else {
                self.unpin_segments(range, segment);
                return false;
            };
            let calm = self.pin_extents(part, first, last, want);
            let bits = if want == Want::Checked { &part.checked } else { &part.present };
            if !calm || !bits.has_all(first, last) {
                self.unpin_segments(range, segment + 1);
                return false;
            }
        }
        true
    }

    /// Adds one pin to each extent that holds one of the slots. False when one has too many.
    fn pin_extents(&self, segment: &Segment, first: u32, last: u32, want: Want) -> bool {
        let chunks = self.extent_chunks();
        let mut calm = true;
        for extent in segment.extents(first / chunks, last / chunks) {
            let before = extent.word.fetch_add(1, Ordering::SeqCst);
            calm &= before & PINS < MAX_PINS;
            if want == Want::Checked {
                extent.standing.hit(&self.clock);
            }
        }
        calm
    }

    /// Takes one pin from each extent of `range` that lies in a segment before `end`.
    fn unpin_segments(&self, range: ByteRange, end: u32) {
        let span = self.chunk_size.span(range);
        let chunks = self.extent_chunks();
        for (segment, first, last) in by_segment(*span.start(), *span.end()).take_while(|(s, ..)| *s < end) {
            let Some(segment) = self.segment(segment) else { continue };
            for extent in segment.extents(first / chunks, last / chunks) {
                let before = extent.word.fetch_sub(1, Ordering::SeqCst);
                if before & LEAVING != 0 && before & PINS == 1 {
                    self.queue.hurry();
                }
            }
        }
    }

    /// Whether an extent that holds one of these chunks is pinned.
    pub(crate) fn is_pinned(&self, segment: u32, bits: Bits) -> bool {
        self.words_of(segment, bits).any(|(_, word)| word.load(Ordering::SeqCst) & PINS != 0)
    }

    /// Clears the bits of every chunk, unless one is pinned: then nothing changes. Says whether all is clear.
    pub(crate) fn clear(&self) -> bool {
        let all = Bits::ALL;
        let had: Vec<_> = self.known_segments().map(|(n, s)| (n, s, s.present.load(), s.checked.load())).collect();
        for (_, segment, ..) in &had {
            segment.checked.remove(all);
            segment.present.remove(all);
        }
        let pinned = had.iter().any(|(number, ..)| self.is_pinned(*number, all));
        for (_, segment, present, checked) in had.iter().filter(|_| pinned) {
            segment.present.add(*present);
            segment.checked.add(*checked);
        }
        !pinned
    }

    /// Makes the last unpin of these chunks' extents wake the committer.
    pub(crate) fn mark_leaving(&self, segment: u32, bits: Bits) {
        self.words_of(segment, bits).for_each(|(_, word)| {
            word.fetch_or(LEAVING, Ordering::SeqCst);
        });
    }

    /// Takes the mark off the extents of these chunks in which nothing is leaving any more.
    pub(crate) fn unmark_leaving(&self, segment: u32, bits: Bits) {
        let Some(still) = self.segment(segment).map(|s| s.leaving.load()) else { return };
        for (slots, word) in self.words_of(segment, bits) {
            if still.and(slots).is_empty() {
                word.fetch_and(!LEAVING, Ordering::SeqCst);
            }
        }
    }

    /// The extents that hold one of `bits`: all slots of the extent, and its word.
    fn words_of(&self, segment: u32, bits: Bits) -> impl Iterator<Item = (Bits, &AtomicU32)> {
        self.extents_of(segment, bits).map(|(_, slots, extent)| (slots, &extent.word))
    }

    /// The extents that hold one of `bits`: their number in the blob, all their slots, and themselves.
    fn extents_of(&self, segment: u32, bits: Bits) -> impl Iterator<Item = (u32, Bits, &Extent)> {
        let chunks = self.extent_chunks();
        let extents = self.segment(segment).map(|s| &*s.extents).unwrap_or_default();
        (0..).zip(extents).filter_map(move |(n, extent)| {
            let slots = Bits::span(n * chunks, (n + 1) * chunks - 1);
            (!slots.and(bits).is_empty()).then_some((segment * (SEGMENT_CHUNKS / chunks) + n, slots, extent))
        })
    }

    /// A chunk is about to be stored: when it is the first of its extent, that gets its place with the policy.
    pub(crate) fn place(&self, segment: &Segment, number: u32, slot: u32) {
        for (extent, slots, it) in self.extents_of(number, Bits::span(slot, slot)) {
            if segment.present.load().and(slots).is_empty() {
                self.clock.place(&it.standing, self.ghosts.tier(self.key(extent)));
            }
        }
    }

    /// Chunks were found on disk at the start: their extents get places with the policy.
    pub(crate) fn place_found(&self, number: u32, bits: Bits) {
        self.extents_of(number, bits).for_each(|(.., extent)| self.clock.found(&extent.standing));
    }

    /// An extent was evicted: one from probation is remembered.
    pub(crate) fn remember(&self, number: u32, bits: Bits) {
        let from = |standing: &Standing| standing.tier() == Tier::Probation;
        let gone = self.extents_of(number, bits).filter(|(.., extent)| from(&extent.standing));
        gone.for_each(|(extent, ..)| self.ghosts.add(self.key(extent)));
    }

    fn key(&self, extent: u32) -> u64 {
        key(self.blob.digest.as_bytes().first_chunk().copied().unwrap_or_default(), extent)
    }

    /// Shows every extent that holds something and is not pinned: number, standing, bytes on disk.
    pub(crate) fn each_extent(&self, see: &mut dyn FnMut(u32, &Standing, u64)) {
        for (number, segment) in self.known_segments() {
            let present = segment.present.load();
            if present.is_empty() {
                continue;
            }
            for (extent, slots, it) in self.extents_of(number, present) {
                if it.word.load(Ordering::Relaxed) & PINS == 0 {
                    see(extent, &it.standing, self.charge(number, present.and(slots)));
                }
            }
        }
    }

    /// The segment of an extent of the blob, and the slots it covers there.
    pub(crate) fn extent(&self, extent: u32) -> (u32, Bits) {
        let chunks = self.extent_chunks();
        let first = extent * chunks;
        let slot = first % SEGMENT_CHUNKS;
        (first / SEGMENT_CHUNKS, Bits::span(slot, slot + chunks - 1))
    }
}

impl Pinned for Slots {
    fn file(&self) -> &File {
        &self.data
    }

    fn unpin(&self, range: ByteRange) {
        self.unpin_segments(range, u32::MAX);
    }
}

impl Drop for Slots {
    /// What could not be given back when the blob was removed is given back now: the files are closed.
    fn drop(&mut self) {
        self.room.give(*self.charged.get_mut());
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("no", &self.no).field("blob", &self.blob).finish_non_exhaustive()
    }
}

/// Keeps chunks in place while they are checked.
#[derive(Debug)]
pub(crate) struct Hold {
    slots: Arc<Slots>,
    range: ByteRange,
}

impl Hold {
    /// Pins `range` when all of it is on disk.
    pub(crate) fn take(slots: &Arc<Slots>, range: ByteRange) -> Option<Self> {
        slots.pin(range, Want::Present).then(|| Self { slots: slots.clone(), range })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.slots.unpin(self.range);
    }
}

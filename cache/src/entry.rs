//! One blob in the cache: its slots once something was stored, the fills under way, and the one lock for every change.
//!
//! # States of a chunk
//!
//! | state | where it shows | next |
//! |---|---|---|
//! | absent | no bit, no fill | filling: somebody reads it |
//! | filling | in `fills` | absent: the fetch failed, or it was not stored; checked: written |
//! | checked | `present`, `checked` | leaving: evicted, rejected, or its sync failed |
//! | present | `present` only (loaded at open) | checked: its crc32c is right; leaving: it is not |
//! | leaving | `leaving` | absent: nobody pins it, the index has forgotten it, its hole is punched |
//!
//! `durable` is a property of a present chunk: synced and recorded.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use penstock_blob::{Blob, ChunkSize};

use crate::{
    ahead::Streams,
    bits::{Bits, SEGMENT_CHUNKS},
    fill::Fill,
    metrics::Metrics,
    queue::{Leaving, Queue},
    slots::{Segment, Slots},
    usage::Whole,
};

/// What changes under an entry's lock. Held for bit operations and map look-ups only, never across I/O.
#[derive(Debug)]
pub(crate) struct State {
    /// The fill of each chunk that is being fetched or checked.
    pub(crate) fills: HashMap<u32, Arc<Fill>>,
    /// Where it is read in order.
    pub(crate) streams: Streams,
    /// Removed from the table: find or make another entry.
    pub(crate) retired: bool,
    /// Times that chunks were dropped: who hashes the whole blob sees that it changed meanwhile.
    pub(crate) drops: u64,
    pub(crate) whole: Whole,
}

/// One blob.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) blob: Blob,
    pub(crate) chunk_size: ChunkSize,
    pub(crate) chunks: u32,
    /// Set when the first chunk is stored.
    pub(crate) slots: OnceLock<Arc<Slots>>,
    /// Held while files are made, so that they are made once.
    pub(crate) creating: Mutex<()>,
    pub(crate) fetched_bytes: AtomicU64,
    /// How many read it along a plan: see [`crate::Followed`].
    pub(crate) followers: AtomicU32,
    /// Operators have heard that chunks of it failed a check.
    pub(crate) was_corrupt: AtomicBool,
    state: Mutex<State>,
}

/// Why an extent was not evicted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Pinned,
    Empty,
}

impl Entry {
    pub(crate) fn new(blob: Blob, chunk_size: ChunkSize, chunks: u32) -> Self {
        let state = State {
            fills: HashMap::new(),
            streams: Streams::default(),
            retired: false,
            drops: 0,
            whole: Whole::Partial,
        };
        Self {
            blob,
            chunk_size,
            chunks,
            slots: OnceLock::new(),
            creating: Mutex::new(()),
            fetched_bytes: AtomicU64::new(0),
            followers: AtomicU32::new(0),
            was_corrupt: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether every chunk is stored.
    pub(crate) fn is_whole(&self) -> bool {
        self.slots.get().is_some_and(|slots| slots.present.load(Ordering::Relaxed) == self.chunks)
    }
}

/// The bit changes. Each takes the state as proof of the lock.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    pub(crate) entry: &'a Arc<Entry>,
    pub(crate) slots: &'a Slots,
    pub(crate) state: &'a mut State,
    pub(crate) metrics: &'a Metrics,
    pub(crate) queue: &'a Queue,
}

impl Change<'_> {
    /// A chunk was written: locatable from now on.
    pub(crate) fn stored(&self, (number, segment): (u32, &Segment), slot: u32, crc: u32) {
        let mut bit = Bits::default();
        bit.set(slot);
        self.slots.place(segment, number, slot);
        if let Some(place) = segment.crcs.get(slot as usize) {
            place.store(crc, Ordering::Relaxed);
        }
        segment.present.add(bit);
        segment.checked.add(bit);
        self.slots.present.fetch_add(1, Ordering::Relaxed);
        self.metrics.present_chunks.inc();
    }

    /// A chunk that was just stored was fetched ahead, and nobody waits for it.
    pub(crate) fn stored_ahead(&self, number: u32, segment: &Segment, slot: u32) {
        let mut bit = Bits::default();
        bit.set(slot);
        if self.state.streams.is_marked(number * SEGMENT_CHUNKS + slot) {
            segment.marks.add(bit);
        }
        segment.ahead.add(bit);
    }

    /// Chunks were synced and recorded. Those dropped meanwhile are not counted.
    pub(crate) fn recorded(&self, segment: &Segment, bits: Bits) {
        let fresh = bits.and(segment.present.load()).without(segment.durable.load());
        segment.durable.add(fresh);
        self.slots.durable.fetch_add(fresh.count(), Ordering::Relaxed);
        self.metrics.durable_chunks.inc_by(u64::from(fresh.count()));
    }

    /// Drops those of `bits` that are present, pinned or not; says how many. Who pinned them keeps reading the old bytes: they stay
    /// in place until the pins are gone.
    pub(crate) fn discard(&mut self, number: u32, bits: Bits) -> u32 {
        // A retired blob is not counted any more.
        let Some(segment) = self.slots.segment(number).filter(|_| !self.state.retired) else { return 0 };
        let bits = bits.and(segment.present.load());
        if bits.is_empty() {
            return 0;
        }
        segment.checked.remove(bits);
        segment.present.remove(bits);
        self.dropped(number, segment, bits);
        bits.count()
    }

    /// Drops the chunks of an extent unless somebody has it pinned.
    pub(crate) fn evict(&mut self, extent: u32) -> Result<u64, Kept> {
        let (number, bits) = self.slots.extent(extent);
        let segment = self.slots.segment(number).filter(|_| !self.state.retired).ok_or(Kept::Empty)?;
        let bits = bits.and(segment.present.load());
        if bits.is_empty() {
            return Err(Kept::Empty);
        }
        let checked = bits.and(segment.checked.load());
        segment.checked.remove(bits);
        segment.present.remove(bits);
        if self.slots.is_pinned(number, bits) {
            segment.present.add(bits);
            segment.checked.add(checked);
            return Err(Kept::Pinned);
        }
        self.slots.remember(number, bits);
        self.dropped(number, segment, bits);
        self.metrics.evicted_chunks.inc_by(u64::from(bits.count()));
        Ok(self.slots.charge(number, bits))
    }

    /// The bookkeeping of chunks whose bits were just cleared.
    fn dropped(&mut self, number: u32, segment: &Segment, bits: Bits) {
        let durable = bits.and(segment.durable.load());
        segment.durable.remove(durable);
        segment.leaving.add(bits);
        segment.marks.remove(bits);
        let wasted = segment.ahead.take(bits);
        self.metrics.ahead_wasted_bytes.inc_by(self.slots.charge(number, wasted));
        self.slots.mark_leaving(number, bits);
        self.slots.present.fetch_sub(bits.count(), Ordering::Relaxed);
        self.slots.durable.fetch_sub(durable.count(), Ordering::Relaxed);
        self.metrics.present_chunks.dec_by(u64::from(bits.count()));
        self.metrics.durable_chunks.dec_by(u64::from(durable.count()));
        self.slots.room().leave(self.slots.charge(number, bits));
        self.state.drops += 1;
        if self.state.whole == Whole::Verified {
            self.state.whole = Whole::Partial;
            self.queue.dirty_blob(self.slots.no, self.entry);
        }
        self.queue.leave(
            self.slots.no,
            Leaving { entry: self.entry.clone(), segment: number, bits, sealed: true, expected: true },
        );
    }
}

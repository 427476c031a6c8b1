//! The committer: one thread that makes stored chunks durable and gives evicted ones back, in groups.
//!
//! For a group, in this order, so that a crash between any two steps loses chunks at most and never makes one wrong:
//! 1. room is wanted: choose victims and clear their bits (new readers miss; pinned extents are skipped);
//! 2. note which chunks are present in every changed segment; clear the slot headers of what leaves; sync data files and slot headers;
//! 3. one index batch and a flush;
//! 4. the noted chunks are durable, what left does not come back; what left and is not pinned: punch its hole, give its room back.
//!
//! A step that fails leaves the group in the queue, to be tried again after a pause. Nothing that reads waits for any of this.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{
    bits::{Bits, SEGMENT_CHUNKS},
    entry::Entry,
    evict::make_room,
    format::{BlobRecord, HEADER_BYTES, SYS_KEY, SegmentRecord, SysRecord, blob_key, segment_key},
    index::Write,
    keeper::{Fault, Keeper},
    queue::{Dirty, Group, Leaving, Stop},
    slots::Slots,
    store::Store,
    usage::{Event, IndexState, Whole},
};

/// Refused commits in a row after which the index is given up for this process; failed groups after which a flush is answered
/// all the same.
const MAX_FAILURES: u32 = 3;
/// Owns the index and every write to it.
#[derive(Debug)]
pub(crate) struct Committer {
    store: Arc<Store>,
    keeper: Option<Keeper>,
    sys: SysRecord,
    /// Groups that failed in a row, for whatever reason.
    failures: u32,
    /// Commits that the index refused in a row.
    refusals: u32,
    pause: Option<Instant>,
    backoff: Duration,
}

/// A segment as it is about to be recorded.
struct Noted {
    entry: Arc<Entry>,
    slots: Arc<Slots>,
    number: u32,
    record: SegmentRecord,
}

impl Committer {
    pub(crate) fn new(store: Arc<Store>, keeper: Option<Keeper>, sys: SysRecord, backoff: Duration) -> Self {
        Self { store, keeper, sys, failures: 0, refusals: 0, pause: None, backoff }
    }

    /// Whether the index is still in use.
    pub(crate) const fn has_index(&self) -> bool {
        self.keeper.is_some()
    }

    /// Works until told to stop.
    pub(crate) fn run(mut self) {
        loop {
            match self.store.queue().wait(self.pause) {
                None => {
                    self.group();
                }
                Some(Stop::Abandon) => return,
                Some(Stop::Drain) => return self.drain(),
            }
        }
    }

    /// Commits what is queued, and once more what that queued; then closes the index.
    fn drain(mut self) {
        let mut clean = false;
        // Each failed round counts towards giving the index up; after that rounds do not fail by it.
        for _ in 0..=MAX_FAILURES {
            clean = self.group();
            if clean {
                break;
            }
        }
        let Some(keeper) = self.keeper.take() else { return };
        if !keeper.close() {
            tracing::warn!("the cache index did not close within {:?}", self.store.config.watchdog);
            return;
        }
        // Chunks that only their headers know, not read since: the next start has to look at headers again.
        let complete = clean && self.store.metrics.present_chunks.get() == self.store.metrics.durable_chunks.get();
        if let Err(e) = if complete { self.store.layout.leave_clean(&self.sys.mark()) } else { Ok(()) } {
            tracing::warn!(
                "no marker of an orderly close could be left, the next start will read all slot headers: {e}"
            );
        }
    }

    /// One group. False when something failed and is queued again.
    pub(crate) fn group(&mut self) -> bool {
        self.store.look_at_room();
        let short = make_room(&self.store);
        let mut group = self.store.queue().take();
        let flushes = std::mem::take(&mut group.flushes);
        if group.is_empty() {
            return self.finish(short, Group { flushes, ..Group::default() }, true);
        }
        let noted = self.note(&group);
        let mut unsynced = self.unseal(&group);
        unsynced.append(&mut self.sync(&noted));
        let mut again = set_apart(&mut group, &unsynced);
        let batch = self.batch(&group, noted.iter().filter(|n| !unsynced.contains(&n.slots.no)));
        if let Err(fault) = self.commit(batch) {
            self.failed(&fault);
            group.leaving.append(&mut again.leaving);
            group.dirty.append(&mut again.dirty);
            return self.finish(short, Group { flushes, ..group }, false);
        }
        for noted in noted.iter().filter(|n| !unsynced.contains(&n.slots.no)) {
            self.recorded(noted);
        }
        let mut good = again.is_empty();
        let mut held = Vec::new();
        for mut leaving in group.leaving {
            let left = self.leave(&leaving);
            if std::mem::take(&mut leaving.expected) {
                self.store.room().left(leaving.bytes());
                if !matches!(left, Left::Gone) {
                    // Who waits for room was promised this: somebody else has to go, or nobody can.
                    self.store.queue().hurry();
                }
            }
            match left {
                Left::Gone => {}
                Left::Pinned => held.push(Leaving { sealed: false, ..leaving }),
                Left::Failed => {
                    again.leaving.push(leaving);
                    good = false;
                }
            }
        }
        self.store.left.notify_waiters();
        // No clock runs for what is pinned: its last unpin wakes the committer.
        self.store.queue().put_back(Group { leaving: held, ..Group::default() }, false);
        self.finish(short, Group { flushes, ..again }, good)
    }

    /// Ends a group: what failed is queued again with a pause, who waits is told.
    fn finish(&mut self, short: bool, mut again: Group, good: bool) -> bool {
        if good {
            self.failures = 0;
            self.pause = None;
        } else {
            self.store.metrics.commit_failures.inc();
            self.failures += 1;
            self.pause = Some(Instant::now() + self.backoff * (1 << self.failures.min(8)));
        }
        // A flush is answered when all is done, or when waiting longer would not help.
        let answered = good || self.failures > MAX_FAILURES;
        let flushes = if answered { std::mem::take(&mut again.flushes) } else { Vec::new() };
        self.store.queue().put_back(again, true);
        for flush in flushes {
            // Who asked may have gone.
            let _ = flush.send(());
        }
        // What was to make room may stay for as long as the disk fails: who waits for it is served without storing.
        if short || !good {
            self.store.room().refuse();
        }
        good
    }

    /// What every changed segment holds now. Whatever is present has been written already, so a sync from here on covers it.
    fn note(&self, group: &Group) -> Vec<Noted> {
        let mut noted = Vec::new();
        for dirty in group.dirty.values() {
            let Some(slots) = dirty.entry.slots.get() else { continue };
            let state = dirty.entry.lock();
            if state.retired {
                continue;
            }
            for &number in &dirty.segments {
                let record = slots.segment(number).map(|s| s.record()).unwrap_or_default();
                noted.push(Noted { entry: dirty.entry.clone(), slots: slots.clone(), number, record });
            }
        }
        noted
    }

    /// Clears the slot headers of what leaves, durably: a chunk that was rejected must not come back by its header once the index has
    /// forgotten it. The numbers of the blobs for which that failed; it is tried again.
    fn unseal(&self, group: &Group) -> BTreeSet<u32> {
        let mut cleared = BTreeMap::new();
        for leaving in group.leaving.iter().filter(|leaving| leaving.sealed && !leaving.entry.lock().retired) {
            let Some(slots) = leaving.entry.slots.get() else { continue };
            let done = self.clear_headers(slots, leaving.segment, leaving.bits);
            let (_, all) = cleared.entry(slots.no).or_insert((slots, Ok(())));
            *all = std::mem::replace(all, Ok(())).and(done);
        }
        let mut failed = BTreeSet::new();
        for (no, (slots, done)) in cleared {
            if let Err(e) = done.and_then(|()| self.store.disk.sync(&slots.headers)) {
                tracing::warn!("slot headers of blob {} could not be cleared: {e}", slots.blob.digest);
                failed.insert(no);
            }
        }
        failed
    }

    /// Syncs the files of every blob that got new chunks; the numbers of those that failed.
    ///
    /// After a failed sync nobody knows what the disk holds: the kernel may have let go of the pages, and calls the next sync a
    /// success. So the chunks concerned are dropped; they were served when they were fetched, and are fetched again when needed.
    fn sync(&self, noted: &[Noted]) -> BTreeSet<u32> {
        let fresh = |n: &Noted| {
            let durable = n.slots.segment(n.number).map(|s| s.durable.load()).unwrap_or_default();
            n.record.bits.without(durable)
        };
        let mut synced = BTreeSet::new();
        let mut failed = BTreeSet::new();
        for noted in noted.iter().filter(|n| !fresh(n).is_empty()) {
            let slots = &noted.slots;
            if !synced.insert(slots.no) {
                continue;
            }
            let done = self.store.disk.sync(&slots.data).and_then(|()| self.store.disk.sync(&slots.headers));
            if let Err(e) = done {
                tracing::warn!(
                    "new chunks of blob {} could not be synced to disk and are dropped: {e}",
                    slots.blob.digest
                );
                self.store.note_write::<()>(&Err(e));
                failed.insert(slots.no);
            }
        }
        for noted in noted.iter().filter(|n| failed.contains(&n.slots.no)) {
            let lost = fresh(noted);
            let mut state = noted.entry.lock();
            self.store.change(&noted.entry, &noted.slots, &mut state).discard(noted.number, lost);
        }
        failed
    }

    /// What was noted is durable.
    fn recorded(&self, noted: &Noted) {
        let mut state = noted.entry.lock();
        let Some(segment) = noted.slots.segment(noted.number).filter(|_| !state.retired) else { return };
        let fresh = noted.record.bits.without(segment.durable.load());
        self.store.change(&noted.entry, &noted.slots, &mut state).recorded(segment, noted.record.bits);
        self.store.pages.written(&noted.slots, segment, fresh);
    }

    /// The records of a group.
    fn batch<'a>(&self, group: &Group, noted: impl Iterator<Item = &'a Noted>) -> Vec<Write> {
        let mut batch = Vec::new();
        for noted in noted {
            let key = segment_key(noted.slots.no, noted.number);
            batch.push(Write { key: key.to_vec(), value: Some(noted.record.encode(key)) });
        }
        for (no, dirty) in group.dirty.iter().filter(|(_, dirty)| dirty.blob) {
            let state = dirty.entry.lock();
            if !state.retired {
                let verified = state.whole == Whole::Verified;
                let record = BlobRecord { blob: dirty.entry.blob, chunk_size: dirty.entry.chunk_size, verified };
                batch.push(Write { key: blob_key(*no).to_vec(), value: Some(record.encode(*no)) });
            }
        }
        for gone in &group.gone {
            batch.push(Write { key: blob_key(gone.no).to_vec(), value: None });
            batch.extend((0..gone.segments).map(|n| Write { key: segment_key(gone.no, n).to_vec(), value: None }));
        }
        batch
    }

    /// Makes a batch durable; without an index the synced slot headers are the record, and this does nothing.
    fn commit(&mut self, mut batch: Vec<Write>) -> Result<(), Fault> {
        // Nothing to record: what leaves now was waiting for a pin, its bits were committed before.
        let Some(keeper) = self.keeper.as_ref().filter(|_| !batch.is_empty()) else { return Ok(()) };
        let next = SysRecord {
            commits: self.sys.commits + 1,
            next_no: self.store.next_no.load(Ordering::Relaxed),
            ..self.sys
        };
        batch.push(Write { key: SYS_KEY.to_vec(), value: Some(next.encode()) });
        keeper.commit(batch)?;
        self.sys = next;
        self.store.layout.note_reached(&next.mark());
        self.refusals = 0;
        self.store.metrics.commits.inc();
        Ok(())
    }

    /// Gives the index up when that is the only thing left to do.
    fn failed(&mut self, fault: &Fault) {
        tracing::warn!("a commit to the cache index failed: {}", fault.error);
        self.refusals += 1;
        if !fault.lost && self.refusals < MAX_FAILURES {
            return;
        }
        if let Some(keeper) = self.keeper.take().filter(|_| !fault.lost) {
            keeper.close();
        }
        abandon(&self.store, &fault.error.0);
        if let Err(e) = self.store.layout.set_index_aside() {
            // It will be found not to match at the next start all the same: there is no marker of an orderly close.
            tracing::warn!("the failed cache index could not be renamed: {e}");
        }
    }

    /// Gives the space of leaving chunks back.
    fn leave(&self, leaving: &Leaving) -> Left {
        let Leaving { entry, segment: number, bits, .. } = leaving;
        let Some(slots) = entry.slots.get() else { return Left::Gone };
        if entry.lock().retired {
            return Left::Gone;
        }
        if slots.is_pinned(*number, *bits) {
            return Left::Pinned;
        }
        if let Err(e) = self.punch(slots, *number, *bits) {
            tracing::warn!("the space of evicted chunks of blob {} could not be freed: {e}", slots.blob.digest);
            return Left::Failed;
        }
        let bytes = leaving.bytes();
        {
            let _state = entry.lock();
            if let Some(segment) = slots.segment(*number) {
                segment.leaving.remove(*bits);
            }
            slots.unmark_leaving(*number, *bits);
        }
        slots.charged.fetch_sub(bytes, Ordering::Relaxed);
        self.store.room().give(bytes);
        Left::Gone
    }

    /// Empties the slot headers of some chunks.
    fn clear_headers(&self, slots: &Slots, number: u32, bits: Bits) -> std::io::Result<()> {
        for (first, last) in runs(bits) {
            let zeroes = vec![0; (last - first + 1) as usize * HEADER_BYTES];
            let at = u64::from(number * SEGMENT_CHUNKS + first) * HEADER_BYTES as u64;
            self.store.disk.write_at(&slots.headers, &zeroes, at)?;
        }
        Ok(())
    }

    /// Punches the holes of some chunks.
    fn punch(&self, slots: &Slots, number: u32, bits: Bits) -> std::io::Result<()> {
        let size = u64::from(slots.chunk_size.bytes());
        for (first, last) in runs(bits) {
            let at = u64::from(number * SEGMENT_CHUNKS + first) * size;
            self.store.disk.punch(&slots.data, at, u64::from(last - first + 1) * size)?;
        }
        Ok(())
    }
}

/// How the end of a leaving chunk went.
enum Left {
    Gone,
    Pinned,
    Failed,
}

/// Notes that there is no index any more, and says so once.
pub(crate) fn abandon(store: &Store, reason: &str) {
    *store.index.lock() = IndexState::Abandoned { reason: reason.to_owned() };
    store.metrics.index_in_use.set(0);
    store.tell(Event::IndexAbandoned { reason: reason.to_owned() });
}

/// Takes everything that belongs to these blobs out of the group.
fn set_apart(group: &mut Group, numbers: &BTreeSet<u32>) -> Group {
    let mut apart = Group::default();
    for no in numbers {
        if let Some(Dirty { entry, segments, blob }) = group.dirty.remove(no) {
            apart.dirty.insert(*no, Dirty { entry, segments, blob });
        }
    }
    let belongs = |l: &Leaving| l.entry.slots.get().is_some_and(|slots| numbers.contains(&slots.no));
    apart.leaving = group.leaving.extract_if(.., |l| belongs(l)).collect();
    apart
}

/// Runs of set bits, first and last.
pub(crate) fn runs(bits: Bits) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for slot in bits.iter() {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == slot => *last = slot,
            _ => runs.push((slot, slot)),
        }
    }
    runs
}

//! Starting what [`crate::ahead`] decides, within bounds: bytes under way, and disk space that nobody has to leave for it.

use std::sync::{Arc, atomic::Ordering};

use penstock_blob::{Blob, BlobSource as _, ByteRange, Purpose};
use tokio::sync::mpsc;

use crate::{
    ahead::{BUSY, Limits, Run},
    bits::Bits,
    entry::{Entry, State},
    fill::{Fill, Kind, Lead},
    read::longest_run,
    slots::{Slots, by_segment, charge},
    store::Store,
};

/// Uses of marked chunks that wait to be looked at; more are forgotten, and their streams go on at the next miss.
pub(crate) const TOUCHES: usize = 256;
/// Bytes of the place that a miss brings along: one latency of 20 ms at 100 MB/s. Compared with half and twice as much on nine orders of first needs
/// (docs/performance.md).
const PLACE_BYTES: u64 = 2 << 20;
/// One stream has so much of all bytes ahead under way in a batch.
const STREAM_PART: u64 = 4;

/// A marked chunk that was used.
pub(crate) type Touch = (Blob, u32);

/// Bytes under way that nobody waits for.
#[derive(Debug)]
pub(crate) struct Speculated {
    store: Arc<Store>,
    bytes: u64,
}

impl Speculated {
    /// `None` when that would be too many.
    fn take(store: &Arc<Store>, bytes: u64) -> Option<Self> {
        let most = store.config.ahead_bytes;
        let take = |under_way: u64| under_way.checked_add(bytes).filter(|sum| *sum <= most);
        store.ahead_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Self { store: store.clone(), bytes })
    }
}

impl Drop for Speculated {
    fn drop(&mut self) {
        self.store.ahead_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What a hit does besides: chunks that were read ahead count as used, and a marked one among them is told. Lock-free.
pub(crate) fn used(store: &Store, slots: &Slots, range: ByteRange) {
    let span = slots.chunk_size.span(range);
    for (number, first, last) in by_segment(*span.start(), *span.end()) {
        let Some(segment) = slots.segment(number) else { continue };
        if !segment.ahead.has_any(first, last) {
            continue;
        }
        let span = Bits::span(first, last);
        let fresh = segment.ahead.take(span);
        slots.used_ahead.fetch_add(fresh.count(), Ordering::Relaxed);
        store.metrics.ahead_used_bytes.inc_by(u64::from(fresh.count()) * u64::from(slots.chunk_size.bytes()));
        for slot in segment.marks.take(span).iter() {
            // A full or closed channel: the stream goes on at the next miss.
            let _ = store.touches.try_send((slots.blob, number * crate::bits::SEGMENT_CHUNKS + slot));
        }
    }
}

/// Somebody waits for a fill that was begun ahead: its chunks count as used. Answers those whose use asks for more.
pub(crate) fn joined(store: &Store, state: &mut State, fill: &Fill) -> Vec<u32> {
    state.streams.used(fill.last - fill.first + 1);
    store.metrics.ahead_used_bytes.inc_by(fill.range.len());
    (fill.first..=fill.last).filter(|&chunk| state.streams.is_marked(chunk)).collect()
}

/// Goes on with streams whose marked chunks were used, until the cache stops.
pub(crate) async fn run(store: Arc<Store>, mut touches: mpsc::Receiver<Touch>) {
    loop {
        let (blob, chunk) = tokio::select! {
            biased;
            () = store.stop.cancelled() => return,
            touch = touches.recv() => match touch {
                Some(touch) => touch,
                None => return,
            },
        };
        let Some(entry) = store.table.load().get(&blob).cloned() else { continue };
        let mut state = entry.lock();
        if state.retired || store.closing.load(Ordering::SeqCst) {
            continue;
        }
        let leads = go_on(&store, &entry, &mut state, chunk);
        drop(state);
        Lead::start(leads);
    }
}

/// What is read ahead because a marked chunk was used.
pub(crate) fn go_on(store: &Arc<Store>, entry: &Arc<Entry>, state: &mut State, chunk: u32) -> Vec<(Lead, Kind)> {
    let Some(limits) = limits(store, entry) else { return Vec::new() };
    count_used(entry, state);
    let State { streams, fills, .. } = state;
    let slots = entry.slots.get();
    let is_used = |chunk: &u32| match fills.get(chunk) {
        Some(fill) => fill.is_wanted(),
        None => slots.is_none_or(|slots| !slots.is_ahead(*chunk)),
    };
    let used = |first: u32, last: u32| u32::try_from((first..=last).filter(is_used).count()).unwrap_or(u32::MAX);
    let run = streams.touched(chunk, limits, used);
    run.map_or_else(Vec::new, |run| begin(store, entry, state, run))
}

/// What is read ahead because chunks `first..=last` were missed: nothing of a blob that is read along a plan.
pub(crate) fn missed(store: &Arc<Store>, entry: &Arc<Entry>, state: &mut State, run: Run) -> Vec<(Lead, Kind)> {
    if entry.followers.load(Ordering::Relaxed) > 0 {
        return Vec::new();
    }
    let Some(limits) = limits(store, entry) else { return Vec::new() };
    count_used(entry, state);
    let runs = state.streams.missed(run, waited_for(state), limits);
    runs.flat_map(|run| begin(store, entry, state, run)).collect()
}

/// Fills that somebody waits for, up to [`BUSY`].
fn waited_for(state: &State) -> usize {
    let is_waited_for = |(chunk, fill): &(&u32, &Arc<Fill>)| **chunk == fill.first && fill.is_wanted();
    state.fills.iter().filter(is_waited_for).take(BUSY).count()
}

/// `None` when nothing is read ahead.
fn limits(store: &Store, entry: &Entry) -> Option<Limits> {
    let chunk = u64::from(entry.chunk_size.bytes());
    let count = |bytes: u64| u32::try_from(bytes / chunk).unwrap_or(u32::MAX);
    let window = count(store.config.ahead_bytes / STREAM_PART);
    (window > 0).then(|| Limits { chunks: entry.chunks, place: count(PLACE_BYTES).clamp(1, window), window })
}

fn count_used(entry: &Entry, state: &mut State) {
    if let Some(slots) = entry.slots.get() {
        state.streams.used(slots.used_ahead.swap(0, Ordering::Relaxed));
    }
}

/// How many chunks one fill gets of what nobody waits for: one, unless the sources below bring several anyway.
pub(crate) fn unit(store: &Store, entry: &Entry, chunk: u32) -> u32 {
    let alone = |range: ByteRange| store.upstream.widen(&entry.blob, range) == range;
    match entry.chunk_size.range(&entry.blob, chunk) {
        Some(range) if !alone(range) => longest_run(entry.chunk_size),
        _ => 1,
    }
}

/// Fills of those chunks of a run that are absent, as far as the bounds go.
fn begin(store: &Arc<Store>, entry: &Arc<Entry>, state: &mut State, run: Run) -> Vec<(Lead, Kind)> {
    let (slots, unit) = (entry.slots.get(), unit(store, entry, run.0));
    let is_absent = |state: &State, chunk: u32| {
        !state.fills.contains_key(&chunk) && slots.is_none_or(|slots| !slots.is_present(chunk))
    };
    let mut leads = Vec::new();
    let (mut chunk, last) = run;
    while chunk <= last {
        let (first, end) = (chunk, chunk.saturating_add(unit).min(last + 1));
        while chunk < end && is_absent(state, chunk) {
            chunk += 1;
        }
        if chunk == first {
            chunk += 1;
            continue;
        }
        let Some(lead) = lead(store, entry, (first, chunk - 1)) else { break };
        state.fills.extend((first..chunk).map(|chunk| (chunk, lead.fill().clone())));
        state.streams.spent(chunk - first);
        leads.push((lead, Kind::Fetch));
    }
    leads
}

/// A fill that nobody asked for; `None` when there is no room for it.
fn lead(store: &Arc<Store>, entry: &Arc<Entry>, (first, last): (u32, u32)) -> Option<Lead> {
    let range = entry.chunk_size.range(&entry.blob, first)?.cover(entry.chunk_size.range(&entry.blob, last)?);
    let bytes = charge(&entry.blob, entry.chunk_size, first, last, store.shared.block);
    let may = store.storing.is_allowed() && store.room().has_spare(bytes);
    let speculated = Speculated::take(store, range.len()).filter(|_| may)?;
    Some(Lead::new(store, entry, (first, last), (range, Purpose::Ahead)).with(speculated))
}

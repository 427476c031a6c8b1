//! Reading again what is on disk, chunk by chunk, past the page cache: at once when asked ([`crate::Cache::verify`]), and slowly in the
//! background all the time. Chunks whose checksum is wrong, and whole blobs that are not their digest, are dropped.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use penstock_blob::{ByteRange, Hasher, Purpose};
use rustix::fs::{Advice, fadvise};

use crate::{
    bits::SEGMENT_CHUNKS,
    entry::Entry,
    fill::{self, Trusted, check_run},
    read,
    slots::Slots,
    store::Store,
    usage::{Event, Scrubbed},
    verify::{self, Found},
};

/// Bytes read at once: the largest chunk.
const STEP_BYTES: u32 = 4 << 20;
/// Most bytes that the background reads in a second, however short the interval: a tenth of what a slow disk gives.
const MAX_RATE: u64 = 16 << 20;
/// How long the background waits before it looks again whether anything is cached, at most.
const IDLE: Duration = Duration::from_secs(3600);

/// How fast chunks are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As fast as the disk gives them.
    Now,
    /// This long for each byte, and not while chunks are being fetched.
    Nanos(u64),
}

impl Pace {
    /// The pace that spreads `bytes` over `interval`.
    fn spread(bytes: u64, interval: Duration) -> Self {
        let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX) / bytes.max(1);
        Self::Nanos(nanos.max(1_000_000_000 / MAX_RATE))
    }
}

/// Scrubs again and again, each pass in [`crate::Config::scrub_interval`], until the cache stops. Passes begin at a random blob, so that
/// all have their turn though no process lives as long as a pass.
pub(crate) async fn run(store: Arc<Store>, interval: Duration) {
    loop {
        let mut blobs = store.stored();
        let bytes = blobs.iter().map(|(_, slots)| present_bytes(slots)).sum();
        if bytes == 0 {
            if !rest(&store, interval.min(IDLE)).await {
                return;
            }
            continue;
        }
        let first = fastrand::usize(..blobs.len());
        blobs.rotate_left(first);
        let mut sum = Scrubbed::default();
        for (entry, slots) in blobs {
            match scrub(&store, (&entry, &slots), Pace::spread(bytes, interval), false).await {
                Some(one) => sum.add(&one),
                None => return,
            }
        }
        store.tell(Event::Scrubbed(sum));
    }
}

/// Waits; false when the cache stops first.
async fn rest(store: &Store, time: Duration) -> bool {
    tokio::select! {
        () = store.stop.cancelled() => false,
        () = tokio::time::sleep(time) => true,
    }
}

fn present_bytes(slots: &Slots) -> u64 {
    u64::from(slots.present.load(Ordering::Relaxed)) * u64::from(slots.chunk_size.bytes())
}

/// Reads all of a blob that is on disk again. With `repair`, what was dropped is fetched at once. `None` when the cache stops.
pub(crate) async fn scrub(
    store: &Arc<Store>,
    (entry, slots): (&Arc<Entry>, &Arc<Slots>),
    pace: Pace,
    repair: bool,
) -> Option<Scrubbed> {
    let mut sum = Scrubbed { blobs: 1, ..Scrubbed::default() };
    let drops = entry.lock().drops;
    let mut hasher = (entry.is_whole() && !entry.blob.digest.is_derived()).then(Hasher::new);
    let mut dropped = Vec::new();
    for (first, last) in runs(slots, entry.chunks, (STEP_BYTES / entry.chunk_size.bytes()).max(1)) {
        let range = entry.chunk_size.range(&entry.blob, first)?.cover(entry.chunk_size.range(&entry.blob, last)?);
        if !paced(store, pace, range.len()).await {
            return None;
        }
        let (store, entry, slots) = (store.clone(), entry.clone(), slots.clone());
        let step = tokio::task::spawn_blocking(move || {
            forget_pages(&slots, range);
            let found = check_run(&store, (&entry, &slots), (first, last), Trusted::Nothing);
            forget_pages(&slots, range);
            if let (Some(hasher), fill::Found::Right(bytes)) = (&mut hasher, &found) {
                hasher.update(bytes);
            }
            (hasher, found)
        });
        let found;
        // An error: the runtime is stopping.
        (hasher, found) = step.await.ok()?;
        sum.bytes += range.len();
        sum.chunks += u64::from(last - first + 1);
        if let fill::Found::Wrong(chunks) = found {
            sum.corrupt_chunks += u64::from(chunks);
            dropped.push(range);
        }
    }
    if let Some(hasher) = hasher {
        let (digest, blob) = (hasher.finish(), entry.blob);
        if digest != blob.digest && entry.lock().drops == drops {
            verify::settle(store, entry, drops, Found::Mismatch(digest));
            sum.mismatched_blobs = 1;
            dropped.extend(blob.all());
        }
    }
    if repair {
        let came = fetch_again(store, entry, &dropped).await;
        sum.repaired_ranges = came;
        sum.not_repaired_ranges = u64::try_from(dropped.len()).unwrap_or(u64::MAX) - came;
    }
    Some(sum)
}

/// Waits for this many bytes' turn. False when the cache stops.
async fn paced(store: &Store, pace: Pace, bytes: u64) -> bool {
    match pace {
        Pace::Now => !store.stop.is_cancelled(),
        Pace::Nanos(nanos) => {
            let time = Duration::from_nanos(nanos.saturating_mul(bytes));
            let mut fills = store.fills.subscribe();
            if !rest(store, time).await {
                return false;
            }
            // A timeout: those who fetch have been waited for long enough. The channel cannot close, the store owns it.
            let _ = tokio::time::timeout(time, fills.wait_for(|n| *n == 0)).await;
            !store.stop.is_cancelled()
        }
    }
}

/// Runs of present chunks, first and last, of at most `most` chunks.
fn runs(slots: &Slots, chunks: u32, most: u32) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (number, segment) in slots.known_segments() {
        for slot in segment.present.load().iter() {
            let chunk = number * SEGMENT_CHUNKS + slot;
            match runs.last_mut() {
                Some((first, last)) if *last + 1 == chunk && chunk - *first < most => *last = chunk,
                _ if chunk < chunks => runs.push((chunk, chunk)),
                _ => {}
            }
        }
    }
    runs
}

/// What is read next comes from the disk, and does not stay in the page cache. Where the system refuses, from wherever it is.
fn forget_pages(slots: &Slots, range: ByteRange) {
    let _ = fadvise(&slots.data, range.start(), std::num::NonZeroU64::new(range.len()), Advice::DontNeed);
}

/// Fetches ranges again; how many came. After one that does not, the others are left to those who want them.
async fn fetch_again(store: &Arc<Store>, entry: &Entry, ranges: &[ByteRange]) -> u64 {
    let mut came = 0;
    for range in ranges {
        match read::read(store, entry.blob, *range, Purpose::Ahead).await {
            Ok(_) => came += 1,
            Err(error) => {
                tracing::warn!("dropped chunks of blob {} could not be fetched again: {error}", entry.blob.digest);
                break;
            }
        }
    }
    came
}

//! Reading: what is here is read from disk, what is not is filled, and the pieces are put together.

use std::{
    ops::RangeInclusive,
    sync::{Arc, atomic::Ordering},
};

use bytes::{Bytes, BytesMut};
use penstock_blob::{Blob, BlobSource, ByteRange, ChunkSize, Located, Purpose, ReadError};

use crate::{
    entry::{Entry, State},
    fill::{Fill, Kind, Lead, Outcome},
    slots::Want,
    speculate,
    store::Store,
};

/// Most bytes of one upstream read, and of one check from disk: long enough to amortise a request, short enough to be held twice.
const MAX_RUN_BYTES: u32 = 4 << 20;
/// A read is served in windows of this many bytes (aligned), so that its fills hold no more than that at once.
const WINDOW_BYTES: u64 = 16 << 20;
/// Times that a window is looked at again because chunks on disk failed their check or were evicted in between. After that it is read around the
/// cache: every look drops the chunks that failed, so more looks mean a disk that fails faster than it is read.
const LOOKS: u32 = 8;

/// How a chunk stands when a read looks at it.
#[derive(Debug, Clone)]
enum Stand {
    Checked,
    Present,
    Absent,
    Filling(Arc<Fill>),
    /// Not asked for, and not absent.
    Outside,
}

impl Stand {
    /// Whether two neighbours belong to one piece.
    fn joins(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Checked, Self::Checked) | (Self::Present, Self::Present) | (Self::Absent, Self::Absent) => true,
            (Self::Filling(a), Self::Filling(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Whether a run of such chunks is cut at the upstream bound.
    const fn is_bounded(&self) -> bool {
        matches!(self, Self::Present | Self::Absent)
    }
}

/// A run of chunks that stand alike.
#[derive(Debug)]
struct Piece {
    stand: Stand,
    first: u32,
    last: u32,
}

/// Cuts chunks `first..=last` into runs that stand alike, at most `most` long where they have to be filled. Pure.
fn pieces(first: u32, last: u32, most: u32, stand: impl Fn(u32) -> Stand) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for chunk in first..=last {
        let stand = stand(chunk);
        match pieces.last_mut() {
            Some(p) if p.stand.joins(&stand) && !(stand.is_bounded() && chunk - p.first >= most) => p.last = chunk,
            _ => pieces.push(Piece { stand, first: chunk, last: chunk }),
        }
    }
    pieces
}

/// Where one part of a window comes from.
#[derive(Debug)]
enum Part {
    /// Pinned on disk: chunks first to last, for the case that the disk fails.
    Here(Located, (u32, u32)),
    /// Bytes of a fill.
    Filled(Arc<Fill>, ByteRange),
    /// Not to be had here.
    Around(ByteRange),
}

/// The bytes of `range`, from disk, from fills, or around the cache.
pub(crate) async fn read(
    store: &Arc<Store>,
    blob: Blob,
    range: ByteRange,
    purpose: Purpose,
) -> Result<Bytes, ReadError> {
    blob.check(range)?;
    let mut parts = Vec::new();
    let mut start = range.start();
    while start < range.end() {
        let end = range.end().min((start / WINDOW_BYTES).saturating_add(1).saturating_mul(WINDOW_BYTES));
        let Ok(window) = ByteRange::new(start, end) else { break };
        read_window(store, &Asked { blob, window, purpose }, &mut parts).await?;
        start = end;
    }
    Ok(join(parts))
}

/// One buffer of many; the only one is passed on as it is.
fn join(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}

/// One window of a read.
#[derive(Debug)]
struct Asked {
    blob: Blob,
    window: ByteRange,
    purpose: Purpose,
}

/// Adds the bytes of one window to `out`.
async fn read_window(store: &Arc<Store>, asked: &Asked, out: &mut Vec<Bytes>) -> Result<(), ReadError> {
    let had = out.len();
    for _ in 0..LOOKS {
        let Some(parts) = plan(store, asked)? else { break };
        if collect(store, asked, parts, out).await? {
            return Ok(());
        }
        out.truncate(had);
    }
    out.push(around(store, asked, asked.window).await?);
    Ok(())
}

/// Reads past the cache.
async fn around(store: &Store, asked: &Asked, range: ByteRange) -> Result<Bytes, ReadError> {
    store.metrics.bypasses.inc();
    store.upstream.read(asked.blob, range, asked.purpose).await
}

/// Decides where the bytes of a window come from, and starts the fills that are missing. `None`: the blob cannot be cached.
fn plan(store: &Arc<Store>, asked: &Asked) -> Result<Option<Vec<Part>>, ReadError> {
    loop {
        let Some(entry) = store.entry(&asked.blob) else { return Ok(None) };
        if let Some(parts) = plan_entry(store, &entry, asked)? {
            return Ok(Some(parts));
        }
        // The entry was retired between the look-up and the lock; it is out of the table by now.
    }
}

/// The chunks of `span`, and those around it that a read of them brings whole anyway: at most `most` on either side.
fn widened(store: &Store, entry: &Entry, span: &RangeInclusive<u32>, most: u32) -> RangeInclusive<u32> {
    let (blob, size) = (&entry.blob, entry.chunk_size);
    let cover = size.range(blob, *span.start()).zip(size.range(blob, *span.end()));
    let Some(cover) = cover.map(|(first, last)| first.cover(last)) else { return span.clone() };
    let wide = store.upstream.widen(blob, cover);
    let is_whole = |chunk: &u32| size.range(blob, *chunk).is_some_and(|range| wide.contains(range));
    let chunks = size.span(wide);
    let first = (*chunks.start().max(&span.start().saturating_sub(most))..*span.start()).find(is_whole);
    let last = (*span.end()..=*chunks.end().min(&span.end().saturating_add(most))).rev().find(is_whole);
    first.unwrap_or(*span.start())..=last.unwrap_or(*span.end())
}

/// How the chunks of a window stand, cut into pieces; and those around them that a read brings anyway.
fn cut(store: &Store, entry: &Entry, state: &State, asked: &Asked) -> Vec<Piece> {
    let span = entry.chunk_size.span(asked.window);
    // Set once the files exist; a chunk that is stored meanwhile is still in `fills`.
    let slots = entry.slots.get();
    let stand = |chunk| match (state.fills.get(&chunk), slots) {
        (Some(fill), _) => Stand::Filling(fill.clone()),
        (None, Some(slots)) if slots.is_checked(chunk) => Stand::Checked,
        (None, Some(slots)) if slots.is_present(chunk) => Stand::Present,
        _ => Stand::Absent,
    };
    let most = match asked.purpose {
        Purpose::Demand => longest_run(entry.chunk_size),
        // Who comes for a part of what nobody waits for need not wait for the rest.
        Purpose::Ahead => speculate::unit(store, entry, *span.start()),
    };
    let is_absent = |chunk| matches!(stand(chunk), Stand::Absent);
    let wide = if span.clone().any(is_absent) { widened(store, entry, &span, most) } else { span.clone() };
    pieces(*wide.start(), *wide.end(), most, |chunk| match stand(chunk) {
        Stand::Absent => Stand::Absent,
        stand if span.contains(&chunk) => stand,
        _ => Stand::Outside,
    })
}

/// The longest run of chunks that one fill gets.
pub(crate) fn longest_run(chunk_size: ChunkSize) -> u32 {
    (MAX_RUN_BYTES / chunk_size.bytes()).max(1)
}

/// As [`plan`]; `None` when the entry is retired.
fn plan_entry(store: &Arc<Store>, entry: &Arc<Entry>, asked: &Asked) -> Result<Option<Vec<Part>>, ReadError> {
    let window = asked.window;
    let (mut leads, mut parts) = (Vec::new(), Vec::new());
    let (mut missed, mut touched) = (None, Vec::new());
    let mut state = entry.lock();
    if state.retired {
        return Ok(None);
    }
    let slots = entry.slots.get();
    let size = entry.chunk_size;
    let runs = cut(store, entry, &state, asked).into_iter().filter_map(|piece| {
        let whole = size.range(&entry.blob, piece.first)?.cover(size.range(&entry.blob, piece.last)?);
        // What lies around the window is filled only with what lies in it.
        Some((whole, whole.intersection(window)?, piece))
    });
    let runs: Vec<_> = runs.collect();
    if store.closing.load(Ordering::SeqCst) && runs.iter().any(|(.., piece)| piece.stand.is_bounded()) {
        return Err(ReadError::Stopping);
    }
    for (whole, range, piece) in runs {
        let kind = match piece.stand {
            // Its bytes are wrong, and the chunk is its own until it ends.
            Stand::Filling(fill) if fill.is_rejected(&state) => {
                parts.push(Part::Around(range));
                continue;
            }
            Stand::Filling(fill) => {
                if fill.joined(asked.purpose) {
                    touched.extend(speculate::joined(store, &mut state, &fill));
                }
                parts.push(Part::Filled(fill, range));
                continue;
            }
            Stand::Checked => {
                let pinned = slots.filter(|slots| slots.pin(range, Want::Checked));
                if let (Some(slots), Purpose::Demand) = (pinned, asked.purpose) {
                    speculate::used(store, slots, range);
                }
                parts.push(pinned.map_or(Part::Around(range), |slots| {
                    Part::Here(Located::in_file(slots.clone(), range, range.start()), (piece.first, piece.last))
                }));
                continue;
            }
            Stand::Present => Kind::Check,
            Stand::Absent => {
                missed = Some(missed.map_or((piece.first, piece.last), |(first, _)| (first, piece.last)));
                Kind::Fetch
            }
            Stand::Outside => continue,
        };
        let lead = Lead::new(store, entry, (piece.first, piece.last), (whole, asked.purpose));
        state.fills.extend((piece.first..=piece.last).map(|chunk| (chunk, lead.fill().clone())));
        parts.push(Part::Filled(lead.fill().clone(), range));
        leads.push((lead, kind));
    }
    if asked.purpose == Purpose::Demand {
        // What is read ahead is asked for in one go with what is wanted, behind it.
        leads.extend(missed.into_iter().flat_map(|run| speculate::missed(store, entry, &mut state, run)));
        leads.extend(touched.into_iter().flat_map(|chunk| speculate::go_on(store, entry, &mut state, chunk)));
    }
    drop(state);
    Lead::start(leads);
    Ok(Some(parts))
}

/// Waits for the parts, in order. False: something on disk was wrong or went away, look again.
async fn collect(store: &Arc<Store>, asked: &Asked, parts: Vec<Part>, out: &mut Vec<Bytes>) -> Result<bool, ReadError> {
    for part in parts {
        match part {
            Part::Around(range) => out.push(around(store, asked, range).await?),
            Part::Here(located, chunks) => match from_disk(store, located).await? {
                Some(bytes) => out.push(bytes),
                None => {
                    if let Some(entry) = store.table.load().get(&asked.blob) {
                        store.discard_corrupt(entry, chunks.0, chunks.1);
                    }
                    return Ok(false);
                }
            },
            Part::Filled(fill, range) => match fill.outcome().await {
                Outcome::Forgone(e) if asked.purpose == Purpose::Ahead => return Err(e),
                Outcome::Forgone(_) => return Ok(false),
                Outcome::Failed(e) => return Err(e),
                Outcome::Again => return Ok(false),
                Outcome::Bytes(bytes) => out.push(slice(&bytes, fill.range, range)),
            },
        }
    }
    Ok(true)
}

/// The bytes `part` of `bytes`, which are the bytes `whole`.
fn slice(bytes: &Bytes, whole: ByteRange, part: ByteRange) -> Bytes {
    let index = |byte: u64| usize::try_from(byte - whole.start()).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(index(part.start())..index(part.end()))
}

/// Reads pinned bytes on the blocking pool. `None`: the disk failed.
async fn from_disk(store: &Store, located: Located) -> Result<Option<Bytes>, ReadError> {
    let read = store.handle.spawn_blocking(move || {
        let mut bytes = vec![0; usize::try_from(located.len()).map_err(std::io::Error::other)?];
        located.read_at(&mut bytes, 0)?;
        Ok::<_, std::io::Error>(Bytes::from(bytes))
    });
    match read.await {
        Ok(Ok(bytes)) => Ok(Some(bytes)),
        Ok(Err(e)) => {
            tracing::warn!("cached chunks cannot be read and are dropped: {e}");
            Ok(None)
        }
        // The runtime is stopping.
        Err(_) => Err(ReadError::Stopping),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_every_chunk_once_and_fills_stay_within_the_bound() {
        let stands = "aaaaaaaccppppppppa";
        let of = |chunk: u32| match stands.as_bytes()[chunk as usize] {
            b'a' => Stand::Absent,
            b'p' => Stand::Present,
            _ => Stand::Checked,
        };
        let last = u32::try_from(stands.len()).unwrap() - 1;
        for most in 1..=9 {
            let cut = pieces(0, last, most, of);
            let mut next = 0;
            for piece in &cut {
                assert_eq!(piece.first, next);
                assert!(piece.last >= piece.first);
                assert!(!piece.stand.is_bounded() || piece.last - piece.first < most);
                assert!((piece.first..=piece.last).all(|c| of(c).joins(&piece.stand)));
                next = piece.last + 1;
            }
            assert_eq!(next, last + 1);
        }
        assert_eq!(pieces(0, last, 16, of).len(), 4);
    }
}

//! The parts of a blob that opening its layer needs, read once and held until its tables are made.

use std::{pin::pin, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, ByteRange, ChunkSize, Purpose, ReadError};

use crate::{
    layer::{LEAST_TAIL_BYTES, LayerError},
    units::in_memory,
};

/// Bytes read at the start of a blob: tar headers, ZFile header and the layer's first frames.
pub(crate) const HEAD_BYTES: u64 = 16 << 10;

/// What a cache below fetches at the least, from a multiple of it on, unless it was told otherwise.
const CHUNK_BYTES: u64 = ChunkSize::DEFAULT.bytes() as u64;

/// Chunks before the tail that are read with it: the jump table of 256 MiB in frames of 4 KiB.
const TABLE_CHUNKS: u64 = 2;

/// The end of `range` that lies in one chunk, if it has `least` bytes; otherwise all of it. Some tens of kilobytes that are only probably of use are not worth
/// a whole chunk more.
pub(crate) fn in_last_chunk(range: ByteRange, least: u64) -> ByteRange {
    let border = (range.end() - 1) / CHUNK_BYTES * CHUNK_BYTES;
    ByteRange::new(border.max(range.start()), range.end()).ok().filter(|end| end.len() >= least).unwrap_or(range)
}

/// The [`TABLE_CHUNKS`] before the one that the tail begins in, as far as they lie behind that of the head.
fn before_tail(head: ByteRange, tail: ByteRange) -> Option<ByteRange> {
    let end = tail.start() / CHUNK_BYTES * CHUNK_BYTES;
    let start = end.saturating_sub(TABLE_CHUNKS * CHUNK_BYTES).max(head.end().next_multiple_of(CHUNK_BYTES));
    ByteRange::new(start, end).ok()
}

/// A blob, and its head, its tail and what lies around its jump table once read.
#[derive(Debug)]
pub(crate) struct Window {
    source: Arc<dyn BlobSource>,
    blob: Blob,
    /// Parts that do not touch, each with its place.
    held: Mutex<Vec<(u64, Bytes)>>,
    /// What was read, to be rejected if it makes no sense.
    touched: Mutex<Vec<ByteRange>>,
}

impl Window {
    pub(crate) fn new(source: Arc<dyn BlobSource>, blob: Blob) -> Self {
        Self { source, blob, held: Mutex::default(), touched: Mutex::default() }
    }

    pub(crate) const fn blob(&self) -> &Blob {
        &self.blob
    }

    /// Reads the head and the tail of `file`, in one read if they meet; nothing when they are held. What lies before the tail is asked for with it, as what
    /// nobody waits for yet: of a layer that is not large that is all of its jump table, which is read next.
    pub(crate) async fn load(&self, file: ByteRange, tail_bytes: u64) -> Result<(), LayerError> {
        if file.len() <= HEAD_BYTES + tail_bytes {
            return self.load_more(file).await;
        }
        let head = ByteRange::at(file.start(), HEAD_BYTES).map_err(|_| LayerError::Empty)?;
        let tail = ByteRange::new(file.end() - tail_bytes, file.end()).map_err(|_| LayerError::Empty)?;
        let tail = in_last_chunk(tail, LEAST_TAIL_BYTES);
        let both = pin!(futures_util::future::try_join(self.load_more(head), self.load_more(tail)));
        let before = before_tail(head, tail).filter(|range| self.held(*range).is_none());
        let Some(before) = before else { return both.await.map(drop) };
        // A source that keeps what it reads goes on with it when nobody listens any more.
        match select(both, self.source.read(self.blob, before, Purpose::Ahead)).await {
            Either::Left((loaded, _)) => loaded.map(drop),
            Either::Right((_, both)) => both.await.map(drop),
        }
    }

    /// Reads what is not held of a range and holds it, unless it lies in the middle of it.
    pub(crate) async fn load_more(&self, range: ByteRange) -> Result<(), LayerError> {
        let (mut start, mut end) = (range.start(), range.end());
        for (at, bytes) in &*self.held.lock() {
            let behind = at + bytes.len() as u64;
            if (*at..=behind).contains(&start) {
                start = behind;
            }
            if (*at..=behind).contains(&end) {
                end = *at;
            }
        }
        let Ok(lacking) = ByteRange::new(start, end) else { return Ok(()) };
        // Copied: what comes may be a small part of what a cache below read at once.
        let bytes = Bytes::copy_from_slice(&self.bytes(lacking, Purpose::Demand).await?);
        self.hold(start, bytes);
        Ok(())
    }

    /// Holds a part, joined with those that it touches.
    fn hold(&self, mut at: u64, mut bytes: Bytes) {
        let mut held = self.held.lock();
        for (other, part) in std::mem::take(&mut *held) {
            let (first, second) = if other < at { (&part, &bytes) } else { (&bytes, &part) };
            if other.min(at) + first.len() as u64 == other.max(at) {
                let mut joined = BytesMut::with_capacity(first.len() + second.len());
                joined.extend_from_slice(first);
                joined.extend_from_slice(second);
                (at, bytes) = (other.min(at), joined.freeze());
            } else {
                held.push((other, part));
            }
        }
        held.push((at, bytes));
    }

    /// Bytes of the blob that are held.
    pub(crate) fn held(&self, range: ByteRange) -> Option<Bytes> {
        self.held.lock().iter().find_map(|(at, bytes)| {
            let start = in_memory(range.start().checked_sub(*at)?);
            let end = start.checked_add(in_memory(range.len())).filter(|&end| end <= bytes.len())?;
            Some(bytes.slice(start..end))
        })
    }

    /// The start of the blob, as far as it is held.
    pub(crate) fn head(&self) -> Option<Bytes> {
        self.held.lock().iter().find(|(at, _)| *at == 0).map(|(_, bytes)| bytes.clone())
    }

    /// Bytes of the blob: from what is held if they are there, else through the source.
    pub(crate) async fn bytes(&self, range: ByteRange, purpose: Purpose) -> Result<Bytes, LayerError> {
        self.blob.check(range)?;
        if let Some(held) = self.held(range) {
            return Ok(held);
        }
        self.touch(range);
        let bytes = self.source.read(self.blob, range, purpose).await?;
        if bytes.len() as u64 == range.len() {
            return Ok(bytes);
        }
        let reason = format!("{} bytes instead of {}", bytes.len(), range.len());
        Err(ReadError::WrongBytes { blob: self.blob.digest, range, endpoint: "the source".into(), reason }.into())
    }

    fn touch(&self, range: ByteRange) {
        let mut touched = self.touched.lock();
        match touched.last_mut() {
            Some(last) if last.end() >= range.start() && range.start() >= last.start() => *last = last.cover(range),
            _ => touched.push(range),
        }
    }

    /// Has the source drop everything that was read, and forgets it.
    pub(crate) fn reject(&self) {
        for range in std::mem::take(&mut *self.touched.lock()) {
            self.source.reject(&self.blob, range);
        }
        self.held.lock().clear();
    }

    /// Drops the head: only what lies behind it, which holds the index of a small layer, is needed once the layer is open.
    pub(crate) fn forget_head(&self) {
        let mut held = self.held.lock();
        if held.len() > 1 {
            held.retain(|(at, _)| *at > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_before_the_tail_is_whole_chunks_behind_the_head() {
        const KIB: u64 = 1 << 10;
        let before = |tail: u64| {
            let (head, tail) = (ByteRange::at(0, 16 * KIB).unwrap(), ByteRange::at(tail * KIB, 64 * KIB).unwrap());
            before_tail(head, tail).map(|range| (range.start() / KIB, range.end() / KIB))
        };
        assert_eq!(before(1000), Some((640, 896)));
        assert_eq!(before(896), Some((640, 896)));
        assert_eq!(before(300), Some((128, 256)), "the head's chunk is on its way");
        assert_eq!(before(200), None);
        assert_eq!(before(64), None);
    }

    #[test]
    fn what_is_probably_of_use_is_not_read_of_a_further_chunk() {
        const KIB: u64 = 1 << 10;
        let cut = |start: u64, end: u64| {
            let range = in_last_chunk(ByteRange::new(start * KIB, end * KIB).unwrap(), 16 * KIB);
            (range.start() / KIB, range.end() / KIB)
        };
        assert_eq!(cut(300, 364), (300, 364), "it lies in one chunk");
        assert_eq!(cut(500, 564), (512, 564));
        assert_eq!(cut(350, 414), (384, 414), "chunks are as small as they are by default");
        assert_eq!(cut(448, 512), (448, 512), "it ends where a chunk does");
        assert_eq!(cut(460, 524), (460, 524), "too little would be left");
        assert_eq!(cut(512, 576), (512, 576));
    }
}

//! What the tests of this crate share: blobs with their lists, and a source that lies at one byte.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, ByteRange, ChunkSize, Digest, Located, Purpose, ReadFuture, faults::Memory};

use crate::{GRID, Listed, compute};

/// `len` bytes that do not repeat.
pub(crate) fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// The smallest chunk size, as lists made here have.
pub(crate) fn grid() -> ChunkSize {
    ChunkSize::new(GRID).unwrap()
}

/// A source of these blobs and of their lists, and the lists.
pub(crate) async fn with_lists(blobs: &[Bytes], dir: &Path) -> (Arc<Memory>, Vec<Listed>) {
    let plain = Memory::new(blobs.to_vec());
    let (mut all, mut lists) = (blobs.to_vec(), Vec::new());
    for nth in 0..blobs.len() {
        let made = compute(&*plain, plain.blob(nth), grid(), &dir.join("made"), |_| {}).await.unwrap();
        all.push(std::fs::read(made.path).unwrap().into());
        lists.push(made.listed);
    }
    (Memory::new(all), lists)
}

/// Flips one bit of one byte of one blob in the next answers that hold it.
#[derive(Debug)]
pub(crate) struct Lying {
    below: Arc<dyn BlobSource>,
    blob: Digest,
    at: u64,
    left: AtomicU32,
}

impl Lying {
    pub(crate) fn new(below: Arc<dyn BlobSource>, blob: Digest, at: u64, times: u32) -> Arc<Self> {
        Arc::new(Self { below, blob, at, left: AtomicU32::new(times) })
    }

    /// How many lies are left.
    pub(crate) fn left(&self) -> u32 {
        self.left.load(Ordering::Relaxed)
    }
}

impl BlobSource for Lying {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.below.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let bytes = self.below.read(blob, range, purpose).await?;
            let here = blob.digest == self.blob && (range.start()..range.end()).contains(&self.at);
            let take = |left: u32| left.checked_sub(1);
            if !here || self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                return Ok(bytes);
            }
            let mut bytes = bytes.to_vec();
            bytes[usize::try_from(self.at - range.start()).unwrap()] ^= 0x40;
            Ok(bytes.into())
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.below.reject(blob, range);
    }
}

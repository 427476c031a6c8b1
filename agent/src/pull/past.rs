//! Reading past the cache: what it has is taken from it, what it lacks is fetched and not stored.
//!
//! An image that is pulled whole lies in containerd's content store afterwards. To store it in the cache as well would evict what containers read, for
//! bytes that are on this disk already.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use penstock_blob::{Blob, BlobSource, ByteRange, Located, Purpose, ReadFuture};

/// The cache is asked for pieces of this size, at multiples of it: the smallest chunk that it may have.
const PIECE_BYTES: u64 = 64 << 10;

/// A cache, and what is below it.
#[derive(Debug)]
pub(super) struct Past {
    cache: Arc<dyn BlobSource>,
    below: Arc<dyn BlobSource>,
}

impl Past {
    pub(super) const fn new(cache: Arc<dyn BlobSource>, below: Arc<dyn BlobSource>) -> Self {
        Self { cache, below }
    }

    /// The longest beginning of `range` that the cache has all of, or nothing of; whether it has it.
    fn run(&self, blob: &Blob, range: ByteRange) -> (ByteRange, bool) {
        let piece = |start: u64| {
            let end = (start / PIECE_BYTES + 1).saturating_mul(PIECE_BYTES).min(range.end());
            let has = ByteRange::new(start, end).is_ok_and(|piece| self.cache.locate(blob, piece).is_some());
            (end, has)
        };
        let (mut end, has) = piece(range.start());
        while end < range.end() {
            let (next, next_has) = piece(end);
            if next_has != has {
                break;
            }
            end = next;
        }
        // Not empty: the first piece is not.
        (ByteRange::new(range.start(), end).unwrap_or(range), has)
    }
}

impl BlobSource for Past {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.cache.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            blob.check(range)?;
            let (first, has) = self.run(&blob, range);
            let source = |has: bool| if has { &self.cache } else { &self.below };
            let bytes = source(has).read(blob, first, purpose).await?;
            if first == range {
                return Ok(bytes);
            }
            let mut whole = BytesMut::from(bytes);
            let mut start = first.end();
            while let Ok(rest) = ByteRange::new(start, range.end()) {
                let (next, has) = self.run(&blob, rest);
                whole.extend_from_slice(&source(has).read(blob, next, purpose).await?);
                start = next.end();
            }
            Ok(Bytes::from(whole))
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.cache.reject(blob, range);
    }
}

#[cfg(test)]
mod tests {
    use penstock_blob::{conformance, faults::Memory};

    use super::*;

    const BYTES: usize = 1_000_000;

    fn bytes() -> Bytes {
        (0..BYTES).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    /// Has every third piece.
    #[derive(Debug)]
    struct Some3(Arc<Memory>);

    impl BlobSource for Some3 {
        fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
            let is_there = (range.start()..range.end()).step_by(512).all(|at| (at / PIECE_BYTES).is_multiple_of(3));
            self.0.locate(blob, range).filter(|_| is_there && ((range.end() - 1) / PIECE_BYTES).is_multiple_of(3))
        }

        fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
            self.0.read(blob, range, purpose)
        }

        fn reject(&self, blob: &Blob, range: ByteRange) {
            self.0.reject(blob, range);
        }
    }

    #[tokio::test]
    async fn reading_past_a_cache_keeps_the_promise_of_sources_whatever_it_has() {
        for resident in [false, true] {
            let (cache, below) = (Memory::new(vec![bytes()]), Memory::new(vec![bytes()]));
            cache.resident(resident);
            let blob = below.blob(0);
            let past = Past::new(Arc::new(Some3(cache)), below);
            conformance::check(Arc::new(past), &[(blob, bytes())]).await;
        }
    }

    #[tokio::test]
    async fn what_the_cache_has_is_not_fetched_and_what_it_lacks_it_is_not_asked_for() {
        let (cache, below) = (Memory::new(vec![bytes()]), Memory::new(vec![bytes()]));
        cache.resident(true);
        let blob = below.blob(0);
        let past = Past::new(Arc::new(Some3(Arc::clone(&cache))), Arc::clone(&below) as _);
        assert_eq!(past.read(blob, blob.all().unwrap(), Purpose::Demand).await.unwrap(), bytes());
        let there: u64 = (0..BYTES as u64).filter(|at| (at / PIECE_BYTES).is_multiple_of(3)).count() as u64;
        assert_eq!((cache.bytes_read(), below.bytes_read()), (there, BYTES as u64 - there));
        let runs = (BYTES as u64).div_ceil(PIECE_BYTES).div_ceil(3);
        assert_eq!((cache.reads(), below.reads()), (runs, runs - 1), "one read for each run");
    }
}

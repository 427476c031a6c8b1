//! What the cache takes of memory follows what is cached, not what could be.

use penstock_blob::{ByteRange, ChunkSize, Located, ReadFuture};

use super::*;
use crate::Memory as Taken;

/// A source of zeros under any name.
#[derive(Debug)]
struct Zeros;

impl BlobSource for Zeros {
    fn locate(&self, _: &Blob, _: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, _: Blob, range: ByteRange, _: Purpose) -> ReadFuture<'_> {
        let zeros = vec![0; usize::try_from(range.len()).unwrap()];
        Box::pin(std::future::ready(Ok(zeros.into())))
    }

    fn reject(&self, _: &Blob, _: ByteRange) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_a_tebibyte_takes_memory_for_what_is_cached_of_it() {
    const TIB: u64 = 1 << 40;
    let mut bench = Bench::new(&[]);
    bench.config.chunk_size = ChunkSize::DEFAULT;
    let cache = bench.open_on(Arc::new(Zeros)).await;
    let before = cache.memory();
    let blob = Blob { digest: Digest::of(b"large"), size_bytes: TIB };
    for start in [0, TIB / 2, TIB - 4096] {
        cache.read(blob, range(start, start + 4096), Purpose::Demand).await.unwrap();
    }
    cache.settle().await;
    assert_eq!(cache.usage().present_chunks, 3);
    let grown = cache.memory().presence_bytes - before.presence_bytes;
    assert!(grown > 3 * 1024 && grown < 1 << 20, "{grown} bytes");
    assert_eq!(cache.memory().pending_bytes, 0, "all is written");
}

#[test]
fn a_full_cache_of_a_tebibyte_takes_tens_of_mebibytes_and_smaller_chunks_take_more() {
    let of = |cap, chunk| Taken::of_full(cap, ChunkSize::new(chunk).unwrap());
    let (full, small) = (of(1 << 40, 256 << 10), of(1 << 40, 64 << 10));
    assert!((20 << 20..40 << 20).contains(&full.presence_bytes), "{full:?}");
    assert_eq!(full.index_bytes, 16 << 20);
    assert!(small.presence_bytes > 2 * full.presence_bytes, "{small:?}");
    let usual = of(10 << 30, 256 << 10);
    assert!(usual.presence_bytes + usual.index_bytes < 1 << 20, "{usual:?}");
    assert!(of(u64::MAX, 64 << 10).presence_bytes > full.presence_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_cache_is_said_to_take_is_what_it_takes() {
    let mut bench = Bench::new(&[]);
    bench.config.chunk_size = ChunkSize::DEFAULT;
    let cache = bench.open_on(Arc::new(Zeros)).await;
    let before = cache.memory().presence_bytes;
    // A chunk in each segment.
    let segment = u64::from(ChunkSize::DEFAULT.bytes()) * u64::from(crate::bits::SEGMENT_CHUNKS);
    let blob = Blob { digest: Digest::of(b"spread"), size_bytes: 64 * segment };
    for start in (0..64).map(|nth| nth * segment) {
        cache.read(blob, range(start, start + 1), Purpose::Demand).await.unwrap();
    }
    cache.settle().await;
    let grown = cache.memory().presence_bytes - before;
    let said = crate::slots::presence_bytes(blob.size_bytes, ChunkSize::DEFAULT);
    assert!(grown.abs_diff(said) < 4096, "{grown} and {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_pages_are_kept_none_is_marked_to_be_dropped() {
    for keep in [true, false] {
        let mut bench = Bench::new(&[4 * CHUNK]);
        bench.config.keep_pages = keep;
        let cache = bench.open().await;
        bench.read_all(&cache).await;
        cache.settle().await;
        let (blob, bytes) = &bench.blobs[0];
        assert!(located(&cache, blob, blob.all().unwrap()).unwrap() == *bytes);
        let [(_, slots)] = &cache.store.stored()[..] else { panic!("one blob") };
        assert_eq!(slots.segment(0).unwrap().in_pages.is_empty(), keep);
        cache.close().await;
    }
}

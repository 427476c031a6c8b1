//! Reading ahead: what it fetches, for whom it makes way, and what it leaves alone.

use penstock_blob::ByteRange;

use super::*;
use crate::Cache;

/// A bench that reads ahead.
fn bench(sizes: &[u64]) -> Bench {
    let mut bench = Bench::new(sizes);
    bench.config.ahead_bytes = 64 * CHUNK;
    bench
}

async fn read(cache: &Cache, (blob, bytes): &(Blob, bytes::Bytes), want: ByteRange) {
    assert!(cache.read(*blob, want, Purpose::Demand).await.unwrap() == part(bytes, want));
}

fn chunk(nth: u64) -> ByteRange {
    range(nth * CHUNK, (nth + 1) * CHUNK)
}

/// Reads as a device does: what is here is located, what is not is read.
async fn device_reads(cache: &Cache, it: &(Blob, bytes::Bytes), want: ByteRange) {
    match located(cache, &it.0, want) {
        Some(here) => assert!(here == part(&it.1, want)),
        None => read(cache, it, want).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_brings_what_lies_before_and_behind_it_in_its_place() {
    let bench = bench(&[64 * CHUNK]);
    let cache = bench.open().await;
    let it = &bench.blobs[0];
    read(&cache, it, chunk(20)).await;
    cache.settle().await;
    // A quarter of what may be under way: 16 chunks.
    assert_eq!(bench.memory.bytes_read(), 16 * CHUNK);
    let place = range(16 * CHUNK, 32 * CHUNK);
    assert!(located(&cache, &it.0, place).unwrap() == part(&it.1, place));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_of_a_blob_that_is_followed_brings_nothing_along() {
    let bench = bench(&[64 * CHUNK]);
    let cache = bench.open().await;
    let it = &bench.blobs[0];
    let followed = cache.follow(&it.0);
    for nth in [63, 0, 20, 21] {
        read(&cache, it, chunk(nth)).await;
        cache.settle().await;
    }
    assert_eq!(bench.memory.bytes_read(), 4 * CHUNK);
    drop(followed);
    read(&cache, it, chunk(40)).await;
    cache.settle().await;
    assert_eq!(bench.memory.bytes_read(), (4 + 16) * CHUNK, "a place, as ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_in_order_fetches_every_byte_once_and_finds_most_of_them_here() {
    let bench = bench(&[256 * CHUNK]);
    let cache = bench.open().await;
    let it = &bench.blobs[0];
    for nth in 0..256 {
        device_reads(&cache, it, chunk(nth)).await;
        cache.settle().await;
    }
    let metrics = cache.metrics();
    assert_eq!(bench.memory.bytes_read(), 256 * CHUNK, "nothing twice");
    let ahead = metrics.ahead_bytes.get();
    assert!(ahead >= 200 * CHUNK, "{} of 256 chunks were read ahead", ahead / CHUNK);
    assert_eq!(metrics.ahead_used_bytes.get(), ahead, "and all were used");
}

#[tokio::test(flavor = "multi_thread")]
async fn demand_goes_on_while_all_that_is_read_ahead_is_stuck_and_what_is_wanted_of_it_is_asked_for_again() {
    let bench = bench(&[64 * CHUNK]);
    let it = &bench.blobs[0];
    let stuck = Stuck::only(bench.memory.clone(), it.0.digest, range(CHUNK, 8 * CHUNK));
    let cache = bench.open_on(stuck.clone()).await;
    read(&cache, it, chunk(0)).await;
    stuck.until_waiting(1).await;
    let ahead = stuck.waiting();
    for nth in 40..60 {
        read(&cache, it, chunk(nth)).await;
    }
    let waiting = tokio::task::JoinSet::from_iter([{
        let (cache, blob) = (cache.clone(), it.0);
        async move { cache.read(blob, chunk(1), Purpose::Demand).await }
    }]);
    stuck.until_waiting(ahead + 1).await;
    stuck.release();
    assert!(waiting.join_all().await.remove(0).unwrap() == part(&it.1, chunk(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_one_chunk_of_what_is_read_ahead_does_not_wait_for_the_others() {
    let bench = Bench::new(&[16 * CHUNK]);
    let it = &bench.blobs[0];
    let stuck = Stuck::only(bench.memory.clone(), it.0.digest, range(4 * CHUNK, 16 * CHUNK));
    let cache = bench.open_on(stuck.clone()).await;
    let (blob, all) = (it.0, it.0.all().unwrap());
    let ahead = tokio::task::JoinSet::from_iter([{
        let cache = cache.clone();
        async move { cache.read(blob, all, Purpose::Ahead).await }
    }]);
    stuck.until_waiting(12).await;
    read(&cache, it, chunk(0)).await;
    assert_eq!(ahead.len(), 1);
    stuck.release();
    assert!(ahead.join_all().await.remove(0).unwrap() == it.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_ahead_is_told_once_it_is_stored() {
    let bench = Bench::new(&[64 * CHUNK]);
    let cache = bench.open().await;
    let blob = bench.blobs[0].0;
    for nth in 0..64 {
        cache.read(blob, chunk(nth), Purpose::Ahead).await.unwrap();
        assert!(cache.locate(&blob, chunk(nth)).is_some(), "chunk {nth}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_ahead_makes_nobody_leave() {
    let mut bench = bench(&[64 * CHUNK, 64 * CHUNK]);
    bench.config.cap_bytes = 40 * CHUNK;
    let cache = bench.open().await;
    let (kept, other) = (&bench.blobs[0], bench.blobs[1].0);
    read(&cache, kept, range(0, 24 * CHUNK)).await;
    cache.settle().await;
    let bytes = cache.read(other, other.all().unwrap(), Purpose::Ahead).await.unwrap();
    assert!(bytes == bench.blobs[1].1, "served all the same");
    cache.settle().await;
    assert_eq!(cache.usage().evicted_chunks, 0);
    assert!(cache.locate(&kept.0, range(0, 24 * CHUNK)).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_read_ahead_is_no_readers_failure() {
    let bench = bench(&[64 * CHUNK]);
    let it = &bench.blobs[0];
    let flaky = Flaky::new(bench.memory.clone(), 0);
    let stuck = Stuck::only(flaky.clone(), it.0.digest, range(CHUNK, 15 * CHUNK));
    let cache = bench.open_on(stuck.clone()).await;
    read(&cache, it, chunk(0)).await;
    stuck.until_waiting(1).await;
    flaky.set(stuck.waiting());
    stuck.release();
    cache.settle().await;
    flaky.set(0);
    read(&cache, it, range(0, 4 * CHUNK)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_ahead_when_that_is_off() {
    let bench = Bench::new(&[16 * CHUNK]);
    let cache = bench.open().await;
    for nth in 0..8 {
        device_reads(&cache, &bench.blobs[0], chunk(nth)).await;
    }
    cache.settle().await;
    assert_eq!((bench.memory.bytes_read(), cache.metrics().ahead_bytes.get()), (8 * CHUNK, 0));
}

//! The cache from outside: seam, single flight, restarts, cap, removal.

use std::{fs, os::unix::fs::FileExt, sync::Arc};

use penstock_blob::{
    Blob, BlobSource, Digest, Purpose, ReadError, conformance,
    faults::{Corrupt, Flaky, Framed, Memory, Stuck},
};
use tokio::task::JoinSet;

use crate::{
    Event, IndexState, OpenError, RemoveError, Whole,
    testing::{Bench, CHUNK, bytes, copy_dir, crash, located, part, range, refusing},
};

mod ahead;
mod child;
mod damage;
mod faults;
mod killed;
mod memory;
mod power;
mod pressure;
mod recovery;
mod scrub;
mod synced;

/// A source whose first blob answers to every name.
#[derive(Debug)]
struct Renamed(Arc<Memory>);

impl BlobSource for Renamed {
    fn locate(&self, _: &Blob, _: penstock_blob::ByteRange) -> Option<penstock_blob::Located> {
        None
    }

    fn read(&self, _: Blob, range: penstock_blob::ByteRange, purpose: Purpose) -> penstock_blob::ReadFuture<'_> {
        self.0.read(self.0.blob(0), range, purpose)
    }

    fn reject(&self, _: &Blob, _: penstock_blob::ByteRange) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn every_promise_of_a_source_is_kept() {
    let bench = Bench::new(&[3 * CHUNK + 17, 1, 700_000, 5 << 20]);
    conformance::check(bench.open().await, &bench.blobs).await;
    // And once more with everything found on disk.
    let bench = Bench::new(&[3 * CHUNK + 17, 1, 700_000, 5 << 20]);
    let cache = bench.open().await;
    bench.read_all(&cache).await;
    cache.close().await;
    crash(cache).await;
    conformance::check(bench.open().await, &bench.blobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_readers_of_one_chunk_make_one_upstream_read() {
    let bench = Bench::new(&[CHUNK]);
    let stuck = Stuck::new(bench.memory.clone());
    let cache = bench.open_on(stuck.clone()).await;
    let (blob, bytes) = bench.blobs[0].clone();
    let mut readers = JoinSet::new();
    for i in 0..100 {
        let (cache, want) = (cache.clone(), range(i, CHUNK - i));
        readers.spawn(async move { (want, cache.read(blob, want, Purpose::Demand).await.unwrap()) });
    }
    stuck.until_waiting(1).await;
    stuck.release();
    while let Some(read) = readers.join_next().await {
        let (want, got) = read.unwrap();
        assert!(got == part(&bytes, want));
    }
    assert_eq!((bench.memory.reads(), bench.memory.bytes_read()), (1, CHUNK));
    cache.settle().await;
    assert_eq!(cache.usage().fills, 1);
    assert!(located(&cache, &blob, range(0, CHUNK)).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbouring_missing_chunks_are_fetched_together_up_to_the_bound() {
    let bench = Bench::new(&[9 << 20]);
    let cache = bench.open().await;
    bench.read_all(&cache).await;
    assert_eq!((bench.memory.reads(), bench.memory.bytes_read()), (3, 9 << 20));
    cache.settle().await;
    bench.read_all(&cache).await;
    assert_eq!(bench.memory.reads(), 3, "what is cached is not fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_chunk_stalls_only_its_own_readers() {
    let bench = Bench::new(&[16 * CHUNK]);
    let (blob, bytes) = bench.blobs[0].clone();
    let stuck = Stuck::only(bench.memory.clone(), blob.digest, range(0, CHUNK));
    let cache = bench.open_on(stuck.clone()).await;
    let waiting = tokio::task::JoinSet::from_iter([{
        let cache = cache.clone();
        async move { cache.read(blob, range(0, 10), Purpose::Demand).await }
    }]);
    stuck.until_waiting(1).await;
    for chunk in 1..16 {
        let want = range(chunk * CHUNK, (chunk + 1) * CHUNK);
        assert!(cache.read(blob, want, Purpose::Demand).await.unwrap() == part(&bytes, want));
    }
    assert_eq!(waiting.len(), 1);
    stuck.release();
    assert!(waiting.join_all().await.remove(0).unwrap() == part(&bytes, range(0, 10)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_outlives_its_first_caller() {
    let bench = Bench::new(&[CHUNK]);
    let stuck = Stuck::new(bench.memory.clone());
    let cache = bench.open_on(stuck.clone()).await;
    let blob = bench.blobs[0].0;
    let mut first = cache.read(blob, range(0, 1), Purpose::Demand);
    assert!(futures_poll(&mut first).await.is_none());
    stuck.until_waiting(1).await;
    drop(first);
    assert_eq!(stuck.waiting(), 1, "the fetch went on without its caller");
    stuck.release();
    cache.settle().await;
    assert!(cache.locate(&blob, range(0, CHUNK)).is_some());
}

/// Polls once.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(out) => Some(out),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_fill_wakes_everybody_with_the_error_and_the_next_caller_retries() {
    let bench = Bench::new(&[CHUNK]);
    let stuck = Stuck::new(Flaky::new(bench.memory.clone(), 1));
    let cache = bench.open_on(stuck.clone()).await;
    let (blob, bytes) = bench.blobs[0].clone();
    let mut first = cache.read(blob, range(0, 1), Purpose::Demand);
    let mut second = cache.read(blob, range(1, 2), Purpose::Demand);
    assert!(futures_poll(&mut first).await.is_none() && futures_poll(&mut second).await.is_none());
    stuck.until_waiting(1).await;
    stuck.release();
    let (first, second) = (first.await.unwrap_err(), second.await.unwrap_err());
    assert!(matches!(first, ReadError::Unavailable { .. }));
    assert_eq!(first, second);
    assert!(cache.read(blob, range(0, CHUNK), Purpose::Demand).await.unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_reader_rejects_is_fetched_again_and_a_pinned_copy_stays_as_it_was() {
    let bench = Bench::new(&[4 * CHUNK]);
    let corrupt = Corrupt::new(bench.memory.clone());
    let cache = bench.open_on(corrupt.clone()).await;
    let (blob, bytes) = bench.blobs[0].clone();
    let chunk = range(0, CHUNK);
    let bad = cache.read(blob, chunk, Purpose::Demand).await.unwrap();
    assert!(bad != part(&bytes, chunk));
    cache.settle().await;
    let pinned = cache.locate(&blob, chunk).unwrap();

    corrupt.set(false);
    cache.reject(&blob, range(5, 6));
    assert_eq!(cache.usage().corrupt_chunks, 1);
    assert!(cache.locate(&blob, chunk).is_none());
    assert!(cache.read(blob, chunk, Purpose::Demand).await.unwrap() == part(&bytes, chunk));
    let mut still = vec![0; bad.len()];
    pinned.read_at(&mut still, 0).unwrap();
    assert!(bad == still, "what was located changed while it was pinned");
    drop(pinned);
    cache.settle().await;
    assert!(located(&cache, &blob, chunk).unwrap() == part(&bytes, chunk));
    assert_eq!(bench.memory.rejects(), 0);
    cache.reject(&blob, range(3 * CHUNK, 4 * CHUNK));
    assert_eq!(bench.memory.rejects(), 1, "a reject of what is not cached is for the source below");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_blob_is_verified_and_stays_so_over_a_restart() {
    let bench = Bench::new(&[5 * CHUNK + 3]);
    let cache = bench.open().await;
    let mut events = cache.events();
    let (blob, _) = bench.blobs[0];
    cache.read(blob, range(0, CHUNK), Purpose::Demand).await.unwrap();
    assert_eq!(cache.blob(&blob.digest).unwrap().whole, Whole::Partial);
    bench.read_all(&cache).await;
    assert_eq!(events.recv().await.unwrap(), Event::BlobVerified { digest: blob.digest });
    let usage = cache.blob(&blob.digest).unwrap();
    assert_eq!((usage.whole, usage.present_bytes, usage.chunks), (Whole::Verified, blob.size_bytes, 6));
    cache.close().await;
    crash(cache).await;
    let cache = bench.open_on(refusing()).await;
    assert_eq!(cache.blob(&blob.digest).unwrap().whole, Whole::Verified);
    cache.reject(&blob, range(0, 1));
    assert_eq!(cache.blob(&blob.digest).unwrap().whole, Whole::Partial);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_blob_that_is_not_its_digest_is_dropped_and_told() {
    let bench = Bench::new(&[3 * CHUNK]);
    let corrupt = Corrupt::new(bench.memory.clone());
    let cache = bench.open_on(corrupt.clone()).await;
    let mut events = cache.events();
    let (blob, bytes) = bench.blobs[0].clone();
    assert!(cache.read(blob, blob.all().unwrap(), Purpose::Demand).await.unwrap() != bytes);
    let Event::BlobMismatch { digest, found } = events.recv().await.unwrap() else { panic!("another event") };
    assert_eq!(digest, blob.digest);
    assert_ne!(found, blob.digest);
    let usage = cache.blob(&blob.digest).unwrap();
    assert_eq!((usage.whole, usage.present_chunks), (Whole::Mismatch, 0));
    corrupt.set(false);
    bench.read_all(&cache).await;
    assert_eq!(events.recv().await.unwrap(), Event::BlobVerified { digest });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_blob_with_a_derived_name_stays_and_is_not_compared_with_it() {
    let bench = Bench::new(&[3 * CHUNK]);
    let below = Arc::new(Renamed(bench.memory.clone()));
    let cache = bench.open_on(below.clone()).await;
    let (real, bytes) = bench.blobs[0].clone();
    let blob = Blob { digest: Digest::derived("test", &[real.digest]), size_bytes: real.size_bytes };
    assert!(cache.read(blob, blob.all().unwrap(), Purpose::Demand).await.unwrap() == bytes);
    cache.settle().await;
    let scrubbed = cache.verify(false).await;
    assert_eq!((scrubbed.mismatched_blobs, scrubbed.chunks), (0, 3));
    cache.close().await;
    crash(cache).await;
    let cache = bench.open_on(below).await;
    let usage = cache.blob(&blob.digest).unwrap();
    assert_eq!((usage.whole, usage.present_chunks), (Whole::Partial, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_read_brings_anyway_is_stored_with_it() {
    let bench = Bench::new(&[12 * CHUNK + 9]);
    let framed = Framed::new(bench.memory.clone(), 5 * CHUNK + 100);
    let cache = bench.open_on(framed).await;
    let (blob, bytes) = bench.blobs[0].clone();
    let held = |chunks: std::ops::Range<u64>| {
        chunks
            .map(|chunk| u8::from(cache.locate(&blob, range(chunk * CHUNK, chunk * CHUNK + 1)).is_some()))
            .collect::<Vec<_>>()
    };
    // The first frame holds chunks 0 to 4, and the beginning of 5.
    assert!(
        cache.read(blob, range(2 * CHUNK, 2 * CHUNK + 1), Purpose::Demand).await.unwrap()
            == part(&bytes, range(2 * CHUNK, 2 * CHUNK + 1))
    );
    cache.settle().await;
    assert_eq!(held(0..13), [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((bench.memory.reads(), bench.memory.bytes_read()), (1, 5 * CHUNK + 100));
    // The last one: its end is the blob's.
    cache.read(blob, range(12 * CHUNK, 12 * CHUNK + 9), Purpose::Ahead).await.unwrap();
    cache.settle().await;
    assert_eq!(held(0..13), [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]);
    // A chunk of two frames brings both; what is here is not asked for again.
    let before = bench.memory.bytes_read();
    cache.read(blob, range(5 * CHUNK + 99, 5 * CHUNK + 101), Purpose::Demand).await.unwrap();
    cache.settle().await;
    assert_eq!(held(0..13), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1]);
    assert_eq!(bench.memory.bytes_read() - before, 2 * (5 * CHUNK + 100));
    bench.read_all(&cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_frames_keeps_every_promise_through_the_cache() {
    for frame_bytes in [CHUNK, 100_000, 3 * CHUNK + 1, 9 << 20] {
        let bench = Bench::new(&[40 * CHUNK + 9, 5, CHUNK]);
        let cache = bench.open_on(Framed::new(bench.memory.clone(), frame_bytes)).await;
        conformance::check(cache, &bench.blobs).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cap_is_never_exceeded_and_reads_stay_right() {
    let mut bench = Bench::new(&[4 << 20, 4 << 20, 4 << 20, 100_000]);
    bench.config.cap_bytes = 3 << 20;
    let cache = bench.open().await;
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..120 {
        let (blob, bytes) = &bench.blobs[rng.usize(0..4)];
        let start = rng.u64(0..blob.size_bytes);
        let want = range(start, (start + 1 + rng.u64(0..600_000)).min(blob.size_bytes));
        assert!(cache.read(*blob, want, Purpose::Demand).await.unwrap() == part(bytes, want));
        if round % 8 == 0 {
            cache.settle().await;
        }
        let used = cache.usage().used_bytes;
        assert!(used <= 3 << 20, "{used} bytes used");
        assert!(bench.blocks() <= 3 << 20, "{} bytes on disk", bench.blocks());
    }
    let usage = cache.usage();
    assert!(usage.evicted_chunks > 0);
    assert!(usage.present_chunks > 16, "the cache keeps what fits: {usage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_extents_are_not_evicted_and_a_cache_full_of_pins_serves_without_storing() {
    let mut bench = Bench::new(&[1 << 20, 4 << 20]);
    bench.config.cap_bytes = (1 << 20) + (256 << 10);
    let cache = bench.open().await;
    let (pinned_blob, bytes) = bench.blobs[0].clone();
    bench.read_one(&cache, 0).await;
    let pin = cache.locate(&pinned_blob, range(0, 1 << 20)).unwrap();
    bench.read_one(&cache, 1).await;
    let usage = cache.usage();
    assert!(usage.bypasses > 0, "{usage:?}");
    let mut still = vec![0; bytes.len()];
    pin.read_at(&mut still, 0).unwrap();
    assert!(bytes == still);
    drop(pin);
    bench.read_one(&cache, 1).await;
    assert!(cache.usage().evicted_chunks > 0, "room was found once the pin was gone");
}

impl Bench {
    async fn read_one(&self, cache: &crate::Cache, blob: usize) {
        let (blob, bytes) = &self.blobs[blob];
        for start in (0..blob.size_bytes).step_by(1 << 18) {
            let want = range(start, (start + (1 << 18)).min(blob.size_bytes));
            assert!(cache.read(*blob, want, Purpose::Demand).await.unwrap() == part(bytes, want));
            cache.settle().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_blobs_are_evicted_last() {
    let mut bench = Bench::new(&[1 << 20, 1 << 20, 1 << 20]);
    bench.config.cap_bytes = 5 << 19;
    let cache = bench.open().await;
    cache.retain(&bench.blobs[0].0.digest);
    for blob in 0..3 {
        bench.read_one(&cache, blob).await;
    }
    let present = |i: usize| cache.blob(&bench.blobs[i].0.digest).map_or(0, |b| b.present_chunks);
    assert_eq!(present(0), 16, "the retained blob, though the oldest, is whole");
    assert!(present(1) < 16);
    assert_eq!(cache.blob(&bench.blobs[0].0.digest).unwrap().users, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_cap_holds_from_the_open_on() {
    let mut bench = Bench::new(&[4 << 20]);
    let cache = bench.open().await;
    bench.read_all(&cache).await;
    cache.close().await;
    crash(cache).await;
    bench.config.cap_bytes = 2 << 20;
    let cache = bench.open().await;
    assert!(cache.usage().used_bytes <= 2 << 20);
    assert!(bench.blocks() <= 2 << 20);
    assert!(cache.usage().present_chunks > 0);
    bench.read_all(&cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_removed_only_when_nobody_uses_it() {
    let bench = Bench::new(&[4 * CHUNK]);
    let cache = bench.open().await;
    let blob = bench.blobs[0].0;
    let unknown = Digest::of(b"unknown");
    assert_eq!(cache.remove(&unknown).await, Err(RemoveError::NotFound { blob: unknown }));
    let mut events = cache.events();
    bench.read_all(&cache).await;
    // While it is being verified it counts as being read.
    events.recv().await.unwrap();
    cache.settle().await;
    cache.retain(&blob.digest);
    assert_eq!(cache.remove(&blob.digest).await, Err(RemoveError::Retained { blob: blob.digest, users: 1 }));
    cache.release(&blob.digest);
    let pin = cache.locate(&blob, range(0, 1)).unwrap();
    assert_eq!(cache.remove(&blob.digest).await, Err(RemoveError::Busy { blob: blob.digest }));
    drop(pin);
    assert!(cache.remove(&blob.digest).await.unwrap() >= blob.size_bytes);
    let usage = cache.usage();
    assert_eq!((usage.used_bytes, usage.present_chunks, usage.durable_chunks, usage.blobs), (0, 0, 0, 0));
    assert_eq!(bench.blocks(), 0);
    bench.read_all(&cache).await;
    assert_eq!(bench.memory.reads(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_cache_per_directory_and_the_second_is_told_who_has_it() {
    let bench = Bench::new(&[1]);
    let cache = bench.open().await;
    let error = bench.try_open(refusing()).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    assert!(error.to_string().contains("stop that agent"));
    cache.close().await;
    crash(cache).await;
    bench.open().await.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_version_is_refused_and_left_alone() {
    let bench = Bench::new(&[1]);
    fs::create_dir(bench.path()).unwrap();
    fs::write(bench.path().join("layout"), "penstock-cache 99\n").unwrap();
    let error = bench.try_open(refusing()).await.unwrap_err();
    assert!(matches!(&error, OpenError::Layout { found, .. } if found == "penstock-cache 99"), "{error}");
    assert!(!bench.path().join("blobs").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_cannot_be_a_directory_is_a_typed_error() {
    let mut bench = Bench::new(&[1]);
    let file = bench.dir.path().join("file");
    fs::write(&file, "").unwrap();
    bench.config.dir = file.join("cache");
    let error = bench.try_open(refusing()).await.unwrap_err();
    assert!(matches!(error, OpenError::Unwritable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_size_in_one_manifest_does_not_harm_the_true_blob() {
    let bench = Bench::new(&[2 * CHUNK]);
    let cache = bench.open().await;
    let (blob, bytes) = bench.blobs[0].clone();
    let lie = Blob { size_bytes: 100, ..blob };
    assert_eq!(cache.read(lie, range(0, 100), Purpose::Demand).await.unwrap(), part(&bytes, range(0, 100)));
    let huge = Blob { size_bytes: u64::MAX, ..blob };
    assert!(cache.read(huge, range(u64::MAX - 5, u64::MAX), Purpose::Demand).await.is_err());
    bench.read_all(&cache).await;
    cache.settle().await;
    assert!(located(&cache, &blob, blob.all().unwrap()).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_even_when_the_source_below_never_answers() {
    let mut bench = Bench::new(&[CHUNK]);
    bench.config.drain = std::time::Duration::ZERO;
    let stuck = Stuck::new(bench.memory.clone());
    let cache = bench.open_on(stuck.clone()).await;
    let reader = tokio::task::JoinSet::from_iter([{
        let (cache, blob) = (cache.clone(), bench.blobs[0].0);
        async move { cache.read(blob, range(0, 1), Purpose::Demand).await }
    }]);
    stuck.until_waiting(1).await;
    cache.close().await;
    assert_eq!(reader.join_all().await, [Err(ReadError::Stopping)]);
    assert_eq!(cache.read(bench.blobs[0].0, range(0, 1), Purpose::Demand).await, Err(ReadError::Stopping));
}

#[tokio::test]
async fn an_outline_tells_what_is_here_what_comes_and_what_was_read() {
    let bench = Bench::new(&[10 * CHUNK - 1]);
    let cache = bench.open().await;
    let blob = bench.blobs[0].0;
    let fresh = cache.outline(&blob, 4);
    assert_eq!((fresh.part_bytes, fresh.parts.len()), (3 * CHUNK, 4));
    assert_eq!(fresh.parts.iter().map(|part| part.chunks).collect::<Vec<_>>(), [3, 3, 3, 1]);
    assert!(fresh.parts.iter().all(|part| part.present == 0 && !part.is_filling && !part.is_read));

    cache.read(blob, range(3 * CHUNK, 5 * CHUNK), Purpose::Demand).await.unwrap();
    cache.read(blob, range(9 * CHUNK, 9 * CHUNK + 1), Purpose::Ahead).await.unwrap();
    cache.settle().await;
    let parts = cache.outline(&blob, 4).parts;
    assert_eq!(parts.iter().map(|part| part.present).collect::<Vec<_>>(), [0, 2, 0, 1]);
    assert_eq!(parts.iter().map(|part| part.is_read).collect::<Vec<_>>(), [false, true, false, false]);
    drop(cache.locate(&blob, range(9 * CHUNK, 9 * CHUNK + 1)).expect("it was stored"));
    assert!(cache.outline(&blob, 4).parts[3].is_read);
    assert_eq!(cache.outline(&blob, u32::MAX).parts.len(), 10, "never finer than chunks");
    assert_eq!(cache.outline(&blob, 0).parts.len(), 1);
}

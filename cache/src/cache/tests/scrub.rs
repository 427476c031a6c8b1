//! Reading again, clearing, and what is promised of damage on disk.

use std::time::Duration;

use tokio::sync::broadcast;

use super::*;
use crate::{
    Cache, Scrubbed,
    testing::{FakeIndex, Mood, kind},
};

/// Flips one bit of the data file at `offset`.
fn flip(bench: &Bench, offset: u64) {
    let file = fs::File::options().read(true).write(true).open(bench.file("data")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_a_flipped_bit_anywhere_and_repairs_it() {
    let bench = Bench::new(&[5 * CHUNK + 7]);
    let cache = bench.open().await;
    let mut events = cache.events();
    bench.read_all(&cache).await;
    assert_eq!(kind(&events.recv().await.unwrap()), "verified");
    cache.settle().await;
    assert!(cache.verify(false).await.is_clean());
    let mut rng = fastrand::Rng::with_seed(3);
    for round in 0..8 {
        flip(&bench, rng.u64(0..5 * CHUNK + 7));
        let found = cache.verify(true).await;
        let clean = Scrubbed { blobs: 1, chunks: 6, bytes: 5 * CHUNK + 7, ..Scrubbed::default() };
        assert_eq!(found, Scrubbed { corrupt_chunks: 1, repaired_ranges: 1, ..clean }, "round {round}");
        cache.settle().await;
        assert_eq!(cache.usage().corrupt_chunks, round + 1);
        bench.read_all(&cache).await;
        // Hashed whole again each time; of the damage operators hear once.
        let event = events.recv().await.unwrap();
        let event = if round == 0 && kind(&event) == "corrupt" { events.recv().await.unwrap() } else { event };
        assert_eq!(kind(&event), "verified");
    }
    assert!(cache.verify(false).await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_without_a_source_drops_what_is_wrong_and_says_what_was_not_repaired() {
    let bench = Bench::new(&[4 * CHUNK]);
    let cache = bench.open().await;
    let mut events = cache.events();
    // A blob that was not hashed whole before is hashed after the start: that might find the damage first.
    read_and_verified(&bench, &cache, &mut events).await;
    cache.close().await;
    crash(cache).await;
    let cache = bench.open_on(refusing()).await;
    flip(&bench, 2 * CHUNK);
    let found = cache.verify(true).await;
    assert_eq!((found.corrupt_chunks, found.repaired_ranges, found.not_repaired_ranges), (1, 0, 1));
    let (blob, bytes) = bench.blobs[0].clone();
    let good = range(0, 2 * CHUNK);
    assert!(cache.read(blob, good, Purpose::Demand).await.unwrap() == part(&bytes, good));
    assert!(cache.read(blob, range(2 * CHUNK, 3 * CHUNK), Purpose::Demand).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_reads_everything_again_and_tells_of_damage_once() {
    let mut bench = Bench::new(&[4 * CHUNK]);
    bench.config.scrub_interval = Some(Duration::from_millis(1));
    let cache = bench.open().await;
    let mut events = cache.events();
    bench.read_all(&cache).await;
    cache.settle().await;
    flip(&bench, CHUNK);
    let mut told = Vec::new();
    while told.last() != Some(&"scrubbed") || !told.contains(&"corrupt") {
        told.push(kind(&events.recv().await.unwrap()));
    }
    assert_eq!(told.iter().filter(|kind| **kind == "corrupt").count(), 1);
    assert_eq!(cache.usage().corrupt_chunks, 1);
    bench.read_all(&cache).await;
    cache.close().await;
}

/// Reads all blobs, and waits until nothing is read any more to verify them either.
async fn read_and_verified(bench: &Bench, cache: &Cache, events: &mut broadcast::Receiver<Event>) {
    bench.read_all(cache).await;
    for _ in &bench.blobs {
        assert_eq!(kind(&events.recv().await.unwrap()), "verified");
    }
    cache.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clearing_keeps_what_is_attached_unless_forced_and_what_is_being_read_always() {
    let bench = Bench::new(&[4 << 20, 4 << 20, 4 << 20]);
    let cache = bench.open_with(Arc::new(crate::disk::Kernel), FakeIndex::new(Mood::Good).opener()).await;
    let mut events = cache.events();
    read_and_verified(&bench, &cache, &mut events).await;
    let [free, attached, read] = [0, 1, 2].map(|i| bench.blobs[i].0);
    cache.retain(&attached.digest);
    let pin = cache.locate(&read, range(0, 1)).unwrap();
    let cleared = cache.clear(None, false).await;
    let present = |blob: &Blob| cache.blob(&blob.digest).map_or(0, |usage| usage.present_chunks);
    assert_eq!((present(&free), present(&attached), present(&read)), (0, 64, 16), "one extent of 1 MiB is being read");
    let mut kept: Vec<_> = cleared.kept.iter().map(|(digest, _)| *digest).collect();
    kept.sort_unstable();
    let mut want = vec![attached.digest, read.digest];
    want.sort_unstable();
    assert_eq!(kept, want);
    drop(pin);
    let cleared = cache.clear(None, true).await;
    assert_eq!(cleared.kept, []);
    assert_eq!(cache.usage().present_chunks, 0);
    read_and_verified(&bench, &cache, &mut events).await;
    let unknown = Digest::of(b"unknown");
    let cleared = cache.clear(Some(&[unknown, free.digest]), false).await;
    assert_eq!((cleared.freed.len(), cleared.kept.len()), (1, 1));
}

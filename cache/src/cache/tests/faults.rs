//! A disk or an index that fails, stalls or panics: reads go on, nothing is stored wrong, it heals.

use std::{os::unix::fs::MetadataExt as _, process::Command, sync::atomic::Ordering, time::Duration};

use prometheus_client::registry::Registry;

use super::*;
use crate::{
    Cache,
    config::Seams,
    disk::Kernel,
    testing::{FailingDisk, FakeIndex, HeldDisk, Mood, kind},
};

#[tokio::test(flavor = "multi_thread")]
async fn when_writes_fail_bytes_are_served_and_storing_resumes_by_itself() {
    let bench = Bench::new(&[8 * CHUNK]);
    let disk = Arc::new(FailingDisk::default());
    let cache = bench.open_with(disk.clone(), FakeIndex::new(Mood::Good).opener()).await;
    let mut events = cache.events();
    disk.writes.store(true, Ordering::SeqCst);
    bench.read_all(&cache).await;
    cache.settle().await;
    let usage = cache.usage();
    assert_eq!((usage.present_chunks, usage.bypasses), (0, 1));
    assert_eq!(bench.memory.reads(), 1);
    bench.read_all(&cache).await;
    cache.settle().await;
    assert_eq!(cache.metrics().write_failures.get(), 1, "a disk that failed is left alone until the next look");
    disk.writes.store(false, Ordering::SeqCst);
    cache.look();
    bench.read_all(&cache).await;
    cache.settle().await;
    assert_eq!(cache.usage().durable_chunks, 8);
    bench.read_all(&cache).await;
    assert_eq!(bench.memory.reads(), 3);
    let mut kinds = Vec::new();
    while kinds.len() < 3 {
        kinds.push(kind(&events.recv().await.unwrap()));
    }
    assert_eq!(kinds[..2], ["bypass", "healed"], "each is said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_rejected_while_they_are_written_are_neither_kept_nor_given_to_others() {
    let bench = Bench::new(&[8 * CHUNK]);
    let (blob, bytes) = bench.blobs[0].clone();
    let (corrupt, disk) = (Corrupt::new(bench.memory.clone()), Arc::new(HeldDisk::default()));
    let seams =
        Seams { disk: disk.clone(), index: FakeIndex::new(Mood::Good).opener(), backoff: Duration::from_millis(1) };
    let cache = Cache::open_with(bench.config.clone(), corrupt.clone(), &mut Registry::default(), seams).await.unwrap();
    disk.hold(true);
    let all = range(0, 8 * CHUNK);
    assert!(cache.read(blob, all, Purpose::Demand).await.unwrap() != bytes, "the mirror lies");
    cache.reject(&blob, range(4 * CHUNK, 4 * CHUNK + 1));
    assert_eq!(bench.memory.rejects(), 1, "the source below hears of it");
    corrupt.set(false);
    assert!(cache.read(blob, all, Purpose::Demand).await.unwrap() == bytes, "nobody joins the rejected fill");
    disk.hold(false);
    cache.settle().await;
    assert_eq!(cache.usage().present_chunks, 0);
    assert_eq!(fs::metadata(bench.file("data")).unwrap().blocks(), 0, "no space is kept for them");
    bench.read_all(&cache).await;
    cache.settle().await;
    assert!(located(&cache, &blob, all).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_whose_sync_failed_are_dropped_and_never_called_durable() {
    let bench = Bench::new(&[8 * CHUNK]);
    let disk = Arc::new(FailingDisk::default());
    let cache = bench.open_with(disk.clone(), FakeIndex::new(Mood::Good).opener()).await;
    disk.syncs.store(true, Ordering::SeqCst);
    bench.read_all(&cache).await;
    cache.settle().await;
    let usage = cache.usage();
    assert_eq!((usage.present_chunks, usage.durable_chunks), (0, 0));
    disk.syncs.store(false, Ordering::SeqCst);
    cache.look();
    bench.read_all(&cache).await;
    cache.settle().await;
    assert_eq!(cache.usage().durable_chunks, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn space_that_cannot_be_freed_stays_counted_until_it_can() {
    let bench = Bench::new(&[8 * CHUNK]);
    let disk = Arc::new(FailingDisk::default());
    let cache = bench.open_with(disk.clone(), FakeIndex::new(Mood::Good).opener()).await;
    bench.read_all(&cache).await;
    cache.settle().await;
    let used = cache.usage().used_bytes;
    disk.punches.store(true, Ordering::SeqCst);
    cache.reject(&bench.blobs[0].0, range(0, CHUNK));
    cache.settle().await;
    assert_eq!((cache.usage().used_bytes, cache.usage().present_chunks), (used, 7));
    disk.punches.store(false, Ordering::SeqCst);
    cache.settle().await;
    assert_eq!(cache.usage().used_bytes, used - CHUNK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_index_stops_nobody_who_reads() {
    let bench = Bench::new(&[64 * CHUNK, 64 * CHUNK]);
    let index = FakeIndex::new(Mood::Good);
    let cache = bench.open_with(Arc::new(Kernel), index.opener()).await;
    index.set(Mood::Stalls);
    bench.read_all(&cache).await;
    let mut fills = cache.store.fills.subscribe();
    fills.wait_for(|n| *n == 0).await.unwrap();
    for (blob, bytes) in &bench.blobs {
        assert!(located(&cache, blob, blob.all().unwrap()).unwrap() == *bytes, "written chunks are located");
    }
    assert_eq!(cache.usage().durable_chunks, 0);
    index.set(Mood::Good);
    cache.settle().await;
    assert_eq!(cache.usage().durable_chunks, 128);
    assert_eq!(cache.usage().index, IndexState::Good);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_hangs_is_given_up_and_everything_else_goes_on() {
    let mut bench = Bench::new(&[8 * CHUNK]);
    bench.config.watchdog = Duration::from_millis(50);
    let index = FakeIndex::new(Mood::Good);
    let cache = bench.open_with(Arc::new(Kernel), index.opener()).await;
    index.set(Mood::Stalls);
    bench.read_all(&cache).await;
    cache.settle().await;
    let usage = cache.usage();
    assert!(matches!(usage.index, IndexState::Abandoned { .. }), "{usage:?}");
    assert_eq!(usage.durable_chunks, 8, "the synced slot headers are the record now");
    cache.close().await;
    index.set(Mood::Good);
    crash(cache).await;
    let cache = bench.open_on(refusing()).await;
    bench.read_all(&cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_keeps_failing_or_panics_is_set_aside_and_said_once() {
    for mood in [Mood::Fails, Mood::Panics] {
        let bench = Bench::new(&[8 * CHUNK]);
        let index = FakeIndex::new(Mood::Good);
        let cache = bench.open_with(Arc::new(Kernel), index.opener()).await;
        let mut events = cache.events();
        index.set(mood);
        bench.read_all(&cache).await;
        let told = events.recv().await.unwrap();
        assert!(matches!(told, Event::IndexAbandoned { .. } | Event::BlobVerified { .. }), "{told}");
        cache.settle().await;
        assert!(matches!(cache.usage().index, IndexState::Abandoned { .. }), "{mood:?}");
        assert_eq!(cache.usage().durable_chunks, 8);
        // Eviction and removal work without an index.
        cache.reject(&bench.blobs[0].0, range(0, 1));
        cache.settle().await;
        assert_eq!(cache.usage().present_chunks, 7);
        cache.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failed_commit_is_retried_and_nothing_is_lost() {
    let bench = Bench::new(&[8 * CHUNK]);
    let index = FakeIndex::new(Mood::Good);
    let cache = bench.open_with(Arc::new(Kernel), index.opener()).await;
    index.set(Mood::Stalls);
    bench.read_all(&cache).await;
    index.set(Mood::Good);
    cache.settle().await;
    cache.close().await;
    crash(cache).await;
    let cache = bench.open_with(Arc::new(Kernel), index.opener()).await;
    assert_eq!(cache.usage().durable_chunks, 8);
    assert_eq!(cache.usage().index, IndexState::Good);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_does_not_open_is_done_without() {
    for (mood, watchdog) in [(Mood::FailsToOpen, 20_000), (Mood::StallsToOpen, 50)] {
        let mut bench = Bench::new(&[8 * CHUNK]);
        bench.config.watchdog = Duration::from_millis(watchdog);
        let index = FakeIndex::new(mood);
        let cache = bench.open_with(Arc::new(Kernel), index.opener()).await;
        let opens = index.opens.load(Ordering::SeqCst);
        match mood {
            Mood::FailsToOpen => assert_eq!(opens, 2, "a new index is tried in place of a bad one"),
            _ => assert!(opens <= 1, "a hanging open is not tried twice"),
        }
        bench.read_all(&cache).await;
        cache.settle().await;
        assert!(matches!(cache.usage().index, IndexState::Abandoned { .. }));
        assert_eq!(cache.usage().durable_chunks, 8);
        cache.close().await;
        index.set(Mood::Good);
    }
}

/// A tmpfs of its own, taken down again.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// `None`, with a word why, when this process may not mount.
    fn mount(bytes: u64) -> Option<Self> {
        let dir = tempfile::TempDir::new().unwrap();
        let options = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
        match mounted {
            Ok(out) if out.status.success() => Some(Self(dir)),
            _ => {
                println!("skipped: a full disk: it needs a tmpfs, and this process may not mount one (not root?)");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Takes what is left of a file system.
fn fill_up(tmpfs: &Tmpfs) {
    let filler = fs::File::create(tmpfs.0.path().join("filler")).unwrap();
    let mut at = 0;
    while filler.write_at(&[1; 4096], at).is_ok_and(|n| n == 4096) {
        at += 4096;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_directory_on_a_full_disk_is_a_typed_error() {
    let Some(tmpfs) = Tmpfs::mount(1 << 20) else { return };
    let mut bench = Bench::new(&[1]);
    bench.config.dir = tmpfs.0.path().join("cache");
    fill_up(&tmpfs);
    let error = bench.try_open(refusing()).await.unwrap_err();
    assert!(matches!(error, OpenError::Full { .. }), "{error}");
    assert!(error.to_string().contains("free some space"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_means_bypass_and_it_heals_by_itself() {
    let Some(tmpfs) = Tmpfs::mount(16 << 20) else { return };
    let mut bench = Bench::new(&[4 << 20, 6 << 20]);
    bench.config.dir = tmpfs.0.path().join("cache");
    let cache = bench.open().await;
    let ballast = tmpfs.0.path().join("ballast");
    fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    bench.read_all(&cache).await;
    cache.settle().await;
    bench.read_all(&cache).await;
    let usage = cache.usage();
    assert!(usage.bypasses > 0 && usage.present_chunks > 0, "{usage:?}");
    cache.close().await;
    // Both blobs do not fit: until the close some of one may have made room for the other.
    let kept = cache.usage().present_chunks;
    crash(cache).await;
    fill_up(&tmpfs);
    // What is cached is served from a full disk.
    let cache = bench.open().await;
    let had = cache.usage().present_chunks;
    assert_eq!(had, kept, "before: {usage:?}, after: {:?}", cache.usage());
    bench.read_all(&cache).await;
    // A write that the full disk refuses late would take the heal back.
    cache.settle().await;
    // And more is kept once there is room.
    fs::remove_file(&ballast).unwrap();
    fs::remove_file(tmpfs.0.path().join("filler")).unwrap();
    // One write is tried; when it went well all are.
    cache.look();
    bench.read_all(&cache).await;
    cache.settle().await;
    bench.read_all(&cache).await;
    cache.settle().await;
    assert_eq!(cache.usage().present_chunks, bench.chunks(), "{:?}", cache.usage());
    cache.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_stalled_index_reads_go_on_memory_is_bounded_and_the_close_ends() {
    let mut bench = Bench::new(&[20 * CHUNK, 60 * CHUNK]);
    bench.config.cap_bytes = 40 * CHUNK;
    bench.config.pending_bytes = 6 * CHUNK;
    bench.config.drain = Duration::ZERO;
    bench.config.watchdog = Duration::from_secs(2);
    let index = FakeIndex::new(Mood::Good);
    let cache = bench.open_with(Arc::new(Kernel), index.opener()).await;
    let mut events = cache.events();
    index.set(Mood::Stalls);
    for _ in 0..3 {
        for (blob, bytes) in &bench.blobs {
            for start in (0..blob.size_bytes).step_by(4 << 16) {
                let want = range(start, start + 4 * CHUNK);
                assert!(cache.read(*blob, want, Purpose::Demand).await.unwrap() == part(bytes, want));
                assert!(cache.store.metrics.pending_bytes.get() <= bench.config.pending_bytes);
                assert!(cache.usage().used_bytes <= bench.config.cap_bytes);
            }
        }
    }
    let usage = cache.usage();
    // On a machine so slow that the index is given up meanwhile, room is made again.
    let given_up = matches!(usage.index, IndexState::Abandoned { .. });
    assert!(usage.bypasses > 0 || given_up, "what cannot wait for room is not kept: {usage:?}");
    let closed = tokio::time::timeout(Duration::from_secs(60), cache.close()).await;
    assert!(closed.is_ok(), "the close waits for an index that never answers");
    assert!(matches!(cache.usage().index, IndexState::Abandoned { .. }));
    let mut abandoned = 0;
    while let Ok(event) = events.try_recv() {
        abandoned += u32::from(matches!(event, Event::IndexAbandoned { .. }));
    }
    assert_eq!(abandoned, 1, "it is told, and told once");
    index.set(Mood::Good);
    crash(cache).await;
    let cache = bench.open().await;
    assert!(cache.usage().present_chunks > 0, "what was stored is found by its slot headers");
    bench.read_all(&cache).await;
    assert_eq!(cache.usage().corrupt_chunks, 0);
}

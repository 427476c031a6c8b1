//! What has to go, and when: scans, watermarks, the reserve of the file system, what lies beside.

use std::sync::atomic::Ordering;

use super::*;
use crate::{
    Cache, Watermarks,
    testing::{FailingDisk, FakeIndex, Mood, kind},
};

const MIB: u64 = 1 << 20;

/// Reads a blob from end to end as a device does: each page of a chunk, and each again when it was filled.
async fn scan(bench: &Bench, cache: &Cache, blob: usize) {
    let (blob, bytes) = &bench.blobs[blob];
    for start in (0..blob.size_bytes).step_by(usize::try_from(CHUNK).unwrap()) {
        let want = range(start, (start + CHUNK).min(blob.size_bytes));
        assert!(cache.read(*blob, want, Purpose::Demand).await.unwrap() == part(bytes, want));
        assert!(cache.read(*blob, want, Purpose::Demand).await.unwrap() == part(bytes, want));
        if start % MIB == 0 {
            cache.settle().await;
        }
    }
    cache.settle().await;
}

fn share(bench: &Bench, cache: &Cache, blob: usize) -> (u32, u32) {
    let usage = cache.blob(&bench.blobs[blob].0.digest);
    usage.map_or((0, 1), |usage| (usage.present_chunks, usage.chunks))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nightly_scan_does_not_empty_a_warm_cache() {
    for (used_twice, attached) in [(true, false), (true, true), (false, false)] {
        let mut bench = Bench::new(&[8 * MIB, 64 * MIB]);
        bench.config.cap_bytes = 24 * MIB;
        let cache = bench.open_with(Arc::new(FailingDisk::default()), FakeIndex::new(Mood::Good).opener()).await;
        scan(&bench, &cache, 0).await;
        cache.store.shared.clock.advance();
        cache.store.shared.clock.advance();
        if used_twice {
            scan(&bench, &cache, 0).await;
        }
        if attached {
            // The scanner attaches what it scans; what is warm is not attached at the time.
            cache.retain(&bench.blobs[1].0.digest);
        }
        scan(&bench, &cache, 1).await;
        let (kept, chunks) = share(&bench, &cache, 0);
        assert!(cache.usage().evicted_chunks > 0);
        if used_twice {
            assert_eq!(kept, chunks, "attached: {attached}");
        } else {
            assert_eq!(kept, 0, "what was read once goes as the scan itself");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cached_before_a_restart_survives_a_scan_after_it() {
    let mut bench = Bench::new(&[8 * MIB, 64 * MIB]);
    bench.config.cap_bytes = 24 * MIB;
    let cache = bench.open().await;
    scan(&bench, &cache, 0).await;
    cache.close().await;
    crash(cache).await;
    let cache = bench.open().await;
    scan(&bench, &cache, 1).await;
    let (kept, chunks) = share(&bench, &cache, 0);
    assert_eq!(kept, chunks);
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_runs_from_the_high_to_the_low_mark_before_the_cap_is_reached() {
    let mut bench = Bench::new(&[20 * MIB]);
    bench.config.cap_bytes = 20 * MIB;
    bench.config.watermarks = Watermarks::new(80, 50).unwrap();
    let cache = bench.open_with(Arc::new(FailingDisk::default()), FakeIndex::new(Mood::Good).opener()).await;
    cache.look();
    let (blob, _) = bench.blobs[0];
    for extent in 0..15 {
        cache.read(blob, range(extent * MIB, (extent + 1) * MIB), Purpose::Demand).await.unwrap();
        cache.settle().await;
    }
    assert_eq!(cache.usage().evicted_chunks, 0, "15 of 16 MiB");
    cache.read(blob, range(15 * MIB, 17 * MIB), Purpose::Demand).await.unwrap();
    cache.settle().await;
    cache.settle().await;
    let usage = cache.usage();
    assert!(usage.used_bytes <= 10 * MIB && usage.used_bytes > 8 * MIB, "{usage:?}");
    assert_eq!(usage.bypasses, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_others_take_the_reserve_nothing_is_stored_chunks_go_and_it_heals_by_itself() {
    let mut bench = Bench::new(&[8 * MIB, 4 * MIB]);
    bench.config.reserve_bytes = Some(100 * MIB);
    let disk = Arc::new(FailingDisk::default());
    let cache = bench.open_with(disk.clone(), FakeIndex::new(Mood::Good).opener()).await;
    let mut events = cache.events();
    scan(&bench, &cache, 0).await;
    let before = cache.usage();
    assert_eq!(before.bypasses, 0);
    // Others leave 80 of the 100 MiB: 20 of them were ours, but we have only 8.
    let free = (1 << 40) - before.used_bytes;
    disk.taken.store(free - 80 * MIB, Ordering::SeqCst);
    cache.look();
    cache.settle().await;
    cache.settle().await;
    let pressed = cache.usage();
    assert_eq!(pressed.present_chunks, 0, "{pressed:?}");
    scan(&bench, &cache, 1).await;
    let bypassed = cache.usage();
    assert!(bypassed.bypasses > 0 && bypassed.present_chunks == 0, "{bypassed:?}");
    disk.taken.store(0, Ordering::SeqCst);
    cache.look();
    scan(&bench, &cache, 1).await;
    assert_eq!(share(&bench, &cache, 1), (64, 64));
    let mut told = Vec::new();
    while told.last() != Some(&"healed") {
        told.push(kind(&events.recv().await.unwrap()));
    }
    told.retain(|told| *told != "verified");
    assert_eq!(told, ["pressure", "healed"], "each is said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_beside_and_the_index_are_within_the_cap() {
    let mut bench = Bench::new(&[12 * MIB]);
    let beside = bench.dir.path().join("maps");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("map"), vec![1; 4 << 20]).unwrap();
    bench.config.cap_bytes = 12 * MIB;
    bench.config.beside = vec![beside];
    let cache = bench.open().await;
    scan(&bench, &cache, 0).await;
    let usage = cache.usage();
    assert!(usage.beside_bytes >= 4 * MIB && usage.limit_bytes <= 8 * MIB, "{usage:?}");
    let on_disk = crate::health::disk_bytes(bench.dir.path(), 4);
    assert!(on_disk <= 12 * MIB, "{on_disk} bytes as du counts them");
    let counted = usage.used_bytes + usage.index_bytes + usage.beside_bytes;
    assert!(counted.abs_diff(on_disk) < MIB / 2, "{counted} counted, {on_disk} on disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_files_deleted_replaced_or_cut_while_they_are_open_are_found_dropped_and_fetched_again() {
    for harm in ["deleted", "replaced", "cut"] {
        let bench = Bench::new(&[8 * CHUNK]);
        let cache = bench.open().await;
        let mut events = cache.events();
        bench.read_all(&cache).await;
        assert_eq!(kind(&events.recv().await.unwrap()), "verified");
        cache.settle().await;
        let file = bench.file("data");
        match harm {
            "deleted" => fs::remove_file(&file).unwrap(),
            "replaced" => {
                fs::write(file.with_extension("new"), vec![7; 8 << 16]).unwrap();
                fs::rename(file.with_extension("new"), &file).unwrap();
            }
            _ => fs::File::options().write(true).open(&file).unwrap().set_len(5).unwrap(),
        }
        cache.look();
        assert_eq!(cache.usage().present_chunks, 0, "{harm}");
        assert_eq!(kind(&events.recv().await.unwrap()), "corrupt");
        cache.settle().await;
        bench.read_all(&cache).await;
        cache.settle().await;
        cache.look();
        assert_eq!((cache.usage().corrupt_chunks, bench.memory.reads()), (8, 2), "{harm}");
        bench.read_all(&cache).await;
        assert_eq!(bench.memory.reads(), 2, "{harm}: stored again, in files that are found");
    }
}

//! What of the page cache stays behind reads and writes of the cache.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use rustix::fs::statfs;

use super::*;
use crate::testing::{Bench, kind, located, range};

/// Bytes that may stay: of two turns what was found and of one what was not.
const MAY_STAY_BYTES: u64 = 3 * TURN_BYTES + (1 << 20);
/// Bytes of the blob.
const BYTES: u64 = 24 << 20;
/// `TMPFS_MAGIC` of `<linux/magic.h>`: its pages are all that there is of a file, and stay.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// Bytes of the file that are in the page cache.
fn cached(file: &Path) -> u64 {
    let out = Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(file).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_hashed_and_read_twice_leaves_few_pages_behind() {
    let bench = Bench::new(&[BYTES]);
    let cache = bench.open().await;
    if statfs(bench.path()).unwrap().f_type == TMPFS {
        println!("skipped: pages::tests: the directory for temporary files is a tmpfs");
        return;
    }
    let mut events = cache.events();
    bench.read_all(&cache).await;
    cache.settle().await;
    assert_eq!(kind(&events.recv().await.unwrap()), "verified");
    let (blob, bytes) = &bench.blobs[0];
    for _ in 0..2 {
        for start in (0..BYTES).step_by(1 << 20) {
            let step = range(start, start + (1 << 20));
            assert!(located(&cache, blob, step).unwrap() == crate::testing::part(bytes, step));
        }
    }
    // They are dropped by a thread that nobody waits for: asked until it has.
    let (began, file) = (Instant::now(), bench.file("data"));
    while cached(&file) > MAY_STAY_BYTES {
        assert!(began.elapsed() < Duration::from_secs(120), "{} bytes of {BYTES} stay", cached(&file));
    }
    cache.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_over_and_over_stays_while_others_come_and_go() {
    let mut bench = Bench::new(&[BYTES]);
    // Nothing is dropped or marked but by this test.
    bench.config.keep_pages = true;
    let cache = bench.open().await;
    bench.read_all(&cache).await;
    cache.settle().await;
    let [(_, slots)] = &cache.store.stored()[..] else { panic!("one blob") };
    let (pages, small, mut stays) = (Pages::new(false), range(0, TURN_BYTES / 2), Parts::new());
    for nth in 0..8 {
        let other = TURN_BYTES + 2 * nth * part_bytes(slots.chunk_size);
        pages.passed(slots, small);
        pages.passed(slots, range(other, other + 1));
        stays = drop_pages(&cache.store, stays);
        let marked: u32 = stays.values().map(|parts| parts.count_ones()).sum();
        assert_eq!(u64::from(marked) * part_bytes(slots.chunk_size), small.len() + part_bytes(slots.chunk_size));
    }
    cache.close().await;
}

#[test]
fn what_was_not_used_again_leaves_and_nothing_else() {
    let mut stays = Parts::from([((1, 0), 0b0111), ((1, 1), 0b1111), ((2, 5), 0b1)]);
    let found = Parts::from([((1, 0), 0b0110), ((1, 1), 0b1111), ((3, 0), 0b1)]);
    let leaves = turn(&mut stays, found.clone(), TURN_BYTES);
    assert_eq!((leaves, &stays), (Parts::from([((1, 0), 0b0001), ((2, 5), 0b1)]), &found));
    let much = Parts::from([((1, 0), 0b1000), ((9, 9), u16::MAX)]);
    let leaves = turn(&mut stays, much, 2 * TURN_BYTES + 1);
    assert!(stays.is_empty(), "who is faster than the drops leaves no more behind");
    assert_eq!(leaves, Parts::from([((1, 0), 0b1110), ((1, 1), 0b1111), ((3, 0), 0b1), ((9, 9), u16::MAX)]));
}

#[test]
fn what_is_not_on_the_disk_yet_keeps_its_marks_and_each_counts_once() {
    let marks = Marks::default();
    assert_eq!((marks.add(5, 0b11), marks.add(5, 0b110), marks.add(5, 0b111), marks.add(200, 1)), (2, 1, 0, 1));
    assert_eq!(marks.take(Bits::span(200, 200)), [(5, 0b111)]);
    assert_eq!(marks.take(Bits::span(200, 200)), []);
    assert_eq!(marks.take(Bits::default()), [(200, 1)]);
    assert!(marks.is_empty());
}

#[test]
fn parts_that_touch_are_one_run_and_a_long_one_takes_the_folio_it_begins_in() {
    let size = ChunkSize::DEFAULT;
    let part = part_bytes(size);
    let of = |chunks: &[(u32, u16)]| runs(size, chunks.iter().copied());
    assert_eq!(of(&[(0, 0b110), (3, 1)]), [(part, 3 * part), (3 << 17, (3 << 17) + part)]);
    assert_eq!(of(&[(7, 1 << 15), (8, 1)]), [((8 << 17) - part, (8 << 17) + part)]);
    assert_eq!(of(&[(17, u16::MAX), (18, u16::MAX)]), [(FOLIO_BYTES, 19 << 17)]);
    assert_eq!(of(&[(16, u16::MAX), (17, u16::MAX)]), [(0, 18 << 17)], "the folio before it ended where this begins");
}

#[test]
fn every_byte_of_a_range_lies_in_a_part_that_it_covers() {
    let size = ChunkSize::DEFAULT;
    let (chunk, part) = (u64::from(size.bytes()), part_bytes(size));
    assert_eq!(covered(size, 0, range(0, 1)), 1);
    assert_eq!(covered(size, 0, range(part - 1, part + 1)), 0b11);
    assert_eq!(covered(size, 0, range(0, chunk)), u16::MAX);
    assert_eq!(covered(size, 1, range(chunk - 1, chunk + part)), 1);
    assert_eq!(covered(size, 1, range(0, 3 * chunk)), u16::MAX);
    assert_eq!(covered(size, 0, range(chunk - 1, chunk + part)), 1 << 15);
}

#[test]
fn what_goes_up_of_a_blob_is_counted_in_steps_and_all_of_it() {
    let (passed, mut counted) = (Passed::default(), 0);
    for _ in 0..1000 {
        counted += passed.add(4096);
        assert_eq!(counted % STEP_BYTES, 0);
    }
    assert_eq!(counted, 1000 * 4096 / STEP_BYTES * STEP_BYTES);
    assert_eq!(passed.add(10 * STEP_BYTES), 10 * STEP_BYTES);
}

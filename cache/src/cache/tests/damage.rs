//! Every file of a cache directory deleted, cut, zeroed and flipped, one at a time, after a close and after a kill, with the registry
//! gone where the bytes are still there, and present where they are not.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::*;

/// Where in a file the damage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    First,
    Middle,
    Last,
}

const PLACES: [At; 3] = [At::First, At::Middle, At::Last];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Delete,
    Empty,
    /// Cut to half.
    Half,
    /// The last byte is missing.
    Short,
    /// Something follows.
    Long,
    Zeroed,
    /// 512 bytes around a place.
    Hole(At),
    /// One bit.
    Flip(At),
}

/// All kinds for a file that holds something; an empty one can only be deleted or made longer.
fn kinds(bytes: u64) -> Vec<Damage> {
    if bytes == 0 {
        return vec![Damage::Delete, Damage::Long];
    }
    let mut all = vec![Damage::Delete, Damage::Empty, Damage::Half, Damage::Short, Damage::Long, Damage::Zeroed];
    all.extend(PLACES.iter().flat_map(|at| [Damage::Hole(*at), Damage::Flip(*at)]));
    all
}

/// Damages a file; false when that changed nothing (zeroes were zeroed).
fn damage(path: &Path, how: Damage) -> bool {
    let before = fs::read(path).unwrap();
    let mut bytes = before.clone();
    let last = bytes.len().saturating_sub(1);
    let place = |at: At| match at {
        At::First => 0,
        At::Middle => last / 2,
        At::Last => last,
    };
    match how {
        Damage::Delete => {
            fs::remove_file(path).unwrap();
            return true;
        }
        Damage::Empty => bytes.clear(),
        Damage::Half => bytes.truncate(bytes.len() / 2),
        Damage::Short => bytes.truncate(last),
        Damage::Long => bytes.extend_from_slice(&[0xa5; 700]),
        Damage::Zeroed => bytes.fill(0),
        Damage::Hole(at) => {
            let from = (place(at) / 512) * 512;
            let end = (from + 512).min(bytes.len());
            bytes[from..end].fill(0);
        }
        Damage::Flip(at) => bytes[place(at)] ^= 0x10,
    }
    fs::write(path, &bytes).unwrap();
    bytes != before
}

/// Every file below `dir`, relative to it.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(next) = waiting.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { waiting.push(path) } else { all.push(path.strip_prefix(dir).unwrap().to_owned()) }
        }
    }
    all.sort();
    all
}

/// A cache directory as it was at one moment, to be damaged again and again.
struct Stand {
    bench: Bench,
    whole: PathBuf,
    _place: TempDir,
}

impl Stand {
    /// Two blobs, all of them cached and durable; closed, or killed.
    async fn new(closed: bool) -> Self {
        let memory = Some(Path::new("/dev/shm")).filter(|dir| dir.is_dir());
        let place = memory.map_or_else(TempDir::new, TempDir::new_in).unwrap();
        let mut bench = Bench::new(&[5 * CHUNK + 9, 260 * 7 * 64]);
        bench.config.dir = place.path().join("cache");
        // Twice, so that sled has both a snapshot and a log.
        let cache = bench.open().await;
        bench.read_all(&cache).await;
        cache.close().await;
        crash(cache).await;
        let cache = bench.open().await;
        cache.reject(&bench.blobs[0].0, range(0, 1));
        cache.settle().await;
        bench.read_all(&cache).await;
        cache.settle().await;
        if closed {
            cache.close().await;
        }
        crash(cache).await;
        let whole = place.path().join("whole");
        copy_dir(bench.path(), &whole);
        Self { bench, whole, _place: place }
    }

    /// The directory as it was, but for one file. False when the damage was none.
    fn damaged(&self, file: &Path, how: Damage) -> bool {
        fs::remove_dir_all(self.bench.path()).unwrap();
        copy_dir(&self.whole, self.bench.path());
        damage(&self.bench.path().join(file), how)
    }

    fn files(&self, below: &str) -> Vec<(PathBuf, Damage)> {
        let mut all = files(&self.whole);
        all.retain(|file| file.starts_with(below));
        let kinds = |file: &PathBuf| kinds(fs::metadata(self.whole.join(file)).unwrap().len());
        all.iter().flat_map(|file| kinds(file).into_iter().map(move |how| (file.clone(), how))).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_one_index_file_no_cached_byte_is_lost_and_what_the_index_lost_is_told() {
    let mut told = BTreeMap::new();
    for closed in [true, false] {
        let stand = Stand::new(closed).await;
        for (file, how) in stand.files("index") {
            if !stand.damaged(&file, how) {
                continue;
            }
            let cache = stand.bench.open_on(refusing()).await;
            let usage = cache.usage();
            stand.bench.read_all(&cache).await;
            let what = format!("closed: {closed}, {how:?} of {}", file.display());
            assert_eq!((usage.present_chunks, cache.usage().corrupt_chunks), (stand.bench.chunks(), 0), "{what}");
            let good = usage.index == IndexState::Good;
            assert!(!good || usage.durable_chunks == usage.present_chunks, "not told: {what}, {usage:?}");
            *told.entry((closed, if good { "nothing was lost" } else { "told as rebuilt" })).or_insert(0) += 1;
            cache.close().await;
            crash(cache).await;
            if !good {
                // It healed, and that is said once.
                let cache = stand.bench.open_on(refusing()).await;
                let usage = cache.usage();
                assert_eq!((usage.index, usage.durable_chunks), (IndexState::Good, stand.bench.chunks()), "{what}");
                crash(cache).await;
            }
        }
    }
    println!("damages to index files, by (closed before, outcome): {told:?}");
    assert!(told.len() == 4, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_one_other_file_reads_are_right_and_what_was_dropped_is_counted() {
    let (mut opened, mut dropped, mut told) = (0, 0, 0);
    for closed in [true, false] {
        let stand = Stand::new(closed).await;
        let others = stand.files("").into_iter().filter(|(file, _)| !file.starts_with("index"));
        for (file, how) in others {
            if !stand.damaged(&file, how) {
                continue;
            }
            let what = format!("closed: {closed}, {how:?} of {}", file.display());
            let before = stand.bench.memory.bytes_read();
            let cache = stand.bench.open().await;
            let found = cache.usage().present_chunks;
            let mut events = cache.events();
            stand.bench.read_all(&cache).await;
            let corrupt = cache.usage().corrupt_chunks;
            let fetched = stand.bench.memory.bytes_read() - before;
            let missing = stand.bench.chunks() - found + corrupt;
            assert!(
                fetched <= missing * CHUNK && (fetched == 0) == (missing == 0),
                "{what}: {fetched} bytes, {missing} chunks"
            );
            let event = events.try_recv().ok().filter(|event| matches!(event, Event::BlobDropped { .. }));
            let is = |kind: &str| file.extension().is_some_and(|extension| extension == kind);
            let gone = is("meta") || is("data") && how == Damage::Delete;
            assert_eq!(event.is_some(), gone, "{what}: a blob that went is told");
            opened += 1;
            dropped += missing;
            told += u32::from(event.is_some());
            cache.settle().await;
            crash(cache).await;
            // It healed: nothing is fetched any more.
            let cache = stand.bench.open_on(refusing()).await;
            stand.bench.read_all(&cache).await;
            crash(cache).await;
        }
    }
    println!("damages to other files: {opened} opened, {dropped} chunks dropped, {told} blobs told");
    assert!(opened > 100 && dropped > 0 && told > 0);
}

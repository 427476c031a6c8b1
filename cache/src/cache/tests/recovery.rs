//! What a restart finds: after a close, after a kill, with damaged files.

use std::path::Path;

use penstock_blob::ChunkSize;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_close_and_open_and_checked_before_it_is_located() {
    let bench = Bench::new(&[20 * CHUNK + 5, 300 * CHUNK]);
    let cache = bench.open().await;
    bench.read_all(&cache).await;
    cache.close().await;
    let used = cache.usage().used_bytes;
    crash(cache).await;
    let cache = bench.open_on(refusing()).await;
    let usage = cache.usage();
    assert_eq!((usage.present_chunks, usage.durable_chunks), (bench.chunks(), bench.chunks()));
    assert_eq!((usage.used_bytes, usage.index), (used, IndexState::Good));
    bench.read_all(&cache).await;
    for (blob, bytes) in &bench.blobs {
        assert!(located(&cache, blob, blob.all().unwrap()).unwrap() == *bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_found_on_disk_is_not_located_before_it_was_read() {
    let bench = Bench::new(&[2 * CHUNK]);
    let cache = bench.open().await;
    let blob = bench.blobs[0].0;
    cache.read(blob, range(0, 1), Purpose::Demand).await.unwrap();
    cache.close().await;
    crash(cache).await;
    let cache = bench.open_on(refusing()).await;
    assert!(cache.locate(&blob, range(0, 1)).is_none());
    cache.read(blob, range(7, 8), Purpose::Demand).await.unwrap();
    assert!(cache.locate(&blob, range(0, CHUNK)).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_found_after_a_kill() {
    let bench = Bench::new(&[40 * CHUNK]);
    let cache = bench.open().await;
    bench.read_all(&cache).await;
    let mut fills = cache.store.fills.subscribe();
    fills.wait_for(|n| *n == 0).await.unwrap();
    drop(fills);
    crash(cache).await;
    let cache = bench.open_on(refusing()).await;
    assert_eq!(cache.usage().present_chunks, 40);
    bench.read_all(&cache).await;
    cache.settle().await;
    assert_eq!(cache.usage().durable_chunks, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_written_with_another_chunk_size_serves_what_it_has_and_only_new_blobs_get_the_new_one() {
    let mut bench = Bench::new(&[20 * CHUNK + 5, 40 * CHUNK, 9 * CHUNK]);
    let blobs: Vec<Blob> = bench.blobs.iter().map(|(blob, _)| *blob).collect();
    let cache = bench.open().await;
    cache.read(blobs[0], blobs[0].all().unwrap(), Purpose::Demand).await.unwrap();
    cache.read(blobs[1], range(3 * CHUNK, 5 * CHUNK), Purpose::Demand).await.unwrap();
    cache.close().await;
    crash(cache).await;
    // Larger, and then smaller than what is there.
    for chunk in [4 * CHUNK, CHUNK] {
        bench.config.chunk_size = ChunkSize::new(chunk).unwrap();
        let down = bench.open_on(refusing()).await;
        assert_eq!(down.usage().index, IndexState::Good);
        let whole = blobs[0].all().unwrap();
        assert!(down.read(blobs[0], whole, Purpose::Demand).await.unwrap() == bench.blobs[0].1, "without its source");
        down.read(blobs[1], range(3 * CHUNK, 5 * CHUNK), Purpose::Demand).await.unwrap();
        down.close().await;
        crash(down).await;
        let cache = bench.open().await;
        bench.read_all(&cache).await;
        cache.settle().await;
        for (blob, own) in blobs.iter().zip([CHUNK, CHUNK, 4 * CHUNK]) {
            assert_eq!(u64::from(cache.blob(&blob.digest).unwrap().chunk_size.bytes()), own);
        }
        cache.close().await;
        crash(cache).await;
    }
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Delete,
    Empty,
    Half,
    Flip,
}

fn damage(path: &Path, how: Damage) {
    let bytes = fs::read(path).unwrap();
    match how {
        Damage::Delete => fs::remove_file(path).unwrap(),
        Damage::Empty => fs::write(path, []).unwrap(),
        Damage::Half => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
        Damage::Flip => {
            let mut bytes = bytes;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        }
    }
}

impl Bench {
    async fn read_one_range(&self, cache: &crate::Cache) {
        let (blob, bytes) = &self.blobs[0];
        let want = range(CHUNK, 3 * CHUNK);
        assert!(cache.read(*blob, want, Purpose::Demand).await.unwrap() == part(bytes, want));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_index_is_rebuilt_from_slot_headers_and_said_once() {
    let bench = Bench::new(&[30 * CHUNK]);
    let cache = bench.open().await;
    bench.read_all(&cache).await;
    cache.close().await;
    crash(cache).await;
    fs::remove_dir_all(bench.path().join("index")).unwrap();
    let cache = bench.open_on(refusing()).await;
    let told = cache.events().recv().await.unwrap();
    assert!(matches!(&told, Event::IndexRebuilt { chunks: 30, .. }), "{told}");
    assert!(cache.usage().index.to_string().starts_with("index rebuilt: "));
    bench.read_all(&cache).await;
    cache.close().await;
    crash(cache).await;
    let cache = bench.open_on(refusing()).await;
    assert_eq!(cache.usage().index, IndexState::Good, "said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_went_back_in_time_is_noticed_and_completed() {
    let bench = Bench::new(&[30 * CHUNK]);
    let cache = bench.open().await;
    bench.read_one_range(&cache).await;
    cache.close().await;
    crash(cache).await;
    let old = bench.dir.path().join("old");
    copy_dir(&bench.path().join("index"), &old);
    let cache = bench.open().await;
    bench.read_all(&cache).await;
    cache.close().await;
    crash(cache).await;
    fs::remove_dir_all(bench.path().join("index")).unwrap();
    copy_dir(&old, &bench.path().join("index"));
    let cache = bench.open_on(refusing()).await;
    assert!(matches!(cache.usage().index, IndexState::Rebuilt { .. }));
    assert_eq!(cache.usage().present_chunks, 30);
    bench.read_all(&cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_data_is_fetched_again_and_counted() {
    let bench = Bench::new(&[30 * CHUNK]);
    for how in [Damage::Flip, Damage::Half, Damage::Empty] {
        let cache = bench.open().await;
        bench.read_all(&cache).await;
        cache.close().await;
        crash(cache).await;
        damage(&bench.file("data"), how);
        let before = bench.memory.bytes_read();
        let cache = bench.open().await;
        bench.read_all(&cache).await;
        let lost = cache.usage().corrupt_chunks;
        assert!(lost > 0, "{how:?}");
        assert_eq!(bench.memory.bytes_read() - before, lost * CHUNK, "only what was lost is fetched, {how:?}");
        cache.settle().await;
        assert_eq!(cache.usage().present_chunks, 30);
        cache.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_slot_headers_are_written_anew_from_the_index() {
    let bench = Bench::new(&[30 * CHUNK]);
    let cache = bench.open().await;
    bench.read_all(&cache).await;
    cache.close().await;
    crash(cache).await;
    let headers = fs::read(bench.file("slots")).unwrap();
    fs::remove_file(bench.file("slots")).unwrap();
    let cache = bench.open_on(refusing()).await;
    bench.read_all(&cache).await;
    cache.close().await;
    assert!(fs::read(bench.file("slots")).unwrap() == headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_without_a_sound_description_is_dropped_and_its_space_freed() {
    for how in [Damage::Flip, Damage::Half, Damage::Delete] {
        let bench = Bench::new(&[30 * CHUNK]);
        let cache = bench.open().await;
        bench.read_all(&cache).await;
        cache.close().await;
        crash(cache).await;
        let meta = bench.file("meta");
        damage(&meta, how);
        let cache = bench.open().await;
        let told = cache.events().recv().await.unwrap();
        assert!(matches!(told, Event::BlobDropped { .. }), "{told}");
        assert_eq!((cache.usage().used_bytes, bench.blocks()), (0, 0));
        bench.read_all(&cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_without_a_bit_are_freed_at_open() {
    let bench = Bench::new(&[64 * CHUNK]);
    let cache = bench.open().await;
    bench.read_one_range(&cache).await;
    cache.close().await;
    crash(cache).await;
    let data = fs::File::options().write(true).open(bench.file("data")).unwrap();
    data.write_all_at(&bytes(8 * CHUNK, 99), 40 * CHUNK).unwrap();
    data.sync_all().unwrap();
    let with = bench.blocks();
    let cache = bench.open_on(Memory::new(Vec::new())).await;
    assert_eq!(bench.blocks(), with - 8 * CHUNK);
    assert!(bench.blocks() <= cache.usage().used_bytes);
    assert_eq!(cache.usage().present_chunks, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn strays_in_the_directory_are_no_blobs() {
    let bench = Bench::new(&[CHUNK]);
    let cache = bench.open().await;
    bench.read_all(&cache).await;
    cache.close().await;
    crash(cache).await;
    let blobs = bench.path().join("blobs");
    for stray in ["7.data", "8.meta.tmp", "x.slots", "99999999999.data", "noise"] {
        fs::write(blobs.join(stray), b"stray").unwrap();
    }
    let cache = bench.open_on(refusing()).await;
    bench.read_all(&cache).await;
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 3);
}

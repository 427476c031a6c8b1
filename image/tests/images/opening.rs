//! What opening reads, keeps and refuses.

use std::{
    collections::HashSet,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, Digest};
use penstock_image::{
    BLOB_DIGEST, FileSystem, Image, Kind, Layer, LayerError, OpenError, PlanError, Scratch, TableError, What, collect,
    lsmt::{Entry, LsmtError},
    pages::PAGE_BYTES,
    read, sweep,
    write::Options,
};

use crate::common::{LZ4, blob, complete, crafted, layer, layer_of_disk, noise, range, source};

fn bottom(device_bytes: u64) -> Options {
    Options { device_bytes: Some(device_bytes), ..Options::default() }
}

async fn refused(layers: Vec<Layer>, source: Arc<dyn BlobSource>) -> OpenError {
    let maps = tempfile::tempdir().unwrap();
    let error = Image::open(layers, source, maps.path()).await.unwrap_err();
    // Nothing is kept but the tables of layers that are sound; what is being made goes with its task.
    let left: Vec<_> = std::fs::read_dir(maps.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.iter().all(|path| path.extension().is_none_or(|e| e == "frames")), "{left:?}");
    error
}

fn only_file(dir: &Path, extension: &str) -> std::path::PathBuf {
    let mut paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|e| e == extension)).unwrap()
}

#[tokio::test]
async fn opening_reads_little_and_opening_again_reads_nothing() {
    let disk = noise(24 << 20, 5);
    let (written, blob) = layer_of_disk(&disk, Options::default());
    let (memory, mut layers) = source(vec![blob]);
    layers[0].annotations = written.annotations;
    let maps = tempfile::tempdir().unwrap();
    let first = complete(layers.clone(), memory.clone(), maps.path()).await;
    let (reads, bytes) = (memory.reads(), memory.bytes_read());
    assert!(
        reads <= 4 && bytes <= 128 << 10,
        "{reads} reads of {bytes} bytes for a layer of {} frames",
        (24 << 20) / 4096
    );
    let second = complete(layers, memory.clone(), maps.path()).await;
    assert_eq!((memory.reads(), memory.bytes_read()), (reads, bytes));
    let source: Arc<dyn BlobSource> = memory.clone();
    for image in [first, second] {
        let before = memory.bytes_read();
        let wanted = range(10_000_000, 10_000_001);
        assert_eq!(read(&image, &source, wanted).await.unwrap()[..], disk[10_000_000..=10_000_000]);
        assert!(memory.bytes_read() - before < 4200, "one frame was fetched for one byte");
    }
}

#[tokio::test]
async fn images_share_the_frame_tables_of_common_layers() {
    let disk = noise(24 << 20, 6);
    let (_, base) = layer_of_disk(&disk, Options::default());
    let (_, upper) = layer(Options::default(), &[(7, 1, Some(&noise(512, 1)))]);
    let (memory, layers) = source(vec![base, upper]);
    let maps = tempfile::tempdir().unwrap();
    complete(layers[..1].to_vec(), memory.clone(), maps.path()).await;
    let before = memory.bytes_read();
    let image = complete(layers, memory.clone(), maps.path()).await;
    let read = memory.bytes_read() - before;
    assert!(read < 32 << 10, "{read} bytes: the jump table was not read again");
    // Four of the base (an extent has at most 16382 sectors), one of them cut in two by the upper one.
    assert_eq!(image.extents(), Some(6));
}

#[tokio::test]
async fn damaged_tables_are_noticed_at_open_and_built_anew() {
    let (memory, layers) = source(LZ4.map(blob).to_vec());
    let maps = tempfile::tempdir().unwrap();
    complete(layers.clone(), memory.clone(), maps.path()).await;
    for extension in ["map", "frames"] {
        let path = only_file(maps.path(), extension);
        let good = std::fs::read(&path).unwrap();
        let mut broken: Vec<Vec<u8>> = vec![vec![], good[..good.len() - 1].to_vec(), good[..PAGE_BYTES].to_vec()];
        for page in 0..good.len() / PAGE_BYTES {
            let mut flipped = good.clone();
            flipped[page * PAGE_BYTES + 100] ^= 0x10;
            broken.push(flipped);
        }
        let mut swapped = good.clone();
        swapped.rotate_left(PAGE_BYTES);
        broken.push(swapped);
        for bytes in broken {
            std::fs::write(&path, &bytes).unwrap();
            complete(layers.clone(), memory.clone(), maps.path()).await;
            assert!(std::fs::read(&path).unwrap() == good, "rebuilt as it was");
        }
    }
}

#[tokio::test]
async fn damage_in_a_large_map_is_an_error_at_lookup_and_removes_the_file() {
    let entry = |i: u64| Entry { start: 3 * i, sectors: 1, moffset: 8, zeroed: false, tag: 0 };
    let entries: Vec<Entry> = (0..300_000).map(entry).collect();
    let (memory, layers) = source(vec![crafted(&entries, 900_000 * 512)]);
    let maps = tempfile::tempdir().unwrap();
    let image = complete(layers.clone(), memory.clone(), maps.path()).await;
    assert_eq!(image.extents(), Some(300_000));
    let path = only_file(maps.path(), "map");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 700 * PAGE_BYTES as u64 + 50).unwrap();
    memory.resident(true);
    // Leaves start at page 2 and hold 255 extents each.
    let sector = |i: u64| range(3 * i * 512, 3 * i * 512 + 512);
    image.plan(sector(697 * 255), &*memory).unwrap();
    let error = image.plan(sector(698 * 255 + 9), &*memory).unwrap_err();
    assert!(matches!(error, PlanError::Map(TableError::Damaged { page: 700, .. })), "{error}");
    assert!(!path.exists());
    let image = complete(layers, memory.clone(), maps.path()).await;
    let mut buf = vec![0; 512];
    let plan = image.plan(sector(698 * 255 + 9), &*memory).unwrap();
    plan.read_into(&mut buf, &mut Scratch::new()).unwrap();
    assert_eq!(buf, noise(512, 1));
}

#[tokio::test]
async fn data_beyond_two_tebibytes_is_right() {
    let sectors = [5000, (1 << 32) + 5000, (1 << 33) - 1];
    let data: Vec<Vec<u8>> = (0..3).map(|i| noise(512, i)).collect();
    let extents: Vec<_> = sectors.iter().zip(&data).map(|(&start, data)| (start, 1, Some(&data[..]))).collect();
    let (_, bytes) = layer(bottom(4 << 40), &extents);
    let (memory, layers) = source(vec![bytes]);
    let maps = tempfile::tempdir().unwrap();
    let image = Image::open(layers, memory.clone(), maps.path()).await.unwrap();
    assert_eq!(image.size_bytes(), 4 << 40);
    let source: Arc<dyn BlobSource> = memory;
    for (sector, data) in sectors.iter().zip(&data) {
        let at = range(sector * 512, (sector + 1) * 512);
        assert_eq!(read(&image, &source, at).await.unwrap(), data);
    }
    let hole = range((1 << 41) + 512, (1 << 41) + 1024);
    assert_eq!(read(&image, &source, hole).await.unwrap(), vec![0; 512]);
}

#[tokio::test]
async fn stacks_reach_255_layers_and_no_more() {
    let sector = |i: u8| vec![i; 512];
    let bytes = |i: u8| {
        layer(
            Options { device_bytes: Some(1 << 20), ..Options::default() },
            &[(u64::from(i), 2, Some(&[sector(i), sector(i)].concat()))],
        )
        .1
    };
    let (memory, layers) = source((0..=255).map(bytes).collect());
    let error = refused(layers.clone(), memory.clone()).await;
    assert!(matches!(error, OpenError::TooManyLayers { layers: 256 }), "{error}");
    let maps = tempfile::tempdir().unwrap();
    let image = Image::open(layers[..255].to_vec(), memory.clone(), maps.path()).await.unwrap();
    let source: Arc<dyn BlobSource> = memory;
    let all = read(&image, &source, range(0, 256 * 512)).await.unwrap();
    for (i, sector) in all.chunks(512).enumerate() {
        assert_eq!(usize::from(sector[0]), i.min(254), "the upper layer wins");
    }
}

#[tokio::test]
async fn the_device_size_is_the_top_most_one_stated() {
    let upper = |device_bytes| layer(Options { device_bytes, ..Options::default() }, &[]).1;
    let maps = tempfile::tempdir().unwrap();
    for (sizes, expected) in [([Some(1 << 20), None, None], 1 << 20), ([Some(1 << 20), Some(2 << 20), None], 2 << 20)] {
        let (memory, layers) = source(sizes.map(upper).to_vec());
        assert_eq!(Image::open(layers, memory, maps.path()).await.unwrap().size_bytes(), expected);
    }
    let (memory, layers) = source(vec![upper(None)]);
    assert!(matches!(refused(layers, memory).await, OpenError::NoDeviceSize));
}

#[tokio::test]
async fn a_raw_disk_is_the_blob_and_its_last_sector_is_filled_up() {
    for (file_system, at, magic) in [
        (FileSystem::Erofs, 1024, &0xe0f5_e1e2_u32.to_le_bytes()[..]),
        (FileSystem::Ext, 1080, &[0x53, 0xef]),
        (FileSystem::Squashfs, 0, b"hsqs"),
        (FileSystem::Xfs, 0, b"XFSB"),
    ] {
        let mut disk = noise(100_001, 9);
        disk[1048..1052].fill(0);
        disk[at..at + magic.len()].copy_from_slice(magic);
        let (memory, layers) = source(vec![disk.clone().into()]);
        let maps = tempfile::tempdir().unwrap();
        let image = Image::open(layers.clone(), memory.clone(), maps.path()).await.unwrap();
        assert_eq!((image.kind(), image.size_bytes()), (Kind::Raw(file_system), 100_352));
        assert!(memory.reads() == 1 && memory.bytes_read() <= 16 << 10);
        let source: Arc<dyn BlobSource> = memory.clone();
        disk.resize(100_352, 0);
        assert!(read(&image, &source, range(0, 100_352)).await.unwrap() == disk);
        let double = refused([layers.clone(), layers].concat(), memory).await;
        assert!(matches!(double, OpenError::NotADisk { what: What::DiskAmongLayers, .. }), "{double}");
    }
}

#[tokio::test]
async fn other_images_are_refused_by_name() {
    let mut mbr = vec![0; 4096];
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    let gzip = Bytes::from_static(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
    let zstd = zstd::encode_all(&noise(9000, 1)[..], 1).unwrap();
    // A tar archive that holds something else.
    let mut tar = layer_of_disk(&noise(9000, 1), Options::default()).1.to_vec();
    tar[1536] = 0;
    for (bytes, expected) in [
        (gzip, What::Gzip),
        (zstd.into(), What::Zstd),
        (tar.into(), What::Tar),
        (mbr.into(), What::Partitioned),
        (noise(5000, 3).into(), What::Unknown),
        (Bytes::new(), What::Unknown),
    ] {
        let (memory, mut layers) = source(vec![bytes]);
        for annotated in [false, true] {
            if annotated {
                let digest = layers[0].blob.digest.to_string();
                layers[0].annotations.insert(BLOB_DIGEST.into(), digest);
            }
            match refused(layers.clone(), memory.clone()).await {
                OpenError::NotADisk { what, blob } => assert_eq!((what, blob), (expected, layers[0].blob.digest)),
                OpenError::Layer { error, .. } => assert!(matches!(*error, LayerError::Empty), "{error}"),
                error => panic!("{expected:?} gave {error}"),
            }
        }
    }
    let (memory, layers) = source(vec![]);
    assert!(matches!(refused(layers, memory).await, OpenError::NoLayers));
}

#[tokio::test]
async fn annotations_are_held_against_the_manifest() {
    let (memory, layers) = source(vec![blob(LZ4[2])]);
    let mut other = layers.clone();
    other[0].annotations.insert(BLOB_DIGEST.into(), Digest::of(b"other").to_string());
    assert!(matches!(refused(other, memory.clone()).await, OpenError::Annotation { .. }));
    let mut turbo = layers.clone();
    turbo[0].annotations.insert("containerd.io/snapshot/overlaybd/version".into(), "0.1.0-turbo.ociv1".into());
    assert!(matches!(refused(turbo, memory.clone()).await, OpenError::NotADisk { what: What::TurboOci, .. }));
    // A recording on top is no part of the disk, whatever it holds.
    let (memory, mut layers) = source(vec![blob(LZ4[0]), Bytes::from_static(b"a recording")]);
    layers[1].annotations.insert("containerd.io/snapshot/overlaybd/acceleration-layer".into(), "yes".into());
    let maps = tempfile::tempdir().unwrap();
    let image = Image::open(layers, memory, maps.path()).await.unwrap();
    assert_eq!(image.kind(), Kind::OverlayBd { layers: 1 });
}

#[tokio::test]
async fn entries_that_upstream_refuses_are_refused() {
    let entry = |start, sectors, moffset| Entry { start, sectors, moffset, zeroed: false, tag: 0 };
    for (entries, expected) in [
        (vec![entry(5, 1, 8), entry(5, 1, 8)], LsmtError::Order { nth: 1, start: 5, previous_end: 6 }),
        (vec![entry(5, 1, 9)], LsmtError::Data { nth: 0, moffset: 9, sectors: 1, data_end: 9 }),
        (vec![entry(5, 0, 8)], LsmtError::EmptyEntry { nth: 0 }),
    ] {
        let (memory, layers) = source(vec![crafted(&entries, 1 << 20)]);
        match refused(layers, memory).await {
            OpenError::Layer { error, .. } => {
                assert!(matches!(&*error, LayerError::Lsmt(e) if *e == expected), "{error}")
            }
            error => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn half_written_tables_are_swept_away() {
    let maps = tempfile::tempdir().unwrap();
    let (memory, layers) = source(vec![blob(LZ4[2])]);
    std::fs::write(maps.path().join(".building-abc"), b"half").unwrap();
    complete(layers, memory, maps.path()).await;
    let kept = std::fs::read_dir(maps.path()).unwrap().count();
    assert_eq!(sweep(maps.path()).unwrap(), 1);
    assert_eq!(std::fs::read_dir(maps.path()).unwrap().count(), kept - 1);
}

#[tokio::test]
async fn tables_that_nobody_opened_for_long_are_collected_unless_they_are_to_be_kept() {
    let maps = tempfile::tempdir().unwrap();
    let (memory, layers) = source(vec![blob(LZ4[2])]);
    complete(layers.clone(), memory.clone(), maps.path()).await;
    std::fs::write(maps.path().join("notes"), b"not a table").unwrap();
    let tables = penstock_image::tables(&layers, maps.path());
    let (past, now) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1), SystemTime::now());
    let age = || {
        for path in std::fs::read_dir(maps.path()).unwrap().map(|entry| entry.unwrap().path()) {
            std::fs::File::open(path).unwrap().set_modified(past).unwrap();
        }
    };
    age();
    complete(layers.clone(), memory.clone(), maps.path()).await;
    let before = now - Duration::from_secs(60);
    assert_eq!(collect(maps.path(), &HashSet::new(), before).unwrap(), 0, "they were opened");
    age();
    assert_eq!(collect(maps.path(), &tables.iter().cloned().collect(), before).unwrap(), 0, "they are kept");
    assert!(tables.iter().all(|path| path.exists()), "{tables:?}");
    assert!(collect(maps.path(), &HashSet::new(), before).unwrap() > 0);
    let left: Vec<_> = std::fs::read_dir(maps.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["notes"]);
    complete(layers, memory, maps.path()).await;
}

#[tokio::test]
async fn a_maps_directory_that_cannot_be_made_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let (memory, layers) = source(vec![blob(LZ4[0])]);
    let error = Image::open(layers, memory, &file.join("maps")).await.unwrap_err();
    assert!(matches!(error, OpenError::Maps(TableError::Io { .. })), "{error}");
}

#[tokio::test]
async fn a_range_beyond_the_device_is_refused() {
    let (memory, layers) = source(vec![blob(LZ4[0])]);
    let maps = tempfile::tempdir().unwrap();
    let image = Image::open(layers, memory.clone(), maps.path()).await.unwrap();
    let beyond = range((1 << 30) - 1, (1 << 30) + 1);
    assert!(matches!(image.plan(beyond, &*memory), Err(PlanError::OutOfBounds { .. })));
    let source: Arc<dyn BlobSource> = memory;
    read(&image, &source, range(0, u64::MAX)).await.unwrap_err();
    assert_eq!(image.blobs(), [Blob { digest: format!("sha256:{}", LZ4[0]).parse().unwrap(), size_bytes: 3_760_128 }]);
}

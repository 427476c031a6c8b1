//! TurboOCI layers that upstream's tools made (tests/fixtures/overlaybd), and such that they would not make.

use std::path::PathBuf;

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Located, Purpose, ReadFuture, faults::Memory};
use serde_json::Value;

use super::{Bench, piped};
use crate::{
    TarReader,
    foreign::{
        ForeignError,
        turbo::{self, Pair, Parts},
    },
};

const TARGET: &str = "containerd.io/snapshot/overlaybd/turbo-oci/target-digest";

fn blob(digest: &Value) -> Vec<u8> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/overlaybd/oci-layout/blobs/sha256");
    std::fs::read(dir.join(digest.as_str().unwrap().trim_start_matches("sha256:"))).unwrap()
}

/// The small layers of an image, and the ordinary ones that they are about.
fn kept(manifest: &str) -> Vec<[Vec<u8>; 2]> {
    let manifest: Value = serde_json::from_slice(&blob(&Value::from(manifest))).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers.map(|layer| [blob(&layer["digest"]), blob(&layer["annotations"][TARGET])]).collect()
}

const EXT4: &str = "68bc53edf5b8927774d96fe15b964a088d2fa47835aeb432a9a5f4d0c1ebe9f6";
const EROFS: &str = "1d403ad8ee1650b0f45ea7a033716bd051069e5a8b8176bf00a1daabd44f002a";

/// The parts of an archive.
fn parts(archive: &[u8]) -> Result<Parts, ForeignError> {
    let mut entries = Vec::new();
    TarReader::new().push(archive, |entry| entries.push(Ok(entry))).unwrap();
    Parts::of(entries)
}

/// The bytes of the small layer's `gzip.meta`.
fn gzip_meta(metadata: &[u8]) -> Vec<u8> {
    let archive = piped("gzip", &["-dc"], metadata).unwrap();
    let index = parts(&archive).unwrap().gzip_index.unwrap();
    archive[usize::try_from(index.start()).unwrap()..usize::try_from(index.end()).unwrap()].to_vec()
}

/// A layer translated by such an index.
async fn translated(target: Vec<u8>, index: Vec<u8>) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::new(vec![Bytes::from(target), Bytes::from(index)]);
    let [target, index] = [0, 1].map(|nth| memory.blob(nth));
    let pair = Pair { metadata: index.digest, target: target.digest };
    let path = dir.path().join("index");
    let result = match index.all() {
        Some(all) => turbo::translate(&*memory, (index, all), pair, &path).await,
        None => Err(turbo::broken("it is empty")),
    };
    Bench { dir, memory, result }
}

/// An index with another header: these bytes at this place, and a right checksum.
fn changed(index: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut index = index.to_vec();
    index[at..at + bytes.len()].copy_from_slice(bytes);
    let check = !crc32c::crc32c_append(u32::MAX, &index[..329]);
    index[329..333].copy_from_slice(&check.to_le_bytes());
    index
}

#[tokio::test]
async fn layers_read_by_their_gzip_indexes_are_their_archives() {
    for [metadata, target] in kept(EXT4).into_iter().chain(kept(EROFS)) {
        let archive = piped("gzip", &["-dc"], &target).unwrap();
        let bench = translated(target, gzip_meta(&metadata)).await;
        let layer = bench.result.as_ref().unwrap().layer;
        assert_eq!((layer.packed, layer.unpacked.size_bytes), (bench.memory.blob(0), archive.len() as u64));
        assert_eq!(layer.unpacked.digest, turbo::archive(&layer.packed.digest, &bench.memory.blob(1).digest));
        assert!(layer.unpacked.digest.is_derived() && bench.index().entries().unwrap().next().is_none());
        for step in [100_000, 3 << 20] {
            assert!(bench.payload(step).await.unwrap() == archive);
        }
    }
}

#[test]
fn the_metadata_is_found_by_its_name_and_the_one_that_upstream_prefers_goes_first() {
    for (manifest, name) in [(EXT4, "ext4"), (EROFS, "erofs")] {
        let archive = piped("gzip", &["-dc"], &kept(manifest)[0][0]).unwrap();
        let parts = parts(&archive).unwrap();
        assert_eq!(parts.metadata.start(), 512, "{name}");
        assert!(parts.gzip_index.is_some(), "{name}");
    }
    let archive = crate::testing::archive(&[vec![1; 100]]);
    let renamed = |names: &[&str]| {
        let files: Vec<Vec<u8>> = names.iter().map(|_| vec![1; 100]).collect();
        let mut archive = crate::testing::archive(&files);
        for (nth, name) in names.iter().enumerate() {
            let header = &mut archive[nth * 1024..nth * 1024 + 512];
            header[..100].fill(0);
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        archive
    };
    let both = parts(&renamed(&["ext4.fs.meta", "gzip.meta", "erofs.fs.meta"])).unwrap();
    assert_eq!((both.metadata.start(), both.gzip_index.unwrap().start()), (2048 + 512, 1024 + 512));
    assert_eq!(parts(&renamed(&["./ext4.fs.meta"])).unwrap().gzip_index, None);
    for archive in [archive, renamed(&["fs.meta"]), renamed(&["deep/ext4.fs.meta"]), renamed(&["gzip.meta"])] {
        assert!(matches!(parts(&archive), Err(ForeignError::Turbo { .. })));
    }
}

#[tokio::test]
async fn a_gzip_index_that_contradicts_itself_is_refused() {
    let [metadata, target] = kept(EROFS).swap_remove(0);
    let index = gzip_meta(&metadata);
    assert!(translated(target.clone(), changed(&index, 0, b"d")).await.result.is_ok(), "the checksum is right");
    let number = |number: i64| number.to_le_bytes();
    let bad = [
        ("magic", changed(&index, 0, b"e")),
        ("version", changed(&index, 8, &[2])),
        ("compression", changed(&index, 10, &[2])),
        ("entry size", changed(&index, 21, &28_i32.to_le_bytes())),
        ("fewer checkpoints", changed(&index, 25, &number(4))),
        ("no checkpoints", changed(&index, 25, &number(0))),
        ("more checkpoints", changed(&index, 25, &number(6))),
        ("too many checkpoints", changed(&index, 25, &number(1 << 40))),
        ("a negative number", changed(&index, 25, &number(-1))),
        ("a shorter layer", changed(&index, 33, &number(2_000_000))),
        ("its own size", changed(&index, 41, &number(5))),
        ("a shorter archive", changed(&index, 49, &number(3_774_229))),
        ("an endless archive", changed(&index, 49, &number(i64::MAX))),
        ("a far end", changed(&index, 49, &number(100 << 20))),
        ("the table's place", changed(&index, 313, &number(102_910))),
        ("the table beyond the end", changed(&index, 313, &number(1 << 40))),
        ("the table's size", changed(&index, 321, &number(86))),
        ("a window", changed(&index, 21_000, &[0; 40])),
        ("a wrong checksum", index.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 60)).collect()),
        ("half of it", index[..index.len() / 2].to_vec()),
        ("a few bytes", index[..100].to_vec()),
    ];
    for (what, bad) in bad {
        assert!(translated(target.clone(), bad).await.result.is_err(), "{what}");
    }
}

/// Remembers the longest read.
#[derive(Debug)]
struct Longest(std::sync::Arc<Memory>, std::sync::atomic::AtomicU64);

impl BlobSource for Longest {
    fn locate(&self, _: &Blob, _: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        self.1.fetch_max(range.len(), std::sync::atomic::Ordering::Relaxed);
        self.0.read(blob, range, purpose)
    }

    fn reject(&self, _: &Blob, _: ByteRange) {}
}

#[tokio::test]
async fn a_large_gzip_index_is_read_in_pieces_each_window_once() {
    const POINTS: u64 = 200;
    const WINDOW: u64 = 32 << 10;
    let windows: Vec<u8> = (0..POINTS).flat_map(|nth| (nth + 1).to_le_bytes().repeat(4096)).collect();
    let table_at = 333 + windows.len();
    let mut index = b"ddgzidx\0\x01\0\0\x06\0".to_vec();
    [1 << 20, 1 << 15, 29].iter().for_each(|number: &i32| index.extend_from_slice(&number.to_le_bytes()));
    let own_bytes = table_at as u64 + 29 * POINTS;
    for number in [POINTS, POINTS << 20, own_bytes, POINTS << 20] {
        index.extend_from_slice(&number.to_le_bytes());
    }
    index.resize(313, 0);
    [table_at as u64, 29 * POINTS].iter().for_each(|number| index.extend_from_slice(&number.to_le_bytes()));
    index.resize(333, 0);
    index.extend_from_slice(&windows);
    for nth in 0..POINTS {
        for number in [nth << 20, (nth << 20) + 1, 333 + nth * WINDOW] {
            index.extend_from_slice(&number.to_le_bytes());
        }
        index.push(0);
        index.extend_from_slice(&u32::try_from(WINDOW).unwrap().to_le_bytes());
    }
    let memory = Memory::new(vec![Bytes::from(changed(&index, 0, b"d"))]);
    let (index, longest) = (memory.blob(0), Longest(memory.clone(), 0.into()));
    let (dir, pair) = (tempfile::tempdir().unwrap(), Pair { metadata: index.digest, target: Digest::of(b"the layer") });
    let built = turbo::translate(&longest, (index, index.all().unwrap()), pair, &dir.path().join("index")).await;
    assert_eq!(built.unwrap().layer.frames, POINTS);
    assert!(longest.1.into_inner() <= 1 << 20, "no more is held at once, however many windows there are");
    // Nothing comes before the first checkpoint.
    assert_eq!(memory.bytes_read(), index.size_bytes - WINDOW);
}

#[tokio::test]
async fn reads_by_a_wrong_checkpoint_fail_or_give_as_many_bytes_as_are_said() {
    // Nothing tells wrong bytes from right ones but the stream itself: of such a layer no more can be said.
    let [metadata, target] = kept(EROFS).swap_remove(0);
    let mut index = gzip_meta(&metadata);
    let table = turbo::unzlib(&index[102_911..], 5 * 29).unwrap();
    let mut wrong = table.clone();
    wrong[29 + 8] ^= 1;
    let stored = zlib(&wrong);
    index.truncate(102_911);
    index.extend_from_slice(&stored);
    let index = changed(&index, 41, &(i64::try_from(index.len()).unwrap()).to_le_bytes());
    let index = changed(&index, 321, &(i64::try_from(stored.len()).unwrap()).to_le_bytes());
    let bench = translated(target, index).await;
    assert!(bench.result.is_ok(), "{:?}", bench.result);
    assert!(bench.payload(1 << 20).await.is_err(), "its second frame begins at another byte");
}

/// In zlib's format, in one stored block.
fn zlib(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap();
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    let sum = (b << 16 | a).to_be_bytes();
    [&[0x78, 0x01, 1][..], &len.to_le_bytes(), &(!len).to_le_bytes(), bytes, &sum].concat()
}

//! What the tests of this crate share.

use std::{
    collections::BTreeMap,
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, ByteRange, faults::Memory};
use penstock_image::{
    Image, Layer, Scratch, Step,
    lsmt::{self, Entry},
    write::{LayerWriter, Options, Written, disk},
};

pub(crate) fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

/// Layers of these blobs without annotations, bottom first.
pub(crate) fn layers(blobs: &[Blob]) -> Vec<Layer> {
    let layer = |&blob| Layer { blob, media_type: String::new(), annotations: BTreeMap::new() };
    blobs.iter().map(layer).collect()
}

/// A source of these blobs, and their layers.
pub(crate) fn source(blobs: Vec<Bytes>) -> (Arc<Memory>, Vec<Layer>) {
    let count = blobs.len();
    let memory = Memory::new(blobs);
    let blobs: Vec<Blob> = (0..count).map(|i| memory.blob(i)).collect();
    (memory, layers(&blobs))
}

/// Opens an image and waits until its tables are whole and kept.
pub(crate) async fn complete(layers: Vec<Layer>, source: Arc<dyn BlobSource>, maps: &Path) -> Image {
    let image = Image::open(layers, source, maps).await.unwrap();
    image.completed().await.unwrap();
    image
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/overlaybd")
}

/// A blob of the real OCI layout.
pub(crate) fn blob(hex: &str) -> Bytes {
    std::fs::read(fixtures().join("oci-layout/blobs/sha256").join(hex)).unwrap().into()
}

pub(crate) const LZ4: [&str; 3] = [
    "abecdcaa15bc70a91df10f27fa642aafc2c33195b929bd501b7a66b70ce8d97d",
    "f8e0f760d394cd60c3d943900ef68bd7d15e68cd3ad0715548797f895344fab0",
    "450d141124b42f870f39235ff2b9a76b29191d92f0da6a04d2ae0280ea8e38f3",
];
pub(crate) const ZSTD16: [&str; 3] = [
    "509faac7d5d9f6e1bf8925bfb1d16bacddcb193e10e0ef1ff7b2efdf2782502f",
    "3c4895df7eb6911418dbca54f05c1f1b214616d896a8850f363d1b2dadcbd042",
    "a99798314c1d1114298b433922b85b2a5e2035b03e3a1fbab5482a14a9435da0",
];

/// A layer of these extents; `None` for data means zeroed.
pub(crate) fn layer(options: Options, extents: &[(u64, u64, Option<&[u8]>)]) -> (Written, Bytes) {
    let mut out = Cursor::new(Vec::new());
    let mut writer = LayerWriter::new(&mut out, options).unwrap();
    for &(start, sectors, data) in extents {
        match data {
            Some(data) => writer.data(start, data).unwrap(),
            None => writer.zeroed(start, sectors).unwrap(),
        }
    }
    let written = writer.finish().unwrap();
    (written, out.into_inner().into())
}

/// A bare layer file with an index of one's own making: one sector of data, the entries, and so many bytes of device.
pub(crate) fn crafted(entries: &[Entry], device_bytes: u64) -> Bytes {
    let block = |flags: u32, offset: u64, count: u64| {
        let mut block = lsmt::MAGIC.to_vec();
        block.extend_from_slice(&390_u32.to_le_bytes());
        block.extend_from_slice(&flags.to_le_bytes());
        for number in [offset, count, device_bytes] {
            block.extend_from_slice(&number.to_le_bytes());
        }
        block.resize(4096, 0);
        block
    };
    let mut file = block(7, 0, 0);
    file.extend_from_slice(&noise(512, 1));
    entries.iter().for_each(|entry| file.extend_from_slice(&entry.to_bytes()));
    file.extend_from_slice(&block(6, 4608, entries.len() as u64));
    file.into()
}

/// A disk as a layer.
pub(crate) fn layer_of_disk(bytes: &[u8], options: Options) -> (Written, Bytes) {
    let mut out = Cursor::new(Vec::new());
    let written = disk(bytes, &mut out, options).unwrap();
    (written, out.into_inner().into())
}

/// sha256 of the whole device, from a source that has everything.
pub(crate) fn device_sha256(image: &Image, source: &dyn BlobSource) -> String {
    let zeros = vec![0; PIECE];
    let mut buf = vec![0; PIECE];
    let mut scratch = Scratch::new();
    let mut hasher = penstock_blob::Hasher::new();
    let mut at = 0;
    while at < image.size_bytes() {
        let piece = range(at, image.size_bytes().min(at + PIECE as u64));
        let plan = image.plan(piece, source).unwrap();
        let len = usize::try_from(piece.len()).unwrap();
        if let [only] = &plan.steps[..]
            && matches!(only.step, Step::Zero)
        {
            hasher.update(&zeros[..len]);
        } else {
            plan.read_into(&mut buf[..len], &mut scratch).unwrap();
            hasher.update(&buf[..len]);
        }
        at = piece.end();
    }
    hasher.finish().to_hex()
}

const PIECE: usize = 4 << 20;

/// Bytes that look like nothing, the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(len);
    bytes
}

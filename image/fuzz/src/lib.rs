//! What the fuzz targets of `penstock-image` share.

use std::{
    io::Cursor,
    path::Path,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use penstock_blob::{BlobSource, ByteRange, faults::Memory};
use penstock_image::{
    Image, Layer,
    paths::{self, Local, MAX_READ_BYTES},
    write::{LayerWriter, Options},
    zfile::{Codec, Format, digest},
};

/// Opens the blob as an image, reads the start and the middle of its device while its tables are made, and waits for those. What comes out does not
/// matter.
pub fn exercise(bytes: Bytes, maps: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let memory = Memory::new(vec![bytes]);
        let layer = Layer { blob: memory.blob(0), media_type: String::new(), annotations: Default::default() };
        let Ok(image) = Image::open(vec![layer], memory.clone(), maps).await else { return };
        let source: Arc<dyn BlobSource> = memory;
        let middle = image.size_bytes() / 2;
        for range in [ByteRange::new(0, image.size_bytes().min(1 << 20)), ByteRange::new(middle, middle + 1)] {
            let Ok(range) = range else { continue };
            let _ = penstock_image::read(&image, &source, range).await;
        }
        let _ = image.completed().await;
    });
}

/// A small layer of this form: data, a hole, and zeros.
pub fn seed(codec: Option<Codec>, crc: bool) -> Vec<u8> {
    let frames = codec.map(|codec| Format { codec, crc, block_bytes: 4096 });
    let options =
        Options { frames, tar: frames.is_some(), device_bytes: Some(1 << 20), threads: 1, ..Options::default() };
    let mut out = Cursor::new(Vec::new());
    let mut writer = LayerWriter::new(&mut out, options).expect("the options are right");
    let data: Vec<u8> = (0..16_384_u32).map(|i| (i * i >> 7).to_le_bytes()[0]).collect();
    writer.data(3, &data).and_then(|()| writer.zeroed(1000, 20)).expect("the extents are in order");
    writer.finish().expect("memory can be written");
    out.into_inner()
}

/// A qcow2 file of clusters of 512 bytes: header, L1 table, L2 table, and of clusters one that is stored, a zero one, a hole, and one that claims to be
/// compressed.
pub fn qcow2(zstd: bool) -> Vec<u8> {
    let mut file = vec![7; 5 * 512];
    file[..3 * 512].fill(0);
    file[..4].copy_from_slice(b"QFI\xfb");
    for (at, value) in [(4, 3_u32), (20, 9), (36, 64), (76, u32::from(zstd) << 3), (100, 112)] {
        file[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    file[104] = u8::from(zstd);
    for (at, value) in [(24, 64 * 512), (40, 512), (512, 1024), (1024, 1536), (1032, 1), (1048, 1 << 62 | 2048)] {
        file[at..at + 8].copy_from_slice(&u64::to_be_bytes(value));
    }
    // Deflate without compressing: one stored block.
    file[2048..2053].copy_from_slice(&[1, 0, 2, 0xff, 0xfd]);
    file
}

/// A layer whose jump table is longer than what opening reads of it: the rest is added up in the background. Made once.
pub fn large() -> &'static [u8] {
    static LARGE: OnceLock<Vec<u8>> = OnceLock::new();
    LARGE.get_or_init(|| {
        let device_bytes = 20_000 * 4096;
        let options = Options { device_bytes: Some(device_bytes), threads: 1, ..Options::default() };
        let mut out = Cursor::new(Vec::new());
        let mut writer = LayerWriter::new(&mut out, options).expect("the options are right");
        let data = vec![7; 4096 * 100];
        let write = |nth: u64| writer.data(nth * 800, &data);
        (0..200).try_for_each(write).expect("the extents are in order");
        writer.finish().expect("memory can be written");
        out.into_inner()
    })
}

/// Makes ZFile headers at the usual places believable again, so that what lies behind them is reached.
pub fn reseal(bytes: &mut [u8]) {
    for at in [0, 1536, bytes.len().saturating_sub(512)] {
        if let Some(header) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<512>()) {
            let sum = digest(header);
            header[28..32].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// The EROFS of the golden layer: its metadata.
pub fn erofs() -> Vec<u8> {
    include_bytes!("../../tests/golden/layer.erofs").to_vec()
}

/// An ext4 of blocks of 1 KiB, as far as its files are looked for: `/` (inode 2), `/bin/` (11), `/bin/sh` (12) with a tree of extents of two levels.
pub fn ext4() -> Vec<u8> {
    let mut disk = vec![0; 20 << 10];
    let mut put = |at: usize, numbers: &[u16]| {
        for (nth, number) in numbers.iter().enumerate() {
            disk[at + 2 * nth..at + 2 * nth + 2].copy_from_slice(&number.to_le_bytes());
        }
    };
    // Superblock: inodes, first block, inodes per group, magic, bytes of an inode, features (file types, extents). Descriptor: the table's block.
    for (at, number) in [(0, 16), (20, 1), (40, 16), (56, 0xef53), (88, 128), (96, 0x42)] {
        put(1024 + at, &[number]);
    }
    put(2048 + 8, &[3]);
    // Magic, entries, room, depth; then of a leaf's entry where it begins in the file (4 bytes), blocks, where it lies (6 bytes).
    let leaf = |block: u16, blocks: u16| [0xf30a, 1, 4, 0, 0, 0, 0, 0, blocks, 0, block, 0];
    let node = |block: u16| [0xf30a, 1, 4, 1, 0, 0, 0, 0, block, 0, 0, 0];
    for (number, mode, tree) in [(2, 0o040_755, leaf(6, 1)), (11, 0o040_755, leaf(7, 1)), (12, 0o100_755, node(8))] {
        let at = 3072 + 128 * (number - 1);
        put(at, &[mode]);
        put(at + 4, &[1024]);
        put(at + 34, &[8]);
        put(at + 40, &tree);
    }
    put(8 << 10, &leaf(10, 4));
    // Of a name: inode (4 bytes), bytes of the record, of the name; the name.
    put(6 << 10, &[11, 0, 1024, 3, u16::from_le_bytes(*b"bi"), u16::from_le_bytes(*b"n\0")]);
    put(7 << 10, &[12, 0, 1024, 2, u16::from_le_bytes(*b"sh")]);
    disk
}

/// Looks for files in a file system. However it is damaged, that ends, and reads no more than it may.
pub fn look(disk: &[u8]) {
    struct Here<'a>(&'a [u8], u64);
    impl Local for Here<'_> {
        fn read(&mut self, at: u64, buf: &mut [u8]) -> bool {
            self.1 += buf.len() as u64;
            let bytes = usize::try_from(at).ok().and_then(|at| self.0.get(at..at + buf.len()));
            bytes.map(|bytes| buf.copy_from_slice(bytes)).is_some()
        }
    }
    let ranges: Vec<ByteRange> = (0..10).filter_map(|nth| ByteRange::at(nth * 2048, 3000).ok()).collect();
    let mut here = Here(disk, 0);
    if let Ok(found) = paths::find(&mut here, disk.len() as u64, &ranges) {
        assert_eq!(found.contents.len(), ranges.len());
    }
    assert!(here.1 <= MAX_READ_BYTES + 2048);
}

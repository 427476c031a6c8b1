//! A million extents and two million frames.

use std::{
    fs::File,
    io::{Seek as _, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use penstock_blob::{Blob, ByteRange, Digest};
use penstock_image::{Image, Layer, Scratch, lsmt, zfile};

use crate::{OnDisk, alone, status_kib};

/// Frames of data before the index: 8 GiB of zeros.
const DATA_FRAMES: u64 = 2 << 20;
const EXTENTS: u64 = 1_000_000;
/// Bound on what opening adds at its peak, and on what an open image that is read holds. Upstream needs about 20 MB for
/// the extents and 13 MB for the jump table of such an image at its peak.
const PEAK_KIB: u64 = 12 << 10;
const HELD_KIB: u64 = 4 << 10;

/// Writes a ZFile frame by frame.
struct Frames {
    file: std::io::BufWriter<File>,
    table: Vec<u8>,
    offset: u64,
}

impl Frames {
    fn push(&mut self, data: &[u8; 4096], times: u64) {
        let frame = lz4_flex::block::compress(data);
        let len = u32::try_from(frame.len()).unwrap();
        for _ in 0..times {
            self.file.write_all(&frame).unwrap();
            self.table.extend_from_slice(&len.to_le_bytes());
            self.offset += u64::from(len);
        }
    }
}

fn header(flags: u64, index_offset: u64, frames: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..24].copy_from_slice(&zfile::MAGIC);
    for (at, number) in [(32, flags), (40, index_offset), (48, frames), (56, frames * 4096)] {
        block[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    block[72..76].copy_from_slice(&4096_u32.to_le_bytes());
    block[76] = 1;
    block
}

fn lsmt_block(flags: u32, index_offset: u64, entries: u64) -> [u8; 4096] {
    let mut block = [0; 4096];
    block[..24].copy_from_slice(&lsmt::MAGIC);
    block[28..32].copy_from_slice(&flags.to_le_bytes());
    for (at, number) in [(32, index_offset), (40, entries), (48, 1 << 40)] {
        block[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    block
}

fn write_blob(path: &Path) -> Blob {
    let mut frames =
        Frames { file: std::io::BufWriter::new(File::create(path).unwrap()), table: Vec::new(), offset: 512 };
    frames.file.write_all(&[0; 512]).unwrap();
    frames.push(&lsmt_block(7, 0, 0), 1);
    frames.push(&[0; 4096], DATA_FRAMES);
    let entry =
        |i: u64| lsmt::Entry { start: 17 * i, sectors: 9, moffset: 8 + 16 * i, zeroed: false, tag: 0 }.to_bytes();
    for page in 0..EXTENTS.div_ceil(256) {
        let mut bytes: Vec<u8> = (256 * page..EXTENTS.min(256 * page + 256)).flat_map(entry).collect();
        bytes.resize(4096, 0);
        frames.push(bytes[..].try_into().unwrap(), 1);
    }
    frames.push(&lsmt_block(6, 4096 * (1 + DATA_FRAMES), EXTENTS), 1);
    let count = frames.table.len() as u64 / 4;
    frames.file.write_all(&frames.table).unwrap();
    frames.file.write_all(&header(6, frames.offset, count)).unwrap();
    let mut file = frames.file.into_inner().unwrap();
    let size_bytes = file.stream_position().unwrap();
    file.write_all_at(&header(0xb, frames.offset, count), 0).unwrap();
    Blob { digest: Digest::of(b"the name does not matter here"), size_bytes }
}

#[test]
fn a_million_extents_and_two_million_frames_cost_a_few_megabytes() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let blob = write_blob(&dir.path().join("blob"));
    let source = Arc::new(OnDisk(File::open(dir.path().join("blob")).unwrap()));
    let layers = vec![Layer { blob, media_type: String::new(), annotations: Default::default() }];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // What writing the blob used is given back or at least counted before; from here on the peak is counted anew.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status_kib("VmHWM");
    let opened = async {
        let image = Image::open(layers, source.clone(), &dir.path().join("maps")).await.unwrap();
        image.completed().await.unwrap();
        image
    };
    let image = runtime.block_on(opened);
    let peak = status_kib("VmHWM").saturating_sub(before);
    assert_eq!(image.extents(), Some(EXTENTS));
    assert!(peak < PEAK_KIB, "opening added {peak} KiB at its peak");

    let mut scratch = Scratch::new();
    let mut buf = vec![0; 128 << 10];
    let resident = status_kib("VmRSS");
    for i in 0..4000_u64 {
        let at = i * 7919 % 16_000 * 512 * 1000;
        let range = ByteRange::at(at, buf.len() as u64).unwrap();
        let plan = image.plan(range, &*source).unwrap();
        assert!(plan.is_local());
        plan.read_into(&mut buf, &mut scratch).unwrap();
    }
    let held = status_kib("VmRSS").saturating_sub(resident);
    assert!(held < HELD_KIB, "reading added {held} KiB");
    let maps: u64 =
        std::fs::read_dir(dir.path().join("maps")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(maps > 20 << 20, "the maps are files of {maps} bytes");
}

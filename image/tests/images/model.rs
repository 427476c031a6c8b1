//! An image is an array of bytes: random stacks of random layers against that model.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use bytes::Bytes;
use penstock_blob::{BlobSource, Digest, faults::Memory};
use penstock_image::{
    Image, Scratch, read,
    write::{Options, Written},
    zfile::{Codec, Format, digest},
};
use proptest::prelude::*;

use crate::common::{layer, layer_of_disk, layers, noise, range, source};

const DEVICE: usize = 400 * 512;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[derive(Debug, Clone)]
struct Shape {
    frames: Option<Format>,
    tar: bool,
    threads: usize,
    /// Gap, length, and a seed for data; `None` reads as zeros.
    extents: Vec<(u64, u64, Option<u64>)>,
}

fn format() -> impl Strategy<Value = Option<Format>> {
    let codec = prop_oneof![Just(Codec::Lz4), Just(Codec::Zstd)];
    proptest::option::weighted(0.85, (codec, 12..=16_u32, any::<bool>()))
        .prop_map(|some| some.map(|(codec, power, crc)| Format { codec, crc, block_bytes: 1 << power }))
}

fn shape() -> impl Strategy<Value = Shape> {
    let extents =
        proptest::collection::vec((0..40_u64, 1..60_u64, proptest::option::weighted(0.8, any::<u64>())), 0..10);
    (format(), any::<bool>(), 1..4_usize, extents).prop_map(|(frames, tar, threads, mut extents)| {
        let mut end = 0;
        extents.retain(|(gap, len, _)| {
            end += gap + len;
            end * 512 <= DEVICE as u64
        });
        Shape { frames, tar: tar && frames.is_some(), threads, extents }
    })
}

/// Half the seeds give bytes that compress, half do not.
fn data(sectors: u64, seed: u64) -> Vec<u8> {
    let len = usize::try_from(sectors * 512).unwrap();
    if seed.is_multiple_of(2) { noise(len, seed) } else { vec![seed.to_le_bytes()[1] | 1; len] }
}

/// Writes the layer, and what it does to the model.
fn write_layer(shape: &Shape, nth: usize, model: &mut [u8]) -> Bytes {
    let options = Options {
        frames: shape.frames,
        tar: shape.tar,
        threads: shape.threads,
        device_bytes: (nth == 0).then_some(DEVICE as u64),
        ..Options::default()
    };
    let mut at = 0;
    let mut parts = Vec::new();
    for &(gap, sectors, seed) in &shape.extents {
        let start = at + gap;
        at = start + sectors;
        let bytes = seed.map(|seed| data(sectors, seed));
        let place = &mut model[usize::try_from(start * 512).unwrap()..usize::try_from(at * 512).unwrap()];
        place.copy_from_slice(bytes.as_deref().unwrap_or(&vec![0; place.len()]));
        parts.push((start, sectors, bytes));
    }
    let extents: Vec<_> = parts.iter().map(|(start, sectors, bytes)| (*start, *sectors, bytes.as_deref())).collect();
    layer(options, &extents).1
}

/// Both ways to read: planned and executed at once, and through fetches.
fn assert_reads(image: &Image, memory: &Arc<Memory>, model: &[u8], (start, len): (usize, usize)) {
    let wanted = range(start as u64, (start + len) as u64);
    let expected = &model[start..start + len];
    memory.resident(true);
    let plan = image.plan(wanted, &**memory).unwrap();
    assert!(plan.is_local());
    let mut at = 0;
    for step in &plan.steps {
        assert_eq!(step.at.start(), at, "steps follow each other");
        at = step.at.end();
    }
    assert_eq!(at, wanted.len());
    let mut buf = vec![0xaa; len];
    plan.read_into(&mut buf, &mut Scratch::new()).unwrap();
    assert!(buf == expected, "planned read of {wanted}");
    memory.resident(false);
    let source: Arc<dyn BlobSource> = memory.clone();
    let fetched = block_on(read(image, &source, wanted)).unwrap();
    assert!(fetched == expected, "fetched read of {wanted}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn a_stack_reads_as_the_array_that_was_written(
        shapes in proptest::collection::vec(shape(), 1..5),
        reads in proptest::collection::vec((0..DEVICE - 1, 1..DEVICE), 1..12),
    ) {
        let mut model = vec![0; DEVICE];
        let blobs = shapes.iter().enumerate().map(|(nth, shape)| write_layer(shape, nth, &mut model)).collect();
        let (memory, layers) = source(blobs);
        let maps = tempfile::tempdir().unwrap();
        let image = block_on(Image::open(layers, memory.clone(), maps.path())).unwrap();
        prop_assert_eq!(image.size_bytes(), DEVICE as u64);
        assert_reads(&image, &memory, &model, (0, DEVICE));
        for (start, len) in reads {
            assert_reads(&image, &memory, &model, (start, len.min(DEVICE - start)));
        }
    }

    #[test]
    fn a_disk_reads_back_as_it_was(
        frames in format(),
        parts in proptest::collection::vec((1..9000_usize, proptest::option::of(any::<u64>())), 1..12),
    ) {
        let mut disk = Vec::new();
        for (len, seed) in parts {
            disk.extend(seed.map_or_else(|| vec![0; len], |seed| noise(len, seed)));
        }
        let options = Options { frames, tar: frames.is_some(), threads: 2, ..Options::default() };
        let (written, blob) = layer_of_disk(&disk, options);
        disk.resize(disk.len().next_multiple_of(512), 0);
        let (memory, mut layers) = source(vec![blob]);
        layers[0].annotations = written.annotations;
        let maps = tempfile::tempdir().unwrap();
        let image = block_on(Image::open(layers, memory.clone(), maps.path())).unwrap();
        prop_assert_eq!(image.size_bytes(), disk.len() as u64);
        assert_reads(&image, &memory, &disk, (0, disk.len()));
    }
}

#[test]
fn a_difference_over_the_lower_disk_is_the_upper_one_within_its_ranges() {
    let lower = [noise(40_960, 1), vec![0; 40_960], noise(40_960, 2)].concat();
    let mut upper = lower.clone();
    upper[5000..20_000].fill(0);
    upper[45_000..46_000].copy_from_slice(&noise(1000, 3));
    // Outside the ranges: as below.
    upper[90_112..90_120].fill(9);
    upper.extend(noise(8192, 4));
    let ranges = [range(0, 81_920), range(lower.len() as u64, upper.len() as u64)];
    let mut out = std::io::Cursor::new(Vec::new());
    let written =
        penstock_image::write::delta((&lower[..], &upper[..]), &ranges, &mut out, Options::default()).unwrap();
    assert_eq!((written.device_bytes, written.data_bytes), (upper.len() as u64, 4 * 4096 + 8192));
    let (memory, layers) = source(vec![layer_of_disk(&lower, Options::default()).1, out.into_inner().into()]);
    let maps = tempfile::tempdir().unwrap();
    let image = block_on(Image::open(layers, memory.clone(), maps.path())).unwrap();
    upper[90_112..90_120].copy_from_slice(&lower[90_112..90_120]);
    assert_reads(&image, &memory, &upper, (0, upper.len()));
}

/// Leaves the index fields to the trailer, as `overlaybd-zfile` writes its header.
fn make_trailer_truth(blob: &mut [u8], zfile_at: usize) {
    let header: &mut [u8; 512] = (&mut blob[zfile_at..zfile_at + 512]).try_into().unwrap();
    header[32..40].copy_from_slice(&0x13_u64.to_le_bytes());
    header[40..68].fill(0);
    let sum = digest(header);
    header[28..32].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn every_frame_format_reads_back_with_either_header_as_truth() {
    // One frame of each: noise (stored larger than it is), repetition, and a short last one.
    let mut disk = noise(150_000, 3);
    disk.extend(vec![7; 150_000]);
    disk.extend(noise(700, 4));
    let mut model = disk.clone();
    model.resize(disk.len().next_multiple_of(512), 0);
    for codec in [Codec::Lz4, Codec::Zstd] {
        for block_bytes in [4, 8, 16, 32, 64].map(|kib| kib << 10) {
            for crc in [true, false] {
                let frames = Some(Format { codec, crc, block_bytes });
                let (Written { blob, .. }, bytes) = layer_of_disk(&disk, Options { frames, ..Options::default() });
                let mut trailer_truth = bytes.to_vec();
                make_trailer_truth(&mut trailer_truth, 1536);
                for bytes in [bytes, trailer_truth.into()] {
                    let (memory, stack) = source(vec![bytes]);
                    let maps = tempfile::tempdir().unwrap();
                    let image = block_on(Image::open(stack, memory.clone(), maps.path())).unwrap();
                    assert_reads(&image, &memory, &model, (0, model.len()));
                    assert_reads(&image, &memory, &model, (model.len() - 900, 900));
                }
                assert_eq!(layers(&[blob]).len(), 1);
            }
        }
    }
}

/// Whether a command says that it works.
fn works(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// The sha256 of the device of these layers, as a reader says that shares no code with ours.
fn said(reader: &mut Command, layers: &[PathBuf]) -> String {
    let output = reader.args(layers).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap_or_default().to_owned()
}

/// Noise, a hole and repetition: of each so many bytes.
fn mixed(len: usize) -> Vec<u8> {
    [noise(len, 3), vec![0; 2 * len], vec![7; len / 2 + 100]].concat()
}

/// Each combination of a codec and a size of frames that upstream's reader takes.
const WRITTEN: [(Codec, u32); 4] =
    [(Codec::Lz4, 4096), (Codec::Zstd, 4096), (Codec::Lz4, 32 << 10), (Codec::Zstd, 16 << 10)];

/// Writes a disk in each of [`WRITTEN`]; what the reader says of it is the digest of the disk.
fn check_reader(disk: &[u8], reader: impl Fn() -> Command) {
    let dir = tempfile::tempdir().unwrap();
    let mut model = disk.to_vec();
    model.resize(disk.len().next_multiple_of(512), 0);
    for (codec, block_bytes) in WRITTEN {
        let frames = Some(Format { codec, crc: true, block_bytes });
        let path = dir.path().join("layer");
        std::fs::write(&path, layer_of_disk(disk, Options { frames, ..Options::default() }).1).unwrap();
        assert_eq!(said(&mut reader(), &[path]), Digest::of(&model).to_hex(), "{codec:?} {block_bytes}");
    }
}

#[test]
fn written_layers_and_stacks_are_the_device_that_an_independent_reader_reads() {
    if !works(Command::new("python3").arg("-V")) || !works(Command::new("zstd").arg("-V")) {
        println!("skipped: {}: no python3 or no zstd", std::thread::current().name().unwrap_or("?"));
        return;
    }
    let reader = || {
        let mut reader = Command::new("python3");
        reader.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/obd_reader.py"));
        reader
    };
    check_reader(&mixed(150_000), reader);
    let frames = |codec| Some(Format { codec, crc: true, block_bytes: 4096 });
    let shapes = [
        Shape { frames: frames(Codec::Lz4), tar: true, threads: 2, extents: vec![(0, 50, Some(2)), (9, 300, Some(3))] },
        Shape { frames: None, tar: false, threads: 1, extents: vec![(7, 20, None), (30, 59, Some(4))] },
        Shape { frames: frames(Codec::Zstd), tar: true, threads: 1, extents: vec![(1, 9, Some(5)), (0, 100, None)] },
    ];
    let (dir, mut model) = (tempfile::tempdir().unwrap(), vec![0; DEVICE]);
    let layers: Vec<PathBuf> = (0..shapes.len()).map(|nth| dir.path().join(nth.to_string())).collect();
    for (nth, (shape, path)) in shapes.iter().zip(&layers).enumerate() {
        std::fs::write(path, write_layer(shape, nth, &mut model)).unwrap();
        assert_eq!(said(&mut reader(), &layers[..=nth]), Digest::of(&model).to_hex(), "{} layers", nth + 1);
    }
    // It is no reader that takes everything.
    let mut damaged = std::fs::read(&layers[0]).unwrap();
    damaged[1536 + 512 + 700] ^= 1;
    std::fs::write(&layers[0], damaged).unwrap();
    assert!(!works(reader().args(&layers)), "a flipped bit is seen");
}

/// The same by a program beside the project, where there is one.
#[test]
fn written_layers_are_the_device_that_the_fixtures_reader_reads() {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/overlaybd/tools/obdread.py");
    if !reader.exists() || !works(Command::new("python3").args(["-c", "import lz4.block, zstandard, crc32c"])) {
        println!(
            "skipped: {}: no obdread.py, or no Python modules for it",
            std::thread::current().name().unwrap_or("?")
        );
        return;
    }
    check_reader(&mixed(3_000_000), || {
        let mut command = Command::new("python3");
        command.arg(&reader).arg("sha");
        command
    });
}

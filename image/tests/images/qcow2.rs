//! qcow2 disks: those that `qemu-img` makes, and those that nobody should.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command, sync::Arc};

use bytes::Bytes;
use penstock_blob::{BlobSource, faults::Memory};
use penstock_image::{
    Compression, DeviceReadError, Image, Kind, Layer, LayerError, OpenError, Qcow2Error, Scratch, Step, StepError, read,
};
use proptest::prelude::*;

use crate::common::{device_sha256, noise, range, source};

const CLUSTER: usize = 512;
const OFLAG_COMPRESSED: u64 = 1 << 62;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn open(memory: &Arc<Memory>, layers: Vec<Layer>) -> Result<Image, OpenError> {
    let maps = tempfile::tempdir().unwrap();
    Image::open(layers, memory.clone(), maps.path()).await
}

/// A directory in which the tools of qemu work.
struct Qemu(tempfile::TempDir);

impl Qemu {
    /// `None`, and told by name, where they are not installed.
    fn new() -> Option<Self> {
        let there = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
        if there("qemu-img") && there("qemu-io") {
            return Some(Self(tempfile::tempdir().unwrap()));
        }
        println!("skipped: {}: qemu-utils is not installed", std::thread::current().name().unwrap_or("?"));
        None
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn img(&self, arguments: &str) {
        self.run("qemu-img", arguments.split(' '));
    }

    fn run<'a>(&self, tool: &str, arguments: impl IntoIterator<Item = &'a str>) {
        let output = Command::new(tool).args(arguments).current_dir(self.0.path()).output().unwrap();
        assert!(
            output.status.success(),
            "{tool}: {}",
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
        );
    }

    /// Writes, zeros and discards at places that depend on `seed`, in units of `grain` bytes.
    fn scribble(&self, file: &str, device_bytes: u64, grain: u64, seed: u64) {
        let units = device_bytes / grain;
        let mut script = String::new();
        for (nth, random) in noise(40 * 8, seed).chunks(8).enumerate() {
            let random = u64::from_le_bytes(random.try_into().unwrap());
            let (unit, pattern) = (random % units, random >> 40 & 0xff);
            let len = grain * (1 + (random >> 32) % 24).min(units - unit);
            let command = ["write -P", "write -P", "write -z", "discard"][nth % 4];
            let pattern = if command == "write -P" { format!(" {pattern}") } else { String::new() };
            let at = unit * grain;
            writeln!(script, "{command}{pattern} {at} {len}").unwrap();
        }
        let commands: Vec<&str> = script.lines().flat_map(|line| ["-c", line]).collect();
        self.run("qemu-io", ["-d", "unmap", "-f", "qcow2"].into_iter().chain(commands).chain([file]));
    }

    /// What qemu reads of it.
    fn raw(&self, file: &str) -> Vec<u8> {
        self.img(&format!("convert -f qcow2 -O raw {file} expected"));
        fs::read(self.path("expected")).unwrap()
    }

    /// Compares what is read of these files, the lowest of the chain first, with what qemu reads of the last one.
    fn compare(&self, files: &[&str]) -> Image {
        let expected = self.raw(files.last().unwrap());
        let (memory, layers) = source(files.iter().map(|file| fs::read(self.path(file)).unwrap().into()).collect());
        let image = block_on(open(&memory, layers)).unwrap();
        assert_eq!(image.size_bytes(), expected.len() as u64, "{files:?}");
        memory.resident(true);
        let ours = device_sha256(&image, &*memory);
        assert_eq!(ours, penstock_blob::Digest::of(&expected).to_hex(), "{files:?}");
        memory.resident(false);
        let source: Arc<dyn BlobSource> = memory;
        for (start, len) in [(0, 1), (511, 2), (70_000, 100_000), (expected.len() - 700_001, 700_001)] {
            let bytes = block_on(read(&image, &source, range(start as u64, (start + len) as u64))).unwrap();
            assert!(bytes == expected[start..start + len], "{files:?} fetched from {start}");
        }
        image
    }
}

/// Bytes of which some compress, some do not, and some are zeros.
fn mixed(len: usize) -> Vec<u8> {
    let mut disk = noise(len, 5);
    for (nth, piece) in disk.chunks_mut(150_000).enumerate() {
        match nth % 4 {
            0 => piece.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 700).to_le_bytes()[0]),
            1 => piece.fill(0),
            _ => {}
        }
    }
    disk
}

const DEVICE: u64 = (3 << 20) + 4608;

#[test]
fn every_cluster_size_reads_as_qemu_reads_it_also_after_random_writes() {
    let Some(qemu) = Qemu::new() else { return };
    fs::write(qemu.path("disk"), mixed(usize::try_from(DEVICE).unwrap())).unwrap();
    for bits in 9..=21 {
        let size = 1_u64 << bits;
        let version = if bits % 4 == 0 { "0.10" } else { "1.1" };
        qemu.img(&format!("convert -f raw -O qcow2 -o cluster_size={size},compat={version} disk a.qcow2"));
        let image = qemu.compare(&["a.qcow2"]);
        assert_eq!(image.kind(), Kind::Qcow2 { cluster_bytes: size, backing_files: 0 });
        qemu.scribble("a.qcow2", DEVICE, 512, bits);
        qemu.compare(&["a.qcow2"]);
    }
}

#[test]
fn compressed_clusters_and_extended_entries_read_as_qemu_reads_them() {
    let Some(qemu) = Qemu::new() else { return };
    fs::write(qemu.path("disk"), mixed(usize::try_from(DEVICE).unwrap())).unwrap();
    for (size, compression, extended) in [
        (512, "zlib", "off"),
        (4096, "zstd", "off"),
        (65_536, "zlib", "off"),
        (65_536, "zstd", "off"),
        (2 << 20, "zlib", "off"),
        (2 << 20, "zstd", "off"),
        (16_384, "zlib", "on"),
        (65_536, "zstd", "on"),
        (2 << 20, "zlib", "on"),
    ] {
        let options = format!("cluster_size={size},compression_type={compression},extended_l2={extended}");
        qemu.img(&format!("convert -c -f raw -O qcow2 -o {options} disk a.qcow2"));
        qemu.compare(&["a.qcow2"]);
        qemu.scribble("a.qcow2", DEVICE, 512, size);
        qemu.compare(&["a.qcow2"]);
        qemu.img(&format!("create -q -f qcow2 -o {options} b.qcow2 {DEVICE}"));
        qemu.scribble("b.qcow2", DEVICE, 1024, size + 1);
        qemu.compare(&["b.qcow2"]);
    }
}

#[test]
fn a_chain_of_layers_is_a_chain_of_backing_files() {
    let Some(qemu) = Qemu::new() else { return };
    fs::write(qemu.path("base"), mixed(1 << 20)).unwrap();
    // Each larger than the one below, so that what is behind its end reads as zeros.
    qemu.img("create -q -f qcow2 -F raw -b base -o cluster_size=4096 one 2M");
    qemu.scribble("one", 2 << 20, 512, 1);
    qemu.img("create -q -f qcow2 -F qcow2 -b one -o cluster_size=65536,extended_l2=on two 3M");
    qemu.scribble("two", 3 << 20, 512, 2);
    qemu.img("snapshot -c before two");
    qemu.scribble("two", 3 << 20, 512, 3);
    qemu.img("create -q -f qcow2 -F qcow2 -b two -o lazy_refcounts=on three 2M");
    qemu.scribble("three", 2 << 20, 512, 4);
    assert_eq!(qemu.compare(&["base", "one"]).kind().to_string(), "qcow2 disk over a backing file");
    assert_eq!(qemu.compare(&["base", "one", "two"]).blobs().len(), 3);
    assert_eq!(qemu.compare(&["base", "one", "two", "three"]).kind().to_string(), "qcow2 disk over 3 backing files");
}

#[test]
fn what_a_machine_encrypted_or_put_elsewhere_is_refused_by_name() {
    let Some(qemu) = Qemu::new() else { return };
    let refused = |file: &str| {
        let (memory, layers) = source(vec![fs::read(qemu.path(file)).unwrap().into()]);
        match block_on(open(&memory, layers)).unwrap_err() {
            OpenError::Layer { error, .. } => *error,
            error => panic!("{error}"),
        }
    };
    qemu.img("create -q -f qcow2 --object secret,id=k,data=x -o encrypt.format=aes,encrypt.key-secret=k a 1M");
    assert!(matches!(refused("a"), LayerError::Qcow2(Qcow2Error::Encrypted(1))));
    // LUKS by its number: qemu measures the CPU to make such a file, which fails on a busy one.
    let mut luks = fs::read(qemu.path("a")).unwrap();
    luks[32..36].copy_from_slice(&2_u32.to_be_bytes());
    fs::write(qemu.path("luks"), luks).unwrap();
    assert!(matches!(refused("luks"), LayerError::Qcow2(Qcow2Error::Encrypted(2))));
    qemu.img("create -q -f qcow2 -o data_file=data b 1M");
    assert!(matches!(refused("b"), LayerError::Qcow2(Qcow2Error::DataFile)));
}

/// A version 3 file of clusters of 512 bytes: header, L1 table, one L2 table, and what is given as clusters from 3 on. An entry of the L2 table for
/// each of its first clusters.
struct Made {
    entries: Vec<u64>,
    clusters: Vec<u8>,
    device_bytes: u64,
    compression: u8,
}

impl Made {
    fn new(entries: &[u64], clusters: Vec<u8>) -> Self {
        Self { entries: entries.to_vec(), clusters, device_bytes: 64 * CLUSTER as u64, compression: 0 }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut file = vec![0; 3 * CLUSTER];
        file[..4].copy_from_slice(b"QFI\xfb");
        let features = u32::from(self.compression) << 3;
        for (at, value) in [(4, 3), (20, 9), (36, 64), (76, features), (100, 112)] {
            file[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        file[104] = self.compression;
        for (at, value) in [(24, self.device_bytes), (40, 512), (512, 1024)] {
            file[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        for (nth, entry) in self.entries.iter().enumerate() {
            file[1024 + 8 * nth..][..8].copy_from_slice(&entry.to_be_bytes());
        }
        [file, self.clusters.clone()].concat()
    }
}

/// Data, zeros, nothing, and a compressed cluster that goes beyond the end of the file.
fn made(compression: Compression) -> Made {
    let data = noise(CLUSTER, 9);
    let packed = match compression {
        Compression::Deflate => [&[1, 0, 2, 0xff, 0xfd][..], &data].concat(),
        Compression::Zstd => zstd::bulk::compress(&data, 3).unwrap(),
    };
    let at = 4 * CLUSTER as u64 + 100;
    let entry = OFLAG_COMPRESSED | 1 << 61 | at;
    let clusters = [data, vec![0xee; 100], packed].concat();
    let compression = u8::from(compression == Compression::Zstd);
    Made { compression, ..Made::new(&[3 * 512, 1, 0, entry, (3 * 512) | 1], clusters) }
}

#[tokio::test]
async fn a_plan_never_waits_and_names_the_parts_of_tables_that_it_lacks() {
    for compression in [Compression::Deflate, Compression::Zstd] {
        let (memory, layers) = source(vec![made(compression).bytes().into()]);
        let image = open(&memory, layers).await.unwrap();
        let before = memory.reads();
        let lacking = image.plan(range(0, 64 * 512), &*memory).unwrap();
        let all: Vec<_> = lacking.missing().map(|(_, range)| range).collect();
        assert_eq!((memory.reads(), all), (before, vec![memory.blob(0).all().unwrap()]), "one slice, cut at the end");
        memory.resident(true);
        let plan = image.plan(range(0, 64 * 512), &*memory).unwrap();
        let steps: Vec<_> = plan.steps.iter().map(|placed| (placed.at.len(), &placed.step)).collect();
        let [(512, Step::Plain { .. }), (1024, Step::Zero), (512, Step::Cluster(cluster)), (rest, Step::Zero)] =
            &steps[..]
        else {
            panic!("{steps:?}")
        };
        assert_eq!(
            (cluster.range.end(), cluster.compression, *rest),
            (memory.blob(0).size_bytes, compression, 60 * 512)
        );
        let mut buf = vec![0xaa; 64 * 512];
        plan.read_into(&mut buf, &mut Scratch::new()).unwrap();
        let data = noise(CLUSTER, 9);
        assert!(buf[..512] == data && buf[1536..2048] == data);
        assert!(buf[512..1536].iter().chain(&buf[2048..]).all(|byte| *byte == 0));
    }
}

#[tokio::test]
async fn entries_that_lead_nowhere_fail_their_check_and_are_fetched_anew_before_it_is_said() {
    let outside = 1 << 30;
    for (entry, told) in [
        (outside, "outside the file"),
        (1 << 63 | 1 << 40, "outside the file"),
        (OFLAG_COMPRESSED | outside, "outside the file"),
        (OFLAG_COMPRESSED | 1024, "deflate"),
    ] {
        let (memory, layers) = source(vec![Made::new(&[3 * 512, entry], vec![7; 512]).bytes().into()]);
        let image = open(&memory, layers).await.unwrap();
        let source: Arc<dyn BlobSource> = memory.clone();
        assert!(read(&image, &source, range(0, 512)).await.unwrap().iter().all(|byte| *byte == 7), "its neighbour");
        let error = read(&image, &source, range(512, 1024)).await.unwrap_err();
        assert!(error.to_string().contains(told), "{entry:#x}: {error}");
        assert!(matches!(error, DeviceReadError::Step(StepError::Check { .. })) && memory.rejects() == 2, "{entry:#x}");
    }
    let mut bytes = Made::new(&[], vec![]).bytes();
    bytes[512..520].copy_from_slice(&4096_u64.to_be_bytes());
    let (memory, layers) = source(vec![bytes.into()]);
    let image = open(&memory, layers).await.unwrap();
    let source: Arc<dyn BlobSource> = memory;
    let error = read(&image, &source, range(0, 512)).await.unwrap_err();
    assert!(error.to_string().contains("an L1 entry points outside the file"), "{error}");
}

#[tokio::test]
async fn a_cluster_that_the_file_cuts_short_ends_in_zeros_as_in_qemu() {
    let (memory, layers) = source(vec![Made::new(&[3 * 512], vec![7; 100]).bytes().into()]);
    let image = open(&memory, layers).await.unwrap();
    let source: Arc<dyn BlobSource> = memory;
    let bytes = read(&image, &source, range(0, 512)).await.unwrap();
    assert!(bytes[..100].iter().all(|byte| *byte == 7) && bytes[100..].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_device_of_a_size_that_is_no_whole_sector_is_filled_up() {
    let disk = Made { device_bytes: 100, ..Made::new(&[3 * 512], vec![7; 512]) };
    let (memory, layers) = source(vec![disk.bytes().into()]);
    let image = open(&memory, layers).await.unwrap();
    assert_eq!(image.size_bytes(), 512);
    let source: Arc<dyn BlobSource> = memory;
    let bytes = read(&image, &source, range(0, 512)).await.unwrap();
    assert!(bytes[..100].iter().all(|byte| *byte == 7) && bytes[100..].iter().all(|byte| *byte == 0));
}

/// As `Made::bytes`, with a backing file of which the format is said.
fn over(format: &[u8]) -> Bytes {
    let mut file = Made::new(&[], vec![]).bytes();
    file[8..16].copy_from_slice(&400_u64.to_be_bytes());
    file[16..20].copy_from_slice(&11_u32.to_be_bytes());
    file[400..411].copy_from_slice(b"/etc/shadow");
    file[112..116].copy_from_slice(&0xe279_2aca_u32.to_be_bytes());
    file[116..120].copy_from_slice(&u32::try_from(format.len()).unwrap().to_be_bytes());
    file[120..120 + format.len()].copy_from_slice(format);
    file.into()
}

#[tokio::test]
async fn a_backing_file_is_the_layer_below_and_never_a_file_of_the_node() {
    let plain: Bytes = Made::new(&[3 * 512], vec![7; 512]).bytes().into();
    let raw: Bytes = noise(1000, 3).into();
    for (blobs, first) in [
        (vec![raw.clone(), over(b"raw")], raw[0]),
        (vec![plain.clone(), over(b"raw")], b'Q'),
        (vec![plain.clone(), over(b"qcow2")], 7),
        (vec![raw.clone(), over(b"raw"), over(b"qcow2")], raw[0]),
    ] {
        let (memory, layers) = source(blobs);
        let image = open(&memory, layers).await.unwrap();
        let source: Arc<dyn BlobSource> = memory;
        assert_eq!(read(&image, &source, range(0, 1)).await.unwrap()[0], first, "{:?}", image.kind());
    }
    let refused = |blobs| async {
        let (memory, layers) = source(blobs);
        match open(&memory, layers).await.unwrap_err() {
            OpenError::Layer { error, .. } => *error,
            error => panic!("{error}"),
        }
    };
    assert!(matches!(refused(vec![over(b"raw")]).await, LayerError::NoBacking));
    assert!(matches!(refused(vec![plain.clone(), plain.clone()]).await, LayerError::NotBacked));
    assert!(matches!(refused(vec![raw.clone(), plain.clone()]).await, LayerError::NotBacked));
    assert!(matches!(refused(vec![raw.clone(), over(b"qcow2")]).await, LayerError::BackingFormat));
    assert!(matches!(refused(vec![raw.clone(), raw.clone(), over(b"raw")]).await, LayerError::NotBacked));
    let vmdk = refused(vec![raw, over(b"vmdk")]).await;
    assert!(matches!(vmdk, LayerError::Qcow2(Qcow2Error::BackingFormat(ref format)) if format == "vmdk"), "{vmdk}");
    let (memory, layers) = source(vec![over(b"qcow2"); 13]);
    assert!(matches!(open(&memory, layers).await, Err(OpenError::TooLongChain { files: 13 })));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn changed_files_never_panic(
        zstd in any::<bool>(),
        changes in proptest::collection::vec((0..2200_usize, any::<u8>()), 1..8),
        numbers in proptest::collection::vec((0..3_usize, 0..8_usize, any::<u64>()), 0..4),
        cut in proptest::option::weighted(0.2, 0..2200_usize),
    ) {
        let mut bytes = made(if zstd { Compression::Zstd } else { Compression::Deflate }).bytes();
        for (place, nth, value) in numbers {
            let at = [24, 512, 1024][place] + 8 * nth;
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(cut.unwrap_or(bytes.len()));
        let (memory, layers) = source(vec![bytes.into()]);
        if let Ok(image) = block_on(open(&memory, layers)) && image.size_bytes() > 0 {
            let source: Arc<dyn BlobSource> = memory;
            let _ = block_on(read(&image, &source, range(0, image.size_bytes().min(2 << 20))));
        }
    }
}

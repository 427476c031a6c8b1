//! Ordinary layers by their layer index: what an index costs, what decoding costs, how long a cold read takes.
//!
//! One archive of this machine's files, as tar+gzip and as plain tar. The index of each is built from a local file, in one pass. Decoding: all of the archive through
//! [`Unpacked`], a MiB at a time, over the file in memory, each frame verified; beside it `gzip -dc` of the same file, which verifies nothing but a CRC.
//! A cold read: 4 KiB anywhere, with nothing in memory, through the fetcher over the link; beside it 4 KiB of the compressed layer, which is the least that the link allows.

use std::{
    fs::File,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use penstock_agent::output::{Table, size};
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Hasher, Purpose, faults::Memory};
use penstock_fetcher::{Fetcher, Platform, Reference};
use penstock_layers::{Builder, Built, Config, Index, Unpacked};
use penstock_registry::{Artifact, Layer, Registry};
use serde::Serialize;

use crate::{
    pack::{self, Link, TAG},
    report::{Measured, time},
    sample::{Durations, Sample},
    tree::{SEED, Tree},
    usage,
};

/// Bytes read at once while all is decoded, and taken at once while an index is built.
const PIECE: u64 = 1 << 20;
/// Bytes of a cold read.
const PAGE: u64 = 4096;
const REPOSITORY: &str = "bench/layer";

/// What one layer cost.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// How it is packed.
    pub name: &'static str,
    /// Its size in bytes.
    pub layer_bytes: u64,
    /// Size of its archive in bytes.
    pub archive_bytes: u64,
    /// How many frames it has.
    pub frames: u64,
    /// Size of its index in bytes.
    pub index_bytes: u64,
    /// How long the index took, in seconds for a GB (10^9 bytes) of the archive.
    pub build_seconds_per_gb: f64,
    /// Most anonymous memory seen while it was built beyond that before, in bytes.
    pub build_memory_bytes: u64,
    /// CPU seconds for a GiB decoded and verified, frame by frame.
    pub decode_cpu_seconds_per_gib: f64,
    /// CPU seconds for a GiB decoded by `gzip -dc`, where that is possible.
    pub gzip_cpu_seconds_per_gib: Option<f64>,
    /// 4 KiB of the archive, with nothing in memory.
    pub cold: Sample,
    /// 4 KiB of the compressed layer over the same link.
    pub floor: Sample,
}

impl Measured for Vec<Row> {
    const NAME: &'static str = "layer";

    fn tables(&self) -> String {
        let titles = [
            "LAYER",
            ">SIZE",
            ">ARCHIVE",
            ">FRAMES",
            ">INDEX",
            ">OF LAYER",
            ">BUILD/GB",
            ">MEMORY",
            ">DECODE CPU/GiB",
            ">GZIP CPU/GiB",
            ">N",
            ">COLD 4K MEDIAN",
            ">P99",
            ">FLOOR MEDIAN",
        ];
        let mut table = Table::new(&titles);
        for row in self {
            table.row([
                row.name.to_owned(),
                size(row.layer_bytes),
                size(row.archive_bytes),
                row.frames.to_string(),
                size(row.index_bytes),
                format!("{:.2} %", ratio(row.index_bytes, row.layer_bytes) * 100.0),
                time(row.build_seconds_per_gb),
                size(row.build_memory_bytes),
                time(row.decode_cpu_seconds_per_gib),
                row.gzip_cpu_seconds_per_gib.map_or_else(|| "-".to_owned(), time),
                row.cold.n.to_string(),
                time(row.cold.median_seconds),
                time(row.cold.p99_seconds),
                time(row.floor.median_seconds),
            ]);
        }
        table.to_string()
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52 bytes")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Makes the layers of about `size_bytes` of this machine's files in `dir`, and measures each; `n` cold reads.
///
/// # Errors
/// When `tar` or `gzip` fails, when anything else does, and when bytes read are not the archive's.
pub async fn run(dir: &Path, (size_bytes, link): (u64, Link), n: u64) -> anyhow::Result<Vec<Row>> {
    let place = dir.to_owned();
    let archive = tokio::task::spawn_blocking(move || make(&place, size_bytes)).await??;
    let mut rows = Vec::new();
    for name in ["tar+gzip", "tar"] {
        let file = dir.join(if name == "tar" { "layer.tar" } else { "layer.tar.gz" });
        let index = dir.join("index");
        let (from, to) = (file.clone(), index.clone());
        let (built, took, memory) = tokio::task::spawn_blocking(move || build(&from, &to, archive)).await??;
        let open = || -> anyhow::Result<Index> { Ok(Index::open(File::open(&index)?)?) };
        let decode = decode_all(&std::fs::read(&file)?, open()?).await?;
        let gzip = (name == "tar+gzip").then(|| gzip_cpu(&file)).transpose()?;
        let (cold, floor) = cold(&file, (&built, open()?), link, n).await?;
        let gib = ratio(archive.size_bytes, 1 << 30);
        rows.push(Row {
            name,
            layer_bytes: built.layer.packed.size_bytes,
            archive_bytes: archive.size_bytes,
            frames: built.layer.frames,
            index_bytes: built.index.size_bytes,
            build_seconds_per_gb: took.as_secs_f64() / ratio(archive.size_bytes, 1_000_000_000),
            build_memory_bytes: memory,
            decode_cpu_seconds_per_gib: decode.as_secs_f64() / gib,
            gzip_cpu_seconds_per_gib: gzip.map(|cpu| cpu / gib),
            cold,
            floor,
        });
    }
    Ok(rows)
}

/// Copies files, and packs them both ways. The archive's digest and size.
fn make(dir: &Path, size_bytes: u64) -> anyhow::Result<Blob> {
    let tree = Tree::copy(&dir.join("root"), size_bytes)?;
    let archive = dir.join("layer.tar");
    let options = ["--sort=name", "--numeric-owner", "--mtime=@0", "-C"];
    succeed(Command::new("tar").args(options).arg(&tree.root).arg("-cf").arg(&archive).arg("."), "tar")?;
    succeed(Command::new("gzip").args(["-6", "-n", "-k"]).arg(&archive), "gzip")?;
    blob_of(&archive)
}

fn succeed(command: &mut Command, name: &str) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("{name} cannot be started"))?;
    ensure!(status.success(), "{name} failed: {status}");
    Ok(())
}

fn blob_of(path: &Path) -> anyhow::Result<Blob> {
    let (mut file, mut hasher, mut size_bytes) = (File::open(path)?, Hasher::new(), 0);
    let mut buffer = vec![0; usize::try_from(PIECE)?];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Blob { digest: hasher.finish(), size_bytes }),
            read => {
                hasher.update(&buffer[..read]);
                size_bytes += read as u64;
            }
        }
    }
}

/// Builds the index of a layer: what it says, how long it took, and the memory it needed.
fn build(file: &Path, index: &Path, archive: Blob) -> anyhow::Result<(Built, Duration, u64)> {
    let packed = blob_of(file)?;
    let (before, mut most) = (usage::anonymous_bytes(), 0);
    let began = Instant::now();
    let mut builder = Builder::create(index, packed, archive.digest)?;
    let mut layer = File::open(file)?;
    let mut buffer = vec![0; usize::try_from(PIECE)?];
    loop {
        match layer.read(&mut buffer)? {
            0 => break,
            read => builder.push(&buffer[..read])?,
        }
        most = most.max(usage::anonymous_bytes().saturating_sub(before));
    }
    let built = builder.finish()?;
    Ok((built, began.elapsed(), most))
}

/// CPU time of decoding everything, frame by frame, a MiB at a time.
async fn decode_all(packed: &[u8], index: Index) -> anyhow::Result<Duration> {
    let archive = index.layer().unpacked;
    let below = Memory::new(vec![packed.to_vec().into()]);
    let config = Config { deadline: Duration::from_secs(30), decodes: 2, recent_bytes: 16 << 20 };
    let unpacked = Unpacked::new(below, config, &mut prometheus_client::registry::Registry::default());
    let _registered = unpacked.register(index);
    let before = usage::cpu_time();
    let mut start = 0;
    while start < archive.size_bytes {
        let end = archive.size_bytes.min(start + PIECE);
        unpacked.read(archive, ByteRange::new(start, end)?, Purpose::Demand).await?;
        start = end;
    }
    Ok(usage::cpu_time().saturating_sub(before))
}

/// CPU seconds of `gzip -dc`, as the shell tells them.
fn gzip_cpu(file: &Path) -> anyhow::Result<f64> {
    let script = "TIMEFORMAT='%U %S'; time gzip -dc \"$1\" >/dev/null";
    let output = Command::new("bash").args(["-c", script, "bash"]).arg(file).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "gzip -dc failed: {}", output.status);
    let told = String::from_utf8(output.stderr)?;
    told.split_whitespace().map(|seconds| Ok(seconds.parse::<f64>()?)).sum()
}

/// 4 KiB at a time over the link: of the archive, and of the compressed layer, in turns.
async fn cold(file: &Path, (built, index): (&Built, Index), link: Link, n: u64) -> anyhow::Result<(Sample, Sample)> {
    let registry = Registry::start(pack::over(link)).await.context("the registry cannot listen on loopback")?;
    let blob = registry.put_file(file).await?;
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_owned();
    let layer = Layer { blob, media_type, annotations: Default::default() };
    let config = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    registry.put_image(
        REPOSITORY,
        TAG,
        Artifact { config: config.into(), layers: vec![layer], ..Artifact::default() },
    )?;
    let mut metrics = prometheus_client::registry::Registry::default();
    let fetcher = Fetcher::new(penstock_fetcher::Config::default(), &mut metrics)?;
    let reference: Reference = format!("{}/{REPOSITORY}:{TAG}", registry.host()).parse()?;
    let manifest = fetcher.resolve(&reference, &Platform::host()).await?;
    fetcher.serve(blob, &manifest.reference);
    let config = Config { deadline: Duration::from_secs(30), decodes: 2, recent_bytes: 0 };
    let unpacked = Unpacked::new(Arc::clone(&fetcher) as _, config, &mut metrics);
    let archive = built.layer.unpacked;
    let _registered = unpacked.register(index);
    let (mut cold, mut floor, mut rng) = (Durations::new()?, Durations::new()?, fastrand::Rng::with_seed(SEED));
    for _ in 0..n {
        for (source, blob, durations) in
            [(&*unpacked as &dyn BlobSource, archive, &mut cold), (&*fetcher as &dyn BlobSource, blob, &mut floor)]
        {
            let start = rng.u64(0..blob.size_bytes / PAGE) * PAGE;
            let began = Instant::now();
            let bytes = source.read(blob, ByteRange::at(start, PAGE)?, Purpose::Demand).await?;
            durations.add(began.elapsed());
            ensure!(bytes.len() as u64 == PAGE, "a short read");
        }
    }
    // All that was compared so far is each frame with the index. Once more, with the archive itself.
    let all = unpacked.read(archive, ByteRange::new(0, archive.size_bytes)?, Purpose::Ahead).await?;
    ensure!(Digest::of(&all) == archive.digest, "WRONG BYTES: the archive as it is read is another");
    fetcher.stop().await;
    registry.stop().await;
    Ok((cold.sample(), floor.sample()))
}

//! Reads of what is cached on this node, through a mount: against the same file system mounted without Penstock, in the same run.
//!
//! One file of a known content lies in an EROFS disk. Penstock serves the disk four ways: as one raw blob and as an OverlayBD layer of lz4 and of
//! zstd frames, each through FUSE. Beside it the same disk is mounted by the kernel alone: over a loop device, and as a file (Linux 6.12). PLAIN FILE is the same bytes
//! in a file of the local disk: the floor.
//!
//! Before each pass the pages of the mounted file are dropped, so that every read reaches the file system's own source. What lies below that, the cache's
//! file or the disk's, is either in the page cache (PAGES) or not (DISK): a pass does not begin before `fincore` says so, and what it says after the pass is told. Sides
//! take turns. Processor time is that of this process: for Penstock the reader and the agent; of a loop device it lacks the kernel's own thread.
//!
//! Who answers a reader is another thread, and waking one on a processor that is idle can take longer than all else about a page, most of all in a virtual machine. Where
//! threads run is the scheduler's choice, and stays so for whole passes. So single pages are read twice: as it comes, and with all threads of this process on one processor.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use penstock_agent::{Agent, Config, client::Client, output::Table};
use penstock_image::{
    Scratch,
    write::{self, Options},
    zfile::{Codec, Format},
};
use penstock_registry::{Layer, Registry};
use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};

use crate::{
    one_cpu::OneCpu,
    pack::{self, Link, TAG},
    report::{self, time},
    sample::{Durations, Sample},
    synthetic,
    tree::SEED,
    usage,
};

/// Bytes of one read of a sequential pass.
const STEP: usize = 1 << 20;
/// Bytes of one random read.
const PAGE: u64 = 4096;
/// Random reads of one pass.
const RANDOM_READS: usize = 4096;
/// Bytes of a frame, as upstream's convertor writes them.
const FRAME_BYTES: u32 = 4096;
/// How much of what is below has to be in the page cache, or not in it, when a pass begins: 1 is all of it.
const READY: f64 = 0.99;
/// How often that is tried.
const PREPARES: usize = 10;
/// Bytes decoded by themselves.
const DECODED_BYTES: usize = 64 << 20;
/// The one file in the disk.
const NAME: &str = "data";
/// What a raw disk is in a registry.
const DISK_TYPE: &str = "application/octet-stream";

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// All of it, a MiB at a time. A sample is one pass.
    Sequential,
    /// Pages anywhere, each once, one after the other. A sample is one page.
    Random,
    /// The same, reader and agent on one processor.
    RandomOneCpu,
}

/// Where the bytes below the mounted file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Below {
    /// In the page cache.
    Pages,
    /// On the disk only.
    Disk,
}

impl Work {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Random => "random 4 KiB",
            Self::RandomOneCpu => "random 4 KiB, one CPU",
        }
    }
}

impl Below {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Pages => "page cache",
            Self::Disk => "disk",
        }
    }
}

/// Reads of one kind through one side.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was read.
    pub work: Work,
    /// From where.
    pub below: Below,
    /// Through what.
    pub side: &'static str,
    /// How long they took.
    pub took: Sample,
    /// Bytes of one sample.
    pub sample_bytes: u64,
    /// Bytes read.
    pub total_bytes: u64,
    /// Processor time of this process.
    pub cpu_seconds: f64,
    /// How much of the files below was in the page cache when a pass began, and when it had ended: the least of all passes, 1 is all of them.
    pub cached: [f64; 2],
}

/// What reading the whole file twice left in the page cache.
#[derive(Debug, Clone, Serialize)]
pub struct Kept {
    /// Through what.
    pub side: &'static str,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Its bytes in the page cache.
    pub above_bytes: u64,
    /// Bytes in the page cache of the files below.
    pub below_bytes: u64,
}

/// Processor time of work that is no pass through a mount.
#[derive(Debug, Clone, Serialize)]
pub struct Cpu {
    /// What.
    pub what: &'static str,
    /// Bytes that came out of it.
    pub bytes: u64,
    /// Processor time of this process.
    pub cpu_seconds: f64,
}

impl Row {
    /// Processor seconds for 2^30 bytes.
    pub(crate) fn cpu_per_gib(&self) -> f64 {
        per_gib(self.cpu_seconds, self.total_bytes)
    }
}

impl Cpu {
    /// Processor seconds for 2^30 bytes.
    pub(crate) fn per_gib(&self) -> f64 {
        per_gib(self.cpu_seconds, self.bytes)
    }
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Reads.
    pub rows: Vec<Row>,
    /// Pages kept.
    pub kept: Vec<Kept>,
    /// Processor time besides.
    pub cpu: Vec<Cpu>,
}

/// The sides through which one file is read.
pub(crate) const PLAIN_FILE: &str = "plain file";
pub(crate) const RAW: &str = "Penstock, raw disk";
pub(crate) const LZ4: &str = "Penstock, lz4";
pub(crate) const ZSTD: &str = "Penstock, zstd";
pub(crate) const LOOP: &str = "loop mount";
const FILE_BACKED: &str = "file-backed mount";

/// One way to the file.
#[derive(Debug)]
struct Side {
    name: &'static str,
    /// The file as it is read.
    file: PathBuf,
    /// The files from which it comes.
    below: Vec<PathBuf>,
}

/// A mount that the kernel alone serves.
#[derive(Debug)]
struct Mounted(PathBuf);

impl Mounted {
    fn new(disk: &Path, dir: PathBuf, options: &str) -> anyhow::Result<Self> {
        fs::create_dir(&dir)?;
        let output = Command::new("mount").args(["-t", "erofs", "-o", options]).arg(disk).arg(&dir).output()?;
        ensure!(output.status.success(), "mount -o {options}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(Self(dir))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Ok(status) = Command::new("umount").arg(&self.0).status()
            && !status.success()
        {
            penstock_agent::output::note(format_args!("{} is still mounted", self.0.display()));
        }
    }
}

/// The images, and the disk that all of them are.
struct Images {
    registry: Registry,
    plain: PathBuf,
    disk: PathBuf,
    /// Bytes of the file.
    bytes: u64,
}

/// Measures every side `n` times, in turns, on a file of `size_bytes`.
///
/// # Errors
/// When anything fails, and when a side answers other bytes than the file's.
pub async fn run(dir: &Path, (size_bytes, link): (u64, Link), n: u64) -> anyhow::Result<Measured> {
    let images = Images::make(dir, size_bytes, link).await?;
    let agent = Agent::start(Config::in_dir(dir)).await?;
    let measured = measure(&images, &agent, dir, n).await;
    // Whatever happened, nothing stays mounted.
    agent.stop_for_good().await?;
    images.registry.stop().await;
    measured
}

impl Images {
    async fn make(dir: &Path, size_bytes: u64, link: Link) -> anyhow::Result<Self> {
        let (tree, disk) = (dir.join("tree"), dir.join("disk"));
        fs::create_dir(&tree)?;
        let plain = tree.join(NAME);
        fs::write(&plain, synthetic::program_bytes(usize::try_from(size_bytes)?)?)?;
        let mut command = tokio::process::Command::new("mkfs.erofs");
        command.args(["--quiet", "-T0"]).arg(&disk).arg(&tree);
        pack::run(command, "erofs-utils").await?;
        // Pages that are not on the disk yet cannot be dropped.
        for path in [&plain, &disk] {
            File::open(path)?.sync_all()?;
        }
        let registry = Registry::start(pack::over(link)).await.context("the registry cannot listen on loopback")?;
        let blob = registry.put_file(&disk).await?;
        let layer = Layer { blob, media_type: DISK_TYPE.into(), annotations: Default::default() };
        pack::put(&registry, repository(RAW), vec![layer], None)?;
        for (side, codec) in [(LZ4, Codec::Lz4), (ZSTD, Codec::Zstd)] {
            let frames = Some(Format { codec, crc: true, block_bytes: FRAME_BYTES });
            let layer = dir.join(repository(side).replace('/', "-"));
            let written = pack::write_layer_as(&disk, &layer, Options { frames, ..Options::default() }).await?;
            let blob = registry.put_file(&layer).await?;
            let layer = Layer { blob, media_type: write::MEDIA_TYPE.into(), annotations: written.annotations };
            pack::put(&registry, repository(side), vec![layer], Some(write::ARTIFACT_TYPE))?;
        }
        Ok(Self { registry, plain, disk, bytes: size_bytes })
    }
}

fn repository(side: &str) -> &'static str {
    match side {
        LZ4 => "bench/warm-lz4",
        ZSTD => "bench/warm-zstd",
        _ => "bench/warm-raw",
    }
}

async fn measure(images: &Images, agent: &Agent, dir: &Path, n: u64) -> anyhow::Result<Measured> {
    let client = Client::new(agent.socket().to_owned());
    let (mut sides, mut cpu) = (Vec::new(), Vec::new());
    for (name, what) in [(RAW, "cold, raw disk"), (LZ4, "cold, lz4"), (ZSTD, "cold, zstd")] {
        let root = dir.join(repository(name).replace('/', "-") + "-mount");
        fs::create_dir(&root)?;
        let known = cache_files(dir)?;
        let reference = format!("{}/{}:{TAG}", images.registry.host(), repository(name));
        let request = serde_json::json!({ "reference": reference, "mount": root });
        let request = serde_json::from_value(request)?;
        let device = client.attach(&request).await?;
        let file = root.join(NAME);
        let (reading, used) = (file.clone(), usage::cpu_time());
        blocking(move || sequential(&reading).map(drop)).await?;
        let cpu_seconds = usage::cpu_time().saturating_sub(used).as_secs_f64();
        cpu.push(Cpu { what, bytes: images.bytes, cpu_seconds });
        agent.cache().settle().await;
        // As it is found by the next container: all of it is here.
        client.detach(&device.id, false).await?;
        client.attach(&request).await?;
        let below = cache_files(dir)?.into_iter().filter(|file| !known.contains(file)).collect();
        sides.push(Side { name, file, below });
    }
    let kernel = [(LOOP, "ro,loop", "loop"), (FILE_BACKED, "ro", "file")];
    let mut mounts = Vec::new();
    for (name, options, at) in kernel {
        mounts.push(Mounted::new(&images.disk, dir.join(at), options)?);
        sides.push(Side { name, file: dir.join(at).join(NAME), below: vec![images.disk.clone()] });
    }
    sides.push(Side { name: PLAIN_FILE, file: images.plain.clone(), below: Vec::new() });
    let (plain, file_bytes) = (images.plain.clone(), images.bytes);
    let measured = blocking(move || {
        sides.iter().try_for_each(|side| same(&plain, side))?;
        let kept = sides.iter().map(kept).collect::<anyhow::Result<_>>()?;
        Ok((passes(&sides, n)?, kept))
    });
    let (rows, kept) = measured.await?;
    cpu.extend(decoding().await?);
    drop(mounts);
    Ok(Measured { file_bytes, rows, kept, cpu })
}

/// Runs what waits on a thread that serves no device.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the reading thread ended abnormally")?
}

/// The cache's data files: those of blobs, not the little ones beside them.
fn cache_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut files, mut dirs) = (Vec::new(), vec![dir.join("state/cache")]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                dirs.push(entry.path());
            } else if metadata.len() >= STEP as u64 {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

fn passes(sides: &[Side], n: u64) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for work in [Work::Sequential, Work::Random, Work::RandomOneCpu] {
        for below in [Below::Pages, Below::Disk] {
            let mut found = sides.iter().map(|_| Passes::new()).collect::<anyhow::Result<Vec<_>>>()?;
            for nth in 0..n {
                for (side, passes) in sides.iter().zip(&mut found) {
                    passes.add(side, (work, below), nth)?;
                }
            }
            rows.extend(sides.iter().zip(found).map(|(side, passes)| passes.row(side.name, (work, below))));
        }
    }
    Ok(rows)
}

/// Passes of one kind through one side.
#[derive(Debug)]
struct Passes {
    took: Durations,
    bytes: u64,
    cpu: Duration,
    cached: [f64; 2],
}

impl Passes {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { took: Durations::new()?, bytes: 0, cpu: Duration::ZERO, cached: [1.0; 2] })
    }

    /// Makes the `nth` pass.
    fn add(&mut self, side: &Side, (work, below): (Work, Below), nth: u64) -> anyhow::Result<()> {
        let before = side.ready(below)?;
        let one = (work == Work::RandomOneCpu).then(OneCpu::hold).transpose()?;
        let used = usage::cpu_time();
        let (took, read) = match work {
            Work::Sequential => sequential(&side.file)?,
            Work::Random | Work::RandomOneCpu => random(&side.file, nth)?,
        };
        self.cpu += usage::cpu_time().saturating_sub(used);
        drop(one);
        self.took.join(&took)?;
        self.bytes += read;
        let [least_before, least_after] = self.cached;
        self.cached = [least_before.min(before), least_after.min(side.cached()?)];
        Ok(())
    }

    fn row(&self, side: &'static str, (work, below): (Work, Below)) -> Row {
        let (took, total_bytes) = (self.took.sample(), self.bytes);
        let sample_bytes = total_bytes / took.n.max(1);
        let (cpu_seconds, cached) = (self.cpu.as_secs_f64(), self.cached);
        Row { work, below, side, took, sample_bytes, total_bytes, cpu_seconds, cached }
    }
}

impl Side {
    /// How much of the files below, or of itself where nothing is below, is in the page cache: 1 is all of it.
    fn cached(&self) -> anyhow::Result<f64> {
        let files = if self.below.is_empty() { std::slice::from_ref(&self.file) } else { &self.below };
        let (mut cached, mut all) = (0, 0);
        for file in files {
            cached += usage::cached_bytes(file)?;
            all += file.metadata()?.len();
        }
        // The last page of a file counts whole.
        Ok((cached as f64 / all as f64).min(1.0))
    }

    /// Prepares until the pages below are where they shall be: what an earlier pass had read may be dropped meanwhile. How much of what is below is in the page cache then.
    fn ready(&self, below: Below) -> anyhow::Result<f64> {
        let mut cached = 0.0;
        for _ in 0..PREPARES {
            self.prepare(below)?;
            cached = self.cached()?;
            let share = if below == Below::Pages { cached } else { 1.0 - cached };
            if share >= READY {
                return Ok(cached);
            }
        }
        let (percent, from) = (cached * 100.0, below.name());
        bail!("{}: {percent:.1} % of what is below is in the page cache before a pass from the {from}", self.name)
    }

    /// Drops the pages of the file, and brings those below to where they shall be.
    fn prepare(&self, below: Below) -> anyhow::Result<()> {
        let ways = self.below.iter().map(|file| (file, below));
        // What has nothing below is itself what is below.
        let itself = (&self.file, if self.below.is_empty() { below } else { Below::Disk });
        for (path, way) in ways.chain([itself]) {
            let mut file = File::open(path)?;
            match way {
                Below::Disk => fadvise(&file, 0, None, Advice::DontNeed)?,
                Below::Pages => drop(io::copy(&mut file, &mut io::sink())?),
            }
        }
        Ok(())
    }
}

/// Reads the file in order.
fn sequential(path: &Path) -> anyhow::Result<(Durations, u64)> {
    let (mut durations, mut buf, mut bytes) = (Durations::new()?, vec![0; STEP], 0);
    let mut file = File::open(path)?;
    let began = Instant::now();
    loop {
        match file.read(&mut buf)? {
            0 => break,
            read => bytes += read as u64,
        }
    }
    durations.add(began.elapsed());
    Ok((durations, bytes))
}

/// Reads pages of the file, others in each pass.
fn random(path: &Path, pass: u64) -> anyhow::Result<(Durations, u64)> {
    let file = File::open(path)?;
    // Otherwise the kernel would read ahead after some neighbours by chance.
    fadvise(&file, 0, None, Advice::Random)?;
    let mut pages: Vec<u64> = (0..file.metadata()?.len() / PAGE).collect();
    fastrand::Rng::with_seed(SEED + pass).shuffle(&mut pages);
    pages.truncate(RANDOM_READS);
    let (mut durations, mut buf) = (Durations::new()?, [0; 4096]);
    for page in &pages {
        let began = Instant::now();
        file.read_exact_at(&mut buf, page * PAGE)?;
        durations.add(began.elapsed());
    }
    Ok((durations, pages.len() as u64 * PAGE))
}

/// Whether the side shows the file's bytes.
fn same(plain: &Path, side: &Side) -> anyhow::Result<()> {
    let alike = fs::read(plain)? == fs::read(&side.file)?;
    ensure!(alike, "WRONG BYTES: {} differs from the original", side.name);
    Ok(())
}

/// Reads everything twice, beginning with no pages; counts those that are there afterwards.
fn kept(side: &Side) -> anyhow::Result<Kept> {
    side.prepare(Below::Disk)?;
    let (_, file_bytes) = sequential(&side.file)?;
    sequential(&side.file)?;
    let above_bytes = usage::cached_bytes(&side.file)?;
    let below_bytes = side.below.iter().map(|file| usage::cached_bytes(file)).sum::<anyhow::Result<_>>()?;
    Ok(Kept { side: side.name, file_bytes, above_bytes, below_bytes })
}

/// Decoding alone: frames in memory, one after the other, by the code of a hit.
async fn decoding() -> anyhow::Result<Vec<Cpu>> {
    let bytes = synthetic::program_bytes(DECODED_BYTES)?;
    let mut found = Vec::new();
    for (what, codec) in [("lz4 alone", Codec::Lz4), ("zstd alone", Codec::Zstd)] {
        let maps = tempfile::tempdir()?;
        let format = Format { codec, crc: false, block_bytes: FRAME_BYTES };
        let held = synthetic::framed(&bytes, format, maps.path()).await?;
        let (mut buf, mut scratch) = (vec![0; STEP], Scratch::new());
        let used = usage::cpu_time();
        for at in (0..DECODED_BYTES).step_by(STEP) {
            let range = penstock_blob::ByteRange::at(at as u64, STEP as u64)?;
            held.image.plan(range, &held.source)?.read_into(&mut buf, &mut scratch)?;
        }
        let cpu_seconds = usage::cpu_time().saturating_sub(used).as_secs_f64();
        found.push(Cpu { what, bytes: DECODED_BYTES as u64, cpu_seconds });
    }
    Ok(found)
}

fn per_gib(cpu_seconds: f64, bytes: u64) -> f64 {
    cpu_seconds / (bytes as f64 / f64::from(1 << 30))
}

impl Measured {
    /// The row of this work through this side.
    pub(crate) fn row(&self, work: Work, below: Below, side: &str) -> Option<&Row> {
        self.rows.iter().find(|row| (row.work, row.below, row.side) == (work, below, side))
    }

    fn reads(&self) -> Table {
        let titles = [
            "WARM",
            "BELOW",
            "THROUGH",
            ">N",
            ">MEDIAN",
            ">P99",
            ">MB/S",
            ">X LOOP",
            ">CPU S/GIB",
            ">CACHED",
            ">AFTER",
        ];
        let mut table = Table::new(&titles);
        for row in &self.rows {
            let median = row.took.median_seconds;
            let ratio = self.row(row.work, row.below, LOOP).map_or(0.0, |other| other.took.median_seconds / median);
            table.row([
                row.work.name().to_owned(),
                row.below.name().to_owned(),
                row.side.to_owned(),
                row.took.n.to_string(),
                time(median),
                time(row.took.p99_seconds),
                format!("{:.0}", row.sample_bytes as f64 / median / 1e6),
                format!("{ratio:.2}"),
                format!("{:.2}", row.cpu_per_gib()),
                format!("{:.2}", row.cached[0]),
                format!("{:.2}", row.cached[1]),
            ]);
        }
        table
    }

    fn pages(&self) -> Table {
        let mut table = Table::new(&["READ TWICE", ">CACHED ABOVE", ">BELOW", ">X THE FILE"]);
        for Kept { side, file_bytes, above_bytes, below_bytes } in &self.kept {
            let share = |bytes: u64| bytes as f64 / *file_bytes as f64;
            table.row([
                (*side).to_owned(),
                format!("{:.2}", share(*above_bytes)),
                format!("{:.2}", share(*below_bytes)),
                format!("{:.2}", share(above_bytes + below_bytes)),
            ]);
        }
        table
    }

    fn besides(&self) -> Table {
        let mut table = Table::new(&["PROCESSOR TIME", ">CPU S/GIB"]);
        for cpu in &self.cpu {
            table.row([cpu.what.to_owned(), format!("{:.2}", cpu.per_gib())]);
        }
        table
    }
}

impl report::Measured for Measured {
    const NAME: &'static str = "warm";

    fn tables(&self) -> String {
        let file = penstock_agent::output::size(self.file_bytes);
        format!("a file of {file}\n\n{}\n{}\n{}", self.reads(), self.pages(), self.besides())
    }
}

//! Reads through image, cache and fetcher, one row for each way a read can go.
//!
//! A hit runs as a device's queue runs it: plan, then read and decode into a buffer that is kept. Two rows are floors to compare with: reading the raw disk's
//! file, and a bare ranged GET of one chunk over the same link.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_agent::output::{Table, size};
use penstock_blob::{BlobSource, ByteRange, ChunkSize};
use penstock_cache::Cache;
use penstock_fetcher::{Fetcher, Platform, Reference};
use penstock_image::{Image, Layer, Scratch, write::Disk as _};
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{
    pack::{LAZY, Packed},
    pull,
    report::{Measured, time},
    sample::{Durations, Sample},
    tree::SEED,
    usage,
};

/// A small read: a page.
const PAGE: u64 = 4096;
/// A large read: what readahead asks for.
const LARGE: u64 = 128 << 10;
/// A step of reading in order.
const STEP: u64 = 1 << 20;
/// Hits timed for each miss timed: they are ten thousand times as quick.
const HITS_PER_MISS: u64 = 100;
/// Places of the rows that read the same ones over and over: with [`LARGE`] reads less than the cache leaves in the page cache.
const FEW: usize = 16;
/// Misses at once, where several are.
const AT_ONCE: usize = 16;
/// Readers of the mixed row.
const READERS: u64 = 8;
/// Reads of the mixed row for each miss timed.
const MIXED_PER_MISS: u64 = 20;
/// One in this many pages is hot in the mixed row, and gets nine reads in ten.
const HOT: usize = 10;

/// One way a read can go.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// Bytes of one read.
    pub read_bytes: u64,
    /// Reads under way at once.
    pub readers: u64,
    /// How long one read took.
    pub latency: Sample,
    /// Bytes read in all.
    pub total_bytes: u64,
    /// How long all reads took together, in seconds.
    pub seconds: f64,
    /// Requests that the registry answered meanwhile.
    pub requests: u64,
    /// Body bytes that it sent meanwhile.
    pub fetched_bytes: u64,
    /// Processor time of this process meanwhile, in seconds; with the registry's, where there were requests.
    pub cpu_seconds: f64,
    /// Anonymous memory after the row beyond that before the image was opened, in bytes; with the registry's.
    pub memory_bytes: u64,
}

impl Measured for Vec<Row> {
    const NAME: &'static str = "path";

    fn tables(&self) -> String {
        let titles = [
            "PATH",
            ">READ",
            ">AT ONCE",
            ">N",
            ">MEDIAN",
            ">P99",
            ">P99.9",
            ">MB/S",
            ">REQUESTS",
            ">FETCHED/READ",
            ">CPU S/GIB",
            ">MEMORY",
        ];
        let mut table = Table::new(&titles);
        for row in self {
            let ratio = row.fetched_bytes as f64 / row.total_bytes as f64;
            table.row([
                row.name.to_owned(),
                size(row.read_bytes),
                row.readers.to_string(),
                row.latency.n.to_string(),
                time(row.latency.median_seconds),
                time(row.latency.p99_seconds),
                time(row.latency.p999_seconds),
                format!("{:.1}", row.total_bytes as f64 / row.seconds / 1e6),
                row.requests.to_string(),
                format!("{ratio:.2}"),
                format!("{:.2}", row.cpu_seconds / (row.total_bytes as f64 / f64::from(1 << 30))),
                size(row.memory_bytes),
            ]);
        }
        table.to_string()
    }
}

/// Image, cache and fetcher, stacked as the agent stacks them.
#[derive(Debug)]
struct Stack {
    image: Arc<Image>,
    cache: Arc<Cache>,
    fetcher: Arc<Fetcher>,
    source: Arc<dyn BlobSource>,
}

impl Stack {
    async fn open(packed: &Packed, dir: &Path, keep_pages: bool) -> anyhow::Result<Self> {
        let mut metrics = Registry::default();
        let fetcher = Fetcher::new(penstock_fetcher::Config::default(), &mut metrics)?;
        let reference: Reference = packed.reference(LAZY).parse()?;
        let manifest = fetcher.resolve(&reference, &Platform::host()).await?;
        let mut config = penstock_cache::Config::new(dir.join("cache"), 64 << 30);
        config.keep_pages = keep_pages;
        let cache = Cache::open(config, Arc::clone(&fetcher) as _, &mut metrics).await?;
        let layers = manifest.layers.into_iter().map(|layer| {
            let blob = layer.blob();
            fetcher.serve(blob, &manifest.reference);
            Layer { blob, media_type: layer.media_type, annotations: layer.annotations }
        });
        let (layers, maps): (Vec<Layer>, _) = (layers.collect(), dir.join("maps"));
        std::fs::create_dir_all(&maps)?;
        let source: Arc<dyn BlobSource> = Arc::clone(&cache) as _;
        // As the agent does: an open brings nothing along but what it asks for.
        let known: Vec<_> = layers.iter().filter_map(|layer| cache.follow(&layer.blob)).collect();
        let image = Arc::new(Image::open(layers, Arc::clone(&source), &maps).await?);
        // Reads are measured here; what an open costs is measured in `attach`.
        image.completed().await?;
        drop(known);
        Ok(Self { image, cache, fetcher, source })
    }

    async fn close(self) {
        self.cache.close().await;
        self.fetcher.stop().await;
    }
}

/// What a row is measured against.
struct Meter<'a> {
    packed: &'a Packed,
    disk: &'a File,
    /// Anonymous memory before the image was opened.
    memory_bytes: u64,
    cpu: Duration,
    began: Instant,
}

impl<'a> Meter<'a> {
    fn start(packed: &'a Packed, disk: &'a File, memory_bytes: u64) -> Self {
        packed.registry.reset_counts();
        Self { packed, disk, memory_bytes, cpu: usage::cpu_time(), began: Instant::now() }
    }

    /// The row of what was done since the start, `spent` of it on things that are not part of it.
    fn row(&self, name: &'static str, (read_bytes, readers): (u64, u64), durations: &Durations, spent: Spent) -> Row {
        let (elapsed, cpu) = (self.began.elapsed(), usage::cpu_time());
        let counts = self.packed.registry.counts();
        let latency = durations.sample();
        Row {
            name,
            read_bytes,
            readers,
            latency,
            total_bytes: latency.n * read_bytes,
            seconds: elapsed.saturating_sub(spent.wall).as_secs_f64(),
            requests: counts.requests,
            fetched_bytes: counts.bytes,
            cpu_seconds: cpu.saturating_sub(self.cpu).saturating_sub(spent.cpu).as_secs_f64(),
            memory_bytes: usage::anonymous_bytes().saturating_sub(self.memory_bytes),
        }
    }

    /// Compares what was read with the disk; the time it takes is not the row's.
    fn compare(&self, at: u64, found: &[u8], spent: &mut Spent) -> anyhow::Result<()> {
        let (began, cpu) = (Instant::now(), usage::cpu_time());
        same(self.disk, at, found)?;
        spent.wall += began.elapsed();
        spent.cpu += usage::cpu_time().saturating_sub(cpu);
        Ok(())
    }
}

/// Time spent on comparing.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    wall: Duration,
    cpu: Duration,
}

/// Measures every row, with `n` misses.
///
/// # Errors
/// When anything fails, and when a read answers other bytes than the disk's.
pub async fn run(packed: &Packed, dir: &Path, n: u64) -> anyhow::Result<Vec<Row>> {
    let disk = File::open(&packed.disk)?;
    let pages = pages(&disk)?;
    ensure!(pages.len() >= 1000, "the image holds only {} pages: use a larger --size-mib", pages.len());
    let mut rows = vec![disk_row(packed, &disk, &pages, n * HITS_PER_MISS)?];

    let memory_bytes = usage::anonymous_bytes();
    let warm = Stack::open(packed, &dir.join("warm"), false).await?;
    rows.push(in_order_row(&Meter::start(packed, &disk, memory_bytes), &warm).await?);
    warm.cache.settle().await;
    let few: Vec<u64> = pages.iter().copied().step_by(pages.len() / FEW).collect();
    for (name, places, size) in [
        ("hit", &pages, PAGE),
        ("hit", &pages, LARGE),
        ("hit, few places", &few, PAGE),
        ("hit, few places", &few, LARGE),
    ] {
        rows.push(hit_row(&Meter::start(packed, &disk, memory_bytes), &warm, places, (name, size, n * HITS_PER_MISS))?);
    }
    warm.close().await;
    let kept = Stack::open(packed, &dir.join("warm"), true).await?;
    // Has what was found at the start checked, and its pages read.
    in_order_row(&Meter::start(packed, &disk, memory_bytes), &kept).await?;
    for size in [PAGE, LARGE] {
        let meter = Meter::start(packed, &disk, memory_bytes);
        rows.push(hit_row(&meter, &kept, &pages, ("hit, pages kept", size, n * HITS_PER_MISS))?);
    }
    kept.close().await;

    rows.push(get_row(packed, &disk, n).await?);
    for name in ["miss", "together", "mixed"] {
        let memory_bytes = usage::anonymous_bytes();
        let cold = Stack::open(packed, &dir.join(name), false).await?;
        let meter = Meter::start(packed, &disk, memory_bytes);
        rows.push(match name {
            "miss" => miss_row(&meter, &cold, &pages, n).await?,
            "together" => together_row(&meter, &cold, &pages, n).await?,
            _ => mixed_row(&meter, &cold, &pages, n * MIXED_PER_MISS).await?,
        });
        cold.close().await;
    }
    Ok(rows)
}

/// Where the disk has data, page by page.
fn pages(disk: &File) -> anyhow::Result<Vec<u64>> {
    let (mut pages, mut at) = (Vec::new(), 0);
    while let Some(run) = disk.data_from(at)? {
        pages.extend((run.start().next_multiple_of(PAGE)..run.end()).step_by(4096));
        at = run.end();
    }
    Ok(pages)
}

/// The floor of a hit: the raw disk's file, in the page cache.
fn disk_row(packed: &Packed, disk: &File, pages: &[u64], n: u64) -> anyhow::Result<Row> {
    let meter = Meter::start(packed, disk, usage::anonymous_bytes());
    let mut random = fastrand::Rng::with_seed(SEED);
    let (mut durations, mut buf) = (Durations::new()?, [0; 4096]);
    for _ in 0..n {
        let at = pages[random.usize(..pages.len())];
        let began = Instant::now();
        disk.read_exact_at(&mut buf, at)?;
        durations.add(began.elapsed());
    }
    Ok(meter.row("disk file (floor of a hit)", (PAGE, 1), &durations, Spent::default()))
}

/// The whole device in order, nothing of it cached.
async fn in_order_row(meter: &Meter<'_>, stack: &Stack) -> anyhow::Result<Row> {
    let (mut durations, mut spent, mut at) = (Durations::new()?, Spent::default(), 0);
    while let Ok(range) = ByteRange::at(at, STEP) {
        if range.end() > stack.image.size_bytes() {
            break;
        }
        let began = Instant::now();
        let bytes = penstock_image::read(&stack.image, &stack.source, range).await?;
        durations.add(began.elapsed());
        meter.compare(at, &bytes, &mut spent)?;
        at = range.end();
    }
    Ok(meter.row("cold, in order", (STEP, 1), &durations, spent))
}

/// Reads of what is cached, on one thread, as a device's queue does them.
fn hit_row(
    meter: &Meter<'_>,
    stack: &Stack,
    pages: &[u64],
    (name, size, n): (&'static str, u64, u64),
) -> anyhow::Result<Row> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let (mut durations, mut spent) = (Durations::new()?, Spent::default());
    let (mut buf, mut scratch) = (vec![0; usize::try_from(size)?], Scratch::new());
    let last = stack.image.size_bytes() - size;
    for nth in 0..n {
        let at = pages[random.usize(..pages.len())].min(last);
        let began = Instant::now();
        let plan = stack.image.plan(ByteRange::at(at, size)?, &stack.source)?;
        ensure!(plan.is_local(), "bytes at {at} were read before and are not cached");
        plan.read_into(&mut buf, &mut scratch)?;
        drop(plan);
        durations.add(began.elapsed());
        // One in a hundred: comparing costs as much as reading.
        if nth % 100 == 0 {
            meter.compare(at, &buf, &mut spent)?;
        }
    }
    Ok(meter.row(name, (size, 1), &durations, spent))
}

/// The floor of a miss: one chunk of the layer with a bare GET over a kept connection.
async fn get_row(packed: &Packed, disk: &File, n: u64) -> anyhow::Result<Row> {
    let memory_bytes = usage::anonymous_bytes();
    let (client, chunk) = (pull::client()?, u64::from(ChunkSize::DEFAULT.bytes()));
    let url = format!("http://{}/v2/{LAZY}/blobs/{}", packed.registry.host(), packed.layer.digest);
    client.head(&url).send().await?.error_for_status()?;
    let meter = Meter::start(packed, disk, memory_bytes);
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut durations = Durations::new()?;
    for _ in 0..n {
        let start = random.u64(..packed.layer.size_bytes / chunk) * chunk;
        let began = Instant::now();
        let range = format!("bytes={start}-{}", start + chunk - 1);
        let bytes = client.get(&url).header("range", range).send().await?.bytes().await?;
        durations.add(began.elapsed());
        ensure!(bytes.len() as u64 == chunk, "the registry sent {} bytes", bytes.len());
    }
    Ok(meter.row("bare GET (floor of a miss)", (chunk, 1), &durations, Spent::default()))
}

/// Reads of pages that are not cached, one after the other.
async fn miss_row(meter: &Meter<'_>, stack: &Stack, pages: &[u64], n: u64) -> anyhow::Result<Row> {
    let (mut durations, mut spent) = (Durations::new()?, Spent::default());
    let mut pages = pages.to_vec();
    fastrand::Rng::with_seed(SEED).shuffle(&mut pages);
    let mut missed = 0;
    for at in pages {
        let range = ByteRange::at(at, PAGE)?;
        if missed == n {
            break;
        }
        if stack.image.plan(range, &stack.source)?.is_local() {
            continue;
        }
        let began = Instant::now();
        let bytes = penstock_image::read(&stack.image, &stack.source, range).await?;
        durations.add(began.elapsed());
        meter.compare(at, &bytes, &mut spent)?;
        missed += 1;
    }
    Ok(meter.row("miss", (PAGE, 1), &durations, spent))
}

/// As [`miss_row`], several at once.
async fn together_row(meter: &Meter<'_>, stack: &Stack, pages: &[u64], n: u64) -> anyhow::Result<Row> {
    let mut shuffled = pages.to_vec();
    fastrand::Rng::with_seed(SEED).shuffle(&mut shuffled);
    shuffled.truncate(usize::try_from(n)?);
    let reads = shuffled.into_iter().map(|at| async move {
        let began = Instant::now();
        let bytes = penstock_image::read(&stack.image, &stack.source, ByteRange::at(at, PAGE)?).await?;
        let took = began.elapsed();
        same(meter.disk, at, &bytes)?;
        anyhow::Ok(took)
    });
    let took: Vec<Duration> = stream::iter(reads).buffer_unordered(AT_ONCE).try_collect().await?;
    let mut durations = Durations::new()?;
    took.into_iter().for_each(|took| durations.add(took));
    Ok(meter.row("miss", (PAGE, AT_ONCE as u64), &durations, Spent::default()))
}

/// Several readers; nine reads in ten go to a tenth of the pages. Cold at first.
async fn mixed_row(meter: &Meter<'_>, stack: &Stack, pages: &[u64], n: u64) -> anyhow::Result<Row> {
    let mut shuffled = pages.to_vec();
    fastrand::Rng::with_seed(SEED).shuffle(&mut shuffled);
    let pages: Arc<[u64]> = shuffled.into();
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        let (image, source) = (Arc::clone(&stack.image), Arc::clone(&stack.source));
        let (pages, disk) = (Arc::clone(&pages), meter.disk.try_clone()?);
        readers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(SEED + reader);
            let mut durations = Durations::new()?;
            for _ in 0..n / READERS {
                let among = if random.u32(..10) < 9 { pages.len() / HOT } else { pages.len() };
                let at = pages[random.usize(..among)];
                let began = Instant::now();
                let bytes = penstock_image::read(&image, &source, ByteRange::at(at, PAGE)?).await?;
                durations.add(began.elapsed());
                // Part of the row's total time here: readers overlap. It is a page from the page cache.
                same(&disk, at, &bytes)?;
            }
            anyhow::Ok(durations)
        });
    }
    let mut durations = Durations::new()?;
    while let Some(reader) = readers.join_next().await {
        durations.join(&reader.context("a reader ended abnormally")??)?;
    }
    Ok(meter.row("mixed, 90% to a hot 10%", (PAGE, READERS), &durations, Spent::default()))
}

fn same(disk: &File, at: u64, found: &[u8]) -> anyhow::Result<()> {
    let mut expected = vec![0; found.len()];
    disk.read_exact_at(&mut expected, at)?;
    ensure!(found == expected, "WRONG BYTES: {} bytes at {at} of the device differ from the disk", found.len());
    Ok(())
}

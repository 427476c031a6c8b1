//! Opening images of very different sizes through cache and fetcher: what an attach waits for beyond the manifest.
//!
//! SMALL is an image of 100 MB. EXTENTS is a disk of 64 GiB with 65 536 extents that cannot be joined. FRAMES is a disk of 50 GiB, full, in frames of 4 KiB: 13 million
//! of them, a jump table of 50 MiB. All are written by [`penstock_image::write`]. Each open begins with an empty cache and no maps; what the layers' tables
//! need beyond it comes in the background, and is told apart. Then one page of the device's start, and one of its middle, is read and compared.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use penstock_agent::output::{Table, size};
use penstock_blob::{Blob, BlobSource, ByteRange};
use penstock_cache::Cache;
use penstock_fetcher::{Fetcher, Platform, Reference};
use penstock_image::{
    Image, Layer,
    write::{self, LayerWriter, Options},
};
use penstock_registry::{Artifact, Registry};
use serde::Serialize;

use crate::{
    pack::{self, Link, TAG},
    report::{Measured, time},
    sample::{Durations, Sample},
    usage,
};

/// Bytes of a page: of one extent of EXTENTS, and of one frame.
const PAGE: u64 = 4096;
/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Pages written at once.
const BATCH: u64 = 2048;
/// The repository of each image begins so.
const REPOSITORY: &str = "bench/attach";

/// A disk to be attached: `extents` runs of `pages` pages each, one every `stride` pages.
#[derive(Debug, Clone, Copy)]
struct Shape {
    name: &'static str,
    extents: u64,
    pages: u64,
    stride: u64,
    /// Bytes of each page that do not compress.
    noisy: u64,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "SMALL (100 MB)", extents: 1, pages: 25_000, stride: 25_000, noisy: 2000 },
    Shape { name: "EXTENTS (64 GiB, 65 536 extents)", extents: 65_536, pages: 1, stride: 256, noisy: 2000 },
    Shape { name: "FRAMES (50 GiB, 13 million frames)", extents: 1, pages: 13_107_200, stride: 13_107_200, noisy: 0 },
];

impl Shape {
    const fn device_bytes(self) -> u64 {
        self.extents * self.stride * PAGE
    }

    /// The first byte of the extent in the middle, or of the page in the middle of the only one.
    const fn middle(self) -> u64 {
        (self.extents / 2 * self.stride + self.pages / 2) * PAGE
    }
}

/// Page `nth` of a disk: text, its number, and some bytes that do not compress, so many that frames differ in length.
fn page(nth: u64, noisy: u64, out: &mut [u8]) {
    out.fill(b'.');
    out[..8].copy_from_slice(&nth.to_le_bytes());
    let noisy = usize::try_from(noisy + nth % 16).unwrap_or(0);
    let mut state = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in &mut out[8..8 + noisy] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[3];
    }
}

/// What one image cost.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Which image.
    pub name: &'static str,
    /// Size of its blob in bytes.
    pub blob_bytes: u64,
    /// From the beginning until the image was open.
    pub opened: Sample,
    /// Requests that the registry answered until then, on average.
    pub requests: u64,
    /// Body bytes that it sent until then, on average.
    pub fetched_bytes: u64,
    /// From the beginning until a page of the device's start was read.
    pub first_page: Sample,
    /// From the beginning until a page of its middle was read, too.
    pub middle_page: Sample,
    /// From the beginning until its tables were whole and kept.
    pub completed: Sample,
    /// Body bytes that the registry sent until then, on average.
    pub completed_bytes: u64,
    /// Most anonymous memory seen when it was open, beyond that before, in bytes; with the registry's share.
    pub memory_bytes: u64,
    /// The same once its tables were whole, with what all the bytes that went by have left with the allocator.
    pub completed_memory_bytes: u64,
}

impl Measured for Vec<Row> {
    const NAME: &'static str = "attach";

    fn tables(&self) -> String {
        let titles = [
            "IMAGE",
            ">BLOB",
            ">N",
            ">OPEN MEDIAN",
            ">P99",
            ">REQUESTS",
            ">FETCHED",
            ">MEMORY",
            ">FIRST PAGE",
            ">MIDDLE PAGE",
            ">COMPLETE",
            ">FETCHED",
            ">MEMORY",
        ];
        let mut table = Table::new(&titles);
        for row in self {
            table.row([
                row.name.to_owned(),
                size(row.blob_bytes),
                row.opened.n.to_string(),
                time(row.opened.median_seconds),
                time(row.opened.p99_seconds),
                row.requests.to_string(),
                size(row.fetched_bytes),
                size(row.memory_bytes),
                time(row.first_page.median_seconds),
                time(row.middle_page.median_seconds),
                time(row.completed.median_seconds),
                size(row.completed_bytes),
                size(row.completed_memory_bytes),
            ]);
        }
        table.to_string()
    }
}

/// Writes the images into `dir`, and opens each `n` times over `link`, in turns.
///
/// # Errors
/// When anything fails, and when a page read is not what was written.
pub async fn run(dir: &Path, link: Link, n: u64) -> anyhow::Result<Vec<Row>> {
    let registry = Registry::start(pack::over(link)).await.context("the registry cannot listen on loopback")?;
    let mut sides = Vec::new();
    for (nth, shape) in SHAPES.into_iter().enumerate() {
        sides.push(Side::make(&registry, dir.join(format!("layer{nth}")), shape, nth).await?);
    }
    for _ in 0..n {
        for side in &mut sides {
            let place = tempfile::tempdir_in(dir)?;
            side.open_once(&registry, place.path()).await?;
            place.close()?;
        }
    }
    registry.stop().await;
    Ok(sides.iter().map(Side::row).collect())
}

/// One image while it is measured.
#[derive(Debug)]
struct Side {
    shape: Shape,
    blob: Blob,
    reference: Reference,
    opened: Durations,
    first: Durations,
    middle: Durations,
    completed: Durations,
    completed_bytes: u64,
    requests: u64,
    fetched_bytes: u64,
    memory_bytes: u64,
    completed_memory_bytes: u64,
}

impl Side {
    async fn make(registry: &Registry, path: PathBuf, shape: Shape, nth: usize) -> anyhow::Result<Self> {
        let written = tokio::task::spawn_blocking(move || write(&path, shape).map(|written| (path, written)));
        let (path, written) = written.await??;
        let blob = registry.put_file(&path).await?;
        ensure!(blob == written.blob, "the layer changed after it was written");
        let layer =
            penstock_registry::Layer { blob, media_type: write::MEDIA_TYPE.into(), annotations: written.annotations };
        let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } });
        let image = Artifact { config: config.to_string().into(), layers: vec![layer], ..Artifact::default() };
        let repository = format!("{REPOSITORY}{nth}");
        registry.put_image(&repository, TAG, image)?;
        Ok(Self {
            shape,
            blob,
            reference: format!("{}/{repository}:{TAG}", registry.host()).parse()?,
            opened: Durations::new()?,
            first: Durations::new()?,
            middle: Durations::new()?,
            completed: Durations::new()?,
            completed_bytes: 0,
            requests: 0,
            fetched_bytes: 0,
            memory_bytes: 0,
            completed_memory_bytes: 0,
        })
    }

    async fn open_once(&mut self, registry: &Registry, dir: &Path) -> anyhow::Result<()> {
        let mut metrics = prometheus_client::registry::Registry::default();
        let fetcher = Fetcher::new(penstock_fetcher::Config::default(), &mut metrics)?;
        let manifest = fetcher.resolve(&self.reference, &Platform::host()).await?;
        let config = penstock_cache::Config::new(dir.join("cache"), 64 << 30);
        let cache = Cache::open(config, Arc::clone(&fetcher) as _, &mut metrics).await?;
        let source: Arc<dyn BlobSource> = Arc::clone(&cache) as _;
        fetcher.serve(self.blob, &manifest.reference);
        let layers = manifest.layers.into_iter();
        let layers = layers.map(|layer| Layer {
            blob: layer.blob(),
            media_type: layer.media_type,
            annotations: layer.annotations,
        });
        let layers = layers.collect();
        let before = usage::anonymous_bytes();
        registry.reset_counts();
        let began = Instant::now();
        // As the agent does.
        let known = cache.follow(&self.blob);
        let image = Image::open(layers, Arc::clone(&source), &dir.join("maps")).await?;
        drop(known);
        self.opened.add(began.elapsed());
        let counts = registry.counts();
        (self.requests, self.fetched_bytes) = (self.requests + counts.requests, self.fetched_bytes + counts.bytes);
        let grown = || usage::anonymous_bytes().saturating_sub(before);
        self.memory_bytes = self.memory_bytes.max(grown());
        self.read(&image, &source, 0).await?;
        self.first.add(began.elapsed());
        self.read(&image, &source, self.shape.middle()).await?;
        self.middle.add(began.elapsed());
        image.completed().await?;
        self.completed.add(began.elapsed());
        self.completed_bytes += registry.counts().bytes;
        // As the agent does some seconds later.
        penstock_device::trim_heaps();
        self.completed_memory_bytes = self.completed_memory_bytes.max(grown());
        drop(image);
        cache.close().await;
        fetcher.stop().await;
        Ok(())
    }

    /// Reads a page of the device and compares it.
    async fn read(&self, image: &Image, source: &Arc<dyn BlobSource>, at: u64) -> anyhow::Result<()> {
        let found = penstock_image::read(image, source, ByteRange::at(at, PAGE)?).await?;
        let mut expected = vec![0; found.len()];
        page(at / PAGE, self.shape.noisy, &mut expected);
        ensure!(found == expected, "WRONG BYTES: a page at byte {at} of {}", self.shape.name);
        Ok(())
    }

    fn row(&self) -> Row {
        let opened = self.opened.sample();
        let n = opened.n.max(1);
        Row {
            name: self.shape.name,
            blob_bytes: self.blob.size_bytes,
            opened,
            requests: self.requests / n,
            fetched_bytes: self.fetched_bytes / n,
            first_page: self.first.sample(),
            middle_page: self.middle.sample(),
            completed: self.completed.sample(),
            completed_bytes: self.completed_bytes / n,
            memory_bytes: self.memory_bytes,
            completed_memory_bytes: self.completed_memory_bytes,
        }
    }
}

/// Writes the layer of a disk.
fn write(path: &Path, shape: Shape) -> anyhow::Result<write::Written> {
    let out = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    let options = Options { device_bytes: Some(shape.device_bytes()), ..Options::default() };
    let mut writer = LayerWriter::new(out, options)?;
    let mut buffer = Vec::new();
    for extent in 0..shape.extents {
        let (mut at, end) = (extent * shape.stride, extent * shape.stride + shape.pages);
        while at < end {
            let count = BATCH.min(end - at);
            buffer.resize(usize::try_from(count * PAGE)?, 0);
            buffer
                .chunks_exact_mut(usize::try_from(PAGE)?)
                .zip(at..)
                .for_each(|(out, nth)| page(nth, shape.noisy, out));
            writer.data(at * PAGE / SECTOR, &buffer)?;
            at += count;
        }
    }
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_of_every_part_are_read_and_compared() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::start(penstock_registry::Config::default()).await.unwrap();
        for (nth, shape) in
            [(0, Shape { extents: 1, pages: 300, stride: 300, ..SHAPES[0] }), (1, Shape { extents: 40, ..SHAPES[1] })]
        {
            let mut side = Side::make(&registry, dir.path().join(format!("layer{nth}")), shape, nth).await.unwrap();
            side.open_once(&registry, &dir.path().join(format!("place{nth}"))).await.unwrap();
            let row = side.row();
            assert!(row.opened.n == 1 && row.requests > 0 && row.fetched_bytes > 0, "{row:?}");
        }
        registry.stop().await;
    }
}

//! A thousand devices on one agent: what an attach costs while there are more and more of them, and what all of them hold.
//!
//! Each is an image of its own, of two layers, the lower of which all have: as containers of images on one base. Attached a few at a time over FUSE, without a mount; then a page
//! of each is read through the kernel and compared, and all are detached.

use std::{
    fs::File,
    io::Cursor,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_agent::{
    Agent, Config,
    client::Client,
    output::{Table, size},
};
use penstock_image::write::{self, LayerWriter, Options};
use penstock_registry::{Artifact, Layer, Registry};
use serde::{Deserialize, Serialize};

use crate::{
    pack::{self, Link, TAG},
    report::{Measured, time},
    sample::{Durations, Sample},
    usage,
};

/// Devices that are attached when nobody says how many.
pub const DEVICES: u64 = 1000;
/// Attaches under way at once.
const AT_ONCE: usize = 8;
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Pages of the base: 64 MiB.
const BASE_PAGES: u64 = 16_384;

/// What a number of devices costs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Row {
    /// Devices attached.
    pub devices: u64,
    /// How long one attach took.
    pub attach: Sample,
    /// How long the first read of a page of each took.
    pub first_page: Sample,
    /// How long one detach took.
    pub detach: Sample,
    /// Anonymous memory beyond that before the first attach, in bytes; with the registry's share.
    pub memory_bytes: u64,
    /// Open files beyond those before.
    pub files: u64,
    /// Threads beyond those before.
    pub threads: u64,
    /// Requests that the registry answered.
    pub requests: u64,
    /// Body bytes that it sent.
    pub fetched_bytes: u64,
}

impl Measured for Row {
    const NAME: &'static str = "many";

    fn tables(&self) -> String {
        let titles = [
            ">DEVICES",
            ">ATTACH MEDIAN",
            ">P99",
            ">LONGEST",
            ">FIRST PAGE P99",
            ">DETACH P99",
            ">MEMORY",
            ">FILES",
            ">THREADS",
            ">REQUESTS",
            ">FETCHED",
        ];
        let mut table = Table::new(&titles);
        table.row([
            self.devices.to_string(),
            time(self.attach.median_seconds),
            time(self.attach.p99_seconds),
            time(self.attach.max_seconds),
            time(self.first_page.p99_seconds),
            time(self.detach.p99_seconds),
            size(self.memory_bytes),
            self.files.to_string(),
            self.threads.to_string(),
            self.requests.to_string(),
            size(self.fetched_bytes),
        ]);
        table.to_string()
    }
}

/// What is in a page of image `nth`: a page of the base, unless it is the last.
fn page(nth: u64, at: u64) -> [u8; 4096] {
    let mut bytes = [b'.'; 4096];
    let value = if at == BASE_PAGES - 1 { nth } else { at };
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes
}

/// Attaches `devices` images over `link`.
///
/// # Errors
/// When anything fails, and when a page read is not what was written.
pub async fn run(dir: &Path, link: Link, devices: u64) -> anyhow::Result<Row> {
    let registry = Registry::start(pack::over(link)).await.context("the registry cannot listen on loopback")?;
    let references = push(&registry, devices)?;
    let agent = Agent::start(Config::in_dir(dir)).await?;
    let client = Client::new(agent.socket().to_owned());
    let measured = measure(&registry, &client, references).await;
    // Whatever happened, nothing stays attached.
    agent.stop_for_good().await?;
    registry.stop().await;
    measured
}

/// Puts the images into the registry; answers their references.
fn push(registry: &Registry, devices: u64) -> anyhow::Result<Vec<String>> {
    let layer = |pages: &mut dyn Iterator<Item = u64>, nth: u64| -> anyhow::Result<Layer> {
        let mut out = Cursor::new(Vec::new());
        let options = Options { device_bytes: Some(BASE_PAGES * PAGE), threads: 1, ..Options::default() };
        let mut writer = LayerWriter::new(&mut out, options)?;
        for at in pages {
            writer.data(at * PAGE / 512, &page(nth, at))?;
        }
        let annotations = writer.finish()?.annotations;
        let blob = registry.put_blob(out.into_inner());
        Ok(Layer { blob, media_type: write::MEDIA_TYPE.into(), annotations })
    };
    let base = layer(&mut (0..BASE_PAGES), u64::MAX)?;
    let config =
        serde_json::json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } });
    let image = |nth: u64| {
        let repository = format!("bench/many{nth}");
        let upper = layer(&mut std::iter::once(BASE_PAGES - 1), nth)?;
        let layers = vec![base.clone(), upper];
        let image = Artifact { config: config.to_string().into(), layers, ..Artifact::default() };
        registry.put_image(&repository, TAG, image)?;
        Ok(format!("{}/{repository}:{TAG}", registry.host()))
    };
    (0..devices).map(image).collect()
}

/// Entries of a directory of this process.
fn count(of: &str) -> anyhow::Result<u64> {
    Ok(std::fs::read_dir(Path::new("/proc/self").join(of))?.count() as u64)
}

async fn measure(registry: &Registry, client: &Client, references: Vec<String>) -> anyhow::Result<Row> {
    let (memory, files, threads) = (usage::anonymous_bytes(), count("fd")?, count("task")?);
    registry.reset_counts();
    let attach = |reference: String| async move {
        let request = serde_json::from_value(serde_json::json!({ "reference": reference }))?;
        let began = Instant::now();
        let device = client.attach(&request).await?;
        let path = device.device_path.context("an attached device has a path")?;
        anyhow::Ok((began.elapsed(), device.id, path))
    };
    let attaching: Vec<_> = references.into_iter().map(attach).collect();
    let attached: Vec<(Duration, String, PathBuf)> = stream::iter(attaching).buffered(AT_ONCE).try_collect().await?;
    let (mut attach, mut first_page, mut detach) = (Durations::new()?, Durations::new()?, Durations::new()?);
    attached.iter().for_each(|(duration, ..)| attach.add(*duration));
    for (nth, (_, _, path)) in (0..).zip(&attached) {
        first_page.add(read(nth, path.clone()).await?);
    }
    let held = usage::anonymous_bytes().saturating_sub(memory);
    let (files, threads) = (count("fd")?.saturating_sub(files), count("task")?.saturating_sub(threads));
    let counts = registry.counts();
    for (_, id, _) in &attached {
        let began = Instant::now();
        client.detach(id, false).await?;
        detach.add(began.elapsed());
    }
    Ok(Row {
        devices: attached.len() as u64,
        attach: attach.sample(),
        first_page: first_page.sample(),
        detach: detach.sample(),
        memory_bytes: held,
        files,
        threads,
        requests: counts.requests,
        fetched_bytes: counts.bytes,
    })
}

/// Reads the page of an image that no other has, through the kernel.
async fn read(nth: u64, path: PathBuf) -> anyhow::Result<Duration> {
    // The device is served by this process: never on a thread that serves it.
    let reading = tokio::task::spawn_blocking(move || {
        let mut found = [0; 4096];
        let began = Instant::now();
        File::open(&path)?.read_exact_at(&mut found, (BASE_PAGES - 1) * PAGE)?;
        let took = began.elapsed();
        ensure!(found == page(nth, BASE_PAGES - 1), "WRONG BYTES: the last page of {}", path.display());
        Ok(took)
    });
    reading.await.context("the reading thread ended abnormally")?
}

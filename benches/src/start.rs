//! Getting at an image's files: a full pull against an agent, over the same link, in the same run.
//!
//! FULL PULL downloads and unpacks the ordinary image, then reads. PENSTOCK attaches the OverlayBD image of the same files through an agent whose cache is
//! empty, mounts it, and reads through the kernel. AGAIN detaches, attaches anew and reads once more. RECORDED is as PENSTOCK, by another agent that has the
//! recording of the first one's start and nothing else. WHOLE FIRST fetches all of the same image in parallel, then reads: the parallel full pull that reading
//! on demand must not lose to. Agents run before the clock starts, as on a node; so does the full pull's HTTP client.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_agent::{
    Agent, Config,
    client::Client,
    output::{Table, size},
};
use penstock_blob::{Blob, BlobSource as _, ByteRange, Purpose};
use penstock_cache::Cache;
use serde::Serialize;

use crate::{
    pack::{LAZY, Packed},
    pull,
    report::{Measured, time},
    sample::{Durations, Sample},
};

/// What is read, as shares of the image's bytes. 6.4 % is what containers read to start, over 57 images (Harter et al., "Slacker", FAST '16); nearly all and
/// all of it are the cases against reading on demand.
const SHARES: [f64; 3] = [0.064, 0.9, 1.0];
/// Reads of WHOLE FIRST at once, and the bytes of each: more than the link holds.
const PULLS_AT_ONCE: usize = 8;
const PULL_BYTES: u64 = 4 << 20;

/// One side of one comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The share of the image's bytes that is read.
    pub share: f64,
    /// Files read.
    pub files: usize,
    /// Their bytes.
    pub read_bytes: u64,
    /// The side.
    pub side: &'static str,
    /// From the beginning until files can be opened.
    pub ready: Sample,
    /// From the beginning until the last byte was read.
    pub all_read: Sample,
    /// Requests that the registry answered, on average of the starts.
    pub requests: u64,
    /// Body bytes that it sent, on average of the starts.
    pub fetched_bytes: u64,
}

impl Measured for Vec<Row> {
    const NAME: &'static str = "start";

    fn tables(&self) -> String {
        let titles = [
            "START",
            ">FILES",
            ">READ",
            ">N",
            ">READY MEDIAN",
            ">READY P99",
            ">ALL READ MEDIAN",
            ">ALL READ P99",
            ">REQUESTS",
            ">FETCHED",
        ];
        let mut table = Table::new(&titles);
        for row in self {
            table.row([
                format!("{} ({:.1}% of bytes read)", row.side, row.share * 100.0),
                row.files.to_string(),
                size(row.read_bytes),
                row.ready.n.to_string(),
                time(row.ready.median_seconds),
                time(row.ready.p99_seconds),
                time(row.all_read.median_seconds),
                time(row.all_read.p99_seconds),
                row.requests.to_string(),
                size(row.fetched_bytes),
            ]);
        }
        table.to_string()
    }
}

/// A side while it is measured.
#[derive(Debug)]
struct Side {
    name: &'static str,
    ready: Durations,
    all_read: Durations,
    requests: u64,
    fetched_bytes: u64,
}

/// One start.
#[derive(Debug, Clone, Copy)]
struct Start {
    ready: Duration,
    all_read: Duration,
}

impl Side {
    fn new(name: &'static str) -> anyhow::Result<Self> {
        Ok(Self { name, ready: Durations::new()?, all_read: Durations::new()?, requests: 0, fetched_bytes: 0 })
    }

    fn add(&mut self, start: Start, packed: &Packed) {
        let counts = packed.registry.counts();
        self.ready.add(start.ready);
        self.all_read.add(start.all_read);
        self.requests += counts.requests;
        self.fetched_bytes += counts.bytes;
    }

    fn row(&self, set: &Set) -> Row {
        let (ready, all_read) = (self.ready.sample(), self.all_read.sample());
        let n = ready.n.max(1);
        Row {
            share: set.share,
            files: set.files.len(),
            read_bytes: set.bytes,
            side: self.name,
            ready,
            all_read,
            requests: self.requests / n,
            fetched_bytes: self.fetched_bytes / n,
        }
    }
}

/// Files to be read.
#[derive(Debug, Clone)]
pub(crate) struct Set {
    share: f64,
    files: Vec<PathBuf>,
    bytes: u64,
}

impl Set {
    /// Files drawn at random, the same in each run, of that share of the image's bytes.
    pub(crate) fn of(packed: &Packed, share: f64) -> anyhow::Result<Self> {
        let files = packed.tree.working_set(share);
        let len = |file: &PathBuf| Ok(packed.tree.root.join(file).metadata()?.len());
        let bytes = files.iter().map(len).sum::<anyhow::Result<_>>()?;
        Ok(Self { share, files, bytes })
    }
}

/// Why nothing that is mounted can be measured here; `None` when it can.
#[must_use]
pub fn obstacle() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting an image needs root; run `sudo make bench`");
    }
    if !Path::new("/dev/fuse").exists() && !Path::new("/dev/ublk-control").exists() {
        return Some("there is neither /dev/fuse nor /dev/ublk-control; run `modprobe fuse`");
    }
    None
}

/// Measures every side of every share, with `n` starts each, in turns.
///
/// # Errors
/// When anything fails, and when a file read differs from the original.
pub async fn run(packed: &Packed, dir: &Path, n: u64) -> anyhow::Result<Vec<Row>> {
    let client = pull::client()?;
    let mut rows = Vec::new();
    for share in SHARES {
        let set = Set::of(packed, share)?;
        let mut sides = [
            Side::new("FULL PULL")?,
            Side::new("WHOLE FIRST")?,
            Side::new("PENSTOCK")?,
            Side::new("AGAIN")?,
            Side::new("RECORDED")?,
        ];
        for _ in 0..n {
            let [full, whole, lazy, again, recorded] = &mut sides;
            let place = tempfile::tempdir_in(dir)?;
            full_pull(packed, &client, place.path(), &set, full).await?;
            place.close()?;
            let place = tempfile::tempdir_in(dir)?;
            whole_first(packed, place.path(), &set, whole).await?;
            place.close()?;
            let place = tempfile::tempdir_in(dir)?;
            on_demand(packed, place.path(), &set, &mut [lazy, again]).await?;
            let other = tempfile::tempdir_in(dir)?;
            hand_over(place.path(), other.path())?;
            place.close()?;
            on_demand(packed, other.path(), &set, &mut [recorded]).await?;
            other.close()?;
        }
        rows.extend(sides.iter().map(|side| side.row(&set)));
    }
    Ok(rows)
}

async fn full_pull(
    packed: &Packed,
    client: &reqwest::Client,
    dir: &Path,
    set: &Set,
    side: &mut Side,
) -> anyhow::Result<()> {
    packed.registry.reset_counts();
    let began = Instant::now();
    let rootfs = pull::pull(packed, client, dir).await?;
    let ready = began.elapsed();
    read(&rootfs, set).await?;
    side.add(Start { ready, all_read: began.elapsed() }, packed);
    compare(packed, &rootfs, set).await
}

/// Gives the node at `to` the recordings of the one at `from`.
pub(crate) fn hand_over(from: &Path, to: &Path) -> anyhow::Result<()> {
    let (from, to) = (from.join("state/recordings"), to.join("state/recordings"));
    std::fs::create_dir_all(&to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    ensure!(std::fs::read_dir(&to)?.next().is_some(), "no start was recorded");
    Ok(())
}

/// Attaches, fetches the whole layer, reads.
async fn whole_first(packed: &Packed, dir: &Path, set: &Set, side: &mut Side) -> anyhow::Result<()> {
    let agent = Agent::start(Config { recordings_fills: 0, ..Config::in_dir(dir) }).await?;
    let client = Client::new(agent.socket().to_owned());
    let root = dir.join("mounted");
    std::fs::create_dir(&root)?;
    let cache = Arc::clone(agent.cache());
    let measured = attach_and_read(packed, &client, (&root, set), (side, Some(&cache))).await;
    agent.stop_for_good().await?;
    measured
}

async fn pull_whole(cache: &Arc<Cache>, blob: Blob) -> anyhow::Result<()> {
    let starts = (0..blob.size_bytes.div_ceil(PULL_BYTES)).map(|nth| nth * PULL_BYTES);
    let reads: Vec<_> = starts
        .map(|start| {
            let cache = Arc::clone(cache);
            async move {
                let range = ByteRange::new(start, blob.size_bytes.min(start + PULL_BYTES))?;
                cache.read(blob, range, Purpose::Demand).await?;
                anyhow::Ok(())
            }
        })
        .collect();
    stream::iter(reads).buffer_unordered(PULLS_AT_ONCE).try_collect().await
}

async fn on_demand(packed: &Packed, dir: &Path, set: &Set, sides: &mut [&mut Side]) -> anyhow::Result<()> {
    let agent = Agent::start(Config::in_dir(dir)).await?;
    let client = Client::new(agent.socket().to_owned());
    let root = dir.join("mounted");
    std::fs::create_dir(&root)?;
    let mut measured = Ok(());
    for side in sides {
        measured = attach_and_read(packed, &client, (&root, set), (side, None)).await;
        if measured.is_err() {
            break;
        }
    }
    // Whatever happened, nothing stays mounted.
    agent.stop_for_good().await?;
    measured
}

async fn attach_and_read(
    packed: &Packed,
    client: &Client,
    (root, set): (&Path, &Set),
    (side, whole_from): (&mut Side, Option<&Arc<Cache>>),
) -> anyhow::Result<()> {
    let request = serde_json::json!({ "reference": packed.reference(LAZY), "mount": root });
    let request = serde_json::from_value(request)?;
    packed.registry.reset_counts();
    let began = Instant::now();
    let device = client.attach(&request).await?;
    if let Some(cache) = whole_from {
        pull_whole(cache, packed.layer).await?;
    }
    let ready = began.elapsed();
    read(root, set).await?;
    side.add(Start { ready, all_read: began.elapsed() }, packed);
    compare(packed, root, set).await?;
    Ok(client.detach(&device.id, false).await?)
}

/// Reads all files of the set, in order, one after the other.
pub(crate) async fn read(root: &Path, set: &Set) -> anyhow::Result<()> {
    let (root, set) = (root.to_owned(), set.clone());
    // The device is served by this process: never on a thread that serves it.
    let read = tokio::task::spawn_blocking(move || {
        let (mut buf, mut bytes) = (vec![0; 128 << 10], 0);
        for path in &set.files {
            let path = root.join(path);
            let mut file = File::open(&path).with_context(|| format!("{} cannot be opened", path.display()))?;
            loop {
                match file.read(&mut buf).with_context(|| format!("{} cannot be read", path.display()))? {
                    0 => break,
                    len => bytes += len as u64,
                }
            }
        }
        ensure!(bytes == set.bytes, "{bytes} bytes were read of {}", set.bytes);
        Ok(())
    });
    read.await.context("the reading thread ended abnormally")?
}

/// Compares the files with the originals; not timed.
async fn compare(packed: &Packed, root: &Path, set: &Set) -> anyhow::Result<()> {
    let (original, root, set) = (packed.tree.root.clone(), root.to_owned(), set.clone());
    let compared = tokio::task::spawn_blocking(move || {
        for path in &set.files {
            let alike = std::fs::read(root.join(path))? == std::fs::read(original.join(path))?;
            ensure!(alike, "WRONG BYTES: {} differs from the original", path.display());
        }
        Ok(())
    });
    compared.await.context("the comparing thread ended abnormally")?
}

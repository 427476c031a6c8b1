//! Cold starts of one program: how near they come to the floor, which is a few round trips, the bytes that the program touches, and its own run.
//!
//! An agent with an empty cache attaches the image and mounts it; the program runs in it (`chroot`) to its end. Once it has ended it runs again, everything
//! in the page cache: that is its own time. Then the image is attached anew, what was fetched is cached, and the program runs with the kernel's read-ahead off: what
//! it reads from the block device then is what it touches.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use penstock_agent::{
    Agent, Config,
    client::Client,
    output::{Table, size},
};
use penstock_registry::Registry;
use serde::Serialize;
use tokio::process::Command;

use crate::{
    containerd::image::{self, LAZY},
    pack::{self, Link, TAG},
    report::{Measured, time},
    sample::{Durations, Sample},
    start::hand_over,
};

/// What the program does.
const PROGRAM: [&str; 3] = ["/usr/bin/python3", "-c", "import json, ssl, http.client"];
/// Round trips that no start goes without: the manifest, two to open the image, the first data.
const ROUND_TRIPS: u32 = 4;
/// Bytes of a sector in a block device's statistics.
const SECTOR_BYTES: u64 = 512;

/// How a start goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// With the settings that the agent has when nothing is said.
    Usual,
    /// Without reading ahead.
    NoReadAhead,
    /// As usual, on a node that has the recording of another one's start and nothing else.
    Recorded,
}

impl Variant {
    /// The one that is recorded first.
    const ALL: [Self; 3] = [Self::Usual, Self::NoReadAhead, Self::Recorded];

    const fn name(self) -> &'static str {
        match self {
            Self::Usual => "no recording",
            Self::NoReadAhead => "no recording, read_ahead 0",
            Self::Recorded => "with a recording",
        }
    }

    fn config(self, dir: &Path) -> Config {
        let config = Config::in_dir(dir);
        match self {
            Self::Usual | Self::Recorded => config,
            Self::NoReadAhead => Config { cache_read_ahead_bytes: 0, ..config },
        }
    }
}

/// Starts of one variant.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The variant.
    pub variant: &'static str,
    /// From the attach to the end of the program.
    pub started: Sample,
    /// The program again, all of it in the page cache.
    pub warm: Sample,
    /// Requests that the registry answered, on average of the starts.
    pub requests: u64,
    /// Body bytes that it sent, on average of the starts.
    pub fetched_bytes: u64,
    /// Bytes of the device that the program reads when the kernel reads nothing ahead.
    pub touched_bytes: u64,
    /// The same as the registry holds them: by the ratio of the whole layer.
    pub touched_stored_bytes: u64,
    /// The least that a start can take over this link, in seconds.
    pub floor_seconds: f64,
}

impl Measured for Vec<Row> {
    const NAME: &'static str = "cold";

    fn tables(&self) -> String {
        let titles = [
            "COLD START",
            ">N",
            ">MEDIAN",
            ">P99",
            ">FLOOR",
            ">X FLOOR",
            ">WARM RUN",
            ">REQUESTS",
            ">FETCHED",
            ">TOUCHED",
            ">FETCHED/TOUCHED",
        ];
        let mut table = Table::new(&titles);
        for row in self {
            table.row([
                row.variant.to_owned(),
                row.started.n.to_string(),
                time(row.started.median_seconds),
                time(row.started.p99_seconds),
                time(row.floor_seconds),
                format!("{:.2}", row.started.median_seconds / row.floor_seconds),
                time(row.warm.median_seconds),
                row.requests.to_string(),
                size(row.fetched_bytes),
                size(row.touched_bytes),
                format!("{:.2}", row.fetched_bytes as f64 / row.touched_bytes as f64),
            ]);
        }
        table.to_string()
    }
}

/// A variant while it is measured.
#[derive(Debug)]
struct Side {
    variant: Variant,
    started: Durations,
    warm: Durations,
    requests: u64,
    fetched_bytes: u64,
    touched_bytes: u64,
}

impl Side {
    fn new(variant: Variant) -> anyhow::Result<Self> {
        let (started, warm) = (Durations::new()?, Durations::new()?);
        Ok(Self { variant, started, warm, requests: 0, fetched_bytes: 0, touched_bytes: 0 })
    }

    fn row(&self, link: Link, (stored, content): (u64, u64)) -> Row {
        let (started, warm) = (self.started.sample(), self.warm.sample());
        let n = started.n.max(1);
        let touched_bytes = self.touched_bytes / n;
        let touched_stored_bytes = touched_bytes.saturating_mul(stored) / content.max(1);
        let floor_seconds = f64::from(ROUND_TRIPS) * link.latency_seconds
            + touched_stored_bytes as f64 / link.bandwidth_bytes_per_second as f64
            + warm.median_seconds;
        Row {
            variant: self.variant.name(),
            started,
            warm,
            requests: self.requests / n,
            fetched_bytes: self.fetched_bytes / n,
            touched_bytes,
            touched_stored_bytes,
            floor_seconds,
        }
    }
}

/// Measures `n` starts of each variant, in turns, of an image with about `size_bytes` of files.
///
/// # Errors
/// When anything fails.
pub async fn run(dir: &Path, (size_bytes, link): (u64, Link), n: u64) -> anyhow::Result<Vec<Row>> {
    let registry = Registry::start(pack::over(link)).await.context("the registry cannot listen on loopback")?;
    let facts = image::make(&dir.join("cold"), size_bytes, &registry).await?;
    let mut sides = Variant::ALL.iter().map(|&variant| Side::new(variant)).collect::<anyhow::Result<Vec<_>>>()?;
    let other = dir.join("other");
    for _ in 0..n {
        for side in &mut sides {
            let place = tempfile::tempdir_in(dir)?;
            if side.variant == Variant::Recorded {
                hand_over(&other, place.path())?;
            }
            let agent = Agent::start(side.variant.config(place.path())).await?;
            let measured = start(&registry, &agent, place.path(), side).await;
            // Whatever happened, nothing stays mounted.
            agent.stop_for_good().await?;
            measured?;
            if side.variant == Variant::Usual {
                hand_over(place.path(), &other)?;
            }
            place.close()?;
        }
    }
    registry.stop().await;
    Ok(sides.iter().map(|side| side.row(link, (facts.lazy_bytes, facts.content_bytes))).collect())
}

async fn start(registry: &Registry, agent: &Agent, dir: &Path, side: &mut Side) -> anyhow::Result<()> {
    let client = Client::new(agent.socket().to_owned());
    let root = dir.join("mounted");
    fs::create_dir(&root)?;
    registry.reset_counts();
    let began = Instant::now();
    let device = attach(&registry.host(), &client, &root).await?;
    program(&root).await?;
    side.started.add(began.elapsed());
    let counts = registry.counts();
    side.requests += counts.requests;
    side.fetched_bytes += counts.bytes;
    side.warm.add(program(&root).await?);
    client.detach(&device, false).await?;

    let device = attach(&registry.host(), &client, &root).await?;
    let disk = block_device(&root)?;
    fs::write(disk.join("queue/read_ahead_kb"), "0").context("the kernel's read-ahead cannot be turned off")?;
    // A loop device counts from the start of the machine, whatever it showed before.
    let before = sectors_read(&disk)?;
    program(&root).await?;
    side.touched_bytes += sectors_read(&disk)?.saturating_sub(before) * SECTOR_BYTES;
    Ok(client.detach(&device, false).await?)
}

/// The image's reference at the registry `host`.
pub(crate) fn reference(host: &str) -> String {
    format!("{host}/{LAZY}:{TAG}")
}

/// Attaches and mounts the image of the registry `host`; answers the device.
pub(crate) async fn attach(host: &str, client: &Client, root: &Path) -> anyhow::Result<String> {
    let request = serde_json::json!({ "reference": reference(host), "mount": root });
    Ok(client.attach(&serde_json::from_value(request)?).await?.id)
}

/// Runs the program to its end.
pub(crate) async fn program(root: &Path) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut command = Command::new("chroot");
    let output = command.arg(root).args(PROGRAM).kill_on_drop(true).output().await.context("chroot cannot be run")?;
    ensure!(output.status.success(), "the program failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(began.elapsed())
}

/// The directory in /sys of the block device that is mounted there.
fn block_device(root: &Path) -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let root = root.to_str().context("the directory's name is no text")?;
    let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(root)).context("nothing is mounted")?;
    let number = line.split(' ').nth(2).context("mountinfo has no device number")?;
    Ok(fs::canonicalize(format!("/sys/dev/block/{number}"))?)
}

/// Sectors read from a block device so far.
fn sectors_read(disk: &Path) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(disk.join("stat"))?;
    Ok(stat.split_whitespace().nth(2).context("the device's statistics are short")?.parse()?)
}

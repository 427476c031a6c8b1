//! From the pull of an image to the first line that its program says: containerd with its own overlayfs snapshotter against containerd with Penstock's,
//! over the same link, from the same registry, in the same run.
//!
//! OVERLAYFS pulls the ordinary image, unpacks and runs it. PENSTOCK COLD pulls the OverlayBD image of the same files with an empty cache. PENSTOCK WARM
//! removes it and pulls it again: what was fetched is cached. containerd, the agent and the client run before the clock starts, as on a node. The pull is
//! kubelet's call; the container is started by `ctr run`, which prints what it says.

pub(crate) mod image;

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use penstock_agent::{
    Agent, Config,
    output::{Table, size},
};
use penstock_registry::Registry;
use penstock_tests::{
    containerd::{Containerd, Place, Release, Snapshotter},
    cri::Cri,
    skip,
};
use serde::Serialize;

pub use self::image::Facts;
use crate::{
    pack::{self, Link, TAG},
    report::{self, time},
    sample::{Durations, Sample},
};

/// Where containerd keeps what belongs to its clients.
const NAMESPACE: &str = "k8s.io";

/// The image, and all sides.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// containerd's version.
    pub containerd: String,
    /// The image.
    pub image: Facts,
    /// The sides.
    pub rows: Vec<Row>,
}

impl report::Measured for Measured {
    const NAME: &'static str = "containerd";

    fn tables(&self) -> String {
        let image = &self.image;
        let mut table = Table::new(&[
            "SIDE",
            ">N",
            ">PULLED MEDIAN",
            ">P99",
            ">FIRST OUTPUT MEDIAN",
            ">P99",
            ">REQUESTS",
            ">FETCHED",
        ]);
        for row in &self.rows {
            table.row([
                row.side.to_owned(),
                row.pulled.n.to_string(),
                time(row.pulled.median_seconds),
                time(row.pulled.p99_seconds),
                time(row.first_output.median_seconds),
                time(row.first_output.p99_seconds),
                row.requests.to_string(),
                size(row.fetched_bytes),
            ]);
        }
        format!(
            "containerd {}; image: {} entries of {}; OverlayBD layer {}, tar.gz layers {}\n\n{table}",
            self.containerd,
            image.entries,
            size(image.content_bytes),
            size(image.lazy_bytes),
            size(image.ordinary_bytes),
        )
    }
}

/// One side.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The side.
    pub side: &'static str,
    /// From the beginning until the image was pulled.
    pub pulled: Sample,
    /// From the beginning until the program said its first line.
    pub first_output: Sample,
    /// Requests that the registry answered, on average of the starts.
    pub requests: u64,
    /// Body bytes that it sent, on average of the starts.
    pub fetched_bytes: u64,
}

/// A side while it is measured.
#[derive(Debug)]
struct Side {
    name: &'static str,
    pulled: Durations,
    first_output: Durations,
    requests: u64,
    fetched_bytes: u64,
}

impl Side {
    fn new(name: &'static str) -> anyhow::Result<Self> {
        let (pulled, first_output) = (Durations::new()?, Durations::new()?);
        Ok(Self { name, pulled, first_output, requests: 0, fetched_bytes: 0 })
    }

    fn row(&self) -> Row {
        let (pulled, first_output) = (self.pulled.sample(), self.first_output.sample());
        let n = pulled.n.max(1);
        let (requests, fetched_bytes) = (self.requests / n, self.fetched_bytes / n);
        Row { side: self.name, pulled, first_output, requests, fetched_bytes }
    }
}

/// Why this cannot be measured here; `None` when it can.
#[must_use]
pub fn obstacle() -> Option<String> {
    skip::root().or_else(skip::fuse).or_else(skip::loop_devices).or_else(|| Release::Installed.cannot())
}

/// Measures every side, with `n` starts each, in turns, of an image with about `size_bytes` of files.
///
/// # Errors
/// When anything fails, and when the program does not say what it should.
pub async fn run(dir: &Path, (size_bytes, link): (u64, Link), n: u64) -> anyhow::Result<Measured> {
    let registry = Registry::start(pack::over(link)).await.context("the registry cannot listen on loopback")?;
    let site = tempfile::tempdir_in(dir)?;
    let image = image::make(site.path(), size_bytes, &registry).await?;
    let mut sides = [Side::new("OVERLAYFS")?, Side::new("PENSTOCK COLD")?, Side::new("PENSTOCK WARM")?];
    for _ in 0..n {
        let (full, lazy) = sides.split_at_mut(1);
        let place = tempfile::tempdir_in(dir)?;
        eager(place.path(), &registry, full).await?;
        place.close()?;
        let place = tempfile::tempdir_in(dir)?;
        on_demand(place.path(), &registry, lazy).await?;
        place.close()?;
    }
    registry.stop().await;
    let (major, minor) = Release::Installed.version();
    Ok(Measured { containerd: format!("{major}.{minor}"), image, rows: sides.iter().map(Side::row).collect() })
}

/// A start on a containerd that has nothing, with its own snapshotter.
async fn eager(dir: &Path, registry: &Registry, sides: &mut [Side]) -> anyhow::Result<()> {
    let place = place(dir, registry, Snapshotter::Overlayfs);
    starts(place, registry, image::ORDINARY, sides).await
}

/// Two starts on a containerd and an agent that have nothing: the second finds what the first fetched.
async fn on_demand(dir: &Path, registry: &Registry, sides: &mut [Side]) -> anyhow::Result<()> {
    let (root, socket) = (dir.join("snapshots"), dir.join("snapshotter.sock"));
    let (snapshotter_root, snapshotter_socket) = (root.clone(), socket.clone());
    let config = Config { snapshotter_enable: true, snapshotter_root, snapshotter_socket, ..Config::in_dir(dir) };
    let agent = Agent::start(config).await?;
    let place = place(dir, registry, Snapshotter::Penstock { socket, root });
    let measured = starts(place, registry, image::LAZY, sides).await;
    // Whatever happened, nothing stays mounted.
    agent.stop_for_good().await?;
    measured
}

fn place(dir: &Path, registry: &Registry, snapshotter: Snapshotter) -> Place {
    // No pod is run: which image would keep it does not matter.
    let host = registry.host();
    Place::new(Release::Installed, &dir.join("containerd"), (&host, &host), snapshotter)
}

/// A start for each side, one after the other, on one containerd. The image is removed after each.
async fn starts(place: Place, registry: &Registry, repository: &str, sides: &mut [Side]) -> anyhow::Result<()> {
    let reference = format!("{}/{repository}:{TAG}", registry.host());
    let containerd = Arc::new(place.start());
    for side in sides {
        registry.reset_counts();
        let (containerd, reference) = (Arc::clone(&containerd), reference.clone());
        // The registry is served by this process: never on a thread that serves it.
        let started = tokio::task::spawn_blocking(move || start(&containerd, &reference)).await;
        let (pulled, first_output) = started.context("the measuring thread ended abnormally")??;
        let counts = registry.counts();
        side.pulled.add(pulled);
        side.first_output.add(first_output);
        side.requests += counts.requests;
        side.fetched_bytes += counts.bytes;
    }
    drop(containerd);
    Ok(())
}

/// Pulls, runs and removes: when it was pulled, and when it said its first line.
fn start(containerd: &Containerd, reference: &str) -> anyhow::Result<(Duration, Duration)> {
    let (cri, place) = (Cri::connect(containerd), containerd.place());
    let began = Instant::now();
    cri.pull(reference, None)?;
    let pulled = began.elapsed();
    let mut command = place.run_command(NAMESPACE, (reference, "bench"), &["--rm"], &[]);
    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("ctr cannot be run")?;
    let mut line = String::new();
    if let Some(stdout) = running.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let first_output = began.elapsed();
    let ended = running.wait_with_output()?;
    ensure!(
        line == "ready\n" && ended.status.success(),
        "the program said {line:?} and ended with {}: {}",
        ended.status,
        String::from_utf8_lossy(&ended.stderr)
    );
    cri.remove_image(reference);
    Ok((pulled, first_output))
}

//! Cold starts of one program from each format that its image can have: the same files, the same link, in the same run.
//!
//! The image is a Python with files of this machine around it, one layer in each format, made by the format's own tool. A start is an agent with an empty cache
//! that attaches and mounts the image, and the program to its end. After it every file is read once: what that costs in CPU, over what was not read before, is what
//! decoding costs; this process holds the registry too, whose own work is part of it.

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use penstock_agent::{
    Accept, Agent, Config,
    cli::{Cli, Command as Asked},
    client::Client,
    index,
    output::{Table, size},
};
use penstock_blob::Digest;
use penstock_registry::{Artifact, Layer, Registry};
use penstock_tests::{
    containerd::{Place, Release, Snapshotter},
    formats, skip,
};
use serde::Serialize;
use tokio::process::Command;

use crate::{
    cold,
    containerd::image::{self, LAZY},
    pack::{self, Link, TAG},
    report::{Measured, time},
    sample::{Durations, Sample},
    usage,
};

/// The image of one ordinary layer, of which most others are made.
const ORDINARY: &str = "bench/format-gzip";
/// Bytes of a span of a SOCI index: what its tool takes when nothing is said.
const SPAN_BYTES: u64 = 4 << 20;

/// How an image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    OverlayBd,
    Erofs,
    Qcow2,
    Gzip,
    Estargz,
    ZstdChunked,
    Soci,
}

impl Format {
    const ALL: [Self; 7] =
        [Self::OverlayBd, Self::Erofs, Self::Qcow2, Self::Gzip, Self::Estargz, Self::ZstdChunked, Self::Soci];

    const fn name(self) -> &'static str {
        match self {
            Self::OverlayBd => "OverlayBD (lz4)",
            Self::Erofs => "EROFS, not compressed",
            Self::Qcow2 => "qcow2 (zlib)",
            Self::Gzip => "tar+gzip, layer index",
            Self::Estargz => "eStargz",
            Self::ZstdChunked => "zstd:chunked",
            Self::Soci => "tar+gzip, SOCI v1",
        }
    }

    const fn repository(self) -> &'static str {
        match self {
            Self::OverlayBd => LAZY,
            Self::Erofs => "bench/format-erofs",
            Self::Qcow2 => "bench/format-qcow2",
            Self::Gzip | Self::Soci => ORDINARY,
            Self::Estargz => "bench/format-estargz",
            Self::ZstdChunked => "bench/format-zstdchunked",
        }
    }

    fn config(self, dir: &Path) -> Config {
        let config = Config::in_dir(dir);
        match self {
            Self::Gzip => Config { layers_accept: Accept::All, ..config },
            Self::Soci => Config { layers_soci_v1: true, ..config },
            _ => config,
        }
    }
}

/// Starts from one format.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The format.
    pub format: &'static str,
    /// Bytes of the layer in the registry.
    pub stored_bytes: u64,
    /// From the attach to the end of the program.
    pub started: Sample,
    /// Until the image was mounted.
    pub mounted: Sample,
    /// Requests that the registry answered until the program's end, on average of the starts.
    pub requests: u64,
    /// Body bytes that it sent until then, on average of the starts.
    pub fetched_bytes: u64,
    /// CPU seconds for a GiB of files read after that, of agent and registry.
    pub cpu_seconds_per_gib: f64,
}

impl Measured for Vec<Row> {
    const NAME: &'static str = "formats";

    fn tables(&self) -> String {
        let titles =
            ["FORMAT", ">STORED", ">N", ">MOUNTED", ">STARTED MEDIAN", ">P99", ">REQUESTS", ">FETCHED", ">CPU/GiB"];
        let mut table = Table::new(&titles);
        for row in self {
            table.row([
                row.format.to_owned(),
                size(row.stored_bytes),
                row.started.n.to_string(),
                time(row.mounted.median_seconds),
                time(row.started.median_seconds),
                time(row.started.p99_seconds),
                row.requests.to_string(),
                size(row.fetched_bytes),
                time(row.cpu_seconds_per_gib),
            ]);
        }
        table.to_string()
    }
}

/// Why this cannot be measured here; `None` when it can.
#[must_use]
pub fn obstacle() -> Option<String> {
    let programs = ["mkfs.erofs", "qemu-img", "tar", "gzip"];
    let reason = crate::containerd::obstacle().or_else(|| programs.into_iter().find_map(skip::program));
    reason.or_else(formats::cannot)
}

/// A format while it is measured.
struct Side {
    format: Format,
    stored_bytes: u64,
    started: Durations,
    mounted: Durations,
    requests: u64,
    fetched_bytes: u64,
    /// Reading all files: CPU time, and bytes.
    read: (Duration, u64),
}

impl Side {
    fn row(&self) -> Row {
        let started = self.started.sample();
        let n = started.n.max(1);
        let gib = self.read.1 as f64 / f64::from(1 << 30);
        Row {
            format: self.format.name(),
            stored_bytes: self.stored_bytes,
            started,
            mounted: self.mounted.sample(),
            requests: self.requests / n,
            fetched_bytes: self.fetched_bytes / n,
            cpu_seconds_per_gib: self.read.0.as_secs_f64() / gib,
        }
    }
}

/// Measures `n` starts from each format, in turns, of an image with about `size_bytes` of files.
///
/// # Errors
/// When a tool or anything else fails.
pub async fn run(dir: &Path, (size_bytes, link): (u64, Link), n: u64) -> anyhow::Result<Vec<Row>> {
    let registry = Registry::start(pack::over(link)).await.context("the registry cannot listen on loopback")?;
    let stored = Box::pin(make(&registry, dir, size_bytes)).await?;
    let mut sides = Vec::new();
    for (format, stored_bytes) in Format::ALL.into_iter().zip(stored) {
        let (started, mounted) = (Durations::new()?, Durations::new()?);
        sides.push(Side {
            format,
            stored_bytes,
            started,
            mounted,
            requests: 0,
            fetched_bytes: 0,
            read: (Duration::ZERO, 0),
        });
    }
    for _ in 0..n {
        for side in &mut sides {
            let place = tempfile::tempdir_in(dir)?;
            let agent = Agent::start(side.format.config(place.path())).await?;
            let measured = start(&registry, (&agent, place.path()), side).await;
            // Whatever happened, nothing stays mounted.
            agent.stop_for_good().await?;
            measured.with_context(|| side.format.name())?;
            place.close()?;
        }
    }
    registry.stop().await;
    Ok(sides.iter().map(Side::row).collect())
}

async fn start(registry: &Registry, (agent, dir): (&Agent, &Path), side: &mut Side) -> anyhow::Result<()> {
    let client = Client::new(agent.socket().to_owned());
    let root = dir.join("mounted");
    fs::create_dir(&root)?;
    registry.reset_counts();
    let began = Instant::now();
    let reference = format!("{}/{}:{TAG}", registry.host(), side.format.repository());
    let request = serde_json::json!({ "reference": reference, "mount": root });
    let device = client.attach(&serde_json::from_value(request)?).await?.id;
    side.mounted.add(began.elapsed());
    cold::program(&root).await?;
    side.started.add(began.elapsed());
    let counts = registry.counts();
    side.requests += counts.requests;
    side.fetched_bytes += counts.bytes;
    let before = usage::cpu_time();
    let bytes = read_all(&root).await?;
    side.read.0 += usage::cpu_time().saturating_sub(before);
    side.read.1 += bytes;
    Ok(client.detach(&device, false).await?)
}

/// Reads every file to its end, in a process of its own; how many bytes they have.
async fn read_all(root: &Path) -> anyhow::Result<u64> {
    let mut read = Command::new("sh");
    read.args(["-c", "find \"$0\" -xdev -type f -exec cat {} + | wc -c"]).arg(root).stdin(Stdio::null());
    let output = read.output().await.context("sh cannot be run")?;
    ensure!(output.status.success(), "the files cannot be read");
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// Puts the image into the registry in every format; the bytes of the layer in each, in their order.
async fn make(registry: &Registry, dir: &Path, size_bytes: u64) -> anyhow::Result<[u64; 7]> {
    let site = dir.join("formats");
    let overlaybd = image::make(&site, size_bytes, registry).await?.lazy_bytes;
    let (root, disk) = (site.join("root"), site.join("disk"));
    let (erofs, qcow2) = (site.join("erofs"), site.join("qcow2"));
    let mut command = Command::new("mkfs.erofs");
    command.arg("--quiet").arg(&erofs).arg(&root);
    pack::run(command, "erofs-utils").await?;
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-c", "-f", "raw", "-O", "qcow2"]).arg(&disk).arg(&qcow2);
    pack::run(command, "qemu-utils").await?;
    let erofs = put(registry, Format::Erofs, (&erofs, "application/octet-stream"), None).await?;
    let qcow2 = put(registry, Format::Qcow2, (&qcow2, "application/octet-stream"), None).await?;
    let gzip = ordinary(registry, &root, &site).await?;
    let host = registry.host();
    let reference = |format: Format| format!("{host}/{}:{TAG}", format.repository());
    let images = [Format::Gzip, Format::Estargz, Format::ZstdChunked].map(reference);
    let place = tempfile::tempdir_in(dir)?;
    // The registry is served by this process: never on a thread that serves it.
    tokio::task::spawn_blocking(move || convert(place.path(), &host, &images)).await??;
    let [estargz, chunked] = [Format::Estargz, Format::ZstdChunked].map(|format| stored(registry, format));
    Ok([overlaybd, erofs, qcow2, gzip, estargz.await?, chunked.await?, gzip])
}

/// The ordinary image.
async fn ordinary(registry: &Registry, root: &Path, site: &Path) -> anyhow::Result<u64> {
    let tar = site.join("format.tar");
    let mut command = Command::new("tar");
    command.args(["--sort=name", "--numeric-owner", "-C"]).arg(root).arg("-cf").arg(&tar).arg(".");
    pack::run(command, "tar").await?;
    let archive = tar.clone();
    let diff_id = tokio::task::spawn_blocking(move || fs::read(archive).map(|bytes| Digest::of(&bytes))).await??;
    let mut command = Command::new("gzip");
    command.args(["-6", "-n"]).arg(&tar);
    pack::run(command, "gzip").await?;
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    put(registry, Format::Gzip, (&site.join("format.tar.gz"), media_type), Some(diff_id)).await
}

/// An image of one layer; its size.
async fn put(
    registry: &Registry,
    format: Format,
    (file, media_type): (&Path, &str),
    diff_id: Option<Digest>,
) -> anyhow::Result<u64> {
    let blob = registry.put_file(file).await?;
    let rootfs = serde_json::json!({ "type": "layers", "diff_ids": [diff_id.unwrap_or(blob.digest)] });
    let config = serde_json::json!({ "os": "linux", "architecture": "amd64", "rootfs": rootfs }).to_string();
    let layers = vec![Layer { blob, media_type: media_type.to_owned(), annotations: Default::default() }];
    registry.put_image(format.repository(), TAG, Artifact { config: config.into(), layers, ..Artifact::default() })?;
    Ok(blob.size_bytes)
}

/// Has the tools make what they make of the ordinary image, and pushes a layer index of it. Blocks.
fn convert(dir: &Path, host: &str, [ordinary, estargz, chunked]: &[String; 3]) -> anyhow::Result<()> {
    // No pod is run: which image would keep it does not matter.
    let place = Place::new(Release::Installed, &dir.join("containerd"), (host, host), Snapshotter::Overlayfs);
    let containerd = place.start();
    formats::fetch(&place, ordinary);
    formats::converted(&place, (ordinary, estargz), &["--estargz"]);
    formats::converted(&place, (ordinary, chunked), &["--zstdchunked"]);
    let soci = dir.join("soci");
    fs::create_dir(&soci)?;
    formats::indexed_by_soci(&place, (ordinary, SPAN_BYTES), &soci);
    drop(containerd);
    let Asked::Index(args) = Cli::try_parse_from(["penstock", "index", ordinary])?.command else {
        anyhow::bail!("`penstock index` is another command");
    };
    Ok(index::run(&args)?)
}

/// Bytes of the layer of an image that a tool pushed.
async fn stored(registry: &Registry, format: Format) -> anyhow::Result<u64> {
    let url = format!("http://{}/v2/{}/manifests/{TAG}", registry.host(), format.repository());
    let accept = "application/vnd.oci.image.manifest.v1+json";
    let answer = crate::pull::client()?.get(url).header("accept", accept).send().await?.error_for_status()?;
    let manifest: serde_json::Value = serde_json::from_slice(&answer.bytes().await?)?;
    manifest["layers"][0]["size"].as_u64().context("the manifest names no layer")
}

//! `penstock-bench`: measures, prints a table that compares the sides of the run, and writes it as JSON.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use penstock_agent::output;
use penstock_benches::{
    all, attach, cold, compare, containerd, crowd, evict, formats, layer, many,
    pack::{Link, Packed, With},
    path, protocol,
    report::{Measured, Report},
    start, vm, warm, warm_start,
};
use tempfile::TempDir;

/// Misses timed when nobody says how many.
const MISSES: u64 = 200;
/// Starts on each side when nobody says how many.
const STARTS: u64 = 5;
/// Seed of the traces of `evict`.
const EVICT_SEED: u64 = 1;

/// Measures Penstock: two sides in one run, over the same link, on the same image of this machine's files.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Samples of each side: misses for `path` (hits are 100 times as many; default 200), starts for `start` (default 5).
    #[arg(long, global = true, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    n: Option<u64>,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value = "table")]
    output: Output,
    /// Size of the image's files, in MiB.
    #[arg(long, global = true, default_value_t = 256, value_parser = clap::value_parser!(u64).range(4..=16_384))]
    size_mib: u64,
    /// How long the registry waits before each answer, in milliseconds.
    #[arg(long, global = true, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    latency_ms: u32,
    /// What the registry sends at most, in megabytes (10^6 bytes) per second; 125 is a gigabit. 100 is what the promises are about.
    #[arg(long, global = true, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    bandwidth_mb: u64,
    /// Where the JSON goes; benches/results of this tree by default.
    #[arg(long, global = true)]
    results: Option<PathBuf>,
    /// Directory of everything temporary: on the kind of disk that is to be measured, with ten times the image's size free. The system's by default.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Subcommand)]
enum What {
    /// Reads through image, cache and fetcher: hits, misses, mixed.
    Path,
    /// Getting at files: a full pull against an agent. Needs root.
    Start,
    /// Cold starts of a Python program against their floor. Needs root.
    Cold,
    /// Warm starts of the same program against mounts of the same files on this machine. Needs root and mkfs.erofs.
    WarmStart,
    /// Fifty starts of one image at once, and one of each of twenty images on one base. Needs root.
    Crowd,
    /// From the pull to the first output of a Python program: containerd with its own snapshotter against Penstock's. Needs root, containerd and runc.
    Containerd,
    /// Opening a small image, one of many extents, and one of many frames: time, requests, bytes, memory. Writes 2 GiB of images first.
    Attach,
    /// A thousand devices on one agent (`--n` of them). Needs root.
    Many,
    /// HTTP/2 over one connection against HTTP/1.1 over several: cold starts and reading in order, through nginx over TLS. Needs root, nginx and openssl.
    Protocol,
    /// Ordinary layers by their layer index: its size, its making, decoding, cold reads.
    Layer,
    /// Cold starts of the same program from each format that its image can have. Needs root, containerd, mkfs.erofs and qemu-img; fetches the formats' tools.
    Formats,
    /// Reads of what is cached, through FUSE and mounts, against the same disk mounted by the kernel alone. Needs root.
    Warm,
    /// Which of the extents on a full disk go: hit ratios on made-up traces, the same on every machine. Nothing is read.
    Evict,
    /// Warm reads and 200 devices through ublk, in a VM whose clock counts instructions. Needs QEMU, and apt for a kernel.
    Vm,
    /// Everything that is promised, with a line for each promise at the end (the default): path, start, crowd, attach, cold, warm-start, warm, many, vm.
    /// What cannot run here is named with the reason.
    All,
    /// Reports of two builds whose runs took turns. Fails when the median of a ratio is above the limit.
    Compare {
        /// Reports of the build to compare with.
        #[arg(long, num_args = 1.., required = true)]
        base: Vec<PathBuf>,
        /// As many reports of the other build.
        #[arg(long, num_args = 1.., required = true)]
        this: Vec<PathBuf>,
        /// How many times the base's time is too long.
        #[arg(long, default_value_t = 1.1)]
        limit: f64,
    },
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs: the same as the file.
    Json,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // As `penstock agent` does.
    penstock_device::share_heaps();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(Box::pin(run(&args)))
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let link = Link {
        latency_seconds: f64::from(args.latency_ms) / 1e3,
        bandwidth_bytes_per_second: args.bandwidth_mb * 1_000_000,
    };
    let (sized, n) = ((args.size_mib << 20, link), args.n.unwrap_or(STARTS));
    let misses = args.n.unwrap_or(MISSES);
    match args.what.as_ref().unwrap_or(&What::All) {
        What::Compare { base, this, limit } => compared(base, this, *limit),
        What::Evict => evictions(args),
        What::Path => {
            let measuring =
                async |dir: &Path| on_image(dir, sized, async |packed| path::run(packed, dir, misses).await).await;
            bench(args, link, None::<&str>, measuring).await
        }
        What::Start => {
            let measuring =
                async |dir: &Path| on_image(dir, sized, async |packed| start::run(packed, dir, n).await).await;
            bench(args, link, start::obstacle(), measuring).await
        }
        What::Crowd => {
            let measuring =
                async |dir: &Path| on_image(dir, sized, async |packed| crowd::run(packed, dir, n).await).await;
            bench(args, link, start::obstacle(), measuring).await
        }
        What::Cold => bench(args, link, start::obstacle(), async |dir| cold::run(dir, sized, n).await).await,
        What::WarmStart => bench(args, link, start::obstacle(), async |dir| warm_start::run(dir, sized, n).await).await,
        What::Warm => bench(args, link, start::obstacle(), async |dir| warm::run(dir, sized, n).await).await,
        What::Many => {
            let devices = args.n.unwrap_or(many::DEVICES);
            bench(args, link, start::obstacle(), async |dir| many::run(dir, link, devices).await).await
        }
        What::Containerd => {
            bench(args, link, containerd::obstacle(), async |dir| containerd::run(dir, sized, n).await).await
        }
        What::Attach => bench(args, link, None::<&str>, async |dir| attach::run(dir, link, n).await).await,
        What::Protocol => bench(args, link, protocol::obstacle(), async |dir| protocol::run(dir, sized, n).await).await,
        What::Layer => bench(args, link, None::<&str>, async |dir| layer::run(dir, sized, misses).await).await,
        What::Formats => bench(args, link, formats::obstacle(), async |dir| formats::run(dir, sized, n).await).await,
        What::Vm => bench(args, link, vm::obstacle(), async |dir| vm::run(dir, &kernel()?).await).await,
        What::All => everything(args, link).await,
    }
}

/// Measures in a directory that is gone afterwards; keeps and prints the report.
async fn bench<M: Measured>(
    args: &Args,
    link: Link,
    obstacle: Option<impl Display>,
    measuring: impl AsyncFnOnce(&Path) -> anyhow::Result<M>,
) -> anyhow::Result<()> {
    if let Some(obstacle) = obstacle {
        anyhow::bail!("{} cannot be measured: {obstacle}", M::NAME);
    }
    let report = Report::begin(link);
    output::note(format_args!("Measuring: {} ...", M::NAME));
    let place = place(args)?;
    // Boxed: benches are large futures.
    let measured = Box::pin(measuring(place.path())).await?;
    place.close()?;
    tell(args, &report.with(measured))
}

/// Makes the images of this machine's files in `dir`, and measures with them.
async fn on_image<M>(
    dir: &Path,
    (size_bytes, link): (u64, Link),
    measuring: impl AsyncFnOnce(&Packed) -> anyhow::Result<M>,
) -> anyhow::Result<With<M>> {
    let packed = Packed::make(dir, size_bytes, link).await?;
    let rows = measuring(&packed).await?;
    packed.registry.stop().await;
    Ok(With { image: packed.facts, rows })
}

/// Everything, and what failed as an error once the rest is kept.
async fn everything(args: &Args, link: Link) -> anyhow::Result<()> {
    let report = Report::begin(link);
    let sizes = all::Sizes {
        image_bytes: args.size_mib << 20,
        link,
        misses: args.n.unwrap_or(MISSES),
        starts: args.n.unwrap_or(STARTS),
        devices: many::DEVICES,
    };
    let place = place(args)?;
    let measured = Box::pin(all::run(place.path(), sizes, &kernel()?)).await?;
    place.close()?;
    let failed = measured.failed.len();
    tell(args, &report.with(measured))?;
    anyhow::ensure!(failed == 0, "{failed} of the benches failed");
    Ok(())
}

/// A directory for everything temporary.
fn place(args: &Args) -> anyhow::Result<TempDir> {
    let place = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    place.context("there is no room for temporary files: name a directory with --dir")
}

/// Where the VM's kernel is kept: beside what cargo builds.
fn kernel() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(2).context("this program lies in no directory of cargo's")?.join("vm-kernel"))
}

/// Compares reports; fails when this build is too slow.
fn compared(base: &[PathBuf], this: &[PathBuf], limit: f64) -> anyhow::Result<()> {
    let read = |path: &PathBuf| anyhow::Ok(serde_json::from_slice(&std::fs::read(path)?)?);
    let reports = |paths: &[PathBuf]| paths.iter().map(read).collect::<anyhow::Result<Vec<_>>>();
    let rows = compare::rows(&reports(base)?, &reports(this)?)?;
    output::print(&compare::table(&rows).to_string())?;
    let worse: Vec<_> = rows.iter().filter(|row| row.median() > limit).map(|row| row.what.as_str()).collect();
    anyhow::ensure!(worse.is_empty(), "more than {limit} x the time of the base: {}", worse.join("; "));
    Ok(())
}

/// Keeps a report, and prints it.
fn tell<M: Measured>(args: &Args, report: &Report<M>) -> anyhow::Result<()> {
    let dir = results(args);
    let file = report.save(&dir).with_context(|| format!("{} cannot be written: use --results", dir.display()))?;
    match args.output {
        Output::Json => output::print(&format!("{}\n", serde_json::to_string_pretty(report)?))?,
        Output::Table => output::print(&report.text())?,
    }
    output::note(format_args!("written to {}", file.display()));
    Ok(())
}

/// Where results go.
fn results(args: &Args) -> PathBuf {
    args.results.clone().unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("results"))
}

fn evictions(args: &Args) -> anyhow::Result<()> {
    let rows = evict::run(EVICT_SEED);
    match args.output {
        Output::Json => output::print(&format!("{}\n", serde_json::to_string_pretty(&rows)?))?,
        Output::Table => output::print(&evict::table(&rows))?,
    }
    Ok(())
}

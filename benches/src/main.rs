//! `penstock-bench`: measures, prints a table that compares the sides of the run, and writes it as JSON.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use penstock_agent::output;
use penstock_benches::{
    attach, cold, containerd, evict, layer,
    machine::Machine,
    many,
    pack::{Link, Packed},
    path,
    report::{self, Report},
    start,
};

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
    #[arg(long, global = true, default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=16_384))]
    size_mib: u64,
    /// How long the registry waits before each answer, in milliseconds.
    #[arg(long, global = true, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    latency_ms: u32,
    /// What the registry sends at most, in megabytes (10^6 bytes) per second; 125 is a gigabit.
    #[arg(long, global = true, default_value_t = 125, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    bandwidth_mb: u64,
    /// Where the JSON goes; benches/results of this tree by default.
    #[arg(long, global = true)]
    results: Option<PathBuf>,
    /// Directory of everything temporary: on the kind of disk that is to be measured, with ten times the image's size free. The system's by default.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
enum What {
    /// Reads through image, cache and fetcher: hits, misses, mixed.
    Path,
    /// Getting at files: a full pull against an agent. Needs root.
    Start,
    /// Cold starts of a Python program against their floor. Needs root.
    Cold,
    /// From the pull to the first output of a Python program: containerd with its own snapshotter against Penstock's. Needs root, containerd and runc.
    Containerd,
    /// Opening a small image, one of many extents, and one of many frames: time, requests, bytes, memory. Writes 2 GiB of images first.
    Attach,
    /// A thousand devices on one agent (`--n` of them). Needs root.
    Many,
    /// Ordinary layers by their layer index: its size, its making, decoding, cold reads.
    Layer,
    /// Which of the extents on a full disk go: hit ratios on made-up traces, the same on every machine. Nothing is read.
    Evict,
    /// Reads and starts (the default).
    All,
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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(Box::pin(run(&args)))
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let what = args.what.unwrap_or(What::All);
    if what == What::Evict {
        return evictions(args);
    }
    let link = Link {
        latency_seconds: f64::from(args.latency_ms) / 1e3,
        bandwidth_bytes_per_second: args.bandwidth_mb * 1_000_000,
    };
    if what == What::Containerd {
        return containers(args, link).await;
    }
    if what == What::Attach {
        return attaches(args, link).await;
    }
    if what == What::Many {
        return devices(args, link).await;
    }
    if what == What::Layer {
        return layers(args, link).await;
    }
    let place = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let place = place.context("there is no room for temporary files: name a directory with --dir")?;
    let (machine, began_unix_seconds) = (Machine::this(), report::now());
    output::note("Making the images ...");
    let packed = Packed::make(place.path(), args.size_mib << 20, link).await?;
    let mut report = Report {
        machine,
        began_unix_seconds,
        link,
        image: packed.facts.clone(),
        path: Vec::new(),
        start: Vec::new(),
        cold: Vec::new(),
        not_measured: Vec::new(),
    };
    if matches!(what, What::Path | What::All) {
        output::note("Measuring reads ...");
        report.path = path::run(&packed, place.path(), args.n.unwrap_or(MISSES)).await?;
    }
    if what != What::Path {
        starts(args, (what, link), (&packed, place.path()), &mut report).await?;
    }
    packed.registry.stop().await;
    place.close()?;
    print(args, &report)
}

/// What needs root: getting at files, and cold starts.
async fn starts(
    args: &Args,
    (what, link): (What, Link),
    (packed, place): (&Packed, &Path),
    report: &mut Report,
) -> anyhow::Result<()> {
    if let Some(reason) = start::obstacle() {
        report.not_measured.push(reason.to_owned());
        return Ok(());
    }
    let n = args.n.unwrap_or(STARTS);
    if what != What::Cold {
        output::note("Measuring starts ...");
        report.start = start::run(packed, place, n).await?;
    }
    if what != What::Start {
        output::note("Measuring cold starts ...");
        report.cold = cold::run(&packed.registry, place, (args.size_mib << 20, link), n).await?;
    }
    Ok(())
}

async fn containers(args: &Args, link: Link) -> anyhow::Result<()> {
    if let Some(obstacle) = containerd::obstacle() {
        anyhow::bail!(obstacle);
    }
    let (machine, began_unix_seconds) = (Machine::this(), report::now());
    output::note("Making the images and measuring starts of containers ...");
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let measured = containerd::run(&dir, (args.size_mib << 20, link), args.n.unwrap_or(STARTS)).await?;
    let report = containerd::Report { machine, began_unix_seconds, link, measured };
    tell(args, (report.file_name(), report.table()), &report)
}

async fn attaches(args: &Args, link: Link) -> anyhow::Result<()> {
    let (machine, began_unix_seconds) = (Machine::this(), report::now());
    output::note("Writing the images and opening them ...");
    let place = tempfile::tempdir_in(args.dir.clone().unwrap_or_else(std::env::temp_dir))?;
    let rows = attach::run(place.path(), link, args.n.unwrap_or(STARTS)).await?;
    place.close()?;
    let report = attach::Report { machine, began_unix_seconds, link, rows };
    tell(args, (report.file_name(), report.table()), &report)
}

async fn devices(args: &Args, link: Link) -> anyhow::Result<()> {
    if let Some(obstacle) = start::obstacle() {
        anyhow::bail!(obstacle);
    }
    let (machine, began_unix_seconds) = (Machine::this(), report::now());
    output::note("Attaching devices ...");
    let place = tempfile::tempdir_in(args.dir.clone().unwrap_or_else(std::env::temp_dir))?;
    let row = Box::pin(many::run(place.path(), link, args.n.unwrap_or(many::DEVICES))).await?;
    place.close()?;
    let report = many::Report { machine, began_unix_seconds, link, row };
    tell(args, (report.file_name(), report.table()), &report)
}

async fn layers(args: &Args, link: Link) -> anyhow::Result<()> {
    let (machine, began_unix_seconds) = (Machine::this(), report::now());
    output::note("Making the layers and reading them ...");
    let place = tempfile::tempdir_in(args.dir.clone().unwrap_or_else(std::env::temp_dir))?;
    let rows = layer::run(place.path(), (args.size_mib << 20, link), args.n.unwrap_or(MISSES)).await?;
    place.close()?;
    let report = layer::Report { machine, began_unix_seconds, link, rows };
    tell(args, (report.file_name(), report.table()), &report)
}

/// Keeps a report under its name, and prints it.
fn tell(args: &Args, (name, table): (String, String), report: &impl serde::Serialize) -> anyhow::Result<()> {
    let file = report::save(&results(args), &name, report)?;
    match args.output {
        Output::Json => output::print(&format!("{}\n", serde_json::to_string_pretty(report)?))?,
        Output::Table => output::print(&table)?,
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

fn print(args: &Args, report: &Report) -> anyhow::Result<()> {
    let dir = results(args);
    let file = report.save(&dir).with_context(|| format!("{} cannot be written: use --results", dir.display()))?;
    match args.output {
        Output::Json => output::print(&format!("{}\n", serde_json::to_string_pretty(report)?))?,
        Output::Table => output::print(&report.tables())?,
    }
    output::note(format_args!("written to {}", file.display()));
    Ok(())
}

//! `penstock demo`: what Penstock does, on this machine alone.
//!
//! Makes an image from this machine's own files, serves it from a registry in this process over a link of set latency and bandwidth,
//! attaches it with an agent in this process, reads what a program's start reads, and compares with a full pull over the same link.

mod build;
mod disk;
mod program;
mod pull;
mod report;
mod stage;
mod tree;
mod work;

use std::{path::PathBuf, time::Duration};

use clap::builder::ValueParser;
use penstock_registry::Registry;

use crate::{
    StartError,
    cli::Transport,
    config::value,
    output::{self, Output},
    run::{self, Signals},
};
use report::{Report, Side};
use stage::Stage;

/// Least and most bytes of the image: enough to show something, and few enough to be made in a minute.
const SIZES: std::ops::RangeInclusive<u64> = 16 << 20..=4 << 30;

/// What the demo is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// About how many bytes of this machine's files go into the image, from 16MiB to 4GiB
    #[arg(long, value_name = "SIZE", default_value = "300MB", value_parser = ValueParser::new(image_size))]
    pub size: u64,
    /// How long the registry takes to answer a request
    #[arg(long, value_name = "DURATION", default_value = "20ms", value_parser = ValueParser::new(value::duration))]
    pub latency: Duration,
    /// Bytes per second that the registry sends
    #[arg(long, value_name = "SIZE", default_value = "100MB", value_parser = ValueParser::new(bandwidth))]
    pub bandwidth: u64,
    /// How the device is to reach the kernel
    #[arg(long, value_enum, default_value_t)]
    pub transport: Transport,
    /// Directory for the demo's files, about twice the size of the image; all are removed at the end
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// End after the comparison, instead of leaving the agent up until Ctrl-C
    #[arg(long)]
    pub exit: bool,
    /// How to print the comparison
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}

fn image_size(text: &str) -> Result<u64, String> {
    let bytes = value::size(text)?;
    if SIZES.contains(&bytes) { Ok(bytes) } else { Err("write a size from 16MiB to 4GiB".to_owned()) }
}

fn bandwidth(text: &str) -> Result<u64, String> {
    value::size(text).and_then(|bytes| if bytes > 0 { Ok(bytes) } else { Err("nothing would ever come".to_owned()) })
}

/// Why the demo ended early. Each text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[expect(private_interfaces, reason = "callers only print it")]
pub enum DemoError {
    /// The system gave no threads, files or output.
    #[error("the demo cannot go on: {0}")]
    System(#[from] std::io::Error),
    /// The image could not be made.
    #[error(transparent)]
    Build(#[from] build::BuildError),
    /// The agent did not start.
    #[error(transparent)]
    Agent(#[from] StartError),
    /// The agent refused.
    #[error("{0}")]
    Node(#[from] penstock_api::NodeError),
    /// The comparison could not be made.
    #[error(transparent)]
    Pull(#[from] pull::PullError),
    /// Reading failed.
    #[error(transparent)]
    Work(#[from] work::WorkError),
    /// The image could not be opened.
    #[error("the image cannot be opened: {0}")]
    Open(#[from] penstock_image::OpenError),
    /// Something was left behind.
    #[error("the demo did not clean up: {0}")]
    Clean(String),
    /// Ctrl-C or SIGTERM before the comparison was made.
    #[error("interrupted by {0}; everything is cleaned up")]
    Interrupted(&'static str),
}

/// Runs the demo.
///
/// # Errors
/// [`DemoError`]; its files, mounts and processes are gone all the same.
pub fn run(args: &Args) -> Result<(), DemoError> {
    run::with_runtime(show(args))?
}

async fn show(args: &Args) -> Result<(), DemoError> {
    let mut signals = Signals::new()?;
    let mut stage = Stage::new(args)?;
    let outcome = tokio::select! {
        outcome = Box::pin(compare(&mut stage, args)) => outcome,
        asked = signals.next() => Err(DemoError::Interrupted(asked.signal())),
    };
    let outcome = match outcome {
        Ok(report) => present(&stage, &report, args, &mut signals).await,
        Err(error) => Err(error),
    };
    let cleaned = stage.clear().await;
    outcome?;
    cleaned.map_err(DemoError::Clean)
}

/// Prints the comparison, and leaves the agent up until a signal if asked.
async fn present(stage: &Stage, report: &Report, args: &Args, signals: &mut Signals) -> Result<(), DemoError> {
    output::answer(args.output, report, Report::table)?;
    if args.exit {
        return Ok(());
    }
    let socket = stage.agent()?.socket().display().to_string();
    output::note("");
    output::note("The agent is still up. In another terminal:");
    if let Some(dir) = stage.mounted() {
        output::note(format_args!("  ls {}/usr", dir.display()));
    }
    output::note(format_args!("  penstock stats --socket {socket}"));
    output::note(format_args!("  curl --unix-socket {socket} http://penstock/v1/devices"));
    output::note(format_args!("  curl --unix-socket {socket} http://penstock/v1/cache"));
    output::note(format_args!("  curl --unix-socket {socket} http://penstock/metrics"));
    output::note("Ctrl-C ends the demo and removes everything.");
    signals.next().await;
    Ok(())
}

async fn compare(stage: &mut Stage, args: &Args) -> Result<Report, DemoError> {
    let image = stage.build(args.size).await?;
    let registry = stage.registry()?;
    registry.set_latency(args.latency);
    registry.set_bandwidth(Some(args.bandwidth));

    output::note("Attaching it with an empty cache, and reading ...");
    stage.start_agent().await?;
    registry_reset(stage)?;
    let (opened, lazy) = stage.attach_and_read(&image).await?;
    let lazy = Side::new(counted(stage.registry()?), lazy.first, lazy.all);
    let compared = opened.work.compare(&opened.door).await?;

    output::note("Pulling all of it over the same link, to compare ...");
    registry_reset(stage)?;
    let pulled = stage.pull_and_read(&image, &opened).await?;
    let full_pull = Side::new(counted(stage.registry()?), pulled.first, pulled.all);

    output::note("Detaching, attaching and reading again ...");
    stage.detach(&opened).await?;
    registry_reset(stage)?;
    let (opened, again) = stage.attach_and_read(&image).await?;
    let bytes = again.bytes;
    let again = Side::new(counted(stage.registry()?), again.first, again.all);
    Ok(Report {
        latency_ms: args.latency.as_millis(),
        bandwidth_bytes_per_second: args.bandwidth,
        read: opened.facts(&image, bytes, compared),
        image: image.facts,
        full_pull,
        lazy,
        again,
        not_shown: stage.not_shown(),
    })
}

fn registry_reset(stage: &Stage) -> Result<(), DemoError> {
    stage.registry().map(Registry::reset_counts)
}

fn counted(registry: &Registry) -> (u64, u64) {
    let counts = registry.counts();
    (counts.requests, counts.bytes)
}

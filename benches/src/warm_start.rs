//! Warm starts of one program: all bytes in the cache on this machine's disk, none in the page cache, against the same disk mounted from a file.
//!
//! Both sides mount, run the program of [`crate::cold`] to its end, and unmount, in turns; before each the kernel forgets all that it has read. MOUNTED is what an
//! attach or a mount takes, PROGRAM what the program takes then. An attach asks the registry once what the reference names, which takes a latency of the link.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use penstock_agent::{Agent, Config, client::Client, output::Table};
use penstock_registry::Registry;
use serde::Serialize;
use tokio::process::Command;

use crate::{
    cold::{attach, program},
    containerd::image,
    pack::{self, Link},
    report::{Measured, time},
    sample::{Durations, Sample},
};

/// Starts of one side.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The side.
    pub side: &'static str,
    /// From the beginning until files can be opened.
    pub mounted: Sample,
    /// From then to the end of the program.
    pub program: Sample,
    /// Both.
    pub started: Sample,
}

impl Measured for Vec<Row> {
    const NAME: &'static str = "warm-start";

    fn tables(&self) -> String {
        let titles =
            ["WARM START", ">N", ">MOUNTED", ">PROGRAM", ">P99", ">STARTED", ">P99", ">X PROGRAM", ">X STARTED"];
        let mut table = Table::new(&titles);
        let first = self.first();
        let times = |of: fn(&Row) -> f64, row: &Row| first.map_or(f64::NAN, |first| of(first) / of(row));
        for row in self {
            table.row([
                row.side.to_owned(),
                row.started.n.to_string(),
                time(row.mounted.median_seconds),
                time(row.program.median_seconds),
                time(row.program.p99_seconds),
                time(row.started.median_seconds),
                time(row.started.p99_seconds),
                format!("{:.2}", times(|row| row.program.median_seconds, row)),
                format!("{:.2}", times(|row| row.started.median_seconds, row)),
            ]);
        }
        table.to_string()
    }
}

/// A side while it is measured.
#[derive(Debug)]
struct Side {
    name: &'static str,
    mounted: Durations,
    program: Durations,
    started: Durations,
}

impl Side {
    fn new(name: &'static str) -> anyhow::Result<Self> {
        Ok(Self { name, mounted: Durations::new()?, program: Durations::new()?, started: Durations::new()? })
    }

    fn add(&mut self, mounted: Duration, program: Duration) {
        self.mounted.add(mounted);
        self.program.add(program);
        self.started.add(mounted + program);
    }

    fn row(&self) -> Row {
        let (mounted, program, started) = (self.mounted.sample(), self.program.sample(), self.started.sample());
        Row { side: self.name, mounted, program, started }
    }
}

/// Measures `n` starts of each side of an image with about `size_bytes` of files.
///
/// # Errors
/// When anything fails; when `mkfs.erofs` is not installed.
pub async fn run(dir: &Path, (size_bytes, link): (u64, Link), n: u64) -> anyhow::Result<Vec<Row>> {
    let registry = Registry::start(pack::over(link)).await.context("the registry cannot listen on loopback")?;
    let files = dir.join("files");
    image::make(&files, size_bytes, &registry).await?;
    let erofs = dir.join("erofs");
    let mut command = Command::new("mkfs.erofs");
    command.arg("--quiet").arg(&erofs).arg(files.join("root"));
    pack::run(command, "erofs-utils").await?;
    let agent = Agent::start(Config::in_dir(dir)).await?;
    let measured = sides(&registry, &agent, (dir, [&files.join("disk"), &erofs]), n).await;
    // Whatever happened, nothing stays mounted.
    agent.stop_for_good().await?;
    registry.stop().await;
    measured
}

async fn sides(
    registry: &Registry,
    agent: &Agent,
    (dir, disks): (&Path, [&Path; 2]),
    n: u64,
) -> anyhow::Result<Vec<Row>> {
    let client = Client::new(agent.socket().to_owned());
    let root = dir.join("mounted");
    fs::create_dir(&root)?;
    let mut sides = [Side::new("PENSTOCK")?, Side::new("LOOP, EXT4")?, Side::new("LOOP, EROFS")?];
    // Fills the cache: what the program reads, and what the kernel reads ahead of it.
    let device = attach(&registry.host(), &client, &root).await?;
    program(&root).await?;
    client.detach(&device, false).await?;
    agent.cache().settle().await;
    for _ in 0..n {
        let [penstock, local @ ..] = &mut sides;
        forget()?;
        let began = Instant::now();
        let device = attach(&registry.host(), &client, &root).await?;
        let mounted = began.elapsed();
        penstock.add(mounted, program(&root).await?);
        client.detach(&device, false).await?;
        for (side, disk) in local.iter_mut().zip(disks) {
            forget()?;
            let began = Instant::now();
            let mut mount = Command::new("mount");
            mount.args(["--options", "ro,loop"]).arg(disk).arg(&root);
            pack::run(mount, "mount").await?;
            let mounted = began.elapsed();
            let ran = program(&root).await;
            let mut unmount = Command::new("umount");
            unmount.arg(&root);
            pack::run(unmount, "mount").await?;
            side.add(mounted, ran?);
        }
    }
    Ok(sides.iter().map(Side::row).collect())
}

/// Has the kernel forget what it has read of files that are not in use.
fn forget() -> anyhow::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("the kernel does not drop what it has read")
}

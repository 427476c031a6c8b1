//! Block devices of ublk in a VM whose clock counts instructions: `tests/vm/bench.sh` runs [`crate::warm`] and [`crate::many`] there.
//!
//! The times are those of a processor of 10^9 instructions a second, whatever this machine does besides; they say something only beside each other.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    path::Path,
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use penstock_agent::output::Table;
use penstock_tests::{skip, workspace};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::process::Command;

use crate::{
    many, report,
    report::time,
    sample::Sample,
    warm::{self, Below, Work},
};

/// What cannot be missing: a machine to boot, and what makes its memory's contents.
const PROGRAMS: [&str; 5] = ["qemu-system-x86_64", "busybox", "cpio", "xz", "mke2fs"];

/// Reads of one kind through one side.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Read {
    /// What was read.
    pub work: Work,
    /// From where.
    pub below: Below,
    /// Through what.
    pub side: String,
    /// How long they took.
    pub took: Sample,
}

/// What was measured in the VM.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Its kernel.
    pub kernel: String,
    /// Reads of what is cached.
    pub warm: Vec<Read>,
    /// Devices at once.
    pub many: many::Row,
}

impl Measured {
    /// The row of this work through this side.
    pub(crate) fn row(&self, work: Work, below: Below, side: &str) -> Option<&Read> {
        self.warm.iter().find(|row| (row.work, row.below, row.side.as_str()) == (work, below, side))
    }
}

impl report::Measured for Measured {
    const NAME: &'static str = "vm";

    fn tables(&self) -> String {
        let mut table = Table::new(&["IN THE VM", "BELOW", "THROUGH", ">N", ">MEDIAN", ">P99", ">X LOOP"]);
        for row in &self.warm {
            let beside = self.row(row.work, row.below, warm::LOOP);
            let ratio = beside.map_or(f64::NAN, |other| other.took.median_seconds / row.took.median_seconds);
            table.row([
                row.work.name().to_owned(),
                row.below.name().to_owned(),
                row.side.clone(),
                row.took.n.to_string(),
                time(row.took.median_seconds),
                time(row.took.p99_seconds),
                format!("{ratio:.2}"),
            ]);
        }
        let devices = report::Measured::tables(&self.many);
        format!("in a VM with {}, one CPU of 10^9 instructions a second\n\n{table}\n{devices}", self.kernel)
    }
}

/// Why this cannot be measured here; `None` when it can, as far as is known before a kernel was asked for.
#[must_use]
pub fn obstacle() -> Option<String> {
    PROGRAMS.into_iter().find_map(skip::program)
}

/// Fetches a kernel into `kernel` unless it is there, boots it and measures. What the VM prints goes to stderr.
///
/// # Errors
/// When there is no kernel to be had, or the bench in the VM fails: with the last of what was said.
pub async fn run(dir: &Path, kernel: &Path) -> anyhow::Result<Measured> {
    let scripts = workspace::root().join("tests/vm");
    let fetched = Command::new(scripts.join("get-kernel.sh")).arg(kernel).kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&fetched.stderr);
    ensure!(fetched.status.success(), "no kernel with ublk can be had: {}", said.lines().last().unwrap_or_default());
    let mut bench = Command::new(scripts.join("bench.sh"));
    bench.arg(kernel).arg(std::env::current_exe()?).arg(dir).env("TMPDIR", dir);
    // stdout is for the report.
    let stderr = File::from(std::io::stderr().as_fd().try_clone_to_owned()?);
    let status = bench.stdin(Stdio::null()).stdout(stderr).kill_on_drop(true).status().await?;
    ensure!(status.success(), "tests/vm/bench.sh: {status}");
    let (warm, many): (Told<Reads>, Told<many::Row>) = (told(dir, "warm")?, told(dir, "many")?);
    Ok(Measured { kernel: warm.machine.kernel, warm: warm.measured.rows, many: many.measured })
}

/// A report that was written in the VM, as far as it matters.
#[derive(Deserialize)]
struct Told<M> {
    machine: ToldMachine,
    measured: M,
}

#[derive(Deserialize)]
struct ToldMachine {
    kernel: String,
}

#[derive(Deserialize)]
struct Reads {
    rows: Vec<Read>,
}

/// The report of this bench in `dir`.
fn told<M: DeserializeOwned>(dir: &Path, name: &str) -> anyhow::Result<Told<M>> {
    let suffix = format!("-{name}.json");
    let mut entries = fs::read_dir(dir)?.filter_map(Result::ok);
    let found = entries.find(|entry| entry.file_name().to_string_lossy().ends_with(&suffix));
    let found = found.with_context(|| format!("the VM left no report of `{name}`"))?;
    Ok(serde_json::from_slice(&fs::read(found.path())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_bench_writes_in_the_vm_is_read_here() {
        let dir = tempfile::tempdir().unwrap();
        let took = Sample { n: 5, median_seconds: 0.5, ..Sample::default() };
        let rows = vec![warm::Row {
            work: Work::Random,
            below: Below::Pages,
            side: warm::RAW,
            took,
            sample_bytes: 4096,
            total_bytes: 4096,
            cpu_seconds: 0.0,
            cached: [1.0; 2],
        }];
        let measured = warm::Measured { file_bytes: 1, rows, kept: Vec::new(), cpu: Vec::new() };
        let link = crate::pack::Link { latency_seconds: 0.0, bandwidth_bytes_per_second: 1 };
        report::Report::begin(link).with(measured).save(dir.path()).unwrap();
        let read: Told<Reads> = told(dir.path(), "warm").unwrap();
        let measured = Measured { kernel: read.machine.kernel, warm: read.measured.rows, many: many::Row::default() };
        assert_eq!(measured.row(Work::Random, Below::Pages, warm::RAW).unwrap().took, took);
        assert!(told::<Reads>(dir.path(), "many").is_err());
    }
}

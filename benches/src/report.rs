//! What a run found out: JSON for programs, tables for people.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use penstock_agent::output::{Table, size};
use serde::Serialize;

use crate::{
    cold,
    machine::Machine,
    pack::{Facts, Link},
    path, start,
};

/// A run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What it ran on.
    pub machine: Machine,
    /// When it began, in seconds since 1970 (UTC).
    pub began_unix_seconds: u64,
    /// The link to the registry.
    pub link: Link,
    /// The images.
    pub image: Facts,
    /// Reads through image, cache and fetcher.
    pub path: Vec<path::Row>,
    /// Getting at files.
    pub start: Vec<start::Row>,
    /// Cold starts against their floor.
    pub cold: Vec<cold::Row>,
    /// What was not measured, and why.
    pub not_measured: Vec<String>,
}

impl Report {
    /// Writes the report as JSON into `dir`; answers the file.
    ///
    /// # Errors
    /// What writing says.
    pub fn save(&self, dir: &Path) -> io::Result<PathBuf> {
        let commit = self.machine.commit.trim_end_matches('+');
        save(dir, &format!("{}-{commit}.json", self.began_unix_seconds), self)
    }

    /// The report as text.
    #[must_use]
    pub fn tables(&self) -> String {
        let mut text = format!(
            "{}image: {} entries of {}; OverlayBD layer {}, tar.gz layers {}\n",
            circumstances(&self.machine, self.link),
            self.image.entries,
            size(self.image.content_bytes),
            size(self.image.lazy_bytes),
            size(self.image.ordinary_bytes),
        );
        for table in [self.path_table(), self.start_table(), cold::table(&self.cold)].into_iter().flatten() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{table}");
        }
        for reason in &self.not_measured {
            let _ = writeln!(text, "\n{reason}");
        }
        text
    }

    fn path_table(&self) -> Option<Table> {
        let titles = [
            "PATH",
            ">READ",
            ">AT ONCE",
            ">N",
            ">MEDIAN",
            ">P99",
            ">P99.9",
            ">MB/S",
            ">REQUESTS",
            ">FETCHED/READ",
            ">CPU S/GIB",
            ">MEMORY",
        ];
        let mut table = Table::new(&titles);
        for row in &self.path {
            let ratio = row.fetched_bytes as f64 / row.total_bytes as f64;
            table.row([
                row.name.to_owned(),
                size(row.read_bytes),
                row.readers.to_string(),
                row.latency.n.to_string(),
                time(row.latency.median_seconds),
                time(row.latency.p99_seconds),
                time(row.latency.p999_seconds),
                format!("{:.1}", row.total_bytes as f64 / row.seconds / 1e6),
                row.requests.to_string(),
                format!("{ratio:.2}"),
                format!("{:.2}", row.cpu_seconds / (row.total_bytes as f64 / f64::from(1 << 30))),
                size(row.memory_bytes),
            ]);
        }
        (!self.path.is_empty()).then_some(table)
    }

    fn start_table(&self) -> Option<Table> {
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
        for row in &self.start {
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
        (!self.start.is_empty()).then_some(table)
    }
}

/// Writes a report as JSON into `dir`; answers the file.
///
/// # Errors
/// What writing says.
pub fn save(dir: &Path, name: &str, report: &impl Serialize) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let path = dir.join(name);
    fs::write(&path, serde_json::to_vec_pretty(report)?)?;
    Ok(path)
}

/// The machine and the link as text, a line each.
pub(crate) fn circumstances(machine: &Machine, link: Link) -> String {
    let Machine { commit, cpu, cpus, memory_bytes, kernel, load_before, optimised } = machine;
    let warning =
        if *optimised { "" } else { "NOT OPTIMISED: these numbers mean nothing; run with --profile ci or --release\n" };
    format!(
        "{warning}commit {commit}, {cpus} x {cpu}, {} of memory, {kernel}, load {load_before:.1} before\n\
         link: {:.0} ms to each answer, {:.0} MB/s shared by all connections\n",
        size(*memory_bytes),
        link.latency_seconds * 1e3,
        link.bandwidth_bytes_per_second as f64 / 1e6,
    )
}

/// Seconds since 1970 (UTC).
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// A duration with the unit that suits it, three digits.
#[must_use]
pub fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "us"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_with_a_unit_and_three_digits() {
        for (seconds, expected) in
            [(1.5e-6, "1.50 us"), (0.000_25, "250 us"), (0.0213, "21.3 ms"), (0.25, "250 ms"), (12.34, "12.3 s")]
        {
            assert_eq!(time(seconds), expected);
        }
    }
}

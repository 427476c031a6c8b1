//! What a run found out: JSON for programs, tables for people.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use penstock_agent::output::size;
use serde::Serialize;

use crate::{machine::Machine, pack::Link};

/// What a bench measured.
pub trait Measured: Serialize {
    /// Which bench; part of the name of the report's file.
    const NAME: &'static str;

    /// As text.
    fn tables(&self) -> String;
}

/// One run of a bench. Begun before anything is done, so that the machine's load is the one before.
#[derive(Debug, Clone, Serialize)]
pub struct Report<M> {
    /// What it ran on.
    pub machine: Machine,
    /// When it began, in seconds since 1970 (UTC).
    pub began_unix_seconds: u64,
    /// The link to the registry.
    pub link: Link,
    /// What was measured.
    pub measured: M,
}

impl Report<()> {
    /// A run that begins now.
    #[must_use]
    pub fn begin(link: Link) -> Self {
        let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { machine: Machine::this(), began_unix_seconds: began.as_secs(), link, measured: () }
    }

    /// What it measured.
    #[must_use]
    pub fn with<M>(self, measured: M) -> Report<M> {
        let Self { machine, began_unix_seconds, link, measured: () } = self;
        Report { machine, began_unix_seconds, link, measured }
    }
}

impl<M: Measured> Report<M> {
    /// Writes the report as JSON into `dir`; answers the file.
    ///
    /// # Errors
    /// What writing says.
    pub fn save(&self, dir: &Path) -> io::Result<PathBuf> {
        fs::create_dir_all(dir)?;
        let commit = self.machine.commit.trim_end_matches('+');
        let path = dir.join(format!("{}-{commit}-{}.json", self.began_unix_seconds, M::NAME));
        fs::write(&path, serde_json::to_vec_pretty(self)?)?;
        Ok(path)
    }

    /// The report as text.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}", circumstances(&self.machine, self.link), self.measured.tables())
    }
}

/// The machine and the link as text, a line each.
fn circumstances(machine: &Machine, link: Link) -> String {
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

//! What this process uses.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use rustix::time::{ClockId, clock_gettime};

/// Processor time of all threads so far, user and system.
#[must_use]
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // Process time is never negative.
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Resident memory now that is not pages of files (`RssAnon`), in bytes; 0 where the kernel does not tell.
#[must_use]
pub fn anonymous_bytes() -> u64 {
    status_kib("RssAnon:") << 10
}

/// Resident memory now, in bytes; 0 where the kernel does not tell.
#[must_use]
pub fn resident_bytes() -> u64 {
    status_kib("VmRSS:") << 10
}

/// Bytes of a file that are in the page cache, as `fincore` (util-linux) counts them.
///
/// # Errors
/// When it is not installed, or cannot look at the file.
pub fn cached_bytes(file: &Path) -> anyhow::Result<u64> {
    let output = Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(file).output();
    let output = output.context("fincore cannot be run: install util-linux")?;
    ensure!(output.status.success(), "fincore failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

fn status_kib(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|value| value.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_and_memory_are_seen() {
        let (cpu, anonymous) = (cpu_time(), anonymous_bytes());
        let held: Vec<u8> = (0..32_u32 << 20).map(|n| n.to_le_bytes()[0]).collect();
        assert!(cpu_time() > cpu);
        assert!(anonymous_bytes() - anonymous > 16 << 20, "{} bytes are held", held.len());
        assert!(resident_bytes() >= anonymous_bytes());
    }
}

//! What a process takes of the machine.

use std::fs;

/// Numbers of one process at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// Open descriptors.
    pub descriptors: usize,
    /// Resident memory.
    pub resident_bytes: u64,
}

impl Sample {
    /// Of the process `pid`; `None` when it is gone.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok())?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some(Self { descriptors, resident_bytes: kib << 10 })
    }
}

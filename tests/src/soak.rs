//! The soak: random readers on one device while everything around it fails, for a set time.
//!
//! What is read is compared with what was put on the disk, byte for byte. The device's policy is to wait, so no read may fail either:
//! whatever is broken is mended within seconds. At the end a page of figures says what was done and what was seen.

pub mod chaos;
mod readers;
mod sample;

use std::{
    fmt,
    time::{Duration, Instant},
};

pub use chaos::Chaos;
use chaos::Struck;
pub use readers::{Read, Readers};
pub use sample::Sample;

/// What a soak has shown.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// How long readers read.
    pub lasted: Duration,
    /// What the readers saw.
    pub read: Read,
    /// What was done to them.
    pub struck: Struck,
    /// The agent at the beginning and at the end of the last, calm third.
    pub calm: [Sample; 2],
    /// The cap of the cache.
    pub cap_bytes: u64,
    /// What it takes of the disk at the end.
    pub used_bytes: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { read, struck, calm, .. } = self;
        writeln!(f, "soak: {:.0} s", self.lasted.as_secs_f64())?;
        writeln!(f, "  reads {}, bytes read {}, bytes compared {}", read.reads, read.bytes_read, read.bytes_compared)?;
        writeln!(
            f,
            "  wrong {}, failed {}, hung {}, longest read {:?}",
            read.wrong, read.failed, read.hung, read.longest
        )?;
        writeln!(
            f,
            "  agent killed {} times, registry faults {}, registry down {} times, disk full {} times",
            struck.kills, struck.faults, struck.downs, struck.full
        )?;
        let [from, to] = calm;
        writeln!(
            f,
            "  descriptors {} -> {}, resident {} -> {} MiB",
            from.descriptors,
            to.descriptors,
            from.resident_bytes >> 20,
            to.resident_bytes >> 20
        )?;
        write!(f, "  cache {} of at most {} MiB", self.used_bytes >> 20, self.cap_bytes >> 20)
    }
}

/// The time that is left until `end`.
#[must_use]
pub fn left(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

//! The numbers of a device, with their bounds.

use std::path::PathBuf;

use crate::Patience;

/// The most queues that a device has.
pub(crate) const MAX_QUEUES: u16 = 16;

/// How devices are made. Every field has a default that suits a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// ublk: hardware queues, each with a thread and a ring. One reads 100k blocks a second; more help machines with many
    /// readers. 1 to 16.
    pub queues: u16,
    /// ublk: requests that one queue may have open, hits and misses together; the block layer holds the rest back. 1 to 1024.
    pub depth: u16,
    /// The largest read in one request, in bytes: the size of the one buffer of each queue. The block layer splits larger
    /// reads. A power of two from 64 KiB to 1 MiB (FUSE cannot do more).
    pub max_io_bytes: u32,
    /// Misses of one queue at the source at once. Beyond it requests wait in the queue, unanswered: back-pressure. 1 to 1024.
    pub misses: u16,
    /// FUSE: where device `id` is mounted, as `<fuse_dir>/<id>/disk`.
    pub fuse_dir: PathBuf,
    /// ublk: a number that this agent alone uses on this node (derived from its state directory), kept by the kernel with each
    /// device, so that an agent started again knows its own leftovers.
    pub owner: u32,
    /// How long readers wait for bytes that have to be fetched, until [`crate::Device::set_patience`] says otherwise.
    pub patience: Patience,
}

/// A field of [`Config`] out of its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device setting {field} must be {bounds}, not {value}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What it may be.
    pub bounds: &'static str,
    /// What it is.
    pub value: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            queues: 1,
            depth: 128,
            max_io_bytes: 1 << 20,
            misses: 128,
            fuse_dir: PathBuf::from("/run/penstock/fuse"),
            owner: 0,
            patience: Patience::default(),
        }
    }
}

impl Config {
    /// Whether every number lies in its bounds.
    ///
    /// # Errors
    /// [`ConfigError`] with the first field that does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let within = |field, value: u64, low: u64, high: u64, bounds| {
            if (low..=high).contains(&value) { Ok(()) } else { Err(ConfigError { field, bounds, value }) }
        };
        within("queues", self.queues.into(), 1, MAX_QUEUES.into(), "from 1 to 16")?;
        within("depth", self.depth.into(), 1, 1024, "from 1 to 1024")?;
        within("misses", self.misses.into(), 1, 1024, "from 1 to 1024")?;
        let bounds = "a power of two from 65536 to 1048576";
        within("max_io_bytes", self.max_io_bytes.into(), 64 << 10, 1 << 20, bounds)?;
        if !self.max_io_bytes.is_power_of_two() {
            return Err(ConfigError { field: "max_io_bytes", bounds, value: self.max_io_bytes.into() });
        }
        self.patience.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_bounds_are_named() {
        assert_eq!(Config::default().check(), Ok(()));
        let field = |config: Config| config.check().unwrap_err().field;
        assert_eq!(field(Config { queues: 0, ..Config::default() }), "queues");
        assert_eq!(field(Config { queues: 17, ..Config::default() }), "queues");
        assert_eq!(field(Config { depth: 0, ..Config::default() }), "depth");
        assert_eq!(field(Config { misses: 2000, ..Config::default() }), "misses");
        assert_eq!(field(Config { max_io_bytes: 2 << 20, ..Config::default() }), "max_io_bytes");
        assert_eq!(field(Config { max_io_bytes: 100_000, ..Config::default() }), "max_io_bytes");
    }
}

//! The numbers of a device, with their bounds.

use std::path::PathBuf;

use crate::{Desks, Patience};

/// The most queues that a device has.
pub(crate) const MAX_QUEUES: u16 = 16;

/// The most queues that a device has unless it is told otherwise: four threads answer some 400k blocks a second, and a node has many devices.
const USUAL_QUEUES: usize = 4;

/// Requests that a device may have open unless it is told otherwise, over all of its queues: what the kernel keeps for them does not grow with the machine.
const USUAL_DEPTH: u16 = 128;

/// Queues of a device on a machine of so many processors: the kernel gives each the requests of two processors or more, so that its thread, which is kept to
/// these, need not wait for the one that its reader runs on.
fn queues_for(processors: usize) -> u16 {
    u16::try_from((processors / 2).clamp(1, USUAL_QUEUES)).unwrap_or(1)
}

/// How devices are made. Every field has a default that suits a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// ublk: hardware queues, each with a ring and a thread that is kept to the processors whose requests the kernel gives it. One reads
    /// 100k blocks a second. By default one for every two processors of this machine, at most 4. 1 to 16.
    pub queues: u16,
    /// ublk: requests that one queue may have open, hits and misses together; the block layer holds the rest back. By default 128 over all
    /// queues. 1 to 1024.
    pub depth: u16,
    /// The largest read in one request, in bytes: what the buffer of a desk grows to. The block layer splits larger
    /// reads. A power of two from 64 KiB to 1 MiB (FUSE cannot do more).
    pub max_io_bytes: u32,
    /// Misses of one queue at the source at once. Beyond it requests wait in the queue, unanswered: back-pressure. 1 to 1024.
    pub misses: u16,
    /// FUSE: where device `id` is mounted, as `<fuse_dir>/<id>/disk`.
    pub fuse_dir: PathBuf,
    /// ublk: a number that this agent alone uses on this node (derived from its state directory), kept by the kernel with each
    /// device, so that an agent started again knows its own leftovers.
    pub owner: u32,
    /// Where reads are put together: one set for all devices of a process, which bounds their memory.
    pub desks: Desks,
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
        let queues = queues_for(std::thread::available_parallelism().map_or(1, usize::from));
        Self {
            queues,
            depth: USUAL_DEPTH / queues,
            max_io_bytes: 1 << 20,
            misses: 128,
            fuse_dir: PathBuf::from("/run/penstock/fuse"),
            owner: 0,
            desks: Desks::default(),
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
    fn queues_grow_with_the_machine_and_open_requests_do_not() {
        for (processors, queues) in [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3), (8, 4), (256, 4)] {
            assert_eq!(queues_for(processors), queues, "{processors} processors");
            assert!((96..=128).contains(&(queues * (USUAL_DEPTH / queues))));
        }
    }

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

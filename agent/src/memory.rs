//! One budget of memory for all indexes and buffers: how it is split, and what of it is used.
//!
//! What can wait or be let go is bounded by a share of the budget, each enforced where it is used: reads wait for a desk, fetches for room,
//! what cannot be written soon is served and not kept, decoded frames make room for later ones. Shares are fixed, so that nobody waits for
//! memory that somebody holds who waits for him. What follows the cache is counted against the rest.

use std::{fs, sync::Arc, time::Duration};

use penstock_api::{self as api, MemoryPart, MemoryUser};
use penstock_cache::Cache;
use penstock_device::Desks;
use penstock_fetcher::Fetcher;
use penstock_layers::Unpacked;

use crate::config::Config;

/// The shares of a budget, in bytes. What they leave of it is for what is only counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split {
    /// Desks, where reads of devices are put together.
    pub(crate) devices_bytes: u64,
    /// In flight to registries.
    pub(crate) fetching_bytes: u64,
    /// Fetched, and not yet written to the cache.
    pub(crate) writing_bytes: u64,
    /// Decoded frames of ordinary layers.
    pub(crate) frames_bytes: u64,
}

impl Split {
    /// How `config`'s budget is split: three sixteenths, or what a full cache needs but half at most, for what is only counted; of the rest
    /// three parts of thirteen for devices, four for fetching, four for writing and two for frames. What is in flight also stays within
    /// the fetcher's own bound.
    pub(crate) fn of(config: &Config) -> Self {
        let budget = config.memory_budget_bytes;
        let full = penstock_cache::Memory::of_full(config.cache_cap_bytes, config.chunk_size);
        let counted = full.presence_bytes.saturating_add(full.index_bytes).min(budget / 2).max(budget / 16 * 3);
        let part = (budget - counted) / 13;
        Self {
            devices_bytes: 3 * part,
            fetching_bytes: config.fetch_bytes_in_flight.min(4 * part),
            writing_bytes: 4 * part,
            frames_bytes: 2 * part,
        }
    }
}

/// The budget, and the parts that can be asked what they use.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) budget_bytes: u64,
    pub(crate) split: Split,
    pub(crate) desks: Desks,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) unpacked: Arc<Unpacked>,
    pub(crate) cache: Arc<Cache>,
}

impl Memory {
    /// What is used now.
    pub(crate) fn report(&self) -> api::Memory {
        let cache = self.cache.memory();
        let bounded = |name, used_bytes, limit| MemoryPart { name, used_bytes, limit_bytes: Some(limit) };
        let counted = |name, used_bytes| MemoryPart { name, used_bytes, limit_bytes: None };
        let Split { devices_bytes, fetching_bytes, writing_bytes, frames_bytes } = self.split;
        let parts = vec![
            bounded(MemoryUser::Devices, self.desks.used_bytes(), devices_bytes),
            bounded(MemoryUser::Fetching, self.fetcher.in_flight_bytes(), fetching_bytes),
            bounded(MemoryUser::Writing, cache.pending_bytes, writing_bytes),
            bounded(MemoryUser::Frames, self.unpacked.recent_bytes(), frames_bytes),
            counted(MemoryUser::Presence, cache.presence_bytes),
            counted(MemoryUser::Index, cache.index_bytes),
        ];
        api::Memory {
            budget_bytes: self.budget_bytes,
            used_bytes: parts.iter().map(|part| part.used_bytes).sum(),
            resident_bytes: resident_bytes(),
            parts,
        }
    }
}

/// How often it is looked whether memory can be given back.
const LOOK: Duration = Duration::from_secs(10);
/// By how much the process has grown since the last time when it is worth it.
const GROWN_BYTES: u64 = 1 << 20;

/// Gives back to the kernel what was freed, some seconds after the process has grown: buffers of a burst of fetches are not kept for the next one.
pub(crate) async fn give_back() {
    let (mut looks, mut least) = (tokio::time::interval(LOOK), 0);
    loop {
        looks.tick().await;
        let Some(used) = resident_bytes() else { return };
        least = least.min(used);
        if used - least > GROWN_BYTES {
            // Only ends early when the runtime does.
            let _ = tokio::task::spawn_blocking(penstock_device::trim_heaps).await;
            least = resident_bytes().unwrap_or(used);
        }
    }
}

/// Bytes that this process has in memory beside pages of files; `None` where the kernel does not tell.
fn resident_bytes() -> Option<u64> {
    anonymous(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Bytes that the process has in memory beside pages of files, as proc(5) shows them.
fn anonymous(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_stay_within_the_budget_and_leave_room_for_what_is_counted() {
        for budget in [32 << 20, 64 << 20, (64 << 20) + 17, 1 << 30, 64 << 30] {
            for cap in [64 << 20, 10 << 30, 1 << 40, 1 << 50] {
                let sizes = (budget, cap);
                let config = Config {
                    memory_budget_bytes: budget,
                    cache_cap_bytes: cap,
                    fetch_bytes_in_flight: u64::MAX,
                    ..Config::default()
                };
                let Split { devices_bytes, fetching_bytes, writing_bytes, frames_bytes } = Split::of(&config);
                let all = devices_bytes + fetching_bytes + writing_bytes + frames_bytes;
                assert!(all <= budget - budget / 16 * 3 && all >= budget / 2 - 13, "{all} of {sizes:?}");
                // The largest request; the largest read, whose desk is lent in any case.
                assert!(fetching_bytes >= 4 << 20 && writing_bytes >= 4 << 20, "{sizes:?}");
                assert!(devices_bytes >= 2 << 20 && frames_bytes > 0, "{sizes:?}");
            }
        }
    }

    #[test]
    fn a_larger_cache_leaves_the_other_parts_less() {
        let split = |cache_cap_bytes| Split::of(&Config { cache_cap_bytes, ..Config::default() });
        let usual =
            Split { devices_bytes: 12 << 20, fetching_bytes: 16 << 20, writing_bytes: 16 << 20, frames_bytes: 8 << 20 };
        assert_eq!((split(10 << 30), split(100 << 30)), (usual, usual));
        let large = split(1 << 40);
        assert!(large.devices_bytes < usual.devices_bytes && large.frames_bytes < usual.frames_bytes);
        assert_eq!(split(1 << 50).writing_bytes, (32 << 20) / 13 * 4, "half of the budget stays");
    }

    #[test]
    fn what_is_in_flight_stays_within_both_bounds() {
        let split = |fetch_bytes_in_flight| Split::of(&Config { fetch_bytes_in_flight, ..Config::default() });
        assert_eq!(split(8 << 20).fetching_bytes, 8 << 20);
        assert_eq!(split(1 << 30).fetching_bytes, 16 << 20);
    }

    #[test]
    fn resident_memory_is_what_the_kernel_says() {
        assert_eq!(anonymous("VmRSS:\t  9000 kB\nRssAnon:\t    1234 kB\nRssFile:\t 1 kB\n"), Some(1234 << 10));
        assert_eq!(anonymous("VmRSS:\t  9000 kB\n"), None);
        assert!(anonymous(&fs::read_to_string("/proc/self/status").unwrap()).unwrap() > 0);
    }
}

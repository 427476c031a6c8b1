//! The way to a registry, as far as it was measured: what explanations and estimates are made of.

use std::time::Duration;

use crate::Fetcher;

impl Fetcher {
    /// What is known of the way to those who are asked for the content of this registry; of several the best.
    #[must_use]
    pub fn link(&self, registry: &str) -> Link {
        let registries = self.registries();
        let endpoints =
            registries.iter().filter(|status| status.registry == registry).flat_map(|status| &status.endpoints);
        Link {
            latency: endpoints.clone().filter_map(|endpoint| endpoint.delay).min(),
            bytes_per_second: endpoints.filter_map(|endpoint| endpoint.bytes_per_second).max(),
        }
    }
}

/// The way to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// Time to an answer when nothing queues on the way.
    pub latency: Option<Duration>,
    /// The most that came from there lately, in bytes in a second: the way carries that much at least.
    pub bytes_per_second: Option<u64>,
}

//! The lease under which an image is written.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use penstock_blob::Digest;
use prost_types::Timestamp;

/// How long containerd keeps what was written for an image that was not finished: a weekend. A try that ends well gives it back at once.
pub const LEASE: Duration = Duration::from_secs(72 * 3600);

/// When a lease ends of itself (containerd's garbage collection).
const EXPIRES: &str = "containerd.io/gc.expire";

/// The same for each try at the same image, so that one goes on where the last ended.
pub(super) fn id(manifest: Digest) -> String {
    format!("penstock-pull-{}", manifest.to_hex())
}

/// The labels of a lease that begins at `now`.
pub(super) fn labels(now: SystemTime) -> BTreeMap<String, String> {
    [(EXPIRES.to_owned(), Timestamp::from(now + LEASE).to_string())].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_at_a_time_that_containerd_can_read() {
        let labels = labels(SystemTime::UNIX_EPOCH);
        assert_eq!(labels["containerd.io/gc.expire"], "1970-01-04T00:00:00Z");
        assert_ne!(id(Digest::of(b"a")), id(Digest::of(b"b")));
    }
}

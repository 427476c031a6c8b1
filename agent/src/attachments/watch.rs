//! The source of one device, watched: what its readers could not get becomes an event.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, ByteRange, Giver, Located, Purpose, ReadFuture};
use penstock_device::DeviceId;

use crate::events::{Events, Kind};

/// At most one event of a device in this time: a registry that is down fails every read, and the ring has room for other things.
const PAUSE: Duration = Duration::from_secs(10);

/// A source that tells when it fails. Adds nothing to a `locate`.
#[derive(Debug)]
pub(super) struct Watched {
    below: Arc<dyn BlobSource>,
    device: DeviceId,
    events: Events,
    told: Mutex<Told>,
}

/// When something was told last, and what was not since.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    at: Option<Instant>,
    untold: u64,
}

impl Told {
    /// Whether to tell now; then, how many were not told before.
    fn tell(&mut self, now: Instant) -> Option<u64> {
        if self.at.is_some_and(|at| now.duration_since(at) < PAUSE) {
            self.untold += 1;
            return None;
        }
        self.at = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

impl Watched {
    pub(super) fn new(below: Arc<dyn BlobSource>, device: DeviceId, events: Events) -> Arc<Self> {
        Arc::new(Self { below, device, events, told: Mutex::default() })
    }

    fn tell(&self, kind: Kind, what: &str) {
        let Some(untold) = self.told.lock().tell(Instant::now()) else { return };
        let text = match untold {
            0 => what.to_owned(),
            more => format!("{what} (and {more} more failures since the last event)"),
        };
        self.events.record(kind, &text, &[("device", self.device.as_str())]);
    }
}

impl BlobSource for Watched {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.below.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let outcome = self.below.read(blob, range, purpose).await;
            if let Err(error) = &outcome {
                self.tell(Kind::DeviceReadFailed, &error.to_string());
            }
            outcome
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.tell(
            Kind::DeviceBytesRejected,
            &format!("bytes {range} of blob {} fail a check; they are fetched again", blob.digest),
        );
        self.below.reject(blob, range);
    }

    fn giver(&self, blob: &Blob, range: ByteRange) -> Option<Giver> {
        self.below.giver(blob, range)
    }
}

#[cfg(test)]
mod tests {
    use penstock_blob::{
        conformance,
        faults::{Flaky, Memory},
    };

    use super::*;

    fn watched(below: Arc<dyn BlobSource>) -> (Arc<Watched>, Events) {
        let events = Events::new();
        (Watched::new(below, "d".parse().unwrap(), events.clone()), events)
    }

    #[tokio::test]
    async fn a_watched_source_keeps_the_promise_of_sources() {
        let bytes = bytes::Bytes::from(vec![5; 100_000]);
        let memory = Memory::new(vec![bytes.clone()]);
        let blob = memory.blob(0);
        conformance::check(watched(memory).0, &[(blob, bytes)]).await;
    }

    #[tokio::test]
    async fn a_failed_read_is_an_event_and_many_are_not_many() {
        let memory = Memory::new(vec![vec![5; 1000].into()]);
        let blob = memory.blob(0);
        let (source, events) = watched(Arc::new(Flaky::new(memory, 3)));
        for _ in 0..3 {
            source.read(blob, blob.all().unwrap(), Purpose::Demand).await.unwrap_err();
        }
        source.read(blob, blob.all().unwrap(), Purpose::Demand).await.unwrap();
        let seen = events.since(0, 10).events;
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].kind.as_str(), seen[0].fields["device"].as_str()), ("device.read_failed", "d"));
    }

    #[test]
    fn what_was_not_told_is_counted_when_something_is() {
        let mut told = Told::default();
        let start = Instant::now();
        assert_eq!(told.tell(start), Some(0));
        assert_eq!(told.tell(start + PAUSE / 2), None);
        assert_eq!(told.tell(start + PAUSE / 2), None);
        assert_eq!(told.tell(start + PAUSE), Some(2));
        assert_eq!(told.tell(start + PAUSE * 2), Some(0));
    }
}

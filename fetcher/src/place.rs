//! Which repositories hold which blob.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use penstock_blob::Digest;

use crate::{
    Reference,
    auth::{Action, Scope},
    config::Config,
    endpoint::{Endpoint, EndpointFetched},
    location::Location,
};

/// Most endpoints whose counts are kept once nothing is served from them any more.
const MAX_ENDPOINTS: usize = 256;

/// One blob in one repository of one endpoint.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) repository: String,
    pub(crate) location: Location,
    /// Tries that failed since one succeeded: the place asked first is the one with the fewest.
    failing: AtomicU32,
}

impl Place {
    pub(crate) fn scope(&self) -> Scope {
        Scope { host: self.endpoint.host.clone(), repository: self.repository.clone(), action: Action::Pull }
    }

    pub(crate) fn succeeded(&self) {
        self.failing.store(0, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failing.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Entry {
    place: Arc<Place>,
    /// How many `serve` are not undone by a `forget`.
    served: u32,
}

#[derive(Debug, Default)]
struct Held {
    entries: Vec<Entry>,
    /// Who gave bytes last: who is blamed when they are rejected.
    last: Option<Arc<Place>>,
}

/// The table, changed by the control plane and read by every fetch.
#[derive(Debug, Default)]
pub(crate) struct Places {
    blobs: RwLock<HashMap<Digest, Held>>,
    endpoints: Mutex<HashMap<String, Arc<Endpoint>>>,
}

impl Places {
    /// The endpoint of a host; one per host, so that its counts and its quiet are shared.
    pub(crate) fn endpoint(&self, host: &str, config: &Config) -> Option<Arc<Endpoint>> {
        let mut endpoints = self.endpoints.lock();
        if let Some(endpoint) = endpoints.get(host) {
            return Some(endpoint.clone());
        }
        if endpoints.len() >= MAX_ENDPOINTS {
            endpoints.retain(|_, endpoint| Arc::strong_count(endpoint) > 1);
        }
        let endpoint = Arc::new(Endpoint::new(host, config)?);
        endpoints.insert(host.to_owned(), endpoint.clone());
        Some(endpoint)
    }

    pub(crate) fn serve(&self, digest: Digest, endpoint: &Arc<Endpoint>, from: &Reference) {
        let mut blobs = self.blobs.write();
        let held = blobs.entry(digest).or_default();
        if let Some(entry) = held.entries.iter_mut().find(|entry| entry.is(from)) {
            entry.served = entry.served.saturating_add(1);
            return;
        }
        let place = Place {
            endpoint: endpoint.clone(),
            repository: from.repository().to_owned(),
            location: Location::new(),
            failing: AtomicU32::new(0),
        };
        held.entries.push(Entry { place: Arc::new(place), served: 1 });
    }

    pub(crate) fn forget(&self, digest: &Digest, from: &Reference) {
        let mut blobs = self.blobs.write();
        let Some(held) = blobs.get_mut(digest) else { return };
        if let Some(entry) = held.entries.iter_mut().find(|entry| entry.is(from)) {
            entry.served -= 1;
        }
        held.entries.retain(|entry| entry.served > 0);
        if held.entries.is_empty() {
            blobs.remove(digest);
        }
    }

    /// Where a blob can be asked for, the most promising first.
    pub(crate) fn of(&self, digest: &Digest) -> Vec<Arc<Place>> {
        let mut places: Vec<Arc<Place>> = match self.blobs.read().get(digest) {
            Some(held) => held.entries.iter().map(|entry| entry.place.clone()).collect(),
            None => Vec::new(),
        };
        places.sort_by_cached_key(|place| place.failing.load(Ordering::Relaxed));
        places
    }

    /// `place` gave bytes of a blob.
    pub(crate) fn gave(&self, digest: &Digest, place: &Arc<Place>) {
        place.succeeded();
        let is_known = |held: &Held| held.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, place));
        if self.blobs.read().get(digest).is_none_or(is_known) {
            return;
        }
        if let Some(held) = self.blobs.write().get_mut(digest) {
            held.last = Some(place.clone());
        }
    }

    /// A reader found that bytes of a blob are wrong: whoever gave them last is asked last.
    pub(crate) fn reject(&self, digest: &Digest) {
        if let Some(last) = self.blobs.read().get(digest).and_then(|held| held.last.as_ref()) {
            last.failed();
            last.endpoint.rejected();
        }
    }

    pub(crate) fn fetched(&self) -> Vec<EndpointFetched> {
        let mut all: Vec<EndpointFetched> = self.endpoints.lock().values().map(|endpoint| endpoint.fetched()).collect();
        all.sort_by(|a, b| a.host.cmp(&b.host));
        all
    }
}

impl Entry {
    fn is(&self, from: &Reference) -> bool {
        self.place.endpoint.host == from.host() && self.place.repository == from.repository()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_stays_until_every_serve_is_undone() {
        let places = Places::default();
        let config = Config::default();
        let endpoint = places.endpoint("r.io", &config).unwrap();
        let digest = Digest::of(b"blob");
        let [v1, v2, other]: [Reference; 3] = ["r.io/a:v1", "r.io/a:v2", "r.io/b"].map(|text| text.parse().unwrap());
        for from in [&v1, &v2, &other] {
            places.serve(digest, &endpoint, from);
        }
        assert_eq!(places.of(&digest).len(), 2, "tags of one repository are one place");
        places.forget(&digest, &v1);
        places.forget(&digest, &other);
        assert_eq!(places.of(&digest).len(), 1);
        places.forget(&digest, &v2);
        places.forget(&digest, &v2);
        assert!(places.of(&digest).is_empty());
    }

    #[test]
    fn who_gave_rejected_bytes_is_asked_last_and_counted() {
        let places = Places::default();
        let config = Config::default();
        let digest = Digest::of(b"blob");
        for from in ["a.io/x", "b.io/x"] {
            let from: Reference = from.parse().unwrap();
            places.serve(digest, &places.endpoint(from.host(), &config).unwrap(), &from);
        }
        places.reject(&digest);
        let first = |places: &Places| places.of(&digest)[0].endpoint.host.clone();
        assert_eq!(first(&places), "a.io");
        places.gave(&digest, &places.of(&digest)[0]);
        places.reject(&digest);
        assert_eq!(first(&places), "b.io");
        assert_eq!(places.fetched().iter().map(|e| e.rejects).collect::<Vec<_>>(), [1, 0]);
    }
}

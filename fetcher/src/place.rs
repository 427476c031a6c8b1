//! Which repositories hold which blob, and at which endpoints they are asked for.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use penstock_blob::Digest;
use reqwest::Url;
use tokio::time::Instant;

use crate::{
    Reference,
    auth::{Action, Scope},
    breaker::Admission,
    choice::{self, Candidate},
    endpoint::Endpoint,
    location::Location,
    namespace::{Host, Namespace},
};

/// One blob in one repository of one endpoint.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) repository: String,
    /// The registry meant, said to a mirror.
    ns: Option<String>,
    pub(crate) location: Location,
    /// Until when others are asked for this blob first.
    avoided_until: Mutex<Option<Instant>>,
}

impl Place {
    fn new(repository: &str, host: &Host) -> Self {
        Self {
            endpoint: host.endpoint.clone(),
            repository: repository.to_owned(),
            ns: host.ns.clone(),
            location: Location::new(),
            avoided_until: Mutex::new(None),
        }
    }

    pub(crate) fn scope(&self) -> Scope {
        let repository = self.endpoint.full_name(&self.repository);
        Scope { host: self.endpoint.host.clone(), repository, action: Action::Pull }
    }

    pub(crate) fn url(&self, digest: &Digest) -> Option<Url> {
        self.endpoint.url(&self.repository, "blobs", &digest.to_string(), self.ns.as_deref())
    }

    /// Whether it is asked in the place of the registry meant.
    pub(crate) const fn is_mirror(&self) -> bool {
        self.ns.is_some()
    }

    /// Others are asked first for this long; whether that is new.
    pub(crate) fn avoid(&self, time: Duration) -> bool {
        let now = Instant::now();
        let mut until = self.avoided_until.lock();
        let is_new = until.is_none_or(|until| now >= until);
        *until = Some(until.map_or(now + time, |until| until.max(now + time)));
        is_new
    }

    fn is_avoided(&self) -> bool {
        self.avoided_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Whether there is reason to hope that it has the bytes: it is neither avoided nor broken nor wants to be left alone.
    pub(crate) fn is_usable(&self) -> bool {
        let (admission, ..) = self.endpoint.standing();
        !self.is_avoided() && admission != Admission::Shut && self.endpoint.quiet().is_zero()
    }

    fn candidate(&self) -> Candidate {
        let (admission, stalling, average) = self.endpoint.standing();
        Candidate { admission, avoided: self.is_avoided(), stalling, average }
    }
}

#[derive(Debug)]
struct Entry {
    namespace: Arc<Namespace>,
    repository: String,
    /// How many `serve` are not undone by a `forget`.
    served: u32,
    /// The places as of a generation of the namespace.
    places: Mutex<(u64, Vec<Arc<Place>>)>,
}

impl Entry {
    fn is(&self, from: &Reference) -> bool {
        self.namespace.registry == from.registry() && self.repository == from.repository()
    }

    /// Places follow the namespace; one whose endpoint is still asked stays, and what was learnt of it.
    fn places(&self) -> Vec<Arc<Place>> {
        let current = self.namespace.current();
        let mut places = self.places.lock();
        if places.0 != current.generation {
            let known = std::mem::take(&mut places.1);
            let same = |place: &Place, host: &Host| Arc::ptr_eq(&place.endpoint, &host.endpoint) && place.ns == host.ns;
            let pulled = current.hosts.iter().filter(|host| host.capabilities.pull);
            let place = |host: &Host| match known.iter().find(|place| same(place, host)) {
                Some(place) => place.clone(),
                None => Arc::new(Place::new(&self.repository, host)),
            };
            *places = (current.generation, pulled.map(place).collect());
        }
        places.1.clone()
    }
}

/// The table, changed by the control plane and read by every fetch.
#[derive(Debug, Default)]
pub(crate) struct Places {
    blobs: RwLock<HashMap<Digest, Vec<Entry>>>,
}

impl Places {
    pub(crate) fn serve(&self, digest: Digest, namespace: &Arc<Namespace>, from: &Reference) {
        let mut blobs = self.blobs.write();
        let entries = blobs.entry(digest).or_default();
        if let Some(entry) = entries.iter_mut().find(|entry| entry.is(from)) {
            entry.served = entry.served.saturating_add(1);
            return;
        }
        entries.push(Entry {
            namespace: namespace.clone(),
            repository: from.repository().to_owned(),
            served: 1,
            places: Mutex::new((0, Vec::new())),
        });
    }

    pub(crate) fn forget(&self, digest: &Digest, from: &Reference) {
        let mut blobs = self.blobs.write();
        let Some(entries) = blobs.get_mut(digest) else { return };
        if let Some(entry) = entries.iter_mut().find(|entry| entry.is(from)) {
            entry.served -= 1;
        }
        entries.retain(|entry| entry.served > 0);
        if entries.is_empty() {
            blobs.remove(digest);
        }
    }

    /// Whether anybody is known to hold the blob.
    pub(crate) fn knows(&self, digest: &Digest) -> bool {
        self.blobs.read().contains_key(digest)
    }

    /// The registries that hold a blob.
    pub(crate) fn namespaces(&self, digest: &Digest) -> Vec<Arc<Namespace>> {
        let blobs = self.blobs.read();
        blobs.get(digest).into_iter().flatten().map(|entry| entry.namespace.clone()).collect()
    }

    /// Where a blob can be asked for, the first to be asked first.
    pub(crate) fn of(&self, digest: &Digest) -> Vec<Arc<Place>> {
        let blobs = self.blobs.read();
        let places: Vec<Arc<Place>> = blobs.get(digest).into_iter().flatten().flat_map(Entry::places).collect();
        drop(blobs);
        let candidates: Vec<Candidate> = places.iter().map(|place| place.candidate()).collect();
        choice::order(&candidates).into_iter().map(|at| places[at].clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;

    use super::*;
    use crate::{Config, dial::Dialer, metrics::Metrics, namespace::Namespaces};

    fn namespaces() -> Namespaces {
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let dialer = Arc::new(Dialer::new(&Config::default(), metrics).unwrap());
        Namespaces::new(dialer, broadcast::channel(8).0)
    }

    #[tokio::test]
    async fn a_blob_stays_until_every_serve_is_undone() {
        let (places, namespaces) = (Places::default(), namespaces());
        let digest = Digest::of(b"blob");
        let [v1, v2, other]: [Reference; 3] = ["r.io/a:v1", "r.io/a:v2", "r.io/b"].map(|text| text.parse().unwrap());
        for from in [&v1, &v2, &other] {
            let namespace = namespaces.of(from);
            namespaces.refresh(&namespace).await;
            places.serve(digest, &namespace, from);
        }
        assert_eq!(places.of(&digest).len(), 2, "tags of one repository are one place");
        places.forget(&digest, &v1);
        places.forget(&digest, &other);
        assert_eq!(places.of(&digest).len(), 1);
        places.forget(&digest, &v2);
        places.forget(&digest, &v2);
        assert!(places.of(&digest).is_empty() && !places.knows(&digest));
    }

    #[tokio::test(start_paused = true)]
    async fn an_avoided_place_is_asked_last_for_a_while() {
        let (places, namespaces) = (Places::default(), namespaces());
        let digest = Digest::of(b"blob");
        for from in ["a.io/x", "b.io/x"] {
            let from: Reference = from.parse().unwrap();
            let namespace = namespaces.of(&from);
            namespaces.refresh(&namespace).await;
            places.serve(digest, &namespace, &from);
        }
        let hosts = || places.of(&digest).iter().map(|place| place.endpoint.host.clone()).collect::<Vec<_>>();
        assert_eq!(hosts(), ["a.io", "b.io"]);
        let first = places.of(&digest)[0].clone();
        assert!(first.avoid(Duration::from_secs(10)));
        assert!(!first.avoid(Duration::from_secs(5)), "that is no news");
        assert_eq!(hosts(), ["b.io", "a.io"]);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(hosts(), ["a.io", "b.io"]);
    }
}

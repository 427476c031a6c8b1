//! Registries as references name them, and the endpoints that are asked for their content.
//!
//! What `hosts.toml` says is read before the first question and again when it may have changed, at most once in
//! `Config::hosts_recheck`. Files are compared by what they say, not by their time: a mounted Kubernetes ConfigMap changes by a
//! symbolic link, and two edits can fall into one tick of a clock. An endpoint of which nothing was changed keeps its health.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use tokio::{sync::broadcast, time::Instant};

use crate::{
    Reference,
    config::Config,
    dial::Dialer,
    endpoint::{Endpoint, EndpointFetched, status::RegistryStatus},
    event::Event,
    hosts::{self, Capabilities, Loaded, Spec},
};

/// Most registries kept once nothing is served from them any more. A node uses a handful.
const MAX_NAMESPACES: usize = 256;
/// Most endpoints whose counts are kept once nobody is asked there any more.
const MAX_ENDPOINTS: usize = 256;

/// One who is asked for a registry's content.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) capabilities: Capabilities,
    /// The registry meant, said to an endpoint that is not the registry itself.
    pub(crate) ns: Option<String>,
}

/// Whom to ask, as last read.
#[derive(Debug, Default)]
pub(crate) struct Current {
    /// Grows with every change.
    pub(crate) generation: u64,
    pub(crate) hosts: Vec<Host>,
    loaded: Option<Loaded>,
    fault: Option<String>,
}

/// One registry.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// As references name it.
    pub(crate) registry: String,
    /// The host of its own API.
    host: String,
    current: RwLock<Arc<Current>>,
    /// Held by the one who reads its files.
    reading: tokio::sync::Mutex<()>,
    read_at: Mutex<Option<Instant>>,
    /// Whether reads fail, so that it is said once.
    failing: AtomicBool,
}

impl Namespace {
    pub(crate) fn current(&self) -> Arc<Current> {
        self.current.read().clone()
    }

    /// A read succeeded or failed; whether that is news.
    pub(crate) fn fails(&self, failing: bool) -> bool {
        self.failing.swap(failing, Ordering::Relaxed) != failing
    }

    fn is_fresh(&self, config: &Config) -> bool {
        self.read_at.lock().is_some_and(|at| at.elapsed() < config.hosts_recheck)
    }

    pub(crate) fn status(&self) -> RegistryStatus {
        let current = self.current();
        let last = current.hosts.len().saturating_sub(1);
        let endpoints = current.hosts.iter().enumerate();
        RegistryStatus {
            registry: self.registry.clone(),
            hosts_dir: current.loaded.as_ref().and_then(|loaded| loaded.dir.clone()),
            hosts_fault: current.fault.clone(),
            endpoints: endpoints.map(|(at, h)| h.endpoint.status(h.capabilities.names(), at == last)).collect(),
        }
    }
}

/// All registries, and all endpoints.
#[derive(Debug)]
pub(crate) struct Namespaces {
    dialer: Arc<Dialer>,
    events: broadcast::Sender<Event>,
    all: Mutex<HashMap<String, Arc<Namespace>>>,
    endpoints: Mutex<Vec<Arc<Endpoint>>>,
    next_id: AtomicU64,
}

impl Namespaces {
    pub(crate) fn new(dialer: Arc<Dialer>, events: broadcast::Sender<Event>) -> Self {
        Self { dialer, events, all: Mutex::default(), endpoints: Mutex::default(), next_id: AtomicU64::new(1) }
    }

    /// The registry of a reference. Its files are not read yet.
    pub(crate) fn of(&self, reference: &Reference) -> Arc<Namespace> {
        let mut all = self.all.lock();
        if let Some(known) = all.get(reference.registry()) {
            return known.clone();
        }
        if all.len() >= MAX_NAMESPACES {
            all.retain(|_, namespace| Arc::strong_count(namespace) > 1);
        }
        let namespace = Arc::new(Namespace {
            registry: reference.registry().to_owned(),
            host: reference.host().to_owned(),
            current: RwLock::default(),
            reading: tokio::sync::Mutex::new(()),
            read_at: Mutex::new(None),
            failing: AtomicBool::new(false),
        });
        all.insert(namespace.registry.clone(), namespace.clone());
        namespace
    }

    /// Reads a registry's files again if that was some time ago. While one does, the others go on with what was read before, but
    /// nobody goes on without anything.
    pub(crate) async fn refresh(&self, namespace: &Arc<Namespace>) {
        if namespace.is_fresh(&self.dialer.config) {
            return;
        }
        let known = namespace.current().generation > 0;
        let Ok(_reading) = (if known { namespace.reading.try_lock() } else { Ok(namespace.reading.lock().await) })
        else {
            return;
        };
        if namespace.is_fresh(&self.dialer.config) {
            return;
        }
        let (dialer, asked) = (self.dialer.clone(), namespace.clone());
        let load = move || {
            let config = &dialer.config;
            hosts::load(&config.hosts_dirs, &asked.registry, &asked.host, config).map_err(|error| error.to_string())
        };
        let loaded = tokio::task::spawn_blocking(load).await;
        let loaded = loaded.unwrap_or_else(|error| Err(format!("reading its files ended abnormally: {error}")));
        self.take(namespace, loaded);
        *namespace.read_at.lock() = Some(Instant::now());
    }

    /// Takes over what the files say, when it is something else than before.
    fn take(&self, namespace: &Namespace, loaded: Result<Loaded, String>) {
        let before = namespace.current();
        let made = loaded.and_then(|loaded| {
            if before.loaded.as_ref() == Some(&loaded) && before.fault.is_none() {
                return Ok(None);
            }
            let hosts = self.hosts(namespace, &loaded)?;
            Ok(Some((loaded, hosts)))
        });
        match made {
            Ok(None) => {}
            Ok(Some((loaded, hosts))) => {
                loaded.notices.iter().for_each(|notice| tracing::warn!("{notice}"));
                if before.generation > 0 {
                    let endpoints = hosts.iter().map(|host| host.endpoint.web.spec().base.shown()).collect();
                    self.say(Event::HostsTaken { registry: namespace.registry.clone(), endpoints });
                }
                let generation = before.generation + 1;
                *namespace.current.write() = Arc::new(Current { generation, hosts, loaded: Some(loaded), fault: None });
            }
            Err(reason) if before.fault.as_ref() == Some(&reason) => {}
            Err(reason) => {
                self.say(Event::HostsRefused { registry: namespace.registry.clone(), reason: reason.clone() });
                // What held before still does; before anything did, the registry itself is asked.
                let hosts = match before.hosts.is_empty() {
                    true => self.itself(namespace),
                    false => before.hosts.clone(),
                };
                let (generation, loaded) = (before.generation + 1, before.loaded.clone());
                *namespace.current.write() = Arc::new(Current { generation, hosts, loaded, fault: Some(reason) });
            }
        }
    }

    /// The registry's own API, whatever its files say.
    pub(crate) fn server(&self, reference: &Reference) -> Result<Arc<Endpoint>, String> {
        self.endpoint(hosts::itself(reference.host(), &self.dialer.config).0)
    }

    fn itself(&self, namespace: &Namespace) -> Vec<Host> {
        let (spec, capabilities) = hosts::itself(&namespace.host, &self.dialer.config);
        let endpoint = self.endpoint(spec);
        endpoint.map(|endpoint| vec![Host { endpoint, capabilities, ns: None }]).unwrap_or_default()
    }

    fn hosts(&self, namespace: &Namespace, loaded: &Loaded) -> Result<Vec<Host>, String> {
        let dir = loaded.dir.as_deref().map(|dir| format!("{}: ", dir.display())).unwrap_or_default();
        let host = |(spec, capabilities): &(Spec, Capabilities)| {
            let is_registry = spec.base.authority == namespace.host || spec.base.authority == namespace.registry;
            let ns = (!is_registry).then(|| namespace.registry.clone());
            let endpoint =
                self.endpoint(spec.clone()).map_err(|reason| format!("{dir}{}: {reason}", spec.base.shown()))?;
            Ok(Host { endpoint, capabilities: *capabilities, ns })
        };
        loaded.hosts.iter().map(host).collect()
    }

    /// The endpoint that is spoken to as `spec` says; one for all registries, so that its health is shared.
    fn endpoint(&self, spec: Spec) -> Result<Arc<Endpoint>, String> {
        let mut endpoints = self.endpoints.lock();
        if let Some(known) = endpoints.iter().find(|endpoint| *endpoint.web.spec() == spec) {
            return Ok(known.clone());
        }
        if endpoints.len() >= MAX_ENDPOINTS {
            endpoints.retain(|endpoint| Arc::strong_count(endpoint) > 1);
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let endpoint = Arc::new(Endpoint::new(id, &self.dialer, spec)?);
        endpoints.push(endpoint.clone());
        Ok(endpoint)
    }

    fn say(&self, event: Event) {
        // Nobody may be listening.
        let _nobody = self.events.send(event);
    }

    /// Every registry, sorted by name.
    pub(crate) fn status(&self) -> Vec<RegistryStatus> {
        let mut all: Vec<_> = self.all.lock().values().map(|namespace| namespace.status()).collect();
        all.sort_by(|a, b| a.registry.cmp(&b.registry));
        all
    }

    /// What was fetched, by host and sorted by it.
    pub(crate) fn fetched(&self) -> Vec<EndpointFetched> {
        let mut all: Vec<EndpointFetched> = self.endpoints.lock().iter().map(|endpoint| endpoint.fetched()).collect();
        all.sort_by(|a, b| a.host.cmp(&b.host));
        all.dedup_by(|later, first| {
            let same = later.host == first.host;
            if same {
                first.requests += later.requests;
                first.bytes += later.bytes;
                first.failures += later.failures;
                first.rejects += later.rejects;
            }
            same
        });
        all
    }
}

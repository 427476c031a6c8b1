//! What devices read: the sources, how they are set up by the config, and what they have to say.

use std::sync::Arc;

use penstock_cache::Cache;
use penstock_fetcher::Fetcher;
use penstock_index::Verified;
use penstock_layers::Unpacked;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;

use super::StartError;
use crate::{
    config::Config,
    events::{self, Events},
    indexes::{self, Indexes},
    layers,
    memory::Split,
    state::StateDir,
};

/// The sources, the lowest first; each reads the one before. The first one between is steered by what finds indexes.
pub(super) type Sources = (Arc<Fetcher>, (Indexes, Arc<Unpacked>), Arc<Cache>);

/// What devices read: the cache, which reads the source that decodes, which reads the one that verifies, which reads the fetcher.
pub(super) async fn open(
    config: &Config,
    (state, events): (&StateDir, &Events),
    registry: &mut Registry,
) -> Result<Sources, StartError> {
    let fetcher = Fetcher::new(fetcher_config(config), registry.sub_registry_with_prefix("fetcher"))?;
    let index_config = penstock_index::Config { dir: state.indexes(), deadline: config.fetch_deadline };
    let index_metrics = registry.sub_registry_with_prefix("index");
    let verified = Verified::new(Arc::clone(&fetcher) as _, index_config, index_metrics);
    let unpacked = {
        let recent_bytes = usize::try_from(Split::of(config).frames_bytes).unwrap_or(usize::MAX);
        let decodes = std::thread::available_parallelism().map_or(1, usize::from);
        let config = penstock_layers::Config { deadline: config.fetch_deadline, decodes, recent_bytes };
        Unpacked::new(Arc::clone(&verified) as _, config, registry.sub_registry_with_prefix("layers"))
    };
    let metrics = registry.sub_registry_with_prefix("cache");
    let cache = Cache::open(cache_config(config), Arc::clone(&unpacked) as _, metrics).await?;
    let indexes = Indexes {
        fetcher: Arc::clone(&fetcher),
        cache: Arc::clone(&cache),
        verified,
        dir: state.indexes(),
        require: config.verify_require,
        deadline: config.verify_deadline,
        events: events.clone(),
    };
    Ok((fetcher, (indexes, unpacked), cache))
}

/// What the sources have to say goes into the events.
pub(super) async fn watch((fetcher, (indexes, unpacked), cache): &Sources, events: &Events) -> JoinSet<()> {
    events::credentials::check(fetcher, events).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(events::fetcher::pass_on(fetcher.events(), events.clone()));
    tasks.spawn(events::cache::pass_on(cache.events(), events.clone()));
    tasks.spawn(indexes::pass_on(indexes.verified.events(), events.clone()));
    tasks.spawn(layers::pass_on(unpacked.events(), events.clone()));
    tasks
}

/// How the fetcher is set up by this config.
pub(crate) fn fetcher_config(config: &Config) -> penstock_fetcher::Config {
    penstock_fetcher::Config {
        deadline: config.fetch_deadline,
        max_requests: usize::try_from(config.fetch_requests_in_flight).unwrap_or(usize::MAX),
        max_bytes: Split::of(config).fetching_bytes,
        ca_bundle: config.ca_bundle.clone(),
        plain_http: config.plain_http.clone(),
        hosts_dirs: config.hosts_dirs.clone(),
        redirects_allowed: config.redirects_allowed.clone(),
        tls: config.tls.clone(),
        proxy: config.proxy.clone().map(penstock_fetcher::Secret::new),
        no_proxy: config.no_proxy.clone(),
        credentials: config.credentials.sources(config.docker_config.clone(), &config.socket),
        ..penstock_fetcher::Config::default()
    }
}

fn cache_config(config: &Config) -> penstock_cache::Config {
    penstock_cache::Config {
        watermarks: config.cache_watermarks,
        reserve_bytes: config.cache_reserve_bytes,
        scrub_interval: Some(config.cache_scrub_interval).filter(|interval| !interval.is_zero()),
        ahead_bytes: config.cache_read_ahead_bytes,
        pending_bytes: Split::of(config).writing_bytes,
        keep_pages: config.cache_keep_pages,
        beside: vec![config.state_dir.join("maps")],
        chunk_size: config.chunk_size,
        ..penstock_cache::Config::new(config.cache_dir(), config.cache_cap_bytes)
    }
}

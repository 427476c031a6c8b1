//! What attachments are made from, and the parts over them that containerd asks.

use std::{path::PathBuf, sync::Arc, time::Duration};

use penstock_api::Policy;
use penstock_blob::BlobSource;
use penstock_cache::Cache;
use penstock_device::Desks;
use penstock_fetcher::Fetcher;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{StartError, directory, sources::Sources};
use crate::{
    attachments::{self, Attachments, Parts},
    config::Config,
    events::Events,
    images::{self, Images},
    keeper::Keeper,
    layers::{
        self, Layers,
        origin::{Origin, Own},
        pushed::{Pushed, Trust},
        signed::Signer,
    },
    memory::{Memory, Split},
    metrics::Metrics,
    recordings::{self, Recordings},
    remains::Remaining,
    shelf::Shelf,
    state::{StateDir, record::Record},
    traces::{self, Collector, Exporter, Outbox},
};

/// What makes, keeps and finds recordings.
pub(super) fn recordings(
    config: &Config,
    sources: (&Arc<Fetcher>, &Arc<Cache>),
    (state, events): (&StateDir, &Events),
    registry: &mut Registry,
) -> Arc<Recordings> {
    let settings = recordings::Settings {
        dir: state.recordings(),
        duration: config.recordings_enable.then_some(config.recordings_duration),
        replay: config.recordings_replay,
        accept: config.recordings_accept.clone(),
        fills: usize::try_from(config.recordings_fills).unwrap_or(usize::MAX),
    };
    let metrics = recordings::Metrics::new(registry.sub_registry_with_prefix("recordings"));
    Recordings::new(settings, sources, events, metrics)
}

/// By what the agent is seen: its series, and what sends the spans of `outbox` when the config names a collector.
pub(super) fn seen(config: &Config, outbox: Option<Outbox>, events: &Events) -> (Registry, Metrics, Option<Exporter>) {
    let mut registry = Registry::with_prefix("penstock");
    let metrics = Metrics::new(&mut registry);
    events.register(&mut registry);
    let spans = traces::Metrics::new(registry.sub_registry_with_prefix("traces"));
    // An address that cannot be one was refused with the config.
    let collector = Collector::of(config).ok().flatten();
    let exporter =
        collector.zip(outbox).map(|(collector, outbox)| Exporter::start(collector, outbox, events.clone(), spans));
    (registry, metrics, exporter)
}

/// What attachments are made from.
pub(super) fn parts(
    config: &Config,
    (fetcher, (indexes, unpacked), cache): Sources,
    (state, events): (&Arc<StateDir>, &Events),
    (keeper, remaining): (Arc<Keeper>, Arc<Remaining>),
    (device_metrics, recordings, stop): (penstock_device::Metrics, Arc<Recordings>, CancellationToken),
) -> Result<Parts, StartError> {
    let shelf = Arc::new(Shelf::new(state.manifests()));
    let layers = {
        let (fetcher, source) = (Arc::clone(&fetcher), Arc::clone(&cache) as _);
        let (shelf, platform, events) = (Arc::clone(&shelf), config.platform.clone(), events.clone());
        let prefer = config.layers_prefer.clone();
        let base = layers::Base { fetcher, source, unpacked, shelf, platform, prefer, events };
        let origins = origins(config, &base, Arc::clone(&indexes.verified) as _)?;
        Layers::new(base, (&state.layers(), &state.maps()), origins)
    };
    Ok(Parts {
        fetcher,
        source: Arc::clone(&cache) as _,
        cache,
        indexes,
        recordings,
        shelf,
        layers,
        index_pulled: config.layers_index_pulled,
        containerd: config.images_containerd.clone(),
        state: Arc::clone(state),
        maps: penstock_image::Maps::new(&state.maps()),
        device: device_config(config, state),
        device_metrics,
        mount_flags: config.mount_flags.clone(),
        policy: policy(config),
        platform: config.platform.clone(),
        transport: config.transport,
        events: events.clone(),
        keeper,
        remaining,
        stop,
    })
}

/// Where indexes of ordinary layers may come from. They read what is small of images from `below`.
fn origins(
    config: &Config,
    base: &layers::Base,
    below: Arc<dyn BlobSource>,
) -> Result<Vec<Box<dyn Origin>>, StartError> {
    let (fetcher, platform) = (&base.fetcher, &base.platform);
    let (source, of) = (Arc::clone(&below), platform.clone());
    let tables = layers::tables::Tables { fetcher: Arc::clone(fetcher), source, platform: of };
    let ztocs = layers::ztocs::Ztocs::new(fetcher, below, platform, config.layers_soci_v1);
    let read = |path: &PathBuf| {
        let unusable = |reason| StartError::LayersKey { path: path.clone(), reason };
        Signer::read(path).map_err(unusable)
    };
    let signer = config.layers_key.as_ref().map(read).transpose()?;
    let trust = Trust { accept: config.layers_accept.clone(), signer, deadline: config.verify_deadline };
    let pushed = Pushed::new(Arc::clone(fetcher), trust, platform.clone());
    Ok(vec![Box::new(Own), Box::new(tables), Box::new(ztocs), Box::new(pushed)])
}

/// What can be asked how much memory it uses.
pub(super) fn memory(config: &Config, parts: &Parts) -> Memory {
    Memory {
        budget_bytes: config.memory_budget_bytes,
        split: Split::of(config),
        desks: parts.device.desks.clone(),
        fetcher: Arc::clone(&parts.fetcher),
        unpacked: Arc::clone(parts.layers.unpacked()),
        cache: Arc::clone(&parts.cache),
    }
}

/// How long the start waits for attachments to be made again when containerd is to be served: a registry that does not answer must not keep it
/// from starting containers. What is still under way then goes on, and who needs it waits for it.
const RESTORE_GRACE: Duration = Duration::from_secs(10);

/// Makes what is recorded again, and collects from now on what nothing needs.
pub(super) async fn restore(
    config: &Config,
    attachments: &Arc<Attachments>,
    records: Vec<Record>,
    tasks: &mut JoinSet<()>,
) {
    let grace = config.snapshotter_enable.then_some(RESTORE_GRACE);
    attachments.restore(records, grace).await;
    tasks.spawn(attachments::collect_daily(Arc::clone(attachments)));
}

/// The image service, when containerd is served.
pub(super) async fn start_images(
    config: &Config,
    (fetcher, attachments): (&Arc<Fetcher>, &Arc<Attachments>),
    events: &Events,
    registry: &mut Registry,
) -> Result<Option<Images>, StartError> {
    let parts = images::Parts { config, fetcher, attachments, events };
    Ok(Images::start(parts, registry.sub_registry_with_prefix("images")).await?)
}

/// What readers of a device get while bytes cannot be fetched, unless asked otherwise.
fn policy(config: &Config) -> Policy {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Policy {
        deadline_ms: ms(config.device_deadline.unwrap_or(config.fetch_deadline)),
        on_failure: config.on_failure,
        wait_limit_ms: ms(config.wait_limit),
    }
}

fn device_config(config: &Config, state: &StateDir) -> penstock_device::Config {
    penstock_device::Config {
        fuse_dir: state.fuse(),
        owner: directory::owner(state),
        desks: Desks::new(Split::of(config).devices_bytes),
        ..penstock_device::Config::default()
    }
}

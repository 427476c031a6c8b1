//! What attachments are made from, and the parts over them that containerd asks.

use std::{sync::Arc, time::Duration};

use penstock_api::Policy;
use penstock_cache::Cache;
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
    recordings::{self, Recordings},
    remains::Remaining,
    shelf::Shelf,
    state::{StateDir, record::Record},
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

/// What attachments are made from.
pub(super) fn parts(
    config: &Config,
    (fetcher, indexes, cache): Sources,
    (state, events): (&Arc<StateDir>, &Events),
    (keeper, remaining): (Arc<Keeper>, Arc<Remaining>),
    (device_metrics, recordings, stop): (penstock_device::Metrics, Arc<Recordings>, CancellationToken),
) -> Parts {
    Parts {
        fetcher,
        source: Arc::clone(&cache) as _,
        cache,
        indexes,
        recordings,
        shelf: Arc::new(Shelf::new(state.manifests())),
        state: Arc::clone(state),
        maps: penstock_image::Maps::new(&state.maps()),
        device: device_config(state),
        device_metrics,
        mount_flags: config.mount_flags.clone(),
        policy: policy(config),
        platform: config.platform.clone(),
        transport: config.transport,
        events: events.clone(),
        keeper,
        remaining,
        stop,
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

fn device_config(state: &StateDir) -> penstock_device::Config {
    penstock_device::Config {
        fuse_dir: state.fuse(),
        owner: directory::owner(state),
        ..penstock_device::Config::default()
    }
}

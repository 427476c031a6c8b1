//! A device: an image, a transport, and what stands between them.

use std::{path::Path, sync::Arc};

use penstock_blob::BlobSource;
use penstock_image::Image;
use tokio::runtime::Handle;

use crate::{
    Config, DeviceError, DeviceId, Metrics, Stats, Transport, counted::Counted, fuse, offload::Offload, queue::Setup,
    stats::Counters, ublk,
};

/// What a device shows: an image, and where its bytes come from.
#[derive(Debug, Clone)]
pub struct Content {
    /// The disk.
    pub image: Arc<Image>,
    /// The source of its blobs.
    pub source: Arc<dyn BlobSource>,
}

/// An image shown to the kernel.
///
/// Stop it with [`Device::stop`]. One that is dropped instead is taken down in the background: by force, without a report.
#[derive(Debug)]
pub struct Device {
    id: DeviceId,
    counters: Arc<Counters>,
    metrics: Metrics,
    served: Served,
}

#[derive(Debug)]
enum Served {
    Ublk(ublk::Served),
    Fuse(fuse::Served),
}

impl Device {
    /// Shows `content` through `transport`. The device can be read when this returns. Must be called on a tokio runtime, which
    /// then fetches what is missing and must outlive the device.
    ///
    /// # Errors
    /// [`DeviceError`]; what was begun is undone.
    pub async fn start(
        id: DeviceId,
        content: Content,
        transport: Transport,
        config: &Config,
        metrics: &Metrics,
    ) -> Result<Self, DeviceError> {
        config.check()?;
        if content.image.size_bytes() == 0 {
            return Err(DeviceError::Empty);
        }
        let counters = metrics.device(&id, transport);
        let bound = usize::from(config.misses);
        let queues = usize::from(config.queues);
        let offload = Offload::start(&Handle::current(), bound * queues);
        let setup = Setup {
            id: id.clone(),
            image: content.image,
            source: Counted::new(content.source, counters.clone()),
            counters: counters.clone(),
            misses: offload.sender(),
            bound,
            max_io_bytes: usize::try_from(config.max_io_bytes).unwrap_or(usize::MAX),
        };
        let offload = Arc::new(offload);
        let started = match transport {
            Transport::Ublk => ublk::Served::start(setup, config, offload).await.map(Served::Ublk),
            Transport::Fuse => fuse::Served::start(setup, config, offload).await.map(Served::Fuse),
        };
        match started {
            Ok(served) => Ok(Self { id, counters, metrics: metrics.clone(), served }),
            Err(error) => {
                metrics.forget(&id, transport);
                Err(error)
            }
        }
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> &DeviceId {
        &self.id
    }

    /// What to read or mount: `/dev/ublkbN`, or the FUSE file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match &self.served {
            Served::Ublk(served) => served.path(),
            Served::Fuse(served) => served.path(),
        }
    }

    /// How it is shown.
    #[must_use]
    pub const fn transport(&self) -> Transport {
        match &self.served {
            Served::Ublk(_) => Transport::Ublk,
            Served::Fuse(_) => Transport::Fuse,
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.counters.stats()
    }

    /// Takes the device away if nobody stands on it. Always finishes: reads that are open then are answered, those that wait
    /// for a fetch with EIO. Stopping a stopped device is fine.
    ///
    /// # Errors
    /// [`DeviceError::Busy`] when a block device is mounted (or otherwise claimed) or a FUSE file is open: nothing has changed,
    /// the device still serves. Other errors are reported after as much as possible was undone.
    pub async fn stop(&self) -> Result<(), DeviceError> {
        self.end(false).await
    }

    /// Takes the device away also when somebody stands on it, who then reads errors.
    ///
    /// # Errors
    /// What could not be undone.
    pub async fn stop_by_force(&self) -> Result<(), DeviceError> {
        self.end(true).await
    }

    async fn end(&self, force: bool) -> Result<(), DeviceError> {
        match &self.served {
            Served::Ublk(served) => served.stop(force).await,
            Served::Fuse(served) => served.stop(force).await,
        }?;
        self.metrics.forget(&self.id, self.transport());
        Ok(())
    }
}

//! A device: an image, a transport, and what stands between them.

use std::{os::fd::OwnedFd, path::Path, sync::Arc};

use penstock_blob::BlobSource;
use penstock_image::Image;
use tokio::{runtime::Handle, sync::broadcast};

use crate::{
    Config, ConfigError, DeviceError, DeviceId, Latencies, Metrics, Notice, Patience, Stats, Transport, Waits,
    config::MAX_QUEUES,
    counted::Counted,
    fuse,
    offload::Offload,
    patience::Patient,
    queue::{self, Setup},
    stats::Counters,
    ublk,
};

/// What a device shows: an image, and where its bytes come from.
#[derive(Debug, Clone)]
pub struct Content {
    /// The disk.
    pub image: Arc<Image>,
    /// The source of its blobs.
    pub source: Arc<dyn BlobSource>,
}

/// What outlives an agent, by which its successor takes a device over.
#[derive(Debug)]
pub enum Remains {
    /// The kernel kept the block device `/dev/ublkbN`, by number. Recorded on disk by the agent ([`Device::number`]).
    Ublk {
        /// N.
        number: u32,
    },
    /// Somebody kept a descriptor of the connection ([`Device::connection`]), and the mount is still there.
    Fuse {
        /// That descriptor.
        connection: OwnedFd,
    },
}

impl Remains {
    /// How the device is shown.
    #[must_use]
    pub const fn transport(&self) -> Transport {
        match self {
            Self::Ublk { .. } => Transport::Ublk,
            Self::Fuse { .. } => Transport::Fuse,
        }
    }
}

/// What a stop by force left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Nothing: the device is gone.
    Gone,
    /// A block device that is still mounted or claimed: whoever reads it gets EIO, and it goes by itself when its last user does. It
    /// cannot go before: Linux would give its users zeros.
    Refusing,
}

/// An image shown to the kernel.
///
/// Stop it with [`Device::stop`]. One that is dropped instead is taken down in the background: by force, without a report.
#[derive(Debug)]
pub struct Device {
    id: DeviceId,
    counters: Arc<Counters>,
    metrics: Metrics,
    patient: Arc<Patient>,
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
        Self::make(id, content, (transport, None), config, metrics).await
    }

    /// Takes over a device of an agent that died, or that [left](Device::leave) it: same path, same bytes, and no request is lost or
    /// answered twice; readers that waited go on. `content` must be what the device showed before, and `id` its name. The caller
    /// makes sure that the other agent has ended; for a block device this waits (up to 30 s) until the kernel says so. Otherwise as
    /// [`Device::start`].
    ///
    /// # Errors
    /// [`DeviceError::NotResumable`] when what is left is not such a device, [`DeviceError::RequestsLost`] when the kernel cannot send
    /// again what the dead agent had read (FUSE before Linux 6.9): the mount's readers get errors then instead of waiting for ever, and
    /// [`Device::start`] replaces it. A block device that was not taken over stays as it was, waiting.
    pub async fn resume(
        id: DeviceId,
        content: Content,
        remains: Remains,
        config: &Config,
        metrics: &Metrics,
    ) -> Result<Self, DeviceError> {
        Self::make(id, content, (remains.transport(), Some(remains)), config, metrics).await
    }

    async fn make(
        id: DeviceId,
        content: Content,
        (transport, remains): (Transport, Option<Remains>),
        config: &Config,
        metrics: &Metrics,
    ) -> Result<Self, DeviceError> {
        config.check()?;
        if content.image.size_bytes() == 0 {
            return Err(DeviceError::Empty);
        }
        let counters = metrics.device(&id, transport);
        let bound = usize::from(config.misses);
        // A device that is taken over has the queues that it was made with.
        let offload = Offload::start(&id, &Handle::current(), bound * usize::from(MAX_QUEUES));
        // Parts of maps that are still being made are waited for as bytes are, with the same patience.
        let patient = Patient::new(content.image.over(content.source), config.patience);
        let setup = Setup {
            id: id.clone(),
            image: Some(content.image),
            source: Counted::new(patient.clone(), counters.clone()),
            counters: counters.clone(),
            misses: offload.sender(),
            bound,
            max_piece_bytes: queue::MAX_PIECE_BYTES,
            max_io_bytes: usize::try_from(config.max_io_bytes).unwrap_or(usize::MAX),
            desks: config.desks.clone(),
        };
        let offload = Arc::new(offload);
        let started = match (transport, remains) {
            (_, Some(Remains::Fuse { connection })) => {
                fuse::Served::resume(setup, config, connection, offload).await.map(Served::Fuse)
            }
            (_, Some(Remains::Ublk { number })) => {
                ublk::Served::resume(setup, config, number, offload).await.map(Served::Ublk)
            }
            (Transport::Ublk, None) => ublk::Served::start(setup, config, offload).await.map(Served::Ublk),
            (Transport::Fuse, None) => fuse::Served::start(setup, config, offload).await.map(Served::Fuse),
        };
        match started {
            Ok(served) => Ok(Self { id, counters, metrics: metrics.clone(), patient, served }),
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

    /// ublk: N of `/dev/ublkbN`, by which a successor takes it over. To be recorded before anybody relies on the device.
    #[must_use]
    pub const fn number(&self) -> Option<u32> {
        match &self.served {
            Served::Ublk(served) => Some(served.number()),
            Served::Fuse(_) => None,
        }
    }

    /// FUSE: another descriptor of its connection, for somebody who outlives this process. While one is held readers wait when this
    /// process ends; when the last is closed they get errors. `None` for ublk, and when the device is stopped.
    #[must_use]
    pub fn connection(&self) -> Option<OwnedFd> {
        match &self.served {
            Served::Ublk(_) => None,
            Served::Fuse(served) => served.connection(),
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.counters.stats()
    }

    /// How long its reads took, by where their bytes came from.
    #[must_use]
    pub fn latencies(&self) -> Latencies {
        self.counters.latencies()
    }

    /// How its readers have waited for bytes that are not on this node.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.counters.waiting.read()
    }

    /// How long its readers wait for bytes that have to be fetched.
    #[must_use]
    pub fn patience(&self) -> Patience {
        self.patient.patience()
    }

    /// Changes that, also for readers that wait now.
    ///
    /// # Errors
    /// [`ConfigError`] when a duration is out of its bounds; nothing is changed.
    pub fn set_patience(&self, patience: Patience) -> Result<(), ConfigError> {
        patience.check()?;
        self.patient.set(patience);
        Ok(())
    }

    /// What the device says from here on about reads that wait long or fail by its patience. A listener that is slow is told how many
    /// it missed (64 are kept).
    #[must_use]
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.patient.notices()
    }

    /// Takes the device away if nobody stands on it. Always finishes: reads that are open then are answered, those that wait
    /// for a fetch with EIO. Stopping a stopped device is fine.
    ///
    /// # Errors
    /// [`DeviceError::Busy`] when a block device is mounted (or otherwise claimed) or a FUSE file is open: nothing has changed,
    /// the device still serves. Other errors are reported after as much as possible was undone.
    pub async fn stop(&self) -> Result<(), DeviceError> {
        self.end(false).await.map(drop)
    }

    /// Takes the device away also when somebody stands on it, who then reads errors: never zeros, never other bytes. A block device
    /// that is mounted stays, answering EIO, until its last user is gone ([`Stopped::Refusing`]); it does so also when this value is
    /// dropped, and a successor of this agent goes on with it.
    ///
    /// # Errors
    /// What could not be undone.
    pub async fn stop_by_force(&self) -> Result<Stopped, DeviceError> {
        self.end(true).await
    }

    async fn end(&self, force: bool) -> Result<Stopped, DeviceError> {
        let stopped = match &self.served {
            Served::Ublk(served) => served.stop(force).await,
            Served::Fuse(served) => served.stop(force).await,
        }?;
        self.metrics.forget(&self.id, self.transport());
        Ok(stopped)
    }

    /// Waits until the device is gone that a stop by force left [refusing](Stopped::Refusing). One that is gone or left is so already.
    pub async fn gone(&self) {
        match &self.served {
            Served::Ublk(served) => served.gone().await,
            // A FUSE file never refuses: its connection can be ended under its users.
            Served::Fuse(_) => {}
        }
    }

    /// Answers what waits for a fetch now with EIO, and goes on serving. For an unmount that the kernel has begun and that waits for
    /// read-ahead which nobody needs any more.
    pub fn fail_waiting(&self) {
        match &self.served {
            Served::Ublk(served) => served.fail_waiting(),
            Served::Fuse(served) => served.fail_waiting(),
        }
    }

    /// Ends the serving threads and leaves the device to a successor, which [resumes](Device::resume) it: nothing is unmounted, no
    /// request is failed, readers wait. A block device can be taken over when this process has ended; a FUSE file at once.
    ///
    /// # Errors
    /// [`DeviceError::ControlGone`] when a thread had ended abnormally. The device is left all the same.
    pub async fn leave(&self) -> Result<(), DeviceError> {
        let left = match &self.served {
            Served::Ublk(served) => served.leave().await,
            Served::Fuse(served) => served.leave().await,
        };
        self.metrics.forget(&self.id, self.transport());
        left
    }
}

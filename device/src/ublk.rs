//! Block devices `/dev/ublkbN` through the kernel's ublk driver.
//!
//! Each device has one control thread, which alone sends control commands (libublk keeps their ring per thread), and a thread
//! per hardware queue. Life: ADD_DEV, open `/dev/ublkcN`, FETCH on every queue, START_DEV; STOP_DEV, join the queues, close
//! `/dev/ublkcN`, DEL_DEV.
//!
//! When the agent dies the driver keeps the disk, holds its readers back, and has every request that was not answered ready for
//! a successor, which begins with START_USER_RECOVERY in the place of ADD_DEV and ends with END_USER_RECOVERY in that of START_DEV.
//! Only reads are served, so a request that the dead agent had half answered is simply answered again.
//!
//! A disk that is mounted is never stopped: its capacity would become 0, and the file system above would read zeros. By force it
//! answers EIO until its last user is gone.

mod control;
mod leftovers;
mod ring;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use libublk::sys;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use self::control::{Order, Plan, Started};
use crate::{Config, DeviceError, DeviceId, Metrics, Stopped, Transport, inbox::Inbox, offload::Offload, queue::Setup};

pub use leftovers::{Leftovers, remove_leftovers};

/// The driver's control device.
pub(crate) const CONTROL: &str = "/dev/ublk-control";

/// How long ADD_DEV to START_DEV may take: they wait for nobody's data, only for the kernel and udev.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The same when a device is taken over: the driver may need a while to see that the old server is gone, for which libublk waits
/// 30 s.
const RESUME_LIMIT: Duration = Duration::from_secs(60);

/// How long a stop may take before it is reported as failed. Every request is answered within moments then; what can still take
/// time is the kernel. The control thread goes on.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// The upper half of `ublksrv_flags`, which the kernel keeps with each device: "PNSK".
const SERVICE: u32 = 0x504e_534b;

/// The 64 bits kept with a device: our service, and which agent on this node.
const fn tag(owner: u32) -> u64 {
    ((SERVICE as u64) << 32) | owner as u64
}

/// The feature bits of every device, which the driver must offer, with their names.
/// USER_COPY: bytes are written at a position of `/dev/ublkcN`, from any thread. USER_RECOVERY and REISSUE: when the agent dies
/// readers wait for its successor, which gets their requests again. CMD_IOCTL_ENCODE: the command numbers libublk uses.
const FEATURES: [(u32, &str); 4] = [
    (sys::UBLK_F_USER_COPY, "USER_COPY"),
    (sys::UBLK_F_USER_RECOVERY, "USER_RECOVERY"),
    (sys::UBLK_F_USER_RECOVERY_REISSUE, "USER_RECOVERY_REISSUE"),
    (sys::UBLK_F_CMD_IOCTL_ENCODE, "CMD_IOCTL_ENCODE"),
];

/// The flags of every device.
fn flags() -> u64 {
    FEATURES.iter().fold(0, |all, (bit, _)| all | u64::from(*bit))
}

/// The first needed feature that is not among `offered`.
pub(crate) fn missing_features(offered: u64) -> Option<&'static str> {
    FEATURES.iter().find(|(bit, _)| offered & u64::from(*bit) == 0).map(|(_, name)| *name)
}

/// The node of device `number`.
fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{number}"))
}

/// Where sysfs shows the disk of device `number`, while there is one.
fn disk(number: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/ublkb{number}"))
}

/// A running block device.
#[derive(Debug)]
pub(crate) struct Served {
    path: PathBuf,
    number: u32,
    inboxes: Vec<Arc<Inbox>>,
    orders: mpsc::Sender<Order>,
}

impl Served {
    /// Makes the device and waits until it can be read.
    pub(crate) async fn start(setup: Setup, config: &Config, offload: Arc<Offload>) -> Result<Self, DeviceError> {
        Self::run(Plan { setup, config: config.clone(), offload, number: None }, START_LIMIT).await
    }

    /// Takes over device `number`, whose server has ended or is about to.
    pub(crate) async fn resume(
        setup: Setup,
        config: &Config,
        number: u32,
        offload: Arc<Offload>,
    ) -> Result<Self, DeviceError> {
        Self::run(Plan { setup, config: config.clone(), offload, number: Some(number) }, RESUME_LIMIT).await
    }

    async fn run(plan: Plan, limit: Duration) -> Result<Self, DeviceError> {
        let (orders, received) = mpsc::channel(1);
        let (ready, started) = oneshot::channel();
        let name = format!("ublk-{}", plan.setup.id);
        std::thread::Builder::new()
            .name(name)
            .spawn(move || control::run(&plan, ready, received))
            .map_err(DeviceError::io("starting the control thread"))?;
        // Dropping `started` tells the thread to undo what it does.
        let Ok(answer) = tokio::time::timeout(limit, started).await else {
            let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Err(DeviceError::Ublk { operation: "waiting for the driver to start the device", error });
        };
        let Started { number, inboxes } = answer.map_err(|_| DeviceError::ControlGone)??;
        Ok(Self { path: path(number), number, inboxes, orders })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn number(&self) -> u32 {
        self.number
    }

    /// Answers what waits now with EIO, and goes on.
    pub(crate) fn fail_waiting(&self) {
        self.inboxes.iter().for_each(|inbox| inbox.fail_waiting());
    }

    /// Takes the device down; refuses with [`DeviceError::Busy`] when it is mounted, unless by force.
    pub(crate) async fn stop(&self, force: bool) -> Result<Stopped, DeviceError> {
        let (done, answer) = oneshot::channel();
        // The control thread ends only after it took the device down.
        self.order(Order::Stop { force, done }, answer).await.unwrap_or(Ok(Stopped::Gone))
    }

    /// Ends the threads; the driver keeps the device and its requests for a successor.
    pub(crate) async fn leave(&self) -> Result<(), DeviceError> {
        let (done, answer) = oneshot::channel();
        self.order(Order::Leave(done), answer).await.unwrap_or(Ok(()))
    }

    /// Waits for the end of the control thread, which comes when the device is gone or left.
    pub(crate) async fn gone(&self) {
        self.orders.closed().await;
    }

    /// What the control thread answers; `None` when it had ended before. Gives up after [`STOP_LIMIT`].
    async fn order<T>(
        &self,
        order: Order,
        answer: oneshot::Receiver<Result<T, DeviceError>>,
    ) -> Option<Result<T, DeviceError>> {
        let ordered = async {
            self.orders.send(order).await.ok()?;
            Some(answer.await.unwrap_or(Err(DeviceError::ControlGone)))
        };
        tokio::time::timeout(STOP_LIMIT, ordered).await.unwrap_or_else(|_| {
            let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
            Some(Err(DeviceError::Ublk { operation: "waiting for the driver to let the device go", error }))
        })
    }
}

/// Takes over device `number` of an agent that died, to be rid of it: whoever reads it gets EIO, and it is removed when its last
/// user is gone, now when there is none. For a device that no attachment remembers. Call it on a tokio runtime.
///
/// # Errors
/// As [`crate::Device::resume`].
pub async fn retire(number: u32, config: &Config, metrics: &Metrics) -> Result<Stopped, DeviceError> {
    config.check()?;
    let id: DeviceId = format!("retired-{number}").parse().map_err(|error| DeviceError::Io {
        operation: "naming a leftover".into(),
        error: std::io::Error::other(error),
    })?;
    let offload = Arc::new(Offload::start(&id, &Handle::current(), 1));
    let counters = metrics.device(&id, Transport::Ublk);
    let setup = Setup::refusing(id.clone(), counters, offload.sender());
    let served = Served::resume(setup, config, number, offload).await;
    metrics.forget(&id, Transport::Ublk);
    served?.stop(true).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_refused_by_the_name_of_what_it_lacks() {
        // 6.12.95 and 6.1, as read from their drivers.
        assert_eq!(missing_features(0x1fe), None);
        assert_eq!(missing_features(0x1fe & !0x80), Some("USER_COPY"));
        assert_eq!(missing_features(0), Some("USER_COPY"));
        assert_eq!(flags(), 0x80 | 0x08 | 0x10 | 0x40);
    }

    #[test]
    fn the_tag_tells_service_and_agent() {
        assert_eq!(tag(0xdead_beef), 0x504e_534b_dead_beef);
    }
}

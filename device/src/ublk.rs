//! Block devices `/dev/ublkbN` through the kernel's ublk driver.
//!
//! Each device has one control thread, which alone sends control commands (libublk keeps their ring per thread), and a thread
//! per hardware queue. Life: ADD_DEV, open `/dev/ublkcN`, FETCH on every queue, START_DEV; STOP_DEV, join the queues, close
//! `/dev/ublkcN`, DEL_DEV.

mod control;
mod leftovers;
mod ring;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use libublk::sys;
use tokio::sync::{mpsc, oneshot};

use crate::{Config, DeviceError, offload::Offload, queue::Setup};

pub use leftovers::{Leftovers, remove_leftovers};

/// The driver's control device.
pub(crate) const CONTROL: &str = "/dev/ublk-control";

/// How long ADD_DEV to START_DEV may take: they wait for nobody's data, only for the kernel and udev.
const START_LIMIT: Duration = Duration::from_secs(30);

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

/// A running block device.
#[derive(Debug)]
pub(crate) struct Served {
    path: PathBuf,
    orders: mpsc::Sender<control::Stop>,
}

impl Served {
    /// Makes the device and waits until it can be read.
    pub(crate) async fn start(setup: Setup, config: &Config, offload: Arc<Offload>) -> Result<Self, DeviceError> {
        let (orders, received) = mpsc::channel(1);
        let (ready, started) = oneshot::channel();
        let plan = control::Plan { setup, config: config.clone(), offload };
        let name = format!("ublk-{}", plan.setup.id);
        std::thread::Builder::new()
            .name(name)
            .spawn(move || control::run(&plan, ready, received))
            .map_err(DeviceError::io("starting the control thread"))?;
        // Dropping `started` tells the thread to take the device down again.
        let number = match tokio::time::timeout(START_LIMIT, started).await {
            Ok(answer) => answer.map_err(|_| DeviceError::ControlGone)??,
            Err(_) => {
                let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
                return Err(DeviceError::Ublk { operation: "starting the device in 30 s", error });
            }
        };
        Ok(Self { path: PathBuf::from(format!("/dev/ublkb{number}")), orders })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the device down; refuses with [`DeviceError::Busy`] when it is mounted, unless by force.
    pub(crate) async fn stop(&self, force: bool) -> Result<(), DeviceError> {
        let (done, answer) = oneshot::channel();
        if self.orders.send(control::Stop { force, done }).await.is_err() {
            // The control thread ends only after it took the device down.
            return Ok(());
        }
        answer.await.map_err(|_| DeviceError::ControlGone)?
    }
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

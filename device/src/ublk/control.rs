//! The control thread of one block device.

use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, mpsc::sync_channel},
    thread::JoinHandle,
};

use libublk::{
    UblkError, UblkFlags,
    ctrl::{UblkCtrl, UblkCtrlBuilder},
    io::UblkDev,
    sys,
};
use rustix::fs::{Mode, OFlags};
use tokio::sync::{mpsc, oneshot};

use super::ring;
use crate::{Config, DeviceError, inbox::Inbox, offload::Offload, queue::Setup, users};

/// Bytes of the unit that the block layer counts in.
pub(super) const SECTOR_BYTES: u64 = 512;
/// log2 of the logical block: 512 bytes, which every file system and every image size can live with.
const LOGICAL_SHIFT: u8 = 9;
/// log2 of the physical block: a page, below which reads gain nothing.
const PHYSICAL_SHIFT: u8 = 12;
/// log2 of the optimal read: 256 KiB, a cache chunk. The kernel reads ahead twice that.
const OPTIMAL_SHIFT: u8 = 18;
/// Entries of a ring beyond one per tag: the eventfd, with room.
const EXTRA_ENTRIES: u16 = 16;

/// What a device is made from.
pub(super) struct Plan {
    pub(super) setup: Setup,
    pub(super) config: Config,
    pub(super) offload: Arc<Offload>,
}

/// The order to take the device down.
#[derive(Debug)]
pub(super) struct Stop {
    /// Also when somebody uses it.
    pub(super) force: bool,
    /// Where the outcome goes.
    pub(super) done: oneshot::Sender<Result<(), DeviceError>>,
}

/// A device that is up.
struct Up<'p> {
    plan: &'p Plan,
    ctrl: UblkCtrl,
    dev: Arc<UblkDev>,
    queues: Vec<(Arc<Inbox>, JoinHandle<()>)>,
}

/// Makes the device, answers its number, and takes it down when told, or when nobody can tell any more.
pub(super) fn run(plan: &Plan, ready: oneshot::Sender<Result<u32, DeviceError>>, mut orders: mpsc::Receiver<Stop>) {
    let up = match bring_up(plan) {
        Ok(up) => up,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if ready.send(Ok(up.number())).is_err() {
        // Whoever asked for the device has gone away.
        return report(up.take_down(None));
    }
    while let Some(Stop { force, done }) = orders.blocking_recv() {
        let claim = if force { Ok(None) } else { up.claim() };
        match claim {
            Ok(claim) => {
                let _ = done.send(up.take_down(claim));
                return;
            }
            Err(busy) => {
                let _ = done.send(Err(busy));
            }
        }
    }
    report(up.take_down(None));
}

fn report(outcome: Result<(), DeviceError>) {
    if let Err(error) = outcome {
        tracing::error!(%error, "a device could not be taken down");
    }
}

fn bring_up(plan: &Plan) -> Result<Up<'_>, DeviceError> {
    let config = &plan.config;
    let ctrl = UblkCtrlBuilder::default()
        .name("penstock")
        .nr_queues(config.queues)
        .depth(config.depth)
        .io_buf_bytes(config.max_io_bytes)
        .ctrl_flags(super::flags())
        .ctrl_target_flags(super::tag(config.owner))
        .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV)
        .build()
        .map_err(failed("ADD_DEV"))?;
    // Flags that the driver does not know are cleared, not refused.
    if let Some(missing) = super::missing_features(ctrl.dev_info().flags) {
        return Err(DeviceError::Driver { missing });
    }
    let size_bytes = plan.setup.image.size_bytes();
    let dev = UblkDev::new("penstock".into(), |dev| prepare(dev, size_bytes), &ctrl)
        .map_err(failed("opening the device's /dev/ublkc node (is this /dev the host's?)"))?;
    let mut up = Up { plan, ctrl, dev: Arc::new(dev), queues: Vec::new() };
    match up.start() {
        Ok(()) => Ok(up),
        Err(error) => {
            report(up.take_down(None));
            Err(error)
        }
    }
}

/// The parameters of a read-only disk of `size_bytes`, and the sizes of the rings.
fn prepare(dev: &mut UblkDev, size_bytes: u64) -> Result<(), UblkError> {
    let depth = dev.dev_info.queue_depth;
    dev.tgt.dev_size = size_bytes;
    // A full submission ring in the middle of a commit would have to be flushed; a lost commit loses its tag.
    dev.tgt.sq_depth = depth + EXTRA_ENTRIES;
    dev.tgt.cq_depth = 2 * (depth + EXTRA_ENTRIES);
    dev.tgt.params = sys::ublk_params {
        types: sys::UBLK_PARAM_TYPE_BASIC,
        basic: sys::ublk_param_basic {
            attrs: sys::UBLK_ATTR_READ_ONLY,
            logical_bs_shift: LOGICAL_SHIFT,
            physical_bs_shift: PHYSICAL_SHIFT,
            io_opt_shift: OPTIMAL_SHIFT,
            io_min_shift: PHYSICAL_SHIFT,
            max_sectors: dev.dev_info.max_io_buf_bytes / 512,
            dev_sectors: size_bytes / SECTOR_BYTES,
            ..Default::default()
        },
        ..Default::default()
    };
    Ok(())
}

impl Up<'_> {
    fn number(&self) -> u32 {
        self.ctrl.dev_info().dev_id
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(self.ctrl.get_bdev_path())
    }

    /// Starts the queues and, when all have fetched, the disk.
    fn start(&mut self) -> Result<(), DeviceError> {
        let queues = self.plan.config.queues;
        let (ready, fetched) = sync_channel(queues.into());
        for number in 0..queues {
            let inbox = Inbox::new().map_err(DeviceError::io("making an eventfd"))?;
            let (dev, setup, ready, inbox_of) =
                (self.dev.clone(), self.plan.setup.clone(), ready.clone(), inbox.clone());
            let thread = std::thread::Builder::new()
                .name(format!("q{number}-{}", setup.id))
                .spawn(move || ring::run(number, &dev, setup, inbox_of, &ready))
                .map_err(DeviceError::io("starting a queue thread"))?;
            self.queues.push((inbox, thread));
        }
        drop(ready);
        for _ in 0..queues {
            let answer = fetched.recv().map_err(|_| io::Error::other("a queue thread ended early"));
            answer
                .and_then(|fetched| fetched)
                .map_err(|error| DeviceError::Ublk { operation: "setting up a queue", error })?;
        }
        self.ctrl.start_dev(&self.dev).map_err(failed("START_DEV"))?;
        Ok(())
    }

    /// Opens the disk for us alone, as a mount would: fails when a file system on it is mounted, in any namespace, and keeps
    /// anyone from mounting it while we take it down.
    fn claim(&self) -> Result<Option<OwnedFd>, DeviceError> {
        let path = self.path();
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(rustix::io::Errno::BUSY) => Err(DeviceError::Busy { users: users::of(&path), path }),
            // The node is not in this /dev: nothing more can be known.
            Err(_) => Ok(None),
        }
    }

    /// Takes the device down; goes on after a failure, and answers the first one.
    fn take_down(self, claim: Option<OwnedFd>) -> Result<(), DeviceError> {
        let Self { plan, ctrl, dev, queues } = self;
        // STOP_DEV waits for every request: end the fetches, whose requests are then answered EIO.
        plan.offload.stop();
        let stopped = ctrl.stop_dev().map_err(failed("STOP_DEV"));
        for (inbox, thread) in queues {
            inbox.quit();
            if thread.join().is_err() {
                tracing::error!(device = %plan.setup.id, "a queue thread panicked");
            }
        }
        // DEL_DEV waits for these descriptors.
        drop(dev);
        drop(claim);
        // Asynchronous where the kernel can (6.9): the synchronous command waits for readers that keep the dead disk open.
        let deleted = ctrl.del_dev_async().or_else(|_| ctrl.del_dev()).map_err(failed("DEL_DEV"));
        stopped.and(deleted).map(drop)
    }
}

/// For `map_err`: a failed command. libublk keeps the kernel's errno, negative, in two of its variants.
fn failed(operation: &'static str) -> impl FnOnce(UblkError) -> DeviceError {
    move |error| {
        let error = match error {
            UblkError::UringIOError(errno) | UblkError::OtherError(errno) => io::Error::from_raw_os_error(-errno),
            UblkError::IOError(error) => error,
            other => io::Error::other(other.to_string()),
        };
        DeviceError::Ublk { operation, error }
    }
}

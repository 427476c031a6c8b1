//! The control thread of one block device.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::{Arc, mpsc::sync_channel},
    thread::JoinHandle,
};

use libublk::{
    UblkError, UblkFlags,
    ctrl::{UblkCtrl, UblkCtrlBuilder, UblkQueueAffinity},
    io::UblkDev,
    sys,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    io::Errno,
};
use tokio::sync::{mpsc, oneshot};

use super::ring;
use crate::{
    Config, DeviceError, DeviceId, Stopped,
    inbox::{End, Inbox},
    offload::Offload,
    queue::Setup,
    users,
};

/// Bytes of the unit that the block layer counts in.
pub(super) const SECTOR_BYTES: u64 = 512;
/// log2 of the logical block: 512 bytes, which every file system and every image size can live with.
const LOGICAL_SHIFT: u8 = 9;
/// log2 of the physical block: a page, below which reads gain nothing.
const PHYSICAL_SHIFT: u8 = 12;
/// log2 of the optimal read: 256 KiB, two chunks of the cache. The kernel reads ahead twice that.
const OPTIMAL_SHIFT: u8 = 18;
/// Entries of a ring beyond one per tag: the eventfd, with room.
const EXTRA_ENTRIES: u16 = 16;

/// First and longest pause between two looks whether the last user of a refusing device is gone, in milliseconds. An unmount in this
/// mount namespace is heard at once; in another one, nothing tells.
const FIRST_LOOK_MS: i64 = 50;
const LONGEST_LOOK_MS: i64 = 1000;

/// What a device is made from.
pub(super) struct Plan {
    pub(super) setup: Setup,
    pub(super) config: Config,
    pub(super) offload: Arc<Offload>,
    /// The device to take over; none: a new one.
    pub(super) number: Option<u32>,
}

/// A device that can be read.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) number: u32,
    /// One for each queue.
    pub(super) inboxes: Vec<Arc<Inbox>>,
}

/// What is asked of the control thread, and where the outcome goes.
#[derive(Debug)]
pub(super) enum Order {
    /// Take the device away.
    Stop {
        /// Also when somebody uses it.
        force: bool,
        done: oneshot::Sender<Result<Stopped, DeviceError>>,
    },
    /// Let go of it, for a successor.
    Leave(oneshot::Sender<Result<(), DeviceError>>),
}

/// A device that is up.
struct Up<'p> {
    plan: &'p Plan,
    ctrl: UblkCtrl,
    dev: Arc<UblkDev>,
    queues: Vec<(Arc<Inbox>, JoinHandle<()>)>,
}

/// Makes the device or takes it over, says so, and obeys orders until it is gone or left.
pub(super) fn run(
    plan: &Plan,
    ready: oneshot::Sender<Result<Started, DeviceError>>,
    mut orders: mpsc::Receiver<Order>,
) {
    let up = match bring_up(plan) {
        Ok(up) => up,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if ready.send(Ok(up.started())).is_err() {
        // Whoever asked for the device has gone away.
        return report(up.undo());
    }
    while let Some(order) = orders.blocking_recv() {
        match order {
            Order::Leave(done) => {
                let _ = done.send(up.leave());
                return;
            }
            Order::Stop { force, done } => match up.claim() {
                Ok(claim) => {
                    let _ = done.send(up.take_down(claim).map(|()| Stopped::Gone));
                    return;
                }
                Err(busy) if !force => {
                    let _ = done.send(Err(busy));
                }
                Err(_) => {
                    up.refuse();
                    let _ = done.send(Ok(Stopped::Refusing));
                    return report(up.retire(orders));
                }
            },
        }
    }
    report(up.retire(orders));
}

fn report(outcome: Result<(), DeviceError>) {
    if let Err(error) = outcome {
        tracing::error!(%error, "a device could not be taken down");
    }
}

fn bring_up(plan: &Plan) -> Result<Up<'_>, DeviceError> {
    let ctrl = match plan.number {
        None => add(&plan.config)?,
        Some(number) => recover(number, plan)?,
    };
    // Flags that the driver does not know are cleared, not refused.
    if let Some(missing) = super::missing_features(ctrl.dev_info().flags) {
        return Err(DeviceError::Driver { missing });
    }
    let size_bytes = plan.setup.image.as_ref().map_or(0, |image| image.size_bytes());
    let dev = UblkDev::new("penstock".into(), |dev| prepare(dev, size_bytes), &ctrl)
        .map_err(failed("opening the device's /dev/ublkc node (is this /dev the host's?)"))?;
    let mut up = Up { plan, ctrl, dev: Arc::new(dev), queues: Vec::new() };
    match up.start() {
        Ok(()) => Ok(up),
        Err(error) => {
            report(up.undo());
            Err(error)
        }
    }
}

fn add(config: &Config) -> Result<UblkCtrl, DeviceError> {
    UblkCtrlBuilder::default()
        .name("penstock")
        .nr_queues(config.queues)
        .depth(config.depth)
        .io_buf_bytes(config.max_io_bytes)
        .ctrl_flags(super::flags())
        .ctrl_target_flags(super::tag(config.owner))
        .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV)
        .build()
        .map_err(failed("ADD_DEV"))
}

/// Begins to take device `number` over, with the queues that it was made with. The driver answers EBUSY until it has seen that its
/// old server is gone; libublk asks again for 30 s.
fn recover(number: u32, plan: &Plan) -> Result<UblkCtrl, DeviceError> {
    let refused = |reason: String| DeviceError::NotResumable { path: super::path(number), reason };
    let id = i32::try_from(number).map_err(|_| refused("there is no such device".into()))?;
    let old = UblkCtrl::new_simple(id).map_err(failed("GET_DEV_INFO"))?;
    let found = old.dev_info();
    let mut params = sys::ublk_params { types: sys::UBLK_PARAM_TYPE_BASIC, ..Default::default() };
    old.get_params(&mut params).and_then(accepted).map_err(failed("GET_PARAMS"))?;
    let image_bytes = plan.setup.image.as_ref().map(|image| image.size_bytes());
    resumable(&found, params.basic.dev_sectors, plan.config.owner, image_bytes).map_err(refused)?;
    old.start_user_recover().and_then(accepted).map_err(failed("START_USER_RECOVERY"))?;
    UblkCtrlBuilder::default()
        .name("penstock")
        .id(id)
        .nr_queues(found.nr_hw_queues)
        .depth(found.queue_depth)
        .io_buf_bytes(found.max_io_buf_bytes)
        .ctrl_flags(super::flags())
        .ctrl_target_flags(found.ublksrv_flags)
        .dev_flags(UblkFlags::UBLK_DEV_F_RECOVER_DEV)
        .build()
        .map_err(failed("GET_DEV_INFO"))
}

/// Whether a device of the kernel is one that this agent left, showing an image of this size; if not, why.
fn resumable(
    found: &sys::ublksrv_ctrl_dev_info,
    sectors: u64,
    owner: u32,
    image_bytes: Option<u64>,
) -> Result<(), String> {
    if found.ublksrv_flags != super::tag(owner) {
        return Err("it belongs to another agent or another program".into());
    }
    if u32::from(found.state) == sys::UBLK_S_DEV_DEAD {
        return Err("it has stopped".into());
    }
    match image_bytes {
        Some(bytes) if bytes / SECTOR_BYTES != sectors => {
            Err(format!("it has {} bytes and the image has {bytes}", sectors.saturating_mul(SECTOR_BYTES)))
        }
        _ => Ok(()),
    }
}

/// libublk passes EBUSY on as a success.
fn accepted(result: i32) -> Result<i32, UblkError> {
    if result < 0 { Err(UblkError::OtherError(result)) } else { Ok(result) }
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
    fn started(&self) -> Started {
        let inboxes = self.queues.iter().map(|(inbox, _)| Arc::clone(inbox)).collect();
        Started { number: self.number(), inboxes }
    }

    fn number(&self) -> u32 {
        self.ctrl.dev_info().dev_id
    }

    /// Starts the queues and, when all have fetched, the disk.
    fn start(&mut self) -> Result<(), DeviceError> {
        // As the device was made, which may be another agent's config.
        let queues = self.dev.dev_info.nr_hw_queues;
        let max_io_bytes = usize::try_from(self.dev.dev_info.max_io_buf_bytes).map_err(|error| DeviceError::Io {
            operation: "sizing a queue's buffer".into(),
            error: io::Error::other(error),
        })?;
        let (ready, fetched) = sync_channel(queues.into());
        for number in 0..queues {
            let inbox = Inbox::new().map_err(DeviceError::io("making an eventfd"))?;
            let seat = ring::Seat { number, processors: self.processors_of(number) };
            let (dev, setup, ready, inbox_of) =
                (self.dev.clone(), Setup { max_io_bytes, ..self.plan.setup.clone() }, ready.clone(), inbox.clone());
            let thread = std::thread::Builder::new()
                .name(format!("q{number}-{}", setup.id))
                .spawn(move || ring::run(&seat, &dev, setup, inbox_of, &ready))
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
        // END_USER_RECOVERY when it is taken over.
        self.ctrl.start_dev(&self.dev).and_then(accepted).map_err(failed("START_DEV"))?;
        Ok(())
    }

    /// The processors whose requests the kernel gives to queue `number`; none when it has those of all, or when the kernel does not tell.
    fn processors_of(&self, number: u16) -> Vec<usize> {
        if self.dev.dev_info.nr_hw_queues == 1 {
            return Vec::new();
        }
        let mut told = UblkQueueAffinity::new();
        match self.ctrl.get_queue_affinity(number.into(), &mut told).and_then(accepted) {
            Ok(_) => told.to_bits_vec(),
            Err(error) => {
                tracing::debug!(queue = number, %error, "the driver does not tell a queue's processors");
                Vec::new()
            }
        }
    }

    /// Opens the disk for us alone, as a mount would: fails when a file system on it is mounted, in any namespace, and keeps
    /// anyone from mounting it while we take it down.
    fn claim(&self) -> Result<Option<OwnedFd>, DeviceError> {
        let path = super::path(self.number());
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::BUSY) => Err(DeviceError::Busy { users: users::of(&path), path }),
            // There is no disk (any more), so nobody can be on it.
            Err(Errno::NXIO | Errno::NODEV) => Ok(None),
            Err(Errno::NOENT) if !super::disk(self.number()).exists() => Ok(None),
            // It cannot be known: stopping a mounted disk would give its users zeros.
            Err(error) => {
                let operation = format!("looking whether {} is in use", path.display());
                Err(DeviceError::Io { operation, error: error.into() })
            }
        }
    }

    /// Ends the fetches, and has every request answered EIO from here on.
    fn refuse(&self) {
        self.plan.offload.stop();
        self.queues.iter().for_each(|(inbox, _)| inbox.refuse());
    }

    /// Answers EIO until nobody uses the disk, then takes it down; before, it goes only to a successor. A disk that ended under a
    /// mounted file system would read as zeros.
    fn retire(self, mut orders: mpsc::Receiver<Order>) -> Result<(), DeviceError> {
        self.refuse();
        let mounts = File::open("/proc/self/mountinfo").map_err(DeviceError::io("opening /proc/self/mountinfo"));
        let mut pause = FIRST_LOOK_MS;
        loop {
            let claim = self.claim();
            while let Ok(order) = orders.try_recv() {
                match order {
                    Order::Leave(done) => {
                        let _ = done.send(self.leave());
                        return Ok(());
                    }
                    Order::Stop { done, .. } => {
                        let _ = done.send(Ok(Stopped::Refusing));
                    }
                }
            }
            if let Ok(claim) = claim {
                return self.take_down(claim);
            }
            unmounted_or(mounts.as_ref().ok(), pause);
            pause = (2 * pause).min(LONGEST_LOOK_MS);
        }
    }

    /// Takes back what was begun: a new device goes, one that was to be taken over waits on.
    fn undo(self) -> Result<(), DeviceError> {
        if self.plan.number.is_some() {
            return self.leave();
        }
        match self.claim() {
            Ok(claim) => self.take_down(claim),
            // Something (udev) looks at it just now. Nobody can have mounted what was never announced.
            Err(_) => self.take_down(None),
        }
    }

    /// Lets go of the device as a death would: the driver keeps its requests for a successor.
    fn leave(self) -> Result<(), DeviceError> {
        let Self { plan, ctrl, dev, queues } = self;
        // First the orders: the threads would answer misses that fail with an error.
        queues.iter().for_each(|(inbox, _)| inbox.end(End::Leave));
        let panicked = join(queues, &plan.setup.id);
        plan.offload.stop();
        // Its drop would delete the device.
        ctrl.disown();
        drop(dev);
        if panicked { Err(DeviceError::ControlGone) } else { Ok(()) }
    }

    /// Takes the device down; goes on after a failure, and answers the first one.
    fn take_down(self, claim: Option<OwnedFd>) -> Result<(), DeviceError> {
        let Self { plan, ctrl, dev, queues } = self;
        // STOP_DEV waits for every request: end the fetches, whose requests are then answered EIO.
        plan.offload.stop();
        let stopped = ctrl.stop_dev().and_then(accepted).map_err(failed("STOP_DEV"));
        queues.iter().for_each(|(inbox, _)| inbox.end(End::Quit));
        join(queues, &plan.setup.id);
        // DEL_DEV waits for these descriptors.
        drop(dev);
        drop(claim);
        // Asynchronous where the kernel can (6.9): the synchronous command waits for readers that keep the dead disk open.
        let deleted = ctrl.del_dev_async().or_else(|_| ctrl.del_dev()).map_err(failed("DEL_DEV"));
        stopped.and(deleted).map(drop)
    }
}

/// Waits for the threads of the queues; whether one panicked.
fn join(queues: Vec<(Arc<Inbox>, JoinHandle<()>)>, id: &DeviceId) -> bool {
    let mut panicked = false;
    for (_, thread) in queues {
        if thread.join().is_err() {
            tracing::error!(device = %id, "a queue thread panicked");
            panicked = true;
        }
    }
    panicked
}

/// Waits until the mounts of this namespace change (proc(5): an exceptional condition of mountinfo), `pause_ms` milliseconds at most.
fn unmounted_or(mountinfo: Option<&File>, pause_ms: i64) {
    let mut watched: Vec<PollFd<'_>> = mountinfo.iter().map(|file| PollFd::new(*file, PollFlags::PRI)).collect();
    let limit = Timespec { tv_sec: pause_ms / 1000, tv_nsec: pause_ms % 1000 * 1_000_000 };
    // Cut short by a signal it is only a look too early.
    let _ = poll(&mut watched, Some(&limit));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_of_this_agent_and_this_image_is_taken_over() {
        let left = sys::ublksrv_ctrl_dev_info { ublksrv_flags: super::super::tag(7), state: 2, ..Default::default() };
        assert_eq!(resumable(&left, 8, 7, Some(4096)), Ok(()));
        assert_eq!(resumable(&left, 8, 7, None), Ok(()));
        // Its old server is dying: the driver is asked again until it is quiesced.
        assert_eq!(resumable(&sys::ublksrv_ctrl_dev_info { state: 1, ..left }, 8, 7, Some(4096)), Ok(()));
        assert!(resumable(&left, 8, 8, Some(4096)).is_err());
        let error = resumable(&left, 8, 7, Some(8192)).unwrap_err();
        assert_eq!(error, "it has 4096 bytes and the image has 8192");
        assert_eq!(
            resumable(&sys::ublksrv_ctrl_dev_info { state: 0, ..left }, 8, 7, None).unwrap_err(),
            "it has stopped"
        );
    }
}

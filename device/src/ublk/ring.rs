//! The thread of one hardware queue: its ring, its tags, its eventfd.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    rc::Rc,
    sync::{Arc, mpsc::SyncSender},
};

use io_uring::{opcode, types};
use libublk::{
    UblkError, UblkIORes,
    ctrl::UblkCtrl,
    io::{BufDesc, BufDescList, UblkDev, UblkIOCtx, UblkQueue, with_task_io_ring},
    sys,
};
use penstock_blob::ByteRange;
use rustix::{
    event::PollFlags,
    io::Errno,
    thread::{CapabilitySet, CpuSet, capabilities, sched_setaffinity, set_capabilities},
};

use super::control::SECTOR_BYTES;
use crate::{
    inbox::{End, Inbox},
    queue::{Queue, Setup},
    request::{Port, Request},
};

/// The low byte of `op_flags` is the operation (`<linux/ublk_cmd.h>`).
const OPERATION: u32 = 0xff;

/// Answers of one queue: written with `pwrite` into the request at its position of `/dev/ublkcN`, committed by the loop.
#[derive(Clone)]
struct Tags<'d> {
    cdev: BorrowedFd<'d>,
    queue: u16,
    answers: Rc<RefCell<Vec<(u16, i32)>>>,
}

impl Port for Tags<'_> {
    type Key = u16;

    fn fill(&self, tag: u16, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let skip = u32::try_from(done).map_err(io::Error::other)?;
            let at = UblkIOCtx::ublk_user_copy_pos(self.queue, tag, skip);
            match rustix::io::pwrite(self.cdev, &bytes[done..], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let result = i32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.answers.borrow_mut().push((tag, result));
        Ok(())
    }

    fn fail(&self, tag: u16, errno: Errno) {
        self.answers.borrow_mut().push((tag, -errno.raw_os_error()));
    }
}

/// Which queue of a device, and where.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) number: u16,
    /// The processors whose requests the kernel gives it; empty: all.
    pub(super) processors: Vec<usize>,
}

/// Serves a queue until the device stops. `ready` hears once that every tag was fetched, or why not.
pub(super) fn run(seat: &Seat, dev: &UblkDev, setup: Setup, inbox: Arc<Inbox>, ready: &SyncSender<io::Result<()>>) {
    let (id, number) = (setup.id.clone(), seat.number);
    seat.keep_to();
    let ublk = match fetch(number, dev) {
        Ok(ublk) => ublk,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let answers = Rc::new(RefCell::new(Vec::new()));
    let port = Tags { cdev: crate::sys::cdev(dev), queue: number, answers };
    let mut ring = Ring { ublk, port: port.clone(), queue: Queue::new(setup, inbox.clone()), inbox };
    if let Err(error) = ring.serve() {
        tracing::error!(device = %id, queue = number, %error, "a queue failed; its readers wait until the device is stopped");
    }
    let Ring { ublk, port, queue, inbox } = ring;
    let how = inbox.ended().unwrap_or(End::Quit);
    queue.end(how);
    commit(&ublk, &port);
    // The last answers have no further wait to be submitted with.
    let _ = with_task_io_ring(|ring| ring.submit());
    if how == End::Leave {
        // Its drop waits (before Linux 6.13) for commands that the driver holds until this thread has ended. What it maps goes with
        // the process.
        std::mem::forget(ublk);
    }
}

impl Seat {
    /// Keeps this thread to its processors: what a reader asks for and gets stays in their caches, and no other queue's thread is in its way. Where that is not
    /// possible (the agent may use others only) the scheduler chooses.
    fn keep_to(&self) {
        if self.processors.is_empty() {
            return;
        }
        let mut set = CpuSet::new();
        self.processors.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU).for_each(|&cpu| set.set(cpu));
        if let Err(error) = sched_setaffinity(None, &set) {
            tracing::debug!(queue = self.number, %error, "a queue's thread runs on any processor");
        }
    }
}

/// Sets the thread up and sends the first FETCH for every tag.
fn fetch(number: u16, dev: &UblkDev) -> io::Result<UblkQueue<'_>> {
    // Memory reclaim in this thread must not wait for block devices, of which this is one.
    UblkCtrl::init_queue_thread();
    give_up_admin()?;
    let ublk = UblkQueue::new(number, dev)
        .and_then(|queue| queue.submit_fetch_commands_unified(BufDescList::Slices(None)))
        .map_err(io::Error::other)?;
    with_task_io_ring(|ring| ring.submit())?;
    Ok(ublk)
}

/// The driver skips the partition scan for queues without CAP_SYS_ADMIN. The scan would read the disk inside START_DEV, and
/// on kernels before 6.18 an agent killed during that read could never end.
fn give_up_admin() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.effective.remove(CapabilitySet::SYS_ADMIN);
    sets.permitted.remove(CapabilitySet::SYS_ADMIN);
    Ok(set_capabilities(None, sets)?)
}

struct Ring<'d> {
    ublk: UblkQueue<'d>,
    port: Tags<'d>,
    queue: Queue<Tags<'d>>,
    inbox: Arc<Inbox>,
}

impl Ring<'_> {
    /// Takes requests and completions, in batches, until the driver has no more.
    fn serve(&mut self) -> Result<(), UblkError> {
        self.listen()?;
        let mut tags = Vec::new();
        loop {
            let mut woken = false;
            let waited = self.ublk.flush_and_wake_io_tasks(
                |user_data, entry, _| match (user_data == wake_mark(), entry.result()) {
                    (true, _) => woken = true,
                    (false, 0) => tags.push(UblkIOCtx::user_data_to_tag(user_data)),
                    (false, sys::UBLK_IO_RES_ABORT) => {}
                    (false, error) => tracing::error!(error, "the driver refused a command; its tag is lost"),
                },
                1,
            );
            match waited {
                Ok(_) => {}
                Err(UblkError::IOError(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(UblkError::QueueIsDown) => return Ok(()),
                Err(error) => return Err(error),
            }
            if woken {
                self.queue.collect();
                if self.inbox.ended().is_some() {
                    return Ok(());
                }
                self.listen()?;
            }
            for tag in tags.drain(..).filter_map(|tag| u16::try_from(tag).ok()) {
                self.take(tag);
            }
            commit(&self.ublk, &self.port);
        }
    }

    /// Arms the eventfd on the ring. A poll, not a read: it needs no buffer that must outlive the ring.
    fn listen(&self) -> Result<(), UblkError> {
        let fd = types::Fd(self.inbox.as_fd().as_raw_fd());
        let poll = opcode::PollAdd::new(fd, PollFlags::IN.bits().into()).build().user_data(wake_mark());
        self.ublk.ublk_submit_sqe_sync(poll)
    }

    /// Takes the request of `tag` from the kernel.
    fn take(&mut self, tag: u16) {
        let asked = *self.ublk.get_iod(tag);
        let request = Request::new(self.port.clone(), tag, self.queue.counters());
        match asked.op_flags & OPERATION {
            sys::UBLK_IO_OP_READ => {
                let start = asked.start_sector.saturating_mul(SECTOR_BYTES);
                match ByteRange::at(start, u64::from(asked.nr_sectors) * SECTOR_BYTES) {
                    Ok(range) => self.queue.read(request, range),
                    Err(_) => request.refuse(Errno::INVAL),
                }
            }
            sys::UBLK_IO_OP_FLUSH => request.done(),
            sys::UBLK_IO_OP_WRITE => request.refuse(Errno::ROFS),
            _ => request.refuse(Errno::OPNOTSUPP),
        }
    }
}

/// Commits the answers made since the last time; the next wait submits them.
fn commit(ublk: &UblkQueue<'_>, port: &Tags<'_>) {
    for (tag, result) in port.answers.borrow_mut().drain(..) {
        let committed = ublk.complete_io_cmd_unified(tag, BufDesc::Slice(&[]), Ok(UblkIORes::Result(result)));
        if let Err(error) = committed {
            tracing::error!(tag, %error, "an answer could not be committed");
        }
    }
}

/// What marks the completion of the eventfd's poll: a target entry (the top bit) of no tag.
fn wake_mark() -> u64 {
    UblkIOCtx::build_user_data(u16::MAX, 0, 0, true)
}

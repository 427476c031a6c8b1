//! How other threads speak to the thread of a queue: a list, and one eventfd that the thread waits on.
//!
//! A thread parked on its ring (or in `poll`) does not hear a channel; it hears a descriptor that becomes readable. However
//! many completions are posted while it is busy, the eventfd is written once.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use crate::offload::Completion;

/// How a queue's thread ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The device goes: what is open is answered EIO.
    Quit,
    /// The device stays for a successor: what is open is not answered, and the kernel asks the successor again.
    Leave,
}

/// What is posted to one queue's thread.
#[derive(Debug)]
pub(crate) struct Inbox {
    done: Mutex<Vec<Completion>>,
    end: OnceLock<End>,
    /// Answer what waits now with EIO, once.
    fail_waiting: AtomicBool,
    /// Answer everything with EIO, from now on.
    refuse: AtomicBool,
    signalled: AtomicBool,
    event: OwnedFd,
}

impl Inbox {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            done: Mutex::new(Vec::new()),
            end: OnceLock::new(),
            fail_waiting: AtomicBool::new(false),
            refuse: AtomicBool::new(false),
            signalled: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        }))
    }

    /// Hands over what became of a miss. At most one per miss in flight, so the list is bounded by their bound.
    pub(crate) fn post(&self, completion: Completion) {
        self.done.lock().push(completion);
        self.signal();
    }

    /// Tells the thread to end. The first order stands.
    pub(crate) fn end(&self, how: End) {
        self.end.get_or_init(|| how);
        self.signal();
    }

    /// The order to end, once there is one.
    pub(crate) fn ended(&self) -> Option<End> {
        self.end.get().copied()
    }

    /// Tells the thread to answer what waits now with EIO, and to go on.
    pub(crate) fn fail_waiting(&self) {
        self.fail_waiting.store(true, Ordering::SeqCst);
        self.signal();
    }

    /// Tells the thread to answer everything with EIO from now on, and to go on doing that.
    pub(crate) fn refuse(&self) {
        self.refuse.store(true, Ordering::SeqCst);
        self.signal();
    }

    /// Whether everything is to be answered with EIO.
    pub(crate) fn is_refusing(&self) -> bool {
        self.refuse.load(Ordering::SeqCst)
    }

    /// Whether what waits is to be answered with EIO now. Answers yes once for each time that it was asked for.
    pub(crate) fn take_failing(&self) -> bool {
        self.fail_waiting.swap(false, Ordering::SeqCst) || self.is_refusing()
    }

    /// Whether something was posted since the last [`Inbox::take`].
    pub(crate) fn has_news(&self) -> bool {
        self.signalled.load(Ordering::SeqCst)
    }

    /// What was posted. Resets the eventfd first: whoever posts after that writes it again.
    pub(crate) fn take(&self) -> Vec<Completion> {
        let mut count = [0; 8];
        // The eventfd is not blocking, and an error means that it was not written: there is nothing to reset then.
        let _ = rustix::io::read(&self.event, &mut count);
        self.signalled.store(false, Ordering::SeqCst);
        std::mem::take(&mut self.done.lock())
    }

    fn signal(&self) {
        if !self.signalled.swap(true, Ordering::SeqCst) {
            // Cannot fail: the counter is far from its limit of 2^64 - 2, being written once per reset.
            let _ = rustix::io::write(&self.event, &1u64.to_le_bytes());
        }
    }
}

impl AsFd for Inbox {
    /// The eventfd, readable when something was posted.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn readable(inbox: &Inbox) -> bool {
        let mut fds = [PollFd::new(inbox, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    fn completion(ticket: u64) -> Completion {
        Completion { ticket, outcome: Err(penstock_blob::ReadError::Stopping), giver: None }
    }

    #[test]
    fn a_post_is_seen_and_taken_once() {
        let inbox = Inbox::new().unwrap();
        assert!(!readable(&inbox) && !inbox.has_news());
        for ticket in 0..3 {
            inbox.post(completion(ticket));
        }
        assert!(readable(&inbox) && inbox.has_news());
        assert_eq!(inbox.take().iter().map(|c| c.ticket).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(!readable(&inbox) && inbox.take().is_empty());
        assert_eq!(inbox.ended(), None);
        inbox.end(End::Leave);
        inbox.end(End::Quit);
        assert!(readable(&inbox));
        assert_eq!(inbox.ended(), Some(End::Leave), "the first order stands");
    }

    #[test]
    fn no_post_is_lost_to_a_race_with_the_taker() {
        const EACH: u64 = 20_000;
        let inbox = Inbox::new().unwrap();
        let posters: Vec<_> = (0..4)
            .map(|_| {
                let inbox = inbox.clone();
                std::thread::spawn(move || (0..EACH).for_each(|ticket| inbox.post(completion(ticket))))
            })
            .collect();
        let mut seen = 0;
        while seen < 4 * EACH {
            // A lost wake-up would leave this waiting for ever.
            poll(&mut [PollFd::new(&inbox, PollFlags::IN)], None).unwrap();
            seen += inbox.take().len() as u64;
        }
        posters.into_iter().for_each(|p| p.join().unwrap());
        assert_eq!(seen, 4 * EACH);
    }
}

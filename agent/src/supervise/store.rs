//! The descriptors that are kept.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use penstock_device::DeviceId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::keeper::{
    END,
    pass::{self, MOST_AT_ONCE, Notice, Received},
};

/// Most descriptors kept: one for each attachment that a node may have.
pub const MOST_KEPT: usize = 1024;

/// Descriptors by the device whose connection they are.
#[derive(Debug, Default)]
pub(crate) struct Store {
    kept: BTreeMap<DeviceId, OwnedFd>,
}

impl Store {
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Does what a message of the agent says; answers whether it says that the agent serves.
    pub(crate) fn take(&mut self, message: Received) -> bool {
        let Received { text, mut fds, .. } = message;
        match (Notice::from_text(&text), fds.len()) {
            (Some(Notice::Ready), 0) => return true,
            (Some(Notice::Keep(id)), 1) if self.has_room_for(&id) => self.kept.extend(fds.pop().map(|fd| (id, fd))),
            (Some(Notice::Drop(id)), 0) => drop(self.kept.remove(&id)),
            // Its descriptor closes with `fds`.
            (Some(Notice::Barrier), 1) | (Some(Notice::Stopping | Notice::Alive), 0) => {}
            (notice, count) => tracing::warn!(?notice, count, "a message that cannot be followed is not"),
        }
        false
    }

    fn has_room_for(&self, id: &DeviceId) -> bool {
        self.kept.len() < MOST_KEPT || self.kept.contains_key(id)
    }

    /// Closes descriptors whose other end is gone: of a FUSE file system that was unmounted, or aborted.
    pub(crate) fn drop_dead(&mut self) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds: Vec<PollFd<'_>> = self.kept.values().map(|fd| PollFd::new(fd, PollFlags::empty())).collect();
        rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now)))?;
        let dead = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        let is_dead: Vec<bool> = fds.iter().map(|fd| fd.revents().intersects(dead)).collect();
        drop(fds);
        let mut is_dead = is_dead.into_iter();
        self.kept.retain(|_, _| is_dead.next() == Some(false));
        Ok(())
    }

    /// Sends copies of all descriptors with their names, then the end of the list. What is sent fits into the queue of a fresh socket,
    /// so that this does not wait for a reader.
    pub(crate) fn give_back(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let all: Vec<(&DeviceId, &OwnedFd)> = self.kept.iter().collect();
        for some in all.chunks(MOST_AT_ONCE) {
            let names: String = some.iter().map(|(id, _)| format!("{}\n", pass::name(id))).collect();
            let fds: Vec<BorrowedFd<'_>> = some.iter().map(|(_, fd)| fd.as_fd()).collect();
            pass::send(socket, None, &names, &fds)?;
        }
        pass::send(socket, None, END, &[])
    }
}

#[cfg(test)]
mod tests {
    use std::io::PipeWriter;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::keeper::pass::Incoming;

    fn id(n: usize) -> DeviceId {
        format!("d{n}").parse().unwrap()
    }

    fn keep(store: &mut Store, n: usize) -> PipeWriter {
        let (read, write) = io::pipe().unwrap();
        let text = Notice::Keep(id(n)).to_text().into_bytes();
        assert!(!store.take(Received { text, fds: vec![read.into()], sender: None }));
        write
    }

    #[test]
    fn all_that_is_kept_comes_back_under_its_name_without_a_reader_waiting() {
        run_with_files(|| {
            let mut store = Store::default();
            let writers: Vec<PipeWriter> = (0..MOST_KEPT + 1).map(|n| keep(&mut store, n)).collect();
            assert_eq!(store.len(), MOST_KEPT, "the bound holds");
            let (ours, theirs) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
            store.give_back(ours.as_fd()).unwrap();
            let mut names = Vec::new();
            loop {
                let Incoming::Message(message) = pass::receive(&theirs).unwrap() else { panic!("no end") };
                let text = String::from_utf8(message.text).unwrap();
                if text == END {
                    break;
                }
                assert_eq!(text.lines().count(), message.fds.len());
                names.extend(text.lines().map(str::to_owned));
            }
            let expected: Vec<String> = store.kept.keys().map(pass::name).collect();
            assert_eq!(names, expected);
            drop(writers);
        });
    }

    /// More descriptors than a process usually may have open.
    fn run_with_files(test: impl FnOnce()) {
        crate::run::raise_open_files();
        test();
    }

    #[test]
    fn what_was_dropped_or_has_ended_is_not_kept() {
        let mut store = Store::default();
        let writers: Vec<PipeWriter> = (0..3).map(|n| keep(&mut store, n)).collect();
        store.take(Received { text: Notice::Drop(id(1)).to_text().into_bytes(), fds: Vec::new(), sender: None });
        assert_eq!(store.len(), 2);
        store.drop_dead().unwrap();
        assert_eq!(store.len(), 2);
        drop(writers);
        store.drop_dead().unwrap();
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn a_message_with_too_many_or_too_few_descriptors_changes_nothing() {
        let mut store = Store::default();
        let read = || -> OwnedFd { io::pipe().unwrap().0.into() };
        let text = || Notice::Keep(id(1)).to_text().into_bytes();
        assert!(!store.take(Received { text: text(), fds: Vec::new(), sender: None }));
        assert!(!store.take(Received { text: text(), fds: vec![read(), read()], sender: None }));
        assert!(!store.take(Received { text: b"FDSTORE=1\nFDNAME=other".to_vec(), fds: vec![read()], sender: None }));
        assert_eq!(store.len(), 0);
        assert!(store.take(Received { text: Notice::Ready.to_text().into_bytes(), fds: Vec::new(), sender: None }));
    }
}

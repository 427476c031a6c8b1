//! The thread of one FUSE device: reads messages, answers hits at once, hands misses to the offload.

use std::{
    fs, io,
    io::IoSlice,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::wire::{self, Verdict};
use crate::{
    inbox::{End, Inbox},
    queue::{Queue, Setup},
    request::{Port, Request},
};

/// Room for one message: as little as the kernel takes (`FUSE_MIN_READ_BUFFER`), because each device has it. That is more than any name that can be looked
/// up; the kernel refuses by itself what would not fit.
const MESSAGE_BYTES: usize = 8 << 10;

/// Answers of a session: one `writev` each, from any thread.
#[derive(Clone)]
pub(super) struct Channel(Arc<OwnedFd>);

impl Channel {
    fn write(&self, unique: u64, answer: Result<&[u8], Errno>) -> io::Result<()> {
        let header = wire::header(unique, answer.map(<[u8]>::len));
        let parts = [IoSlice::new(&header), IoSlice::new(answer.unwrap_or_default())];
        match rustix::io::writev(&self.0, &parts) {
            // The kernel gave the request up (its mount is gone): it is answered.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What names a read: the kernel's number for it, and the thread that reads (0: not in our namespace).
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    unique: u64,
    reader: u32,
}

impl Port for Channel {
    type Key = Asked;

    fn fill(&self, asked: Asked, bytes: &[u8]) -> io::Result<()> {
        self.write(asked.unique, Ok(bytes))
    }

    fn fail(&self, asked: Asked, errno: Errno) {
        if let Err(error) = self.write(asked.unique, Err(errno)) {
            tracing::error!(unique = asked.unique, %error, "the kernel did not take an error answer");
        }
    }
}

/// One mounted file.
pub(super) struct Session {
    channel: Channel,
    file: wire::File,
    queue: Queue<Channel>,
    inbox: Arc<Inbox>,
}

impl Session {
    /// `connection` is the descriptor of `/dev/fuse` that the mount was made with, not blocking. A connection taken over from
    /// another process needs no handshake; one just mounted begins with it.
    pub(super) fn new(connection: OwnedFd, file: wire::File, setup: Setup, inbox: Arc<Inbox>) -> Self {
        Self { channel: Channel(Arc::new(connection)), file, queue: Queue::new(setup, inbox.clone()), inbox }
    }

    /// Serves until the file system is unmounted, the connection aborted, or the inbox says to end. Everything still open is
    /// then answered EIO, or left to a successor, and this descriptor of the connection closed.
    pub(super) fn run(mut self) {
        match self.serve() {
            Ok(()) => {}
            Err(error) => tracing::error!(%error, "reading from /dev/fuse failed; the device serves no more"),
        }
        self.queue.end(self.inbox.ended().unwrap_or(End::Quit));
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut message = vec![0; MESSAGE_BYTES];
        loop {
            if self.inbox.has_news() {
                self.queue.collect();
            }
            if self.inbox.ended().is_some() {
                return Ok(());
            }
            // Back-pressure: messages stay with the kernel while too many requests wait here.
            if self.queue.is_full() {
                self.wait(false)?;
                continue;
            }
            match rustix::io::read(&self.channel.0, &mut message) {
                Ok(len) => self.take(&message[..len]),
                Err(Errno::AGAIN) => self.wait(true)?,
                // A request withdrawn while it was read.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for a post, and for a message when `messages`.
    fn wait(&self, messages: bool) -> io::Result<()> {
        let mut fds =
            [PollFd::new(&*self.inbox, PollFlags::IN), PollFd::from_borrowed_fd(self.channel.0.as_fd(), PollFlags::IN)];
        let wanted = if messages { &mut fds[..] } else { &mut fds[..1] };
        match poll(wanted, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn take(&mut self, message: &[u8]) {
        let Some((header, body)) = wire::open(message) else {
            tracing::error!(bytes = message.len(), "a message of the kernel is cut short");
            return;
        };
        let unique = header.unique;
        let written = match self.file.judge(&header, body) {
            Verdict::Read(range) => {
                let asked = Asked { unique, reader: header.pid };
                return self.queue.read(Request::new(self.channel.clone(), asked, self.queue.counters()), range);
            }
            Verdict::Interrupt { unique } => return self.interrupt(unique),
            Verdict::Silent => return,
            Verdict::Reply(body) => self.channel.write(unique, Ok(&body)),
            Verdict::Refuse(errno) => self.channel.write(unique, Err(errno)),
        };
        if let Err(error) = written {
            tracing::error!(unique, opcode = header.opcode, %error, "the kernel did not take an answer");
        }
    }

    /// A signal reached the reader of `unique`. Only one that is being killed is let go, with EINTR: to anyone else, such as a
    /// page fault in a program that merely got a signal, that would be a failed read.
    fn interrupt(&mut self, unique: u64) {
        self.queue.cancel(|asked| asked.unique == unique && is_killed(asked.reader), Errno::INTR);
    }
}

/// Whether a fatal signal is pending for thread `pid`, which its status tells: SIGKILL is what the kernel makes of every fatal
/// signal.
fn is_killed(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| kill_pending(&status))
}

/// Bit 8 (SIGKILL is signal 9) of the pending signals of the thread or its process, as proc(5) shows them.
fn kill_pending(status: &str) -> bool {
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    status.lines().filter_map(pending).any(|mask| mask & (1 << 8) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fatal_signal_lets_a_reader_go() {
        let status = |thread, process| format!("Name:\tcat\nSigPnd:\t{thread}\nShdPnd:\t{process}\nSigBlk:\t0\n");
        let none = "0000000000000000";
        assert!(kill_pending(&status("0000000000000100", none)));
        assert!(kill_pending(&status(none, "0000000000000100")));
        // SIGURG, which Go sends its own threads all the time.
        assert!(!kill_pending(&status("0000000000400000", none)));
        assert!(!kill_pending(""));
    }
}

//! Messages with descriptors over unix sockets, in the words of sd_notify(3): an agent says the same to systemd and to
//! `penstock supervise`.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use penstock_device::DeviceId;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketAddrUnix, UCred, recvmsg, sendmsg, sendmsg_addr,
    },
};
use tokio::{io::Interest, net::UnixDatagram};

/// How long the other end may take to read or to answer. systemd, which is busiest when a node starts, takes milliseconds otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most descriptors in one message: `SCM_MAX_FD` of the kernel's `<net/scm.h>`.
pub(crate) const MOST_AT_ONCE: usize = 253;
/// Room for a message: the names of as many descriptors, with something to spare.
const MESSAGE_BYTES: usize = 16 << 10;
/// What the name of a FUSE connection begins with; a device's id follows. Leaves room for other kinds of descriptors.
const FUSE: &str = "fuse.";

/// The name under which the connection of a device is kept. Without `:`, as `FDNAME` wants it.
pub(crate) fn name(id: &DeviceId) -> String {
    format!("{FUSE}{id}")
}

/// The device of a name made by [`name`]; `None` for all other texts.
pub(crate) fn device(name: &str) -> Option<DeviceId> {
    name.strip_prefix(FUSE)?.parse().ok()
}

/// What an agent says to whoever looks after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// It serves.
    Ready,
    /// It ends.
    Stopping,
    /// It lives.
    Alive,
    /// Keep the one descriptor that comes with this.
    Keep(DeviceId),
    /// Close what is kept under this name.
    Drop(DeviceId),
    /// Close the one descriptor that comes with this once everything said before is done.
    Barrier,
}

impl Notice {
    /// As it is sent.
    pub(crate) fn to_text(&self) -> String {
        match self {
            // `systemctl status` shows the words.
            Self::Ready => "READY=1\nSTATUS=ready: takes work\n".to_owned(),
            Self::Stopping => "STOPPING=1\nSTATUS=draining: takes no more work\n".to_owned(),
            Self::Alive => "WATCHDOG=1\n".to_owned(),
            Self::Keep(id) => format!("FDSTORE=1\nFDNAME={}\n", name(id)),
            Self::Drop(id) => format!("FDSTOREREMOVE=1\nFDNAME={}\n", name(id)),
            Self::Barrier => "BARRIER=1".to_owned(),
        }
    }

    /// What a message of an agent says; `None` when that is nothing of the above.
    pub(crate) fn from_text(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let says = |line: &str| text.lines().any(|l| l == line);
        let id = || device(text.lines().find_map(|line| line.strip_prefix("FDNAME="))?);
        match () {
            () if says("BARRIER=1") => Some(Self::Barrier),
            () if says("FDSTORE=1") => id().map(Self::Keep),
            () if says("FDSTOREREMOVE=1") => id().map(Self::Drop),
            () if says("READY=1") => Some(Self::Ready),
            () if says("STOPPING=1") => Some(Self::Stopping),
            () if says("WATCHDOG=1") => Some(Self::Alive),
            () => None,
        }
    }
}

/// Sends one message: to `address`, or to the other end of a connected socket.
pub(crate) fn send(
    socket: impl AsFd,
    address: Option<&SocketAddrUnix>,
    text: &str,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(fds).size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let bytes = [IoSlice::new(text.as_bytes())];
    // No SIGPIPE: the other end may be gone.
    let flags = SendFlags::NOSIGNAL;
    loop {
        let sent = rustix::io::retry_on_intr(|| match address {
            Some(address) => sendmsg_addr(socket.as_fd(), address, &bytes, &mut control, flags),
            None => sendmsg(socket.as_fd(), &bytes, &mut control, flags),
        });
        match sent {
            Ok(_) => return Ok(()),
            // A socket that does not block, whose other end has not read what was said before.
            Err(Errno::AGAIN) => wait(PollFd::new(&socket, PollFlags::OUT))?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for what `fd` is to be watched for, at most [`PATIENCE`].
pub(crate) fn wait(fd: PollFd<'_>) -> io::Result<()> {
    let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
    match rustix::io::retry_on_intr(|| poll(&mut [fd.clone()], Some(&patience)))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// A message with what came along.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) text: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    /// Who sent it, when the socket was told to ask (`SO_PASSCRED`).
    pub(crate) sender: Option<UCred>,
}

/// What there is to receive now.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A message.
    Message(Received),
    /// None yet.
    Nothing,
    /// None ever: the other end is closed.
    Closed,
}

/// Takes a message if there is one; never waits. A message that does not fit is an error, and what of it came is closed.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<Incoming> {
    let mut bytes = vec![0; MESSAGE_BYTES];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_AT_ONCE), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::io::retry_on_intr(|| recvmsg(socket.as_fd(), &mut parts, &mut control, flags)) {
            Ok(got) => got,
            Err(Errno::AGAIN) => return Ok(Incoming::Nothing),
            Err(Errno::CONNRESET) => return Ok(Incoming::Closed),
            Err(error) => return Err(error.into()),
        }
    };
    let (mut fds, mut sender) = (Vec::new(), None);
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(given) => fds.extend(given),
            RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials),
            _ => {}
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is longer than any of ours"));
    }
    if got.bytes == 0 {
        return Ok(Incoming::Closed);
    }
    bytes.truncate(got.bytes);
    Ok(Incoming::Message(Received { text: bytes, fds, sender }))
}

/// A connected socket whose messages are awaited.
#[derive(Debug)]
pub(crate) struct Ear(UnixDatagram);

impl Ear {
    /// Listens at `socket`, which does not block from then on, also for who has a copy of it. Must be called on a runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        // A SEQPACKET socket in the type of a DGRAM one: only its readiness is asked of that, which is the same for both.
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self(UnixDatagram::from_std(socket)?))
    }

    /// Waits until there may be something to receive.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// As [`receive`].
    pub(crate) fn receive(&self) -> io::Result<Incoming> {
        let received = self.0.try_io(Interest::READABLE, || match receive(&self.0)? {
            Incoming::Nothing => Err(io::ErrorKind::WouldBlock.into()),
            incoming => Ok(incoming),
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Incoming::Nothing),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
    };

    use super::*;

    #[test]
    fn every_notice_is_read_as_it_was_written_and_nothing_else_is_one() {
        let id: DeviceId = "app-1a2b3c".parse().unwrap();
        for notice in [
            Notice::Ready,
            Notice::Stopping,
            Notice::Alive,
            Notice::Barrier,
            Notice::Keep(id.clone()),
            Notice::Drop(id.clone()),
        ] {
            assert_eq!(Notice::from_text(notice.to_text().as_bytes()), Some(notice));
        }
        for text in [
            &b""[..],
            b"READY=2",
            b"FDSTORE=1",
            b"FDSTORE=1\nFDNAME=app",
            b"FDSTORE=1\nFDNAME=fuse.../x",
            b"FDSTORE=1\nFDNAME=fuse.",
            b"\xff\xfe",
            b"\0",
        ] {
            assert_eq!(Notice::from_text(text), None, "{text:?}");
        }
        assert_eq!(device(&name(&id)), Some(id));
    }

    #[test]
    fn descriptors_arrive_with_their_text_and_are_not_inherited() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let (mut read, write) = std::io::pipe().unwrap();
        send(&theirs, None, "text", &[write.as_fd()]).unwrap();
        drop(write);
        let Incoming::Message(message) = receive(&ours).unwrap() else { panic!("there is a message") };
        assert_eq!((message.text.as_slice(), message.fds.len()), (&b"text"[..], 1));
        let flags = rustix::io::fcntl_getfd(&message.fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        for fd in message.fds {
            File::from(fd).write_all(b"through").unwrap();
        }
        let mut through = String::new();
        read.read_to_string(&mut through).unwrap();
        assert_eq!(through, "through");
        assert!(matches!(receive(&ours).unwrap(), Incoming::Nothing));
    }

    #[test]
    fn a_message_that_does_not_fit_is_refused_and_its_descriptors_are_closed() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let (mut read, write) = std::io::pipe().unwrap();
        send(&theirs, None, &"x".repeat(MESSAGE_BYTES + 1), &[write.as_fd()]).unwrap();
        drop(write);
        assert_eq!(receive(&ours).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // The end of the pipe: nobody has the other side.
        assert_eq!(read.read(&mut [0]).unwrap(), 0);
    }
}

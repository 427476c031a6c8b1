//! `penstock supervise` as the keeper, from the agent's side: one connected socket, which is standard input at the start.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use penstock_device::DeviceId;
use rustix::{
    net::{AddressFamily, SocketType, sockopt},
    process::getppid,
};

use super::{
    Found, Link,
    pass::{self, Incoming},
    sort,
};
use crate::supervise::MOST_KEPT;

/// Takes the socket from standard input, and what the supervisor sent before it started us. Standard input is `/dev/null` from then on,
/// so that no child of ours inherits the socket.
pub(super) fn found() -> io::Result<Found> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    check(socket.as_fd())?;
    let mut notices = Vec::new();
    let given = given(&socket, &mut notices)?;
    Ok(Found { link: Link::Connected(socket), most: MOST_KEPT, given, notices })
}

/// What a supervisor, or `penstock keep`, has sent over its end before anything else: all that it keeps.
pub(super) fn given(socket: &OwnedFd, notices: &mut Vec<String>) -> io::Result<BTreeMap<DeviceId, OwnedFd>> {
    let mut given = BTreeMap::new();
    loop {
        let Incoming::Message(message) = pass::receive(socket)? else {
            return Err(io::Error::other("the keeper's list of descriptors has no end"));
        };
        let text = String::from_utf8(message.text).map_err(io::Error::other)?;
        if text == END {
            return Ok(given);
        }
        given.append(&mut sort(text.lines().map(str::to_owned).collect(), message.fds, notices));
    }
}

/// The message behind the last one with names of descriptors.
pub(crate) const END: &str = "END\n";

/// Whether the socket is one that our parent made.
fn check(socket: BorrowedFd<'_>) -> io::Result<()> {
    let foreign = |what: &str| io::Error::other(format!("standard input is not a supervisor's socket: {what}"));
    if sockopt::socket_domain(socket)? != AddressFamily::UNIX || sockopt::socket_type(socket)? != SocketType::SEQPACKET
    {
        return Err(foreign("it is of another kind"));
    }
    if Some(sockopt::socket_peercred(socket)?.pid) != getppid() {
        return Err(foreign("another process than our parent has its other end"));
    }
    Ok(())
}

/// Waits until the other end is closed. The supervisor says nothing more after its list, so that whatever comes is the end.
pub(super) async fn closed(socket: &OwnedFd) -> io::Result<()> {
    let ear = pass::Ear::new(socket.try_clone()?)?;
    loop {
        ear.ready().await?;
        match ear.receive()? {
            Incoming::Closed => return Ok(()),
            Incoming::Nothing => {}
            Incoming::Message(_) => tracing::warn!("the supervisor said something that no supervisor says"),
        }
    }
}

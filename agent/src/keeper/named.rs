//! `penstock keep` as the keeper, from the agent's side: found by the path of its socket, from which one end of a connected pair comes.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
};

use rustix::event::{PollFd, PollFlags};

use super::{
    Found, Link,
    pass::{self, Incoming},
    supervisor,
};
use crate::{keep::WELCOME, supervise::MOST_KEPT};

/// Connects, and takes what the keeper has.
pub(super) fn found(path: &Path) -> io::Result<Found> {
    let named = |reason: io::Error| {
        let text = format!("nobody keeps descriptors on {}: {reason}; start `penstock keep` first", path.display());
        io::Error::new(reason.kind(), text)
    };
    let socket = UnixStream::connect(path).and_then(|stream| pair(&stream)).map_err(named)?;
    let mut notices = Vec::new();
    let given = supervisor::given(&socket, &mut notices)?;
    Ok(Found { link: Link::Named(socket), most: MOST_KEPT, given, notices })
}

/// Our end of the pair.
fn pair(stream: &UnixStream) -> io::Result<OwnedFd> {
    pass::wait(PollFd::new(stream, PollFlags::IN))?;
    match pass::receive(stream)? {
        Incoming::Message(mut message) if message.text == WELCOME.as_bytes() && message.fds.len() == 1 => {
            message.fds.pop().ok_or_else(|| io::ErrorKind::InvalidData.into())
        }
        Incoming::Closed => Err(io::Error::other("it lets nobody else in")),
        _ => Err(io::Error::other("it is no keeper")),
    }
}

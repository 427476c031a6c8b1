//! systemd as the keeper: its notification socket, and the descriptors that it starts a service with.

use std::{io, os::fd::OwnedFd};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::{Found, Link, sort};
use crate::config::Service;

/// What systemd, or nobody, said at the start of this process.
pub(super) fn found(service: &Service) -> io::Result<Found> {
    let fds = penstock_device::inherited(service.given.len())?;
    let mut notices = Vec::new();
    let given = sort(service.given.clone(), fds, &mut notices);
    let link = match service.notify_socket.as_deref().map(address) {
        None => Link::None,
        Some(Ok(address)) => Link::Address(socket()?, address),
        Some(Err(reason)) => {
            notices.push(format!("nobody is told when this agent is ready: NOTIFY_SOCKET {reason}"));
            Link::None
        }
    };
    let most = if matches!(link, Link::None) { 0 } else { service.keeps };
    Ok(Found { link, most, given, notices })
}

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// The address that `$NOTIFY_SOCKET` names: a path, or an abstract name behind an `@`.
fn address(text: &str) -> Result<SocketAddrUnix, String> {
    let address = match text.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
        None if text.starts_with('/') => SocketAddrUnix::new(text),
        None => return Err(format!("names {text:?}, which is no unix socket")),
    };
    address.map_err(|error| format!("cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_an_abstract_name_are_addresses_and_nothing_else_is() {
        assert!(address("/run/systemd/notify").is_ok());
        assert!(address("@abstract").is_ok());
        assert!(address("vsock:2:1234").unwrap_err().contains("no unix socket"));
        assert!(address(&format!("/{}", "x".repeat(200))).is_err());
    }
}

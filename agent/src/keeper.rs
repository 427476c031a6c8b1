//! Who keeps the connections of FUSE devices while no agent runs: systemd's descriptor store, `penstock supervise`, `penstock keep`, or nobody.
//!
//! A FUSE file system lives as long as somebody has its connection open. The agent gives a copy of each connection away before it
//! answers the attach, and finds all of them again when it starts. All keepers are spoken to in the words of sd_notify(3); they differ
//! in how a message reaches them and how the descriptors come back (`systemd`, `supervisor`, `named`). Why: docs/decisions/0007.
//!
//! Everything but [`Keeper::lost`] may wait for the keeper, at most 10 s: call it where blocking is allowed.

mod named;
pub(crate) mod pass;
mod supervisor;
mod systemd;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use pass::Notice;
use penstock_device::DeviceId;
use rustix::{
    event::{PollFd, PollFlags},
    net::SocketAddrUnix,
};

use crate::config::Service;
pub(crate) use supervisor::END;

/// Why a connection is not kept: its device ends with this agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    /// There is nobody.
    #[error(
        "nobody keeps descriptors for this agent; run it under `penstock supervise`, or under systemd with FileDescriptorStoreMax and FDSTORE set"
    )]
    Nobody,
    /// The keeper takes no more.
    #[error("the keeper takes {most} descriptors and has them; raise FileDescriptorStoreMax and FDSTORE of the unit")]
    Full {
        /// How many.
        most: usize,
    },
    /// The keeper is gone, or does not answer.
    #[error("the keeper does not take it: {0}; look whether `penstock supervise` or systemd is alive")]
    Gone(#[from] io::Error),
}

/// Whoever keeps descriptors for this agent.
pub struct Keeper {
    link: Link,
    /// How many it takes.
    most: usize,
    /// What it gave back, until it is taken up.
    given: Mutex<BTreeMap<DeviceId, OwnedFd>>,
    /// What it has now.
    has: Mutex<BTreeSet<DeviceId>>,
    is_lost: AtomicBool,
    watchdog: Option<Duration>,
    /// What the log should say once there is one.
    notices: Vec<String>,
}

/// How a message reaches the keeper.
enum Link {
    /// There is none.
    None,
    /// systemd's socket, by its name.
    Address(OwnedFd, SocketAddrUnix),
    /// The other end of this one: our supervisor, which goes only when nobody starts another agent.
    Connected(OwnedFd),
    /// The other end of this one: `penstock keep`. Somebody else starts agents.
    Named(OwnedFd),
}

/// What a start found.
struct Found {
    link: Link,
    most: usize,
    given: BTreeMap<DeviceId, OwnedFd>,
    notices: Vec<String>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("most", &self.most).field("has", &*self.has.lock()).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Nobody: devices through FUSE end with the agent.
    #[must_use]
    pub fn nobody() -> Self {
        Self::from(Found { link: Link::None, most: 0, given: BTreeMap::new(), notices: Vec::new() })
    }

    /// The keeper of this process. Call it once, before the process opens files: it takes the descriptors that it was started with.
    ///
    /// # Errors
    /// When standard input should be the socket to a supervisor and is not, or nobody keeps on the socket that was named.
    pub fn of_process(service: &Service) -> io::Result<Self> {
        let found = match &service.keeper {
            Some(path) => named::found(path)?,
            None if service.is_supervised => supervisor::found()?,
            None => systemd::found(service)?,
        };
        Ok(Self { watchdog: service.watchdog, ..Self::from(found) })
    }

    /// What should be logged about what was found.
    pub(crate) fn notices(&self) -> &[String] {
        &self.notices
    }

    /// How often the keeper wants to hear that this process lives.
    pub(crate) const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The devices whose connections were given back and not taken up yet.
    pub(crate) fn given(&self) -> Vec<DeviceId> {
        self.given.lock().keys().cloned().collect()
    }

    /// Takes up what was given back for a device. The keeper still has its copy.
    pub(crate) fn take_up(&self, id: &DeviceId) -> Option<OwnedFd> {
        self.given.lock().remove(id)
    }

    /// Whether a device's connection outlives this process.
    pub(crate) fn has(&self, id: &DeviceId) -> bool {
        !self.is_lost.load(Ordering::SeqCst) && self.has.lock().contains(id)
    }

    /// Whether anything can be kept.
    pub(crate) fn keeps(&self) -> bool {
        self.most > 0 && !self.is_lost.load(Ordering::SeqCst)
    }

    /// Gives a copy of a device's connection to the keeper; answers once it has it.
    pub(crate) fn keep(&self, id: &DeviceId, connection: BorrowedFd<'_>) -> Result<(), KeepError> {
        if !self.keeps() {
            return Err(KeepError::Nobody);
        }
        if self.has.lock().len() >= self.most {
            return Err(KeepError::Full { most: self.most });
        }
        self.send(&Notice::Keep(id.clone()), &[connection])?;
        self.barrier()?;
        self.has.lock().insert(id.clone());
        Ok(())
    }

    /// Has the keeper close its copy. One that it has not is closed already.
    pub(crate) fn let_go(&self, id: &DeviceId) {
        drop(self.given.lock().remove(id));
        if self.has.lock().remove(id)
            && let Err(error) = self.send(&Notice::Drop(id.clone()), &[])
        {
            tracing::warn!(device = %id, %error, "the keeper was not told to close a connection; it sees itself that it has ended");
        }
    }

    /// Says that the agent serves, ends, or lives. Nobody waits for these: a failure is logged, no more.
    pub(crate) fn say(&self, notice: &Notice) {
        if let Err(error) = self.send(notice, &[]) {
            tracing::warn!(?notice, %error, "the keeper was not told");
        }
    }

    /// Waits until nobody would start another agent: our supervisor is gone. systemd does not go, and a keeper that starts nobody may.
    pub(crate) async fn lost(&self) {
        let (Link::Connected(socket) | Link::Named(socket)) = &self.link else { return std::future::pending().await };
        if let Err(error) = supervisor::closed(socket).await {
            tracing::warn!(%error, "whether the keeper lives is not watched");
            return std::future::pending().await;
        }
        self.is_lost.store(true, Ordering::SeqCst);
        if let Link::Named(_) = &self.link {
            tracing::warn!("the keeper is gone: devices through FUSE end with this agent");
            std::future::pending().await
        }
    }

    fn send(&self, notice: &Notice, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        match &self.link {
            Link::None => Ok(()),
            Link::Address(socket, address) => pass::send(socket, Some(address), &notice.to_text(), fds),
            Link::Connected(socket) | Link::Named(socket) => pass::send(socket, None, &notice.to_text(), fds),
        }
    }

    /// Waits until everything said so far is done: the keeper then closes its copy of a pipe's end.
    fn barrier(&self) -> io::Result<()> {
        let (read, write) = io::pipe()?;
        self.send(&Notice::Barrier, &[write.as_fd()])?;
        drop(write);
        // Nothing but its end is waited for.
        pass::wait(PollFd::new(&read, PollFlags::empty()))
    }
}

impl From<Found> for Keeper {
    fn from(found: Found) -> Self {
        Self {
            link: found.link,
            most: found.most,
            has: Mutex::new(found.given.keys().cloned().collect()),
            given: Mutex::new(found.given),
            is_lost: AtomicBool::new(false),
            watchdog: None,
            notices: found.notices,
        }
    }
}

/// Names and descriptors given back, by device. What has no name of ours is closed, and said.
fn sort(names: Vec<String>, fds: Vec<OwnedFd>, notices: &mut Vec<String>) -> BTreeMap<DeviceId, OwnedFd> {
    let mut given = BTreeMap::new();
    for (name, fd) in names.into_iter().zip(fds) {
        match pass::device(&name) {
            Some(id) => drop(given.insert(id, fd)),
            None => notices.push(format!(
                "a descriptor named {name:?} was given to this process, which knows no such; it is closed"
            )),
        }
    }
    given
}

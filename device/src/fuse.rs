//! A read-only file in a FUSE file system, for kernels without ublk: `<fuse_dir>/<id>/disk`.
//!
//! Ready for `mount -t erofs -o ro FILE DIR` where the kernel has file-backed EROFS (6.12), and for a loop device
//! ([`crate::Loop`]) elsewhere. Mounting and the ABI are fuse-backend-rs'; the loop is ours, because hits are answered in the
//! thread that reads `/dev/fuse` and misses later, from the same offload as ublk's (`docs/decisions/0005-fuse-crate.md`).
//!
//! A mount survives its agent when somebody else keeps a descriptor of its connection ([`Served::connection`]): the kernel holds
//! the readers back, and whoever serves that descriptor next has it send again what was read and not answered. When the last
//! descriptor is closed, every reader gets an error.

mod mount;
mod session;
mod wire;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::{Errno, FdFlags, fcntl_setfd},
};
use tokio::task::spawn_blocking;

use self::{mount::Mount, session::Session};
use crate::{
    Config, DeviceError, Stopped,
    inbox::{End, Inbox},
    offload::Offload,
    queue::Setup,
};

/// How often a use whose user cannot be found is looked at again, and how long after: a second in all.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// A mounted file and its thread.
#[derive(Debug)]
pub(crate) struct Served {
    path: PathBuf,
    up: Arc<Mutex<Option<Up>>>,
}

/// What is there until the device is stopped. Dropped without a stop it ends like a stop by force.
struct Up {
    /// `None` only while it is taken down.
    mount: Option<Mount>,
    thread: Option<JoinHandle<()>>,
    connection: OwnedFd,
    inbox: Arc<Inbox>,
    offload: Arc<Offload>,
}

impl Served {
    /// Mounts the file system and waits until its file can be opened.
    pub(crate) async fn start(setup: Setup, config: &Config, offload: Arc<Offload>) -> Result<Self, DeviceError> {
        let dir = config.fuse_dir.join(setup.id.as_str());
        blocking(move || {
            let (mount, connection) = Mount::new(&dir)?;
            Self::serve(setup, &dir, (mount, connection), offload)
        })
        .await
    }

    /// Serves a mount that another agent made, from its connection. What that agent read and did not answer is sent again.
    pub(crate) async fn resume(
        setup: Setup,
        config: &Config,
        connection: OwnedFd,
        offload: Arc<Offload>,
    ) -> Result<Self, DeviceError> {
        let dir = config.fuse_dir.join(setup.id.as_str());
        blocking(move || {
            let mount = Mount::taken_over(&dir, &connection)?;
            if let Err(error) = ask_again(&dir, &connection) {
                if matches!(error, DeviceError::RequestsLost { .. }) {
                    // Who waits there would wait for ever.
                    mount.abort();
                }
                return Err(error);
            }
            Self::serve(setup, &dir, (mount, connection), offload)
        })
        .await
    }

    fn serve(
        setup: Setup,
        dir: &Path,
        (mount, connection): (Mount, OwnedFd),
        offload: Arc<Offload>,
    ) -> Result<Self, DeviceError> {
        let inbox = Inbox::new().map_err(DeviceError::io("making an eventfd"))?;
        let serving = connection.try_clone().map_err(DeviceError::io("copying a FUSE connection"))?;
        let file = wire::File {
            size_bytes: setup.image.as_ref().map_or(0, |image| image.size_bytes()),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            page_bytes: u32::try_from(rustix::param::page_size()).unwrap_or(wire::MAX_READ_BYTES),
        };
        let max_io_bytes = setup.max_io_bytes.max(wire::MAX_READ_BYTES.try_into().unwrap_or(usize::MAX));
        let name = format!("fuse-{}", setup.id);
        let session = Session::new(serving, file, Setup { max_io_bytes, ..setup }, inbox.clone());
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || session.run())
            .map_err(DeviceError::io("starting the session thread"))?;
        let up = Up { mount: Some(mount), thread: Some(thread), connection, inbox, offload };
        let path = dir.join(wire::FILE_NAME);
        // The first question is answered after the handshake: the file is there, or the session failed.
        std::fs::metadata(&path).map_err(DeviceError::io(format!("looking at {}", path.display())))?;
        Ok(Self { path, up: Arc::new(Mutex::new(Some(up))) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Another descriptor of the connection; `None` once the device is stopped.
    pub(crate) fn connection(&self) -> Option<OwnedFd> {
        self.up.lock().as_ref()?.connection.try_clone().ok()
    }

    /// Answers what waits now with EIO, and goes on.
    pub(crate) fn fail_waiting(&self) {
        if let Some(up) = self.up.lock().as_ref() {
            up.inbox.fail_waiting();
        }
    }

    /// Ends the session; the mount and what was not answered stay for a successor that has the connection.
    pub(crate) async fn leave(&self) -> Result<(), DeviceError> {
        let up = self.up.clone();
        blocking(move || {
            let left = up.lock().take();
            left.map_or(Ok(()), Up::leave)
        })
        .await
    }

    /// Unmounts and ends the session; refuses with [`DeviceError::Busy`] when somebody has the file open, unless by force. A use
    /// that nobody can be found for is given [`LOOKS`] to pass: between its fork and its exec a child of any reader holds the
    /// files that the reader has just closed.
    pub(crate) async fn stop(&self, force: bool) -> Result<Stopped, DeviceError> {
        for _ in 0..LOOKS {
            match self.stop_now(force).await {
                Err(DeviceError::Busy { users, .. }) if users.is_empty() => tokio::time::sleep(BETWEEN_LOOKS).await,
                result => return result,
            }
        }
        self.stop_now(force).await
    }

    async fn stop_now(&self, force: bool) -> Result<Stopped, DeviceError> {
        let (up, path) = (self.up.clone(), self.path.clone());
        blocking(move || {
            let mut slot = up.lock();
            if let Some(up) = slot.as_ref()
                && !force
            {
                up.unmount(&path)?;
            }
            slot.take().map_or(Ok(()), Up::take_down)?;
            Ok(Stopped::Gone)
        })
        .await
    }
}

impl Up {
    fn unmount(&self, file: &Path) -> Result<(), DeviceError> {
        self.mount.as_ref().map_or(Ok(()), |mount| mount.unmount(file))
    }

    /// Ends the thread, which answers what is open; ends the connection; then detaches what is still mounted.
    fn take_down(mut self) -> Result<(), DeviceError> {
        self.end_thread(End::Quit);
        let Some(mount) = self.mount.take() else { return Ok(()) };
        mount.abort();
        // The last descriptor of ours.
        drop(self);
        mount.close()
    }

    fn leave(mut self) -> Result<(), DeviceError> {
        let panicked = self.end_thread(End::Leave);
        if let Some(mount) = self.mount.take() {
            mount.leave();
        }
        if panicked { Err(DeviceError::ControlGone) } else { Ok(()) }
    }

    /// Whether it panicked.
    fn end_thread(&mut self, how: End) -> bool {
        // First the order: the thread would answer misses that fail with an error.
        self.inbox.end(how);
        let panicked = self.thread.take().is_some_and(|thread| thread.join().is_err());
        self.offload.stop();
        if panicked {
            tracing::error!("a FUSE session thread panicked");
        }
        panicked
    }
}

/// Has the kernel queue again what a predecessor read from `connection` and did not answer.
fn ask_again(dir: &Path, connection: &OwnedFd) -> Result<(), DeviceError> {
    let lost = |reason: String| DeviceError::NotResumable { path: dir.to_owned(), reason };
    // What the mount set, in case the keeper of the descriptor changed it.
    fcntl_getfl(connection)
        .and_then(|flags| fcntl_setfl(connection, flags | OFlags::NONBLOCK))
        .and_then(|()| fcntl_setfd(connection, FdFlags::CLOEXEC))
        .map_err(|error| lost(error.to_string()))?;
    // A dead connection takes the message all the same; only that it polls as failed tells.
    let mut polled = [PollFd::new(connection, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_err(|error| lost(error.to_string()))?;
    if !polled[0].revents().is_empty() {
        return Err(lost("its connection has ended".to_owned()));
    }
    match rustix::io::write(connection, &wire::resend()) {
        Ok(_) => Ok(()),
        Err(Errno::INVAL) => match mount::waiting_on(dir) {
            Some(0) => Ok(()),
            waiting => Err(DeviceError::RequestsLost { path: dir.to_owned(), waiting }),
        },
        Err(error) => Err(lost(error.to_string())),
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.inbox.end(End::Quit);
        self.offload.stop();
    }
}

impl std::fmt::Debug for Up {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Up").finish_non_exhaustive()
    }
}

/// Runs what waits on the blocking pool.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DeviceError> + Send + 'static,
) -> Result<T, DeviceError> {
    spawn_blocking(work).await.map_err(|_| DeviceError::ControlGone)?
}

//! A read-only file in a FUSE file system, for kernels without ublk: `<fuse_dir>/<id>/disk`.
//!
//! Ready for `mount -t erofs -o ro FILE DIR` where the kernel has file-backed EROFS (6.12), and for a loop device
//! ([`crate::Loop`]) elsewhere. Mounting and the ABI are fuse-backend-rs'; the loop is ours, because hits are answered in the
//! thread that reads `/dev/fuse` and misses later, from the same offload as ublk's (`docs/decisions/0005-fuse-crate.md`).
//! A mount does not survive its agent yet: reads then fail with ENOTCONN until it is unmounted.

mod mount;
mod session;
mod wire;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use self::{mount::Mount, session::Session};
use crate::{Config, DeviceError, inbox::Inbox, offload::Offload, queue::Setup};

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
    inbox: Arc<Inbox>,
    offload: Arc<Offload>,
}

impl Served {
    /// Mounts the file system and waits until its file can be opened.
    pub(crate) async fn start(setup: Setup, config: &Config, offload: Arc<Offload>) -> Result<Self, DeviceError> {
        let dir = config.fuse_dir.join(setup.id.as_str());
        blocking(move || Self::mount(setup, &dir, offload)).await
    }

    fn mount(setup: Setup, dir: &Path, offload: Arc<Offload>) -> Result<Self, DeviceError> {
        let inbox = Inbox::new().map_err(DeviceError::io("making an eventfd"))?;
        let (mount, connection) = Mount::new(dir)?;
        let file = wire::File {
            size_bytes: setup.image.size_bytes(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            page_bytes: u32::try_from(rustix::param::page_size()).unwrap_or(wire::MAX_READ_BYTES),
        };
        let max_io_bytes = setup.max_io_bytes.max(wire::MAX_READ_BYTES.try_into().unwrap_or(usize::MAX));
        let name = format!("fuse-{}", setup.id);
        let session = Session::new(connection, file, Setup { max_io_bytes, ..setup }, inbox.clone());
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || session.run())
            .map_err(DeviceError::io("starting the session thread"))?;
        let up = Up { mount: Some(mount), thread: Some(thread), inbox, offload };
        let path = dir.join(wire::FILE_NAME);
        // The first question is answered after the handshake: the file is there, or the session failed.
        std::fs::metadata(&path).map_err(DeviceError::io(format!("looking at {}", path.display())))?;
        Ok(Self { path, up: Arc::new(Mutex::new(Some(up))) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts and ends the session; refuses with [`DeviceError::Busy`] when somebody has the file open, unless by force.
    pub(crate) async fn stop(&self, force: bool) -> Result<(), DeviceError> {
        let (up, path) = (self.up.clone(), self.path.clone());
        blocking(move || {
            let mut slot = up.lock();
            if let Some(up) = slot.as_ref()
                && !force
            {
                up.unmount(&path)?;
            }
            slot.take().map_or(Ok(()), Up::take_down)
        })
        .await
    }
}

impl Up {
    fn unmount(&self, file: &Path) -> Result<(), DeviceError> {
        self.mount.as_ref().map_or(Ok(()), |mount| mount.unmount(file))
    }

    /// Ends the thread, which answers what is open and closes the connection; then detaches what is still mounted.
    fn take_down(mut self) -> Result<(), DeviceError> {
        self.offload.stop();
        self.inbox.quit();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a FUSE session thread panicked");
        }
        self.mount.take().map_or(Ok(()), Mount::close)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.offload.stop();
        self.inbox.quit();
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

//! Mounting and unmounting. Blocks: runs on tokio's blocking pool.

use std::{
    fs,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
};

use fuse_backend_rs::transport::FuseSession;
use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use crate::{DeviceError, users};

/// Shown as the source and the type of the mount: `penstock` and `fuse.penstock`.
const NAME: &str = "penstock";

/// A mounted FUSE file system. Dropping it detaches it from the tree (fuse-backend-rs does that).
pub(super) struct Mount {
    session: FuseSession,
    dir: PathBuf,
}

/// What an unmount found.
#[derive(Debug, PartialEq, Eq)]
enum Unmounted {
    Done,
    Busy,
}

impl Mount {
    /// Mounts on `dir`, which is made when it is not there, after taking away a mount whose agent died. The descriptor is the
    /// only one of the connection: when it closes, for whatever reason, every reader gets an error instead of waiting for ever.
    pub(super) fn new(dir: &Path) -> Result<(Self, OwnedFd), DeviceError> {
        let failed = |reason: String| DeviceError::Mount { path: dir.to_owned(), reason };
        remove_dead(dir)?;
        fs::create_dir_all(dir).map_err(|error| failed(error.to_string()))?;
        let mut session = FuseSession::new(dir, NAME, NAME, true).map_err(|error| failed(error.to_string()))?;
        // Others may look only where root mounts; fusermount3 would ask for `user_allow_other` in /etc/fuse.conf.
        session.set_allow_other(rustix::process::geteuid().is_root());
        session.mount().map_err(|error| failed(error.to_string()))?;
        let connection = only_descriptor(&mut session).map_err(|error| failed(error.to_string()))?;
        Ok((Self { session, dir: dir.to_owned() }, connection))
    }

    /// Unmounts if nobody uses it. `file` is what its users are said to use.
    pub(super) fn unmount(&self, file: &Path) -> Result<(), DeviceError> {
        match take_off(&self.dir)? {
            Unmounted::Done => Ok(()),
            Unmounted::Busy => Err(DeviceError::Busy { path: file.to_owned(), users: users::of(file) }),
        }
    }

    /// Removes the directory, after the connection was closed. A file system that is still mounted (stop by force) is detached
    /// from the tree.
    pub(super) fn close(self) -> Result<(), DeviceError> {
        let Self { session, dir } = self;
        drop(session);
        fs::remove_dir(&dir)
            .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
            .map_err(|error| DeviceError::Unmount {
                path: dir,
                reason: format!("its directory could not be removed: {error}"),
            })
    }
}

/// Takes the connection out of the session: a copy that child processes do not inherit, while the session, which cannot be
/// without a file, gets `/dev/null`.
fn only_descriptor(session: &mut FuseSession) -> io::Result<OwnedFd> {
    let none = || io::Error::other("the mount gave no connection");
    let connection = session.get_fuse_file().ok_or_else(none)?.try_clone()?;
    session.set_fuse_file(File::open("/dev/null")?);
    Ok(connection.into())
}

/// Unmounts `dir`, not lazily. Not mounted is fine: somebody did it by hand.
fn take_off(dir: &Path) -> Result<Unmounted, DeviceError> {
    match unmount(dir, UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(Unmounted::Done),
        Err(Errno::BUSY) => Ok(Unmounted::Busy),
        Err(Errno::PERM) => by_fusermount(dir),
        Err(error) => Err(DeviceError::Unmount { path: dir.to_owned(), reason: error.to_string() }),
    }
}

/// Unmounts for a user who is not root.
fn by_fusermount(dir: &Path) -> Result<Unmounted, DeviceError> {
    let failed = |reason: String| DeviceError::Unmount { path: dir.to_owned(), reason };
    let output = Command::new("fusermount3")
        .args(["-u", "--"])
        .arg(dir)
        .output()
        .map_err(|error| failed(format!("fusermount3 cannot be run: {error}")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(Unmounted::Done),
        false if said.contains("busy") => Ok(Unmounted::Busy),
        false if said.contains("not found") || said.contains("not mounted") => Ok(Unmounted::Done),
        false => Err(failed(said.trim().to_owned())),
    }
}

/// Takes away a mount whose agent died: nothing of it can be read any more (ENOTCONN), so that detaching it, also from file
/// systems that still stand on it, loses nothing.
fn remove_dead(dir: &Path) -> Result<(), DeviceError> {
    // Attributes are cached for ever; opening the directory asks the server.
    let dead = fs::read_dir(dir).is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::NOTCONN));
    if !dead {
        return Ok(());
    }
    tracing::warn!(dir = %dir.display(), "a FUSE mount of an agent that died is taken away");
    let failed = |reason: String| DeviceError::Unmount { path: dir.to_owned(), reason };
    match unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => {
            let status = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(dir).status();
            match status {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(failed(format!("fusermount3 -u -z: {status}"))),
                Err(error) => Err(failed(format!("fusermount3 cannot be run: {error}"))),
            }
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

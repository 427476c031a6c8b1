//! Mounting and unmounting. Blocks: runs on tokio's blocking pool.

use std::{
    fs,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
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

/// A mounted FUSE file system.
pub(super) struct Mount {
    /// `None` when the mount was made by another agent. Dropping it detaches the mount from the tree.
    session: Option<FuseSession>,
    dir: PathBuf,
}

/// Where the kernel shows its FUSE connections, by number (`Documentation/filesystems/fuse.rst`).
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

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
        Ok((Self { session: Some(session), dir: dir.to_owned() }, connection))
    }

    /// The mount on `dir` that another agent made, if `connection` is (as far as the kernel tells) its connection.
    pub(super) fn taken_over(dir: &Path, connection: &OwnedFd) -> Result<Self, DeviceError> {
        let lost = |reason: String| DeviceError::NotResumable { path: dir.to_owned(), reason };
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| lost(error.to_string()))?;
        let mounted = mounted_on(&mounts, dir).ok_or_else(|| lost("nothing of ours is mounted there".to_owned()))?;
        let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", connection.as_raw_fd())).unwrap_or_default();
        if let Some(number) = connection_of(&told)
            && number != mounted
        {
            return Err(lost(format!("the connection kept for it is number {number}, the mount's is {mounted}")));
        }
        Ok(Self { session: None, dir: dir.to_owned() })
    }

    /// Lets the mount be, for a successor.
    pub(super) fn leave(self) {
        // Its drop would unmount. What it holds is little (a descriptor of /dev/null), and the process is about to end.
        std::mem::forget(self.session);
    }

    /// Ends the connection, whoever else holds its descriptor: readers get errors from here on, and none waits.
    pub(super) fn abort(&self) {
        abort(&self.dir);
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
        if session.is_none() {
            detach(&dir)?;
        }
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

/// Takes away what an agent that died has left mounted and nobody took over: its readers get errors, and detaching it, also from
/// file systems that still stand on it, loses nothing. Nothing is asked of the mount, whose connection somebody may still hold
/// without answering.
fn remove_dead(dir: &Path) -> Result<(), DeviceError> {
    if number_of(dir).is_none() {
        return Ok(());
    }
    tracing::warn!(dir = %dir.display(), "a FUSE mount of an agent that died is taken away");
    abort(dir);
    detach(dir)
}

/// Ends the connection of our mount on `dir`.
fn abort(dir: &Path) {
    // Not mounted any more is what is wanted. Who may not do this (a user who is not root) owns the connection's control file
    // instead.
    let number = number_of(dir);
    if let Err(Errno::PERM) = unmount(dir, UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        && let Some(number) = number
        && let Err(error) = fs::write(format!("{CONNECTIONS}/{number}/abort"), "1")
    {
        tracing::warn!(%error, dir = %dir.display(), "the FUSE connection cannot be aborted");
    }
}

/// Takes a mount out of the tree, also when it is in use. Not mounted is fine.
fn detach(dir: &Path) -> Result<(), DeviceError> {
    let failed = |reason: String| DeviceError::Unmount { path: dir.to_owned(), reason };
    match unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
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

/// The connection number of our mount on `dir`, from the text of a mountinfo file (proc(5)): the minor number of its device. The
/// topmost mount counts, which is the last one listed.
fn mounted_on(mountinfo: &str, dir: &Path) -> Option<u64> {
    let of_line = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(2);
        let (device, point) = (fields.next()?, fields.nth(1)?);
        (Path::new(&users::unescape(point)) == dir).then_some((device.to_owned(), after.starts_with("fuse.penstock ")))
    };
    let (device, ours) = mountinfo.lines().rev().find_map(of_line)?;
    ours.then(|| device.split_once(':')?.1.parse().ok()).flatten()
}

/// The connection number in what the kernel tells of a descriptor of `/dev/fuse`, where it does (since Linux 6.16).
fn connection_of(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("fuse_connection:")?.trim().parse().ok())
}

/// The connection number of what is mounted on `dir`.
fn number_of(dir: &Path) -> Option<u64> {
    mounted_on(&fs::read_to_string("/proc/self/mountinfo").ok()?, dir)
}

/// How many requests wait on the connection of our mount on `dir`, read or not; `None` when the kernel does not tell.
pub(super) fn waiting_on(dir: &Path) -> Option<u64> {
    let text = fs::read_to_string(format!("{CONNECTIONS}/{}/waiting", number_of(dir)?)).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mount_is_known_by_its_type_and_numbered_by_its_device() {
        let line =
            |device: &str, point: &str, kind: &str| format!("40 35 {device} / {point} ro - {kind} penstock ro\n");
        let text = [
            line("0:43", "/run/a\\040b", "fuse.penstock"),
            line("0:44", "/run/c", "fuse.penstock"),
            line("0:45", "/run/c", "ext4"),
        ];
        let text = text.concat();
        assert_eq!(mounted_on(&text, Path::new("/run/a b")), Some(43));
        assert_eq!(mounted_on(&text, Path::new("/run/c")), None, "something else is mounted over it");
        assert_eq!(mounted_on(&text, Path::new("/run")), None);
    }

    #[test]
    fn a_connection_is_numbered_where_the_kernel_tells() {
        assert_eq!(connection_of("pos:\t0\nfuse_connection:\t57\n"), Some(57));
        assert_eq!(connection_of("pos:\t0\nflags:\t02100002\n"), None);
    }
}

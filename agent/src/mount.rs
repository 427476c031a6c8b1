//! Mounting the file system that an image holds, read-only, and taking it away again.
//!
//! A block device is mounted as it is. A file (FUSE) is mounted directly when it holds EROFS and the kernel can do that (6.12 and later,
//! with `EROFS_FS_BACKED_BY_FILE`); otherwise a loop device with direct I/O goes between. The loop device clears itself when its last
//! user, the mount, goes: there is nothing to keep of it.
//!
//! Everything here waits for the kernel, which may wait for our own device: call it where blocking is allowed.

pub mod found;
pub mod leftovers;
pub mod table;
pub mod users;

use std::{
    ffi::CString,
    fmt, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    str::FromStr,
};

use penstock_device::Loop;
use penstock_image::FileSystem;
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};
use users::User;

/// A restriction of a mount besides `ro`, which always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Device nodes in the image do not work.
    Nodev,
    /// Set-user-id bits in the image do not work.
    Nosuid,
    /// Programs in the image do not start.
    Noexec,
    /// Times of last access are not kept (they cannot be written anyway).
    Noatime,
    /// Symbolic links in the image are not followed.
    Nosymfollow,
}

impl Flag {
    const ALL: [Self; 5] = [Self::Nodev, Self::Nosuid, Self::Noexec, Self::Noatime, Self::Nosymfollow];

    /// The name as for mount(8).
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Nodev => "nodev",
            Self::Nosuid => "nosuid",
            Self::Noexec => "noexec",
            Self::Noatime => "noatime",
            Self::Nosymfollow => "nosymfollow",
        }
    }

    const fn bits(self) -> MountFlags {
        match self {
            Self::Nodev => MountFlags::NODEV,
            Self::Nosuid => MountFlags::NOSUID,
            Self::Noexec => MountFlags::NOEXEC,
            Self::Noatime => MountFlags::NOATIME,
            Self::Nosymfollow => MountFlags::NOSYMFOLLOW,
        }
    }
}

impl FromStr for Flag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|flag| flag.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(Self::name).collect();
            format!("{text:?} is not a flag of mounts; write any of {}", names.join(", "))
        })
    }
}

/// Why something was not mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The place to mount on is not there, or is not a directory.
    #[error("cannot mount on {}: {reason}; make the directory first", dir.display())]
    Place {
        /// The directory asked for.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Something is mounted there already.
    #[error("{} has a {file_system} mounted on it already; name another directory, or unmount it", dir.display())]
    Taken {
        /// The directory asked for.
        dir: PathBuf,
        /// What is there.
        file_system: String,
    },
    /// The disk holds nothing that can be mounted.
    #[error("the image cannot be mounted: {0}")]
    NoFileSystem(found::NotFound),
    /// The kernel has no driver for it.
    #[error("this kernel cannot mount {file_system}; load its driver (modprobe {file_system})")]
    NoDriver {
        /// What the disk holds.
        file_system: FileSystem,
    },
    /// Only root may mount.
    #[error("mounting on {} is not permitted; the agent needs to run as root (CAP_SYS_ADMIN)", dir.display())]
    Denied {
        /// The directory asked for.
        dir: PathBuf,
    },
    /// There is no loop device to put between a file and its file system.
    #[error("{file_system} needs a loop device, which failed: {reason}")]
    Loop {
        /// What the disk holds.
        file_system: FileSystem,
        /// Why.
        reason: String,
    },
    /// The kernel refused for another reason.
    #[error("cannot mount {file_system} on {}: {reason}; the kernel log (dmesg) may say more", dir.display())]
    Refused {
        /// What the disk holds.
        file_system: FileSystem,
        /// The directory asked for.
        dir: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// Somebody uses the mount.
    #[error("{} is in use{}; end its users, or detach with --force, which lets them keep what they have open", dir.display(), by(users))]
    Busy {
        /// The mount point.
        dir: PathBuf,
        /// The first few users that can be seen.
        users: Vec<User>,
    },
    /// Something else was mounted over ours.
    #[error("{} has a {file_system} mounted over the image; unmount that first", dir.display())]
    Covered {
        /// The mount point.
        dir: PathBuf,
        /// What is there.
        file_system: String,
    },
    /// The kernel refused to unmount for another reason.
    #[error("cannot unmount {}: {reason}", dir.display())]
    Stuck {
        /// The mount point.
        dir: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
}

fn by(users: &[User]) -> String {
    match users {
        [] => String::new(),
        users => format!(" by {}", users.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// A mount of ours.
pub struct Mounted {
    dir: PathBuf,
    file_system: FileSystem,
    source: PathBuf,
}

impl fmt::Debug for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mounted({} from {} on {})", self.file_system, self.source.display(), self.dir.display())
    }
}

/// How a mount is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// Not while somebody uses it.
    IfIdle,
    /// At once out of the tree; gone when its last user goes.
    Lazily,
}

/// The directory `dir` with links resolved, if something can be mounted on it now.
///
/// # Errors
/// [`MountError::Place`] or [`MountError::Taken`].
pub fn place(dir: &Path) -> Result<PathBuf, MountError> {
    let refused = |reason: &str| MountError::Place { dir: dir.to_path_buf(), reason: reason.to_owned() };
    if !dir.is_absolute() {
        return Err(refused("it is not an absolute path"));
    }
    let real = dir.canonicalize().map_err(|error| refused(&error.to_string()))?;
    if !real.is_dir() {
        return Err(refused("it is not a directory"));
    }
    let table = table::read().map_err(|error| refused(&error.to_string()))?;
    match table::at(&table, &real) {
        Some(entry) => Err(MountError::Taken { dir: real, file_system: entry.file_system.clone() }),
        None => Ok(real),
    }
}

/// The directory `dir`, which [`place`] has resolved before, if its path still leads there and something can be mounted on it now.
///
/// # Errors
/// As [`place`]; also when a part of the path has become a link since: who made it may mean another place than who asked.
pub fn place_again(dir: &Path) -> Result<PathBuf, MountError> {
    let real = place(dir)?;
    if real == dir {
        return Ok(real);
    }
    let reason = format!("a link leads from there to {} now; detach the image, and attach it again", real.display());
    Err(MountError::Place { dir: dir.to_path_buf(), reason })
}

/// `dir` itself, held open, whatever is done to its path from now on. No part of the path may be a link.
fn pinned(dir: &Path) -> Result<OwnedFd, MountError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(rustix::fs::CWD, dir, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        .map_err(|error| MountError::Place { dir: dir.to_path_buf(), reason: io::Error::from(error).to_string() })
}

/// Mounts the `file_system` in `source`, a block device or a file, on `dir`, a path that [`place`] has resolved: no part of it is a link.
///
/// # Errors
/// [`MountError`]; nothing is left behind then.
pub fn mount(source: &Path, file_system: FileSystem, dir: &Path, flags: &[Flag]) -> Result<Mounted, MountError> {
    let held = pinned(dir)?;
    let on = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    let mounted = |source: &Path| Mounted { dir: dir.to_path_buf(), file_system, source: source.to_path_buf() };
    let is_file = source.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file || file_system == FileSystem::Erofs {
        match attempt(source, file_system, &on, flags) {
            Ok(()) => return Ok(mounted(source)),
            // What a kernel without file-backed EROFS says of a file: it wants a block device.
            Err(Errno::NOTBLK) if is_file => {}
            Err(error) => return Err(refusal(error, file_system, dir)),
        }
    }
    // Dropped at the end of this function, whatever its outcome: then the mount is the last user, or there is none.
    let loop_device = Loop::attach(source, true, true)
        .map_err(|error| MountError::Loop { file_system, reason: error.to_string() })?;
    attempt(loop_device.path(), file_system, &on, flags).map_err(|error| refusal(error, file_system, dir))?;
    Ok(mounted(loop_device.path()))
}

/// The mount of `source`, a block device or a file, that an earlier run of this agent made on `dir`, if it is still there.
///
/// # Errors
/// [`MountError::Place`] when the table of mounts cannot be read.
pub fn adopt(source: &Path, dir: &Path) -> Result<Option<Mounted>, MountError> {
    let mut sources = vec![source.to_path_buf()];
    sources.extend(leftovers::loop_devices().into_iter().filter(|on| on.file == source).map(|on| on.device));
    let table =
        table::read().map_err(|error| MountError::Place { dir: dir.to_path_buf(), reason: error.to_string() })?;
    let ours = table.iter().rev().find(|entry| entry.dir == dir && sources.contains(&entry.source));
    let all = [FileSystem::Erofs, FileSystem::Ext, FileSystem::Squashfs, FileSystem::Xfs];
    Ok(ours.and_then(|entry| {
        let file_system = all.into_iter().find(|known| known.to_string() == entry.file_system)?;
        Some(Mounted { dir: dir.to_path_buf(), file_system, source: entry.source.clone() })
    }))
}

fn attempt(source: &Path, file_system: FileSystem, dir: &Path, flags: &[Flag]) -> Result<(), Errno> {
    let bits = flags.iter().fold(MountFlags::RDONLY, |bits, flag| bits | flag.bits());
    let options = CString::new(found::options(file_system)).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(source, dir, file_system.to_string(), bits, options.as_c_str())
}

fn refusal(error: Errno, file_system: FileSystem, dir: &Path) -> MountError {
    let dir = dir.to_path_buf();
    match error {
        Errno::NODEV => MountError::NoDriver { file_system },
        Errno::PERM | Errno::ACCESS => MountError::Denied { dir },
        error => MountError::Refused { file_system, dir, reason: error.into() },
    }
}

impl Mounted {
    /// The file system mounted.
    #[must_use]
    pub const fn file_system(&self) -> FileSystem {
        self.file_system
    }

    /// Where it is mounted.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether it is still there, for its users to see; false when somebody has unmounted it.
    ///
    /// # Errors
    /// [`MountError::Covered`] when something else is mounted in its place or over it.
    pub fn is_there(&self) -> Result<bool, MountError> {
        let stuck = |reason: io::Error| MountError::Stuck { dir: self.dir.clone(), reason };
        match table::at(&table::read().map_err(stuck)?, &self.dir) {
            None => Ok(false),
            Some(entry) if entry.source == self.source => Ok(true),
            Some(entry) => Err(MountError::Covered { dir: self.dir.clone(), file_system: entry.file_system.clone() }),
        }
    }

    /// Unmounts, which also lets the loop device go if there is one. Already unmounted by somebody else is done.
    ///
    /// # Errors
    /// [`MountError::Busy`], [`MountError::Covered`] or [`MountError::Stuck`]; it is still mounted then.
    pub fn unmount(&self, how: Unmount) -> Result<(), MountError> {
        let stuck = |reason: io::Error| MountError::Stuck { dir: self.dir.clone(), reason };
        let table = table::read().map_err(stuck)?;
        match table::at(&table, &self.dir) {
            Some(entry) if entry.source == self.source => {}
            Some(entry) if table.iter().any(|e| e.dir == self.dir && e.source == self.source) => {
                return Err(MountError::Covered { dir: self.dir.clone(), file_system: entry.file_system.clone() });
            }
            _ => return Ok(()),
        }
        let flags = match how {
            Unmount::IfIdle => UnmountFlags::NOFOLLOW,
            Unmount::Lazily => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        match rustix::mount::unmount(&self.dir, flags) {
            Ok(()) => Ok(()),
            Err(Errno::BUSY) => Err(MountError::Busy { dir: self.dir.clone(), users: users::users(&self.dir) }),
            Err(error) => Err(stuck(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_place_is_a_directory_by_its_real_path() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("real", root.join("link")).unwrap();
        for (asked, real) in [("real", "real"), ("link", "real"), ("real/../link", "real"), ("./real/", "real")] {
            assert_eq!(place(&root.join(asked)).unwrap(), root.join(real), "{asked}");
        }
        let nul = format!("{}/re\0al", root.display());
        for bad in ["file", "none", "file/x", "real/../../../nonexistent", &"x".repeat(300), &nul] {
            assert!(matches!(place(&root.join(bad)), Err(MountError::Place { .. })), "{bad:?}");
        }
        assert!(matches!(place(Path::new("relative")), Err(MountError::Place { .. })));
    }

    #[test]
    fn a_path_that_became_a_link_since_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/mnt")).unwrap();
        fs::create_dir_all(root.join("victim/mnt")).unwrap();
        let asked = place(&root.join("a/mnt")).unwrap();
        assert_eq!(place_again(&asked).unwrap(), asked);
        assert!(pinned(&asked).is_ok());
        fs::rename(root.join("a"), root.join("b")).unwrap();
        symlink("victim", root.join("a")).unwrap();
        assert!(matches!(place_again(&asked), Err(MountError::Place { .. })));
        assert!(matches!(pinned(&asked), Err(MountError::Place { .. })), "nor between the look and the mount");
    }
}

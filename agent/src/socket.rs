//! The unix socket of the admin API: who may open it, and what stands in its place at the start.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen as start_listening, socket_with},
};
use tokio::net::{UnixListener, unix::UCred};

use crate::serve::{FileError, Unsafe};

/// Mode of the socket: who can connect can do all that the agent can.
const MODE: u32 = 0o600;
/// Mode of the socket when a group may use it too.
const GROUP_MODE: u32 = 0o660;
/// Mode of a directory that is made for the socket, and of one that a group must be able to pass.
const DIR_MODES: (u32, u32) = (0o700, 0o710);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Where the names of groups stand.
const GROUPS: &str = "/etc/group";

/// Why the API cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers on the socket.
    #[error("another agent answers on {}; stop that one, or give this one a socket of its own with {setting}", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// What names it.
        setting: &'static str,
    },
    /// Something that is not a socket has its name.
    #[error("{} exists and is not a socket; move it away, or name another socket with {setting}", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What names it.
        setting: &'static str,
    },
    /// The system refused.
    #[error("cannot make the socket {}: {reason}; check that this user may write there, or name another with {setting}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What names it.
        setting: &'static str,
        /// The system's reason.
        reason: io::Error,
    },
    /// The group of `socket_group` does not exist.
    #[error("socket_group: there is no group {name:?} in /etc/group; make it, or name one by its number")]
    NoGroup {
        /// As configured.
        name: String,
    },
    /// /etc/group cannot be read.
    #[error("socket_group: /etc/group cannot be read: {reason}; name the group by its number")]
    Groups {
        /// The system's reason.
        reason: io::Error,
    },
    /// Others could put a socket of their own in the socket's place.
    #[error("every user can replace files in {}; keep the socket in a directory that only its owner can write to", dir.display())]
    OpenDir {
        /// The directory.
        dir: PathBuf,
    },
    /// The TCP listener would not be safe.
    #[error(transparent)]
    Unsafe(#[from] Unsafe),
    /// A file of the TCP listener cannot be used.
    #[error("the TCP listener cannot be offered: {0}")]
    File(#[from] FileError),
    /// The TCP address cannot be had.
    #[error("cannot listen on {address}: {reason}; name a free port with --listen, or none")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The system's reason.
        reason: io::Error,
    },
}

/// The file of a bound socket. Dropping it removes the file, unless somebody has put another in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // What stays is a socket that nobody answers on: the next agent replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Listens on `path`, which `setting` names, for the agent's own user, root and the users of `group`. A socket there that nobody answers on is replaced.
///
/// The socket is made with its mode, not given it later, and bound under another name before it is renamed: there is no moment at which
/// others can connect, whatever the umask, and none at which `path` is missing.
///
/// # Errors
/// [`SocketError`]; what is at `path` is left alone then.
pub fn listen(
    path: &Path,
    setting: &'static str,
    group: Option<u32>,
) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |reason: io::Error| SocketError::Io { path: path.to_path_buf(), setting, reason };
    check_free(path, setting)?;
    if let Some(dir) = path.parent() {
        make_dir(dir, group).map_err(failed)?;
        check_dir(dir).map_err(failed)?.then_some(()).ok_or_else(|| SocketError::OpenDir { dir: dir.to_path_buf() })?;
    }
    let fresh = fresh_name(path);
    let _ = fs::remove_file(&fresh);
    let listener = bound(&fresh).map_err(failed)?;
    let placed = give(&fresh, group).and_then(|()| fs::rename(&fresh, path));
    match placed.and_then(|()| inode(path)) {
        Ok(inode) => Ok((listener, SocketFile { path: path.to_path_buf(), inode })),
        Err(reason) => {
            let _ = fs::remove_file(&fresh);
            Err(failed(reason))
        }
    }
}

/// A socket bound to `path` that has its mode from the first moment: Linux takes the mode of the file from the socket's own.
fn bound(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::from_raw_mode(MODE))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    start_listening(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// Opens the socket to `group` too.
fn give(path: &Path, group: Option<u32>) -> io::Result<()> {
    let Some(group) = group else { return Ok(()) };
    chown(path, None, Some(group))?;
    fs::set_permissions(path, Permissions::from_mode(GROUP_MODE))
}

/// Makes the directory of the socket, if it is missing, so that only who may use the socket gets there.
fn make_dir(dir: &Path, group: Option<u32>) -> io::Result<()> {
    if dir.exists() {
        return Ok(());
    }
    let (own, shared) = DIR_MODES;
    DirBuilder::new().recursive(true).mode(own).create(dir)?;
    if group.is_some() {
        chown(dir, None, group)?;
        fs::set_permissions(dir, Permissions::from_mode(shared))?;
    }
    Ok(())
}

/// Whether nobody but the owners of its files can replace what is in `dir`: others may not write there, or it is sticky like /tmp.
fn check_dir(dir: &Path) -> io::Result<bool> {
    const STICKY: u32 = 0o1000;
    const OTHERS_WRITE: u32 = 0o002;
    let mode = fs::metadata(dir)?.mode();
    Ok(mode & OTHERS_WRITE == 0 || mode & STICKY != 0)
}

/// The number of the group that the config names, by its number or as in /etc/group.
///
/// # Errors
/// [`SocketError::NoGroup`], or [`SocketError::Groups`].
pub fn group(name: &str) -> Result<u32, SocketError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = fs::read_to_string(GROUPS).map_err(|reason| SocketError::Groups { reason })?;
    find_group(&text, name).ok_or_else(|| SocketError::NoGroup { name: name.to_owned() })
}

/// `name:password:number:members`.
fn find_group(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Whether a peer may use the socket. The kernel has looked at the socket's mode; this holds also when somebody has changed that since.
pub(crate) fn may_use(peer: &UCred, group: Option<u32>) -> bool {
    let is_owner = peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw();
    let is_member = |group: u32| {
        peer.gid() == group
            || peer.pid().is_some_and(|pid| {
                fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| has_group(&text, group))
            })
    };
    is_owner || group.is_some_and(is_member)
}

/// Whether the status of a process (proc(5)) lists `group` among its supplementary groups.
fn has_group(status: &str, group: u32) -> bool {
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_ascii_whitespace().any(|number| number.parse() == Ok(group))
}

/// A name beside `path` that is not longer: the kernel takes 107 bytes, and `path` may have them all.
fn fresh_name(path: &Path) -> PathBuf {
    let name = path.file_name().map_or(1, |name| name.len()).clamp(1, 12);
    let unique = format!(".{:011x}", std::process::id());
    path.with_file_name(&unique[unique.len() - name..])
}

fn check_free(path: &Path, setting: &'static str) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(reason) => Err(SocketError::Io { path: path.to_path_buf(), setting, reason }),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(SocketError::NotASocket { path: path.to_path_buf(), setting })
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => Err(SocketError::InUse { path: path.to_path_buf(), setting }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(reason) => Err(SocketError::Io { path: path.to_path_buf(), setting, reason }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_connect_and_the_file_goes_with_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/penstock.sock");
        let (_listener, file) = listen(&path, "--socket", None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, MODE);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_socket_has_its_mode_whatever_the_umask_and_its_directory_is_closed() {
        // In a process of its own the umask would be set; here the mode of the socket shows that it does not come from there.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/s");
        let (_listener, _file) = listen(&path, "--socket", None).unwrap();
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, DIR_MODES.0);
        let bare = dir.path().join("bare");
        let _bound = bound(&bare).unwrap();
        assert_eq!(fs::metadata(&bare).unwrap().mode() & 0o7777, MODE, "before anybody restricts it");
    }

    #[tokio::test]
    async fn a_group_may_be_let_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/s");
        let own = rustix::process::getegid().as_raw();
        let (_listener, _file) = listen(&path, "--socket", Some(own)).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (GROUP_MODE, own));
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, DIR_MODES.1);
    }

    #[tokio::test]
    async fn a_directory_in_which_all_can_replace_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, is_taken) in [(0o777, false), (0o1777, true), (0o770, true), (0o755, true)] {
            fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            let outcome = listen(&dir.path().join("s"), "--socket", None);
            assert_eq!(outcome.is_ok(), is_taken, "{mode:o}: {outcome:?}");
        }
    }

    #[test]
    fn groups_are_found_by_name_and_by_number() {
        let text = "root:x:0:\npenstock:x:990:alice,bob\nbroken\nalso:x\n";
        assert_eq!((find_group(text, "penstock"), find_group(text, "root")), (Some(990), Some(0)));
        for none in ["pen", "alice", "", "broken", "also", "990"] {
            assert_eq!(find_group(text, none), None, "{none}");
        }
        assert_eq!(group("990").unwrap(), 990);
        assert!(matches!(group("no such group"), Err(SocketError::NoGroup { .. })));
    }

    #[test]
    fn a_process_is_in_the_groups_of_its_status() {
        let status = "Name:\tx\nGid:\t7\t7\t7\t7\nGroups:\t4 27 990 \nNStgid:\t1\n";
        assert!(has_group(status, 990) && has_group(status, 4));
        assert!(!has_group(status, 7) && !has_group(status, 99) && !has_group("Groups:\t", 0));
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_listener, first) = listen(&path, "--socket", None).unwrap();
        let refused = listen(&path, "images.socket", None).unwrap_err();
        assert!(matches!(refused, SocketError::InUse { .. }));
        assert!(refused.to_string().ends_with("with images.socket"), "the setting to change is named: {refused}");
        assert!(path.exists());
        // A successor's socket is not removed by the one before.
        fs::remove_file(&path).unwrap();
        let (_second_listener, _second) = listen(&path, "--socket", None).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path, "--socket", None), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_longest_path_that_the_kernel_takes_works() {
        let dir = tempfile::tempdir().unwrap();
        let room = 107 - dir.path().as_os_str().len() - 1;
        let path = dir.path().join("x".repeat(room));
        assert!(listen(&path, "--socket", None).is_ok());
    }
}

//! Where the admin API answers: a unix socket that only its owner can use, and loopback TCP for reading when configured.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

/// Mode of the socket: who can connect can do all that the agent can.
const MODE: u32 = 0o600;

/// Why the API cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers on the socket.
    #[error("another agent answers on {}; stop that one, or give this one a socket of its own with --socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket has its name.
    #[error("{} exists and is not a socket; move it away, or name another socket with --socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot make the socket {}: {reason}; check that this user may write there, or name another with --socket", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
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

/// Listens on `path`. A socket there that nobody answers on is replaced.
///
/// The socket is bound under another name, restricted, and only then renamed: there is no moment at which others can connect.
///
/// # Errors
/// [`SocketError`]; what is at `path` is left alone then.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |reason: io::Error| SocketError::Io { path: path.to_path_buf(), reason };
    check_free(path)?;
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed)?;
    }
    let fresh = fresh_name(path);
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    let placed = fs::set_permissions(&fresh, Permissions::from_mode(MODE)).and_then(|()| fs::rename(&fresh, path));
    match placed.and_then(|()| inode(path)) {
        Ok(inode) => Ok((listener, SocketFile { path: path.to_path_buf(), inode })),
        Err(reason) => {
            let _ = fs::remove_file(&fresh);
            Err(failed(reason))
        }
    }
}

/// A name beside `path` that is not longer: the kernel takes 107 bytes, and `path` may have them all.
fn fresh_name(path: &Path) -> PathBuf {
    let name = path.file_name().map_or(1, |name| name.len()).clamp(1, 12);
    let unique = format!(".{:011x}", std::process::id());
    path.with_file_name(&unique[unique.len() - name..])
}

fn check_free(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(reason) => Err(SocketError::Io { path: path.to_path_buf(), reason }),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(SocketError::NotASocket { path: path.to_path_buf() }),
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => Err(SocketError::InUse { path: path.to_path_buf() }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(reason) => Err(SocketError::Io { path: path.to_path_buf(), reason }),
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
        let (_listener, file) = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, MODE);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_listener, first) = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::InUse { .. })));
        assert!(path.exists());
        // A successor's socket is not removed by the one before.
        fs::remove_file(&path).unwrap();
        let (_second_listener, _second) = listen(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_longest_path_that_the_kernel_takes_works() {
        let dir = tempfile::tempdir().unwrap();
        let room = 107 - dir.path().as_os_str().len() - 1;
        let path = dir.path().join("x".repeat(room));
        assert!(listen(&path).is_ok());
    }
}

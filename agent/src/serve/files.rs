//! Files that hold what the listener lives by: read again when they change, refused when others could read or change them.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Rights that a file with a secret must not give: everything to others, and writing to the group. Reading by the group is how
/// Kubernetes hands a secret to a pod with `fsGroup`.
const TOO_OPEN: u32 = 0o027;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("cannot read {}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// Others could read or change it.
    #[error("{} has mode {mode:04o}, so that others can read or change it; `chmod 0600` it", path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else owns it, and could change it.
    #[error("{} belongs to user {owner}, neither to root nor to the agent's user; `chown` it", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// It does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What tells one version of a file from the next. Follows links: Kubernetes replaces a secret by moving one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    place: (u64, u64),
    size_bytes: u64,
    changed: (i64, i64),
    mode: u32,
}

impl Stamp {
    /// Of the file as it is now; `None` when there is none to be seen.
    pub(super) fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self::from(&metadata))
    }
}

impl From<&fs::Metadata> for Stamp {
    fn from(metadata: &fs::Metadata) -> Self {
        Self {
            place: (metadata.dev(), metadata.ino()),
            size_bytes: metadata.size(),
            // The kernel sets this time at every change, of the mode too; nobody else can.
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            mode: metadata.mode(),
        }
    }
}

/// The bytes of a file, at most `most`. When it is `secret`, its owner and mode are looked at, on the file that is read.
pub(super) fn read(path: &Path, most: u64, secret: bool) -> Result<Vec<u8>, FileError> {
    let failed = |reason| FileError::Io { path: path.to_path_buf(), reason };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FileError::Content { path: path.to_path_buf(), reason: "it is not a file".to_owned() });
    }
    if secret {
        check(path, &metadata)?;
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        let reason = format!("it is longer than {most} bytes");
        return Err(FileError::Content { path: path.to_path_buf(), reason });
    }
    Ok(bytes)
}

/// The bytes of a token or a key that a command shows.
pub(crate) fn read_secret(path: &Path) -> Result<Vec<u8>, FileError> {
    const MOST_BYTES: u64 = 64 << 10;
    read(path, MOST_BYTES, true)
}

fn check(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & TOO_OPEN != 0 {
        return Err(FileError::TooOpen { path: path.to_path_buf(), mode });
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(FileError::Owner { path: path.to_path_buf(), owner });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_that_others_can_read_or_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "x").unwrap();
        for (mode, is_taken) in [
            (0o400, true),
            (0o600, true),
            (0o440, true),
            (0o640, true),
            (0o660, false),
            (0o644, false),
            (0o604, false),
            (0o602, false),
            (0o601, false),
            (0o777, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let outcome = read(&path, 10, true);
            assert_eq!(outcome.is_ok(), is_taken, "{mode:o}: {outcome:?}");
            assert!(read(&path, 10, false).is_ok());
        }
    }

    #[test]
    fn only_a_file_of_a_bounded_size_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path(), 10, false), Err(FileError::Content { .. } | FileError::Io { .. })));
        assert!(matches!(read(Path::new("/dev/zero"), 10, false), Err(FileError::Content { .. })));
        let path = dir.path().join("long");
        fs::write(&path, "12345678901").unwrap();
        assert!(matches!(read(&path, 10, false), Err(FileError::Content { .. })));
        assert_eq!(read(&path, 11, false).unwrap().len(), 11);
        assert!(matches!(read(&dir.path().join("none"), 10, false), Err(FileError::Io { .. })));
    }
}

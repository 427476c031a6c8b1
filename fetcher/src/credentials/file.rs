//! Reading a small file that holds secrets.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

/// Largest file of credentials read, in bytes. A docker config of a thousand registries has some 200 KiB.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 20;

/// Who besides the owner may do what with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// As its maker left it: Docker's own config, and Kubernetes' mounts, which only the container sees.
    Anyone,
    /// The owner, who is us or root, and a group that may read.
    OwnerAndGroup,
}

/// The file's content; `None` when there is no such file. Blocks.
pub(super) fn read(path: &Path, audience: Audience) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
    read_up_to(path, audience, MAX_FILE_BYTES)
}

/// As [`read`], for files of another bound.
pub(super) fn read_up_to(path: &Path, audience: Audience, max: u64) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
    // Without waiting: a pipe in the file's place must not hold a thread for ever.
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty());
    let file = match opened.map_err(io::Error::from) {
        Ok(descriptor) => File::from(descriptor),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a file".to_owned());
    }
    if audience == Audience::OwnerAndGroup {
        check_mode(metadata.mode(), metadata.uid(), rustix::process::geteuid().as_raw())?;
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(max + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > max {
        return Err(format!("it is larger than {} KiB", max >> 10));
    }
    Ok(Some(bytes))
}

fn check_mode(mode: u32, owner: u32, us: u32) -> Result<(), String> {
    let mode = mode & 0o7777;
    if mode & 0o027 != 0 {
        return Err(format!("its mode is {mode:04o}, so that others can read or change it; `chmod 0600` it"));
    }
    if owner != us && owner != 0 {
        return Err(format!("it belongs to user {owner}; `chown` it to root or to the agent's user"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn modes_that_let_others_in_are_refused() {
        for (mode, owner, fine) in [
            (0o100_600, 0, true),
            (0o100_400, 7, true),
            (0o100_640, 7, true),
            (0o100_644, 0, false),
            (0o100_660, 0, false),
            (0o100_602, 0, false),
            (0o100_600, 8, false),
        ] {
            assert_eq!(check_mode(mode, owner, 7).is_ok(), fine, "{mode:o} {owner}");
        }
    }

    #[test]
    fn only_small_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read(&path, Audience::Anyone), Ok(None));
        std::fs::write(&path, "x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        assert_eq!(read(&path, Audience::Anyone).unwrap().unwrap().as_slice(), b"x");
        let refused = read(&path, Audience::OwnerAndGroup).unwrap_err();
        assert!(refused.contains("0604") && refused.contains("chmod 0600"), "{refused}");
        std::fs::write(&path, "x".repeat(2 << 20)).unwrap();
        assert!(read(&path, Audience::Anyone).is_err());
        assert!(read(dir.path(), Audience::Anyone).is_err());
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(read(&pipe, Audience::Anyone).is_err(), "a pipe is refused at once");
    }
}

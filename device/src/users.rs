//! Who uses a device: told to the person who tries to stop it. Best effort: other namespaces are not always visible.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// How many users are listed at most: enough to act on.
pub const MAX_USERS: usize = 8;

/// Somebody who uses a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// A file system from the device is mounted here.
    Mount(PathBuf),
    /// A loop device reads it: `loopN`.
    Loop(String),
    /// A process has it open.
    Process {
        /// Process id, in our namespace.
        pid: u32,
        /// The command's name.
        name: String,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(path) => write!(f, "a mount on {}", path.display()),
            Self::Loop(name) => write!(f, "loop device /dev/{name}"),
            Self::Process { pid, name } => write!(f, "process {pid} ({name})"),
        }
    }
}

/// The users of the file or block device `path`, at most [`MAX_USERS`]: mounts, loop devices, then processes.
pub(crate) fn of(path: &Path) -> Vec<User> {
    let mut users = mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), path);
    users.extend(loops(Path::new("/sys/block"), path));
    if users.len() < MAX_USERS {
        users.extend(processes(path));
    }
    users.truncate(MAX_USERS);
    users
}

/// Mount points whose source is `source`, from the text of a mountinfo file (proc(5)): the point is the fifth field, the
/// source the second after the `-`.
fn mounts(mountinfo: &str, source: &Path) -> Vec<User> {
    let of_line = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let from = unescape(after.split(' ').nth(1)?);
        (Path::new(&from) == source).then_some(())?;
        Some(User::Mount(unescape(before.split(' ').nth(4)?).into()))
    };
    mountinfo.lines().filter_map(of_line).collect()
}

/// Undoes the octal escapes of proc(5): blank, tab, newline and backslash.
pub(crate) fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// Loop devices backed by `file`.
fn loops(sys_block: &Path, file: &Path) -> Vec<User> {
    let Ok(entries) = fs::read_dir(sys_block) else { return Vec::new() };
    let backed = |entry: fs::DirEntry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let name = entry.file_name().into_string().ok()?;
        (Path::new(backing.trim_end()) == file).then_some(User::Loop(name))
    };
    entries.flatten().filter_map(backed).collect()
}

/// Processes that have `file` open, but not this one: its own descriptors are closed before the device is stopped.
fn processes(file: &Path) -> Vec<User> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let holder = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut open = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        open.any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == file)).then_some(())?;
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        Some(User::Process { pid, name: name.trim_end().to_owned() })
    };
    entries.flatten().filter_map(holder).take(MAX_USERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_their_source() {
        let text = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                    40 35 0:44 / /mnt/a\\040b ro - erofs /run/penstock/fuse/x/disk ro\n\
                    short line\n";
        assert_eq!(mounts(text, Path::new("/run/penstock/fuse/x/disk")), [User::Mount("/mnt/a b".into())]);
        assert_eq!(mounts(text, Path::new("/dev/root")), [User::Mount("/mnt2".into())]);
        assert_eq!(mounts(text, Path::new("/dev/other")), []);
    }

    #[test]
    fn an_open_file_is_found_with_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("held");
        fs::write(&path, b"x").unwrap();
        assert_eq!(of(&path), []);
        let _open = fs::File::open(&path).unwrap();
        let pid = std::process::id();
        assert!(matches!(&of(&path)[..], [User::Process { pid: p, .. }] if *p == pid));
    }
}

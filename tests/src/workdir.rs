//! A private directory that is always cleaned up: mounts below it undone, loop devices over it detached, files removed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// A temporary directory in which a test may mount. Make it before the processes that use it, so that it is dropped last.
#[derive(Debug)]
pub struct Workdir(TempDir);

impl Workdir {
    /// A new, empty directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("penstock-").tempdir();
        Self(dir.expect("a temporary directory"))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A new directory in it.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).expect("a directory in the work directory");
        path
    }

    /// Undoes every mount below it and detaches every loop device over its files.
    pub fn unmount(&self) {
        unmount_below(self.path());
        for device in self.loops() {
            let _ = Command::new("losetup").arg("-d").arg(device).output();
        }
    }

    /// What is mounted below it, deepest first.
    #[must_use]
    pub fn mounts(&self) -> Vec<PathBuf> {
        let mut mounts = mounts();
        mounts.retain(|mount| mount.starts_with(self.path()));
        mounts.reverse();
        mounts
    }

    /// Loop devices over files in it.
    #[must_use]
    pub fn loops(&self) -> Vec<PathBuf> {
        let mut loops = loops();
        loops.retain(|(_, file)| file.starts_with(self.path()));
        loops.into_iter().map(|(device, _)| device).collect()
    }
}

impl Default for Workdir {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Undoes every mount below `dir`, deepest first.
pub fn unmount_below(dir: &Path) {
    for mount in mounts().into_iter().rev().filter(|mount| mount.starts_with(dir)) {
        // Lazily: the server behind it may be dead.
        let _ = Command::new("umount").arg("-l").arg(mount).output();
    }
}

/// Every mount point of this process's namespace, in the order in which they were mounted.
///
/// # Panics
/// Without /proc.
#[must_use]
pub fn mounts() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .collect()
}

/// Every loop device in use, with the file it is over.
fn loops() -> Vec<(PathBuf, PathBuf)> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().filter_map(Result::ok);
    devices
        .filter_map(|entry| {
            let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            Some((Path::new("/dev").join(entry.file_name()), PathBuf::from(file.trim_end())))
        })
        .collect()
}

//! Mounts as containerd makes them, taken away again when a test ends however it ends.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount, unmount,
};

use crate::api::types::Mount;

/// The kernel takes one page of options.
const PAGE: usize = 4096;

/// A mount that lasts as long as this.
#[derive(Debug)]
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.0.join(below)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Out of sight at once; a child that another test is starting at this moment may hold a copy of a file in it until it execs.
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            assert!(std::thread::panicking(), "{} cannot be unmounted: {error}", self.0.display());
        }
    }
}

/// Mounts what a snapshotter answered on `target`, which is made.
pub(crate) fn mount(mounts: &[Mount], target: &Path) -> Mounted {
    try_mount(mounts, target).unwrap_or_else(|error| panic!("{mounts:?}: {error}"))
}

pub(crate) fn try_mount(mounts: &[Mount], target: &Path) -> Result<Mounted, String> {
    let [only] = mounts else { return Err("containerd expects one mount".into()) };
    fs::create_dir_all(target).map_err(|e| e.to_string())?;
    match only.r#type.as_str() {
        "bind" => bind(Path::new(&only.source), target, only.options.iter().any(|option| option == "ro"))?,
        "overlay" => overlay(&only.options, target)?,
        other => return Err(format!("unknown type {other}")),
    }
    Ok(Mounted(target.to_owned()))
}

pub(crate) fn bind(source: &Path, target: &Path, read_only: bool) -> Result<(), String> {
    mount_bind(source, target).map_err(|e| format!("bind {}: {e}", source.display()))?;
    mount_change(target, MountPropagationFlags::PRIVATE).map_err(|e| e.to_string())?;
    if read_only {
        mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, "").map_err(|e| format!("read-only: {e}"))?;
    }
    Ok(())
}

/// mount(8) makes it, in the directory that all lowers share when the options are longer than a page: what containerd does.
fn overlay(options: &[String], target: &Path) -> Result<(), String> {
    let mut options = options.to_vec();
    let mut base = PathBuf::from("/");
    if options.iter().map(|option| option.len() + 1).sum::<usize>() > PAGE {
        let lowers = options.iter_mut().find(|option| option.starts_with("lowerdir=")).ok_or("no lowers")?;
        let first = lowers.trim_start_matches("lowerdir=").split(':').next().unwrap_or_default();
        base = Path::new(first).ancestors().nth(2).ok_or("too short")?.to_owned();
        *lowers = lowers.replace(&format!("{}/", base.display()), "");
    }
    let joined = options.join(",");
    let mut command = Command::new("mount");
    command.args(["-i", "-t", "overlay", "overlay", "-o", &joined]).arg(target).current_dir(base);
    let output = command.output().map_err(|e| e.to_string())?;
    output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A disk of its own for what is written to `target`, which loses what it has: 8 MiB.
pub(crate) fn small_disk(target: &Path) {
    fs::remove_dir_all(target).expect("removed");
    fs::create_dir(target).expect("made");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(target).status();
    assert!(mounted.expect("mount(8)").success());
}

/// Takes away whatever is mounted below `dir`.
pub(crate) fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    for point in points.filter(|point| point.starts_with(dir)).collect::<Vec<_>>().into_iter().rev() {
        // Another of the same test may be taking it away.
        let _ = unmount(&point, UnmountFlags::DETACH);
    }
}

/// How many mounts there are below `dir`.
pub(crate) fn count_below(dir: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc");
    mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(dir)).count()
}

/// Why overlayfs cannot be mounted here, if it cannot.
pub(crate) fn unable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root to mount".to_owned());
    }
    let dir = tempfile::tempdir().expect("a directory");
    let options: Vec<String> = ["lowerdir", "upperdir", "workdir", "target"]
        .map(|name| {
            let path = dir.path().join(name);
            fs::create_dir(&path).expect("a directory");
            format!("{name}={}", path.display())
        })
        .to_vec();
    let mounted = overlay(&options[..3], &dir.path().join("target"));
    unmount_below(dir.path());
    mounted.err().map(|error| format!("overlayfs cannot be mounted in {}: {error}", dir.path().display()))
}

/// Skips the test, saying why, where nothing can be mounted.
#[macro_export]
macro_rules! needs_mounts {
    () => {
        if let Some(reason) = $crate::mounting::unable() {
            println!("skipped: {}: {reason}", std::thread::current().name().unwrap_or("a test"));
            return;
        }
    };
}

//! What a killed agent left in the kernel: mounts from its FUSE files, some through loop devices, and the dead FUSE mounts themselves.
//! Loop devices need no care: they clear themselves when their last user goes.
//!
//! Only called while the state directory's lock is held: then whoever served these files is gone, every read of them fails, and
//! nothing is lost by taking them away.

use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;

use super::table::Entry;

/// A loop device and the file behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    /// Its node, such as `/dev/loop0`.
    pub device: PathBuf,
    /// The file, as the kernel names it.
    pub file: PathBuf,
}

/// What to take away, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Mounts of images, the newest first.
    pub images: Vec<PathBuf>,
    /// FUSE mounts, the newest first.
    pub files: Vec<PathBuf>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.images.is_empty() && self.files.is_empty()
    }
}

/// What stands on files below `fuse_dir`, which nobody serves, other than those below the directories `kept`.
#[must_use]
pub fn plan(fuse_dir: &Path, kept: &[PathBuf], table: &[Entry], loops: &[LoopDevice]) -> Plan {
    let is_ours = |path: &Path| path.starts_with(fuse_dir) && !kept.iter().any(|dir| path.starts_with(dir));
    let loops: Vec<PathBuf> =
        loops.iter().filter(|device| is_ours(&device.file)).map(|device| device.device.clone()).collect();
    let on_ours = |entry: &&Entry| is_ours(&entry.source) || loops.contains(&entry.source);
    let dirs =
        |wanted: &dyn Fn(&&Entry) -> bool| table.iter().rev().filter(wanted).map(|entry| entry.dir.clone()).collect();
    let is_file = |entry: &&Entry| is_ours(&entry.dir) && entry.file_system.starts_with("fuse");
    Plan { images: dirs(&on_ours), files: dirs(&is_file) }
}

/// Takes away what a killed agent left below `fuse_dir`, other than below the directories `kept`. Says what it did, one sentence each,
/// failures included: none of them keeps an agent from starting.
#[must_use]
pub fn clear(fuse_dir: &Path, kept: &[PathBuf]) -> Vec<String> {
    let table = match super::table::read() {
        Ok(table) => table,
        Err(error) => return vec![format!("cannot read the table of mounts, so none is cleaned up: {error}")],
    };
    let plan = plan(fuse_dir, kept, &table, &loop_devices());
    let mut done = Vec::new();
    let mut note = |what: &str, path: &Path, outcome: Result<(), String>| {
        done.push(match outcome {
            Ok(()) => format!("{what} {} of an agent that was killed was removed", path.display()),
            Err(error) => format!("{what} {} of an agent that was killed cannot be removed: {error}", path.display()),
        });
    };
    let unmount = |dir: &Path| {
        rustix::mount::unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(|error| error.to_string())
    };
    for dir in &plan.images {
        note("the mount on", dir, unmount(dir));
    }
    for dir in &plan.files {
        note("the FUSE mount on", dir, unmount(dir));
    }
    done
}

/// All loop devices in use, from `/sys/block/loop*/loop/backing_file`.
pub(super) fn loop_devices() -> Vec<LoopDevice> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok().filter(|name| name.starts_with("loop"))?;
            let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            Some(LoopDevice { device: Path::new("/dev").join(name), file: file.trim_end_matches('\n').into() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dir: &str, file_system: &str, source: &str) -> Entry {
        Entry { dir: dir.into(), file_system: file_system.into(), source: source.into() }
    }

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn only_what_stands_on_our_files_is_taken_away_newest_first() {
        let table = [
            entry("/", "ext4", "/dev/vda"),
            entry("/s/fuse/a", "fuse.penstock", "penstock"),
            entry("/s/fuse/b", "fuse.penstock", "penstock"),
            entry("/other/fuse/c", "fuse.penstock", "penstock"),
            entry("/mnt/a", "erofs", "/s/fuse/a/image"),
            entry("/mnt/b", "ext4", "/dev/loop3"),
            entry("/mnt/b2", "ext4", "/dev/loop3"),
            entry("/mnt/c", "ext4", "/dev/loop4"),
        ];
        let loops = [
            LoopDevice { device: "/dev/loop3".into(), file: "/s/fuse/b/image".into() },
            LoopDevice { device: "/dev/loop4".into(), file: "/home/disk.img".into() },
            LoopDevice { device: "/dev/loop5".into(), file: "/s/fuse-not-ours/image".into() },
        ];
        let plan = |dir: &str, kept: &[&str]| super::plan(Path::new(dir), &paths(kept), &table, &loops);
        let all = plan("/s/fuse", &[]);
        assert_eq!(all.images, paths(&["/mnt/b2", "/mnt/b", "/mnt/a"]));
        assert_eq!(all.files, paths(&["/s/fuse/b", "/s/fuse/a"]));
        assert!(plan("/t/fuse", &[]).is_empty());
        let without_b = Plan { images: paths(&["/mnt/a"]), files: paths(&["/s/fuse/a"]) };
        assert_eq!(plan("/s/fuse", &["/s/fuse/b"]), without_b);
        assert_eq!(plan("/s/fuse/a", &[]), without_b);
        assert!(plan("/s/fuse", &["/s/fuse/a", "/s/fuse/b"]).is_empty());
    }
}

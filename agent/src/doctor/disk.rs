//! The directories that the agent writes to.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate, statfs, statvfs};

use super::check::Check;
use crate::{config::Config, output::size};

/// Where a hole is tried: more than a block of any file system.
const HOLE_BYTES: u64 = 64 << 10;
/// The cache's own reserve where none is set: this, or a share of the file system if that is less.
const RESERVE: (u64, u64) = (1 << 30, 20);

/// One directory.
#[derive(Debug, Clone)]
pub(super) struct Dir {
    pub(super) name: &'static str,
    pub(super) path: PathBuf,
    /// Whether it is there; else the nearest one above it was looked at.
    pub(super) exists: bool,
    pub(super) room: Result<Room, String>,
    /// Whether the file system has holes; `None` when nothing may be written there.
    pub(super) has_holes: Option<Result<(), String>>,
    /// What is to be stored there, and what is to stay free; the state directory has no numbers.
    pub(super) cap: Option<(u64, Option<u64>)>,
}

/// A file system.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub(super) kind: &'static str,
    pub(super) free_bytes: u64,
    pub(super) total_bytes: u64,
    /// Bytes of the directory's files on disk.
    pub(super) used_bytes: u64,
}

pub(super) fn look(config: &Config) -> Vec<Dir> {
    let cap = Some((config.cache_cap_bytes, config.cache_reserve_bytes));
    vec![dir("state directory", &config.state_dir, None), dir("cache directory", &config.cache_dir(), cap)]
}

fn dir(name: &'static str, path: &Path, cap: Option<(u64, Option<u64>)>) -> Dir {
    let nearest = path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    // A file without a name: gone with this process, whatever happens.
    let file = tempfile::tempfile_in(nearest);
    let has_holes = file.ok().map(|file| {
        file.set_len(HOLE_BYTES).map_err(|error| error.to_string())?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, flags, 0, HOLE_BYTES).map_err(|error| std::io::Error::from(error).to_string())
    });
    Dir { name, path: path.to_path_buf(), exists: nearest == path, room: room(nearest), has_holes, cap }
}

fn room(dir: &Path) -> Result<Room, String> {
    let failed = |error: rustix::io::Errno| std::io::Error::from(error).to_string();
    let (stat, kind) = (statvfs(dir).map_err(failed)?, statfs(dir).map_err(failed)?.f_type);
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let (free_bytes, total_bytes) = (bytes(stat.f_bavail), bytes(stat.f_blocks));
    Ok(Room { kind: name_of(kind), free_bytes, total_bytes, used_bytes: used(dir) })
}

/// Names of the kinds of statfs(2) that are met on nodes.
fn name_of(kind: rustix::fs::FsWord) -> &'static str {
    match kind {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlay",
        0x6969 => "nfs",
        0x2fc1_2fc1 => "zfs",
        0x0102_1997 => "9p",
        0x6573_5546 => "fuse",
        _ => "another file system",
    }
}

/// Disk space of the files right in `dir` and one directory below, which is where the cache keeps its data.
fn used(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).collect::<Vec<_>>();
    let blocks = |entry: &fs::DirEntry| entry.metadata().map_or(0, |metadata| metadata.blocks() * 512);
    let below = |entry: &fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => entries(&entry.path()).iter().map(blocks).sum(),
        _ => 0,
    };
    entries(dir).iter().map(|entry| blocks(entry) + below(entry)).sum()
}

pub(super) fn judge(dirs: &[Dir]) -> Vec<Check> {
    dirs.iter().map(judge_one).collect()
}

fn judge_one(dir: &Dir) -> Check {
    let room = match &dir.room {
        Ok(room) => room,
        Err(reason) => {
            let next = "make the directory, or name another in the agent's config";
            return Check::failed(dir.name, format!("{}: {reason}", dir.path.display()), next);
        }
    };
    let made = if dir.exists { "" } else { ", which the agent will make" };
    let free = format!("{} of {} free", size(room.free_bytes), size(room.total_bytes));
    let seen = format!("{}{made}: {}, {free}", dir.path.display(), room.kind);
    match &dir.has_holes {
        Some(Err(reason)) => {
            let next = "use ext4, xfs, btrfs or tmpfs: what is evicted gives its space back by a hole";
            return Check::failed(dir.name, format!("{seen}; no holes can be made: {reason}"), next);
        }
        None => return Check::skipped(dir.name, format!("{seen}; nothing may be written there by this user")),
        Some(Ok(())) => {}
    }
    if room.free_bytes == 0 {
        return Check::failed(dir.name, seen, "free some space: nothing can be recorded there");
    }
    let Some((cap, reserve)) = dir.cap else { return Check::ok(dir.name, seen) };
    let reserve = reserve.unwrap_or_else(|| RESERVE.0.min(room.total_bytes / RESERVE.1));
    if room.free_bytes < reserve {
        let seen = format!("{seen}; less than the reserve of {}, so that nothing is stored", size(reserve));
        return Check::failed(dir.name, seen, "free some space, or set cache.reserve or cache.dir");
    }
    let wanted = cap.saturating_sub(room.used_bytes);
    if room.free_bytes - reserve < wanted {
        let seen = format!("{seen}; cache.cap of {} does not fit above the reserve of {}", size(cap), size(reserve));
        return Check::warning(
            dir.name,
            seen,
            "free some space, or lower cache.cap: what does not fit is fetched again",
        );
    }
    Check::ok(dir.name, format!("{seen}; cache.cap is {}", size(cap)))
}

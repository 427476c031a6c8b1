//! Which of this machine's files go into the demo's image, and their copies.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// Where files are taken from, in this order, until there are enough.
const ROOTS: [&str; 7] =
    ["/usr/bin", "/usr/lib/python3", "/usr/sbin", "/usr/lib", "/usr/share", "/usr/libexec", "/usr/include"];

/// Deepest directory looked into: no distribution nests its files further, and a loop of bind mounts ends there.
const DEEPEST: usize = 32;

/// Most files taken: enough for a gigabyte of small ones, and few enough to be copied in seconds.
const MOST_FILES: usize = 60_000;

/// The files of an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    /// Regular files and symbolic links, each once.
    pub(super) entries: Vec<PathBuf>,
    /// Bytes of the regular files.
    pub(super) bytes: u64,
    /// Directories looked into.
    pub(super) dirs: usize,
}

/// `first`, then files below the roots until there are about `target_bytes`.
pub(super) fn choose(first: &[PathBuf], target_bytes: u64) -> Tree {
    let mut tree = Tree::default();
    let mut seen: std::collections::HashSet<PathBuf> = std::collections::HashSet::new();
    for path in first {
        if let Ok(metadata) = path.symlink_metadata()
            && seen.insert(path.clone())
        {
            tree.bytes += metadata.len();
            tree.entries.push(path.clone());
        }
    }
    for root in ROOTS {
        walk(Path::new(root), 0, target_bytes, &mut tree, &mut seen);
    }
    tree
}

fn walk(dir: &Path, depth: usize, target_bytes: u64, tree: &mut Tree, seen: &mut std::collections::HashSet<PathBuf>) {
    // A directory that this user may not read is left out, as are files: the image is of what can be seen.
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<fs::DirEntry> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    tree.dirs += 1;
    for entry in entries {
        if tree.bytes >= target_bytes || tree.entries.len() >= MOST_FILES {
            return;
        }
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if kind.is_dir() && depth < DEEPEST {
            walk(&path, depth + 1, target_bytes, tree, seen);
        } else if (kind.is_file() || kind.is_symlink()) && !seen.contains(&path) {
            tree.bytes += entry.metadata().map_or(0, |metadata| if metadata.is_file() { metadata.len() } else { 0 });
            seen.insert(path.clone());
            tree.entries.push(path);
        }
    }
}

impl Tree {
    /// Copies the tree below `to`. Files that cannot be read, or that changed into something else, are left out.
    ///
    /// # Errors
    /// When a copy cannot be written, or `Interrupted` once `stop` is set.
    pub(super) fn copy(&self, to: &Path, stop: &AtomicBool) -> io::Result<()> {
        for path in &self.entries {
            if stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let Ok(relative) = path.strip_prefix("/") else { continue };
            let copy = to.join(relative);
            if let Some(dir) = copy.parent() {
                fs::create_dir_all(dir)?;
            }
            copy_one(path, &copy)?;
        }
        Ok(())
    }
}

fn copy_one(from: &Path, to: &Path) -> io::Result<()> {
    if let Ok(target) = fs::read_link(from) {
        return symlink(target, to);
    }
    let Ok(mut source) = fs::File::open(from) else { return Ok(()) };
    let mut copy = fs::File::create(to)?;
    io::copy(&mut source, &mut copy)?;
    // Modes matter for programs; a file that stays without one is still read.
    let _ = source.metadata().map(|metadata| copy.set_permissions(metadata.permissions()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wanted_files_come_first_and_once_and_the_size_is_kept() {
        let first = [PathBuf::from("/bin/sh").canonicalize().unwrap()];
        let tree = choose(&first, 4 << 20);
        assert_eq!(tree.entries[0], first[0]);
        let unique: std::collections::HashSet<_> = tree.entries.iter().collect();
        assert_eq!(unique.len(), tree.entries.len());
        let before_last: u64 = tree.entries[..tree.entries.len() - 1]
            .iter()
            .map(|path| path.symlink_metadata().unwrap())
            .filter(fs::Metadata::is_file)
            .map(|metadata| metadata.len())
            .sum();
        assert!(before_last < 4 << 20, "{before_last}");
    }

    #[test]
    fn copies_are_alike_and_stop_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let sh = PathBuf::from("/bin/sh").canonicalize().unwrap();
        let tree = Tree { entries: vec![sh.clone()], bytes: 0, dirs: 1 };
        tree.copy(dir.path(), &AtomicBool::new(false)).unwrap();
        let copy = dir.path().join(sh.strip_prefix("/").unwrap());
        assert_eq!(fs::read(copy).unwrap(), fs::read(&sh).unwrap());
        let stopped = tree.copy(dir.path(), &AtomicBool::new(true)).unwrap_err();
        assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
    }
}

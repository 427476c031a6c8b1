//! Files of this machine, copied to be the content of images.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// Where files are taken from, in this order, until there are enough.
const ROOTS: [&str; 5] = ["/usr/bin", "/usr/lib", "/usr/sbin", "/usr/share", "/usr/include"];
/// Deepest directory looked into: a loop of bind mounts ends there.
const DEEPEST: usize = 32;
/// Most files taken.
const MOST_FILES: usize = 60_000;
/// Seed of every choice: the same machine gives the same image and the same reads in each run.
pub(crate) const SEED: u64 = 0x7065_6e73_746f_636b;

/// A copy of some files.
#[derive(Debug)]
pub struct Tree {
    /// The directory that stands for `/`.
    pub root: PathBuf,
    /// Regular files with bytes, in order, relative to `root`, and their sizes in bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Symbolic links, relative to `root`.
    pub links: Vec<PathBuf>,
    /// Directories.
    pub dirs: usize,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Tree {
    /// Copies files of `/usr` below `root` until there are about `target_bytes`. Files that cannot be read are left out.
    ///
    /// # Errors
    /// What writing a copy says.
    pub fn copy(root: &Path, target_bytes: u64) -> io::Result<Self> {
        Self::copy_after(root, &[], target_bytes)
    }

    /// As [`Tree::copy`], with these files, links and whole directories of this machine first, whatever their size.
    ///
    /// # Errors
    /// As [`Tree::copy`].
    pub fn copy_after(root: &Path, first: &[PathBuf], target_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let mut tree = Self { root: root.to_owned(), files: Vec::new(), links: Vec::new(), dirs: 0, bytes: 0 };
        for path in first {
            if path.is_dir() && !path.is_symlink() {
                tree.walk(path, 0, u64::MAX)?;
            } else {
                tree.take(path)?;
            }
        }
        for dir in ROOTS {
            // Where /usr/bin is a link to a directory elsewhere, that one is the root.
            if let Ok(dir) = fs::canonicalize(dir) {
                tree.walk(&dir, 0, target_bytes)?;
            }
        }
        Ok(tree)
    }

    fn walk(&mut self, dir: &Path, depth: usize, target_bytes: u64) -> io::Result<()> {
        let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
        let mut entries: Vec<fs::DirEntry> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        self.dirs += 1;
        for entry in entries {
            if self.bytes >= target_bytes || self.files.len() >= MOST_FILES {
                return Ok(());
            }
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
            if kind.is_dir() && depth < DEEPEST {
                self.walk(&path, depth + 1, target_bytes)?;
            } else if kind.is_file() || kind.is_symlink() {
                self.take(&path)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, path: &Path) -> io::Result<()> {
        let Ok(relative) = path.strip_prefix("/") else { return Ok(()) };
        let copy = self.root.join(relative);
        if copy.symlink_metadata().is_ok() {
            return Ok(());
        }
        if let Some(dir) = copy.parent() {
            fs::create_dir_all(dir)?;
        }
        if let Ok(target) = fs::read_link(path) {
            symlink(target, copy)?;
            self.links.push(relative.to_owned());
            return Ok(());
        }
        let Ok(mut source) = fs::File::open(path) else { return Ok(()) };
        let bytes = io::copy(&mut source, &mut fs::File::create(&copy)?)?;
        if let Ok(metadata) = source.metadata() {
            fs::set_permissions(&copy, metadata.permissions())?;
        }
        self.bytes += bytes;
        self.files.push((relative.to_owned(), bytes));
        Ok(())
    }

    /// Whole files, drawn at random, that make up `share` of the tree's bytes, in the order in which they will be read.
    #[must_use]
    pub fn working_set(&self, share: f64) -> Vec<PathBuf> {
        let mut files: Vec<_> = self.files.iter().collect();
        fastrand::Rng::with_seed(SEED).shuffle(&mut files);
        let (mut taken, wanted) = (0, self.bytes as f64 * share);
        let enough = |(_, bytes): &&&(PathBuf, u64)| {
            let more = (taken as f64) < wanted;
            taken += bytes;
            more
        };
        files.iter().take_while(enough).map(|(path, _)| path.clone()).collect()
    }

    /// The entries in `parts` groups of about as many bytes each, in order: files of a directory stay together.
    #[must_use]
    pub fn parts(&self, parts: usize) -> Vec<Vec<PathBuf>> {
        let mut groups = vec![Vec::new(); parts];
        let (mut seen, each) = (0, (self.bytes / parts as u64).max(1));
        for (path, bytes) in &self.files {
            let group = usize::try_from(seen / each).map_or(parts - 1, |group| group.min(parts - 1));
            groups[group].push(path.clone());
            seen += bytes;
        }
        groups[0].extend(self.links.iter().cloned());
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::copy(&dir.path().join("root"), 8 << 20).unwrap();
        (dir, tree)
    }

    #[test]
    fn copies_have_the_size_asked_for_and_the_bytes_of_the_originals() {
        let (_dir, tree) = small();
        assert_eq!(tree.bytes, tree.files.iter().map(|(_, bytes)| bytes).sum::<u64>());
        let last = tree.files.last().unwrap().1;
        assert!(tree.bytes >= 8 << 20 && tree.bytes - last < 8 << 20, "{}", tree.bytes);
        let (path, _) = &tree.files[0];
        assert_eq!(fs::read(tree.root.join(path)).unwrap(), fs::read(Path::new("/").join(path)).unwrap());
    }

    #[test]
    fn parts_hold_every_entry_once() {
        let (_dir, tree) = small();
        let mut all: Vec<_> = tree.parts(4).concat();
        all.sort();
        let mut expected: Vec<_> = tree.files.iter().map(|(path, _)| path.clone()).chain(tree.links.clone()).collect();
        expected.sort();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_working_set_is_the_share_asked_for_and_the_same_again() {
        let (_dir, tree) = small();
        let set = tree.working_set(0.25);
        assert_eq!(set, tree.working_set(0.25));
        let size = |path: &PathBuf| tree.files.iter().find(|(file, _)| file == path).unwrap().1;
        let bytes: u64 = set.iter().map(size).sum();
        let largest = tree.files.iter().map(|(_, bytes)| *bytes).max().unwrap();
        assert!(bytes >= tree.bytes / 4 && bytes <= tree.bytes / 4 + largest);
        assert_eq!(tree.working_set(1.0).len(), tree.files.len());
    }
}

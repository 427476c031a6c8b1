//! How much a directory takes: allocated bytes and inodes, as containerd counts them. Blocks.

use std::{collections::HashSet, fs, io, os::unix::fs::MetadataExt, path::Path};

use crate::record::Usage;

/// The bytes of one block of `st_blocks` (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// Sums what is below `dir`, and `dir` itself. A file with several names counts once. What disappears meanwhile does not count.
pub(crate) fn of(dir: &Path) -> io::Result<Usage> {
    let (mut usage, mut linked) = (Usage::default(), HashSet::new());
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound && path != dir => continue,
            Err(e) => return Err(e),
        };
        if meta.is_dir() {
            match fs::read_dir(&path) {
                Ok(entries) => {
                    for entry in entries {
                        waiting.push(entry?.path());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            }
        } else if meta.nlink() > 1 && !linked.insert((meta.dev(), meta.ino())) {
            continue;
        }
        usage.size_bytes += meta.blocks() * BLOCK_BYTES;
        usage.inodes += 1;
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use super::*;

    #[test]
    fn a_hard_link_counts_once_and_a_hole_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let base = of(dir.path()).expect("it exists");
        assert_eq!(base.inodes, 1);
        let path = dir.path().join("file");
        File::create(&path).and_then(|mut file| file.write_all(&[1; 10_000])).expect("a file");
        File::create(dir.path().join("hole")).and_then(|file| file.set_len(1 << 30)).expect("a hole");
        File::open(&path).and_then(|file| file.sync_all()).expect("blocks are allocated");
        let with_file = of(dir.path()).expect("it exists");
        assert_eq!(with_file.inodes, 3);
        assert!((10_000..1 << 20).contains(&(with_file.size_bytes - base.size_bytes)), "{with_file:?}");
        fs::hard_link(&path, dir.path().join("again")).expect("a link");
        std::os::unix::fs::symlink("/", dir.path().join("link")).expect("a symbolic link");
        let linked = of(dir.path()).expect("it exists");
        assert_eq!(linked.inodes, 4, "the symbolic link is counted, and not followed");
        assert!(of(&dir.path().join("none")).is_err());
    }
}

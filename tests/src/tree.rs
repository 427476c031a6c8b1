//! What a directory tree holds, so that two trees, or a tree and a written-down truth, can be compared.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// One member of a tree. Sizes of directories are the file system's affair and left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// d, f, l, c, b, p or s.
    pub kind: char,
    /// Permission bits, suid and the like included.
    pub mode: u32,
    /// `uid:gid`.
    pub owner: String,
    /// Bytes of a regular file or of a link's target, 0 for others.
    pub size_bytes: u64,
    /// A symbolic link's target.
    pub target: String,
    /// sha256 of a regular file, in hex.
    pub sha256: String,
}

/// Members by path relative to the root.
pub type Tree = BTreeMap<String, Entry>;

/// Reads the tree below `root`, every file to its end. `lost+found` is no part of it.
///
/// # Errors
/// The first error met, with its path.
pub fn read(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(root.join(&dir)).map_err(|error| at(&dir, &error))? {
            let path = dir.join(entry.map_err(|error| at(&dir, &error))?.file_name());
            if path == Path::new("lost+found") {
                continue;
            }
            let entry = one(&root.join(&path)).map_err(|error| at(&path, &error))?;
            if entry.kind == 'd' {
                waiting.push(path.clone());
            }
            tree.insert(path.to_string_lossy().into_owned(), entry);
        }
    }
    Ok(tree)
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn one(path: &Path) -> io::Result<Entry> {
    let meta = fs::symlink_metadata(path)?;
    let kinds: [(bool, char); 7] = [
        (meta.is_dir(), 'd'),
        (meta.is_file(), 'f'),
        (meta.is_symlink(), 'l'),
        (meta.file_type().is_char_device(), 'c'),
        (meta.file_type().is_block_device(), 'b'),
        (meta.file_type().is_fifo(), 'p'),
        (meta.file_type().is_socket(), 's'),
    ];
    let kind = kinds.iter().find(|(is, _)| *is).map_or('?', |&(_, kind)| kind);
    Ok(Entry {
        kind,
        mode: meta.mode() & 0o7777,
        owner: format!("{}:{}", meta.uid(), meta.gid()),
        size_bytes: if matches!(kind, 'f' | 'l') { meta.len() } else { 0 },
        target: if kind == 'l' { fs::read_link(path)?.to_string_lossy().into_owned() } else { String::new() },
        sha256: if kind == 'f' { sha256(File::open(path)?)? } else { String::new() },
    })
}

/// sha256 of everything `from` gives, in hex.
///
/// # Errors
/// Whatever reading says.
pub fn sha256(mut from: impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        match from.read(&mut buf) {
            Ok(0) => return Ok(hex::encode(hasher.finalize())),
            Ok(n) => hasher.update(&buf[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Fails with the first few differences, readable, instead of two trees printed whole.
///
/// # Panics
/// When the trees differ.
pub fn assert_same(found: &Tree, expected: &Tree) {
    let missing =
        expected.iter().filter(|(path, _)| !found.contains_key(*path)).map(|(path, _)| format!("missing {path}"));
    let other = found.iter().filter(|(path, entry)| expected.get(*path) != Some(entry));
    let other = other.map(|(path, entry)| format!("{path}: found {entry:?}, expected {:?}", expected.get(path)));
    let differences: Vec<String> = missing.chain(other).collect();
    let first = differences.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{} differences, such as\n{first}", differences.len());
}

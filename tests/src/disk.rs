//! Disks made on the spot: a tree of files with known bytes, and the file systems that `mkfs` makes of it.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

/// A tree to be put on a disk: some files in directories, links, modes, an empty file, and as much ballast as wanted.
/// Bytes follow from `seed` alone and do not compress.
///
/// # Panics
/// When it cannot be written.
pub fn fill(dir: &Path, seed: u64, ballast_bytes: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut write = |path: &str, len: usize| {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().expect("below the tree")).expect("a directory");
        let mut file = File::create(&path).expect("a file");
        let mut left = len;
        let mut buf = vec![0; 1 << 20];
        while left > 0 {
            let part = left.min(buf.len());
            random.fill(&mut buf[..part]);
            file.write_all(&buf[..part]).expect("room on the disk");
            left -= part;
        }
    };
    write("etc/small.conf", 3000);
    write("etc/empty", 0);
    write("usr/bin/tool", 70_001);
    write("usr/lib/deep/er/lib.so", 300_000);
    let pieces = ballast_bytes.div_ceil(PIECE_BYTES);
    for piece in 0..pieces {
        write(&format!("ballast/{piece:03}.bin"), usize::try_from(PIECE_BYTES).expect("small"));
    }
    fs::set_permissions(dir.join("usr/bin/tool"), fs::Permissions::from_mode(0o4755)).expect("a mode");
    symlink("../bin/tool", dir.join("usr/lib/tool")).expect("a link");
}

/// Size of one file of ballast.
const PIECE_BYTES: u64 = 8 << 20;

fn made(command: &mut Command) {
    let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// An EROFS image of `tree`.
///
/// # Panics
/// When mkfs.erofs fails.
#[must_use]
pub fn erofs(tree: &Path, image: PathBuf) -> PathBuf {
    // A fixed UUID and time: the same tree gives the same digest.
    let fixed = ["-T0", "-U", "c1b9d5a2-f162-11cf-9ece-0020afc76f16"];
    made(Command::new("mkfs.erofs").args(fixed).arg(&image).arg(tree));
    image
}

/// A squashfs image of `tree`.
///
/// # Panics
/// When mksquashfs fails.
#[must_use]
pub fn squashfs(tree: &Path, image: PathBuf) -> PathBuf {
    made(Command::new("mksquashfs").arg(tree).arg(&image).args([
        "-quiet",
        "-no-progress",
        "-comp",
        "zstd",
        "-noappend",
    ]));
    image
}

/// An ext4 disk of `size_bytes` with `tree` in it, sparse.
///
/// # Panics
/// When mke2fs fails.
#[must_use]
pub fn ext4(tree: &Path, image: PathBuf, size_bytes: u64) -> PathBuf {
    File::create(&image).and_then(|file| file.set_len(size_bytes)).expect("a sparse file");
    made(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(tree).arg(&image));
    image
}

/// An xfs disk of `size_bytes`, empty but for its root: xfs is filled by mounting it, which tests of reading need not.
///
/// # Panics
/// When mkfs.xfs fails.
#[must_use]
pub fn xfs(image: PathBuf, size_bytes: u64) -> PathBuf {
    File::create(&image).and_then(|file| file.set_len(size_bytes)).expect("a sparse file");
    made(Command::new("mkfs.xfs").arg("-q").arg(&image));
    image
}

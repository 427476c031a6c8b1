//! The layers of a runnable image, in each kind.

use std::{
    fs::{self, File},
    io::Cursor,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use penstock_blob::Digest;
use penstock_image::write::{self, LayerWriter, Options};
use rustix::fs::{FileType, Mode};

use super::{Made, Step};
use crate::{disk, push::Layer, workdir::Workdir};

/// The media type of an ordinary layer.
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The media type of one that is not compressed.
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
/// The media type given to a layer that is an EROFS: containerd takes for a layer what begins so.
const EROFS: &str = "application/vnd.oci.image.layer.v1.erofs";
/// Unit in which disks are compared: the block size of the file system.
const BLOCK_BYTES: usize = 4096;
/// Sectors in a block.
const BLOCK_SECTORS: u64 = 8;
/// Room on the disk besides the files of its layers, in bytes.
const SPARE_BYTES: u64 = 24 << 20;

/// Runs a command that must succeed, and answers what it printed.
pub(super) fn run(command: &mut Command) -> Vec<u8> {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

impl Step {
    /// The step as tar+gzip, deletions as whiteout files.
    pub(super) fn packed(&self, i: usize, work: &Workdir) -> Made {
        let archive = self.archive(i, work);
        let tar = work.join("layer.tar");
        let zipped = run(Command::new("gzip").args(["-1", "-n", "-c"]).arg(&tar));
        Made { layer: Layer::new(zipped, GZIP), ..archive }
    }

    /// The step as tar, deletions as whiteout files.
    pub(super) fn archive(&self, i: usize, work: &Workdir) -> Made {
        let whiteouts = work.dir(&format!("whiteouts-{i}"));
        if let Some(path) = self.removed.map(Path::new) {
            let (parent, name) = (path.parent().expect("a directory"), path.file_name().expect("a name"));
            fs::create_dir_all(whiteouts.join(parent)).expect("a directory");
            fs::write(whiteouts.join(parent).join(format!(".wh.{}", name.display())), []).expect("a file");
        }
        let tar = work.join("layer.tar");
        run(Command::new("tar")
            .args(["--numeric-owner", "--sort=name", "--mtime=@0", "-cf"])
            .arg(&tar)
            .arg("-C")
            .arg(&self.added)
            .arg(".")
            .arg("-C")
            .arg(&whiteouts)
            .arg("."));
        let layer = Layer::new(fs::read(&tar).expect("the archive"), TAR);
        let diff_id = Digest::of(&layer.bytes);
        Made::new(layer, &diff_id)
    }

    /// The step as an EROFS, deletions as overlayfs has them: character devices 0/0.
    pub(super) fn erofs(&self, i: usize, work: &Workdir) -> Made {
        let dir = work.dir(&format!("erofs-{i}"));
        run(Command::new("cp").arg("-a").arg(self.added.join(".")).arg(&dir));
        if let Some(removed) = self.removed {
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, dir.join(removed), FileType::CharacterDevice, mode, 0)
                .expect("a whiteout");
        }
        let bytes = fs::read(disk::erofs(&dir, work.join("layer.erofs"))).expect("the disk");
        let diff_id = Digest::of(&bytes);
        Made::new(Layer::new(bytes, EROFS), &diff_id)
    }
}

/// The steps as block differences of one ext4, as OverlayBD's convertor makes them.
pub(super) fn overlaybd(steps: &[Step], work: &Workdir) -> Vec<Made> {
    let needed: u64 = steps.iter().map(|step| bytes_below(&step.added)).sum();
    let size = (needed + SPARE_BYTES).next_multiple_of(1 << 20);
    let tree = work.dir("tree");
    let mut below: Option<PathBuf> = None;
    let mut made = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        step.apply(&tree);
        let disk = work.join(&format!("disk-{i}"));
        drop(disk::ext4(&tree, disk.clone(), size));
        made.push(layer(below.as_deref(), &disk));
        below = Some(disk);
    }
    made
}

/// The blocks of `disk` that are not as `below` has them, as a layer; all that are not zero when there is nothing below.
fn layer(below: Option<&Path>, disk: &Path) -> Made {
    let open = |path: &Path| File::open(path).expect("a disk");
    let (disk, mut out) = (open(disk), Cursor::new(Vec::new()));
    match below {
        None => drop(write::disk(&disk, &mut out, Options::default()).expect("a layer")),
        Some(below) => difference(&open(below), &disk, &mut out),
    }
    let layer = Layer::overlaybd(out.into_inner());
    // Not compressed as far as OCI is concerned: blob and content have one digest.
    let diff_id = Digest::of(&layer.bytes);
    Made::new(layer, &diff_id)
}

fn difference(below: &File, disk: &File, out: &mut Cursor<Vec<u8>>) {
    let bytes = disk.metadata().expect("a disk").len();
    let mut writer = LayerWriter::new(out, Options::default()).expect("a layer");
    let (mut old, mut new) = ([0; BLOCK_BYTES], [0; BLOCK_BYTES]);
    for block in 0..bytes / BLOCK_BYTES as u64 {
        let at = block * BLOCK_BYTES as u64;
        below.read_exact_at(&mut old, at).expect("the disk below");
        disk.read_exact_at(&mut new, at).expect("the disk");
        if old != new && new.iter().all(|&byte| byte == 0) {
            writer.zeroed(block * BLOCK_SECTORS, BLOCK_SECTORS).expect("a layer");
        } else if old != new {
            writer.data(block * BLOCK_SECTORS, &new).expect("a layer");
        }
    }
    writer.finish().expect("a layer");
}

/// Bytes of the regular files below `dir`.
fn bytes_below(dir: &Path) -> u64 {
    let tree = crate::tree::read(dir).expect("a tree");
    tree.values().map(|entry| entry.size_bytes).sum()
}

//! Images that a container can run: static busybox and data in three layers, each as an ordinary archive, as OverlayBD over ext4, or
//! as an EROFS of its own. The middle layer changes a file of the lowest, the top one deletes a file.
//!
//! Made with `tar`, `gzip` and `mkfs`, and with the writer of OverlayBD layers. What a container must see is the merged tree, which
//! is kept.

mod layers;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use penstock_blob::Digest;
use serde_json::{Value, json};

use crate::{
    push::{Layer, MANIFEST, Repository},
    skip,
    tree::{self, Tree},
    workdir::Workdir,
};

/// busybox' programs in `/bin` of the images.
const PROGRAMS: [&str; 12] =
    ["sh", "cat", "echo", "find", "sha256sum", "sleep", "ls", "mkdir", "touch", "true", "tail", "dd"];
/// The file that the top layer deletes.
const DOOMED: &str = "data/doomed";
/// The file that the middle layer changes.
const VERSION: &str = "etc/version";
/// Size of one file of data.
const PIECE_BYTES: usize = 1 << 20;

/// How layers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// tar+gzip, as images usually are.
    Ordinary,
    /// tar: what other tools compress.
    Archives,
    /// Block differences of one ext4.
    OverlayBd,
    /// One EROFS for each layer.
    Erofs,
}

/// A layer of an image and its diff ID.
#[derive(Debug, Clone)]
pub struct Made {
    layer: Layer,
    diff_id: String,
}

/// What a layer does to what is below it.
#[derive(Debug)]
struct Step {
    /// Files to be added or replaced.
    added: PathBuf,
    /// A path to be deleted.
    removed: Option<&'static str>,
}

/// An image's files, layer by layer and merged.
#[derive(Debug)]
pub struct Runnable {
    steps: Vec<Step>,
    merged: PathBuf,
    work: Workdir,
}

/// Why such images cannot be made and run here.
#[must_use]
pub fn cannot() -> Option<String> {
    let programs = ["busybox", "tar", "gzip", "mke2fs", "mkfs.erofs", "docker-registry"];
    skip::root()
        .or_else(|| programs.into_iter().find_map(skip::program))
        .or_else(skip::loop_devices)
        .or_else(|| ["overlay", "ext4", "erofs"].into_iter().find_map(skip::filesystem))
}

impl Runnable {
    /// The files of an image with `data_mib` MiB of data in its lowest layer. Two images with the same amount share the two lower
    /// layers; the top one follows from `seed`.
    ///
    /// # Panics
    /// When they cannot be written.
    #[must_use]
    pub fn new(seed: u64, data_mib: usize) -> Self {
        let work = Workdir::new();
        let dirs = ["base", "middle", "top"].map(|name| work.dir(name));
        base(&dirs[0], data_mib);
        data(&dirs[1].join("data/middle"), 101, 1);
        write(&dirs[1].join(VERSION), b"2\n");
        data(&dirs[2].join("data/top"), seed, 1);
        write(&dirs[2].join("etc/top"), format!("{seed}\n").as_bytes());
        let removed = [None, None, Some(DOOMED)];
        let steps: Vec<Step> = dirs.into_iter().zip(removed).map(|(added, removed)| Step { added, removed }).collect();
        let merged = work.dir("merged");
        steps.iter().for_each(|step| step.apply(&merged));
        Self { steps, merged, work }
    }

    /// What a container must see, before it writes.
    ///
    /// # Panics
    /// When the files cannot be read.
    #[must_use]
    pub fn truth(&self) -> Tree {
        tree::read(&self.merged).expect("the merged tree")
    }

    /// What `sha256sum` says of every regular file, sorted by path: `SHA256  /PATH`, one a line.
    #[must_use]
    pub fn sums(&self) -> String {
        let truth = self.truth();
        let files = truth.iter().filter(|(_, entry)| entry.kind == 'f');
        files.map(|(path, entry)| format!("{}  /{path}\n", entry.sha256)).collect()
    }

    /// Its layers of one kind, bottom first.
    ///
    /// # Panics
    /// When one cannot be made.
    #[must_use]
    pub fn layers(&self, kind: Kind) -> Vec<Made> {
        match kind {
            Kind::Ordinary => self.steps.iter().enumerate().map(|(i, step)| step.packed(i, &self.work)).collect(),
            Kind::Archives => self.steps.iter().enumerate().map(|(i, step)| step.archive(i, &self.work)).collect(),
            Kind::OverlayBd => layers::overlaybd(&self.steps, &self.work),
            Kind::Erofs => self.steps.iter().enumerate().map(|(i, step)| step.erofs(i, &self.work)).collect(),
        }
    }
}

/// The command whose output [`sums`] sorts into what [`Runnable::sums`] answers.
pub const SUM_ALL: [&str; 3] = ["sh", "-c", "find /bin /etc /data -xdev -type f -exec sha256sum {} +"];

/// The files of the image among what [`SUM_ALL`] printed, sorted by path. A runtime puts files of its own into `/etc`.
#[must_use]
pub fn sums(printed: &str) -> String {
    let own = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
    let line = |line: &str| line.split_once("  ").map(|(sum, path)| (path.to_owned(), sum.to_owned()));
    let mut lines: Vec<_> =
        printed.lines().filter_map(line).filter(|(path, _)| !own.contains(&path.as_str())).collect();
    lines.sort();
    lines.into_iter().map(|(path, sum)| format!("{sum}  {path}\n")).collect()
}

/// The paths in the tar archive at `path`, compressed or not.
///
/// # Panics
/// When `tar` cannot read it.
#[must_use]
pub fn listed(path: &Path) -> Vec<String> {
    let listed = layers::run(Command::new("tar").arg("-taf").arg(path));
    String::from_utf8_lossy(&listed).lines().map(|line| line.trim_start_matches("./").to_owned()).collect()
}

/// The lowest layer: a system that runs, a file to be changed, one to be deleted, and data.
fn base(dir: &Path, data_mib: usize) {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).expect("a directory");
    let busybox = Command::new("sh").args(["-c", "command -v busybox"]).output().expect("a shell");
    let busybox = String::from_utf8(busybox.stdout).expect("a path");
    fs::copy(busybox.trim(), bin.join("busybox")).expect("busybox is installed");
    PROGRAMS.iter().for_each(|program| symlink("busybox", bin.join(program)).expect("a link"));
    for name in ["dev", "proc", "sys", "tmp", "root"] {
        fs::create_dir_all(dir.join(name)).expect("a directory");
    }
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("a mode");
    write(&dir.join("etc/passwd"), b"root:x:0:0:root:/root:/bin/sh\n");
    write(&dir.join(VERSION), b"1\n");
    write(&dir.join(DOOMED), b"to be deleted\n");
    data(&dir.join("data/base"), 100, data_mib);
}

/// Files of a MiB that do not compress and follow from `seed`.
fn data(dir: &Path, seed: u64, count: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut piece = vec![0; PIECE_BYTES];
    for i in 0..count {
        random.fill(&mut piece);
        write(&dir.join(format!("{i:03}.bin")), &piece);
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("below the tree")).expect("a directory");
    fs::write(path, bytes).expect("room on the disk");
}

impl Step {
    /// Does to the tree at `to` what the layer does.
    fn apply(&self, to: &Path) {
        layers::run(Command::new("cp").arg("-a").arg(self.added.join(".")).arg(to));
        if let Some(removed) = self.removed {
            fs::remove_file(to.join(removed)).expect("a file of a lower layer");
        }
    }
}

/// An image's blobs, config last, and its manifest.
fn image(made: &[Made], command: &[&str]) -> (Vec<Layer>, Vec<u8>) {
    let diff_ids: Vec<&str> = made.iter().map(|one| one.diff_id.as_str()).collect();
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "config": {"Env": ["PATH=/bin"], "Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = Layer::new(config.to_string().into_bytes(), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<Value> = made.iter().map(|one| descriptor(&one.layer)).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(&config), "layers": layers});
    let blobs = made.iter().map(|one| one.layer.clone()).chain([config]).collect();
    (blobs, manifest.to_string().into_bytes())
}

/// Puts an image of these layers under `tag`, whose containers run `command` unless told otherwise; answers its reference.
pub fn push(repository: &Repository, tag: &str, made: &[Made], command: &[&str]) -> String {
    let (blobs, manifest) = image(made, command);
    for blob in blobs {
        repository.blob(&blob.bytes);
    }
    repository.manifest(tag, MANIFEST, &manifest);
    repository.reference(tag)
}

/// Writes such an image as an OCI layout, under the name `tag`.
///
/// # Panics
/// When it cannot be written.
pub fn layout(dir: &Path, tag: &str, made: &[Made], command: &[&str]) {
    let (blobs, manifest) = image(made, command);
    for bytes in blobs.iter().map(|blob| blob.bytes.as_slice()).chain([manifest.as_slice()]) {
        let digest = Digest::of(bytes).to_string();
        write(&dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:")), bytes);
    }
    let mut entry = descriptor(&Layer::new(manifest, MANIFEST));
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    write(&dir.join("oci-layout"), br#"{"imageLayoutVersion": "1.0.0"}"#);
    write(&dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string().as_bytes());
}

fn descriptor(layer: &Layer) -> Value {
    let digest = Digest::of(&layer.bytes).to_string();
    let mut json = json!({"mediaType": layer.media_type, "digest": digest, "size": layer.bytes.len()});
    if !layer.annotations.is_empty() {
        json["annotations"] = json!(layer.annotations);
    }
    json
}

/// An image that keeps a pod's namespaces, in `registry`'s repository `pause`: busybox asleep. Answers its reference.
#[must_use]
pub fn sandbox(repository: &Repository) -> String {
    let work = Workdir::new();
    let dir = work.dir("sandbox");
    base(&dir, 0);
    let made = Step { added: dir, removed: None }.packed(0, &work);
    push(repository, "1", &[made], &["sleep", "1000000000"])
}

impl Made {
    fn new(layer: Layer, diff_id: &Digest) -> Self {
        Self { layer, diff_id: diff_id.to_string() }
    }

    /// The digest of the layer's blob.
    #[must_use]
    pub fn digest(&self) -> String {
        Digest::of(&self.layer.bytes).to_string()
    }

    /// The size of the layer's blob in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.layer.bytes.len() as u64
    }
}

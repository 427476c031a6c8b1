//! The device of an ordinary layer, made in this process and written out to a file, so that the kernel and `fsck.erofs` can judge it;
//! and what a directory tree holds to the last attribute.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::Read as _,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Hasher, Located, Purpose, ReadFuture, faults::Memory};
use penstock_image::{BuildError, Built, Image, LayerBuilder, Merged, MergedBuilder, OciLayer, OpenError};
use penstock_layers::{Config, Index, TarReader, Unpacked};

/// Bytes of an archive or device handled at once.
const PIECE_BYTES: usize = 1 << 20;

/// One blob in a file.
#[derive(Debug)]
struct OnDisk(File);

impl OnDisk {
    fn bytes(&self, range: ByteRange) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(range.len()).expect("small")];
        self.0.read_exact_at(&mut bytes, range.start()).expect("the range lies in the blob");
        bytes
    }
}

impl BlobSource for OnDisk {
    fn locate(&self, _: &Blob, range: ByteRange) -> Option<Located> {
        Some(Located::in_memory(self.bytes(range).into()))
    }

    fn read(&self, _: Blob, range: ByteRange, _: Purpose) -> ReadFuture<'_> {
        Box::pin(std::future::ready(Ok(self.bytes(range).into())))
    }

    fn reject(&self, _: &Blob, _: ByteRange) {}
}

/// The name and size of a file's bytes.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn blob_of(path: &Path) -> Blob {
    let (mut file, mut hasher, mut size_bytes) = (File::open(path).expect("a file"), Hasher::new(), 0);
    let mut buf = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut buf).expect("it can be read") {
            0 => return Blob { digest: hasher.finish(), size_bytes },
            read => {
                hasher.update(&buf[..read]);
                size_bytes += read as u64;
            }
        }
    }
}

/// Makes the table of the layer whose uncompressed archive is the file, in `maps`.
///
/// # Panics
/// When the archive is malformed, or no device can be made of it.
#[must_use]
pub fn build(archive: &Path, maps: &Path) -> (OciLayer, Built) {
    let blob = blob_of(archive);
    let layer = OciLayer { blob, contents: blob.digest };
    let mut builder = LayerBuilder::new(layer, maps);
    let (mut reader, mut file) = (TarReader::new(), File::open(archive).expect("a file"));
    let mut buf = vec![0; PIECE_BYTES];
    loop {
        let read = file.read(&mut buf).expect("it can be read");
        if read == 0 {
            break;
        }
        let taken = reader.push(&buf[..read], |entry| builder.add(&entry).expect("a layer that can be laid out"));
        taken.expect("a sound archive");
    }
    reader.finish().expect("a whole archive");
    (layer, builder.finish().expect("room for the table"))
}

/// Writes the device of the layer whose uncompressed archive is the file to `device`, sparse.
///
/// # Panics
/// When anything fails.
pub fn materialise(archive: &Path, maps: &Path, device: &Path) -> Built {
    let (layer, built) = build(archive, maps);
    let source = Arc::new(OnDisk(File::open(archive).expect("a file"))) as _;
    write_out(Image::open_layer(layer, maps, "not at all".into()), &source, device);
    built
}

/// As [`materialise`], of the layer as registries hold it (gzip, zstd or plain): by way of a layer index, whose entries make the device and
/// whose frames are decoded for each read.
///
/// # Panics
/// When anything fails.
pub fn materialise_packed(packed: &Path, diff_id: Digest, maps: &Path, device: &Path) -> Built {
    let index = maps.join("index");
    let mut builder = penstock_layers::Builder::create(&index, blob_of(packed), diff_id).expect("an index");
    let (mut file, mut buf) = (File::open(packed).expect("a file"), vec![0; PIECE_BYTES]);
    loop {
        match file.read(&mut buf).expect("it can be read") {
            0 => break,
            read => builder.push(&buf[..read]).expect("a sound layer"),
        }
    }
    builder.finish().expect("the layer that was named");
    let index = Index::open(File::open(&index).expect("a file")).expect("the index that was just made");
    let layer = OciLayer { blob: index.layer().unpacked, contents: diff_id };
    let mut builder = LayerBuilder::new(layer, maps);
    for entry in index.entries().expect("entries") {
        builder.add(&entry.expect("a sound entry")).expect("a layer that can be laid out");
    }
    let built = builder.finish().expect("room for the table");
    let below = Arc::new(OnDisk(File::open(packed).expect("a file")));
    let config = Config { deadline: Duration::from_secs(60), decodes: 2, recent_bytes: 8 << 20 };
    let unpacked = Unpacked::new(below, config, &mut prometheus_client::registry::Registry::default());
    let registered = unpacked.register(index);
    write_out(Image::open_layer(layer, maps, "not at all".into()), &(unpacked as _), device);
    drop(registered);
    built
}

/// As [`materialise`], of the merge of the layers with these archives, the lowest first.
///
/// # Panics
/// When anything fails.
pub fn materialise_merged(archives: &[Vec<u8>], maps: &Path, device: &Path) {
    let memory = Memory::new(archives.iter().map(|archive| Bytes::copy_from_slice(archive)).collect());
    let blobs = (0..archives.len()).map(|nth| memory.blob(nth));
    let layers: Vec<OciLayer> = blobs.map(|blob| OciLayer { blob, contents: blob.digest }).collect();
    let merged = Merged::new(&layers);
    let mut builder = MergedBuilder::new(&merged, maps);
    for archive in archives {
        let entries = || {
            let mut found = Vec::new();
            TarReader::new().push(archive, |entry| found.push(Ok(entry))).expect("a sound archive");
            Ok::<_, BuildError>(found.into_iter())
        };
        builder.layer(entries).expect("a layer that can be laid out");
    }
    builder.finish().expect("room for the table");
    write_out(Image::open_merged(&merged, maps, "not at all".into()), &(memory as _), device);
}

/// Writes a device to a file, reading it from its first byte to its last.
fn write_out(
    opening: impl Future<Output = Result<Option<Image>, OpenError>>,
    source: &Arc<dyn BlobSource>,
    device: &Path,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let image = runtime.block_on(opening).expect("a readable table").expect("the table that was just made");
    let out = File::create(device).expect("a file");
    out.set_len(image.size_bytes()).expect("a sparse file");
    let mut at = 0;
    while at < image.size_bytes() {
        let len = (image.size_bytes() - at).min(PIECE_BYTES as u64);
        let range = ByteRange::at(at, len).expect("not empty");
        let bytes = runtime.block_on(penstock_image::read(&image, source, range)).expect("device bytes");
        for (block, nth) in bytes.chunks(4096).zip(0_u64..) {
            if block.iter().any(|&byte| byte != 0) {
                out.write_all_at(block, at + 4096 * nth).expect("room on the disk");
            }
        }
        at += len;
    }
}

/// Mounts a file read-only; [`crate::workdir::Workdir`] undoes it.
///
/// # Panics
/// When the kernel refuses it.
pub fn mount(device: &Path, dir: &Path) {
    fs::create_dir_all(dir).expect("a directory");
    run(Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(device).arg(dir));
}

/// Mounts layers over each other, the lowest first, as containerd does; [`crate::workdir::Workdir`] undoes it.
///
/// # Panics
/// When the kernel refuses it.
pub fn overlay(layers: &[PathBuf], dir: &Path) {
    fs::create_dir_all(dir).expect("a directory");
    let lowers: Vec<_> = layers.iter().rev().map(|layer| layer.to_str().expect("UTF-8")).collect();
    let options = format!("ro,lowerdir={}", lowers.join(":"));
    run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(dir));
}

/// Runs a command that must succeed; answers what it printed.
///
/// # Panics
/// When it fails.
pub fn run(command: &mut Command) -> Vec<u8> {
    let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}: {}: {stdout}{stderr}", out.status);
    out.stdout
}

/// Everything about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// d, f, l, c, b or p.
    pub kind: char,
    /// Permission bits, suid and the like included.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Last modification in seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Names; of a directory left out where a caller says so.
    pub links: u64,
    /// The first path with the same inode: which paths are one file.
    pub same_as: Vec<u8>,
    /// Device number; 0 for others.
    pub device: u64,
    /// Size of a regular file or link; 0 for others.
    pub size_bytes: u64,
    /// A symbolic link's target.
    pub target: Vec<u8>,
    /// The digest of a regular file.
    pub content: Option<Digest>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Facts by path, the root being empty.
pub type Tree = BTreeMap<Vec<u8>, Facts>;

/// Reads a tree to the last attribute.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn facts(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let full = root.join(&path);
        let facts = one(&full);
        if facts.kind == 'd' {
            let entries = fs::read_dir(&full).expect("a directory").map(|entry| entry.expect("an entry").file_name());
            waiting.extend(entries.map(|name| path.join(name)));
        }
        tree.insert(path.as_os_str().as_bytes().to_vec(), facts);
    }
    let mut firsts = HashMap::new();
    for (path, facts) in &mut tree {
        let inode = fs::symlink_metadata(root.join(Path::new(std::ffi::OsStr::from_bytes(path)))).expect("it is there");
        // Layers of an overlay may be several file systems.
        let first = firsts.entry((inode.dev(), inode.ino())).or_insert_with(|| path.clone());
        facts.same_as.clone_from(first);
    }
    tree
}

fn one(path: &Path) -> Facts {
    let meta = fs::symlink_metadata(path).expect("it is there");
    let kind = meta.file_type();
    let kinds = [
        (kind.is_dir(), 'd'),
        (kind.is_file(), 'f'),
        (kind.is_symlink(), 'l'),
        (kind.is_char_device(), 'c'),
        (kind.is_block_device(), 'b'),
        (kind.is_fifo(), 'p'),
    ];
    let kind = kinds.iter().find(|(is, _)| *is).expect("a known kind").1;
    let target = if kind == 'l' { fs::read_link(path).expect("a link").into_os_string() } else { Default::default() };
    Facts {
        kind,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        links: meta.nlink(),
        same_as: Vec::new(),
        device: if matches!(kind, 'c' | 'b') { meta.rdev() } else { 0 },
        size_bytes: if matches!(kind, 'f' | 'l') { meta.len() } else { 0 },
        target: target.as_bytes().to_vec(),
        content: (kind == 'f').then(|| blob_of(path).digest),
        xattrs: xattrs(path),
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 64 << 10];
    let len =
        rustix::fs::llistxattr(path, &mut names[..]).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let value = |name: &[u8]| {
        let mut value = vec![0_u8; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("an attribute that is listed");
        value.truncate(len);
        value
    };
    let names = names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// The tree without what file systems count in their own way (names of directories), and without the time of the root: layers need not say anything of
/// that, and then it is when it was unpacked.
#[must_use]
pub fn comparable(mut tree: Tree) -> Tree {
    tree.values_mut().filter(|facts| facts.kind == 'd').for_each(|facts| facts.links = 0);
    tree.entry(Vec::new()).and_modify(|root| root.mtime = (0, 0));
    tree
}

/// Compares two trees and shows the first differences in words.
///
/// # Panics
/// When they differ.
pub fn assert_same(found: &Tree, expected: &Tree) {
    let paths = found.keys().chain(expected.keys()).collect::<std::collections::BTreeSet<_>>();
    let differs = |path: &&&Vec<u8>| found.get(**path) != expected.get(**path);
    let different: Vec<String> = paths
        .iter()
        .filter(differs)
        .take(10)
        .map(|path| {
            let name = String::from_utf8_lossy(path);
            format!("/{name}:\n  found    {:?}\n  expected {:?}", found.get(*path), expected.get(*path))
        })
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

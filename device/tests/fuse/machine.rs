//! What the tests need of the machine: disks, mounts, and finding out what can be done here.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "support of tests: a failure is theirs, and a skip is told on the standard output"
)]

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
};

use bytes::Bytes;
use penstock_blob::{BlobSource, Digest, faults::Memory};
use penstock_device::{Config, Content, Device, DeviceError, Metrics, Remains, Transport};
use penstock_image::{Image, Layer};
use prometheus_client::registry::Registry;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Says why a test, which has its thread's name, is skipped or cut short; `false` for the caller to return.
fn skip(reason: &str) -> bool {
    println!("skipped: {}: {reason}", std::thread::current().name().unwrap_or("?"));
    false
}

/// Whether root can mount a FUSE file system here, and is who we are.
pub(crate) fn can_mount_fuse() -> bool {
    if !rustix::process::geteuid().is_root() {
        return skip("not root");
    }
    can_open_fuse()
}

/// Whether we can have a FUSE connection.
pub(crate) fn can_open_fuse() -> bool {
    let open = fs::File::options().read(true).write(true).open("/dev/fuse");
    open.is_ok() || skip("/dev/fuse cannot be opened")
}

/// Whether this kernel mounts EROFS from plain files: since 6.12, when built so.
pub(crate) fn can_mount_files() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let known = fs::read_to_string("/proc/filesystems").unwrap().lines().any(|line| line.ends_with("\terofs"));
    (version >= (6, 12) && known) || skip("no EROFS from files in this kernel")
}

/// Whether there are loop devices.
pub(crate) fn can_loop() -> bool {
    Path::new("/dev/loop-control").exists() || skip("no loop devices")
}

/// Whether a program is installed.
pub(crate) fn tool(name: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
    found.is_ok_and(|output| output.status.success()) || skip(&format!("{name} is not installed"))
}

/// A raw disk.
pub(crate) struct Disk {
    pub(crate) bytes: Bytes,
}

impl Disk {
    /// Incompressible bytes that the image crate takes for EROFS.
    pub(crate) fn random(len: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next).flatten().take(len).collect();
        bytes[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
        Self { bytes: bytes.into() }
    }
}

/// A directory with files of several sizes.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    pub(crate) fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(tree.path().join("a/b")).unwrap();
        let random = Disk::random(5 << 20).bytes;
        for (name, len) in [("empty", 0), ("one", 1), ("a/small", 5000), ("a/b/page", 4096), ("a/large", 5 << 20)] {
            fs::write(tree.path().join(name), &random[..len]).unwrap();
        }
        for i in 0..200 {
            fs::write(tree.path().join(format!("a/b/f{i}")), &random[i * 1000..][..i * 37]).unwrap();
        }
        tree
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("tree")
    }

    /// The disk that `make` writes from the tree.
    pub(crate) fn disk(&self, make: impl FnOnce(&Path, &Path) -> std::io::Result<ExitStatus>) -> Disk {
        let image = self.0.path().join("image");
        assert!(make(&self.path(), &image).unwrap().success());
        let bytes = fs::read(&image).unwrap().into();
        fs::remove_file(image).unwrap();
        Disk { bytes }
    }
}

/// Where a bench keeps its files.
pub(crate) enum Place {
    Ours(tempfile::TempDir),
    Theirs(PathBuf),
}

impl Place {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Ours(dir) => dir.path(),
            Self::Theirs(dir) => dir,
        }
    }
}

/// Everything a device stands on.
pub(crate) struct Bench {
    pub(crate) dir: Place,
    pub(crate) memory: Arc<Memory>,
    metrics: Metrics,
}

impl Bench {
    pub(crate) fn new(disk: &Disk) -> Self {
        let memory = Memory::new(vec![disk.bytes.clone()]);
        let metrics = Metrics::new(&mut Registry::default());
        Self { dir: Place::Ours(tempfile::tempdir().unwrap()), memory, metrics }
    }

    /// In a directory of another process.
    pub(crate) fn beside(dir: PathBuf, disk: &Disk) -> Self {
        Self { dir: Place::Theirs(dir), ..Self::new(disk) }
    }

    pub(crate) async fn start(&self, id: &str, source: Arc<dyn BlobSource>) -> Device {
        self.try_start(id, source).await.unwrap()
    }

    pub(crate) async fn try_start(&self, id: &str, source: Arc<dyn BlobSource>) -> Result<Device, DeviceError> {
        let (content, config) = self.content(source).await;
        Device::start(id.parse().unwrap(), content, Transport::Fuse, &config, &self.metrics).await
    }

    /// Takes over a device of a process that ended, or that left it.
    pub(crate) async fn resume(
        &self,
        id: &str,
        source: Arc<dyn BlobSource>,
        connection: OwnedFd,
    ) -> Result<Device, DeviceError> {
        let (content, config) = self.content(source).await;
        Device::resume(id.parse().unwrap(), content, Remains::Fuse { connection }, &config, &self.metrics).await
    }

    async fn content(&self, source: Arc<dyn BlobSource>) -> (Content, Config) {
        let layer = Layer { blob: self.memory.blob(0), media_type: String::new(), annotations: BTreeMap::new() };
        let maps = self.dir.path().join("maps");
        let image = Image::open(vec![layer], self.memory.clone(), &maps).await.unwrap();
        let config = Config { fuse_dir: self.dir.path().join("fuse"), ..Config::default() };
        (Content { image: Arc::new(image), source }, config)
    }
}

/// A mounted file system.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn new(source: &Path, dir: &Path, file_system: &str, options: &str) -> Self {
        Self::with(source, dir, (file_system, options), MountFlags::RDONLY)
    }

    /// One that can be written.
    pub(crate) fn writable(source: &Path, dir: &Path, file_system: &str) -> Self {
        Self::with(source, dir, (file_system, ""), MountFlags::empty())
    }

    /// The kernel's control files of FUSE connections.
    pub(crate) fn fuse_control(dir: &Path) -> Self {
        Self::with(Path::new("none"), dir, ("fusectl", ""), MountFlags::empty())
    }

    fn with(source: &Path, dir: &Path, (file_system, options): (&str, &str), flags: MountFlags) -> Self {
        fs::create_dir_all(dir).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount(source, dir, file_system, flags, options.as_c_str())
            .unwrap_or_else(|error| panic!("mounting {} as {file_system}: {error}", source.display()));
        Self(dir.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::empty()).unwrap();
    }
}

/// The digest of every file under `root`, by its path there.
pub(crate) fn hashes(root: &Path) -> BTreeMap<PathBuf, Digest> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if path.ends_with("lost+found") => {}
                true => todo.push(path),
                false => {
                    let digest = Digest::of(&fs::read(&path).unwrap());
                    found.insert(path.strip_prefix(root).unwrap().to_owned(), digest);
                }
            }
        }
    }
    assert!(found.len() > 200, "{} files", found.len());
    found
}

/// All bytes of a file.
pub(crate) fn read_all(path: &Path) -> Bytes {
    fs::read(path).unwrap().into()
}

/// The number under which the kernel lists the connection of the FUSE mount on `dir`: its device number.
pub(crate) fn connection_of(dir: &Path) -> u64 {
    fs::metadata(dir).unwrap().dev()
}

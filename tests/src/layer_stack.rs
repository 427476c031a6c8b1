//! Random stacks of layers: as archives, and unpacked by the rules of the OCI image specification ("Layer Filesystem Changeset").
//!
//! Each layer lists the directories of its paths, as builders of images do. Names are few, so that layers change, hide and bury what is below them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{PermissionsExt as _, lchown, symlink},
    path::Path,
};

use fastrand::Rng;
use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, mkfifoat, utimensat};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const MOST_DEEP: usize = 3;
const MOST_CHANGES: usize = 16;

/// What a path of a layer is.
#[derive(Debug, Clone)]
enum What {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    Fifo,
    /// One more name of this file of the layer.
    Again(String),
}

#[derive(Debug, Clone)]
struct Member {
    what: What,
    mode: u32,
    owner: u32,
    seconds: i64,
}

/// One layer: its paths, those that it hides, and the directories of which it shows nothing that is below. The root's path is empty.
#[derive(Debug)]
pub struct Layer {
    members: BTreeMap<String, Member>,
    hidden: BTreeSet<String>,
    opaque: BTreeSet<String>,
    /// Whether whiteouts come before all else in the archive.
    whiteouts_first: bool,
}

fn member(random: &mut Rng, what: What) -> Member {
    // No set-id bits: who copies the expected tree might lose them.
    Member { what, mode: random.u32(0..0o1000), owner: random.u32(0..70_000), seconds: random.i64(0..1 << 33) }
}

/// A path without what cannot be there, such as a slash at either end.
fn path(random: &mut Rng) -> String {
    let depth = random.usize(1..=MOST_DEEP);
    (0..depth).map(|_| NAMES[random.usize(0..NAMES.len())]).collect::<Vec<_>>().join("/")
}

/// The directories above a path, the root left out.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

impl Layer {
    /// A random layer.
    #[must_use]
    pub fn random(random: &mut Rng) -> Self {
        let root = member(random, What::Directory);
        let mut layer = Self {
            members: [(String::new(), root)].into(),
            hidden: BTreeSet::new(),
            opaque: BTreeSet::new(),
            whiteouts_first: random.bool(),
        };
        for _ in 0..random.usize(0..MOST_CHANGES) {
            layer.change(random);
        }
        layer
    }

    fn is_directory(&self, path: &str) -> bool {
        self.members.get(path).is_none_or(|member| matches!(member.what, What::Directory))
    }

    /// One change more, unless it contradicts those before.
    fn change(&mut self, random: &mut Rng) {
        let path = path(random);
        if !above(&path).all(|dir| self.is_directory(dir)) {
            return;
        }
        let what = match random.u8(0..16) {
            0..=2 => What::File(random.alphanumeric().to_string().repeat(random.usize(0..300)).into()),
            3 => What::File(vec![random.u8(1..); random.usize(4000..9000)]),
            4 => What::Symlink(path.replace('/', "/../")),
            5 => What::Symlink(NAMES[random.usize(0..NAMES.len())].to_owned()),
            6 => What::Fifo,
            7..=9 => What::Directory,
            10 => match self.members.iter().find(|(_, member)| matches!(member.what, What::File(_))) {
                Some((first, _)) => What::Again(first.clone()),
                None => return,
            },
            11..=13 => {
                self.list(random, above(&path));
                self.hidden.insert(path);
                return;
            }
            _ => {
                if self.is_directory(&path) {
                    self.list(random, above(&path).chain([path.as_str()]));
                    self.opaque.insert(path);
                }
                return;
            }
        };
        self.list(random, above(&path));
        let member = member(random, what);
        self.members.entry(path).or_insert(member);
    }

    fn list<'a>(&mut self, random: &mut Rng, dirs: impl Iterator<Item = &'a str>) {
        for dir in dirs {
            let directory = member(random, What::Directory);
            self.members.entry(dir.to_owned()).or_insert(directory);
        }
    }

    /// The layer as a tar archive.
    #[must_use]
    pub fn archive(&self) -> Vec<u8> {
        let (mut whiteouts, mut rest) = (Vec::new(), Vec::new());
        let marker = Member { what: What::File(Vec::new()), mode: 0o644, owner: 0, seconds: 0 };
        let in_dir = |dir: &str, name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
        for path in &self.hidden {
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
            entry(&mut whiteouts, &in_dir(dir, &format!(".wh.{name}")), &marker);
        }
        for dir in &self.opaque {
            entry(&mut whiteouts, &in_dir(dir, ".wh..wh..opq"), &marker);
        }
        let is_again = |member: &Member| matches!(member.what, What::Again(_));
        for again in [false, true] {
            for (path, member) in self.members.iter().filter(|(_, member)| is_again(member) == again) {
                entry(&mut rest, if path.is_empty() { "./" } else { path }, member);
            }
        }
        let parts = if self.whiteouts_first { [whiteouts, rest] } else { [rest, whiteouts] };
        let mut archive = parts.concat();
        archive.resize(archive.len() + 1024, 0);
        archive
    }

    /// Leaves out whiteouts in directories of which nothing is in `root`, what the layers below make together: they hide nothing, and overlayfs shows them
    /// as names of nothing, here as in what containerd unpacks.
    pub fn without_idle_whiteouts(mut self, root: &Path) -> Self {
        let is_new =
            |dir: &str| !is_directory(&root.join(dir)) || self.hidden.contains(dir) || self.opaque.contains(dir);
        let idle: Vec<String> = self.hidden.iter().filter(|path| above(path).any(is_new)).cloned().collect();
        self.hidden.retain(|path| !idle.contains(path));
        self
    }

    /// Unpacks it over what is in `root`.
    ///
    /// # Panics
    /// When that fails.
    pub fn unpack(&self, root: &Path) {
        // Whiteouts concern the layers below alone. A directory of this layer that is none below hides nothing there.
        let is_below = |path: &str| above(path).all(|dir| is_directory(&root.join(dir)));
        for path in self.hidden.iter().filter(|path| is_below(path)) {
            remove(&root.join(path));
        }
        for dir in self.opaque.iter().filter(|dir| is_below(dir) && is_directory(&root.join(dir))) {
            for entry in fs::read_dir(root.join(dir)).expect("a directory") {
                remove(&entry.expect("an entry").path());
            }
        }
        for (path, member) in self.members.iter().filter(|(_, member)| !matches!(member.what, What::Again(_))) {
            let at = root.join(path);
            if !(matches!(member.what, What::Directory) && is_directory(&at)) {
                remove(&at);
                make(&at, &member.what);
            }
            if !matches!(member.what, What::Directory) {
                describe(&at, member);
            }
        }
        for (path, member) in &self.members {
            if let What::Again(first) = &member.what {
                remove(&root.join(path));
                fs::hard_link(root.join(first), root.join(path)).expect("a file");
            }
        }
        // Last, and what is in a directory before it: all of the above has changed its time.
        for (path, member) in self.members.iter().rev().filter(|(_, member)| matches!(member.what, What::Directory)) {
            describe(&root.join(path), member);
        }
    }
}

/// Whether it is there and a directory, and no link to one.
fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).expect("root may"),
        Ok(_) => fs::remove_file(path).expect("root may"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}: {error}", path.display()),
    }
}

fn make(path: &Path, what: &What) {
    let made = match what {
        What::Directory => fs::create_dir(path),
        What::File(bytes) => fs::write(path, bytes),
        What::Symlink(target) => symlink(target, path),
        What::Fifo => mkfifoat(CWD, path, Mode::empty()).map_err(Into::into),
        What::Again(_) => Ok(()),
    };
    made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn describe(path: &Path, member: &Member) {
    lchown(path, Some(member.owner), Some(member.owner)).expect("root may");
    if !matches!(member.what, What::Symlink(_)) {
        fs::set_permissions(path, fs::Permissions::from_mode(member.mode)).expect("root may");
    }
    let time = Timespec { tv_sec: member.seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("root may");
}

/// A member of a ustar archive.
fn entry(out: &mut Vec<u8>, path: &str, member: &Member) {
    let (flag, link, data) = match &member.what {
        What::Directory => (b'5', "", &[][..]),
        What::File(bytes) => (b'0', "", &bytes[..]),
        What::Symlink(target) => (b'2', target.as_str(), &[][..]),
        What::Fifo => (b'6', "", &[][..]),
        What::Again(first) => (b'1', first.as_str(), &[][..]),
    };
    // A link has these permissions wherever it is unpacked.
    let mode = if flag == b'2' { 0o777 } else { member.mode };
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, format!("{:07o}", member.owner).as_bytes());
    put(116, format!("{:07o}", member.owner).as_bytes());
    put(124, format!("{:011o}", data.len()).as_bytes());
    put(136, format!("{:011o}", member.seconds).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&block);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

//! What runs inside the VM: one scenario against a real `/dev/ublkbN`, by the same harness as on the host.
//!
//! `guest SCENARIO PENSTOCK`; `guest read DIR STOP` is what the scenarios run in a container of their own. A panic is a failure and gives a non-zero status. `tests/vm.rs` boots the VM and names the scenario.

#[path = "guest/containers.rs"]
mod containers;
#[path = "guest/restart.rs"]
mod restart;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, FileTypeExt as _},
    path::{Path, PathBuf},
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use penstock_registry::{Config, Fault};
use penstock_tests::{
    agent::{Agent, Place},
    fixture,
    loopback::Loopback,
    matrix, tree,
    workdir::Workdir,
    workspace::text,
};
use serde_json::Value;

/// The fixtures behind our own registry, and an agent that uses ublk.
struct Bench {
    agent: Agent,
    place: Place,
    registry: Loopback,
    work: Workdir,
}

fn bench(penstock: &Path) -> Bench {
    let work = Workdir::new();
    let registry = Loopback::start(Config::default());
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let place = Place::of(penstock, work.path()).with(&["--cache-chunk-size", "64KiB"]);
    Bench { agent: place.start(), place, registry, work }
}

impl Bench {
    fn reference(&self, tag: &str) -> String {
        format!("{}/fixtures/overlaybd:{tag}", self.registry.host())
    }

    fn attach(&self, tag: &str, arguments: &[&str]) -> Attached {
        let device = self.agent.attach(&self.reference(tag), &[&["--transport", "ublk"], arguments].concat());
        assert_eq!((text(&device["transport"]), text(&device["state"])), ("ublk", "attached"), "{device}");
        Attached::of(&device)
    }

    /// A mount point, and an image mounted on it.
    fn mounted(&self, tag: &str) -> (PathBuf, Attached) {
        let dir = self.work.dir(&format!("mnt-{tag}"));
        let attached = self.attach(tag, &["--mount", dir.to_str().expect("UTF-8")]);
        (dir, attached)
    }

    fn detach(&self, attached: &Attached, arguments: &[&str]) {
        let _ = self.agent.run(&[&["detach", attached.id.as_str()], arguments].concat()).ok();
        assert!(!attached.path.exists(), "{} is gone", attached.path.display());
        let control = attached.path.to_string_lossy().replace("ublkb", "ublkc");
        assert!(!Path::new(&control).exists(), "{control} is gone");
    }
}

struct Attached {
    id: String,
    path: PathBuf,
}

impl Attached {
    fn of(device: &Value) -> Self {
        let path = PathBuf::from(text(&device["device_path"]));
        assert!(path.starts_with("/dev") && path.to_string_lossy().contains("ublkb"), "{}", path.display());
        assert!(fs::metadata(&path).expect("the device").file_type().is_block_device());
        Self { id: text(&device["id"]).to_owned(), path }
    }

    /// A property of the block device, from /sys/block.
    fn property(&self, name: &str) -> String {
        let node = self.path.file_name().expect("a name").to_string_lossy().into_owned();
        let value = fs::read_to_string(Path::new("/sys/block").join(node).join(name));
        value.expect("a property of the device").trim().to_owned()
    }
}

/// Reads past the page cache: each thread and each offset asks the device.
fn read_direct(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // O_DIRECT, Linux on x86-64 and others alike: asm-generic/fcntl.h.
    let file = File::options().read(true).custom_flags(0o40000).open(path)?;
    // A buffer aligned to its own size by taking what is needed of a larger one.
    let mut buf = vec![0_u8; 3 * BLOCK];
    let start = buf.as_ptr().align_offset(BLOCK);
    file.read_exact_at(&mut buf[start..start + BLOCK], offset)?;
    Ok(buf[start..start + BLOCK].to_vec())
}

const BLOCK: usize = 4096;

fn whole(penstock: &Path) {
    let bench = bench(penstock);
    let attached = bench.attach("obd-lz4", &[]);
    assert_eq!(attached.property("ro"), "1");
    assert_eq!(attached.property("size"), (fixture::DEVICE_BYTES / 512).to_string());
    // The kernel lets root open it for writing, and refuses the write.
    let written = File::options().write(true).open(&attached.path).and_then(|file| file.write_all_at(&[0; BLOCK], 0));
    assert_eq!(written.expect_err("the device is read-only").kind(), io::ErrorKind::PermissionDenied);
    // Before it is mounted: ext4 counts free blocks anew in the device's page cache, where a reader then sees them.
    let device = File::open(&attached.path).expect("the device");
    assert_eq!(tree::sha256(device).expect("every byte can be read"), fixture::DEVICE_SHA256);
    bench.detach(&attached, &[]);
    let (mount, attached) = bench.mounted("obd-lz4");
    tree::assert_same(&tree::read(&mount).expect("every file"), &fixture::tree());
    bench.detach(&attached, &[]);
    assert!(bench.agent.stop().success());
}

fn two_at_once(penstock: &Path) {
    let bench = bench(penstock);
    let mounted = [bench.mounted("obd-lz4"), bench.mounted("obd-zstd16")];
    assert_ne!(mounted[0].1.path, mounted[1].1.path);
    let readers = mounted.each_ref().map(|(mount, _)| {
        let mount = mount.clone();
        thread::spawn(move || tree::assert_same(&tree::read(&mount).expect("every file"), &fixture::tree()))
    });
    for reader in readers {
        reader.join().expect("the tree is right");
    }
    bench.detach(&mounted[0].1, &[]);
    assert!(mounted[1].1.path.exists(), "the other one stays");
    tree::assert_same(&tree::read(&mounted[1].0).expect("every file"), &fixture::tree());
    let _ = bench.agent.run(&["detach", "--all"]).ok();
    assert!(!mounted[1].1.path.exists());
}

/// Offsets of the device with data of the image, by reading it whole once through a second attach of the same bytes.
fn busy_offsets(bench: &Bench) -> Vec<(u64, Vec<u8>)> {
    let attached = bench.attach("obd-zstd16", &[]);
    let device = File::open(&attached.path).expect("the device");
    let mut found = Vec::new();
    let mut buf = vec![0; 1 << 20];
    // The image's data lies in the first part of the disk.
    for piece in 0..96_u64 {
        device.read_exact_at(&mut buf, piece << 20).expect("a read");
        let busy = buf.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|&byte| byte != 0));
        found.extend(busy.map(|(i, block)| ((piece << 20) + (i * BLOCK) as u64, block.to_vec())));
    }
    drop(device);
    bench.detach(&attached, &[]);
    assert!(found.len() > 500, "only {} blocks with data", found.len());
    found
}

fn others_do_not_stall(penstock: &Path) {
    let bench = bench(penstock);
    let blocks = busy_offsets(&bench);
    let attached = bench.attach("obd-lz4", &[]);
    // Longer than the 2 s of a slow fetch: without an end until it is released.
    bench.registry.fail(Fault::Stall);
    let (at, truth) = blocks[blocks.len() / 2].clone();
    let path = attached.path.clone();
    let late = thread::spawn(move || read_direct(&path, at));
    bench.registry.until_stalled(1);
    // As many readers as it takes to meet every queue; each reads far away from the stalled chunk.
    let readers: Vec<_> = (0..4_usize)
        .map(|i| {
            let (path, blocks) = (attached.path.clone(), far_from(&blocks, at));
            thread::spawn(move || {
                for (at, truth) in blocks.iter().skip(i * 7).step_by(41).take(32) {
                    assert!(read_direct(&path, *at).expect("others go on") == *truth, "wrong bytes at {at}");
                }
            })
        })
        .collect();
    for reader in readers {
        reader.join().expect("others go on");
    }
    assert!(!late.is_finished(), "the stalled read waits");
    bench.registry.release();
    assert!(late.join().expect("no panic").expect("it is served in the end") == truth);
    bench.detach(&attached, &[]);
}

/// The first and the last quarter of the blocks: compressed, they lie in other chunks than the middle.
fn far_from(blocks: &[(u64, Vec<u8>)], at: u64) -> Vec<(u64, Vec<u8>)> {
    let quarter = blocks.len() / 4;
    let far = blocks[..quarter].iter().chain(&blocks[blocks.len() - quarter..]);
    far.filter(|(offset, _)| *offset != at).cloned().collect()
}

/// Reads all over the device until a read fails, and returns that error; tells `done` of each read that was served.
fn read_until_error(path: &Path, mut at: u64, done: &SyncSender<()>) -> io::Error {
    loop {
        at = (at + 7919 * BLOCK as u64) % fixture::DEVICE_BYTES;
        match read_direct(path, at) {
            // Whether somebody still counts is of no interest here.
            Ok(_) => drop(done.try_send(())),
            Err(error) => return error,
        }
    }
}

fn detached_under_load(penstock: &Path) {
    let bench = bench(penstock);
    let attached = bench.attach("obd-lz4", &[]);
    // One fetch does not end: a request is outstanding when the device goes.
    bench.registry.fail(Fault::Stall);
    let path = attached.path.clone();
    let stuck = thread::spawn(move || (0..16_384).find_map(|block| read_direct(&path, block * BLOCK as u64).err()));
    bench.registry.until_stalled(1);
    let (sender, served) = sync_channel(1);
    let readers: Vec<JoinHandle<io::Error>> = (0..4)
        .map(|i| {
            let (path, sender) = (attached.path.clone(), sender.clone());
            thread::spawn(move || read_until_error(&path, i * 1_000_003 * BLOCK as u64, &sender))
        })
        .collect();
    for _ in 0..50 {
        served.recv().expect("readers go on");
    }
    bench.detach(&attached, &["--force"]);
    for reader in readers {
        let _ = reader.join().expect("readers of a removed device get an error, and end");
    }
    assert!(stuck.join().expect("no panic").is_some(), "the outstanding read was answered with an error");
    bench.registry.release();
    let (mount, attached) = bench.mounted("obd-lz4");
    tree::assert_same(&tree::read(&mount).expect("every file"), &fixture::tree());
    bench.detach(&attached, &[]);
}

fn failure_matrix(penstock: &Path) {
    // Emulated CPUs need more time for the faults that pass.
    let mut stand = matrix::Stand::new(penstock, "ublk", "4s");
    for row in matrix::rows() {
        row.run(&mut stand);
    }
}

/// Gets the `penstock` program; panics when the scenario fails.
type Scenario = fn(&Path);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, read, root, stop] = &arguments[..]
        && read == "read"
    {
        return restart::read(Path::new(root), Path::new(stop));
    }
    let [_, scenario, penstock] = &arguments[..] else { panic!("guest SCENARIO PENSTOCK") };
    let scenarios: [(&str, Scenario); 9] = [
        ("whole", whole),
        ("two-at-once", two_at_once),
        ("others-do-not-stall", others_do_not_stall),
        ("detached-under-load", detached_under_load),
        ("outlives-its-agent", restart::outlives),
        ("before-a-reboot", restart::before_reboot),
        ("after-a-reboot", restart::after_reboot),
        ("failure-matrix", failure_matrix),
        ("containers", containers::start),
    ];
    let (_, run) = scenarios.iter().find(|(name, _)| name == scenario).expect("a scenario");
    run(Path::new(penstock));
    println!("guest: {scenario}: done");
}

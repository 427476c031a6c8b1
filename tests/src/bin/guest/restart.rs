//! Devices of `/dev/ublkbN` outlive their agent: killed, upgraded, and after a reboot without a registry.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use penstock_registry::Fault;
use penstock_tests::{
    agent::{Agent, Place},
    fixture,
    process::Process,
    tree,
    workdir::Workdir,
    workspace::text,
};

use super::{Attached, BLOCK, Bench, bench, read_direct};

/// Longest wait for a pass of the reader: it decodes 20 MB in an emulated machine.
const PASS: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(50);

/// What a container does: an overlayfs over the image, in a mount namespace of its own, read again and again.
struct Container {
    process: Process,
    stop: PathBuf,
}

impl Container {
    fn start(lower: &Path, work: &Workdir) -> Self {
        let dirs = ["upper", "work", "merged"].map(|name| work.dir(&format!("container-{name}")));
        let stop = work.join("container-stop");
        let script = "mount -t overlay overlay -o \"lowerdir=$1,upperdir=$2,workdir=$3\" \"$4\" && exec \"$5\" read \"$4\" \"$6\"";
        let guest = std::env::current_exe().expect("this program");
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, "sh"]).arg(lower).args(&dirs).arg(guest).arg(&stop);
        Self { process: Process::start("container", &mut command), stop }
    }

    fn passes(&self) -> usize {
        passes(&self.process.lines())
    }

    /// Waits for so many more passes over the whole tree, each without an error and with the right bytes.
    fn until_passed(&self, more: usize) {
        let wanted = self.passes() + more;
        let passed = self.process.wait_for(PASS, TICK, |lines| (passes(lines) >= wanted).then_some(()));
        assert!(
            passed.is_some(),
            "the container came to pass {} of {wanted}: {:?}",
            self.passes(),
            self.process.lines()
        );
    }

    fn end(mut self) {
        fs::write(&self.stop, "").expect("told to stop");
        let status = self.process.wait(PASS).expect("the container ends");
        assert!(status.success(), "{:?}", self.process.lines());
    }
}

fn passes(lines: &[String]) -> usize {
    lines.iter().filter(|line| line.starts_with("pass")).count()
}

/// `guest read DIR STOP`: what runs in the container. Every pass asks the device for everything again.
pub(super) fn read(root: &Path, stop: &Path) {
    let truth = fixture::tree();
    while !stop.exists() {
        tree::assert_same(&tree::read(root).expect("every file can be read"), &truth);
        println!("pass");
        fs::write("/proc/sys/vm/drop_caches", "3").expect("the page cache is dropped");
    }
}

/// The device is the same one, taken over by this agent.
fn taken_over(agent: &Agent, before: &Attached) {
    let device = &agent.get("/v1/devices")[0];
    assert_eq!((text(&device["id"]), text(&device["state"])), (before.id.as_str(), "attached"), "{device}");
    assert_eq!(Path::new(text(&device["device_path"])), before.path);
    let events = agent.get("/v1/events").to_string();
    assert!(events.contains("device.resumed"), "{events}");
}

/// Killed with reads in flight that wait for the registry, killed between them, upgraded to another binary: the container sees nothing.
pub(super) fn outlives(penstock: &Path) {
    let bench = bench(penstock);
    let (mount, attached) = bench.mounted("obd-lz4");
    let Bench { agent, place, registry, work } = bench;
    // Files are not cached yet: the container waits for the registry, through the agent that dies.
    registry.fail(Fault::Stall);
    let container = Container::start(&mount, &work);
    registry.until_stalled(1);
    agent.kill();
    let agent = place.start();
    taken_over(&agent, &attached);
    assert_eq!(container.passes(), 0, "the container waits");
    registry.release();
    container.until_passed(1);
    // Everything is cached now; the registry is not needed again.
    registry.set_down(true);
    agent.kill();
    let agent = place.start();
    taken_over(&agent, &attached);
    container.until_passed(2);
    // An upgrade: the old agent leaves in order, another binary comes.
    assert!(agent.stop().success());
    let upgrade = work.join("penstock-upgraded");
    fs::copy(penstock, &upgrade).expect("a copy");
    let place = Place::of(&upgrade, work.path()).with(&["--cache-chunk-size", "64KiB"]);
    let agent = place.start();
    taken_over(&agent, &attached);
    container.until_passed(2);
    container.end();
    let _ = agent.run(&["detach", "--all"]).ok();
    assert!(!attached.path.exists(), "{} is gone", attached.path.display());
    assert!(agent.stop().success());
}

/// The disk that stays over a reboot.
const STATE: &str = "/state";
/// What of the device was read, and so cached, before the reboot, in blocks.
const READ_BLOCKS: u64 = 512;

fn place(penstock: &Path) -> Place {
    let flags = ["--cache-chunk-size", "64KiB", "--fetch-deadline", "2s"];
    Place::of(penstock, Path::new(STATE)).with_socket(Path::new("/run/penstock.sock")).with(&flags)
}

/// Attaches, reads the beginning, and loses power, so to speak: the VM ends without unmounting anything.
pub(super) fn before_reboot(penstock: &Path) {
    let registry = penstock_tests::loopback::Loopback::start(penstock_registry::Config::default());
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let agent = place(penstock).start();
    let device = agent.attach(&format!("{}/fixtures/overlaybd:obd-lz4", registry.host()), &["--transport", "ublk"]);
    let attached = Attached::of(&device);
    let truth = fs::File::create(format!("{STATE}/truth")).expect("a file");
    for block in 0..READ_BLOCKS {
        let at = block * BLOCK as u64;
        truth.write_all_at(&read_direct(&attached.path, at).expect("a read"), at).expect("room");
    }
    truth.sync_all().expect("synced");
    // In order, so that what is cached is on the disk; the attachment stays recorded.
    assert!(agent.stop().success());
}

/// No registry, no credentials, another boot: the device is there, what was read is readable, the rest is an error in time.
pub(super) fn after_reboot(penstock: &Path) {
    let agent = place(penstock).start();
    let device = &agent.get("/v1/devices")[0];
    assert_eq!(text(&device["state"]), "attached", "{device}");
    let attached = Attached::of(device);
    let truth = fs::File::open(format!("{STATE}/truth")).expect("the truth");
    for block in 0..READ_BLOCKS {
        let at = block * BLOCK as u64;
        let mut expected = vec![0; BLOCK];
        truth.read_exact_at(&mut expected, at).expect("the truth");
        let found = read_direct(&attached.path, at).unwrap_or_else(|error| panic!("cached block {block}: {error}"));
        assert!(found == expected, "wrong bytes in block {block}");
    }
    let refused = (READ_BLOCKS..16_384).find_map(|block| read_direct(&attached.path, block * BLOCK as u64).err());
    assert!(refused.is_some(), "something was never fetched, and cannot be");
    let events = agent.get("/v1/events").to_string();
    assert!(events.contains("device.policy_eio"), "{events}");
    let _ = agent.run(&["detach", "--all"]).ok();
    assert!(!attached.path.exists(), "{} is gone", attached.path.display());
    assert!(agent.stop().success());
}

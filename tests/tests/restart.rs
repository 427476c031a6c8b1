//! The agent dies, is replaced, or is told to end, while what it attached through FUSE is being read.
//!
//! Who keeps the connections meanwhile: `penstock supervise`, and a stand-in for systemd that speaks sd_notify(3).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use penstock_registry::Config;
use penstock_tests::{
    agent::{Place, binary},
    disk,
    loopback::Loopback,
    readers::Readers,
    require,
    skip::{filesystem, fuse, program, root},
    supervisor::Supervisor,
    tree,
    workdir::Workdir,
    workspace::text,
};
use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::Signal,
};
use serde_json::Value;

/// How often the agent is killed.
const KILLS: usize = 12;
/// Bytes of the disk: more than is fetched while the test runs, so that every kill meets fetches.
const BALLAST_BYTES: u64 = 96 << 20;

/// No mounts at all.
const NONE: [PathBuf; 0] = [];

/// An EROFS disk in a registry, and the tree that it was made of.
struct Bench {
    // In the order of dropping: who reads the disk goes before who serves it.
    place: Place,
    registry: Loopback,
    reference: String,
    disk: PathBuf,
    tree: PathBuf,
    work: Workdir,
}

impl Bench {
    fn new(ballast_bytes: u64) -> Self {
        // Slow enough that fetches are under way at any moment.
        let shaped = Config {
            latency: Duration::from_millis(3),
            bandwidth_bytes_per_second: Some(64 << 20),
            ..Config::default()
        };
        let (work, registry) = (Workdir::new(), Loopback::start(shaped));
        let tree = work.dir("tree");
        disk::fill(&tree, 11, ballast_bytes);
        let disk = disk::erofs(&tree, work.join("image.erofs"));
        let (reference, _) = registry.disk("disks/restart", "1", &disk);
        let place = Place::new(work.path()).with(&["--cache-chunk-size", "64KiB", "--device-transport", "fuse"]);
        Self { place, registry, reference, disk, tree, work }
    }

    fn mount_point(&self) -> PathBuf {
        self.work.dir("mnt").canonicalize().expect("a directory")
    }

    /// Files of the mount with their truth, and the FUSE file with its own.
    fn pairs(&self, device: &Value) -> Vec<(PathBuf, PathBuf)> {
        let ballast = |n: usize| PathBuf::from(format!("ballast/{n:03}.bin"));
        let mut pairs: Vec<_> =
            (0..4).map(|n| (self.mount_point().join(ballast(n)), self.tree.join(ballast(n)))).collect();
        let file = PathBuf::from(text(&device["device_path"]));
        pairs.extend([(file.clone(), self.disk.clone()), (file, self.disk.clone())]);
        pairs
    }

    fn attach(&self, run: impl Fn(&[&str]) -> Value) -> Value {
        let dir = self.mount_point();
        run(&["attach", &self.reference, "--output", "json", "--mount", dir.to_str().expect("UTF-8")])
    }
}

fn cannot() -> Option<String> {
    root().or_else(fuse).or_else(|| program("mkfs.erofs")).or_else(|| filesystem("erofs"))
}

fn says(log: &[String], words: &str) -> usize {
    log.iter().filter(|line| line.contains(words)).count()
}

#[test]
fn readers_of_a_mount_do_not_notice_that_the_agent_is_killed_again_and_again() {
    require!(cannot());
    let bench = Bench::new(BALLAST_BYTES);
    let supervisor = Supervisor::start(&bench.place, binary());
    let device = bench.attach(|arguments| supervisor.run(arguments).json());
    assert_eq!(device["outlives_agent"], true);
    let readers = Readers::start(&bench.pairs(&device), 1);
    for _ in 0..KILLS {
        readers.until_read(30);
        let killed = supervisor.kill_agent();
        supervisor.until_other_than(Some(killed));
        readers.until_read(30);
    }
    let reads = readers.join();
    let found = tree::sha256(File::open(text(&device["device_path"])).expect("the file")).expect("every byte");
    assert_eq!(found, tree::sha256(File::open(&bench.disk).expect("the disk")).expect("every byte"));
    assert_eq!(says(&supervisor.log(), "is taken over from an earlier agent"), KILLS, "each agent took it over");
    println!("{reads} reads over {KILLS} kills; the supervisor takes {} KiB", supervisor.resident_bytes() >> 10);
    assert!(supervisor.stop().success());
    assert_eq!(bench.work.mounts(), NONE, "nobody comes after it: everything is taken away");
}

#[test]
fn an_upgrade_leaves_mounts_and_their_readers_alone() {
    require!(cannot());
    let bench = Bench::new(32 << 20);
    let program = bench.work.join("penstock");
    fs::copy(binary(), &program).expect("room for a program");
    let supervisor = Supervisor::start(&bench.place, &program);
    let device = bench.attach(|arguments| supervisor.run(arguments).json());
    let readers = Readers::start(&bench.pairs(&device), 2);
    readers.until_read(50);

    let old = supervisor.agent().expect("an agent");
    let next = bench.work.join("penstock.next");
    fs::copy(binary(), &next).expect("room for a program");
    let installed = fs::metadata(&next).expect("a file").ino();
    fs::rename(&next, &program).expect("the program can be replaced");
    supervisor.signal(Signal::HUP);
    let new = supervisor.until_other_than(Some(old));
    readers.until_read(50);
    readers.join();

    let runs = fs::metadata(format!("/proc/{}/exe", new.as_raw_nonzero())).expect("it lives").ino();
    assert_eq!(runs, installed, "the new program runs");
    assert_eq!(says(&supervisor.log(), "is left for the next agent"), 1);
    assert_eq!(supervisor.run(&["list", "--output", "json"]).json()[0]["id"], device["id"]);
    assert!(supervisor.stop().success());
}

#[test]
fn when_the_supervisor_dies_its_agent_ends_in_order_and_the_next_one_attaches_again() {
    require!(cannot());
    let bench = Bench::new(8 << 20);
    let supervisor = Supervisor::start(&bench.place, binary());
    let device = bench.attach(|arguments| supervisor.run(arguments).json());
    supervisor.kill();
    assert_eq!(bench.work.mounts(), NONE, "nobody would serve them");

    let agent = bench.place.start();
    let again = agent.device(text(&device["id"]));
    assert_eq!((text(&again["state"]), &again["mount_point"]), ("attached", &device["mount_point"]));
    assert_eq!(again["outlives_agent"], false);
    let name = "usr/bin/tool";
    assert_eq!(fs::read(bench.mount_point().join(name)).expect("a file"), fs::read(bench.tree.join(name)).expect("it"));
    assert!(agent.stop().success());
    assert_eq!(bench.work.mounts(), NONE, "without a keeper SIGTERM takes them away");
}

#[test]
fn settings_that_an_agent_refuses_end_the_supervisor_too() {
    let work = Workdir::new();
    let place = Place::new(work.path());
    let refused = place.run(&["supervise", "--", "--cache-cap", "much"]);
    assert_eq!(refused.code, Some(1));
    assert_eq!(says(std::slice::from_ref(&refused.stderr), "--cache-cap"), 1, "{}", refused.stderr);
    assert!(
        refused.stderr.lines().last().is_some_and(|line| line.contains("before it was ready")),
        "{}",
        refused.stderr
    );
}

/// What the stand-in for systemd keeps, by name.
type Kept = Arc<Mutex<BTreeMap<String, OwnedFd>>>;

/// A message of ours: once it is taken, so is all that was sent before it.
const MARK: &[u8] = b"MARK";

/// A service manager's notification socket, and its descriptor store.
struct Manager {
    kept: Kept,
    said: Arc<Mutex<Vec<String>>>,
    path: PathBuf,
    /// Hears each [`MARK`] that was taken.
    marks: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Manager {
    fn new(dir: &Path) -> Self {
        let path = dir.join("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let (kept, said) = (Kept::default(), Arc::<Mutex<Vec<String>>>::default());
        let (to, (marked, marks)) = ((kept.clone(), said.clone()), sync_channel(1));
        let thread = thread::spawn(move || while take(&socket, (&to.0, &to.1), &marked).expect("a message") {});
        Self { kept, said, path, marks, thread: Some(thread) }
    }

    /// Waits until all is taken that was sent.
    fn catch_up(&self) {
        UnixDatagram::unbound().and_then(|socket| socket.send_to(MARK, &self.path)).expect("it listens");
        self.marks.recv().expect("it takes what was sent");
    }

    /// A command that runs the agent of `place` as systemd would, with what is kept; at most one descriptor.
    fn command(&self, place: &Place) -> Command {
        self.catch_up();
        let kept = self.kept.lock();
        let mut command = Command::new("bash");
        let mut script = "exec \"$0\" agent \"$@\"".to_owned();
        if let Some((name, fd)) = kept.iter().next() {
            assert_eq!(kept.len(), 1, "more than this stand-in can give");
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).expect("an open descriptor");
            script = format!("LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name} {script} 3<&{}", fd.as_raw_fd());
        }
        command.arg("-c").arg(script).arg(binary()).args(place.flags_of_agent());
        command.env("NOTIFY_SOCKET", &self.path).env("FDSTORE", "8").env("WATCHDOG_USEC", "200000");
        command
    }

    fn names(&self) -> Vec<String> {
        self.catch_up();
        self.kept.lock().keys().cloned().collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let ended = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"END", &self.path));
        if ended.is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Takes one message as systemd does; false at the end.
fn take(
    socket: &UnixDatagram,
    (kept, said): (&Kept, &Mutex<Vec<String>>),
    marked: &SyncSender<()>,
) -> io::Result<bool> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let (mut bytes, mut control) = ([0; 4096], RecvAncillaryBuffer::new(&mut space));
    let got = recvmsg(socket.as_fd(), &mut [io::IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(given) = message {
            fds.extend(given);
        }
    }
    let text = String::from_utf8_lossy(&bytes[..got.bytes]).into_owned();
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).map(str::to_owned);
    match (text.lines().next(), name) {
        (Some("END"), _) => return Ok(false),
        (Some(line), _) if line.as_bytes() == MARK => drop(marked.send(())),
        (Some("FDSTORE=1"), Some(name)) => kept.lock().extend(fds.pop().map(|fd| (name, fd))),
        (Some("FDSTOREREMOVE=1"), Some(name)) => drop(kept.lock().remove(&name)),
        // The barrier's descriptor closes with `fds`.
        _ => {}
    }
    said.lock().push(text);
    Ok(true)
}

#[test]
fn systemds_descriptor_store_carries_mounts_over_a_kill_and_over_a_restart() {
    require!(cannot(), program("bash"));
    let bench = Bench::new(16 << 20);
    let manager = Manager::new(bench.work.path());
    let agent = bench.place.start_by(&mut manager.command(&bench.place));
    let device = bench.attach(|arguments| agent.run(arguments).json());
    let name = format!("fuse.{}", text(&device["id"]));
    assert_eq!(manager.names(), std::slice::from_ref(&name), "it is kept before the attach is answered");
    let readers = Readers::start(&bench.pairs(&device)[..1], 3);
    readers.until_read(20);
    agent.kill();

    let agent = bench.place.start_by(&mut manager.command(&bench.place));
    readers.until_read(20);
    assert!(agent.stop().success(), "SIGTERM leaves it");
    assert_eq!(manager.names(), [name]);

    let agent = bench.place.start_by(&mut manager.command(&bench.place));
    readers.until_read(20);
    readers.join();
    let _ = agent.run(&["detach", text(&device["id"])]).ok();
    assert!(agent.stop().success());
    assert_eq!(bench.work.mounts(), NONE);
    assert!(manager.names().is_empty(), "what is detached is not kept");
    let said = manager.said.lock();
    for word in ["READY=1\nSTATUS=ready", "STOPPING=1\nSTATUS=draining", "WATCHDOG=1", "BARRIER=1"] {
        assert!(said.iter().any(|text| text.starts_with(word)), "{word} was not said: {said:?}");
    }
}

#[test]
fn on_stop_detach_and_ctrl_c_leave_nothing_even_when_it_could_be_kept() {
    require!(cannot(), program("bash"));
    for (flags, signal) in [(&["--on-stop", "detach"][..], Signal::TERM), (&[][..], Signal::INT)] {
        let bench = Bench::new(1 << 20);
        let (manager, place) = (Manager::new(bench.work.path()), bench.place.clone().with(flags));
        let agent = place.start_by(&mut manager.command(&place));
        let _ = bench.attach(|arguments| agent.run(arguments).json());
        agent.signal(signal);
        assert!(agent.ended().success());
        assert_eq!(bench.work.mounts(), NONE);
        assert!(manager.names().is_empty());
    }
}

#[test]
fn after_a_reboot_without_a_network_what_is_cached_is_read_and_the_rest_fails_in_time() {
    require!(cannot());
    let bench = Bench::new(24 << 20);
    let supervisor = Supervisor::start(&bench.place, binary());
    let device = bench.attach(|arguments| supervisor.run(arguments).json());
    let read = |name: &str| fs::read(bench.mount_point().join(name));
    let truth = |name: &str| fs::read(bench.tree.join(name)).expect("the truth");
    for name in ["usr/bin/tool", "etc/small.conf", "usr/lib/deep/er/lib.so"] {
        assert!(read(name).expect("the registry is there") == truth(name));
    }
    // As a power cut leaves a node: no process, no mount, the registry out of reach.
    supervisor.crash();
    let Bench { place, registry, work, tree, .. } = bench;
    drop(registry);

    let agent = place.with(&["--fetch-deadline", "1s"]).start();
    let again = agent.device(text(&device["id"]));
    assert_eq!(text(&again["state"]), "attached", "{again}");
    let mounted = work.join("mnt");
    for name in ["usr/bin/tool", "etc/small.conf", "usr/lib/deep/er/lib.so"] {
        assert!(fs::read(mounted.join(name)).expect("it is cached") == fs::read(tree.join(name)).expect("the truth"));
    }
    let lost = fs::read(mounted.join("ballast/002.bin")).expect_err("it is not cached");
    assert_eq!(lost.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert!(agent.stop().success());
}

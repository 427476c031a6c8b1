//! `penstock keep`: mounts through FUSE outlive agents that somebody else starts, as the kubelet does.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use penstock_registry::{Config, Fault};
use penstock_tests::{
    agent::{Agent, Place, binary},
    disk,
    http::Request,
    loopback::Loopback,
    process::Process,
    require,
    skip::{fuse, program, root},
    workdir::Workdir,
    workspace::text,
};
use rustix::process::Signal;

/// It is up within a moment; a machine under load takes more.
const START: Duration = Duration::from_secs(60);
/// How often something is looked at while nothing is logged.
const TICK: Duration = Duration::from_millis(20);

fn cannot() -> Option<String> {
    root().or_else(fuse).or_else(|| program("mkfs.erofs"))
}

/// A keeper that listens on a socket.
fn keeper(socket: &Path) -> Process {
    let mut command = Command::new(binary());
    command.env_clear().args(["keep", "--socket"]).arg(socket);
    let process = Process::start("penstock keep", &mut command);
    until(&process, "descriptors are kept");
    process
}

fn until(process: &Process, words: &str) {
    let said = |lines: &[String]| lines.iter().any(|line| line.contains(words)).then_some(());
    assert!(process.wait_for(START, TICK, said).is_some(), "{words}");
}

/// A node with an image, whose agents are started with a keeper.
struct Node {
    place: Place,
    registry: Loopback,
    reference: String,
    bytes: Vec<u8>,
    socket: PathBuf,
    _work: Workdir,
}

impl Node {
    fn new() -> Self {
        let (work, registry) = (Workdir::new(), Loopback::start(Config::default()));
        let tree = work.dir("tree");
        disk::fill(&tree, 7, 16 << 20);
        let disk = disk::erofs(&tree, work.join("image.erofs"));
        let (reference, _) = registry.disk("disks/kept", "1", &disk);
        let place = Place::new(work.path()).with(&["--device-transport", "fuse"]);
        let bytes = fs::read(disk).expect("the disk");
        Self { place, registry, reference, bytes, socket: work.join("keeper.sock"), _work: work }
    }

    /// The command by which somebody starts the agent.
    fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("PENSTOCK_KEEPER", &self.socket);
        command.arg("agent").args(self.place.flags_of_agent());
        command
    }

    fn start(&self) -> Agent {
        self.place.start_by(&mut self.command())
    }

    /// Whether a piece of the device, asked for past the page cache of earlier opens, is right.
    fn is_right(&self, device: &Path, offset: usize) -> bool {
        let mut piece = vec![0; 4096];
        File::open(device).and_then(|file| file.read_exact_at(&mut piece, offset as u64)).expect("it is answered");
        piece == self.bytes[offset..offset + 4096]
    }
}

#[test]
fn a_reader_waits_for_the_next_agent_and_one_keeper_serves_them_all() {
    require!(cannot());
    let node = Node::new();
    let keeper = keeper(&node.socket);
    let mode = fs::metadata(&node.socket).expect("its socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "whoever has it could take the devices");
    let mut agent = node.start();
    let device = agent.attach(&node.reference, &[]);
    assert_eq!(device["outlives_agent"], true);
    let path = PathBuf::from(text(&device["device_path"]));
    for round in 0..3 {
        // A fetch that is not answered is under way when the agent dies.
        node.registry.fail(Fault::Stall);
        let offset = (round + 1) * (4 << 20);
        agent = thread::scope(|scope| {
            let reader = scope.spawn(|| node.is_right(&path, offset));
            node.registry.until_stalled(1);
            agent.kill();
            node.registry.release();
            let next = node.start();
            assert!(reader.join().expect("the reader"), "round {round}");
            next
        });
        let answer = agent.http(&Request::get("/v1/events")).expect("the agent answers").text();
        assert!(answer.contains("device.resumed") && !answer.contains("device.lost"), "{answer}");
    }
    let came = keeper.lines().iter().filter(|line| line.contains("an agent has come")).count();
    assert_eq!(came, 4, "one after the other");
    assert!(agent.stop().success());
}

#[test]
fn an_agent_whose_keeper_is_not_there_says_so_and_does_not_start() {
    let work = Workdir::new();
    let place = Place::new(work.path());
    let mut command = Command::new(binary());
    command.env_clear().env("PENSTOCK_KEEPER", work.join("none.sock")).arg("agent").args(place.flags_of_agent());
    let out = command.output().expect("the agent starts");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && said.contains("start `penstock keep` first"), "{said}");
}

#[test]
fn two_keepers_do_not_share_a_socket_and_one_that_is_told_to_ends() {
    let work = Workdir::new();
    let socket = work.join("keeper.sock");
    let mut first = keeper(&socket);
    let second = Command::new(binary()).env_clear().args(["keep", "--socket"]).arg(&socket).output();
    let second = second.expect("it starts");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("answers on"), "{said}");
    first.signal(Signal::TERM);
    assert!(first.wait(START).is_some_and(|status| status.success()));
    assert!(!socket.exists(), "it takes its socket with it");
}

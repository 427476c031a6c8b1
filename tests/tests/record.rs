//! `penstock record` as an operator types it: what a command read on one node is fetched ahead of it on another.

use std::{fmt::Write as _, fs, process::Command};

use penstock_blob::Digest;
use penstock_registry::{Config, Kind};
use penstock_tests::{
    agent::Place,
    disk,
    loopback::Loopback,
    require,
    skip::{filesystem, fuse, loop_devices, program, root},
    workdir::Workdir,
    workspace::text,
};

/// Files that the command reads, with as many beside them that it does not.
const FILES: usize = 48;
/// Bytes of each: a chunk, but not in line with the chunks.
const FILE_BYTES: usize = 64 << 10;

fn cannot() -> Option<String> {
    let programs = ["busybox", "mkfs.erofs", "chroot"];
    let missing = root().or_else(fuse).or_else(loop_devices).or_else(|| filesystem("erofs"));
    missing.or_else(|| programs.into_iter().find_map(program))
}

/// An image of busybox and data, what is run in it, and what that says.
struct Image {
    reference: String,
    digest: Digest,
    command: Vec<String>,
    says: String,
}

impl Image {
    fn new(work: &Workdir, registry: &Loopback) -> Self {
        let tree = work.dir("tree");
        let busybox = Command::new("sh").args(["-c", "command -v busybox"]).output().expect("a shell");
        let busybox = String::from_utf8(busybox.stdout).expect("a path");
        for dir in ["bin", "data"] {
            fs::create_dir(tree.join(dir)).expect("a directory");
        }
        fs::copy(busybox.trim(), tree.join("bin/busybox")).expect("busybox is installed");
        let mut random = fastrand::Rng::with_seed(7);
        let mut files: Vec<(String, Digest)> = Vec::new();
        for nth in 0..2 * FILES {
            let mut bytes = vec![0; FILE_BYTES];
            random.fill(&mut bytes);
            let path = format!("data/{nth:03}");
            fs::write(tree.join(&path), &bytes).expect("room on the disk");
            files.push((path, Digest::of(&bytes)));
        }
        // Every other one, in no order.
        let mut files: Vec<_> = files.into_iter().step_by(2).collect();
        random.shuffle(&mut files);
        let (reference, blob) = registry.disk("team/app", "1", &disk::erofs(&tree, work.join("disk")));
        let words = ["/bin/busybox", "sha256sum"].map(str::to_owned);
        let command = words.into_iter().chain(files.iter().map(|(path, _)| path.clone())).collect();
        let mut says = String::new();
        for (path, digest) in &files {
            writeln!(says, "{}  {path}", digest.to_string().trim_start_matches("sha256:")).expect("a string grows");
        }
        Self { reference, digest: blob.digest, command, says }
    }

    /// Requests for its bytes so far.
    fn asked(&self, registry: &Loopback) -> usize {
        registry.requests().iter().filter(|r| r.kind == Kind::Blob && r.digest == Some(self.digest)).count()
    }
}

#[test]
fn what_a_command_read_on_one_node_is_fetched_ahead_of_it_on_another_in_few_requests() {
    require!(cannot());
    let (work, registry) = (Workdir::new(), Loopback::start(Config::default()));
    let image = Image::new(&work, &registry);
    let node = |name: &str| Place::new(&work.dir(name)).with(&["--cache-chunk-size", "64KiB"]);

    let first = node("first").start();
    let command: Vec<&str> = image.command.iter().map(String::as_str).collect();
    let record = ["record", &image.reference, "--push", "--output", "json", "--"];
    let ended = first.run(&[&record, &command[..]].concat());
    assert!(ended.stderr.contains(&image.says), "what the command prints goes to stderr: {}", ended.stderr);
    let recording = ended.json();
    assert!(
        recording["pushed"] == true && recording["bytes"].as_u64() >= Some((FILES * FILE_BYTES) as u64),
        "{recording}"
    );
    assert_eq!(first.get("/v1/devices").as_array().map(Vec::len), Some(0), "it detaches");
    let without = image.asked(&registry);
    assert!(without >= FILES, "{without} requests for {FILES} files apart");
    assert!(first.stop().success());

    let (second, mount) = (node("second").start(), work.dir("mount"));
    let device = second.attach(&image.reference, &["--transport", "fuse", "--mount", mount.to_str().expect("UTF-8")]);
    second.until_event("recording.replayed");
    let said = Command::new("chroot").arg(&mount).args(&command).output().expect("chroot runs");
    assert_eq!(String::from_utf8_lossy(&said.stdout), image.says);
    let with = image.asked(&registry) - without;
    assert!(with * 3 < without, "{with} requests with the recording, {without} without");
    let shown = second.device(text(&device["id"]));
    assert_eq!(shown["reading"]["recording_from"], "registry", "{shown}");
    assert_eq!(shown["reading"]["recording_bytes"], recording["bytes"], "{shown}");
    let _ = second.run(&["detach", text(&device["id"])]).ok();
}

#[test]
fn a_command_that_fails_is_recorded_all_the_same_and_its_failure_is_told() {
    require!(cannot());
    let (work, registry) = (Workdir::new(), Loopback::start(Config::default()));
    let image = Image::new(&work, &registry);
    let agent = Place::new(&work.dir("node")).start();
    let failing = ["/bin/busybox", "cat", "data/000", "no/such/file"];
    let ended = agent.run(&[&["record", &image.reference, "--"][..], &failing].concat());
    assert_ne!(ended.code, Some(0), "{}", ended.stdout);
    assert!(ended.stdout.contains("no (--push)"), "{}", ended.stdout);
    assert_eq!(agent.get("/v1/recordings").as_array().map(Vec::len), Some(1));
    assert_eq!(agent.get("/v1/devices").as_array().map(Vec::len), Some(0), "it detaches");
}

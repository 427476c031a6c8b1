//! What a person gets wrong: each a one-line error that says what to do, and an exit code that scripts can rely on.

use std::fs;

use penstock_registry::{Auth, Config, Credentials};
use penstock_tests::{
    agent::{Agent, Place},
    fixture,
    loopback::Loopback,
    push::Layer,
    require,
    skip::{fuse, program, root},
    workdir::Workdir,
};

struct Bench {
    registry: Loopback,
    agent: Agent,
    place: Place,
    work: Workdir,
}

fn bench(config: Config) -> Bench {
    let work = Workdir::new();
    let registry = Loopback::start(config);
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let place = Place::new(work.path());
    Bench { registry, agent: place.start(), place, work }
}

impl Bench {
    fn reference(&self, rest: &str) -> String {
        format!("{}/fixtures/overlaybd{rest}", self.registry.host())
    }

    /// The error line of an attach that must fail with this exit code; nothing may stay behind.
    fn refused(&self, reference: &str, code: i32) -> String {
        let ended = self.agent.run(&["attach", reference, "--transport", "fuse"]);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert_eq!(self.agent.get("/v1/devices").as_array().map(Vec::len), Some(0), "nothing is attached");
        ended.error_line()
    }
}

/// Whether the line holds every word: what is wrong, and what to do.
fn says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.to_lowercase().contains(&word.to_lowercase()), "{word:?} is not in: {line}");
    }
}

#[test]
fn an_ordinary_image_is_named_as_such() {
    let bench = bench(Config::default());
    // The start of a gzip file (RFC 1952) is all that tells.
    let gzip = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0; 5000]].concat();
    let layer = Layer::new(gzip, "application/vnd.oci.image.layer.v1.tar+gzip");
    let reference = bench.registry.image("ordinary/image", "1", &[layer]);
    says(&bench.refused(&reference, 1), &["gzip", "convert"]);
}

#[test]
fn a_blob_that_is_no_disk_is_named_as_such() {
    let bench = bench(Config::default());
    let reference = bench.registry.image("no/disk", "1", &[Layer::disk(vec![0x5a; 100_000])]);
    says(&bench.refused(&reference, 1), &["disk"]);
}

#[test]
fn a_missing_tag_is_named() {
    let bench = bench(Config::default());
    says(&bench.refused(&bench.reference(":no-such-tag"), 4), &["no-such-tag"]);
}

#[test]
fn a_wrong_digest_is_named() {
    let bench = bench(Config::default());
    let digest = format!("sha256:{}", "ab".repeat(32));
    says(&bench.refused(&bench.reference(&format!("@{digest}")), 4), &["abababab"]);
}

#[test]
fn a_reference_that_is_none_is_refused_before_anything_is_asked() {
    let bench = bench(Config::default());
    bench.registry.reset_counts();
    says(&bench.refused("Not A Reference!", 2), &["reference"]);
    assert_eq!(bench.registry.counts().requests, 0);
}

#[test]
fn refused_credentials_are_named_with_where_to_put_them() {
    let auth = Auth::Basic(Credentials::new("someone", "secret"));
    let bench = bench(Config { auth, ..Config::default() });
    says(&bench.refused(&bench.reference(":obd-lz4"), 1), &["login"]);
}

#[test]
fn a_registry_that_is_down_is_named() {
    let work = Workdir::new();
    let registry = Loopback::start(Config::default());
    let host = registry.host();
    registry.set_down(true);
    let agent = Place::new(work.path()).with(&["--fetch-deadline", "1s"]).start();
    let ended = agent.run(&["attach", &format!("{host}/some/image:1"), "--transport", "fuse"]);
    assert_eq!(ended.code, Some(6), "{ended:?}");
    says(&ended.error_line(), &[&host]);
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let bench = bench(Config::default());
    let ended = bench.agent.run(&["detach", "d99"]);
    assert_eq!(ended.code, Some(4), "{ended:?}");
    says(&ended.error_line(), &["d99", "penstock list"]);
}

#[test]
fn a_mount_directory_that_is_missing_is_named_and_nothing_is_attached() {
    require!(root(), fuse());
    let bench = bench(Config::default());
    let missing = bench.work.join("missing");
    let reference = bench.reference(":obd-lz4");
    let ended =
        bench.agent.run(&["attach", &reference, "--transport", "fuse", "--mount", missing.to_str().expect("UTF-8")]);
    says(&ended.error_line(), &["missing"]);
    assert_eq!(bench.agent.get("/v1/devices").as_array().map(Vec::len), Some(0));
}

#[test]
fn a_second_agent_on_the_same_state_is_refused() {
    let bench = bench(Config::default());
    let socket = bench.work.join("other.sock");
    let second = bench.place.clone().with_socket(&socket);
    says(&second.refused().stderr, &["another", "state"]);
    assert_eq!(bench.agent.run(&["list"]).code, Some(0), "the first goes on");
}

#[test]
fn a_second_agent_on_the_same_socket_is_refused() {
    let bench = bench(Config::default());
    let state = bench.work.join("other");
    let second = bench.place.clone().with_state(&state);
    says(&second.refused().stderr, &["another", "--socket"]);
    assert_eq!(bench.agent.run(&["list"]).code, Some(0), "the first goes on");
}

#[test]
fn a_dead_socket_is_named_with_how_to_start_an_agent() {
    let work = Workdir::new();
    let place = Place::new(work.path());
    let nobody = place.run(&["list"]);
    assert_eq!(nobody.code, Some(3), "{nobody:?}");
    says(&nobody.error_line(), &["penstock.sock", "penstock agent"]);
    // A socket file whose agent was killed: nobody listens.
    place.start().kill();
    assert!(place.socket().exists());
    let dead = place.run(&["list"]);
    assert_eq!(dead.code, Some(3), "{dead:?}");
    says(&dead.error_line(), &["penstock.sock", "penstock agent"]);
    assert!(place.start().stop().success(), "a left-over socket does not stop the next agent");
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let work = Workdir::new();
    let config = work.join("config.toml");
    fs::write(&config, "# a comment\n[cache]\ncap = \"1GiB\"\nchunksize = \"1MiB\"\n").expect("a file");
    let place = Place::new(work.path()).with(&["--config", config.to_str().expect("UTF-8")]);
    says(&place.refused().stderr, &["config.toml", "line 4", "chunksize"]);
}

/// A small file system of its own, so that it can be full.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(dir: std::path::PathBuf, size: &str) -> Self {
        let options = format!("size={size},mode=0700");
        let out = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&dir).output();
        let out = out.expect("mount starts");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Self(dir)
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("ballast")).expect("a file");
        let _ = std::io::copy(&mut std::io::repeat(1), &mut file);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_state_directory_is_named_at_the_start_and_bypassed_later() {
    require!(root(), fuse(), program("mount"));
    let work = Workdir::new();
    let small = SmallDisk::mount(work.dir("small"), "24m");
    let state = work.join("small/state");
    let place = Place::new(work.path()).with_state(&state);
    small.fill();
    let refused = place.refused();
    says(&refused.stderr, &["space"]);

    fs::remove_file(work.join("small/ballast")).expect("the ballast");
    let registry = Loopback::start(Config::default());
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let agent = place.start();
    let reference = format!("{}/fixtures/overlaybd:obd-lz4", registry.host());
    let device = agent.attach(&reference, &["--transport", "fuse"]);
    small.fill();
    let file = fs::File::open(penstock_tests::workspace::text(&device["device_path"])).expect("the device");
    let sha256 = penstock_tests::tree::sha256(file).expect("a full disk is no reason to fail a read");
    assert_eq!(sha256, fixture::DEVICE_SHA256);
    assert!(agent.get("/v1/cache")["bypasses"].as_u64().is_some_and(|count| count > 0));
}

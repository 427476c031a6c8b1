//! A registry that misbehaves, seen through the whole stack: the bytes are right or there is an error, and it heals by itself.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, sync::Arc, thread, time::Duration};

use penstock_registry::{Auth, Config, Credentials, Fault, Kind, Redirect, Rule, Target};
use penstock_tests::{
    agent::{Agent, Place},
    disk, fixture,
    http::Request,
    loopback::Loopback,
    push::Layer,
    require,
    skip::{fuse, program, root},
    tree,
    workdir::Workdir,
    workspace::text,
};
use serde_json::Value;

const FUSE: [&str; 2] = ["--transport", "fuse"];

fn cannot() -> Option<String> {
    root().or_else(fuse)
}

fn device_sha256(device: &Value) -> std::io::Result<String> {
    tree::sha256(File::open(text(&device["device_path"]))?)
}

/// The fixture's image behind a registry with this config, read whole while each rule meets a request.
fn heals(config: Config, rules: &[Rule]) {
    let (work, registry) = (Workdir::new(), Loopback::start(config));
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let reference = format!("{}/fixtures/overlaybd:obd-lz4", registry.host());
    let agent = Place::new(work.path()).with(&["--cache-chunk-size", "64KiB"]).start();
    let device = agent.attach(&reference, &FUSE);
    rules.iter().cloned().for_each(|rule| registry.fail(rule));
    assert_eq!(device_sha256(&device).expect("every byte can be read"), fixture::DEVICE_SHA256);
    assert_eq!(registry.pending_faults(), 0, "every fault met a request");
    assert_eq!(agent.device(text(&device["id"]))["stats"]["errors"], 0);
}

#[test]
fn errors_of_the_server_are_tried_again() {
    require!(cannot());
    heals(Config::default(), &[Fault::Status(500).times(2), Fault::Status(503).times(1)]);
}

#[test]
fn too_many_requests_are_tried_again_when_the_server_says() {
    require!(cannot());
    heals(Config::default(), &[Fault::TooMany { retry_after: Some(Duration::from_secs(1)) }.times(2)]);
}

#[test]
fn bodies_that_break_off_are_fetched_again() {
    require!(cannot());
    heals(Config::default(), &[Fault::ResetMidBody { after_bytes: 1000 }.times(2), Fault::ShortBody.times(2)]);
}

#[test]
fn answers_about_other_bytes_are_refused() {
    require!(cannot());
    heals(Config::default(), &[Fault::WrongContentRange.times(1), Fault::IgnoreRange.times(1)]);
}

#[test]
fn wrong_bytes_are_fetched_again() {
    require!(cannot());
    heals(Config::default(), &[Rule::from(Fault::WrongBytes).skip(3)]);
}

#[test]
fn wrong_bytes_are_never_served_however_many_come() {
    require!(cannot());
    let (work, registry) = (Workdir::new(), Loopback::start(Config::default()));
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let reference = format!("{}/fixtures/overlaybd:obd-lz4", registry.host());
    let agent = Place::new(work.path()).with(&["--cache-chunk-size", "64KiB"]).start();
    let device = agent.attach(&reference, &FUSE);
    registry.fail(Fault::WrongBytes.always());
    let error = device_sha256(&device).expect_err("no bytes can be trusted");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    registry.clear_faults();
    assert_eq!(device_sha256(&device).expect("it healed by itself"), fixture::DEVICE_SHA256);
}

#[test]
fn an_expired_token_is_renewed() {
    require!(cannot());
    let auth = Auth::Token { credentials: None, ttl: Duration::from_secs(600) };
    heals(Config { auth, ..Config::default() }, &[Fault::Unauthorized.times(1)]);
}

#[test]
fn an_expired_redirect_is_followed_anew() {
    require!(cannot());
    let redirect = Some(Redirect { ttl: Duration::from_secs(600), other_port: true });
    heals(Config { redirect, ..Config::default() }, &[Fault::ExpiredRedirect.times(2)]);
}

#[test]
fn credentials_of_dockers_config_are_used() {
    require!(cannot());
    let auth = Auth::Basic(Credentials::new("someone", "secret"));
    let (work, registry) = (Workdir::new(), Loopback::start(Config { auth, ..Config::default() }));
    registry.layout(&fixture::layout(), "private/overlaybd");
    // base64 of someone:secret
    let config = format!(r#"{{"auths": {{"{}": {{"auth": "c29tZW9uZTpzZWNyZXQ="}}}}}}"#, registry.host());
    std::fs::create_dir(work.join(".docker")).expect("a directory");
    std::fs::write(work.join(".docker/config.json"), config).expect("a file");
    let agent = Place::new(work.path()).start();
    let device = agent.attach(&format!("{}/private/overlaybd:obd-zstd16", registry.host()), &FUSE);
    assert_eq!(device_sha256(&device).expect("every byte can be read"), fixture::DEVICE_SHA256);
}

/// A disk of `ballast_bytes` and something, behind a registry of our own.
struct Disk {
    registry: Loopback,
    reference: String,
    bytes: Vec<u8>,
}

fn disk(work: &Workdir, ballast_bytes: u64) -> Disk {
    let registry = Loopback::start(Config::default());
    let tree = work.dir("tree");
    disk::fill(&tree, 5, ballast_bytes);
    let bytes = std::fs::read(disk::erofs(&tree, work.join("disk"))).expect("the disk");
    let reference = registry.image("disks/made-here", "1", &[Layer::disk(bytes.clone())]);
    Disk { registry, reference, bytes }
}

/// Reads `len` bytes at `offset` past the page cache of earlier reads: each call opens the device anew.
fn read_at(device: &Path, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut buf = vec![0; len];
    File::open(device)?.read_exact_at(&mut buf, offset)?;
    Ok(buf)
}

fn attach(agent: &Agent, reference: &str) -> std::path::PathBuf {
    text(&agent.attach(reference, &FUSE)["device_path"]).into()
}

/// What a readiness probe is told, which is content in either case.
fn readiness(agent: &Agent) -> String {
    let answer = agent.http(&Request::get("/readyz")).expect("the agent answers");
    assert_eq!(answer.status, 200);
    answer.text()
}

#[test]
fn without_the_registry_cached_bytes_are_served_others_fail_in_time_and_it_heals() {
    require!(cannot(), program("mkfs.erofs"));
    let work = Workdir::new();
    let disk = disk(&work, 16 << 20);
    let place = Place::new(work.path()).with(&["--fetch-deadline", "2s"]);
    let agent = place.start();
    let device = attach(&agent, &disk.reference);
    let (cached, other) = (0, 9 << 20);
    assert!(read_at(&device, cached, 4096).expect("a read") == disk.bytes[..4096]);

    disk.registry.set_down(true);
    assert!(read_at(&device, cached, 4096).expect("cached bytes need no registry") == disk.bytes[..4096]);
    let error = read_at(&device, other, 4096).expect_err("the bytes cannot be had");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    let said = readiness(&agent);
    assert!(said.starts_with("degraded: nobody answered for ") && said.contains(&disk.registry.host()), "{said}");

    // What was attached is attached again by the next agent, with no registry to ask.
    assert!(agent.stop().success());
    let agent = place.start();
    let devices = agent.get("/v1/devices");
    assert_eq!(text(&devices[0]["state"]), "attached", "{devices}");
    let device = Path::new(text(&devices[0]["device_path"])).to_owned();
    assert!(read_at(&device, cached, 4096).expect("cached bytes need no registry") == disk.bytes[..4096]);

    disk.registry.set_down(false);
    let at = usize::try_from(other).expect("small");
    assert!(read_at(&device, other, 4096).expect("it healed by itself") == disk.bytes[at..at + 4096]);
    assert_eq!(readiness(&agent), "ok\n");
}

#[test]
fn a_stalled_fetch_holds_up_only_who_waits_for_it() {
    require!(cannot(), program("mkfs.erofs"));
    let work = Workdir::new();
    let disk = disk(&work, 16 << 20);
    let agent = Place::new(work.path()).start();
    let device = Arc::new(attach(&agent, &disk.reference));
    disk.registry.fail(Fault::Stall);
    let late = {
        let device = device.clone();
        thread::spawn(move || read_at(&device, 4 << 20, 4096))
    };
    disk.registry.until_stalled(1);
    for at in [8 << 20, 12 << 20, 15 << 20] {
        let from = usize::try_from(at).expect("small");
        assert!(read_at(&device, at, 4096).expect("others go on") == disk.bytes[from..from + 4096]);
    }
    assert!(!late.is_finished());
    disk.registry.release();
    assert!(late.join().expect("no panic").expect("it is served in the end") == disk.bytes[4 << 20..(4 << 20) + 4096]);
}

#[test]
fn one_chunk_is_fetched_once_however_many_wait() {
    require!(cannot(), program("mkfs.erofs"));
    let work = Workdir::new();
    let disk = disk(&work, 16 << 20);
    let agent = Place::new(work.path()).start();
    let devices = [attach(&agent, &disk.reference), attach(&agent, &disk.reference)];
    disk.registry.reset_counts();
    disk.registry.fail(Fault::Stall);
    let readers: Vec<_> = (0..8u64)
        .map(|i| {
            let device = devices[usize::try_from(i % 2).expect("0 or 1")].clone();
            thread::spawn(move || read_at(&device, (8 << 20) + i * 4096, 4096))
        })
        .collect();
    disk.registry.until_stalled(1);
    disk.registry.release();
    for (i, reader) in readers.into_iter().enumerate() {
        let from = (8 << 20) + i * 4096;
        assert!(reader.join().expect("no panic").expect("a read") == disk.bytes[from..from + 4096]);
    }
    let asked = disk.registry.requests().into_iter().filter(|request| request.kind == Kind::Blob);
    let mut ranges: Vec<_> = asked.filter_map(|request| request.range).collect();
    ranges.sort();
    let twice = ranges.windows(2).find(|pair| pair[0].intersection(pair[1]).is_some());
    assert_eq!(twice, None, "{ranges:?}");
}

#[test]
fn a_manifest_that_cannot_be_had_at_first_is_tried_again() {
    require!(cannot());
    let (work, registry) = (Workdir::new(), Loopback::start(Config::default()));
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    registry.fail(Fault::Status(502).on(Target::Kind(Kind::Manifest)).times(2));
    let agent = Place::new(work.path()).start();
    let device = agent.attach(&format!("{}/fixtures/overlaybd:obd-lz4", registry.host()), &FUSE);
    assert_eq!(device["size_bytes"], fixture::DEVICE_BYTES);
    assert_eq!(registry.pending_faults(), 0);
}

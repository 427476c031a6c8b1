//! Two real registries, one a mirror of the other by hosts.toml, that stop, hang, come back and change places while a device is read.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use penstock_tests::{
    agent::Place,
    docker_registry::DockerRegistry,
    fixture,
    nginx::{Front, Nginx},
    require,
    skip::{fuse, program, root},
    tree,
    workdir::Workdir,
    workspace::text,
};

/// Bytes read between two events.
const PIECE_BYTES: usize = 1 << 20;
/// The part of the disk in which the image's data lies.
const BUSY_BYTES: u64 = 96 << 20;

fn cannot() -> Option<String> {
    root().or_else(fuse).or_else(|| ["docker-registry", "nginx"].into_iter().find_map(program))
}

/// A registry with the fixtures, and an address before it that stays.
struct Site {
    registry: DockerRegistry,
    front: Nginx,
}

impl Site {
    fn new(work: &Workdir, name: &str) -> Self {
        let registry = DockerRegistry::start();
        registry.repository("library/overlaybd").layout(&fixture::layout());
        let front = Nginx::start(work.join(name), registry.host(), &Front::default());
        Self { registry, front }
    }

    /// Blob downloads that were answered here.
    fn downloads(&self) -> usize {
        self.front.requests().iter().filter(|line| line.contains("GET") && line.contains("/blobs/")).count()
    }
}

/// `certs.d` in which `mirror` stands before `origin`.
fn hosts_dir(work: &Workdir, origin: &Site, mirror: &Site) -> PathBuf {
    let (origin, mirror) = (origin.front.host(), mirror.front.host());
    let dir = work.dir(&format!("certs.d/{origin}"));
    let hosts = format!(
        "server = \"http://{origin}\"\n\n[host.\"http://{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    fs::write(dir.join("hosts.toml"), hosts).expect("a file");
    work.join("certs.d")
}

#[test]
fn a_device_is_read_in_full_while_origin_and_mirror_fail_in_turn() {
    require!(cannot());
    let work = Workdir::new();
    let (mut origin, mut mirror) = (Site::new(&work, "origin"), Site::new(&work, "mirror"));
    let dirs = hosts_dir(&work, &origin, &mirror);
    let flags = ["--cache-chunk-size", "64KiB", "--fetch-hosts-dirs", dirs.to_str().expect("UTF-8")];
    let agent = Place::new(work.path()).with(&flags).start();
    let reference = format!("{}/library/overlaybd:obd-lz4", origin.front.host());
    let device = agent.attach(&reference, &["--transport", "fuse"]);
    let path = PathBuf::from(text(&device["device_path"]));
    let file = File::open(&path).expect("the device");
    assert!(mirror.downloads() > 0, "the mirror is asked first");
    assert_eq!(origin.downloads(), 0, "the origin is not asked while the mirror answers");

    let mut piece = vec![0; PIECE_BYTES];
    for (nth, at) in (0..BUSY_BYTES).step_by(PIECE_BYTES).enumerate() {
        match nth {
            2 => mirror.registry.pause(),
            5 => {
                mirror.registry.resume();
                mirror.front.stop();
            }
            8 => {
                mirror.front.restart();
                origin.front.stop();
            }
            11 => {
                origin.front.restart();
                origin.registry.pause();
            }
            14 => origin.registry.resume(),
            17 => {
                let (to_mirror, to_origin) = (mirror.registry.host().to_owned(), origin.registry.host().to_owned());
                origin.front.lead_to(&to_mirror);
                mirror.front.lead_to(&to_origin);
            }
            _ => {}
        }
        file.read_exact_at(&mut piece, at).expect("every read is served by one of them");
    }
    // The whole device, from a second descriptor: what was read before is cached, and right.
    let found = tree::sha256(File::open(&path).expect("the device")).expect("every byte can be read");
    assert_eq!(found, fixture::DEVICE_SHA256);
    assert_eq!(agent.device(text(&device["id"]))["stats"]["errors"], 0);
    assert!(origin.downloads() > 0, "the origin stood in");
}

#[test]
fn with_both_away_readers_wait_and_go_on_when_one_is_back() {
    require!(cannot());
    let work = Workdir::new();
    let (mut origin, mut mirror) = (Site::new(&work, "origin"), Site::new(&work, "mirror"));
    let dirs = hosts_dir(&work, &origin, &mirror);
    let flags = ["--cache-chunk-size", "64KiB", "--fetch-hosts-dirs", dirs.to_str().expect("UTF-8")];
    let agent = Place::new(work.path()).with(&flags).start();
    let reference = format!("{}/library/overlaybd:obd-lz4", origin.front.host());
    let device = agent.attach(&reference, &["--transport", "fuse", "--on-failure", "wait=10m"]);
    let path = PathBuf::from(text(&device["device_path"]));
    origin.front.stop();
    mirror.front.stop();
    let reader = std::thread::spawn(move || File::open(path).and_then(tree::sha256));
    agent.until_event("endpoint.broken");
    assert!(!reader.is_finished(), "there is nobody to read from");
    mirror.front.restart();
    assert_eq!(reader.join().expect("no panic").expect("it waited"), fixture::DEVICE_SHA256);
}

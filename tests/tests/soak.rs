//! Half a minute of everything failing at once (hours by hand: `make soak SOAK_SECONDS=7200`), with figures.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, mpsc::sync_channel},
    time::{Duration, Instant},
};

use penstock_image::write;
use penstock_registry::{Config, Registry};
use penstock_tests::{
    agent::{Place, binary},
    http::Request,
    loopback::Loopback,
    push::Layer,
    require,
    skip::{fuse, root},
    soak::{Chaos, Figures, Readers, Sample, chaos::Target, left},
    supervisor::Supervisor,
    workdir::Workdir,
    workspace::text,
};
use rustix::process::{Signal, kill_process};

/// Bytes of the image; the cache may keep a quarter.
const DISK_BYTES: usize = 256 << 20;
const CAP: &str = "64MiB";
const CAP_BYTES: u64 = 64 << 20;
/// The cache's file system: a little more than the cap, so that it can be filled up soon.
const ROOM: &str = "size=128m";
const READERS: u64 = 6;
/// What a calm agent may add: an allocator keeps what was freed, connections come and go.
const MORE_DESCRIPTORS: usize = 24;
const MORE_BYTES: u64 = 48 << 20;

fn seconds() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the length of a soak is the runner's choice")]
    let set = std::env::var("SOAK_SECONDS");
    set.map_or(30, |text| text.parse().expect("SOAK_SECONDS is a number of seconds"))
}

struct Struck {
    registry: Arc<Loopback>,
    agent: Arc<Supervisor>,
    ballast: PathBuf,
}

impl Target for Struck {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    fn kill_agent(&self) -> bool {
        // One that is about to come up is let off.
        self.agent.agent().is_some_and(|agent| kill_process(agent, Signal::KILL).is_ok())
    }

    fn ballast(&self) -> PathBuf {
        self.ballast.clone()
    }
}

/// A disk of incompressible bytes, and its OverlayBD layer.
fn disk(path: &Path, layer: &Path) -> Vec<u8> {
    let mut bytes = vec![0; DISK_BYTES];
    fastrand::Rng::with_seed(31).fill(&mut bytes);
    std::fs::write(path, &bytes).expect("room for the disk");
    let out = File::options().create_new(true).read(true).write(true).open(layer).expect("a file");
    write::disk(&File::open(path).expect("the disk"), out, write::Options::default()).expect("a layer");
    std::fs::read(layer).expect("the layer")
}

#[test]
fn nothing_is_lost_wrong_or_hung_while_everything_fails() {
    require!(root().or_else(fuse));
    let (work, length) = (Workdir::new(), Duration::from_secs(seconds()));
    let cache = work.dir("cache");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", ROOM, "penstock-soak"]).arg(&cache).status();
    assert!(mounted.expect("mount starts").success());
    let truth = work.join("disk");
    let registry = Arc::new(Loopback::start(Config::default()));
    let layer = Layer::overlaybd(disk(&truth, &work.join("layer")));
    let reference = registry.image("soak/disk", "1", &[layer]);
    let flags = ["--cache-dir", cache.to_str().expect("UTF-8"), "--cache-cap", CAP, "--cache-chunk-size", "64KiB"];
    let place = Place::new(work.path()).with(&flags).with(&["--cache-reserve", "0"]).reading_ahead();
    let agent = Arc::new(Supervisor::start(&place, binary()));
    let device = agent.attach(&reference, &["--transport", "fuse", "--on-failure", "wait=10m"]);
    let path = PathBuf::from(text(&device["device_path"]));

    let begun = Instant::now();
    let readers = Readers::start(READERS, &path, &truth);
    let struck = Struck { registry: registry.clone(), agent: agent.clone(), ballast: cache.join("ballast") };
    let chaos = Chaos::start(seconds(), struck);
    // Nothing ends this wait early: the length is what was asked for.
    let (_keep, nobody) = sync_channel::<()>(1);
    let _ = nobody.recv_timeout(left(begun + length * 2 / 3));
    let struck = chaos.stop();
    let pid = agent.until_other_than(None).as_raw_nonzero().get();
    let _ = nobody.recv_timeout(left(begun + length * 5 / 6));
    let before = Sample::of(pid).expect("an agent runs");
    let _ = nobody.recv_timeout(left(begun + length));
    let after = Sample::of(pid).expect("an agent runs");
    let used = Request::get("/v1/cache").to_socket(place.socket()).expect("an answer").json()["used_bytes"]
        .as_u64()
        .expect("a number");
    let read = readers.stop();
    let figures = Figures {
        lasted: begun.elapsed(),
        read,
        struck,
        calm: [before, after],
        cap_bytes: CAP_BYTES,
        used_bytes: used,
    };
    println!("{figures}");

    assert!(read.bytes_read > 0 && struck.kills > 0 && struck.faults > 0 && struck.full > 0, "{figures}");
    assert_eq!((read.wrong, read.failed, read.hung), (0, 0, 0), "{figures}");
    assert_eq!(read.bytes_read, read.bytes_compared, "{figures}");
    assert!(used <= CAP_BYTES, "{figures}");
    assert!(after.descriptors <= before.descriptors + MORE_DESCRIPTORS, "{figures}");
    assert!(after.resident_bytes <= before.resident_bytes + MORE_BYTES, "{figures}");
}

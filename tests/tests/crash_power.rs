//! Power loss under a whole agent: its state directory lies on an ext4 that is shut down without its journal while it fills,
//! attaches and detaches. After each, it starts, has what it said it had, and reads are right.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use penstock_registry::Config;
use penstock_tests::{
    agent::{Agent, Place},
    disk, fixture,
    loopback::Loopback,
    power::{Disk, names},
    require, skip,
    skip::{fuse, loop_devices, program, root},
    tree,
    workdir::Workdir,
    workspace::text,
};
use serde_json::Value;

/// Power cuts. The cache alone has many more: `cache/src/cache/tests/power.rs`.
const CUTS: u64 = 8;
/// The file system, far larger than the state: a full disk is another test's.
const DISK_BYTES: u64 = 96 << 20;
/// More than is read before the last cut, so that there is something to fill at each.
const BALLAST_BYTES: u64 = 24 << 20;
/// As much of the layered image as is compared each time.
const HEAD_BYTES: u64 = 4 << 20;
/// Devices beyond which one is detached.
const MOST_DEVICES: usize = 4;

struct Images {
    /// One blob, whose truth is a file.
    disk: String,
    truth: PathBuf,
    /// Layers with a map.
    layered: String,
}

/// Reads at random places, compared with the truth, until the power goes.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
    read: Receiver<()>,
}

impl Reader {
    fn start(device: &Path, truth: &Path, seed: u64) -> Self {
        let (device, truth) = (File::open(device).expect("the device"), File::open(truth).expect("the truth"));
        let stop = Arc::new(AtomicBool::new(false));
        let (done, read) = sync_channel(1);
        let stopped = stop.clone();
        let thread = thread::spawn(move || compare(&device, &truth, seed, (&stopped, &done)));
        Self { stop, thread, read }
    }

    /// Waits for `count` reads to be done and right.
    fn until_read(&self, count: u64) {
        for _ in 0..count {
            self.read.recv_timeout(Duration::from_secs(60)).expect("reads go on");
        }
    }

    /// How many reads there were, all of them right.
    fn join(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.read);
        self.thread.join().expect("only right bytes were read")
    }
}

fn compare(device: &File, truth: &File, seed: u64, (stop, done): (&AtomicBool, &SyncSender<()>)) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let bytes = truth.metadata().expect("the truth").len();
    let (mut found, mut expected) = (vec![0; 32 << 10], vec![0; 32 << 10]);
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let at = random.u64(0..=bytes - found.len() as u64);
        if device.read_exact_at(&mut found, at).is_err() {
            // The power is gone, or the agent: an error is right, other bytes never.
            break;
        }
        truth.read_exact_at(&mut expected, at).expect("the truth can be read");
        assert!(found == expected, "wrong bytes at {at}");
        count += 1;
        if done.send(()).is_err() {
            break;
        }
    }
    count
}

/// Devices as the agent lists them: all attached.
fn devices(agent: &Agent) -> Vec<(String, String, PathBuf)> {
    let list: Value = agent.get("/v1/devices");
    let one = |device: &Value| {
        assert_eq!(text(&device["state"]), "attached", "{device}");
        (text(&device["id"]).to_owned(), text(&device["reference"]).to_owned(), text(&device["device_path"]).into())
    };
    list.as_array().expect("a list").iter().map(one).collect()
}

fn head(device: &Path) -> String {
    tree::sha256(File::open(device).expect("the device").take(HEAD_BYTES)).expect("the head can be read")
}

fn attach(place: &Place, reference: &str) -> Option<String> {
    let ended = place.run(&["attach", reference, "--transport", "fuse", "--output", "json"]);
    (ended.code == Some(0)).then(|| text(&ended.json()["id"]).to_owned())
}

/// What must be there after a cut, and what may be: an attach or detach that was not answered is open.
#[derive(Default)]
struct Expected {
    must: BTreeSet<String>,
    gone: BTreeSet<String>,
    unanswered: usize,
}

impl Expected {
    fn check(&mut self, agent: &Agent, cut: u64) {
        let found: BTreeSet<String> = devices(agent).into_iter().map(|(id, ..)| id).collect();
        let missing: Vec<_> = self.must.difference(&found).collect();
        let back: Vec<_> = self.gone.intersection(&found).collect();
        assert!(missing.is_empty() && back.is_empty(), "cut {cut}: {missing:?} lost, {back:?} came back");
        let more = found.len() - self.must.len();
        assert!(more <= self.unanswered, "cut {cut}: {found:?}, expected {:?}", self.must);
        *self = Self { must: found, ..Self::default() };
    }
}

/// One life of the agent: it must have what was answered, works, and loses its power.
fn live_and_die(
    place: &Place,
    disk: &Disk<'_>,
    images: &Images,
    (cut, expected, head_of): (u64, &mut Expected, &str),
) -> u64 {
    let agent = place.start();
    let events = agent.get("/v1/events");
    assert!(!events.to_string().contains("state.unreadable_record"), "cut {cut}: {events}");
    assert!(names(&place.state().join("maps")).iter().all(|name| !name.starts_with(".building")), "a torn map stays");
    assert!(
        names(&place.state().join("attachments")).iter().all(|name| name.ends_with(".json")),
        "a torn record stays"
    );
    expected.check(&agent, cut);
    let listed = devices(&agent);
    let of = |reference: &str| listed.iter().find(|(_, r, _)| r == reference).map(|(.., path)| path).expect("a device");
    assert_eq!(head(of(&images.layered)), head_of, "cut {cut}");

    let mut random = fastrand::Rng::with_seed(cut);
    let reader = Reader::start(of(&images.disk), &images.truth, cut);
    reader.until_read(random.u64(1..20));
    if listed.len() > MOST_DEVICES {
        let (id, ..) = listed.last().expect("many");
        let _ = agent.run(&["detach", id]).ok();
        expected.must.remove(id);
        expected.gone.insert(id.clone());
    }
    let (here, reference) = (place.clone(), if cut % 2 == 0 { images.disk.clone() } else { images.layered.clone() });
    let attaching = thread::spawn(move || attach(&here, &reference));
    reader.until_read(random.u64(1..30));
    disk.shut_down().expect("the power is cut");
    match attaching.join().expect("an attach") {
        Some(id) => expected.must.extend([id]),
        None => expected.unanswered += 1,
    }
    agent.kill();
    let read = reader.join();
    disk.come_back().expect("the disk is mounted again");
    read
}

#[test]
fn after_a_power_cut_the_agent_has_every_attachment_it_answered_for_and_reads_are_right() {
    require!(root(), fuse(), loop_devices(), program("xfs_io"), program("mkfs.erofs"));
    let work = Workdir::new();
    let disk = match Disk::make(&work, DISK_BYTES) {
        Ok(disk) => disk,
        Err(why) => skip!("ext4 on a loop device cannot be mounted and shut down here: {why}"),
    };
    let registry = Loopback::start(Config { latency: Duration::from_millis(1), ..Config::default() });
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let tree = work.dir("tree");
    disk::fill(&tree, 5, BALLAST_BYTES);
    let truth = disk::erofs(&tree, work.join("disk"));
    let (reference, _) = registry.disk("disks/power", "1", &truth);
    let images =
        Images { disk: reference, truth, layered: format!("{}/fixtures/overlaybd:obd-zstd16", registry.host()) };
    let place = Place::new(work.path()).with_state(&disk.root().join("state"));
    let place = place.with(&["--cache-chunk-size", "64KiB"]);

    let agent = place.start();
    let mut expected = Expected::default();
    for reference in [&images.disk, &images.layered] {
        expected.must.insert(attach(&place, reference).expect("an attach"));
    }
    let layered = devices(&agent).into_iter().find(|(_, r, _)| *r == images.layered).expect("it is attached").2;
    let head_of = head(&layered);
    agent.kill();
    disk.shut_down().expect("the power is cut");
    disk.come_back().expect("the disk is mounted again");

    let (mut read, mut answered) = (0, 0);
    for cut in 1..=CUTS {
        let before = expected.must.len();
        read += live_and_die(&place, &disk, &images, (cut, &mut expected, &head_of));
        answered += usize::from(expected.must.len() > before);
    }
    let agent = place.start();
    expected.check(&agent, CUTS + 1);
    println!(
        "{CUTS} power cuts (seeds 1 to {CUTS}): {read} reads compared, wrong 0, attachments lost 0; {answered} attaches answered right before one"
    );
    assert!(agent.stop().success());
}

//! SIGKILL of the agent while it fills its cache: after each restart every byte is right, what was durable is there, and the cache's
//! index may be lost.

use std::{
    fs::{self, File},
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
    disk,
    loopback::Loopback,
    require,
    skip::{fuse, program, root},
    tree,
    workdir::Workdir,
    workspace::text,
};
use serde_json::Value;

/// How often the agent is killed.
const ROUNDS: u64 = 50;
/// More chunks (of 64 KiB, so that kills meet many different moments of fills) than all rounds together can fill, so that the last kill still meets fills.
const BALLAST_BYTES: u64 = 128 << 20;
/// Reads within which the committer must have done something; a group takes about a second.
const MOST_READS: u64 = 100_000;
/// Readers at once.
const READERS: u64 = 4;

/// What is attached, and the truth about it.
struct Image {
    registry: Loopback,
    reference: String,
    truth: File,
    bytes: u64,
    digest: String,
}

fn image(work: &Workdir) -> Image {
    // Slow enough that fills are under way at any moment, fast enough for a test.
    let shaped =
        Config { latency: Duration::from_millis(2), bandwidth_bytes_per_second: Some(64 << 20), ..Config::default() };
    let registry = Loopback::start(shaped);
    let tree = work.dir("tree");
    disk::fill(&tree, 3, BALLAST_BYTES);
    let path = disk::erofs(&tree, work.join("disk"));
    let (reference, blob) = registry.disk("disks/crash", "1", &path);
    let truth = File::open(&path).expect("the disk");
    Image { registry, reference, truth, bytes: blob.size_bytes, digest: blob.digest.to_string() }
}

/// Readers that compare what they read at random places with the truth, until told to stop or until a read fails.
struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    read: Receiver<()>,
}

impl Readers {
    fn start(device: &Path, image: &Image, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, read) = sync_channel(1024);
        let threads = (0..READERS)
            .map(|i| {
                let device = File::open(device).expect("the device");
                let truth = image.truth.try_clone().expect("the truth");
                let random = fastrand::Rng::with_seed(seed * READERS + i);
                let (stop, sender) = (stop.clone(), sender.clone());
                thread::spawn(move || compare(&device, &truth, random, &stop, &sender))
            })
            .collect();
        Self { stop, threads, read }
    }

    /// Waits for `count` reads to be done and right.
    fn until_read(&self, count: u64) {
        for _ in 0..count {
            self.read.recv_timeout(Duration::from_secs(60)).expect("readers go on");
        }
    }

    /// Ends the readers; a reader that saw wrong bytes panicked.
    fn join(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.read);
        for thread in self.threads {
            thread.join().expect("only right bytes were read");
        }
    }
}

fn compare(device: &File, truth: &File, mut random: fastrand::Rng, stop: &AtomicBool, done: &SyncSender<()>) {
    let bytes = truth.metadata().expect("the truth").len();
    let (mut found, mut expected) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    while !stop.load(Ordering::Relaxed) {
        let at = random.u64(0..=bytes - found.len() as u64);
        if device.read_exact_at(&mut found, at).is_err() {
            // The agent was killed: an error is right, other bytes never.
            return;
        }
        truth.read_exact_at(&mut expected, at).expect("the truth can be read");
        assert!(found == expected, "wrong bytes at {at}");
        if done.send(()).is_err() {
            return;
        }
    }
}

/// What the agent says of the image's one blob; null while it has none of it.
fn blob(agent: &Agent, image: &Image) -> Value {
    let cache = agent.get("/v1/cache");
    let blobs = cache["blobs"].as_array().expect("a list of blobs");
    blobs.iter().find(|blob| text(&blob["digest"]) == image.digest).cloned().unwrap_or_default()
}

fn number(blob: &Value, name: &str) -> u64 {
    blob[name].as_u64().unwrap_or(0)
}

/// Chunks of the image that the agent reports: present, and durable.
fn chunks(agent: &Agent, image: &Image) -> (u64, u64) {
    let blob = blob(agent, image);
    (number(&blob, "chunks_present"), number(&blob, "chunks_durable"))
}

/// Reads on until more chunks are durable than there were: the committer works in the background, in groups.
fn until_durable(agent: &Agent, image: &Image, readers: &Readers) {
    let before = chunks(agent, image).1;
    for _ in 0..MOST_READS {
        if chunks(agent, image).1 > before {
            return;
        }
        readers.until_read(1);
    }
    panic!("{MOST_READS} reads on, no more than {before} chunks are durable");
}

fn device(agent: &Agent) -> PathBuf {
    let devices = agent.get("/v1/devices");
    assert_eq!(text(&devices[0]["state"]), "attached", "{devices}");
    text(&devices[0]["device_path"]).into()
}

/// Files of the cache's index: all that is not a blob's.
fn index_files(state: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut waiting = vec![state.join("cache/index")];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() { waiting.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// Deletes the largest file of the index, or cuts one that holds something short.
fn damage_index(state: &Path, delete: bool, random: &mut fastrand::Rng) {
    let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
    let mut files = index_files(state);
    files.retain(|path| bytes(path) > 0);
    files.sort_by_key(bytes);
    let largest = files.last().expect("the index holds something");
    if delete {
        return fs::remove_file(largest).expect("a file that can be removed");
    }
    let cut = &files[random.usize(0..files.len())];
    let file = File::options().write(true).open(cut).expect("a file that can be cut");
    file.set_len(random.u64(0..bytes(cut))).expect("a file that can be cut");
}

#[test]
fn killed_at_random_moments_of_fills_it_serves_right_bytes_and_keeps_what_was_durable() {
    require!(root(), fuse(), program("mkfs.erofs"));
    let (work, mut random) = (Workdir::new(), fastrand::Rng::with_seed(2));
    let image = image(&work);
    let place = Place::new(work.path()).with(&["--cache-chunk-size", "64KiB"]);
    let mut durable_before = 0;
    let mut rebuilt = 0;
    for round in 0..ROUNDS {
        let agent = place.start();
        if round == 0 {
            let _ = agent.attach(&image.reference, &["--transport", "fuse"]);
        }
        let (present, _) = chunks(&agent, &image);
        assert!(present >= durable_before, "round {round}: {present} chunks, of {durable_before} that were durable");
        rebuilt += u64::from(text(&agent.get("/v1/cache")["index"]["state"]) == "rebuilt");

        let readers = Readers::start(&device(&agent), &image, round);
        readers.until_read(random.u64(1..40));
        if round % 3 == 2 {
            until_durable(&agent, &image, &readers);
        }
        durable_before = chunks(&agent, &image).1;
        agent.kill();
        readers.join();
        if round % 5 == 4 {
            damage_index(place.state(), round % 10 == 4, &mut random);
        }
    }
    assert!(durable_before > 0, "no chunk ever became durable");
    assert!(rebuilt > 0, "a lost index is rebuilt, and it says so");

    // Everything, once more: what is present is not filled again.
    let agent = place.start();
    let before = blob(&agent, &image);
    let sha256 = tree::sha256(File::open(device(&agent)).expect("the device")).expect("every byte can be read");
    assert_eq!(format!("sha256:{sha256}"), image.digest);
    let after = blob(&agent, &image);
    let filled = number(&after, "fetched_bytes") - number(&before, "fetched_bytes");
    assert!(filled <= image.bytes - number(&before, "present_bytes"), "{filled} bytes filled; {before}");
    assert_eq!(agent.get("/v1/cache")["corrupt_dropped"], 0, "a killed process leaves no torn chunk");
    assert!(agent.stop().success());
}

#[test]
fn an_index_that_is_gone_is_made_anew_and_nothing_is_fetched_again() {
    require!(root(), fuse(), program("mkfs.erofs"));
    let work = Workdir::new();
    let image = image(&work);
    let place = Place::new(work.path());
    let agent = place.start();
    let _ = agent.attach(&image.reference, &["--transport", "fuse"]);
    let whole = || tree::sha256(File::open(device(&agent)).expect("the device")).expect("every byte can be read");
    assert_eq!(format!("sha256:{}", whole()), image.digest);
    let (present, _) = chunks(&agent, &image);
    assert!(agent.stop().success());

    fs::remove_dir_all(place.state().join("cache/index")).expect("the index");
    image.registry.reset_counts();
    let agent = place.start();
    assert_eq!(text(&agent.get("/v1/cache")["index"]["state"]), "rebuilt");
    assert_eq!(chunks(&agent, &image).0, present);
    let sha256 = tree::sha256(File::open(device(&agent)).expect("the device")).expect("every byte can be read");
    assert_eq!(format!("sha256:{sha256}"), image.digest);
    assert_eq!(image.registry.counts().blob_bytes, 0);
}

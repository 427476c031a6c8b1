//! What the rows stand on: a registry of our own, an agent, a device whose bytes are known, and blocks of it that nobody has read yet.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::{self, JoinHandle},
};

use penstock_image::write;
use penstock_registry::{Config, Registry};
use serde_json::Value;

use super::Seen;
use crate::{
    agent::Place, http::Request, loopback::Loopback, push::Layer, supervisor::Supervisor, tls::run, workdir::Workdir,
    workspace::text,
};

/// Bytes of the disk: incompressible, so that its blob is as long and blocks far apart lie in different chunks.
const DISK_BYTES: usize = 32 << 20;
/// Distance of the blocks read: four chunks, so that no fetch brings a neighbour's block.
const STEP_BYTES: usize = 256 << 10;
/// Bytes of a read: two chunks, so that it holds the middle of one, where the registry flips a bit.
const BLOCK: usize = 128 << 10;
/// Room for the cache: a file system of its own, which a row fills up.
const ROOM: &str = "size=192m";

/// A registry, an agent, a device.
#[derive(Debug)]
pub struct Stand {
    supervisor: Option<Supervisor>,
    place: Place,
    program: PathBuf,
    registry: Loopback,
    transport: String,
    device: Value,
    truth: Arc<Vec<u8>>,
    /// Blocks handed out so far.
    used: usize,
    work: Workdir,
}

impl Stand {
    /// Sets it up with `penstock` as the program, and attaches the disk through `transport`; fetches and readers have `deadline`.
    ///
    /// # Panics
    /// When that does not work.
    #[must_use]
    pub fn new(penstock: &Path, transport: &str, deadline: &str) -> Self {
        let work = Workdir::new();
        let cache = work.dir("cache");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", ROOM, "penstock-test"]).arg(&cache));
        let registry = Loopback::start(Config::default());
        let truth = Arc::new(disk());
        let layer = Layer::overlaybd(overlaybd(&truth, &work));
        let reference = registry.image("matrix/disk", "1", &[layer]);
        let cache = cache.to_str().expect("UTF-8");
        let flags =
            ["--cache-dir", cache, "--cache-cap", "64MiB", "--cache-chunk-size", "64KiB", "--fetch-deadline", deadline];
        let place = Place::of(penstock, work.path()).with(&flags);
        let supervisor = Supervisor::start(&place, penstock);
        let device = supervisor.attach(&reference, &["--transport", transport]);
        let (supervisor, program, transport) = (Some(supervisor), penstock.to_owned(), transport.to_owned());
        Self { supervisor, place, program, registry, transport, device, truth, used: 1, work }
    }

    /// `fuse` or `ublk`.
    #[must_use]
    pub fn transport(&self) -> &str {
        &self.transport
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Runs a command of `penstock`, which must succeed.
    pub fn run(&self, arguments: &[&str]) {
        let _ = self.place.run(arguments).ok();
    }

    fn events(&self) -> Value {
        self.get("/v1/events")
    }

    fn get(&self, path: &str) -> Value {
        Request::get(path).to_socket(self.place.socket()).expect("the agent answers").json()
    }

    /// The directory of the cache.
    #[must_use]
    pub fn cache_dir(&self) -> PathBuf {
        self.work.join("cache")
    }

    /// The block that is read before anything breaks.
    #[must_use]
    pub const fn known(&self) -> u64 {
        0
    }

    /// A block that nobody has read.
    ///
    /// # Panics
    /// When there is none left: the disk is too small for the table.
    pub fn fresh(&mut self) -> u64 {
        let at = self.used * STEP_BYTES;
        assert!(at < DISK_BYTES, "the disk has too few blocks for all rows");
        self.used += 1;
        at as u64
    }

    /// Reads a block past the page cache.
    ///
    /// # Panics
    /// When its bytes are not the disk's, or the error is not EIO.
    #[must_use]
    pub fn read(&self, block: u64) -> Seen {
        self.judge(block, read_direct(&self.path(), block))
    }

    /// Reads a block in a thread.
    #[must_use]
    pub fn start_read(&self, block: u64) -> JoinHandle<io::Result<Vec<u8>>> {
        let path = self.path();
        thread::spawn(move || read_direct(&path, block))
    }

    /// What became of a read in a thread.
    ///
    /// # Panics
    /// As [`Self::read`].
    #[must_use]
    pub fn join(&self, block: u64, read: JoinHandle<io::Result<Vec<u8>>>) -> Seen {
        self.judge(block, read.join().expect("the reader does not panic"))
    }

    fn judge(&self, block: u64, read: io::Result<Vec<u8>>) -> Seen {
        let at = usize::try_from(block).expect("a small disk");
        match read {
            Ok(bytes) => {
                assert!(bytes == self.truth[at..at + BLOCK], "WRONG BYTES in block {block}");
                Seen::Right
            }
            Err(error) => {
                let eio = rustix::io::Errno::IO.raw_os_error();
                assert_eq!(error.raw_os_error(), Some(eio), "block {block}: {error}");
                Seen::Eio
            }
        }
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(text(&self.device["device_path"]))
    }

    /// The id of the device.
    #[must_use]
    pub fn id(&self) -> &str {
        text(&self.device["id"])
    }

    /// Returns once a read waits beyond its deadline by policy.
    ///
    /// # Panics
    /// When none does.
    pub fn until_waiting(&self) {
        let supervisor = self.supervisor.as_ref().expect("an agent runs");
        supervisor.until(|| kinds(&self.events(), 0).any(|kind| kind == "device.waiting").then_some(()));
    }

    /// The newest event: the agent that told it, and its sequence number there.
    #[must_use]
    pub fn newest_event(&self) -> (String, u64) {
        let events = self.events();
        (text(&events["started_at"]).to_owned(), events["newest"].as_u64().expect("a number"))
    }

    /// Checks that each fault met a request: a row whose fault nobody met shows nothing.
    ///
    /// # Panics
    /// When one did not.
    pub fn check_met(&self, fault: &str) {
        assert_eq!(self.registry.pending_faults(), 0, "{fault}: nothing met it");
    }

    /// Checks that an event of this kind was recorded after `since`, or since the agent's start when it is another one. How the reads
    /// of a device fare is told when it changes, so there the newest such event counts, whenever it came.
    ///
    /// # Panics
    /// When there is none.
    pub fn check_event(&self, since: &(String, u64), kind: &str, fault: &str) {
        const FARE: [&str; 3] = ["device.waiting", "device.policy_eio", "device.healed"];
        println!("      waiting for the event {kind} of: {fault}");
        // A part tells the agent, which records it: a reader may be ahead of that.
        self.supervisor.as_ref().expect("an agent runs").until(|| {
            let events = self.events();
            if FARE.contains(&kind) {
                return (kinds(&events, 0).filter(|kind| FARE.contains(kind)).last() == Some(kind)).then_some(());
            }
            let (told_by, newest) = since;
            // Damage is told once for a blob, not each time.
            let told_before = kind == "cache.corrupt" || text(&events["started_at"]) != told_by;
            let mut later = kinds(&events, if told_before { 0 } else { *newest });
            later.any(|found| found == kind).then_some(())
        });
    }

    /// SIGKILL to the agent; its supervisor starts another.
    ///
    /// # Panics
    /// When there is none.
    pub fn kill(&mut self) {
        let _ = self.supervisor.as_ref().expect("a supervisor").kill_agent();
    }

    /// SIGTERM to the supervisor, which ends the agent; waits for the end of both.
    ///
    /// # Panics
    /// When it does not end well.
    pub fn stop(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            assert!(supervisor.stop().success(), "the agent drains");
        }
    }

    /// Starts an agent where the last one was, and finds the device again.
    ///
    /// # Panics
    /// When the device is not attached again.
    pub fn start(&mut self) {
        self.supervisor = Some(Supervisor::start(&self.place, &self.program));
        let device = self.get(&format!("/v1/devices/{}", self.id()));
        assert_eq!(text(&device["state"]), "attached", "{device}");
        self.device = device;
    }
}

/// The kinds of the events after `since`.
fn kinds(events: &Value, since: u64) -> impl Iterator<Item = &str> {
    let list = events["events"].as_array().expect("a list").iter();
    list.filter(move |event| event["sequence"].as_u64() > Some(since)).map(|event| text(&event["kind"]))
}

/// Incompressible bytes that follow from a seed.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0; DISK_BYTES];
    fastrand::Rng::with_seed(29).fill(&mut bytes);
    bytes
}

/// The disk as an OverlayBD layer: lz4 frames with checks.
fn overlaybd(disk: &[u8], work: &Workdir) -> Vec<u8> {
    let raw = work.join("disk");
    std::fs::write(&raw, disk).expect("room for the disk");
    let path = work.join("layer");
    let out = File::options().create_new(true).read(true).write(true).open(&path).expect("a file");
    let raw = File::open(raw).expect("the disk");
    write::disk(&raw, out, write::Options::default()).expect("a layer");
    std::fs::read(path).expect("the layer")
}

/// Reads one block with `O_DIRECT`.
fn read_direct(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).expect("a flag");
    let file = File::options().read(true).custom_flags(direct).open(path)?;
    // A buffer aligned to its own size by taking what is needed of a larger one.
    let mut buf = vec![0_u8; 2 * BLOCK];
    let start = buf.as_ptr().align_offset(BLOCK);
    file.read_exact_at(&mut buf[start..start + BLOCK], offset)?;
    Ok(buf[start..start + BLOCK].to_vec())
}

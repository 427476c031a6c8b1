//! Shows a raw disk file as a device, for tests of the transports in a virtual machine.
//!
//! ```text
//! serve id=NAME image=FILE transport=ublk|fuse ready=FILE [fuse-dir=DIR] [owner=N] [queues=N] [stick=OFFSET:LEN] [resume=N]
//! serve leftovers owner=N
//! serve retire owner=N number=N
//! ```
//!
//! The path of the device is written to `ready`. With `resume` it is `/dev/ublkbN` of a server that ended. Reads of `stick` wait until
//! SIGUSR2. SIGTERM stops the device (and says why when it is busy), SIGUSR1 stops it by force (and waits for its last user); both
//! print the counters as the last line. SIGHUP leaves the device to a successor. Bytes are "cached" in memory in chunks of 64 KiB, so
//! that first reads are misses and later ones hits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use penstock_blob::{
    Blob, BlobSource, ByteRange, Located, Purpose, ReadFuture,
    faults::{Memory, Stuck},
};
use penstock_device::{
    Config, Content, Device, DeviceError, Metrics, Remains, Stopped, Wanted, choose, remove_leftovers, retire,
};
use penstock_image::{Image, Layer};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Bytes that are kept together.
const CHUNK_BYTES: u64 = 64 << 10;

/// A cache in memory: whatever was read once is located from then on, in whole chunks.
#[derive(Debug)]
struct Kept {
    below: Arc<dyn BlobSource>,
    bytes: Bytes,
    present: Mutex<BTreeSet<u64>>,
}

impl Kept {
    fn chunks(range: ByteRange) -> std::ops::RangeInclusive<u64> {
        range.start() / CHUNK_BYTES..=(range.end() - 1) / CHUNK_BYTES
    }
}

impl BlobSource for Kept {
    fn locate(&self, _: &Blob, range: ByteRange) -> Option<Located> {
        let present = self.present.lock();
        Self::chunks(range).all(|chunk| present.contains(&chunk)).then_some(())?;
        let (start, end) = (usize::try_from(range.start()).ok()?, usize::try_from(range.end()).ok()?);
        Some(Located::in_memory(self.bytes.slice(start..end)))
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let bytes = self.below.read(blob, range, purpose).await?;
            self.present.lock().extend(Self::chunks(range));
            Ok(bytes)
        })
    }

    fn reject(&self, _: &Blob, range: ByteRange) {
        let gone: BTreeSet<u64> = Self::chunks(range).collect();
        self.present.lock().retain(|chunk| !gone.contains(chunk));
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let command = words.first().cloned().unwrap_or_default();
    words.retain(|word| word.contains('='));
    let options: HashMap<&str, &str> = words.iter().filter_map(|word| word.split_once('=')).collect();
    let owner = number(&options, "owner")?;
    match command.as_str() {
        "leftovers" => {
            let found = remove_leftovers(owner)?;
            say(&format!("removed {:?} waiting {:?}", found.removed, found.waiting))
        }
        "retire" => {
            let metrics = Metrics::new(&mut Registry::default());
            let left = retire(number(&options, "number")?, &Config { owner, ..Config::default() }, &metrics).await?;
            say(&format!("{left:?}"))?;
            // What is left is served until SIGTERM.
            if left == Stopped::Refusing {
                signal(SignalKind::terminate())?.recv().await;
            }
            Ok(())
        }
        _ => serve(&options).await,
    }
}

async fn serve(options: &HashMap<&str, &str>) -> Result<(), Failure> {
    let text = |key: &str| options.get(key).copied().ok_or_else(|| format!("no {key}= given"));
    let disk = Bytes::from(std::fs::read(text("image")?)?);
    let memory = Memory::new(vec![disk.clone()]);
    let blob = memory.blob(0);
    let stuck = match options.get("stick").and_then(|stick| stick.split_once(':')) {
        Some((offset, len)) => Stuck::only(memory, blob.digest, ByteRange::at(offset.parse()?, len.parse()?)?),
        None => {
            let stuck = Stuck::new(memory);
            stuck.release();
            stuck
        }
    };
    let source: Arc<dyn BlobSource> =
        Arc::new(Kept { below: stuck.clone(), bytes: disk, present: Mutex::new(BTreeSet::new()) });
    let maps = std::env::temp_dir().join(format!("serve-{}", std::process::id()));
    let layer = Layer { blob, media_type: String::new(), annotations: BTreeMap::new() };
    let image = Arc::new(Image::open(vec![layer], source.clone(), &maps).await?);

    let mut config = Config { owner: number(options, "owner")?, ..Config::default() };
    if options.contains_key("queues") {
        // Few tags, so that they run out under a load of a few readers.
        config = Config { queues: number(options, "queues")?.try_into()?, depth: 4, misses: 2, ..config };
    }
    if let Some(dir) = options.get("fuse-dir") {
        config.fuse_dir = PathBuf::from(dir);
    }
    let choice = choose(text("transport")?.parse::<Wanted>()?)?;
    let metrics = Metrics::new(&mut Registry::default());
    let content = Content { image, source };
    let id = text("id")?.parse()?;
    let device = match options.get("resume") {
        Some(number) => {
            let remains = Remains::Ublk { number: number.parse()? };
            Device::resume(id, content, remains, &config, &metrics).await?
        }
        None => Device::start(id, content, choice.transport, &config, &metrics).await?,
    };
    write_ready(Path::new(text("ready")?), device.path())?;
    if until_stopped(&device, &stuck).await? == Ended::Leave {
        device.leave().await?;
        return say("left");
    }
    say(&format!("{:?}", device.stats()))
}

/// How the serving ends.
#[derive(PartialEq)]
enum Ended {
    Gone,
    Leave,
}

/// Obeys signals until the device is gone or to be left.
async fn until_stopped(device: &Device, stuck: &Stuck) -> Result<Ended, Failure> {
    let mut leave = signal(SignalKind::hangup())?;
    let mut stop = signal(SignalKind::terminate())?;
    let mut force = signal(SignalKind::user_defined1())?;
    let mut release = signal(SignalKind::user_defined2())?;
    loop {
        let stopped = tokio::select! {
            _ = stop.recv() => device.stop().await.map(|()| Stopped::Gone),
            _ = force.recv() => device.stop_by_force().await,
            _ = leave.recv() => return Ok(Ended::Leave),
            _ = release.recv() => {
                stuck.release();
                continue;
            }
        };
        match stopped {
            Err(busy @ DeviceError::Busy { .. }) => say(&busy.to_string())?,
            Ok(Stopped::Gone) => return Ok(Ended::Gone),
            Ok(Stopped::Refusing) => {
                say("refusing")?;
                device.gone().await;
                return Ok(Ended::Gone);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes the path of the device, whole or not at all.
fn write_ready(ready: &Path, device: &Path) -> Result<(), Failure> {
    let unfinished = ready.with_extension("new");
    std::fs::write(&unfinished, format!("{}\n", device.display()))?;
    Ok(std::fs::rename(unfinished, ready)?)
}

fn number(options: &HashMap<&str, &str>, key: &str) -> Result<u32, Failure> {
    Ok(options.get(key).map_or(Ok(0), |text| text.parse())?)
}

fn say(line: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

//! Many starts at once on one node: fifty of one image, and one each of twenty images on one base.
//!
//! A start is what containerd asks of the snapshotter to pull an image and to make a container's file system, that file system mounted (overlayfs over the image's
//! one device), and the reading of some whole files in it, one after the other. All of a crowd begin at the same moment, on an agent
//! with an empty cache. The registry's own log says whether a byte was asked for twice. AGAIN is the same crowd once more, with all bytes in the cache and nothing attached:
//! what so many starts cost this machine whoever brings the bytes. A crowd is held to twice one start alone and the time that its bytes need on the link.
//!
//! FIFTY DEVICES is no start of containers: one image attached and mounted fifty times by the admin API, each time as a device of its own, of which each decodes
//! and copies the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    io::Cursor,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_agent::{
    Agent, Config,
    client::Client,
    output::{Table, size},
};
use penstock_blob::{ByteRange, Digest};
use penstock_image::write::{self, LayerWriter, Options};
use penstock_registry::{Layer, Registry, Request};
use penstock_tests::snapshots::{self, Mount, Snapshots};
use rustix::mount::{MountFlags, UnmountFlags};
use serde::Serialize;

use crate::{
    pack::{self, LAZY, Link, Packed},
    report::{Measured, time},
    sample::{Durations, Sample},
    start::{Set, read},
};

/// Starts of one image at once.
const OF_ONE: usize = 50;
/// The crowd whose starts have a device each.
pub(crate) const FIFTY_DEVICES: &str = "one image, fifty devices";
/// Images on one base, started at once.
const IMAGES: usize = 20;
/// What each start reads, as a share of the image's bytes: what fifty of them read together must not be the machine's copying alone.
const SHARE: f64 = 0.02;
/// Bytes of a page of a device.
const PAGE: u64 = 4096;

/// One crowd.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What it is.
    pub name: &'static str,
    /// Starts at once.
    pub starts: usize,
    /// How long each start took.
    pub each: Sample,
    /// How long the slowest of each crowd took.
    pub slowest: Sample,
    /// Requests that the registry answered, on average of the crowds.
    pub requests: u64,
    /// Bytes of blobs that were asked for, on average of the crowds.
    pub asked_bytes: u64,
    /// How many of them had been asked for before, on average of the crowds.
    pub again_bytes: u64,
    /// Twice one start alone, and the time of the bytes on the link; in seconds.
    pub limit_seconds: f64,
}

impl Measured for Vec<Row> {
    const NAME: &'static str = "crowd";

    fn tables(&self) -> String {
        let titles = [
            "CROWD",
            ">STARTS",
            ">N",
            ">EACH MEDIAN",
            ">SLOWEST MEDIAN",
            ">SLOWEST",
            ">LIMIT",
            ">REQUESTS",
            ">ASKED",
            ">TWICE",
        ];
        let mut table = Table::new(&titles);
        for row in self {
            table.row([
                row.name.to_owned(),
                row.starts.to_string(),
                row.slowest.n.to_string(),
                time(row.each.median_seconds),
                time(row.slowest.median_seconds),
                time(row.slowest.max_seconds),
                time(row.limit_seconds),
                row.requests.to_string(),
                size(row.asked_bytes),
                size(row.again_bytes),
            ]);
        }
        table.to_string()
    }
}

/// How the starts of a crowd get at their files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As containers do: by the snapshotter, which has one device for each image.
    Containers,
    /// Each by an attach of its own.
    Devices,
}

/// An image to be started.
#[derive(Debug, Clone)]
struct Image {
    reference: String,
    manifest: Digest,
    /// Its layers, the lowest first.
    layers: Vec<Digest>,
}

/// A crowd while it is measured.
#[derive(Debug)]
struct Crowd {
    name: &'static str,
    way: Way,
    images: Vec<Image>,
    each: Durations,
    slowest: Durations,
    requests: u64,
    asked_bytes: u64,
    again_bytes: u64,
}

impl Crowd {
    fn new(name: &'static str, way: Way, images: Vec<Image>) -> anyhow::Result<Self> {
        let (each, slowest) = (Durations::new()?, Durations::new()?);
        Ok(Self { name, way, images, each, slowest, requests: 0, asked_bytes: 0, again_bytes: 0 })
    }

    fn add(&mut self, took: &[Duration], requests: &[Request]) {
        took.iter().for_each(|took| self.each.add(*took));
        self.slowest.add(took.iter().max().copied().unwrap_or_default());
        let (asked, distinct) = asked(requests);
        self.requests += requests.len() as u64;
        self.asked_bytes += asked;
        self.again_bytes += asked - distinct;
    }

    fn row(&self, alone_seconds: f64, link: Link) -> Row {
        let slowest = self.slowest.sample();
        let n = slowest.n.max(1);
        let asked_bytes = self.asked_bytes / n;
        Row {
            name: self.name,
            starts: self.images.len(),
            each: self.each.sample(),
            slowest,
            requests: self.requests / n,
            asked_bytes,
            again_bytes: self.again_bytes / n,
            limit_seconds: alone_seconds * 2.0 + asked_bytes as f64 / link.bandwidth_bytes_per_second as f64,
        }
    }
}

/// Bytes of blobs asked for, and how many of them are distinct.
fn asked(requests: &[Request]) -> (u64, u64) {
    let mut blobs: BTreeMap<Digest, Vec<ByteRange>> = BTreeMap::new();
    for (digest, range) in requests.iter().filter_map(|request| request.digest.zip(request.range)) {
        blobs.entry(digest).or_default().push(range);
    }
    let (mut asked, mut distinct) = (0, 0);
    for ranges in blobs.values_mut() {
        ranges.sort_unstable();
        let mut end = 0;
        for range in ranges.iter() {
            asked += range.len();
            distinct += range.end().saturating_sub(range.start().max(end));
            end = end.max(range.end());
        }
    }
    (asked, distinct)
}

/// Measures each crowd `n` times, in turns.
///
/// # Errors
/// When anything fails.
pub async fn run(packed: &Packed, dir: &Path, n: u64) -> anyhow::Result<Vec<Row>> {
    let set = Set::of(packed, SHARE)?;
    let one = Image { reference: packed.reference(LAZY), manifest: packed.manifest, layers: vec![packed.layer.digest] };
    let (many, on_base) = (vec![one.clone(); OF_ONE], on_base(packed)?);
    let pair = |name, again, way, images: &[Image]| {
        anyhow::Ok((Crowd::new(name, way, images.to_vec())?, Crowd::new(again, way, images.to_vec())?))
    };
    let mut crowds = [
        pair("one start", "one start, again", Way::Containers, &[one])?,
        pair("one image", "one image, again", Way::Containers, &many)?,
        pair(FIFTY_DEVICES, "one image, fifty devices, again", Way::Devices, &many)?,
        pair("images on one base", "images on one base, again", Way::Containers, &on_base)?,
    ];
    for _ in 0..n {
        for (cold, again) in &mut crowds {
            let place = tempfile::tempdir_in(dir)?;
            let (snapshotter_root, snapshotter_socket) = (place.path().join("snapshots"), place.path().join("snaps"));
            let config = Config {
                snapshotter_enable: true,
                snapshotter_root,
                snapshotter_socket,
                ..Config::in_dir(place.path())
            };
            let (agent, socket) = (Agent::start(config.clone()).await?, config.snapshotter_socket);
            let (snapshots, mut measured) = (Snapshots::connect(&socket).await?, Ok(()));
            for (nth, crowd) in [cold, again].into_iter().enumerate() {
                let node = Node {
                    registry: &packed.registry,
                    client: Client::new(agent.socket().to_owned()),
                    snapshots: snapshots.clone(),
                    dir: place.path().join(nth.to_string()),
                    set: &set,
                };
                measured = Box::pin(node.start_all(crowd)).await;
                if measured.is_err() {
                    break;
                }
            }
            // Whatever happened, nothing stays mounted.
            agent.stop_for_good().await?;
            measured?;
            place.close()?;
        }
    }
    let alone = |crowd: &Crowd| crowd.each.sample().median_seconds;
    let (cold_alone, again_alone) = (alone(&crowds[0].0), alone(&crowds[0].1));
    let rows = crowds
        .iter()
        .flat_map(|(cold, again)| [cold.row(cold_alone, packed.link), again.row(again_alone, packed.link)]);
    Ok(rows.collect())
}

/// Where a crowd starts.
struct Node<'a> {
    registry: &'a Registry,
    client: Client,
    snapshots: Snapshots,
    /// Where file systems are mounted.
    dir: PathBuf,
    set: &'a Set,
}

/// What is to be taken away after a start.
#[derive(Debug)]
enum Started {
    /// A mounted container, by its key, and the snapshots of its image's layers, the lowest first.
    Container { key: String, mounted: Mounted, layers: Vec<String> },
    /// A device, by its id.
    Device(String),
}

/// A mount that lasts as long as this.
#[derive(Debug)]
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.0, UnmountFlags::DETACH) {
            penstock_agent::output::note(format_args!("{} is still mounted: {error}", self.0.display()));
        }
    }
}

impl Node<'_> {
    /// One crowd: every image started at the same time; then all is taken away.
    async fn start_all(&self, crowd: &mut Crowd) -> anyhow::Result<()> {
        let (before, way) = (self.registry.requests().len(), crowd.way);
        let starts: Vec<_> = (crowd.images.iter().enumerate())
            .map(|(nth, image)| async move {
                let root = self.dir.join(nth.to_string());
                std::fs::create_dir_all(&root)?;
                let began = Instant::now();
                let started = match way {
                    Way::Containers => self.container(image, nth, &root).await?,
                    Way::Devices => self.device(image, &root).await?,
                };
                read(&root, self.set).await?;
                anyhow::Ok((began.elapsed(), started))
            })
            .collect();
        let started: Vec<(Duration, Started)> =
            stream::iter(starts).buffer_unordered(crowd.images.len()).try_collect().await?;
        let requests = self.registry.requests();
        ensure!(requests.len() < penstock_registry::LOG_LIMIT, "the registry's log is full: use a smaller --n");
        let took: Vec<Duration> = started.iter().map(|(took, _)| *took).collect();
        crowd.add(&took, requests.get(before..).context("the registry's log was cut")?);
        self.take_away(started.into_iter().map(|(_, started)| started)).await
    }

    /// Pulls an image as containerd does, and mounts a container of it at `root`.
    async fn container(&self, image: &Image, nth: usize, root: &Path) -> anyhow::Result<Started> {
        let (mut names, mut chain): (Vec<String>, Option<Digest>) = (Vec::new(), None);
        for digest in &image.layers {
            let above = chain.map_or(*digest, |below| Digest::of(format!("{below} {digest}").as_bytes()));
            let (reference, manifest) = (image.reference.clone(), image.manifest);
            let layer = snapshots::Layer { reference, manifest, digest: *digest, chain: above };
            let parent = names.last().map_or("", String::as_str);
            names.push(self.snapshots.pull(&layer, parent).await?);
            chain = Some(above);
        }
        let key = format!("container {nth}");
        let mounts = self.snapshots.prepare(&key, names.last().context("an image without layers")?).await?;
        let [overlay] = &mounts[..] else { anyhow::bail!("the snapshotter answered {} mounts", mounts.len()) };
        Ok(Started::Container { key, mounted: mount(overlay, root)?, layers: names })
    }

    async fn device(&self, image: &Image, root: &Path) -> anyhow::Result<Started> {
        let request = serde_json::json!({ "reference": image.reference, "mount": root });
        Ok(Started::Device(self.client.attach(&serde_json::from_value(request)?).await?.id))
    }

    async fn take_away(&self, started: impl Iterator<Item = Started>) -> anyhow::Result<()> {
        let mut tops_first: BTreeSet<(std::cmp::Reverse<usize>, String)> = BTreeSet::new();
        for one in started {
            match one {
                Started::Device(id) => self.client.detach(&id, false).await?,
                Started::Container { key, mounted, layers } => {
                    drop(mounted);
                    self.snapshots.remove(&key).await?;
                    tops_first.extend((0..).map(std::cmp::Reverse).zip(layers));
                }
            }
        }
        for (_, name) in tops_first {
            self.snapshots.remove(&name).await?;
        }
        Ok(self.snapshots.clean_up().await?)
    }
}

/// Mounts what the snapshotter answered.
fn mount(mount: &Mount, root: &Path) -> anyhow::Result<Mounted> {
    let options = CString::new(mount.options.join(","))?;
    rustix::mount::mount(&mount.source, root, &mount.kind, MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("{mount:?} cannot be mounted"))?;
    Ok(Mounted(root.to_owned()))
}

/// Images of the same files: each the packed layer with one page of its own on top, at the end of the disk, where no file is.
fn on_base(packed: &Packed) -> anyhow::Result<Vec<Image>> {
    let device_bytes = packed.facts.disk_bytes;
    let image = |nth: usize| {
        let mut out = Cursor::new(Vec::new());
        let options = Options { device_bytes: Some(device_bytes), threads: 1, ..Options::default() };
        let mut writer = LayerWriter::new(&mut out, options)?;
        writer.data(
            (device_bytes - PAGE) / 512,
            format!("image {nth:<4090}").as_bytes().get(..4096).context("a page")?,
        )?;
        let annotations = writer.finish()?.annotations;
        let blob = packed.registry.put_blob(out.into_inner());
        let upper = Layer { blob, media_type: write::MEDIA_TYPE.into(), annotations };
        let repository = format!("bench/on-base{nth}");
        let layers = vec![packed.lazy.clone(), upper];
        let digests = layers.iter().map(|layer| layer.blob.digest).collect();
        let manifest = pack::put(&packed.registry, &repository, layers, Some(write::ARTIFACT_TYPE))?;
        anyhow::Ok(Image { reference: packed.reference(&repository), manifest, layers: digests })
    };
    (0..IMAGES).map(image).collect()
}

#[cfg(test)]
mod tests {
    use penstock_registry::Kind;

    use super::*;

    #[test]
    fn bytes_that_were_asked_for_twice_are_counted_once_and_told() {
        let request = |name: &[u8], range: Option<(u64, u64)>| Request {
            method: reqwest::Method::GET,
            path: String::new(),
            kind: Kind::Blob,
            repository: None,
            digest: Some(Digest::of(name)),
            range: range.map(|(start, end)| ByteRange::new(start, end).unwrap()),
            status: 206,
            bytes: 0,
        };
        let log = [
            request(b"a", Some((0, 10))),
            request(b"a", Some((5, 20))),
            request(b"b", Some((0, 10))),
            request(b"a", None),
        ];
        assert_eq!(asked(&log), (35, 30));
    }
}

//! Many starts at once on one node: fifty of one image, and one each of twenty images on one base.
//!
//! A start is an attach with a mount, and the reading of some whole files, one after the other. All of a crowd begin at the same moment, on an agent
//! with an empty cache. The registry's own log says whether a byte was asked for twice. AGAIN is the same crowd once more, with all bytes in the cache:
//! what so many starts cost this machine whoever brings the bytes. A crowd is held to twice one start alone and the time that its bytes need on the link.

use std::{
    collections::BTreeMap,
    io::Cursor,
    path::Path,
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
use penstock_registry::{Artifact, Layer, Registry, Request};
use serde::Serialize;

use crate::{
    pack::{LAZY, Link, Packed, TAG},
    report::{Measured, time},
    sample::{Durations, Sample},
    start::{Set, read},
};

/// Starts of one image at once.
const OF_ONE: usize = 50;
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

/// A crowd while it is measured.
#[derive(Debug)]
struct Crowd {
    name: &'static str,
    references: Vec<String>,
    each: Durations,
    slowest: Durations,
    requests: u64,
    asked_bytes: u64,
    again_bytes: u64,
}

impl Crowd {
    fn new(name: &'static str, references: Vec<String>) -> anyhow::Result<Self> {
        let (each, slowest) = (Durations::new()?, Durations::new()?);
        Ok(Self { name, references, each, slowest, requests: 0, asked_bytes: 0, again_bytes: 0 })
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
            starts: self.references.len(),
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
    let one = packed.reference(LAZY);
    let on_base = on_base(packed)?;
    let mut crowds = [
        (Crowd::new("one start", vec![one.clone()])?, Crowd::new("one start, again", vec![one.clone()])?),
        (Crowd::new("one image", vec![one.clone(); OF_ONE])?, Crowd::new("one image, again", vec![one; OF_ONE])?),
        (Crowd::new("images on one base", on_base.clone())?, Crowd::new("images on one base, again", on_base)?),
    ];
    for _ in 0..n {
        for (cold, again) in &mut crowds {
            let place = tempfile::tempdir_in(dir)?;
            let agent = Agent::start(Config::in_dir(place.path())).await?;
            let client = Client::new(agent.socket().to_owned());
            let mut measured = Ok(());
            for (nth, crowd) in [cold, again].into_iter().enumerate() {
                measured =
                    start_all(&packed.registry, &client, (&place.path().join(nth.to_string()), &set), crowd).await;
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

/// One crowd: every image attached, mounted and read at the same time; then all are detached.
async fn start_all(
    registry: &Registry,
    client: &Client,
    (dir, set): (&Path, &Set),
    crowd: &mut Crowd,
) -> anyhow::Result<()> {
    let before = registry.requests().len();
    let starts: Vec<_> = crowd
        .references
        .iter()
        .enumerate()
        .map(|(nth, reference)| {
            let (root, reference) = (dir.join(nth.to_string()), reference.clone());
            async move {
                std::fs::create_dir_all(&root)?;
                let request = serde_json::from_value(serde_json::json!({ "reference": reference, "mount": root }))?;
                let began = Instant::now();
                let device = client.attach(&request).await?;
                read(&root, set).await?;
                anyhow::Ok((began.elapsed(), device.id))
            }
        })
        .collect();
    let started: Vec<(Duration, String)> =
        stream::iter(starts).buffer_unordered(crowd.references.len()).try_collect().await?;
    let requests = registry.requests();
    ensure!(requests.len() < penstock_registry::LOG_LIMIT, "the registry's log is full: use a smaller --n");
    let took: Vec<Duration> = started.iter().map(|(took, _)| *took).collect();
    crowd.add(&took, requests.get(before..).context("the registry's log was cut")?);
    for (_, id) in &started {
        client.detach(id, false).await?;
    }
    Ok(())
}

/// Images of the same files: each the packed layer with one page of its own on top, at the end of the disk, where no file is.
fn on_base(packed: &Packed) -> anyhow::Result<Vec<String>> {
    let device_bytes = packed.facts.disk_bytes;
    let config =
        serde_json::json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } });
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
        let artifact_type = Some(write::ARTIFACT_TYPE.to_owned());
        let image = Artifact { config: config.to_string().into(), layers, artifact_type, ..Artifact::default() };
        packed.registry.put_image(&repository, TAG, image)?;
        anyhow::Ok(format!("{}/{repository}:{TAG}", packed.registry.host()))
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

//! What an operator sees of reads: where their bytes came from and how long that took, and why a start took as long as it did; and of the
//! memory that they need.

use std::{
    fs::{self, File},
    io::{Cursor, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use penstock_image::write::{LayerWriter, Options};
use penstock_registry::Config;
use penstock_tests::{
    agent::Place,
    disk, fixture,
    http::Request,
    loopback::Loopback,
    push::Layer,
    require,
    skip::{filesystem, fuse, loop_devices, program, root},
    tree,
    workdir::Workdir,
    workspace::text,
};
use serde_json::Value;

fn cannot() -> Option<String> {
    root().or_else(fuse)
}

/// The reads of a tier, in what `/v1/latency` and `latency` of a device say.
fn reads(tiers: &Value, tier: &str) -> u64 {
    let mut tiers = tiers.as_array().expect("a list").iter();
    tiers.find(|one| one["tier"] == tier).map_or(0, |one| one["reads"].as_u64().expect("a number"))
}

#[test]
fn reads_that_wait_for_a_registry_are_timed_and_explained() {
    require!(cannot());
    let latency = Duration::from_millis(20);
    let (work, registry) = (Workdir::new(), Loopback::start(Config { latency, ..Config::default() }));
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let reference = format!("{}/fixtures/overlaybd:obd-lz4", registry.host());
    let agent = Place::new(work.path()).with(&["--cache-chunk-size", "64KiB"]).start();
    let device = agent.attach(&reference, &["--transport", "fuse"]);
    let id = text(&device["id"]);
    let explained = || agent.get(&format!("/v1/devices/{id}/explain"));

    let before = explained();
    assert_eq!(before["sentence"], "nothing has been read from it yet");
    assert!(before["start"].is_null() && before["attached_ms"].is_u64(), "{before}");

    let mut disk = File::open(text(&device["device_path"])).expect("the device");
    assert_eq!(tree::sha256(disk.try_clone().expect("a descriptor")).expect("every byte"), fixture::DEVICE_SHA256);
    let after = explained();
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no number in {after}"));
    let (start, waits) = (&after["start"], &after["waits"]);
    assert!(number(&waits["reads"]) > 0 && number(&waits["bytes"]) > 0, "{after}");
    assert!(number(&start["stalled_ms"]) <= number(&start["took_ms"]), "{after}");
    assert!(number(&waits["stalled_ms"]) >= 20, "the registry takes that long for each answer: {after}");
    assert!(number(&after["link"]["latency_us"]) >= 20_000, "{after}");
    assert!(!after["ranges"].as_array().expect("a list").is_empty(), "{after}");

    let shown = agent.counted_device(id);
    let (stats, tiers) = (&shown["stats"], &shown["latency"]);
    assert!(number(&stats["stalled_ms"]) <= number(&stats["waited_ms"]), "{stats}");
    // A part of a map that was being made is waited for, too; nobody gives that.
    assert!(reads(tiers, "origin") > 0 && reads(tiers, "mirror") == 0, "{tiers}");
    let misses = reads(tiers, "origin") + reads(tiers, "other");
    assert_eq!(misses, number(&stats["misses"]), "{shown}");
    assert_eq!(reads(tiers, "memory") + reads(tiers, "disk"), number(&stats["hits"]), "{shown}");
    disk.read_exact(&mut [0]).expect_err("all of it was read");
    drop(disk);

    let metrics = agent.http(&Request::get("/metrics")).expect("the agent answers").text();
    let count = format!("penstock_device_request_seconds_count{{tier=\"origin\"}} {}", reads(tiers, "origin"));
    assert!(metrics.contains(&count), "no {count} in {metrics}");
    let of_node = agent.get("/v1/latency");
    assert_eq!(&of_node, tiers, "it is the only device");
    let _ = agent.run(&["detach", id]).ok();
    assert_eq!(agent.get("/v1/latency"), of_node, "reads of a device that is gone stay");
    assert_eq!(agent.run(&["explain", id]).code, Some(4), "it is gone");
}

/// A mounted disk of which one large file is read.
fn files_are_named(disk: impl Fn(&Path, PathBuf) -> PathBuf) {
    let latency = Duration::from_millis(20);
    let (work, registry) = (Workdir::new(), Loopback::start(Config { latency, ..Config::default() }));
    let tree = work.dir("tree");
    fs::create_dir_all(tree.join("usr/lib/python3")).expect("a directory");
    // Nothing that a chunk of anything else brings along.
    let bytes: Vec<u8> = (0..8_u32 << 20).map(|at| (at % 251).to_le_bytes()[0]).collect();
    fs::write(tree.join("usr/lib/python3/ssl.so"), &bytes).expect("a file");
    let (reference, _) = registry.disk("large/disk", "1", &disk(&tree, work.join("disk")));
    let agent = Place::new(work.path()).with(&["--cache-chunk-size", "64KiB"]).start();
    let mount = work.dir("mount");
    let device = agent.attach(&reference, &["--transport", "fuse", "--mount", mount.to_str().expect("UTF-8")]);
    let id = text(&device["id"]);
    let asked = |registry: &Loopback| registry.counts().requests;
    assert!(fs::read(mount.join("usr/lib/python3/ssl.so")).expect("the file") == bytes);
    let before = asked(&registry);
    let explained = agent.get(&format!("/v1/devices/{id}/explain"));
    assert_eq!(explained["under"], "/usr/lib/python3", "{explained}");
    // Of some ten reads of metadata and sixty of the file, each of which waits for one answer, any may have waited longest.
    let ranges = explained["ranges"].as_array().expect("a list");
    assert!(ranges.iter().any(|range| range["path"] == "/usr/lib/python3/ssl.so"), "{explained}");
    assert!(text(&explained["sentence"]).contains("most under /usr/lib/python3"), "{explained}");
    assert_eq!(asked(&registry), before, "nothing is fetched for that");
    let frame = agent.run(&["top", "--once"]).ok();
    assert!(frame.starts_with("1 devices, ") && frame.contains(id) && frame.contains("origin"), "{frame}");
}

#[test]
fn the_files_of_an_erofs_that_were_waited_for_are_named() {
    require!(cannot().or_else(loop_devices).or_else(|| filesystem("erofs")).or_else(|| program("mkfs.erofs")));
    files_are_named(disk::erofs);
}

#[test]
fn the_files_of_an_ext4_that_were_waited_for_are_named() {
    require!(cannot().or_else(loop_devices).or_else(|| filesystem("ext4")).or_else(|| program("mkfs.ext4")));
    files_are_named(|tree, image| disk::ext4(tree, image, 32 << 20));
}

#[test]
fn the_command_prints_a_sentence_and_the_parts() {
    require!(cannot());
    let (work, registry) = (Workdir::new(), Loopback::start(Config::default()));
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let reference = format!("{}/fixtures/overlaybd:obd-lz4", registry.host());
    let agent = Place::new(work.path()).start();
    let device = agent.attach(&reference, &["--transport", "fuse"]);
    let id = text(&device["id"]);
    let mut buffer = vec![0; 65_536];
    File::open(text(&device["device_path"])).expect("the device").read_exact(&mut buffer).expect("the first bytes");
    let said = agent.run(&["explain", id]).ok();
    assert!(said.starts_with(&format!("{id}: ")) && said.lines().count() == 1, "{said}");
    let parts = agent.run(&["explain", id, "--output", "json"]).json();
    assert!(parts["image_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{parts}");
    let table = agent.run(&["stats"]).ok();
    assert!(table.contains("READS FROM") && table.contains("P99.9"), "{table}");
    assert!(agent.run(&["stats", id]).ok().contains("READS FROM"));
    assert!(agent.run(&["stats", "--output", "json"]).json().is_array());
}

/// Devices attached beside the large one; `penstock-bench many` attaches a thousand.
const DEVICES: u64 = 60;
/// Bytes of a page, and of each extent.
const PAGE: u64 = 4096;
/// Extents of the large disk, and bytes from one to the next: a tebibyte.
const EXTENTS: (u64, u64) = (65_536, 16 << 20);

fn page(nth: u64) -> Vec<u8> {
    nth.to_le_bytes().repeat(512)
}

/// A layer of a disk of `device_bytes` that has these pages.
fn layer(device_bytes: u64, pages: impl Iterator<Item = u64>) -> Layer {
    let mut out = Cursor::new(Vec::new());
    let options = Options { device_bytes: Some(device_bytes), threads: 1, ..Options::default() };
    let mut writer = LayerWriter::new(&mut out, options).expect("a layer");
    pages.for_each(|nth| writer.data(nth * PAGE / 512, &page(nth)).expect("pages in their order"));
    let _ = writer.finish().expect("a layer");
    Layer::overlaybd(out.into_inner())
}

/// Reads pages of a device and compares them.
fn check_pages(device: &Value, pages: impl Iterator<Item = u64>) {
    let disk = File::open(text(&device["device_path"])).expect("the device");
    for nth in pages {
        let mut found = vec![0; 4096];
        disk.read_exact_at(&mut found, nth * PAGE).expect("a page");
        assert!(found == page(nth), "page {nth} has other bytes");
    }
}

#[test]
fn many_devices_and_an_image_of_a_tebibyte_stay_within_the_budget_of_memory() {
    require!(cannot());
    let (work, registry) = (Workdir::new(), Loopback::start(Config::default()));
    let agent = Place::new(work.path()).start();
    let base = layer(16 << 20, 0..1024);
    let attached = (0..DEVICES).map(|nth| {
        let top = layer(16 << 20, std::iter::once(1024 + nth));
        let reference = registry.image(&format!("many/{nth}"), "1", &[base.clone(), top]);
        agent.attach(&reference, &["--transport", "fuse"])
    });
    let attached: Vec<Value> = attached.collect();
    let (extents, stride) = EXTENTS;
    let at = |nth: u64| nth * stride / PAGE;
    let large = registry.image("large/disk", "1", &[layer(extents * stride, (0..extents).map(at))]);
    let large = agent.attach(&large, &["--transport", "fuse"]);
    for (nth, device) in (0..).zip(&attached) {
        check_pages(device, [nth, 1024 + nth].into_iter());
    }
    // All over it, in no order.
    check_pages(&large, (0..256).map(|nth| at(nth * 40_503 % extents)));

    let memory = agent.run(&["memory", "--output", "json"]).json();
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no number in {memory}"));
    let budget = number(&memory["budget_bytes"]);
    for part in memory["parts"].as_array().expect("a list") {
        assert!(
            part["limit_bytes"].is_null() || number(&part["used_bytes"]) <= number(&part["limit_bytes"]),
            "{memory}"
        );
    }
    assert!(number(&memory["used_bytes"]) <= budget, "{memory}");
    assert!(number(&memory["resident_bytes"]) <= budget, "the whole process, with all that is no part: {memory}");
}

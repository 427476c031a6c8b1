//! Real images from a real registry, attached by the real program: the device's digest, the listing and every file are right.

use std::{fs::File, path::Path};

use penstock_tests::{
    agent::{Agent, Place},
    disk,
    docker_registry::DockerRegistry,
    fixture,
    push::Layer,
    require,
    skip::{mounting_from_docker_registry, program},
    tree::{self, Tree},
    workdir::Workdir,
    workspace::text,
};
use serde_json::Value;

/// sha256 of the whole device.
fn device_sha256(device: &Value) -> String {
    let file = File::open(text(&device["device_path"])).expect("the device can be opened");
    tree::sha256(file).expect("the device can be read")
}

/// Attaches `reference` with a mount, compares the device and its tree, detaches, and sees that nothing is left.
fn attached_is_right(reference: &str, file_system: &str, device_sha256_hex: &str, expected: &Tree) {
    let work = Workdir::new();
    let mount = work.dir("mnt");
    let agent = Place::new(work.path()).start();
    let device = agent.attach(reference, &["--transport", "fuse", "--mount", mount.to_str().expect("UTF-8")]);
    assert_eq!((text(&device["transport"]), text(&device["state"])), ("fuse", "attached"));
    assert_eq!(text(&device["file_system"]), file_system);
    tree::assert_same(&tree::read(&mount).expect("every file can be read"), expected);
    assert_eq!(device_sha256(&device), device_sha256_hex);
    let stats = &agent.device(text(&device["id"]))["stats"];
    assert_eq!(stats["errors"], 0, "{stats}");
    assert_read_only(&mount);
    detach_leaves_nothing(&agent, &work, text(&device["id"]));
    assert!(agent.stop().success());
}

fn assert_read_only(mount: &Path) {
    let error = File::create(mount.join("new")).expect_err("the mount is read-only");
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

fn detach_leaves_nothing(agent: &Agent, work: &Workdir, id: &str) {
    let _ = agent.run(&["detach", id]).ok();
    assert_eq!(agent.get("/v1/devices").as_array().map(Vec::len), Some(0));
    assert!(work.mounts().iter().all(|path| !path.ends_with("mnt")), "{:?}", work.mounts());
    assert!(work.loops().is_empty(), "{:?}", work.loops());
}

/// An OverlayBD image of the fixtures, through a registry.
fn fixture_is_right(tag: &str) {
    let registry = DockerRegistry::start();
    let repository = registry.repository("fixtures/overlaybd");
    repository.layout(&fixture::layout());
    attached_is_right(&repository.reference(tag), "ext4", fixture::DEVICE_SHA256, &fixture::tree());
}

/// An image of these layers, annotated as OverlayBD, through a registry.
fn layers_are_right(layers: Vec<Vec<u8>>) {
    let registry = DockerRegistry::start();
    let repository = registry.repository("fixtures/layers");
    let layers: Vec<Layer> = layers.into_iter().map(Layer::overlaybd).collect();
    repository.image("1", &layers);
    attached_is_right(&repository.reference("1"), "ext4", fixture::DEVICE_SHA256, &fixture::tree());
}

#[test]
fn an_lz4_image_is_right_from_a_real_registry() {
    require!(mounting_from_docker_registry("ext4"));
    fixture_is_right("obd-lz4");
}

#[test]
fn a_zstd_image_is_right_from_a_real_registry() {
    require!(mounting_from_docker_registry("ext4"));
    fixture_is_right("obd-zstd16");
}

#[test]
fn an_image_of_plain_lsmt_layers_is_right() {
    require!(mounting_from_docker_registry("ext4"));
    layers_are_right(fixture::plain_layers());
}

#[test]
fn an_image_of_sealed_layers_is_right() {
    require!(mounting_from_docker_registry("ext4"));
    layers_are_right(fixture::sealed_layers());
}

/// A disk made here, as one blob, through a registry.
fn disk_is_right(file_system: &str, make: impl FnOnce(&Path, &Workdir) -> std::path::PathBuf) {
    let work = Workdir::new();
    let tree = work.dir("tree");
    disk::fill(&tree, 7, 16 << 20);
    let disk = make(&tree, &work);
    let registry = DockerRegistry::start();
    let repository = registry.repository("disks/made-here");
    repository.image("1", &[Layer::disk(std::fs::read(&disk).expect("the disk"))]);
    let digest = tree::sha256(File::open(&disk).expect("the disk")).expect("the disk can be read");
    let expected = tree::read(&tree).expect("the tree");
    attached_is_right(&repository.reference("1"), file_system, &digest, &expected);
}

#[test]
fn a_raw_erofs_disk_is_right() {
    require!(mounting_from_docker_registry("erofs"), program("mkfs.erofs"));
    disk_is_right("erofs", |tree, work| disk::erofs(tree, work.join("disk")));
}

#[test]
fn a_raw_squashfs_disk_is_right() {
    require!(mounting_from_docker_registry("squashfs"), program("mksquashfs"));
    disk_is_right("squashfs", |tree, work| disk::squashfs(tree, work.join("disk")));
}

#[test]
fn a_raw_ext4_disk_is_right() {
    require!(mounting_from_docker_registry("ext4"), program("mke2fs"));
    disk_is_right("ext4", |tree, work| disk::ext4(tree, work.join("disk"), 64 << 20));
}

#[test]
fn a_raw_xfs_disk_is_mounted() {
    require!(mounting_from_docker_registry("xfs"), program("mkfs.xfs"));
    let work = Workdir::new();
    let disk = disk::xfs(work.join("disk"), 320 << 20);
    let registry = DockerRegistry::start();
    let repository = registry.repository("disks/xfs");
    repository.image("1", &[Layer::disk(std::fs::read(&disk).expect("the disk"))]);
    let digest = tree::sha256(File::open(&disk).expect("the disk")).expect("the disk can be read");
    attached_is_right(&repository.reference("1"), "xfs", &digest, &Tree::new());
}

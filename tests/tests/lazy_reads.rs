//! Only what is read is fetched, and nothing twice: asserted from the registry's side, by its own log.

use std::{fs, path::Path};

use penstock_tests::{
    agent::{Agent, Place},
    disk,
    docker_registry::{DockerRegistry, Logged},
    fixture,
    push::Layer,
    require,
    skip::{mounting_from_docker_registry, program},
    tree,
    workdir::Workdir,
    workspace::text,
};

/// Ballast of the large image.
const BALLAST_BYTES: u64 = 256 << 20;

/// What mounting the large image and reading one small file of it may fetch: the first chunk, a few of metadata, the file's. The
/// chunk is 128 KiB.
const SMALL_BYTES: u64 = 4 << 20;
const SMALL_REQUESTS: usize = 16;

/// Downloads of blobs that are layers: larger than any config of these images.
fn downloads(logged: &[Logged]) -> Vec<&Logged> {
    logged.iter().filter(|get| get.method == "GET" && get.path.contains("/blobs/")).collect()
}

fn bytes(downloads: &[&Logged]) -> u64 {
    downloads.iter().map(|get| get.bytes).sum()
}

/// Makes the kernel forget what it has read, so that the next read reaches the device again.
fn forget_page_cache() {
    fs::write("/proc/sys/vm/drop_caches", "1").expect("root may drop caches");
}

fn mounted<'a>(agent: &Agent, reference: &str, dir: &'a Path) -> (&'a Path, String) {
    let device = agent.attach(reference, &["--transport", "fuse", "--mount", dir.to_str().expect("UTF-8")]);
    (dir, text(&device["id"]).to_owned())
}

/// A large disk in a registry, its reference, and the tree it was made of.
fn large_disk(work: &Workdir, registry: &DockerRegistry) -> String {
    let tree = work.dir("tree");
    disk::fill(&tree, 11, BALLAST_BYTES);
    let image = fs::read(disk::erofs(&tree, work.join("disk"))).expect("the disk");
    assert!(image.len() as u64 > BALLAST_BYTES);
    let repository = registry.repository("large/disk");
    repository.image("1", &[Layer::disk(image)]);
    repository.reference("1")
}

#[test]
fn a_small_file_of_a_large_image_costs_little_and_only_once() {
    require!(mounting_from_docker_registry("erofs"), program("mkfs.erofs"));
    let (work, registry) = (Workdir::new(), DockerRegistry::start());
    let reference = large_disk(&work, &registry);
    let place = Place::new(work.path()).reading_ahead();
    let agent = place.start();
    let truth = fs::read(work.join("tree/etc/small.conf")).expect("the truth");
    let pushed = registry.settled().len();

    let (first, second) = (work.dir("first"), work.dir("second"));
    let (mount, first_id) = mounted(&agent, &reference, &first);
    assert!(fs::read(mount.join("etc/small.conf")).expect("the file") == truth);
    forget_page_cache();
    assert!(fs::read(mount.join("etc/small.conf")).expect("the file") == truth);
    let (again, second_id) = mounted(&agent, &reference, &second);
    assert!(fs::read(again.join("etc/small.conf")).expect("the file") == truth);
    // What the kernel reads ahead is its own choice, so exact numbers are those of devices that are gone.
    for id in [&first_id, &second_id] {
        let _ = agent.run(&["detach", id]).ok();
    }
    assert_nothing_twice(&agent, &registry, pushed);
    assert!(agent.stop().success());

    forget_page_cache();
    let agent = place.start();
    let (again, id) = mounted(&agent, &reference, &first);
    assert!(fs::read(again.join("etc/small.conf")).expect("the file") == truth);
    let _ = agent.run(&["detach", &id]).ok();
    let present = assert_nothing_twice(&agent, &registry, pushed);
    let requests = downloads(&registry.settled()[pushed..]).len();
    assert!(present > 0 && present <= SMALL_BYTES, "{present} bytes of a small file were fetched");
    assert!(requests <= SMALL_REQUESTS, "{requests} requests for a small file");
}

/// Waits until the registry has sent as many bytes as the agent keeps, with no device attached; more would be bytes fetched twice, for the
/// agent has dropped none. What is read ahead may still be on its way: both are looked at again then. Answers that number.
fn assert_nothing_twice(agent: &Agent, registry: &DockerRegistry, before: usize) -> u64 {
    agent.until("as many bytes were fetched as are kept", || {
        let cache = agent.get("/v1/cache");
        let blobs = cache["blobs"].as_array().expect("a list");
        let present = blobs.iter().map(|blob| blob["present_bytes"].as_u64().expect("a number")).sum();
        (bytes(&downloads(&registry.settled()[before..])) == present).then_some(present)
    })
}

fn assert_nothing_fetched(registry: &DockerRegistry, before: usize, what: &str) {
    let logged = registry.settled();
    let fetched = downloads(&logged[before..]);
    assert!(fetched.is_empty(), "{what} fetched {fetched:?}");
}

#[test]
fn an_overlaybd_image_is_fetched_as_it_is_read_and_no_byte_twice() {
    require!(mounting_from_docker_registry("ext4"));
    let (work, registry) = (Workdir::new(), DockerRegistry::start());
    let repository = registry.repository("fixtures/overlaybd");
    repository.layout(&fixture::layout());
    let whole: u64 = fixture::layers("obd-lz4").iter().map(|layer| layer.bytes.len() as u64).sum();
    // The fixture is small, so chunks must be too for a share of it to mean anything.
    let agent = Place::new(work.path()).with(&["--cache-chunk-size", "64KiB"]).start();
    let pushed = registry.settled().len();

    let first = work.dir("first");
    let (mount, _) = mounted(&agent, &repository.reference("obd-lz4"), &first);
    let small = fs::read(mount.join("etc/os-release")).expect("the file");
    assert_eq!(tree::sha256(small.as_slice()).expect("bytes"), fixture::tree()["etc/os-release"].sha256);
    let logged = registry.settled();
    let little = bytes(&downloads(&logged[pushed..]));
    assert!(little > 0 && little <= whole / 2, "mounting and one file fetched {little} of {whole} bytes");

    tree::assert_same(&tree::read(mount).expect("every file"), &fixture::tree());
    let all = bytes(&downloads(&registry.settled()[pushed..]));
    assert!(all > little && all <= whole, "reading every file fetched {all} of {whole} bytes");
    let before = registry.settled().len();
    let second = work.dir("second");
    let (again, _) = mounted(&agent, &repository.reference("obd-lz4"), &second);
    tree::assert_same(&tree::read(again).expect("every file"), &fixture::tree());
    assert_nothing_fetched(&registry, before, "a second attach");
}

#[test]
fn memory_does_not_grow_with_what_is_read() {
    require!(mounting_from_docker_registry("erofs"), program("mkfs.erofs"));
    let (work, registry) = (Workdir::new(), DockerRegistry::start());
    let reference = large_disk(&work, &registry);
    let agent = Place::new(work.path()).start();
    let dir = work.dir("mnt");
    let (mount, _) = mounted(&agent, &reference, &dir);
    let expected = tree::read(&work.join("tree")).expect("the truth");
    let before = agent.resident_bytes();
    tree::assert_same(&tree::read(mount).expect("every file"), &expected);
    let grown = agent.resident_bytes().saturating_sub(before);
    // Twice the budget of bytes in flight (64 MiB): the fetch's and the reader's copy. The image is four times that.
    assert!(grown <= 128 << 20, "resident memory grew by {grown} bytes while {BALLAST_BYTES} were read");
}

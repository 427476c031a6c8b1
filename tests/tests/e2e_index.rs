//! Indexes with a real registry that has no referrers API, and by the real program: made, found by the tag, read by, required.

use std::fs::File;

use penstock_tests::{
    agent::Place,
    docker_registry::DockerRegistry,
    fixture, require,
    skip::{fuse, program, root},
    tree,
    workdir::Workdir,
    workspace::text,
};

#[test]
fn an_image_of_a_real_registry_is_indexed_and_read_by_its_index() {
    require!(root().or_else(fuse).or_else(|| program("docker-registry")));
    let registry = DockerRegistry::start();
    let repository = registry.repository("fixtures/overlaybd");
    repository.layout(&fixture::layout());
    let (image, other) = (repository.reference("obd-lz4"), repository.reference("obd-zstd16"));
    let work = Workdir::new();
    let place = Place::new(work.path());
    let made = place.run(&["index", &image, "--output", "json"]).json();
    assert_eq!((made["pushed"].as_bool(), made["blobs"].as_array().map(Vec::len)), (Some(true), Some(3)));
    let again = place.run(&["index", &image, "--output", "json"]).json();
    assert_eq!(again["index"], made["index"], "the same image has the same index");
    let tag = format!("/v2/fixtures/overlaybd/manifests/{}", text(&made["manifest"]).replace(':', "-"));
    let written = registry.settled().into_iter().filter(|request| request.method == "PUT" && request.path == tag);
    assert_eq!(written.count(), 1, "the tag that lists it was written once");

    let agent = place.with(&["--verify-require", "true"]).start();
    let refused = agent.run(&["attach", &other, "--transport", "fuse"]).error_line();
    assert!(refused.contains("run `penstock index"), "{refused}");
    let device = agent.attach(&image, &["--transport", "fuse"]);
    for blob in device["blobs"].as_array().expect("blobs") {
        assert_eq!(text(&blob["verified_by"]), "index (BLAKE3 / 64 KiB), zfile crc32c, digest once whole");
    }
    let disk = File::open(text(&device["device_path"])).expect("the device can be opened");
    assert_eq!(tree::sha256(disk).expect("it can be read"), fixture::DEVICE_SHA256);
    assert!(agent.stop().success());
}

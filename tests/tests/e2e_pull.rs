//! `penstock pull` against a real containerd: an image whose layers it does not have can be exported afterwards, and stays so.

use penstock_tests::{
    agent::Place as AgentPlace,
    containerd::{Place, Release, Snapshotter},
    docker_registry::DockerRegistry,
    require,
    runnable::{self, Kind, Runnable},
    workdir::Workdir,
};

fn cannot(release: Release) -> Option<String> {
    runnable::cannot().or_else(|| release.cannot())
}

/// Has containerd collect what nothing refers to, and waits for that: it does when a lease is given back.
fn collect(place: &Place) {
    let _made = place.ctr("k8s.io", &["leases", "create", "--id", "collect"]).ok();
    let _collected = place.ctr("k8s.io", &["leases", "delete", "--sync", "collect"]).ok();
}

/// How often the registry was asked for a blob's bytes.
fn fetches(registry: &DockerRegistry, digest: &str) -> usize {
    registry.settled().iter().filter(|asked| asked.method == "GET" && asked.path.contains(digest)).count()
}

fn an_image_without_layers_is_whole_after_a_pull(release: Release) {
    let work = Workdir::new();
    let registry = DockerRegistry::start();
    let made = Runnable::new(3, 2).layers(Kind::OverlayBd);
    let reference = runnable::push(&registry.repository("lazy"), "1", &made, &["true"]);
    let place = Place::new(
        release,
        &work.dir("containerd"),
        (registry.host(), "unused.invalid/pause:1"),
        Snapshotter::Overlayfs,
    );
    let containerd = place.start();
    let socket = place.socket().display().to_string();
    let agent =
        AgentPlace::new(work.path()).with(&["--images-containerd", &socket, "--device-transport", "fuse"]).start();
    let archive = work.join("image.tar").display().to_string();
    let export = || place.ctr("k8s.io", &["image", "export", &archive, &reference]);
    let pull = || agent.run(&["pull", &reference, "--output", "json"]).json();

    // containerd knows the image and has all of it but its layers, as after a lazy pull.
    assert_eq!(pull()["new"], true);
    for layer in &made {
        let _gone = place.ctr("k8s.io", &["content", "rm", &layer.digest()]).ok();
    }
    collect(&place);
    let refused = export();
    assert!(refused.code != Some(0) && refused.stderr.contains("not found"), "{refused:?}");

    let fetched: Vec<usize> = made.iter().map(|layer| fetches(&registry, &layer.digest())).collect();
    let again = pull();
    let written: u64 =
        again["blobs"].as_array().expect("blobs").iter().filter_map(|b| b["written_bytes"].as_u64()).sum();
    assert_eq!((&again["new"], again["written_bytes"].as_u64()), (&false.into(), Some(written)));
    assert!(written > 0);
    let _exported = export().ok();
    let after: Vec<usize> = made.iter().map(|layer| fetches(&registry, &layer.digest())).collect();
    let are_more = after.iter().zip(&fetched).all(|(after, before)| after > before);
    assert!(are_more, "what lies in the content store is not stored in the cache too: {fetched:?}, {after:?}");

    // Nothing that is referred to is collected, and nothing is left to be written.
    collect(&place);
    let _exported = export().ok();
    assert_eq!(pull()["written_bytes"], 0);
    assert_eq!(place.ctr("k8s.io", &["leases", "ls", "-q"]).ok().trim(), "");
    assert!(agent.stop().success());
    drop(containerd);
}

#[test]
fn an_image_without_layers_is_whole_after_a_pull_into_the_installed_containerd() {
    require!(cannot(Release::Installed));
    an_image_without_layers_is_whole_after_a_pull(Release::Installed);
}

#[test]
fn an_image_without_layers_is_whole_after_a_pull_into_containerd_2() {
    require!(cannot(Release::Sid));
    an_image_without_layers_is_whole_after_a_pull(Release::Sid);
}

#[test]
fn without_containerd_a_pull_says_what_to_do() {
    require!(runnable::cannot());
    let work = Workdir::new();
    let agent = AgentPlace::new(work.path()).start();
    let absent = work.join("absent.sock").display().to_string();
    let said = agent.run(&["pull", "registry.invalid/app:1", "--containerd", &absent]).error_line();
    assert!(said.contains("containerd does not answer at") && said.contains("--containerd"), "{said}");
    assert!(agent.stop().success());
}

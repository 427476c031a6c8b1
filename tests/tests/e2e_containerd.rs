//! Containers from real images through a real containerd and runc, by the calls that kubelet makes.

use std::path::PathBuf;

use penstock_tests::{
    containerd::{Place, Release, Snapshotter},
    cri::Cri,
    docker_registry::DockerRegistry,
    require,
    runnable::{self, Kind, Runnable, SUM_ALL},
    workdir::Workdir,
};

fn cannot(release: Release) -> Option<String> {
    runnable::cannot().or_else(|| release.cannot())
}

/// Sleeps until it is killed.
const ASLEEP: [&str; 2] = ["sleep", "1000000000"];

/// What every snapshotter is held to: containerd's own shows here that the harness tells the truth.
fn an_ordinary_image_runs_on_overlayfs(release: Release) {
    let work = Workdir::new();
    let registry = DockerRegistry::start();
    let sandbox = runnable::sandbox(&registry.repository("pause"));
    let image = Runnable::new(1, 2);
    let reference = runnable::push(&registry.repository("ordinary"), "1", &image.layers(Kind::Ordinary), &ASLEEP);
    let place = Place::new(release, &work.dir("containerd"), (registry.host(), &sandbox), Snapshotter::Overlayfs);
    let containerd = place.start();
    let cri = Cri::connect(&containerd);
    cri.pull(&reference, None).expect("it is pulled");
    let pod = cri.run_pod("one");
    let container = cri.start(&pod, "c", &reference, &[]).expect("it starts");
    assert_eq!(runnable::sums(&cri.exec(&container, &SUM_ALL).ok()), image.sums());
    cri.remove(&container);
    cri.remove_pod(&pod);
    cri.remove_image(&reference);
    assert_eq!(cri.image(&reference), None);
    drop(containerd);
    assert_eq!(work.mounts(), Vec::<PathBuf>::new());
}

#[test]
fn an_ordinary_image_runs_on_overlayfs_of_the_installed_containerd() {
    require!(cannot(Release::Installed));
    an_ordinary_image_runs_on_overlayfs(Release::Installed);
}

#[test]
fn an_ordinary_image_runs_on_overlayfs_of_containerd_1_7() {
    require!(cannot(Release::Trixie));
    an_ordinary_image_runs_on_overlayfs(Release::Trixie);
}

#[test]
fn an_ordinary_image_runs_on_overlayfs_of_containerd_2() {
    require!(cannot(Release::Sid));
    an_ordinary_image_runs_on_overlayfs(Release::Sid);
}

//! A node as its owner sets it up: an agent with a config file, a containerd that was there before, and `penstock containerd configure`
//! between them. Nothing of containerd's config about our snapshotter is written by hand.

use std::fs;

use penstock_tests::{
    containerd::Release,
    node::{Node, cannot},
    require,
    runnable::{Kind, Runnable},
    workspace::text,
};
use serde_json::Value;

/// The snapshotters in which a container has its files.
fn places(node: &Node, container: &str) -> Vec<&'static str> {
    let has = |snapshotter: &&str| {
        let list = node.place().ctr("k8s.io", &["snapshots", "--snapshotter", snapshotter, "ls"]);
        list.stdout.lines().any(|line| line.split_whitespace().next() == Some(container))
    };
    ["overlayfs", "penstock"].into_iter().filter(has).collect()
}

/// A pod of the RuntimeClass `handler`, and a container of `image` in it: its files are right, in `snapshotter` and nowhere else.
fn runs(node: &Node, (name, handler): (&str, &str), (reference, image): (&str, &Runnable), snapshotter: &str) {
    let cri = node.cri();
    let pod = cri.run_pod_with(name, handler);
    let container = cri.start(&pod, name, reference, &[]).expect("it starts");
    node.is_right(&container, image);
    assert_eq!(places(node, &container), [snapshotter], "{name}");
    cri.remove(&container);
    cri.remove_pod(&pod);
}

/// What `penstock doctor` finds amiss, by the names of its checks.
fn amiss(node: &Node) -> Vec<String> {
    let config = node.place().config();
    let said = node.penstock(&["doctor", "--output", "json", "--containerd-config", config.to_str().expect("UTF-8")]);
    let report: Value = serde_json::from_str(&said.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let failed: Vec<String> =
        checks.iter().filter(|check| check["state"] == "failed").map(|check| text(&check["name"]).to_owned()).collect();
    assert_eq!(said.code, Some(i32::from(!failed.is_empty())), "{report}");
    failed
}

/// Removes every image, so that no snapshot is left of any.
fn remove_images(node: &Node) {
    for image in node.cri().images() {
        node.cri().remove_image(&image.id);
    }
}

fn a_node_is_set_up_and_taken_back(release: Release) {
    require!(cannot(release));
    let mut node = Node::untold(release);
    let image = Runnable::new(1, 2);
    let (lazy, layers) = node.push("lazy", &image, Kind::OverlayBd);
    let (plain, _) = node.push("plain", &image, Kind::Ordinary);
    let config = || fs::read(node.place().config()).expect("containerd's config");
    let before = config();
    node.cri().pull(&plain, None).expect("it is pulled");
    runs(&node, ("before", ""), (&plain, &image), "overlayfs");
    assert_eq!(amiss(&node), ["containerd plugin", "layer labels"], "the agent would serve it, and it does not know");

    let said = node.configure(&[]);
    assert!(said.contains("containerd reads it when it starts"), "{said}");
    assert_eq!(amiss(&node), ["containerd plugin"], "it was not restarted");
    let said = node.configure(&[]);
    assert!(said.contains("nothing to change, but containerd was started before"), "{said}");
    node.restart_containerd();
    assert_eq!(amiss(&node), Vec::<String>::new());
    assert!(node.configure(&[]).ends_with("nothing to change\n"));
    runs(&node, ("unpacked-again", ""), (&plain, &image), "penstock");
    node.cri().pull(&lazy, None).expect("it is pulled");
    assert_eq!(node.stored(&layers), Vec::<String>::new(), "no layer is in containerd's store");
    runs(&node, ("lazy", ""), (&lazy, &image), "penstock");
    let listed = node.penstock(&["snapshots"]).ok();
    let lazily = |line: &str| line.split_whitespace().nth(2) == Some("yes");
    assert!(listed.lines().any(lazily), "{listed}");

    remove_images(&node);
    assert_eq!(node.snapshots(), Vec::<Value>::new());
    node.configure(&["--undo"]);
    assert_eq!(fs::read(node.place().config()).expect("containerd's config"), before);
    node.restart_containerd();
    node.cri().pull(&plain, None).expect("it is pulled");
    runs(&node, ("after", ""), (&plain, &image), "overlayfs");
    assert!(node.configure(&["--undo"]).ends_with("nothing to change\n"));
    node.stop();
}

#[test]
fn a_node_with_the_installed_containerd_is_set_up_and_taken_back() {
    a_node_is_set_up_and_taken_back(Release::Installed);
}

#[test]
fn a_node_with_containerd_1_7_is_set_up_and_taken_back() {
    a_node_is_set_up_and_taken_back(Release::Trixie);
}

#[test]
fn a_node_with_containerd_2_is_set_up_and_taken_back() {
    a_node_is_set_up_and_taken_back(Release::Sid);
}

fn pods_of_a_runtime_class_are_lazy_and_others_are_not(release: Release) {
    require!(cannot(release));
    let mut node = Node::untold(release);
    let image = Runnable::new(1, 2);
    let (lazy, layers) = node.push("lazy", &image, Kind::OverlayBd);
    let (plain, _) = node.push("plain", &image, Kind::Ordinary);
    node.configure(&["--runtime-class", "on-demand"]);
    node.restart_containerd();
    assert_eq!(amiss(&node), Vec::<String>::new());
    node.cri().pull_for(&lazy, "on-demand");
    assert_eq!(node.stored(&layers), Vec::<String>::new(), "no layer is in containerd's store");
    runs(&node, ("lazy", "on-demand"), (&lazy, &image), "penstock");
    node.cri().pull(&plain, None).expect("it is pulled");
    runs(&node, ("usual", ""), (&plain, &image), "overlayfs");
    // The class runs ordinary images too, on snapshots of ours.
    runs(&node, ("plain", "on-demand"), (&plain, &image), "penstock");
    remove_images(&node);
    assert_eq!(node.snapshots(), Vec::<Value>::new());
    node.stop();
}

#[test]
fn pods_of_a_runtime_class_are_lazy_and_others_are_not_with_containerd_1_7() {
    pods_of_a_runtime_class_are_lazy_and_others_are_not(Release::Trixie);
}

#[test]
fn pods_of_a_runtime_class_are_lazy_and_others_are_not_with_containerd_2() {
    pods_of_a_runtime_class_are_lazy_and_others_are_not(Release::Sid);
}

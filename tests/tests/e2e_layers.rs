//! Ordinary images, as tar and gzip made them, with a real registry without a referrers API, real containerds of several releases, and runc: the first node that
//! pulls one indexes it, and from then on the first pull of every node is lazy; the image is what it was.

use penstock_tests::{
    containerd::Release,
    node::{Node, cannot},
    require,
    runnable::{Kind, Made, Runnable},
    workspace::text,
};

/// MiB of data in the lowest layer: far more than a shell reads to say something.
const DATA_MIB: usize = 24;

/// Bytes that the registry sent of these layers.
fn sent(node: &Node, layers: &[Made]) -> u64 {
    let sent = node.sent();
    layers.iter().filter_map(|layer| sent.get(&layer.digest())).sum()
}

#[test]
fn the_first_node_that_pulls_an_unmodified_image_indexes_it_and_the_second_one_starts_it_lazily() {
    require!(cannot(Release::Trixie), cannot(Release::Sid));
    let node = Node::start(Release::Trixie, &["--layers-index-pulled", "push"]);
    let image = Runnable::new(1, DATA_MIB);
    let (reference, layers) = node.push("ordinary", &image, Kind::Ordinary);
    let all = layers.iter().map(Made::size_bytes).sum::<u64>();
    let pod = node.cri().run_pod("first");
    node.cri().pull(&reference, None).expect("it is pulled");
    assert_eq!(node.stored(&layers).len(), layers.len(), "nothing is known of it yet");
    let runs = node.cri().start(&pod, "first", &reference, &[]).expect("it starts");
    node.is_right(&runs, &image);
    let _ = event(&node, "layers.pushed");
    let digest = node.place().digest("k8s.io", &reference);
    node.cri().remove(&runs);
    node.cri().remove_pod(&pod);
    node.cri().remove_image(&reference);

    let node = node.replaced_by(Release::Sid, &["--layers-accept", "all"]);
    let (cri, before) = (node.cri(), sent(&node, &layers));
    let pod = cri.run_pod("second");
    cri.pull(&reference, None).expect("it is pulled");
    let unpacked: Vec<_> = node.snapshots().into_iter().filter(|one| one["lazy"] == false).collect();
    assert!(node.stored(&layers).is_empty(), "no layer is in containerd's store: {unpacked:?}");
    let runs = cri.start(&pod, "second", &reference, &[]).expect("it starts");
    assert_eq!(cri.exec(&runs, &["cat", "/etc/version"]).ok(), "2\n");
    let share = sent(&node, &layers) - before;
    assert!(share < all / 2, "{share} of {all} bytes were sent to start it");
    node.is_right(&runs, &image);
    let wrote = cri.exec(&runs, &["sh", "-c", "echo new >/etc/version && cat /etc/version"]).ok();
    assert_eq!(wrote, "new\n", "a container writes to its own files");
    for device in node.devices() {
        let verified = text(&device["verified_by"]);
        assert!(verified.contains("sha256 of every frame"), "{verified}");
    }
    assert_eq!(node.place().digest("k8s.io", &reference), digest, "the image is what it was");
    cri.remove(&runs);
    cri.remove_image(&reference);
    cri.remove_pod(&pod);
    node.stop();
}

/// The text of the first event of this kind, once there is one.
fn event(node: &Node, kind: &str) -> String {
    node.supervisor().until(|| {
        let events = node.get("/v1/events");
        let events = events["events"].as_array().expect("a list of events");
        events.iter().find(|event| event["kind"] == kind).map(|event| text(&event["text"]).to_owned())
    })
}

#[test]
fn what_containerd_fetched_at_the_first_pull_is_indexed_so_that_the_registry_sends_it_once_and_the_next_pull_is_lazy() {
    let release = Release::Installed;
    require!(cannot(release));
    let node = Node::start(release, &["--layers-index-pulled", "keep"]);
    let image = Runnable::new(1, 4);
    let (reference, layers) = node.push("first", &image, Kind::Ordinary);
    let cri = node.cri();
    cri.pull(&reference, None).expect("it is pulled");
    let indexed = event(&node, "layers.indexed");
    assert!(indexed.contains(&format!("({} from what containerd had fetched)", layers.len())), "{indexed}");
    let all: u64 = layers.iter().map(Made::size_bytes).sum();
    assert_eq!(sent(&node, &layers), all, "each byte once");
    cri.remove_image(&reference);
    node.supervisor().until(|| node.snapshots().is_empty().then_some(()));
    cri.pull(&reference, None).expect("it is pulled again");
    let snapshots = node.snapshots();
    assert!(!snapshots.is_empty() && snapshots.iter().all(|one| one["lazy"] == true), "{snapshots:?}");
    assert_eq!(sent(&node, &layers), all, "nothing is fetched before it is read");
    node.stop();
}

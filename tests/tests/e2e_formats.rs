//! Images in the formats of others, made and pushed by the formats' own tools, with a real registry and a real containerd: a container starts while most of
//! the image is not there, and sees what it is to see.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use penstock_blob::Digest;
use penstock_tests::{
    containerd::Release,
    fixture, formats,
    layer_device::run,
    node::{Node, cannot},
    push::MANIFEST,
    require,
    runnable::{self, Kind, Runnable},
    skip::program,
    tree,
    workspace::text,
};
use serde_json::{Value, json};

/// MiB of data in the lowest layer: far more than a shell reads to say something.
const DATA_MIB: usize = 16;
const REPOSITORY: &str = "formats";

/// Where the images are made and started.
struct Bench {
    node: Node,
    image: Runnable,
}

impl Bench {
    fn reference(&self, tag: &str) -> String {
        format!("{}/{REPOSITORY}:{tag}", self.node.registry.host())
    }

    /// The manifest of a tag, or of `@` and its digest, as it was pushed.
    fn manifest(&self, of: &str) -> Vec<u8> {
        let image = format!("docker://{}", self.reference(of).replace(":@", "@"));
        let mut inspect = Command::new("skopeo");
        run(inspect.args(["inspect", "--raw", "--tls-verify=false", &image]).stdin(Stdio::null()))
    }

    /// Bytes of the layers of an image, and how many of them the registry sent.
    fn sent(&self, tag: &str) -> (u64, u64) {
        let manifest: Value = serde_json::from_slice(&self.manifest(tag)).expect("a manifest");
        let (sent, layers) = (self.node.sent(), manifest["layers"].as_array().expect("layers"));
        let of = |layer: &Value| sent.get(text(&layer["digest"])).copied().unwrap_or_default();
        (layers.iter().filter_map(|layer| layer["size"].as_u64()).sum(), layers.iter().map(of).sum())
    }

    /// Pushes the ordinary image, and what stargz-snapshotter's tool makes of it.
    fn push_converted(&self) {
        let repository = self.node.registry.repository(REPOSITORY);
        let ordinary = runnable::push(&repository, "ordinary", &self.image.layers(Kind::Ordinary), &SLEEP);
        formats::fetch(self.node.place(), &ordinary);
        for (tag, flag) in [("estargz", "--estargz"), ("zstdchunked", "--zstdchunked")] {
            formats::converted(self.node.place(), (&ordinary, &self.reference(tag)), &[flag]);
        }
    }

    /// Pushes the image as containers/storage's zstd:chunked, by skopeo, which compresses only what is not compressed yet.
    fn push_by_skopeo(&self) {
        let layout = self.node.work.dir("archives");
        runnable::layout(&layout, "1", &self.image.layers(Kind::Archives), &SLEEP);
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        copy.args(["--dest-compress-format", "zstd:chunked"]).arg(format!("oci:{}:1", layout.display()));
        run(copy.arg(format!("docker://{}", self.reference("containers"))).stdin(Stdio::null()));
    }

    /// Pushes SOCI's index of version 1 of the ordinary image, and the image bound to the same as version 2 does.
    fn push_soci(&self) {
        let ordinary = self.reference("ordinary");
        formats::indexed_by_soci(self.node.place(), (&ordinary, 1 << 20), &self.node.work.dir("soci"));
        let repository = self.node.registry.repository(REPOSITORY);
        let mut image: Value = serde_json::from_slice(&self.manifest("ordinary")).expect("a manifest");
        let referrers = Digest::of(&self.manifest("ordinary")).to_string().replace(':', "-");
        let listed: Value = serde_json::from_slice(&self.manifest(&referrers)).expect("what refers to the image");
        let first = text(&listed["manifests"][0]["digest"]).to_owned();
        let mut index: Value = serde_json::from_slice(&self.manifest(&format!("@{first}"))).expect("an index");
        index.as_object_mut().expect("an object").remove("subject");
        index["artifactType"] = json!("application/vnd.amazon.soci.index.v2+json");
        let pinned = index.to_string();
        repository.manifest("soci-v2-index", MANIFEST, pinned.as_bytes());
        image["annotations"] = json!({ "com.amazon.soci.index-digest": Digest::of(pinned.as_bytes()) });
        repository.manifest("soci-v2", MANIFEST, image.to_string().as_bytes());
    }

    /// Starts a container of an image that was not there, and looks at it.
    fn starts_lazily(&self, tag: &str, verified_by: &str) {
        let (node, reference) = (&self.node, self.reference(tag));
        let (_, before) = self.sent(tag);
        let pod = node.cri().run_pod(tag);
        node.cri().pull(&reference, None).expect("it is pulled");
        let runs = node.cri().start(&pod, tag, &reference, &[]).expect("it starts");
        assert_eq!(node.cri().exec(&runs, &["cat", "/etc/version"]).ok(), "2\n");
        let (all, sent) = self.sent(tag);
        assert!(sent - before < all / 2, "{tag}: {} of {all} bytes were sent to start it", sent - before);
        let devices = node.devices();
        assert_eq!(devices.len(), 3, "{tag}: each layer is a device: {:?}", node.snapshots());
        for device in &devices {
            assert!(text(&device["verified_by"]).contains(verified_by), "{tag}: {device}");
        }
        node.is_right(&runs, &self.image);
        node.cri().remove(&runs);
        node.cri().remove_image(&reference);
        node.cri().remove_pod(&pod);
    }
}

const SLEEP: [&str; 2] = ["sleep", "1000000000"];

#[test]
fn estargz_zstd_chunked_and_soci_images_start_lazily_through_containerd() {
    require!(cannot(Release::Installed), program("skopeo"), formats::cannot());
    let node = Node::start(Release::Installed, &["--layers-soci-v1", "true"]);
    let bench = Bench { node, image: Runnable::new(1, DATA_MIB) };
    bench.push_converted();
    bench.push_by_skopeo();
    bench.push_soci();
    for tag in ["estargz", "zstdchunked", "containers"] {
        bench.starts_lazily(tag, "its own table of contents");
    }
    for tag in ["soci-v2", "ordinary"] {
        bench.starts_lazily(tag, "a SOCI index");
    }
    bench.node.stop();
}

/// A file of an original layer.
const README: &str = "etc/os-release";

#[test]
fn turbooci_images_start_through_containerd_over_the_layers_that_they_were_made_of() {
    require!(cannot(Release::Installed));
    let node = Node::start(Release::Installed, &[]);
    node.registry.repository("turbo").layout(&fixture::layout());
    let (pod, truth) = (node.cri().run_pod("turbo"), fixture::tree());
    let originals: Vec<String> = layers("orig");
    for tag in ["turbo-ext4", "turbo-erofs"] {
        let reference = format!("{}/turbo:{tag}", node.registry.host());
        let sent =
            || node.sent().into_iter().filter(|(of, _)| originals.contains(of)).map(|(_, bytes)| bytes).sum::<u64>();
        let before = sent();
        node.cri().pull(&reference, None).expect("it is pulled");
        let runs =
            node.cri().start(&pod, tag, &reference, &["/bin/busybox", "sleep", "1000000000"]).expect("it starts");
        let release = node.cri().exec(&runs, &["/bin/busybox", "sha256sum", &format!("/{README}")]).ok();
        assert_eq!(release, format!("{}  /{README}\n", truth[README].sha256));
        let all: u64 = originals.iter().map(|digest| fixture::blob(digest).len() as u64).sum();
        assert!(sent() - before < all, "{tag}: {} of {all} bytes of the original layers", sent() - before);
        assert_eq!(node.devices().len(), 1, "{tag}: {:?}", node.snapshots());
        let seen = node.shown(("k8s.io", "penstock"), &reference, |dir: &Path| tree::read(dir).expect("every file"));
        tree::assert_same(&seen, &truth);
        node.cri().remove(&runs);
        node.cri().remove_image(&reference);
    }
    node.cri().remove_pod(&pod);
    node.stop();
}

/// The digests of the layers of an image of the fixtures.
fn layers(name: &str) -> Vec<String> {
    let (manifest, _) = fixture::manifest(name);
    manifest["layers"].as_array().expect("layers").iter().map(|layer| text(&layer["digest"]).to_owned()).collect()
}

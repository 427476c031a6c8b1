//! Ordinary images: the first pull unpacks and indexes, the next one is lazy, and what is shown is what unpacking would have made.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use futures_util::StreamExt as _;
use penstock_agent::{Agent, Config, config::IndexPulled};
use penstock_blob::{Blob, Digest};
use penstock_registry::{Artifact, Layer};

use super::{Bench, Image, cannot_mount, chains, kinds};

/// Runs a program that must succeed; what it printed.
pub(super) fn run(command: &mut Command) -> Vec<u8> {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// A layer of this archive, as `gzip` makes it: the archive, and the same compressed.
pub(super) fn packed(archive: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, archive).unwrap();
    (archive.to_vec(), run(Command::new("gzip").args(["-6", "-n", "-c"]).stdin(fs::File::open(&file).unwrap())))
}

/// A layer as `tar` and `gzip` make it of a directory.
fn layer(dir: &Path) -> (Vec<u8>, Vec<u8>) {
    packed(&run(Command::new("tar").arg("-C").arg(dir).args(["--numeric-owner", "-cf", "-", "."])))
}

impl Bench {
    /// An image of layers that tools made of these directories, as containerd knows it.
    pub(super) fn put_ordinary(&self, name: &str, dirs: &[PathBuf]) -> Image {
        self.put_archives(name, dirs.iter().map(|dir| layer(dir)).collect())
    }

    /// An image of these layers: of each its archive, and the same compressed.
    pub(super) fn put_archives(&self, name: &str, made: Vec<(Vec<u8>, Vec<u8>)>) -> Image {
        let diff_ids: Vec<Digest> = made.iter().map(|(archive, _)| Digest::of(archive)).collect();
        let blobs: Vec<Blob> = made.into_iter().map(|(_, packed)| self.registry.put_blob(packed)).collect();
        self.put_layers(name, &blobs, &diff_ids)
    }

    /// An image of these tar+gzip layers, whose config says that they have these diff IDs.
    fn put_layers(&self, name: &str, blobs: &[Blob], diff_ids: &[Digest]) -> Image {
        let config = serde_json::json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let layer = |&blob: &Blob| Layer {
            blob,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            annotations: [].into(),
        };
        let layers = blobs.iter().map(layer).collect();
        let artifact = Artifact { config: config.to_string().into(), layers, ..Artifact::default() };
        let manifest = self.registry.put_image(name, "1", artifact).unwrap();
        Image {
            reference: format!("{}/{name}:1", self.registry.host()),
            manifest: Some(manifest.digest),
            layers: blobs.iter().map(|blob| blob.digest).collect(),
            chains: chains(diff_ids),
        }
    }

    /// Two trees, one over the other: the upper one hides a file and a directory of the lower, and replaces a file.
    pub(super) fn trees(&self) -> Vec<PathBuf> {
        let [lower, upper] = ["lower", "upper"].map(|name| self.dir.path().join(name));
        for dir in ["usr/lib", "etc/gone.d", "etc/kept.d"] {
            fs::create_dir_all(lower.join(dir)).unwrap();
        }
        let mut state = 1_u64;
        let random = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        let big: Vec<u8> = (0..3_000_000).map(random).collect();
        fs::write(lower.join("usr/lib/big"), &big).unwrap();
        for (path, text) in [("etc/gone", "x"), ("etc/gone.d/a", "x"), ("etc/kept.d/b", "b"), ("etc/changed", "old")] {
            fs::write(lower.join(path), text).unwrap();
        }
        fs::create_dir_all(upper.join("etc")).unwrap();
        for (path, text) in [("etc/changed", "new"), ("etc/.wh.gone", ""), ("etc/.wh.gone.d", "")] {
            fs::write(upper.join(path), text).unwrap();
        }
        vec![lower, upper]
    }
}

/// Waits for an event of this kind.
pub(super) async fn told(agent: &Agent, kind: &str) {
    let mut events = agent.node().follow(0).unwrap();
    while let Some(events) = events.next().await {
        if events.events.iter().any(|event| event.kind == kind) {
            return;
        }
    }
    panic!("the events ended without {kind}");
}

/// Reads what a container sees through an overlay of these directories, the top first.
async fn check_tree(lowers: Vec<PathBuf>, at: PathBuf) {
    let check = move || {
        fs::create_dir_all(&at).unwrap();
        let lowers: Vec<_> = lowers.iter().map(|dir| dir.to_str().unwrap()).collect();
        let options = format!("ro,lowerdir={}", lowers.join(":"));
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&at));
        let big = fs::read(at.join("usr/lib/big")).unwrap();
        assert_eq!(big.len(), 3_000_000);
        assert_eq!(fs::read_to_string(at.join("etc/changed")).unwrap(), "new");
        let mut names: Vec<_> = fs::read_dir(at.join("etc")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["changed", "kept.d"], "whiteouts hide what lies below");
        run(Command::new("umount").arg(&at));
    };
    tokio::task::spawn_blocking(check).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_pull_of_an_ordinary_image_is_lazy_on_a_node_that_indexed_it_and_restarts_need_no_registry() {
    require_mounts!();
    let bench = Bench::new().await;
    let image = bench.put_ordinary("plain", &bench.trees());
    let config = || Config { layers_index_pulled: IndexPulled::Keep, ..bench.config() };
    let agent = Agent::start(config()).await.unwrap();
    let containerd = super::Containerd::connect(agent.snapshots().unwrap()).await;
    // Nothing is known of it yet.
    containerd.unpack(&image).await;
    told(&agent, "layers.indexed").await;
    containerd.forget(&image).await;

    let (names, unpacked) = containerd.pull(&image).await;
    assert_eq!((names.len(), unpacked), (2, None), "{:?}", kinds(&agent).await);
    let mounts = containerd.prepare("k8s.io/9/c", &names[1], HashMap::new()).await.unwrap();
    let lowers: Vec<PathBuf> = mounts[0].option("lowerdir").unwrap().split(':').map(PathBuf::from).collect();
    check_tree(lowers.clone(), bench.dir.path().join("seen")).await;
    let devices = agent.node().devices().await.unwrap();
    assert!(devices.iter().all(|device| device.verified_by.contains("sha256 of every frame")), "{devices:?}");
    agent.stop().await.unwrap();

    bench.registry.set_down(true);
    let agent = Agent::start(config()).await.unwrap();
    let containerd = super::Containerd::connect(agent.snapshots().unwrap()).await;
    assert_eq!(containerd.mounts("k8s.io/9/c").await.unwrap(), mounts);
    check_tree(lowers, bench.dir.path().join("seen")).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_says_of_a_layer_that_it_is_another_is_not_shown_in_place_of_that() {
    require_mounts!();
    let bench = Bench::new().await;
    let trees = bench.trees();
    let image = bench.put_ordinary("plain", &trees);
    let config = Config { layers_index_pulled: IndexPulled::Keep, ..bench.config() };
    let agent = Agent::start(config).await.unwrap();
    let containerd = super::Containerd::connect(agent.snapshots().unwrap()).await;
    containerd.unpack(&image).await;
    told(&agent, "layers.indexed").await;
    // The archive of its layer is known on this node. containerd calls a snapshot by what configs say: were it shown, it would be the victim's, too.
    let blob = bench.registry.put_blob(layer(&trees[0]).1);
    assert_eq!(blob.digest, image.layers[0]);
    let liar = bench.put_layers("liar", &[blob], &[Digest::of(b"the victim's layer")]);
    let (names, unpacked) = containerd.pull(&liar).await;
    assert!(names.is_empty() && unpacked.is_some(), "{:?}", kinds(&agent).await);
    agent.stop().await.unwrap();
}

//! Images in formats of others: lazy from the first pull on, by their own tables of contents.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use penstock_agent::{Agent, Config};
use penstock_api as api;
use penstock_blob::Digest;
use penstock_registry::{Artifact, Layer};

use super::{Bench, Image, cannot_mount, chains, json, kinds};

/// What the formats' own tools made (layers/golden/foreign/make.sh).
fn kept(image: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../layers/golden/foreign").join(image)
}

impl Bench {
    /// An image that a tool made, as containerd knows it.
    pub(super) fn put_kept(&self, image: &str) -> Image {
        let (manifest, config) = (json(&kept(image).join("manifest.json")), fs::read(kept(image).join("config.json")));
        let config = config.unwrap();
        let diff_ids: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let diff_ids: Vec<Digest> = serde_json::from_value(diff_ids["rootfs"]["diff_ids"].clone()).unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter().enumerate();
        let layers = layers.map(|(nth, layer)| Layer {
            blob: self.registry.put_blob(fs::read(kept(image).join(format!("layer{nth}"))).unwrap()),
            media_type: layer["mediaType"].as_str().unwrap().into(),
            annotations: serde_json::from_value(layer["annotations"].clone()).unwrap(),
        });
        let layers: Vec<Layer> = layers.collect();
        let digests = layers.iter().map(|layer| layer.blob.digest).collect();
        let artifact = Artifact { config: config.into(), layers, ..Artifact::default() };
        let manifest = self.registry.put_image(image, "1", artifact).unwrap();
        Image {
            reference: format!("{}/{image}:1", self.registry.host()),
            manifest: Some(manifest.digest),
            layers: digests,
            chains: chains(&diff_ids),
        }
    }
}

/// The media type of manifests.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image and its SOCI index, of version 1 as the tool made it, or bound to the image as version 2 is.
pub(super) fn put_soci(bench: &Bench, is_pinned: bool) -> Image {
    let read = |name: &str| fs::read(kept("soci").join(name)).unwrap();
    let blobs = ["config.json", "layer0", "layer1", "ztoc0", "ztoc1"].map(|name| bench.registry.put_blob(read(name)));
    assert_eq!(bench.registry.put_blob("{}").size_bytes, 2);
    let (mut manifest, mut index) = (read("manifest.json"), read("index.json"));
    let repository = if is_pinned { "soci-v2" } else { "soci-v1" };
    if is_pinned {
        let mut pinned: serde_json::Value = serde_json::from_slice(&index).unwrap();
        pinned.as_object_mut().unwrap().remove("subject");
        // Which spans of the lower layer a start reads; before the ztocs, so that it is not taken for one.
        let said = r#"{"version":"1.0","prefetch_spans":[{"start_span":1,"end_span":2}]}"#;
        let said = bench.registry.put_blob(said);
        let layers = pinned["layers"].as_array_mut().unwrap();
        let of = layers[0]["annotations"]["com.amazon.soci.image-layer-digest"].clone();
        layers.insert(0, serde_json::json!({
            "mediaType": "application/vnd.amazon.soci.prefetch.v1+json", "digest": said.digest, "size": said.size_bytes,
            "annotations": { "com.amazon.soci.image-layer-digest": of },
        }));
        pinned["artifactType"] = "application/vnd.amazon.soci.index.v2+json".into();
        index = pinned.to_string().into();
        let mut image: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        image["annotations"] = serde_json::json!({ "com.amazon.soci.index-digest": Digest::of(&index) });
        manifest = image.to_string().into();
    }
    let digest = Digest::of(&manifest);
    bench.registry.put_manifest(repository, Some("1"), MANIFEST, manifest).unwrap();
    bench.registry.put_manifest(repository, None, MANIFEST, index).unwrap();
    let config = json(&kept("soci").join("config.json"));
    let diff_ids: Vec<Digest> = serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap();
    Image {
        reference: format!("{}/{repository}:1", bench.registry.host()),
        manifest: Some(digest),
        layers: blobs[1..3].iter().map(|blob| blob.digest).collect(),
        chains: chains(&diff_ids),
    }
}

/// Compares what a container sees through an overlay of these directories, the top first, with what went into the layers (make.py).
async fn check_tree(lowers: Vec<PathBuf>, at: PathBuf) {
    let check = move || {
        fs::create_dir_all(&at).unwrap();
        let lowers: Vec<_> = lowers.iter().map(|dir| dir.to_str().unwrap()).collect();
        let options = format!("ro,lowerdir={}", lowers.join(":"));
        let mounted = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&at).status();
        assert!(mounted.unwrap().success());
        let names = |dir: &str| {
            let mut names: Vec<_> =
                fs::read_dir(at.join(dir)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(""), ["dev", "etc", "run", "usr"], "the formats' own files are hidden");
        assert_eq!(names("usr/bin"), ["new"], "an opaque directory");
        assert_eq!(names("etc").len(), 39);
        assert!(!at.join("etc/file-03").exists(), "a whiteout");
        for nth in (0..40).filter(|nth| *nth != 3) {
            let text = fs::read_to_string(at.join(format!("etc/file-{nth:02}"))).unwrap();
            assert_eq!(text, format!("{nth}\n").repeat(nth + 1));
        }
        assert_eq!(Digest::of(&fs::read(at.join("usr/text")).unwrap()), TEXT.parse().unwrap());
        assert_eq!(fs::read(at.join("usr/zeros")).unwrap(), vec![0; 150_000]);
        assert_eq!(fs::read_to_string(at.join("usr/\u{fc}nic\u{f6}de")).unwrap(), "unicode\n");
        let text = fs::metadata(at.join("usr/text")).unwrap();
        assert_eq!((text.uid(), text.gid(), text.mode() & 0o7777), (1000, 70_000, 0o644));
        assert!(fs::metadata(at.join("run/pipe")).unwrap().file_type().is_fifo());
        assert_eq!(fs::metadata(at.join("dev/disk")).unwrap().rdev(), 8 << 8 | 17);
        assert!(Command::new("umount").arg(&at).status().unwrap().success());
    };
    tokio::task::spawn_blocking(check).await.unwrap();
}

/// sha256 of `usr/text` as make.py writes it.
const TEXT: &str = "sha256:ca8bdca7742bb9310d5f32a841a3be8df8e110bd13a768f6e1b34e45d90586b1";

/// Pulls an image that is lazy at once, and looks at it before and after a restart for which there is no registry.
async fn check_lazy(bench: Bench, config: impl Fn() -> Config, (of, verified_by): (Image, &str)) {
    let agent = Agent::start(config()).await.unwrap();
    let containerd = super::Containerd::connect(agent.snapshots().unwrap()).await;
    let (names, unpacked) = containerd.pull(&of).await;
    assert_eq!((names.len(), unpacked), (2, None), "{}: {:?}", of.reference, kinds(&agent).await);
    let mounts = containerd.prepare("k8s.io/9/c", &names[1], HashMap::new()).await.unwrap();
    let lowers: Vec<PathBuf> = mounts[0].option("lowerdir").unwrap().split(':').map(PathBuf::from).collect();
    // What the image says that a start reads is fetched ahead.
    let says = ["estargz", "soci-v2"].into_iter().any(|name| of.reference.contains(name));
    let landmark = says.then(|| "landmark".to_owned());
    if landmark.is_some() {
        super::ordinary::told(&agent, "recording.chosen").await;
    }
    check_tree(lowers.clone(), bench.dir.path().join("seen")).await;
    let devices = agent.node().devices().await.unwrap();
    assert!(devices.iter().all(|device| device.verified_by.contains(verified_by)), "{devices:?}");
    let from = |device: &api::Device| device.reading.as_ref().and_then(|reading| reading.recording_from.clone());
    assert_eq!(devices.iter().filter_map(from).collect::<Vec<_>>(), landmark.as_slice(), "{devices:?}");
    agent.stop().await.unwrap();

    bench.registry.set_down(true);
    let agent = Agent::start(config()).await.unwrap();
    let containerd = super::Containerd::connect(agent.snapshots().unwrap()).await;
    assert_eq!(containerd.mounts("k8s.io/9/c").await.unwrap(), mounts);
    check_tree(lowers, bench.dir.path().join("seen")).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_with_tables_of_contents_are_lazy_at_their_first_pull_and_restarts_need_no_registry() {
    require_mounts!();
    for image in ["estargz", "zstdchunked", "containers"] {
        let bench = Bench::new().await;
        let (of, config) = (bench.put_kept(image), bench.config());
        check_lazy(bench, || config.clone(), (of, "its own table of contents")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_whose_manifest_names_a_soci_index_are_lazy_and_others_only_where_anybody_is_believed() {
    require_mounts!();
    for is_pinned in [true, false] {
        let bench = Bench::new().await;
        let of = put_soci(&bench, is_pinned);
        let config = Config { layers_soci_v1: !is_pinned, ..bench.config() };
        check_lazy(bench, || config.clone(), (of, "a SOCI index")).await;
    }
    let bench = Bench::new().await;
    let of = put_soci(&bench, false);
    let (agent, containerd) = bench.agent().await;
    let (names, unpacked) = containerd.pull(&of).await;
    assert!(names.is_empty() && unpacked.is_some(), "version 1 is not believed unasked");
    containerd.remove(&format!("k8s.io/1/extract-0 {}", of.chains[0])).await.unwrap();
    // What another image's manifest names is believed for that image alone, though the layers are the same.
    let (names, _) = containerd.pull(&put_soci(&bench, true)).await;
    assert_eq!(names.len(), 2);
    for name in names.iter().rev() {
        containerd.remove(name).await.unwrap();
    }
    let (names, unpacked) = containerd.pull(&of).await;
    assert!(names.is_empty() && unpacked.is_some());
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_the_one_that_the_manifest_names_is_refused_and_the_image_unpacked() {
    require_mounts!();
    let bench = Bench::new().await;
    let of = bench.put_kept("estargz");
    // The same layers with the other's digests of tables.
    let manifest = json(&kept("estargz").join("manifest.json"));
    let swapped = [1, 0].map(|nth| serde_json::from_value(manifest["layers"][nth]["annotations"].clone()).unwrap());
    let layers = [0, 1].into_iter().zip(swapped).map(|(nth, annotations)| Layer {
        blob: self::layer(&bench, nth),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        annotations,
    });
    let config = fs::read(kept("estargz").join("config.json")).unwrap();
    let artifact = Artifact { config: config.into(), layers: layers.collect(), ..Artifact::default() };
    let lying = bench.registry.put_image("lying", "1", artifact).unwrap();
    let reference = format!("{}/lying:1", bench.registry.host());
    let lying = Image { reference, manifest: Some(lying.digest), ..of.clone() };
    let config = Config { layers_index_pulled: penstock_agent::config::IndexPulled::No, ..bench.config() };
    let agent = Agent::start(config).await.unwrap();
    let containerd = super::Containerd::connect(agent.snapshots().unwrap()).await;
    // What was made of the right tables is not used for an image that names others.
    let (names, unpacked) = containerd.pull(&of).await;
    assert_eq!(unpacked, None);
    for name in names.iter().rev() {
        containerd.remove(name).await.unwrap();
    }
    let (_, unpacked) = containerd.pull(&lying).await;
    assert!(unpacked.is_some());
    super::ordinary::told(&agent, "layers.index_refused").await;
    agent.stop().await.unwrap();
}

fn layer(bench: &Bench, nth: usize) -> penstock_blob::Blob {
    bench.registry.put_blob(fs::read(kept("estargz").join(format!("layer{nth}"))).unwrap())
}

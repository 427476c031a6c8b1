//! Images in another form: the same tree, the same disk, the same digests.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail their test, and say what they leave out"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use clap::Parser as _;
use penstock_agent::{
    cli::{self, Cli},
    convert::{self, ConvertError},
};
use penstock_blob::{BlobSource, ByteRange, Digest};
use penstock_fetcher::{Fetcher, Manifest, Platform, Reference};
use penstock_image::{Image, Kind, Layer};
use penstock_registry::{Artifact, Registry};

/// Runs a program that must succeed; what it printed.
fn run(command: &mut Command) -> Vec<u8> {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// Whether a program is there; says so when it is not.
fn tool(name: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap().status.success();
    if !found {
        println!("cut short: {}: {name} is not installed", std::thread::current().name().unwrap_or("?"));
    }
    found
}

/// A registry with an image, and a fetcher to look at what becomes of it.
struct Bench {
    dir: tempfile::TempDir,
    registry: Registry,
    fetcher: Arc<Fetcher>,
}

impl Bench {
    async fn new() -> Self {
        let registry = Registry::start(penstock_registry::Config::default()).await.unwrap();
        let config = penstock_fetcher::Config::default();
        let fetcher = Fetcher::new(config, &mut prometheus_client::registry::Registry::default()).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), registry, fetcher }
    }

    fn reference(&self, name: &str) -> String {
        format!("{}/team/{name}", self.registry.host())
    }

    /// An image of layers that tools made of these directories; the last one is not compressed.
    fn put(&self, name: &str, dirs: &[PathBuf]) {
        let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
        for (nth, dir) in dirs.iter().enumerate() {
            let file = dir.with_extension("tar");
            let archive = ["--numeric-owner", "--sort=name", "--mtime=@1700000000", "-cf"];
            run(Command::new("tar").arg("-C").arg(dir).args(archive).arg(&file).arg("."));
            let archive = fs::read(&file).unwrap();
            diff_ids.push(Digest::of(&archive));
            let last = nth + 1 == dirs.len();
            let packed = if last { archive } else { run(Command::new("gzip").args(["-6", "-n", "-c"]).arg(&file)) };
            layers.push(penstock_registry::Layer {
                blob: self.registry.put_blob(packed),
                media_type: format!("application/vnd.oci.image.layer.v1.tar{}", if last { "" } else { "+gzip" }),
                annotations: [].into(),
            });
        }
        let config = serde_json::json!({
            "os": "linux",
            "architecture": Platform::host().architecture,
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let image = Artifact { config: config.to_string().into(), layers, ..Artifact::default() };
        self.registry.put_image(&format!("team/{name}"), "1", image).unwrap();
    }

    /// Two trees, one over the other: the upper one hides a file and a directory of the lower, and replaces a file.
    fn trees(&self) -> Vec<PathBuf> {
        let [lower, upper] = ["lower", "upper"].map(|name| self.dir.path().join(name));
        for dir in ["usr/lib", "etc/gone.d", "etc/kept.d"] {
            fs::create_dir_all(lower.join(dir)).unwrap();
        }
        let big: Vec<u8> =
            (0..300_000_u64).flat_map(|at| at.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect();
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

    /// Runs `penstock convert`.
    async fn convert(&self, from: &str, to: &str, more: &[&str]) -> Result<(), ConvertError> {
        let (from, to) = (self.reference(from), self.reference(to));
        let typed = ["penstock", "convert", &from, &to].into_iter().chain(more.iter().copied());
        let cli::Command::Convert(args) = Cli::try_parse_from(typed).unwrap().command else {
            panic!("another command")
        };
        tokio::task::spawn_blocking(move || convert::run(&args)).await.unwrap()
    }

    async fn resolve(&self, name: &str) -> Manifest {
        let reference: Reference = self.reference(name).parse().unwrap();
        let manifest = self.fetcher.resolve(&reference, &Platform::host()).await.unwrap();
        manifest.layers.iter().for_each(|layer| self.fetcher.serve(layer.blob(), &manifest.reference));
        manifest
    }

    /// An image, and what its layers are read from.
    async fn opened(&self, name: &str, maps: &Path) -> (Image, Arc<dyn BlobSource>) {
        let layer = |layer: &penstock_fetcher::Descriptor| Layer {
            blob: layer.blob(),
            media_type: layer.media_type.clone(),
            annotations: layer.annotations.clone(),
        };
        let layers = self.resolve(name).await.layers.iter().map(layer).collect();
        let source: Arc<dyn BlobSource> = self.fetcher.clone();
        (Image::open(layers, Arc::clone(&source), maps).await.unwrap(), source)
    }

    /// The bytes of the device that an image is.
    async fn device(&self, name: &str) -> (Kind, Vec<u8>) {
        let maps = tempfile::tempdir().unwrap();
        let (image, source) = self.opened(name, maps.path()).await;
        let all = ByteRange::new(0, image.size_bytes()).unwrap();
        (image.kind(), penstock_image::read(&image, &source, all).await.unwrap().to_vec())
    }

    /// Writes the device that an image is to a file with holes, where it has nothing.
    async fn device_to(&self, name: &str, file: &Path) -> Kind {
        let maps = tempfile::tempdir().unwrap();
        let (image, source) = self.opened(name, maps.path()).await;
        image.completed().await.unwrap();
        let out = fs::File::create(file).unwrap();
        out.set_len(image.size_bytes()).unwrap();
        let pieces = (0..image.size_bytes()).step_by(1 << 22);
        for piece in pieces.map(|at| ByteRange::new(at, (at + (1 << 22)).min(image.size_bytes())).unwrap()) {
            let plan = image.plan(piece, &*source).unwrap();
            if !plan.steps.iter().all(|step| matches!(step.step, penstock_image::Step::Zero)) {
                let bytes = penstock_image::read(&image, &source, piece).await.unwrap();
                std::os::unix::fs::FileExt::write_all_at(&out, &bytes, piece.start()).unwrap();
            }
        }
        image.kind()
    }

    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        dir
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_become_one_disk_that_holds_the_tree_of_all_and_has_the_same_digest_each_time() {
    let bench = Bench::new().await;
    bench.put("app", &bench.trees());
    bench.convert("app:1", "app:obd", &[]).await.unwrap();
    bench.convert("app:1", "other:again", &["--compression", "lz4"]).await.unwrap();
    bench.convert("app:1", "app:zstd", &["--compression", "zstd"]).await.unwrap();
    bench.convert("app:1", "app:raw", &["--to", "raw"]).await.unwrap();
    let (obd, again) = (bench.resolve("app:obd").await, bench.resolve("other:again").await);
    assert_eq!(obd.digest, again.digest, "the same image gives the same image");
    assert_eq!(obd.layers[0].annotations[penstock_image::BLOB_DIGEST], obd.layers[0].digest.to_string());
    assert_eq!(obd.layers[0].annotations[penstock_image::FS_TYPE], "erofs");
    let (kind, device) = bench.device("app:obd").await;
    assert_eq!(kind, Kind::OverlayBd { layers: 1 });
    let raw = bench.resolve("app:raw").await;
    assert_eq!(raw.layers[0].digest, Digest::of(&device), "the same disk");
    assert!(bench.device("app:zstd").await.1 == device && bench.device("app:raw").await.1 == device);
    if !tool("fsck.erofs") {
        return;
    }
    let (image, tree) = (bench.dir.path().join("image"), bench.dir.path().join("tree"));
    fs::write(&image, &device).unwrap();
    run(Command::new("fsck.erofs").arg(format!("--extract={}", tree.display())).arg(&image));
    let text = |path: &str| fs::read_to_string(tree.join(path)).unwrap();
    assert_eq!((text("etc/changed"), text("etc/kept.d/b")), ("new".to_owned(), "b".to_owned()));
    assert!(!tree.join("etc/gone").exists() && !tree.join("etc/gone.d").exists());
    let big = |dir: &Path| Digest::of(&fs::read(dir.join("usr/lib/big")).unwrap());
    assert_eq!(big(&tree), big(&bench.dir.path().join("lower")));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_layer_can_become_an_erofs_and_a_disk_can_not() {
    let bench = Bench::new().await;
    bench.put("app", &bench.trees());
    bench.convert("app:1", "app:erofs", &["--to", "erofs"]).await.unwrap();
    let manifest = bench.resolve("app:erofs").await;
    assert_eq!(manifest.layers.len(), 2);
    for layer in &manifest.layers {
        let bytes = bench.fetcher.read(layer.blob(), layer.blob().all().unwrap(), penstock_blob::Purpose::Demand).await;
        let content = penstock_image::content(&bytes.unwrap(), layer.size_bytes);
        assert_eq!(content, penstock_image::Content::Disk(penstock_image::FileSystem::Erofs));
    }
    bench.convert("app:1", "app:obd", &[]).await.unwrap();
    let refused = bench.convert("app:obd", "app:again", &["--to", "erofs"]).await.unwrap_err();
    assert!(matches!(refused, ConvertError::NoTree), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_one_form_becomes_the_same_disk_in_another() {
    if !tool("qemu-img") {
        return;
    }
    let bench = Bench::new().await;
    let raw: Vec<u8> = (0..200_000_u64).flat_map(|at| (at / 3000).wrapping_mul(at).to_le_bytes()).collect();
    let (file, qcow2) = (bench.dir.path().join("raw"), bench.dir.path().join("qcow2"));
    fs::write(&file, &raw).unwrap();
    run(Command::new("qemu-img").args(["convert", "-c", "-f", "raw", "-O", "qcow2"]).args([&file, &qcow2]));
    let blob = bench.registry.put_blob(fs::read(&qcow2).unwrap());
    let layer =
        penstock_registry::Layer { blob, media_type: "application/octet-stream".into(), annotations: [].into() };
    let image = Artifact { config: "{}".into(), layers: vec![layer], ..Artifact::default() };
    bench.registry.put_image("team/disk", "1", image).unwrap();
    bench.convert("disk:1", "disk:obd", &[]).await.unwrap();
    let (kind, device) = bench.device("disk:obd").await;
    assert_eq!(kind, Kind::OverlayBd { layers: 1 });
    assert!(device == raw, "the disk that qemu sees");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_try_goes_on_where_the_last_one_ended_and_a_referrer_is_found() {
    let bench = Bench::new().await;
    bench.put("app", &bench.trees());
    let work = bench.dir("work");
    let work = work.to_str().unwrap();
    bench.convert("app:1", "app:dry", &["--work", work, "--dry-run"]).await.unwrap();
    let source = bench.resolve("app:1").await;
    // As if the first layer had been cut off in the middle.
    let whole = Path::new(work).join(source.layers[0].digest.to_hex());
    let bytes = fs::read(&whole).unwrap();
    fs::write(whole.with_extension("part"), &bytes[..bytes.len() / 2]).unwrap();
    fs::remove_file(&whole).unwrap();
    bench.registry.reset_counts();
    bench.convert("app:1", "app:obd", &["--work", work, "--referrer"]).await.unwrap();
    let (fetched, rest) = (bench.registry.counts().blob_bytes, (bytes.len() - bytes.len() / 2) as u64);
    assert!((rest..rest + 4096).contains(&fetched), "{fetched} bytes, of which the rest of the layer are {rest}");
    assert!(fs::read(&whole).unwrap() == bytes);
    let reference: Reference = bench.reference("app:1").parse().unwrap();
    let found = bench.fetcher.referrers(&reference, source.digest, penstock_image::write::ARTIFACT_TYPE).await.unwrap();
    let digests: Vec<Digest> = found.iter().map(|entry| entry.digest).collect();
    assert_eq!(digests, [bench.resolve("app:obd").await.digest]);
    let elsewhere = bench.convert("app:1", "other:1", &["--referrer", "--dry-run"]).await.unwrap_err();
    assert!(matches!(elsewhere, ConvertError::Elsewhere(_)), "{elsewhere}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_were_converted_before_are_neither_fetched_nor_made_nor_sent_again_and_the_image_is_the_same() {
    let bench = Bench::new().await;
    let mut trees = bench.trees();
    bench.put("app", &trees);
    bench.convert("app:1", "lazy:1", &["--to", "erofs"]).await.unwrap();
    let third = bench.dir("third");
    fs::write(third.join("new"), "new").unwrap();
    trees.push(third);
    bench.put("next", &trees);
    bench.convert("next:1", "whole:1", &["--to", "erofs"]).await.unwrap();
    bench.registry.reset_counts();
    let before = bench.reference("lazy:1");
    bench.convert("next:1", "other:1", &["--to", "erofs", "--reuse", &before]).await.unwrap();
    let fetched = bench.registry.counts().blob_bytes;
    let (reused, whole) = (bench.resolve("other:1").await, bench.resolve("whole:1").await);
    assert_eq!((reused.digest, reused.layers.len()), (whole.digest, 3), "as if nothing had been there");
    let source = bench.resolve("next:1").await;
    assert!(fetched < source.layers[0].size_bytes, "{fetched} bytes were fetched, of no layer that is reused");
    let sent = |request: &penstock_registry::Request| request.method == "PUT" && request.path.contains("/other/");
    let uploads =
        bench.registry.requests().into_iter().filter(sent).filter(|put| put.path.contains("/uploads/")).count();
    assert_eq!(uploads, 2, "the config and the new layer; the others are taken over from the other repository");
    for layer in &reused.layers {
        let all = layer.blob().all().unwrap();
        assert!(bench.fetcher.read(layer.blob(), all, penstock_blob::Purpose::Demand).await.is_ok());
    }
    // Made in another way, it is not the same.
    bench.convert("next:1", "zstd:1", &["--compression", "zstd", "--reuse", &before]).await.unwrap();
    assert_eq!(bench.device("zstd:1").await.0, Kind::OverlayBd { layers: 1 });
    let lz4 = bench.reference("zstd:1");
    bench.convert("next:1", "lz4:1", &["--reuse", &lz4]).await.unwrap();
    assert_ne!(bench.resolve("lz4:1").await.layers[0].digest, bench.resolve("zstd:1").await.layers[0].digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_images_of_an_index_become_an_index_of_what_they_are_for() {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let bench = Bench::new().await;
    bench.put("app", &bench.trees());
    let image = bench.resolve("app:1").await;
    let entry = |architecture: &str| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": image.digest,
            "size": image.size_bytes,
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    // Builders put statements about images beside them, for a platform that is none.
    let mut statement = entry("unknown");
    statement["platform"]["os"] = "unknown".into();
    statement["annotations"] = serde_json::json!({"vnd.docker.reference.type": "attestation-manifest"});
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry("amd64"), statement, entry("s390x")]});
    bench.registry.put_manifest("team/app", Some("all"), INDEX, index.to_string()).unwrap();
    bench.convert("app:all", "app:raw", &["--to", "raw", "--all-platforms"]).await.unwrap();
    let reference: Reference = bench.reference("app:raw").parse().unwrap();
    let platforms: Vec<String> =
        bench.fetcher.platforms(&reference).await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/s390x"]);
    bench.convert("app:1", "app:one", &["--to", "raw", "--all-platforms"]).await.unwrap();
    let one: Reference = bench.reference("app:one").parse().unwrap();
    assert!(bench.fetcher.platforms(&one).await.unwrap().is_empty(), "an image that stands alone stays so");
}

/// Two more trees over those of [`Bench::trees`]: one changes a file and adds many, so that the metadata grow, the other hides most of it again.
fn more(bench: &Bench) -> Vec<PathBuf> {
    let [third, fourth] = ["third", "fourth"].map(|name| bench.dir(name));
    fs::create_dir_all(third.join("srv/many")).unwrap();
    for nth in 0..300 {
        fs::write(third.join(format!("srv/many/{nth:0100}")), nth.to_string()).unwrap();
    }
    fs::create_dir_all(third.join("etc/kept.d")).unwrap();
    fs::write(third.join("etc/kept.d/b"), "changed by the third").unwrap();
    fs::create_dir_all(fourth.join("srv")).unwrap();
    fs::write(fourth.join("srv/.wh.many"), "").unwrap();
    fs::write(fourth.join("last"), vec![b'l'; 10_000]).unwrap();
    vec![third, fourth]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_layer_becomes_one_over_those_below_and_images_share_those_that_they_share() {
    let bench = Bench::new().await;
    let trees = [bench.trees(), more(&bench)].concat();
    for count in 1..=trees.len() {
        bench.put(&format!("of-{count}"), &trees[..count]);
        let (from, to) = (format!("of-{count}:1"), format!("of-{count}:obd"));
        bench.convert(&from, &to, &["--to", "overlaybd-layers"]).await.unwrap();
    }
    let whole = bench.resolve("of-4:obd").await;
    assert_eq!(whole.layers.len(), 4);
    for count in 1..4 {
        let lower = bench.resolve(&format!("of-{count}:obd")).await;
        // The last layer is not compressed in these images: the one below it is the same only where it is compressed in both.
        let shared = lower.layers.iter().zip(&whole.layers).take_while(|(a, b)| a.digest == b.digest).count();
        assert_eq!(
            shared, count,
            "a new layer depends on its archive and those below, not on how they were compressed"
        );
    }
    let before = bench.reference("of-3:obd");
    bench.convert("of-4:1", "reused:obd", &["--to", "overlaybd-layers", "--reuse", &before]).await.unwrap();
    assert_eq!(bench.resolve("reused:obd").await.digest, whole.digest);
    if !tool("fsck.erofs") {
        return;
    }
    for (count, many, b) in [(2, None, "b"), (3, Some(300), "changed by the third"), (4, None, "changed by the third")]
    {
        let [image, tree] = ["image", "tree"].map(|name| bench.dir.path().join(format!("{name}-{count}")));
        let kind = bench.device_to(&format!("of-{count}:obd"), &image).await;
        assert_eq!(kind, Kind::OverlayBd { layers: count });
        run(Command::new("fsck.erofs").arg(format!("--extract={}", tree.display())).arg(&image));
        fs::remove_file(&image).unwrap();
        assert_eq!(fs::read_dir(tree.join("srv/many")).ok().map(Iterator::count), many, "{count} layers");
        assert_eq!(fs::read_to_string(tree.join("etc/kept.d/b")).unwrap(), b);
        assert!(!tree.join("etc/gone").exists() && !tree.join("etc/gone.d").exists());
        let big = |dir: &Path| Digest::of(&fs::read(dir.join("usr/lib/big")).unwrap());
        assert_eq!(big(&tree), big(&bench.dir.path().join("lower")));
    }
}

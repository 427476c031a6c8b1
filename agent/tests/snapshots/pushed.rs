//! Indexes that lie beside an ordinary image: who is believed, what is fetched, and what an index that lies comes to.

use std::{collections::HashMap, fs, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Parser as _;
use penstock_agent::{
    Accept, Agent, Config,
    cli::{Cli, Command},
    config::IndexPulled,
    index,
};
use penstock_blob::Digest;
use penstock_registry::{Artifact, Layer};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};

use super::{Bench, Containerd, Image, cannot_mount, kinds, ordinary::told};

/// What `SubjectPublicKeyInfo` of a P-256 key begins with (RFC 5480).
const P256: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";

/// Runs `penstock index`.
pub(super) async fn make(image: &Image, more: &[&str]) {
    let typed = ["penstock", "index", &image.reference].into_iter().chain(more.iter().copied());
    let Command::Index(args) = Cli::try_parse_from(typed).unwrap().command else { panic!("another command") };
    tokio::task::spawn_blocking(move || index::run(&args)).await.unwrap().unwrap();
}

/// An agent of its own, and containerd's side of it.
async fn node(bench: &Bench, dir: &tempfile::TempDir, change: impl FnOnce(&mut Config)) -> (Agent, Containerd) {
    let mut config = Config { snapshotter_enable: true, ..Config::in_dir(dir.path()) };
    config.transport = bench.config().transport;
    change(&mut config);
    let agent = Agent::start(config).await.unwrap();
    let containerd = Containerd::connect(agent.snapshots().unwrap()).await;
    (agent, containerd)
}

/// The directories that a container of the image is given, the top first.
async fn lowers(containerd: &Containerd, name: &str) -> Vec<PathBuf> {
    let mounts = containerd.prepare("k8s.io/9/c", name, HashMap::new()).await.unwrap();
    mounts[0].option("lowerdir").unwrap().split(':').map(PathBuf::from).collect()
}

async fn read(path: PathBuf) -> std::io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || fs::read(path)).await.unwrap()
}

impl Bench {
    /// The only artifact beside the image, as the registry lists it.
    async fn artifact(&self, image: &Image) -> Digest {
        let (manifest, (_, repository)) = (image.manifest.unwrap(), image.reference.split_once('/').unwrap());
        let repository = repository.split_once(':').unwrap().0;
        let url = format!("http://{}/v2/{repository}/referrers/{manifest}", self.registry.host());
        let listed = tokio::task::spawn_blocking(move || {
            std::process::Command::new("curl").args(["-sf", &url]).output().expect("curl").stdout
        });
        let listed: serde_json::Value = serde_json::from_slice(&listed.await.unwrap()).unwrap();
        let [only] = &listed["manifests"].as_array().unwrap()[..] else { panic!("one artifact: {listed}") };
        only["digest"].as_str().unwrap().parse().unwrap()
    }

    /// Signs an artifact as `cosign sign --key` does.
    fn sign(&self, repository: &str, artifact: Digest, key: &EcdsaKeyPair) {
        let payload = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{repository}"}},"image":{{"docker-manifest-digest":"{artifact}"}},"type":"cosign container image signature"}},"optional":null}}"#
        );
        let signature = STANDARD.encode(key.sign(&SystemRandom::new(), payload.as_bytes()).unwrap());
        let layer = Layer {
            blob: self.registry.put_blob(payload),
            media_type: "application/vnd.dev.cosign.simplesigning.v1+json".to_owned(),
            annotations: [("dev.cosignproject.cosign/signature".to_owned(), signature)].into(),
        };
        let image = Artifact { config: "{}".into(), layers: vec![layer], ..Artifact::default() };
        self.registry.put_image(repository, &format!("sha256-{}.sig", artifact.to_hex()), image).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_index_makes_the_first_pull_lazy_where_its_registry_is_trusted_and_nowhere_else() {
    require_mounts!();
    let bench = Bench::new().await;
    let image = bench.put_ordinary("plain", &bench.trees());
    make(&image, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let (agent, containerd) = node(&bench, &dir, |_| {}).await;
    assert!(containerd.pull(&image).await.0.is_empty(), "nobody is trusted unless the operator says so");
    agent.stop().await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    let (agent, containerd) = node(&bench, &dir, |config| {
        config.layers_accept = bench.registry.host().parse::<Accept>().unwrap();
        config.cache_read_ahead_bytes = 0;
    })
    .await;
    bench.registry.reset_counts();
    let (names, unpacked) = containerd.pull(&image).await;
    assert_eq!((names.len(), unpacked), (2, None), "{:?}", kinds(&agent).await);
    let lowers = lowers(&containerd, &names[1]).await;
    assert_eq!(read(lowers[0].join("etc/changed")).await.unwrap(), b"new");
    assert_eq!(read(lowers[1].join("etc/kept.d/b")).await.unwrap(), b"b");
    let (sent, layer) = (bench.registry.counts().blob_bytes, 3_000_000);
    assert!(sent < layer / 2, "{sent} of more than {layer} bytes were sent");
    assert_eq!(read(lowers[1].join("usr/lib/big")).await.unwrap().len(), 3_000_000);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_indexes_and_pushes_is_lazy_for_the_next_one() {
    require_mounts!();
    let bench = Bench::new().await;
    let image = bench.put_ordinary("plain", &bench.trees());
    let dir = tempfile::tempdir().unwrap();
    let (agent, containerd) = node(&bench, &dir, |config| config.layers_index_pulled = IndexPulled::Push).await;
    containerd.unpack(&image).await;
    told(&agent, "layers.pushed").await;
    agent.stop().await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    let (agent, containerd) = node(&bench, &dir, |config| config.layers_accept = Accept::All).await;
    let (names, _) = containerd.pull(&image).await;
    assert_eq!(names.len(), 2, "{:?}", kinds(&agent).await);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_lost_is_found_again_when_its_device_is_made_again() {
    require_mounts!();
    let bench = Bench::new().await;
    let image = bench.put_ordinary("plain", &bench.trees());
    make(&image, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let accept = |config: &mut Config| config.layers_accept = Accept::All;
    let (agent, containerd) = node(&bench, &dir, accept).await;
    let (names, _) = containerd.pull(&image).await;
    let lowers = lowers(&containerd, &names[1]).await;
    agent.stop().await.unwrap();

    let kept = dir.path().join("state/layers");
    assert!(fs::read_dir(&kept).unwrap().count() > 0);
    fs::remove_dir_all(&kept).unwrap();
    let (agent, containerd) = node(&bench, &dir, accept).await;
    containerd.mounts("k8s.io/9/c").await.unwrap();
    assert_eq!(read(lowers[0].join("etc/changed")).await.unwrap(), b"new");
    assert_eq!(read(lowers[1].join("etc/kept.d/b")).await.unwrap(), b"b");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_only_what_it_signed_is_believed() {
    require_mounts!();
    let bench = Bench::new().await;
    let image = bench.put_ordinary("plain", &bench.trees());
    make(&image, &[]).await;
    let artifact = bench.artifact(&image).await;
    let random = SystemRandom::new();
    let pair = || {
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.as_ref(), &random).unwrap()
    };
    let (key, stranger) = (pair(), pair());
    let der = [P256, key.public_key().as_ref()].concat();
    let pem = bench.dir.path().join("cosign.pub");
    let text = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
    fs::write(&pem, text).unwrap();
    for (signer, lazy, why) in
        [(None, 0, "nobody signed it"), (Some(&stranger), 0, "not signed by the key"), (Some(&key), 2, "")]
    {
        if let Some(signer) = signer {
            bench.sign("plain", artifact, signer);
        }
        let dir = tempfile::tempdir().unwrap();
        let (agent, containerd) = node(&bench, &dir, |config| {
            config.layers_accept = Accept::All;
            config.layers_key = Some(pem.clone());
        })
        .await;
        let (names, _) = containerd.pull(&image).await;
        let told = kinds(&agent).await;
        assert_eq!(names.len(), lazy, "{told:?}");
        let refused = told.iter().find(|(kind, _)| kind == "layers.index_refused");
        assert_eq!(refused.is_some(), lazy == 0, "{told:?}");
        assert!(refused.is_none_or(|(_, text)| text.contains(why)), "{told:?}");
        agent.stop().await.unwrap();
    }
}

/// The index, made to say that the frames of its layer have other digests.
fn lie(index: &[u8]) -> Vec<u8> {
    // Bytes of the windows, which lie before the frame table; its records (docs/formats/layer-index.md, sections 1 and 2).
    let windows = u64::from_le_bytes(index[112..120].try_into().unwrap());
    let table = 4096 + usize::try_from(windows).unwrap();
    let mut lie = index.to_vec();
    let page = &mut lie[table..table + 4096];
    page[..4032].chunks_exact_mut(64).for_each(|record| record[40] ^= 1);
    let frames = usize::try_from(u64::from_le_bytes(index[96..104].try_into().unwrap())).unwrap();
    page[frames * 64..4092].fill(0);
    let sum = crc32c::crc32c(&page[..4092]);
    page[4092..].copy_from_slice(&sum.to_le_bytes());
    lie
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lies_is_refused_or_its_reads_fail_and_no_other_bytes_are_shown() {
    require_mounts!();
    let bench = Bench::new().await;
    let trees = bench.trees();
    let image = bench.put_ordinary("plain", &trees[..1]);
    // The same paths and sizes, other bytes.
    fs::write(trees[0].join("etc/changed"), "NEW").unwrap();
    let other = bench.put_ordinary("other", &trees[..1]);
    let [kept, evil] = ["kept", "evil"].map(|name| bench.dir.path().join(name));
    for (image, dir) in [(&image, &kept), (&other, &evil)] {
        fs::create_dir(dir).unwrap();
        make(image, &["--dry-run", "--save", dir.to_str().unwrap()]).await;
    }
    let sound = fs::read(kept.join(format!("{}.layer-index", image.layers[0].to_hex()))).unwrap();
    let strange = fs::read(evil.join(format!("{}.layer-index", other.layers[0].to_hex()))).unwrap();
    let manifest = fs::read_to_string(kept.join("manifest.json")).unwrap();
    let mut cut = sound.clone();
    cut.truncate(sound.len() - 1);
    for (bad, lazy) in [(lie(&sound), 1), (strange, 0), (cut, 0), (vec![0; 5000], 0)] {
        let blob = bench.registry.put_blob(bad);
        let artifact = manifest.replace(&Digest::of(&sound).to_string(), &blob.digest.to_string());
        let artifact = artifact.replace(&format!("\"size\":{}", sound.len()), &format!("\"size\":{}", blob.size_bytes));
        let linked = Layer { blob, media_type: "application/x".to_owned(), annotations: [].into() };
        let link = Artifact { config: "{}".into(), layers: vec![linked], ..Artifact::default() };
        bench.registry.put_image("plain", "linked", link).unwrap();
        // Under one tag after the other: the latest is what the registry lists.
        let put = bench.registry.put_manifest("plain", None, "application/vnd.oci.image.manifest.v1+json", artifact);
        put.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (agent, containerd) = node(&bench, &dir, |config| {
            config.layers_accept = Accept::All;
            config.fetch_deadline = std::time::Duration::from_secs(1);
        })
        .await;
        let (names, _) = containerd.pull(&image).await;
        assert_eq!(names.len(), lazy, "{:?}", kinds(&agent).await);
        if let [name] = &names[..] {
            let lowers = lowers(&containerd, name).await;
            let error = read(lowers[0].join("etc/changed")).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(5), "{error}");
            told(&agent, "layers.wrong_bytes").await;
        } else {
            told(&agent, "layers.index_refused").await;
        }
        agent.stop().await.unwrap();
        bench.registry.remove_blob(&blob.digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_beside_an_image_is_believed_for_no_other_image_of_the_same_layer() {
    require_mounts!();
    let bench = Bench::new().await;
    let trees = bench.trees();
    let (one, two) = (bench.put_ordinary("one", &trees[..1]), bench.put_ordinary("two", &trees));
    assert_eq!((one.layers[0], one.chains[0]), (two.layers[0], two.chains[0]), "they have the lowest layer in common");
    make(&one, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let (agent, containerd) = node(&bench, &dir, |config| {
        config.layers_accept = Accept::All;
        config.layers_index_pulled = IndexPulled::No;
    })
    .await;
    let (names, _) = containerd.pull(&one).await;
    assert_eq!(names.len(), 1, "{:?}", kinds(&agent).await);
    containerd.remove(&names[0]).await.unwrap();
    let (names, unpacked) = containerd.pull(&two).await;
    assert!(names.is_empty() && unpacked.is_some(), "{:?}", kinds(&agent).await);
    agent.stop().await.unwrap();
}

//! What `penstock inspect` says of an image is what becomes of it when containerd pulls it then.

use std::fs;

use penstock_agent::{Accept, Agent, Config, config::IndexPulled};
use penstock_api::{Fate, Inspect, Inspection, WayState};

use super::{Bench, Containerd, Image, foreign::put_soci, kinds, pushed::make};

async fn inspect(agent: &Agent, image: &Image) -> Inspection {
    let request = Inspect { reference: image.reference.clone(), platform: None };
    agent.node().inspect(request).await.unwrap()
}

/// Inspects an image, then pulls it, and compares. All of its layers are read in this way.
async fn check(bench: &Bench, change: impl FnOnce(&mut Config), (image, way, refused): (&Image, &str, &str)) {
    let mut config = bench.config();
    change(&mut config);
    let agent = Agent::start(config).await.unwrap();
    bench.registry.reset_counts();
    let inspection = inspect(&agent, image).await;
    let sent = bench.registry.counts().blob_bytes;
    assert!(sent < 200_000, "{sent} bytes were fetched to look at {}", image.reference);
    assert_eq!(fs::read_dir(bench.dir.path().join("state/layers")).unwrap().count(), 0, "nothing is kept");
    assert_eq!(inspection.layers.len(), image.layers.len());
    for layer in &inspection.layers {
        let used: Vec<_> = layer.ways.iter().filter(|way| way.state == WayState::Used).collect();
        assert_eq!(used.first().map(|used| used.way.as_str()), Some(way), "{layer:#?}");
        let opens = used.first().is_some_and(|used| used.open_bytes >= used.index_bytes);
        assert!(opens || way == "native", "an index is fetched: {layer:#?}");
        let refusal = layer.ways.iter().find(|way| matches!(way.state, WayState::Refused | WayState::Off));
        assert!(refused.is_empty() || refusal.is_some_and(|way| way.way == refused), "{layer:#?}");
    }
    let containerd = Containerd::connect(agent.snapshots().unwrap()).await;
    let (names, _) = containerd.pull(image).await;
    assert_eq!(names.len() as u64, inspection.lazy_layers, "{:?}", kinds(&agent).await);
    let shown = agent.node().snapshots().await.unwrap();
    for (name, layer) in names.iter().zip(&inspection.layers) {
        let snapshot = shown.iter().find(|snapshot| snapshot.name == *name).unwrap();
        assert_eq!((layer.fate, snapshot.detail.as_ref()), (Fate::Lazy, Some(&layer.why)));
    }
    if names.is_empty() {
        assert!(inspection.layers.iter().all(|layer| layer.fate == Fate::Unpacked), "{inspection:#?}");
        let told = kinds(&agent).await;
        let why = &inspection.layers[0].why;
        assert!(told.iter().any(|(kind, text)| kind == "snapshot.eager" && text.contains(why)), "{why}: {told:?}");
    } else if way != "native" {
        // From now on it costs nothing more.
        let again = inspect(&agent, image).await;
        let opened: Vec<_> = again.layers.iter().map(|layer| layer.open_bytes).collect();
        assert!(opened.iter().all(|bytes| *bytes == Some(0)), "{again:#?}");
        let verified =
            |of: &Inspection| -> Vec<String> { of.layers.iter().map(|one| one.verified_by.clone()).collect() };
        assert_eq!(verified(&again), verified(&inspection), "what was said is what is done");
    }
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_read_in_its_own_format_whatever_is_preferred() {
    let bench = Bench::new().await;
    let none = |config: &mut Config| config.layers_prefer = "none".parse().unwrap();
    check(&bench, none, (&bench.image(), "native", "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turbooci_image_is_lazy_over_its_original_layers_unless_every_read_is_to_be_verified() {
    for tag in ["turbo-ext4", "turbo-erofs"] {
        let bench = Bench::new().await;
        let image = bench.fixture(tag);
        check(&bench, |_| {}, (&image, "native", "")).await;
        let agent = Agent::start(bench.config()).await.unwrap();
        let told = inspect(&agent, &image).await;
        assert!(told.layers.iter().all(|layer| layer.verified_by.contains("no digests of files")), "{told:#?}");
        agent.stop().await.unwrap();
    }
    let bench = Bench::new().await;
    let agent = Agent::start(Config { verify_require: true, ..bench.config() }).await.unwrap();
    let told = inspect(&agent, &bench.fixture("turbo-erofs")).await;
    let is_refused = |layer: &penstock_api::InspectedLayer| {
        (layer.fate, layer.ways[0].state) == (Fate::Refused, WayState::Refused) && layer.why.contains("original layers")
    };
    assert!(told.lazy_layers == 0 && told.layers.iter().all(is_refused), "{told:#?}");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_format_is_read_unless_it_is_left_out() {
    for (prefer, way, off) in
        [("own,toc,soci,pushed", "toc", ""), ("own,soci", "unpack", "toc"), ("none", "unpack", "toc")]
    {
        let bench = Bench::new().await;
        let image = bench.put_kept("estargz");
        check(&bench, |config| config.layers_prefer = prefer.parse().unwrap(), (&image, way, off)).await;
    }
    for image in ["zstdchunked", "containers"] {
        let bench = Bench::new().await;
        let image = bench.put_kept(image);
        check(&bench, |_| {}, (&image, "toc", "")).await;
    }
    let bench = Bench::new().await;
    check(&bench, |_| {}, (&put_soci(&bench, true), "soci", "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_index_is_seen_also_where_it_is_not_trusted() {
    for (accept, way, refused) in [(Accept::None, "unpack", "pushed"), (Accept::All, "pushed", "")] {
        let bench = Bench::new().await;
        let image = bench.put_ordinary("plain", &bench.trees());
        make(&image, &[]).await;
        check(&bench, |config| config.layers_accept = accept, (&image, way, refused)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_indexed_at_its_first_pull_is_told() {
    let bench = Bench::new().await;
    let image = bench.put_ordinary("plain", &bench.trees());
    let keep = |config: &mut Config| config.layers_index_pulled = IndexPulled::Keep;
    check(&bench, keep, (&image, "first_pull", "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_has_one_layer_unpacked_that_would_be_lazy() {
    let bench = Bench::new().await;
    let image = bench.put_kept("estargz");
    let (agent, containerd) = bench.agent().await;
    let mut labels = image.labels(0);
    labels.insert("containerd.io/snapshot/penstock.prefer".to_owned(), "none".to_owned());
    assert!(containerd.prepare("k8s.io/1/extract", "", labels.clone()).await.is_ok());
    containerd.remove("k8s.io/1/extract").await.unwrap();
    labels.insert("containerd.io/snapshot/penstock.prefer".to_owned(), "pushed,toc".to_owned());
    let exists = containerd.prepare("k8s.io/1/extract", "", labels).await.unwrap_err();
    assert_eq!(exists.code(), tonic::Code::AlreadyExists, "{exists}");
    agent.stop().await.unwrap();
}

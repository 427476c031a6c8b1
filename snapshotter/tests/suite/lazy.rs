//! Layers that are not fetched: how containerd hears of them, what becomes of those that are, and what happens when calls are given up.

use std::{fs, path::Path, sync::atomic::Ordering};

use penstock_blob::Digest;
use penstock_snapshotter::{MountError, Shape, Source};
use tonic::Code;

use crate::{
    layers::{OPEN, is_mounted},
    mounting, needs_mounts,
    node::{As, Labels, Node, TARGET, labels, layer_labels},
};

fn lower(dir: &Path) {
    fs::write(dir.join("lower"), "lower").expect("written");
    fs::write(dir.join("both"), "lower").expect("written");
}

fn upper(dir: &Path) {
    fs::write(dir.join("upper"), "upper").expect("written");
    fs::write(dir.join("both"), "upper").expect("written");
}

fn why(node: &Node, name: &str) -> Option<String> {
    let shown = node.snapshotter.snapshots().into_iter().find(|shown| shown.name == name).expect("it exists");
    match shown.source {
        Source::Directory { why } => why,
        Source::Lazy { .. } => panic!("{name} is lazy"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lazy_layer_is_committed_with_its_parent_and_its_labels_and_not_fetched() {
    needs_mounts!();
    let node = Node::start().await;
    let digests = node.mounter.prepare(Shape::Single, &[lower, upper]);
    let first = node.pull(digests[0], "").await;
    let second = node.pull(digests[1], &first).await;
    let info = node.stat(&second).await.expect("it exists");
    assert_eq!((info.kind(), info.parent.as_str()), (crate::api::Kind::Committed, first.as_str()));
    for (key, value) in layer_labels(digests[1], &first) {
        assert_eq!(info.labels.get(&key), Some(&value), "{key} is kept");
    }
    let asked = node.mounter.asked.lock().clone();
    assert_eq!((asked[1].depth, asked[1].digest), (1, digests[1]));
    assert_eq!(asked[1].reference, "registry.example/image:tag");
    assert_eq!(node.mounter.mounts.load(Ordering::Relaxed), 0, "nobody needs a device yet");
    let shown = node.snapshotter.snapshots();
    let Source::Lazy { shape, reference, figures, how, layers, .. } = &shown[1].source else { panic!("{shown:?}") };
    assert_eq!((*shape, reference.as_str(), *layers), (Shape::Single, "registry.example/image:tag", 1));
    assert_eq!((figures, how.as_str()), (&None, "a prepared directory"));
    let active = node.active("a", &second).await;
    assert_eq!(fs::read_to_string(active.path("both")).expect("below"), "upper");
    assert_eq!(node.mounter.mounts.load(Ordering::Relaxed), 2);
    let shown = node.snapshotter.snapshots();
    let figures = shown.iter().find_map(|shown| match &shown.source {
        Source::Lazy { figures: Some(figures), .. } => Some(figures.clone()),
        _ => None,
    });
    assert_eq!(figures.expect("a device is shown").fetched_bytes, 1);
    assert!(shown.iter().all(|shown| shown.directory.ends_with(format!("{}/fs", shown.number))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_pull_of_the_same_layers_finds_them() {
    needs_mounts!();
    let node = Node::start().await;
    let digests = node.mounter.prepare(Shape::Single, &[lower, upper]);
    let first = node.pull(digests[0], "").await;
    let second = node.pull(digests[1], &first).await;
    assert_eq!(node.pull(digests[0], "").await, first, "another namespace pulls the same image");
    assert_eq!(node.pull(digests[1], &first).await, second);
    assert_eq!(node.list(&[]).await.len(), 2);
    // And of many pulls of one layer at once, one makes it.
    node.remove(&second).await.expect("removed");
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..20 {
        let mut client = node.client.clone();
        let request = crate::api::PrepareSnapshotRequest {
            snapshotter: "penstock".into(),
            key: format!("extract {i}"),
            parent: first.clone(),
            labels: layer_labels(digests[1], &first),
        };
        tasks.spawn(async move { client.prepare(request).await.expect_err("it exists").code() });
    }
    assert!(tasks.join_all().await.into_iter().all(|code| code == Code::AlreadyExists));
    assert_eq!(node.list(&[]).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_cannot_be_lazy_is_unpacked_and_says_why() {
    needs_mounts!();
    let node = Node::start().await;
    let digests = node.mounter.prepare(Shape::Single, &[lower]);
    let parent = node.pull(digests[0], "").await;
    // Above a lazy layer an ordinary one, which containerd unpacks; above that a lazy one again.
    let tar = Digest::of(b"tar");
    let mounts = node.prepare("extract", &parent, layer_labels(tar, &parent)).await.expect("to be unpacked");
    assert!(mounts.iter().all(|mount| mount.options.iter().all(|option| option != "ro")), "2.4 would not unpack it");
    let mounted = mounting::mount(&mounts, &node.place("extract"));
    assert_eq!(fs::read_to_string(mounted.path("lower")).expect("below"), "lower");
    upper(mounted.root());
    drop(mounted);
    node.commit("unpacked", "extract", layer_labels(tar, &parent)).await.expect("committed");
    assert_eq!(why(&node, "unpacked").as_deref(), Some("the layer is an ordinary tar"));
    let active = node.active("a", "unpacked").await;
    assert_eq!(fs::read_to_string(active.path("both")).expect("below"), "upper");
    assert_eq!(why(&node, "a"), None, "a container's own snapshot is no layer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overlaybd_layer_is_never_unpacked() {
    let node = Node::start().await;
    let digest = Digest::of(b"layer");
    let mut wanted = layer_labels(digest, "");
    wanted.insert("containerd.io/snapshot/overlaybd/blob-digest".into(), digest.to_string());
    let refused = node.prepare("extract", "", wanted.clone()).await.expect_err("the mounter does not know it");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("the layer is an ordinary tar"), "{refused}");
    *node.mounter.trouble.lock() = Some(MountError::Transient { reason: "the registry does not answer".into() });
    let refused = node.prepare("extract", "", wanted).await.expect_err("the registry is away");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("the registry does not answer"), "{refused}");
    // From a client that says nothing of layers it comes as a tar with one file.
    let mounts = node.prepare("extract", "", Labels::new()).await.expect("as for any snapshot");
    let dir = Path::new(&mounts[0].source);
    fs::write(dir.join("overlaybd.commit"), "a disk").expect("written");
    let refused = node.commit("name", "extract", Labels::new()).await.expect_err("it holds no files");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(node.stat("extract").await.expect("it is still active").kind(), crate::api::Kind::Active);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_cannot_be_shown_is_refused_and_whoever_watches_is_told() {
    let node = Node::start().await;
    let wanted = layer_labels(Digest::of(b"disk"), "");
    for (is_transient, code) in [(false, Code::FailedPrecondition), (true, Code::Unavailable)] {
        *node.mounter.refuses.lock() = Some(("it has no index".into(), is_transient));
        let refused = node.prepare("extract", "", wanted.clone()).await.expect_err("it is not unpacked");
        assert_eq!((refused.code(), refused.message()), (code, "it has no index"));
        assert!(node.list(&[]).await.is_empty());
    }
    *node.mounter.refuses.lock() = None;
    node.prepare("extract", "", wanted).await.expect("it is unpacked");
    node.prepare("other", "", labels(&[(TARGET, "chain")])).await.expect("it is unpacked");
    let told = node.mounter.declined.lock().clone();
    let disk = Some(Digest::of(b"disk"));
    let refused = (disk, "it has no index".to_owned(), true);
    assert_eq!(told[..3], [refused.clone(), refused, (disk, "the layer is an ordinary tar".to_owned(), false)]);
    assert!(told[3].0.is_none() && told[3].1.contains("no image reference") && !told[3].2, "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_watches_is_told_of_each_layer_that_containerd_has_unpacked_and_of_nothing_else() {
    let node = Node::start().await;
    let [lower, upper] = [b"lower".as_slice(), b"upper"].map(Digest::of);
    node.prepare("k8s.io/1/a", "", layer_labels(lower, "")).await.expect("it is unpacked");
    assert!(node.mounter.unpacked.lock().is_empty());
    node.commit("k8s.io/2/lower", "k8s.io/1/a", Labels::new()).await.expect("it is committed");
    node.prepare("k8s.io/3/b", "k8s.io/2/lower", layer_labels(upper, "")).await.expect("it is unpacked");
    node.commit("k8s.io/4/upper", "k8s.io/3/b", Labels::new()).await.expect("it is committed");
    node.prepare("k8s.io/5/c", "k8s.io/4/upper", Labels::new()).await.expect("a container's");
    node.commit("k8s.io/6/c", "k8s.io/5/c", Labels::new()).await.expect("it is committed");
    let told = node.mounter.unpacked.lock().clone();
    assert_eq!(told, [(lower, 0, "k8s.io".to_owned()), (upper, 1, "k8s.io".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_taken_for_a_tar_is_never_committed_as_an_empty_layer() {
    let node = Node::start().await;
    let (disk, away) = (layer_labels(Digest::of(b"disk"), ""), MountError::Transient { reason: "no answer".into() });
    *node.mounter.trouble.lock() = Some(away.clone());
    node.prepare("extract", "", disk.clone()).await.map(drop).expect("to be unpacked");
    let refused = node.commit("name", "extract", disk.clone()).await.expect_err("nothing came of it");
    assert_eq!(refused.code(), Code::Unavailable, "the registry may answer the next try");
    assert!(refused.message().contains("may be a disk") && refused.message().contains("no answer"), "{refused}");
    // It is told by now.
    *node.mounter.trouble.lock() = None;
    *node.mounter.refuses.lock() = Some(("it is a disk".into(), false));
    let refused = node.commit("name", "extract", disk.clone()).await.expect_err("nothing came of it");
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("it is a disk"), "{refused}");
    *node.mounter.refuses.lock() = None;
    node.commit("told", "extract", disk.clone()).await.expect("an ordinary tar, of whatever");
    // Files came of it: it is no disk, whoever knows more.
    *node.mounter.trouble.lock() = Some(away);
    node.prepare("extract", "", disk.clone()).await.map(drop).expect("to be unpacked");
    let dir = node.mounts("extract").await.expect("mounts")[0].source.clone();
    fs::write(Path::new(&dir).join("file"), "").expect("written");
    node.commit("files", "extract", disk).await.expect("it has files");
    // A layer of nothing, as docker writes it, is known by its chain ID, whoever is away and whatever labels there are.
    let diff = Digest::of(&[0; 1024]);
    let chain =
        Digest::of(format!("{} {diff}", node.stat("files").await.expect("it exists").labels[TARGET]).as_bytes());
    for (key, labels) in [("a", labels(&[(TARGET, &chain.to_string())])), ("b", layer_labels(diff, "files"))] {
        let labels = Labels::from_iter(labels.into_iter().chain([(TARGET.to_owned(), chain.to_string())]));
        node.prepare(key, "files", labels.clone()).await.map(drop).expect("to be unpacked");
        node.commit(&format!("empty {key}"), key, labels).await.expect("it is meant to be empty");
    }
    // What is committed by anybody else may be empty.
    node.prepare("container", "", Labels::new()).await.map(drop).expect("prepared");
    node.commit("image", "container", Labels::new()).await.expect("committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_containerd_does_not_say_and_trouble_with_the_registry_are_reasons() {
    let node = Node::start().await;
    let (digest, chain) = (Digest::of(b"layer").to_string(), Digest::of(b"chain").to_string());
    let of = |pairs: &[(&str, &str)]| labels(pairs);
    let (reference, layer) = ("containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/cri.layer-digest");
    let table = [
        (of(&[(TARGET, &chain)]), "containerd passed no image reference"),
        (of(&[(TARGET, &chain), (reference, "image")]), "containerd passed no layer digest"),
        (of(&[(TARGET, &chain), (reference, "image"), (layer, "md5:1")]), "layer digest that containerd passed"),
        (of(&[(TARGET, "chain"), (reference, "image"), (layer, &digest)]), "chain ID that containerd passed"),
    ];
    for (i, (labels, reason)) in table.into_iter().enumerate() {
        let key = format!("extract {i}");
        node.prepare(&key, "", labels).await.expect("to be unpacked");
        assert!(why(&node, &key).expect("a reason").contains(reason), "{reason}");
    }
    assert_eq!(node.mounter.offers.load(Ordering::Relaxed), 0);
    *node.mounter.trouble.lock() = Some(MountError::Transient { reason: "the registry does not answer".into() });
    let stargz = of(&[
        (TARGET, &chain),
        ("containerd.io/snapshot/remote/stargz.reference", "image"),
        ("containerd.io/snapshot/remote/stargz.digest", &digest),
    ]);
    node.prepare("extract", "", stargz).await.expect("to be unpacked");
    assert!(why(&node, "extract").expect("a reason").contains("the registry does not answer"));
    assert_eq!(node.mounter.asked.lock()[0].reference, "image", "what ctr-remote says is understood");
    assert!(node.prepare("container", "", Labels::new()).await.is_ok());
    assert_eq!(why(&node, "container"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reboot_mounts_makes_the_devices_again() {
    needs_mounts!();
    for how in [As::Singles, As::Merged] {
        let node = Node::start().await;
        let top = node.image(how, &[lower, upper]).await;
        let active = node.active("a", &top).await;
        fs::write(active.path("kept"), "kept").expect("written");
        drop(active);
        node.reboot();
        let node = node.restart(|_| ()).await;
        assert_eq!(mounting::count_below(&node.root()), 0);
        let mounts = node.mounts("a").await.expect("mounts");
        let active = mounting::mount(&mounts, &node.place("a"));
        assert_eq!(fs::read_to_string(active.path("both")).expect("below"), "upper", "{how:?}");
        assert_eq!(fs::read_to_string(active.path("kept")).expect("its own"), "kept", "{how:?}");
        // Also where the directory that it is mounted on is lost.
        drop(active);
        node.reboot();
        let number = node.snapshotter.snapshots().iter().find(|shown| shown.name == top).expect("it exists").number;
        fs::remove_dir_all(node.root().join("snapshots").join(number.to_string())).expect("removed");
        let active = mounting::mount(&node.mounts("a").await.expect("mounts"), &node.place("a"));
        assert_eq!(fs::read_to_string(active.path("upper")).expect("below"), "upper", "{how:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_in_use_is_not_removed_and_one_that_is_takes_its_device_along() {
    needs_mounts!();
    let node = Node::start().await;
    let top = node.image(As::Merged, &[lower]).await;
    drop(node.active("a", &top).await);
    node.remove("a").await.expect("removed");
    *node.mounter.busy.lock() = Some(MountError::Busy { reason: "a container".into() });
    let status = node.remove(&top).await.expect_err("it is in use");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("cannot remove") && status.message().contains("a container"), "{status}");
    assert!(node.stat(&top).await.is_ok());
    *node.mounter.busy.lock() = None;
    node.remove(&top).await.expect("removed");
    assert_eq!(mounting::count_below(&node.root()), 0);
    let status = node.prepare("b", &top, Labels::new()).await.expect_err("it is gone");
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("penstock snapshotter repair"), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_cannot_be_made_leaves_no_snapshot_and_the_call_may_be_repeated() {
    needs_mounts!();
    let node = Node::start().await;
    let top = node.image(As::Merged, &[lower]).await;
    let number = node.snapshotter.snapshots()[0].number;
    let source = node.dir.path().join("layers/0");
    fs::rename(&source, node.dir.path().join("away")).expect("renamed");
    let status = node.prepare("a", &top, Labels::new()).await.expect_err("no device");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(node.list(&["kind==active"]).await, Vec::<String>::new());
    fs::rename(node.dir.path().join("away"), &source).expect("renamed");
    assert!(!is_mounted(&node.root().join("snapshots").join(number.to_string()).join("fs")));
    drop(node.active("a", &top).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepare_that_is_given_up_may_be_repeated() {
    needs_mounts!();
    for view in [false, true] {
        let node = Node::start().await;
        let top = node.image(As::Merged, &[lower]).await;
        let call = async |labels| match view {
            true => node.view("key", &top, labels).await,
            false => node.prepare("key", &top, labels).await,
        };
        // Nothing is shown until the gate is opened again; the client is gone before.
        let closed = node.mounter.gate.acquire_many(OPEN).await.expect("open");
        let mut begun = node.mounter.begun.subscribe();
        tokio::select! {
            outcome = call(Labels::new()) => panic!("answered before it was given up: {outcome:?}"),
            begun = begun.wait_for(|begun| *begun > 0) => assert_eq!(*begun.expect("it lives"), 1),
        }
        let method = if view { "view" } else { "prepare" };
        node.until_counted(&format!("requests_total{{method=\"{method}\",code=\"CANCELLED\"}} 1")).await;
        drop(closed);
        let status = call(labels(&[("another", "call")])).await.expect_err("the key is taken");
        assert_eq!(status.code(), Code::AlreadyExists);
        let mounts = call(Labels::new()).await.expect("the same call again is answered");
        drop(mounting::mount(&mounts, &node.place("key")));
        let status = call(Labels::new()).await.expect_err("it was answered");
        assert_eq!(status.code(), Code::AlreadyExists);
        assert_eq!(node.list(&["kind!=committed"]).await, ["key"]);
        assert_eq!(node.mounter.mounts.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mapped_ids_are_passed_on_where_the_kernel_maps_them_and_refused_where_not() {
    needs_mounts!();
    let node = Node::start().await;
    let top = node.image(As::Singles, &[lower]).await;
    let (uids, gids) = ("containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping");
    let mapped = labels(&[(uids, "0:100000:65536"), (gids, "0:200000:65536")]);
    match node.prepare("a", &top, mapped).await {
        Ok(mounts) => {
            assert_eq!(mounts[0].options[..2], ["uidmap=0:100000:65536", "gidmap=0:200000:65536"]);
            let number = node.snapshotter.snapshots().iter().find(|shown| shown.name == "a").expect("it exists").number;
            let meta = fs::metadata(node.root().join("snapshots").join(number.to_string()).join("fs"));
            use std::os::unix::fs::MetadataExt;
            assert_eq!(meta.map(|meta| (meta.uid(), meta.gid())).expect("it exists"), (100_000, 200_000));
        }
        // A kernel before 5.19, or a TMPDIR that cannot be mapped, such as an old tmpfs.
        Err(status) => {
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert!(status.message().contains("user namespace"), "{status}");
        }
    }
    for wrong in ["0:1", "0:1:0", "a:b:c", "0:0:1:2", "0:4294967295:2", ""] {
        let outcome = node.prepare("b", "", labels(&[(uids, wrong), (gids, wrong), ("l", "v")])).await;
        // Labels without a value are none.
        assert_eq!(outcome.map_err(|status| status.code()).is_ok(), wrong.is_empty(), "{wrong:?}");
    }
}

//! Many layers, many snapshots, many at once.

use std::{fs, path::Path, sync::atomic::Ordering};

use tokio::task::JoinSet;

use crate::{
    mounting, needs_mounts,
    node::{As, Labels, Node},
};

fn bottom(dir: &Path) {
    fs::write(dir.join("bottom"), "way down").expect("written");
    fs::write(dir.join("count"), "0").expect("written");
    fs::create_dir(dir.join("only")).expect("a directory");
    fs::write(dir.join("only/0"), "").expect("written");
}

/// One layer further: counts, and keeps of a directory only its own file.
fn step(dir: &Path) {
    let count: u32 = fs::read_to_string(dir.join("count")).expect("below").parse().expect("a number");
    let count = (count + 1).to_string();
    fs::write(dir.join("count"), &count).expect("written");
    fs::remove_dir_all(dir.join("only")).expect("removed");
    fs::create_dir(dir.join("only")).expect("a directory");
    fs::write(dir.join("only").join(&count), "").expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_128_layers_can_be_mounted() {
    needs_mounts!();
    for how in [As::Directories, As::Singles] {
        let node = Node::start().await;
        let mut layers: Vec<fn(&Path)> = vec![step; 128];
        layers[0] = bottom;
        let top = node.image(how, &layers).await;
        let mounts = node.view("view", &top, Labels::new()).await.expect("a view");
        let view = mounting::mount(&mounts, &node.place("view"));
        assert_eq!(fs::read_to_string(view.path("bottom")).expect("below"), "way down", "{how:?}");
        assert_eq!(fs::read_to_string(view.path("count")).expect("below"), "127", "{how:?}");
        let only = fs::read_dir(view.path("only")).expect("a directory");
        let only: Vec<_> = only.map(|entry| entry.expect("an entry").file_name()).collect();
        assert_eq!(only, ["127"], "{how:?}");
        let active = node.active("active", &top).await;
        step(active.root());
        assert_eq!(fs::read_to_string(active.path("count")).expect("written"), "128", "{how:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_containers_of_one_image_at_once_share_its_devices_and_end_with_nothing() {
    needs_mounts!();
    let node = Node::start().await;
    let top = node.image(As::Singles, &[bottom, step, step]).await;
    let mut tasks = JoinSet::new();
    for i in 0..50 {
        let (mut client, parent) = (node.client.clone(), top.clone());
        tasks.spawn(async move {
            let request = crate::api::PrepareSnapshotRequest {
                snapshotter: "penstock".into(),
                key: format!("container {i:02}"),
                parent,
                labels: Labels::new(),
            };
            client.prepare(request).await.expect("prepared").into_inner().mounts
        });
    }
    let mounts = tasks.join_all().await;
    assert_eq!(mounts.len(), 50);
    assert_eq!(node.mounter.mounts.load(Ordering::Relaxed), 3, "one device for each layer");
    let mounted: Vec<_> =
        mounts.iter().enumerate().map(|(i, m)| mounting::mount(m, &node.place(&i.to_string()))).collect();
    for (i, mounted) in mounted.iter().enumerate() {
        assert_eq!(fs::read_to_string(mounted.path("count")).expect("below"), "2");
        fs::write(mounted.path("mine"), i.to_string()).expect("written");
    }
    for (i, mounted) in mounted.iter().enumerate() {
        assert_eq!(fs::read_to_string(mounted.path("mine")).expect("its own"), i.to_string());
    }
    drop(mounted);
    let mut names = node.list(&["kind==active"]).await;
    assert_eq!(names.len(), 50);
    names.extend(node.list(&["kind==committed"]).await.into_iter().rev());
    for name in names {
        node.remove(&name).await.expect("nothing is built on it any more");
    }
    assert_eq!(mounting::count_below(&node.root()), 0, "no device is left");
    assert_eq!(fs::read_dir(node.root().join("snapshots")).expect("it is there").count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_many_comes_in_batches_and_whole() {
    let node = Node::start().await;
    let mut tasks = JoinSet::new();
    for i in 0..350 {
        let mut client = node.client.clone();
        tasks.spawn(async move {
            let request = crate::api::PrepareSnapshotRequest {
                snapshotter: "penstock".into(),
                key: format!("{i:03}"),
                ..Default::default()
            };
            client.prepare(request).await.expect("prepared");
        });
    }
    tasks.join_all().await;
    let batches = node.batches(&[]).await.expect("a list");
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 100, 50]);
    let names: Vec<String> = batches.concat().into_iter().map(|info| info.name).collect();
    assert_eq!(names, (0..350).map(|i| format!("{i:03}")).collect::<Vec<_>>());
    assert_eq!(node.list(&["name~=/^.*9$/,kind==active"]).await.len(), 35);
}

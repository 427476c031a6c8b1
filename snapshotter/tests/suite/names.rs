//! Names, parents, kinds, labels and lists: what the records promise.

use tonic::Code;

use crate::{
    api::Kind,
    node::{Labels, Node, labels},
};

fn code<T: std::fmt::Debug>(outcome: Result<T, tonic::Status>) -> Code {
    outcome.expect_err("it is refused").code()
}

/// c1 <- c2 committed; a1 over c2, a2 active; v1 over c2, v2 views.
async fn base(node: &Node) {
    let none = Labels::new;
    for (name, parent) in [("c1", ""), ("c2", "c1")] {
        node.prepare("a", parent, none()).await.expect("prepared");
        node.commit(name, "a", none()).await.expect("committed");
    }
    node.prepare("a1", "c2", none()).await.expect("prepared");
    node.prepare("a2", "", none()).await.expect("prepared");
    node.view("v1", "c2", none()).await.expect("a view");
    node.view("v2", "", none()).await.expect("a view");
}

const BASE: [(&str, Kind, &str); 6] = [
    ("a1", Kind::Active, "c2"),
    ("a2", Kind::Active, ""),
    ("c1", Kind::Committed, ""),
    ("c2", Kind::Committed, "c1"),
    ("v1", Kind::View, "c2"),
    ("v2", Kind::View, ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stat_tells_kind_parent_and_times_of_every_snapshot_and_a_committed_key_is_gone() {
    let node = Node::start().await;
    base(&node).await;
    for (name, kind, parent) in BASE {
        let info = node.stat(name).await.expect("it exists");
        assert_eq!((info.name.as_str(), info.kind(), info.parent.as_str()), (name, kind, parent));
        assert!(info.created_at.is_some());
        assert_eq!(info.created_at, info.updated_at, "{name} was not changed yet");
    }
    assert_eq!(code(node.stat("a").await), Code::NotFound);
    let listed = node.batches(&[]).await.expect("a list").concat();
    for info in &listed {
        assert_eq!(node.stat(&info.name).await.expect("it exists"), *info, "a list tells what Stat tells");
    }
    assert_eq!(node.list(&[]).await, BASE.map(|(name, ..)| name));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_must_exist_and_be_committed_and_a_key_be_free() {
    let node = Node::start().await;
    base(&node).await;
    let none = Labels::new;
    assert_eq!(code(node.prepare("x", "missing", none()).await), Code::NotFound);
    assert_eq!(code(node.view("x", "missing", none()).await), Code::NotFound);
    for parent in ["a1", "v1"] {
        assert_eq!(code(node.prepare("x", parent, none()).await), Code::InvalidArgument);
        assert_eq!(code(node.view("x", parent, none()).await), Code::InvalidArgument);
    }
    for (name, ..) in BASE {
        assert_eq!(code(node.prepare(name, "c1", none()).await), Code::AlreadyExists, "{name}");
        assert_eq!(code(node.view(name, "c1", none()).await), Code::AlreadyExists, "{name}");
        assert_eq!(code(node.commit(name, "a1", none()).await), Code::AlreadyExists, "{name}");
    }
    assert_eq!(code(node.prepare("", "", none()).await), Code::InvalidArgument);
    assert_eq!(code(node.commit("x", "missing", none()).await), Code::NotFound);
    assert_eq!(code(node.commit("", "a1", none()).await), Code::InvalidArgument);
    for key in ["v1", "c1"] {
        assert_eq!(code(node.commit("x", key, none()).await), Code::FailedPrecondition, "{key}");
    }
    assert_eq!(code(node.mounts("missing").await), Code::NotFound);
    assert_eq!(code(node.mounts("c1").await), Code::FailedPrecondition);
    assert_eq!(code(node.usage("missing").await), Code::NotFound);
    assert_eq!(code(node.stat("missing").await), Code::NotFound);
    let big = labels(&[("key", &"x".repeat(4096))]);
    assert_eq!(code(node.prepare("x", "", big).await), Code::InvalidArgument);
    assert_eq!(node.list(&[]).await, BASE.map(|(name, ..)| name), "what was refused left nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn update_changes_labels_and_nothing_else() {
    let node = Node::start().await;
    base(&node).await;
    for (name, kind, parent) in BASE {
        let before = node.stat(name).await.expect("it exists");
        let mut info = before.clone();
        info.parent = "missing".into();
        info.kind = Kind::Unknown.into();
        info.created_at = None;
        info.labels = labels(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3"), ("empty", "")]);
        let after = node.update(info, &[]).await.expect("it is changed");
        assert_eq!((after.name.as_str(), after.kind(), after.parent.as_str()), (name, kind, parent));
        assert_eq!(after.created_at, before.created_at);
        let nanos = |info: &crate::api::Info| info.updated_at.map(|at| (at.seconds, at.nanos));
        assert!(nanos(&after) > nanos(&before));
        assert_eq!(after.labels, labels(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")]), "one without a value is none");
        let mut info = after;
        info.labels = labels(&[("l1", "changed"), ("l4", "v4")]);
        let after = node.update(info, &["labels.l1", "labels.l2"]).await.expect("it is changed");
        assert_eq!(after.labels, labels(&[("l1", "changed"), ("l3", "v3")]), "only what the mask names");
        let mut info = after;
        info.labels = labels(&[("l4", "v4")]);
        let after = node.update(info.clone(), &["labels"]).await.expect("it is changed");
        assert_eq!(after.labels, labels(&[("l4", "v4")]));
        for path in ["parent", "name", "kind", "created_at", "label"] {
            assert_eq!(code(node.update(info.clone(), &[path]).await), Code::InvalidArgument, "{path}");
        }
        assert_eq!(node.stat(name).await.expect("it exists"), after, "what was answered is what there is");
    }
    let missing = crate::api::Info { name: "missing".into(), ..Default::default() };
    assert_eq!(code(node.update(missing, &[]).await), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_removed_when_nothing_is_built_on_it_and_its_name_is_free_again() {
    let node = Node::start().await;
    base(&node).await;
    for name in ["c2", "c1"] {
        let status = node.remove(name).await.expect_err("others are built on it");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("cannot remove"), "{status}");
    }
    for name in ["a1", "v1", "c2", "c1", "a2", "v2"] {
        node.remove(name).await.expect("nothing is built on it");
        assert_eq!(code(node.stat(name).await), Code::NotFound);
        assert_eq!(code(node.remove(name).await), Code::NotFound);
    }
    assert!(node.list(&[]).await.is_empty());
    assert_eq!(std::fs::read_dir(node.root().join("snapshots")).expect("it is there").count(), 0);
    // One key after the other as active, view and active again, and the name of its parent used again.
    let none = Labels::new;
    node.prepare("first", "", none()).await.expect("prepared");
    node.commit("committed", "first", none()).await.expect("committed");
    node.prepare("reused", "committed", none()).await.expect("prepared");
    node.remove("reused").await.expect("removed");
    node.view("reused", "committed", none()).await.expect("a view");
    node.remove("reused").await.expect("removed");
    node.prepare("reused", "", none()).await.expect("prepared");
    node.remove("committed").await.expect("nothing is built on it any more");
    node.commit("committed", "reused", none()).await.expect("committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_honour_filters() {
    let node = Node::start().await;
    let root = |more: &[(&str, &str)]| {
        let mut all = labels(more);
        all.insert("containerd.io/gc.root".into(), "walk".into());
        all
    };
    let with = |value: &str| root(&[("l", value)]);
    node.prepare("a-np", "", root(&[])).await.expect("prepared");
    for (name, of) in [("p", root(&[])), ("p-wl", with("1"))] {
        node.prepare("tmp", "", root(&[])).await.expect("prepared");
        node.commit(name, "tmp", of).await.expect("committed");
    }
    node.prepare("a", "p", root(&[])).await.expect("prepared");
    node.view("v", "p", root(&[])).await.expect("a view");
    node.prepare("a-wl", "p-wl", with("2")).await.expect("prepared");
    node.view("v-wl", "p-wl", with("3")).await.expect("a view");
    node.prepare("a-np-wl", "", with("2")).await.expect("prepared");
    let all = ["a", "a-np", "a-np-wl", "a-wl", "p", "p-wl", "v", "v-wl"];
    let table: [(&[&str], &[&str]); 14] = [
        (&["labels.\"containerd.io/gc.root\"==walk"], &all),
        (&["kind==active"], &["a", "a-np", "a-np-wl", "a-wl"]),
        (&["kind==view"], &["v", "v-wl"]),
        (&["kind==committed"], &["p", "p-wl"]),
        (&["parent==p"], &["a", "v"]),
        (&["labels.l"], &["a-np-wl", "a-wl", "p-wl", "v-wl"]),
        (&["labels.l==1"], &["p-wl"]),
        (&["labels.l==2"], &["a-np-wl", "a-wl"]),
        (&["labels.l==2,parent==p-wl"], &["a-wl"]),
        (&["labels.l==1", "labels.l==3"], &["p-wl", "v-wl"]),
        (&["parent==\"\",kind!=committed"], &["a-np", "a-np-wl"]),
        (&["name~=/^a.*wl$/"], &["a-np-wl", "a-wl"]),
        (&["labels.missing"], &[]),
        (&[], &all),
    ];
    for (filters, names) in table {
        assert_eq!(node.list(filters).await, names, "{filters:?}");
    }
    for wrong in ["kind=active", "name~=/[/", "labels.l==", "==1", "name==a,,name==b"] {
        assert_eq!(code(node.batches(&[wrong]).await), Code::InvalidArgument, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_may_come_with_the_commit() {
    let node = Node::start().await;
    let none = Labels::new;
    for name in ["base", "other"] {
        node.prepare("a", "", none()).await.expect("prepared");
        node.commit(name, "a", none()).await.expect("committed");
    }
    node.prepare("late", "", none()).await.expect("prepared");
    assert_eq!(code(node.commit_over("x", "late", "missing", none()).await), Code::NotFound);
    node.commit_over("top", "late", "base", none()).await.expect("committed over its parent");
    assert_eq!(node.stat("top").await.expect("it exists").parent, "base");
    assert_eq!(code(node.remove("base").await), Code::FailedPrecondition, "it has a child now");
    node.prepare("early", "base", none()).await.expect("prepared");
    assert_eq!(code(node.commit_over("x", "early", "other", none()).await), Code::InvalidArgument);
    node.commit_over("again", "early", "base", none()).await.expect("the same parent twice is one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_a_restart_and_closing_twice_is_closing() {
    let node = Node::start().await;
    base(&node).await;
    let before = node.batches(&[]).await.expect("a list").concat();
    let usage = node.usage("c2").await.expect("known");
    let mounts = node.mounts("a1").await.expect("mounts");
    let node = node.restart(|_| ()).await;
    assert_eq!(node.batches(&[]).await.expect("a list").concat(), before);
    assert_eq!(node.usage("c2").await.expect("known"), usage);
    assert_eq!(node.mounts("a1").await.expect("mounts"), mounts);
    let report = node.snapshotter.repair().await.expect("it runs");
    assert_eq!((report.rebuilt, report.lost.len(), report.orphans, report.snapshots), (None, 0, 0, 6));
    assert!(report.rewritten.is_empty(), "{:?}", report.rewritten);
    node.snapshotter.close().await;
    node.snapshotter.close().await;
    assert_eq!(code(node.prepare("late", "", Labels::new()).await), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_counted_by_method_and_answer() {
    let node = Node::start().await;
    node.prepare("a", "", Labels::new()).await.expect("prepared");
    node.stat("missing").await.expect_err("it does not exist");
    let text = node.metrics();
    for line in [
        "requests_total{method=\"prepare\",code=\"OK\"} 1",
        "requests_total{method=\"stat\",code=\"NOT_FOUND\"} 1",
        "request_seconds_count{method=\"prepare\"} 1",
        "snapshots{kind=\"active\",lazy=\"false\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

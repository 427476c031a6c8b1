//! Whatever happens between two starts: what was answered is there, what was not leaves nothing behind, and what is lost is told.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use tonic::Code;

use crate::{
    mounting, needs_mounts,
    node::{As, Labels, Node, labels},
};

fn file(dir: &Path) {
    fs::write(dir.join("file"), "text").expect("written");
}

/// Two committed layers, one of them lazy, and an active snapshot.
async fn some(node: &Node) -> String {
    let top = node.image(As::Singles, &[file]).await;
    node.unpack("unpacked", &top, |dir| fs::write(dir.join("more"), "more").expect("written")).await;
    drop(node.active("active", "unpacked").await);
    top
}

async fn check(node: &Node, before: &[crate::api::Info]) {
    assert_eq!(node.batches(&[]).await.expect("a list").concat(), before);
    let mounted = mounting::mount(&node.mounts("active").await.expect("mounts"), &node.place("active"));
    assert_eq!(fs::read_to_string(mounted.path("file")).expect("below"), "text");
    assert_eq!(fs::read_to_string(mounted.path("more")).expect("below"), "more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_that_is_lost_or_damaged_is_rebuilt_from_the_snapshots() {
    needs_mounts!();
    let mut node = Node::start().await;
    some(&node).await;
    let before = node.batches(&[]).await.expect("a list").concat();
    let damages: [fn(&Path); 3] = [
        |metadata| fs::remove_dir_all(metadata).expect("removed"),
        |metadata| {
            for entry in walk(metadata) {
                fs::write(entry, "no longer sled's").expect("written");
            }
        },
        |metadata| {
            for entry in walk(metadata) {
                let file = fs::File::options().write(true).open(entry).expect("a file");
                file.set_len(file.metadata().expect("a file").len() / 2).expect("cut");
            }
        },
    ];
    for damage in damages {
        node.reboot();
        node = node.restart(|root| damage(&root.join("metadata"))).await;
        check(&node, &before).await;
        let report = node.snapshotter.repair().await.expect("it runs");
        assert!(report.lost.is_empty(), "{report:?}");
        assert_eq!(report.snapshots, 3);
    }
    // And the other way round: records beside the snapshots, from the metadata.
    node = node
        .restart(|root| {
            for number in fs::read_dir(root.join("snapshots")).expect("it is there") {
                fs::remove_file(number.expect("an entry").path().join("snapshot.json")).expect("removed");
            }
        })
        .await;
    check(&node, &before).await;
    let report = node.snapshotter.repair().await.expect("it runs");
    assert_eq!((report.rebuilt, report.rewritten.len()), (None, 3), "they were written again");
    node = node.restart(|root| fs::remove_dir_all(root.join("metadata")).expect("removed")).await;
    check(&node, &before).await;
    assert!(node.snapshotter.repair().await.expect("it runs").rebuilt.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_that_fails_while_it_is_used_refuses_changes_and_the_next_start_has_all_that_was_answered() {
    needs_mounts!();
    let mut node = Node::start().await;
    node = node.restart(|root| mounting::small_disk(&root.join("metadata"))).await;
    some(&node).await;
    let full = node.root().join("metadata/full");
    let mut file = fs::File::create(&full).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    // Some changes may find room in what sled has.
    let (mut late, mut refused) = (0, None);
    while refused.is_none() && late < 10_000 {
        late += 1;
        refused = node.prepare(&format!("late {late}"), "", Labels::new()).await.err();
    }
    let refused = refused.expect("the disk is full");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("the metadata failed"), "{refused}");
    fs::remove_file(&full).expect("removed");
    let again = node.remove("active").await.expect_err("what sled has in memory is not to be trusted");
    assert_eq!(again.code(), Code::Unavailable, "{again}");
    let answered = node.batches(&[]).await.expect("a list").concat();
    assert_eq!(answered.len(), 3 + late - 1, "{answered:?}");
    check(&node, &answered).await;

    // The agent that comes next has another process; this one's sled is left behind, with its disk.
    node = node.restart(|root| mounting::unmount_below(&root.join("metadata"))).await;
    let report = node.snapshotter.repair().await.expect("it runs");
    assert!(report.rebuilt.is_some() && report.lost.is_empty(), "{report:?}");
    // The one whose commit failed may be there: nobody was told that it is not.
    let unsure = format!("late {late}");
    let mut found = node.batches(&[]).await.expect("a list").concat();
    found.retain(|info| info.name != unsure);
    assert_eq!(found, answered);
    node.remove("active").await.expect("changes are taken again");
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_record_speaks_of_is_deleted_and_its_number_not_used_again() {
    let node = Node::start().await;
    node.prepare("a", "", Labels::new()).await.expect("prepared");
    let node = node
        .restart(|root| {
            // A directory was made and nothing else; the record is on its way.
            fs::create_dir_all(root.join("snapshots/7/fs/dir")).expect("made");
            fs::create_dir_all(root.join("snapshots/8")).expect("made");
            fs::write(root.join("snapshots/8/snapshot.json.new"), "{").expect("written");
            fs::create_dir_all(root.join("snapshots/not ours")).expect("made");
        })
        .await;
    node.cleanup().await.expect("cleaned");
    let mut left: Vec<String> = fs::read_dir(node.root().join("snapshots"))
        .expect("it is there")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    left.sort();
    assert_eq!(left, ["1", "not ours"]);
    node.prepare("b", "", Labels::new()).await.expect("prepared");
    assert!(node.root().join("snapshots/9").is_dir(), "beyond every number that was seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_on_a_removed_directory_goes_before_the_directory() {
    needs_mounts!();
    let node = Node::start().await;
    let kept = node.dir.path().join("kept");
    fs::create_dir(&kept).expect("made");
    file(&kept);
    let orphan = node.root().join("snapshots/99/fs");
    fs::create_dir_all(&orphan).expect("made");
    mounting::bind(&kept, &orphan, false).expect("mounted");
    *node.mounter.busy.lock() = Some(penstock_snapshotter::MountError::Busy { reason: "somebody".into() });
    node.cleanup().await.expect("cleaned as far as possible");
    assert!(orphan.join("file").exists(), "it is in use: left");
    *node.mounter.busy.lock() = None;
    node.cleanup().await.expect("cleaned");
    assert!(!orphan.exists());
    assert!(kept.join("file").exists(), "what was mounted there is not deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_is_told_with_what_to_do() {
    let mut node = Node::start().await;
    let none = Labels::new;
    node.prepare("k8s.io/1/a", "", none()).await.expect("prepared");
    node.commit("k8s.io/2/sha256:base", "k8s.io/1/a", none()).await.expect("committed");
    node.prepare("k8s.io/3/a", "k8s.io/2/sha256:base", none()).await.expect("prepared");
    node.commit("k8s.io/4/sha256:top", "k8s.io/3/a", none()).await.expect("committed");
    // The files of the base are gone.
    node = node.restart(|root| fs::remove_dir_all(root.join("snapshots/1")).expect("removed")).await;
    let report = node.snapshotter.repair().await.expect("it runs");
    assert_eq!(report.lost.len(), 1, "{report:?}");
    assert!(report.lost[0].advice.contains("ctr -n k8s.io snapshots --snapshotter penstock rm 'sha256:base'"));
    let status = node.prepare("x", "k8s.io/4/sha256:top", none()).await.expect_err("its files are gone");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("repair"), "{status}");
    // And so is its record, in both places.
    node = node.restart(|root| fs::remove_dir_all(root.join("metadata")).expect("removed")).await;
    let report = node.snapshotter.repair().await.expect("it runs");
    assert!(report.lost.iter().any(|lost| lost.why.contains("its parent")), "{report:?}");
    assert_eq!(
        node.prepare("x", "k8s.io/4/sha256:top", none()).await.expect_err("lost").code(),
        Code::FailedPrecondition
    );
    node.remove("k8s.io/4/sha256:top").await.expect("what is left can be removed");
    assert!(node.list(&[]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_root_serves_one_agent() {
    let node = Node::start().await;
    let config = penstock_snapshotter::Config { root: node.root() };
    let mut registry = prometheus_client::registry::Registry::default();
    let second = penstock_snapshotter::Snapshotter::open(config, node.mounter.clone(), &mut registry);
    assert!(matches!(second, Err(penstock_snapshotter::OpenError::InUse { .. })));
}

/// What the killed process said it had been answered, by name: whether it is there, and its labels.
type Answered = BTreeMap<String, Option<Labels>>;

/// Runs in a process of its own, which is killed: prepares, commits, updates and removes, and says after each answer what is true.
#[test]
#[ignore = "a part of what_was_answered_survives_being_killed, in a process of its own"]
fn works_until_it_is_killed() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the root's directory");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let node = Node::start_in(Path::new(line.trim())).await;
        let mut tasks = tokio::task::JoinSet::new();
        let node = std::sync::Arc::new(node);
        for worker in 0..3 {
            let node = std::sync::Arc::clone(&node);
            tasks.spawn(async move {
                for i in 0..10_000 {
                    let (key, name) = (format!("{worker}-{i}-active"), format!("{worker}-{i}"));
                    node.prepare(&key, "", labels(&[("l", "1")])).await.expect("prepared");
                    println!("is {key} 1");
                    node.commit(&name, &key, labels(&[("l", "2")])).await.expect("committed");
                    println!("gone {key}\nis {name} 2");
                    let info =
                        crate::api::Info { name: name.clone(), labels: labels(&[("l", "3")]), ..Default::default() };
                    node.update(info, &[]).await.expect("changed");
                    println!("is {name} 3");
                    if i % 2 == 0 {
                        println!("maybe {name}");
                        node.remove(&name).await.expect("removed");
                        println!("gone {name}");
                    }
                }
            });
        }
        tasks.join_all().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_being_killed() {
    for after in [1, 7, 40, 83] {
        let dir = tempfile::tempdir().expect("a directory");
        let answered = kill_after(dir.path(), after);
        let node = Node::start_in(dir.path()).await;
        for (name, state) in &answered {
            let info = node.stat(name).await;
            match state {
                None => assert_eq!(info.expect_err("it was removed or committed").code(), Code::NotFound, "{name}"),
                Some(labels) => {
                    let info = info.unwrap_or_else(|status| panic!("{name} after {after} lines: {status}"));
                    // A later change may have been made and not have been told.
                    assert!(info.labels >= *labels, "{name}: {:?}", info.labels);
                }
            }
        }
        let report = node.snapshotter.repair().await.expect("it runs");
        assert!(report.lost.is_empty() && report.rebuilt.is_none(), "{report:?}");
        // At most one call of each worker was on its way.
        let known = answered.values().flatten().count();
        assert!(node.list(&[]).await.len() <= known + 3, "{report:?}");
        let directories = fs::read_dir(node.root().join("snapshots")).expect("it is there").count();
        assert_eq!(directories, node.list(&[]).await.len(), "a directory for each snapshot");
    }
}

/// Starts a process that works in `dir`, kills it after so many lines, and answers what it had said. What it was doing at the end is left out.
fn kill_after(dir: &Path, lines: usize) -> Answered {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "crash::works_until_it_is_killed", "--ignored", "--nocapture", "--test-threads=1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test runs again");
    let said = BufReader::new(child.stdout.take().expect("piped"));
    {
        use std::io::Write;
        let mut stdin = child.stdin.take().expect("piped");
        writeln!(stdin, "{}", dir.display()).expect("it reads");
    }
    let mut answered = Answered::new();
    let mut told = 0;
    let mut lines_left = said.lines();
    while let Some(Ok(line)) = lines_left.next() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["is", name, value] => drop(answered.insert((*name).to_owned(), Some(labels(&[("l", value)])))),
            ["gone", name] => drop(answered.insert((*name).to_owned(), None)),
            ["maybe", name] => drop(answered.remove(*name)),
            _ => continue,
        }
        told += 1;
        if told == lines {
            child.kill().expect("killed");
        }
    }
    child.wait().expect("it ended");
    assert!(told >= lines, "it said only {told} lines");
    // An active snapshot that was on its way to be committed may be either.
    let last: Vec<String> = answered.keys().filter(|name| name.ends_with("-active")).cloned().collect();
    for name in last {
        if answered[&name].is_some() {
            answered.remove(&name);
        }
    }
    answered
}

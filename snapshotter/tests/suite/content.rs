//! What is written is what is read: files of layers below, through commits, on every shape of mount.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use rustix::fs::{XattrFlags, lsetxattr};

use crate::{
    layers::Apply,
    mounting, needs_mounts,
    node::{As, EVERY, Labels, Node},
};

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).expect("it can be written");
}

fn text(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name)).ok()
}

/// Everything below `dir`: names, types, modes, owners, contents, links.
fn tree(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).expect("it exists");
        let kind = meta.file_type();
        let content = if kind.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
            String::new()
        } else if kind.is_symlink() {
            fs::read_link(&path).expect("a link").display().to_string()
        } else if kind.is_file() {
            format!("{} names, {}", meta.nlink(), fs::read_to_string(&path).expect("a file"))
        } else {
            format!("{:?} {}", kind.is_char_device(), meta.rdev())
        };
        let name = path.strip_prefix(dir).expect("below").display().to_string();
        lines.push(format!("{name} {:o} {}:{} {content}", meta.mode(), meta.uid(), meta.gid()));
    }
    lines.sort();
    lines
}

fn base_files(dir: &Path) {
    write(dir, "foo", "foo\n");
    write(dir, "same", "same\n");
    for (name, mode) in [("a", 0o755), ("a/b", 0o700), ("a/b/c", 0o755), ("dir1", 0o700), ("dir2", 0o711)] {
        fs::create_dir(dir.join(name)).expect("a directory");
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).expect("a mode");
    }
    write(dir, "a/b/c/deep", "deep\n");
    write(dir, "dir1/f1", "Hello");
    write(dir, "dir2/f2", "...");
    symlink("foo", dir.join("link")).expect("a link");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).expect("a mode");
}

/// Each thing that a layer can do to those below it.
fn changes(dir: &Path) {
    write(dir, "bar", "bar\n");
    write(dir, "foo", "bar\n");
    // A directory that is gone, and one that is another one now.
    fs::remove_dir_all(dir.join("a/b")).expect("it is removed");
    fs::remove_dir_all(dir.join("dir1")).expect("it is removed");
    fs::create_dir(dir.join("dir1")).expect("a directory");
    write(dir, "dir1/new", "new");
    // A file that has moved with its other name.
    fs::hard_link(dir.join("dir2/f2"), dir.join("f2")).expect("a link");
    fs::remove_file(dir.join("dir2/f2")).expect("it is removed");
    fs::rename(dir.join("same"), dir.join("renamed")).expect("it is renamed");
    // Owners, modes, attributes.
    write(dir, "owned", "owned");
    std::os::unix::fs::chown(dir.join("owned"), Some(1234), Some(5678)).expect("chown");
    std::os::unix::fs::chown(dir.join("dir2"), Some(99), Some(98)).expect("chown");
    fs::set_permissions(dir.join("owned"), fs::Permissions::from_mode(0o4755)).expect("a mode");
    lsetxattr(dir.join("owned"), "user.test", b"value", XattrFlags::empty()).expect("an attribute");
    fs::hard_link(dir.join("owned"), dir.join("owned too")).expect("a link");
}

fn nothing(_: &Path) {}

fn more(dir: &Path) {
    write(dir, "a/b", "a file now");
    fs::remove_file(dir.join("bar")).expect("it is removed");
}

const LAYERS: [Apply; 4] = [base_files, changes, nothing, more];

fn check_final(dir: &Path) {
    assert_eq!(text(dir, "foo").as_deref(), Some("bar\n"));
    assert_eq!(text(dir, "a/b").as_deref(), Some("a file now"));
    assert_eq!(text(dir, "renamed").as_deref(), Some("same\n"));
    assert_eq!(text(dir, "f2").as_deref(), Some("..."));
    assert_eq!(text(dir, "dir1/new").as_deref(), Some("new"));
    assert_eq!(text(dir, "link").as_deref(), Some("bar\n"));
    for gone in ["bar", "same", "dir1/f1", "dir2/f2", "a/b/c"] {
        assert!(!dir.join(gone).exists(), "{gone} was removed");
    }
    let owned = fs::metadata(dir.join("owned")).expect("it exists");
    assert_eq!((owned.uid(), owned.gid(), owned.mode() & 0o7777, owned.nlink()), (1234, 5678, 0o4755, 2));
    let mut value = [0; 16];
    let length = rustix::fs::lgetxattr(dir.join("owned"), "user.test", &mut value[..]).expect("an attribute");
    assert_eq!(&value[..length], b"value");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_sees_the_same_files_however_the_layers_are_there() {
    needs_mounts!();
    let mut trees = Vec::new();
    for how in EVERY {
        let node = Node::start().await;
        let top = node.image(how, &LAYERS).await;
        let view = mounting::mount(&node.view("v", &top, Labels::new()).await.expect("a view"), &node.place("v"));
        check_final(view.root());
        assert!(fs::write(view.path("foo"), "x").is_err(), "{how:?}: a view is read-only");
        let active = node.active("a", &top).await;
        assert_eq!(tree(active.root()), tree(view.root()), "{how:?}");
        trees.push(tree(view.root()));
    }
    assert_eq!(trees[0], trees[1], "directories and devices of single layers");
    assert_eq!(trees[0], trees[2], "directories and a merged device");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_container_changes_is_there_after_the_commit_and_nothing_of_it_below() {
    needs_mounts!();
    for how in EVERY {
        let node = Node::start().await;
        let base = node.image(how, &[base_files]).await;
        let active = node.active("a", &base).await;
        changes(active.root());
        more(active.root());
        let wanted = tree(active.root());
        drop(active);
        node.commit("committed", "a", Labels::new()).await.expect("committed");
        let next = node.active("next", "committed").await;
        check_final(next.root());
        assert_eq!(tree(next.root()), wanted, "{how:?}");
        write(next.root(), "written", "above");
        drop(next);
        let below = mounting::mount(&node.view("v", &base, Labels::new()).await.expect("a view"), &node.place("v"));
        assert_eq!(text(below.root(), "foo").as_deref(), Some("foo\n"), "{how:?}");
        assert!(!below.path("written").exists() && below.path("a/b/c/deep").exists());
        drop(below);
        // Removed from the leaves to the root, and only so.
        assert!(node.remove("committed").await.is_err());
        for name in ["next", "committed", "v"] {
            node.remove(name).await.expect("removed");
        }
        assert_eq!(mounting::count_below(&node.place("")), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_of_a_container_has_mode_and_owner_of_the_layer_below() {
    needs_mounts!();
    for how in EVERY {
        let node = Node::start().await;
        let first = node.active("first", "").await;
        let meta = fs::metadata(first.root()).expect("it exists");
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o755, 0, 0));
        let restricted: Apply = |dir| {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o1751)).expect("a mode");
            std::os::unix::fs::chown(dir, Some(7), Some(8)).expect("chown");
        };
        let top = node.image(how, &[base_files, restricted]).await;
        let active = node.active("a", &top).await;
        let meta = fs::metadata(active.root()).expect("it exists");
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o1751, 7, 8), "{how:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_have_the_shape_that_overlayfs_would_answer() {
    needs_mounts!();
    let node = Node::start().await;
    let none = Labels::new;
    let top = node.image(As::Directories, &[base_files, changes]).await;
    let one = |mounts: Vec<crate::api::types::Mount>| {
        assert_eq!(mounts.len(), 1);
        let mount = mounts.into_iter().next().expect("one");
        (mount.r#type, mount.source, mount.options)
    };
    let files = |number: u64| node.root().join("snapshots").join(number.to_string()).join("fs").display().to_string();
    let (kind, source, options) = one(node.prepare("alone", "", none()).await.expect("prepared"));
    assert_eq!((kind.as_str(), source, options.join(",").as_str()), ("bind", files(3), "rw,rbind"));
    let (kind, source, options) = one(node.view("empty view", "", none()).await.expect("a view"));
    assert_eq!((kind.as_str(), source, options.join(",").as_str()), ("bind", files(4), "ro,rbind"));
    let (kind, source, options) = one(node.view("view of one", "layer 0", none()).await.expect("a view"));
    assert_eq!((kind.as_str(), source, options.join(",").as_str()), ("bind", files(1), "ro,rbind"));
    let (kind, source, options) = one(node.view("view", &top, none()).await.expect("a view"));
    assert_eq!((kind.as_str(), source.as_str()), ("overlay", "overlay"));
    let lowers = format!("lowerdir={}:{}", files(2), files(1));
    assert_eq!(options.iter().filter(|option| *option != "index=off").collect::<Vec<_>>(), [&lowers]);
    let (kind, _, options) = one(node.prepare("active", &top, none()).await.expect("prepared"));
    assert_eq!(kind, "overlay");
    let work = files(7).replace("/fs", "/work");
    let wanted = [format!("workdir={work}"), format!("upperdir={}", files(7)), lowers];
    assert_eq!(options.into_iter().filter(|option| option != "index=off").collect::<Vec<_>>(), wanted);
    assert_eq!(one(node.mounts("alone").await.expect("mounts")).1, files(3), "Mounts tells what Prepare told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_counts_what_a_snapshot_adds() {
    needs_mounts!();
    for how in EVERY {
        let node = Node::start().await;
        let base = node.image(how, &[base_files]).await;
        if how != As::Directories {
            assert_eq!(node.usage(&base).await.expect("known"), (0, 0), "a lazy layer takes nothing of its own");
        }
        let active = node.active("a", &base).await;
        let (_, before) = node.usage("a").await.expect("summed");
        assert_eq!(before, 1, "its root");
        fs::write(active.path("big"), vec![1; 1 << 20]).expect("written");
        fs::hard_link(active.path("big"), active.path("big too")).expect("a link");
        fs::File::open(active.path("big")).and_then(|file| file.sync_all()).expect("allocated");
        drop(active);
        let (size, inodes) = node.usage("a").await.expect("summed");
        assert_eq!(inodes, 2, "{how:?}: a hard link counts once");
        assert!((1 << 20..2 << 20).contains(&size), "{how:?}: {size}");
        node.commit("c", "a", Labels::new()).await.expect("committed");
        assert_eq!(node.usage("c").await.expect("known"), (size, inodes), "{how:?}");
        node.view("v", "c", Labels::new()).await.expect("a view");
        assert_eq!(node.usage("v").await.expect("known"), (0, 0), "{how:?}: a view takes nothing");
        node.prepare("child", "c", Labels::new()).await.expect("prepared");
        assert_eq!(node.usage("child").await.expect("summed").1, 1, "{how:?}: parents do not count");
    }
}

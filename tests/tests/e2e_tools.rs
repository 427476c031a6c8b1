//! Images of a real system by the tools that people make images with: what is seen through our devices is what containerd's own snapshotter and umoci unpack.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
    process::{Command, Stdio},
};

use penstock_tests::{
    containerd::Release,
    debian, everything,
    layer_device::{Tree, assert_same, comparable, facts, run},
    node::{Node, cannot},
    require,
    skip::program,
    workdir::Workdir,
};

/// What the clean Debian has besides the system: the archive's lists, and programs that only other tests want.
const LEFT_OUT: [&str; 6] =
    ["./var/lib/apt/lists", "./var/cache", "./usr/bin/containerd*", "./usr/bin/ctr", "./usr/sbin/runc", "./dev/*"];

/// Layers of fewer bytes may be little but names: nothing is promised of the size of their index.
const SMALL_BYTES: u64 = 4 << 20;

/// The namespace of images that containerd's own snapshotter unpacks.
const PLAIN: &str = "plain";

fn tool(name: &str, arguments: &[&str]) {
    drop(run(Command::new(name).args(arguments).stdin(Stdio::null())));
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The system as one archive.
fn system(to: &Path) {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--numeric-owner", "--format=pax", "--xattrs", "--xattrs-include=*"]);
    tar.args(LEFT_OUT.map(|path| format!("--exclude={path}"))).arg("-cf").arg(to);
    run(tar.arg("-C").arg(debian::clean()).arg("."));
    assert!(fs::metadata(to).expect("the archive").size() > 150_000_000, "a system of some size");
}

/// What umoci is told.
fn umoci(arguments: &[&str]) {
    tool("umoci", arguments);
}

/// An image without layers by umoci, alone in a layout: its name for umoci, and for skopeo after `oci:`.
fn empty(work: &Workdir) -> String {
    let layout = work.join("layout");
    let image = format!("{}:1", utf8(&layout));
    umoci(&["init", "--layout", utf8(&layout)]);
    umoci(&["new", "--image", &image]);
    image
}

/// Pushes an image whose layers are the system by tar; one of everything, by tar with holes and by umoci; a directory that hides those below, and a
/// whiteout, by umoci. gzip is umoci's, and skopeo pushes it.
fn by_tar_umoci_and_skopeo(node: &Node) -> String {
    let work = Workdir::new();
    let (image, tar, tree) = (empty(&work), work.join("layer.tar"), work.dir("tree"));
    system(&tar);
    umoci(&["raw", "add-layer", "--image", &image, utf8(&tar)]);
    everything::write(&tree);
    // containerd takes what is before 1970 for 1970.
    tool("touch", &["-d", "1999-12-31 23:59:59.999999999", utf8(&tree.join("size-0"))]);
    let mut packed = Command::new("tar");
    packed.args([
        "--format=pax",
        "--sparse",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--transform=s,^\\.,./opt,S",
    ]);
    run(packed.arg("-cf").arg(&tar).arg("-C").arg(&tree).arg("."));
    umoci(&["raw", "add-layer", "--image", &image, utf8(&tar)]);
    umoci(&["insert", "--image", &image, utf8(&tree), "/srv"]);
    umoci(&["insert", "--opaque", "--image", &image, utf8(&tree.join("dir")), "/opt"]);
    umoci(&["insert", "--whiteout", "--image", &image, "/boot"]);
    push(node, &image, "umoci")
}

/// Pushes an image of layers that buildah makes: Python, and changes of it.
fn by_buildah(node: &Node) -> String {
    let work = Workdir::new();
    let (root, run_root) = (work.join("storage"), work.join("run"));
    let store = ["--root", utf8(&root), "--runroot", utf8(&run_root), "--storage-driver", "vfs"];
    let buildah = |arguments: &[&str]| {
        let said = run(Command::new("buildah").args(store).args(arguments).stdin(Stdio::null()));
        String::from_utf8(said).expect("UTF-8").trim().to_owned()
    };
    let lower = buildah(&["from", "scratch"]);
    let python = debian::clean().join("usr/lib/python3.11");
    buildah(&["add", "--quiet", &lower, utf8(&python), "/usr/lib/python3.11"]);
    buildah(&["commit", "--quiet", "--rm", &lower, "localhost/lower"]);
    let upper = buildah(&["from", "--pull-never", "localhost/lower"]);
    let mounted = buildah(&["mount", &upper]);
    let dir = Path::new(&mounted).join("usr/lib/python3.11");
    fs::remove_dir_all(dir.join("asyncio")).expect("a package of Python");
    fs::remove_file(dir.join("abc.py")).expect("a module of Python");
    // A directory where a file was, and the other way round; one that is made anew; names of one file; a link.
    fs::create_dir(dir.join("abc.py")).expect("room");
    fs::write(dir.join("abc.py/inside"), "inside").expect("room");
    fs::remove_dir_all(dir.join("json")).expect("a package of Python");
    fs::write(dir.join("json"), "a file").expect("room");
    fs::remove_dir_all(dir.join("email")).expect("a package of Python");
    fs::create_dir(dir.join("email")).expect("room");
    fs::write(dir.join("email/new"), "new").expect("room");
    fs::hard_link(dir.join("email/new"), dir.join("email/again")).expect("room");
    symlink("email/new", dir.join("link")).expect("room");
    buildah(&["commit", "--quiet", "--rm", &upper, "localhost/upper"]);
    let reference = format!("{}/buildah:1", node.registry.host());
    buildah(&["push", "--quiet", "--tls-verify=false", "localhost/upper", &format!("docker://{reference}")]);
    reference
}

/// Pushes an image whose upper layer says nothing of the directories that its files lie in, as kaniko and Bazel make them: of one that is below, with an
/// owner and a mode of its own, and of new ones.
fn without_directories(node: &Node) -> String {
    let work = Workdir::new();
    let (image, tar, tree) = (empty(&work), work.join("layer.tar"), work.dir("tree"));
    let python = debian::clean().join("usr/lib/python3.11");
    run(Command::new("cp").args(["-a", "--", utf8(&python.join("email")), utf8(&python.join("json"))]).arg(&tree));
    let below = tree.join("email/mime");
    fs::set_permissions(&below, fs::Permissions::from_mode(0o2750)).expect("root may");
    chown(&below, Some(12), Some(70_000)).expect("root may");
    run(Command::new("tar").args(["--numeric-owner", "--format=pax", "-cf"]).arg(&tar).arg("-C").arg(&tree).arg("."));
    umoci(&["raw", "add-layer", "--image", &image, utf8(&tar)]);
    for path in ["email/mime/added", "new/deep/file"] {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("below the tree")).expect("room");
        fs::write(path, "added").expect("room");
    }
    let named = ["email/mime/added", "new/deep/file"];
    run(Command::new("tar").args(["--format=pax", "-cf"]).arg(&tar).arg("-C").arg(&tree).args(named));
    umoci(&["raw", "add-layer", "--image", &image, utf8(&tar)]);
    push(node, &image, "kaniko")
}

fn push(node: &Node, image: &str, name: &str) -> String {
    let reference = format!("{}/{name}:1", node.registry.host());
    let to = format!("docker://{reference}");
    let copy = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
    tool("skopeo", &[&copy[..], &[&format!("oci:{image}"), &to]].concat());
    reference
}

/// What umoci unpacks.
fn unpacked_by_umoci(reference: &str) -> Tree {
    let work = Workdir::new();
    let (layout, root) = (format!("{}:1", utf8(&work.join("layout"))), work.join("root"));
    let copy = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"];
    tool("skopeo", &[&copy[..], &[&format!("docker://{reference}"), &format!("oci:{layout}")]].concat());
    umoci(&["raw", "unpack", "--image", &layout, utf8(&root)]);
    facts(&root)
}

/// What containerd unpacks.
fn unpacked_by_containerd(node: &Node, reference: &str) -> Tree {
    let pull = ["images", "pull", "--plain-http", "--snapshotter", "overlayfs", reference];
    let _ = node.place().ctr(PLAIN, &pull).ok();
    let tree = node.shown((PLAIN, "overlayfs"), reference, facts);
    let _ = node.place().ctr(PLAIN, &["images", "rm", "--sync", reference]).ok();
    tree
}

fn untimed(mut tree: Tree) -> Tree {
    tree.values_mut().filter(|facts| facts.kind == 'd').for_each(|facts| facts.mtime = (0, 0));
    tree
}

/// Indexes the image, pulls it, and compares what is seen of it with what others unpack. All of its layers but so many are devices.
fn check(node: &Node, reference: &str, (least, unpacked): (usize, usize)) {
    let made = node.penstock(&["index", reference, "--output", "json"]).json();
    let layers = made["layers"].as_array().expect("layers");
    let sum = |key: &str| layers.iter().map(|layer| layer[key].as_u64().expect("bytes")).sum::<u64>();
    let (packed, index) = (sum("size_bytes"), sum("index_bytes"));
    assert!(
        packed < SMALL_BYTES || index * 50 <= packed,
        "{reference}: indexes of {index} bytes for {packed} of layers"
    );
    node.cri().pull(reference, None).expect("it is pulled");
    // Directories that a layer leaves out have the time at which it is unpacked.
    let comparable = |tree| if unpacked > 0 { untimed(comparable(tree)) } else { comparable(tree) };
    let ours = comparable(node.shown(("k8s.io", "penstock"), reference, |dir| {
        let devices = node.devices();
        assert_eq!(devices.len() + unpacked, layers.len(), "layers that are devices: {:?}", node.snapshots());
        facts(dir)
    }));
    assert!(ours.len() > least, "{} paths", ours.len());
    assert_same(&ours, &comparable(unpacked_by_containerd(node, reference)));
    assert_same(&ours, &comparable(unpacked_by_umoci(reference)));
    node.cri().remove_image(reference);
}

#[test]
fn a_system_packed_by_tar_umoci_skopeo_and_buildah_is_seen_as_containerd_and_umoci_unpack_it() {
    let tools = ["tar", "umoci", "skopeo", "buildah", "mknod"];
    require!(cannot(Release::Installed), debian::cannot(), tools.into_iter().find_map(program));
    let node = Node::start(Release::Installed, &["--layers-accept", "all"]);
    check(&node, &by_tar_umoci_and_skopeo(&node), (10_000, 0));
    check(&node, &by_buildah(&node), (500, 0));
    check(&node, &without_directories(&node), (50, 1));
    node.stop();
}

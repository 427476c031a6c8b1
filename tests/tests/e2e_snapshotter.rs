//! Containers that start before their image was fetched: a real containerd, runc and registry, the calls that kubelet makes, our
//! snapshotter between them. Devices are FUSE files under loop devices here; `vm.rs` has ublk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    thread,
};

use penstock_tests::{
    containerd::{self, Release},
    cri::v1::ContainerState,
    node::{Node, cannot},
    require,
    runnable::{self, Kind, Made, Runnable, SUM_ALL},
    workspace::text,
};

/// Says something, and ends.
const SPEAK: [&str; 3] = ["sh", "-c", "echo version $(cat /etc/version) of $(cat /etc/top)"];

/// What is asked for to tell what a layer is, when its descriptor does not say.
const HEAD_BYTES: u64 = 4096;

/// Each byte of each layer came from the registry at most once, but for its first ones.
fn sent_once(node: &Node, layers: &[Made]) {
    let sent = node.sent();
    for layer in layers {
        let (bytes, size) = (sent.get(&layer.digest()).copied().unwrap_or_default(), layer.size_bytes());
        assert!(bytes <= size + HEAD_BYTES, "{bytes} bytes were sent of a layer of {size}");
    }
}

/// The snapshots that there are.
fn names(node: &Node) -> BTreeSet<String> {
    node.snapshots().iter().map(|one| text(&one["name"]).to_owned()).collect()
}

/// Pull, pod, container, output, another container, and all of it away again; `lazily` when no layer is to be fetched whole.
fn a_day_of_kubelet(node: &Node, name: &str, image: &Runnable, (kind, lazily): (Kind, bool)) {
    let (reference, layers) = node.push(name, image, kind);
    let cri = node.cri();
    let (pod, speaker) = (cri.run_pod(name), format!("{name}-speaks"));
    let before = names(node);
    cri.pull(&reference, None).expect("it is pulled");
    assert_eq!(node.stored(&layers).is_empty(), lazily, "{name}: the layers in containerd's store");
    let ended = cri.start(&pod, &speaker, &reference, &SPEAK).expect("it starts");
    let status = node.containerd().until(|| {
        let status = cri.status(&ended);
        (status.state() == ContainerState::ContainerExited).then_some(status)
    });
    assert_eq!((status.exit_code, node.output(&speaker).as_str()), (0, "version 2 of 1\n"), "{status:?}");
    let runs = cri.start(&pod, &format!("{name}-sleeps"), &reference, &[]).expect("it starts");
    node.is_right(&runs, image);
    let wrote = cri.exec(&runs, &["sh", "-c", "echo new >/etc/version && cat /etc/version"]).ok();
    assert_eq!(wrote, "new\n", "a container writes to its own files");
    if lazily {
        sent_once(node, &layers);
    }
    for container in [&ended, &runs] {
        cri.remove(container);
    }
    cri.remove_image(&reference);
    assert_eq!(cri.image(&reference), None);
    // containerd collects what an earlier pod left when it likes: some may go meanwhile, none may come.
    let left: Vec<String> = names(node).difference(&before).cloned().collect();
    assert!(left.is_empty(), "{name} leaves {left:?}");
    assert!(node.devices().is_empty(), "{name} leaves {:?}", node.devices());
    cri.remove_pod(&pod);
}

/// What every containerd must do with every kind of image.
fn images_of_every_kind_run(release: Release) {
    require!(cannot(release));
    let node = Node::start(release, &[]);
    let image = Runnable::new(1, 3);
    a_day_of_kubelet(&node, "overlaybd", &image, (Kind::OverlayBd, true));
    a_day_of_kubelet(&node, "erofs", &image, (Kind::Erofs, true));
    a_day_of_kubelet(&node, "ordinary", &image, (Kind::Ordinary, false));
    assert!(node.snapshot_mounts().is_empty(), "{:?}", node.snapshot_mounts());
    let systems = node.cri().image_file_systems();
    let expected = node.place().root().join("io.containerd.snapshotter.v1.penstock");
    assert_eq!(systems.keys().collect::<Vec<_>>(), [expected.to_str().expect("UTF-8")]);
    node.stop();
}

#[test]
fn images_of_every_kind_run_with_the_installed_containerd() {
    images_of_every_kind_run(Release::Installed);
}

#[test]
fn images_of_every_kind_run_with_containerd_1_7() {
    images_of_every_kind_run(Release::Trixie);
}

#[test]
fn images_of_every_kind_run_with_containerd_2() {
    images_of_every_kind_run(Release::Sid);
}

/// One file of the lowest layer, from inside the container: read while `meanwhile` happens.
fn reads_while(node: &Node, container: &str, (image, nth): (&Runnable, usize), meanwhile: impl FnOnce()) {
    let path = format!("data/base/{nth:03}.bin");
    let inside = format!("/{path}");
    thread::scope(|scope| {
        let read = scope.spawn(|| node.cri().exec(container, &["sha256sum", &inside]).ok());
        meanwhile();
        let expected = format!("{}  {inside}\n", image.truth()[&path].sha256);
        assert_eq!(read.join().expect("it is read"), expected);
    });
}

#[test]
fn a_container_reads_on_while_agent_containerd_and_registry_come_and_go() {
    require!(cannot(Release::Installed));
    let mut node = Node::start(Release::Installed, &[]);
    let image = Runnable::new(1, 12);
    let (reference, _) = node.push("survivor", &image, Kind::OverlayBd);
    node.cri().pull(&reference, None).expect("it is pulled");
    let pod = node.cri().run_pod("survivor");
    let container = node.cri().start(&pod, "first", &reference, &[]).expect("it starts");
    for nth in 0..3 {
        // The read waits for the registry when its agent dies; the next agent goes on with it.
        node.registry.pause();
        reads_while(&node, &container, (&image, nth), || {
            node.until_a_read_waits();
            node.kill_agent();
            node.registry.resume();
        });
    }
    node.restart_containerd();
    node.is_right(&container, &image);
    node.kill_agent();
    node.restart_containerd();

    // Everything was read once: the registry is not needed any more, whoever else comes and goes.
    node.registry.stop();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root may");
    node.is_right(&container, &image);
    node.kill_agent();
    node.until_containerd_has_its_snapshotter();
    let second = node.cri().start(&pod, "second", &reference, &[]).expect("it starts without a registry");
    node.is_right(&second, &image);
    for container in [container, second] {
        node.cri().remove(&container);
    }
    node.cri().remove_pod(&pod);
    node.cri().remove_image(&reference);
    assert_eq!(node.devices().len(), 0);
    node.stop();
}

#[test]
fn after_a_reboot_a_container_finds_its_image_and_its_own_files() {
    require!(cannot(Release::Installed));
    let mut node = Node::start(Release::Installed, &[]);
    let image = Runnable::new(1, 3);
    let (reference, _) = node.push("again", &image, Kind::OverlayBd);
    let (stacked, _) = node.push("stacked", &image, Kind::Erofs);
    let ctr = |node: &Node, arguments: &[&str]| node.place().ctr("k8s.io", arguments).ok();
    for (name, reference) in [("kept", &reference), ("kept-too", &stacked)] {
        node.cri().pull(reference, None).expect("it is pulled");
        let _ = node.place().run("k8s.io", (reference, name), &["--detach"], &[]).ok();
        let _ = ctr(&node, &["task", "exec", "--exec-id", "a", name, "sh", "-c", "echo mine >/root/own; sync"]);
    }
    node.reboot();
    for name in ["kept", "kept-too"] {
        // Asks the snapshotter for Mounts, and for nothing else.
        let _ = ctr(&node, &["task", "start", "--detach", name]);
        assert_eq!(ctr(&node, &["task", "exec", "--exec-id", "a", name, "cat", "/root/own"]), "mine\n");
        let found = ctr(&node, &[&["task", "exec", "--exec-id", "b", name][..], &SUM_ALL].concat());
        assert_eq!(runnable::sums(&found), image.sums());
        let _ = ctr(&node, &["task", "rm", "--force", name]);
        let _ = ctr(&node, &["container", "rm", name]);
    }
    // Kubelet makes new pods after a reboot, of images that are there.
    let pod = node.cri().run_pod("new");
    let container = node.cri().start(&pod, "new", &reference, &[]).expect("it starts");
    node.is_right(&container, &image);
    node.cri().remove(&container);
    node.cri().remove_pod(&pod);
    for reference in [reference, stacked] {
        node.cri().remove_image(&reference);
    }
    assert_eq!(node.devices().len(), 0);
    node.stop();
}

/// Reads everything, says so, and sleeps.
const READ_ALL: [&str; 3] =
    ["sh", "-c", "find /bin /etc /data -xdev -type f -exec sha256sum {} +; echo done; exec sleep 1000000000"];

/// Starts containers of these images at once, waits until each has read everything, and checks it; removes them.
fn all_at_once(node: &Node, name: &str, images: &[(String, &Runnable)], devices: usize) {
    let pod = node.cri().run_pod(name);
    let named: Vec<_> =
        images.iter().enumerate().map(|(i, (image, _))| (format!("{name}-{i}"), image.clone())).collect();
    let containers = node.cri().start_all(&pod, &named, &READ_ALL);
    for ((name, _), (_, image)) in named.iter().zip(images) {
        let said = node.containerd().until(|| Some(node.output(name)).filter(|said| said.ends_with("done\n")));
        assert_eq!(runnable::sums(&said), image.sums(), "{name}");
    }
    assert_eq!(node.devices().len(), devices);
    node.cri().remove_all(&containers);
    node.cri().remove_pod(&pod);
}

#[test]
fn many_containers_at_once_share_devices_and_what_is_fetched() {
    require!(cannot(Release::Installed));
    let node = Node::start(Release::Installed, &[]);
    let one = Runnable::new(1, 3);
    let (reference, layers) = node.push("fifty", &one, Kind::OverlayBd);
    node.cri().pull(&reference, None).expect("it is pulled");
    all_at_once(&node, "fifty", &vec![(reference.clone(), &one); 50], 1);
    sent_once(&node, &layers);
    node.cri().remove_image(&reference);

    let family: Vec<Runnable> = (0..20).map(|seed| Runnable::new(seed, 1)).collect();
    let mut layers = BTreeMap::new();
    let mut images = Vec::new();
    for (i, image) in family.iter().enumerate() {
        // Every fourth is a stack in one device, the others share the devices of two layers.
        let kind = if i % 4 == 0 { Kind::OverlayBd } else { Kind::Erofs };
        let (reference, made) = node.push(&format!("family-{i}"), image, kind);
        layers.extend(made.into_iter().map(|layer| (layer.digest(), layer)));
        images.push((reference, image));
    }
    let references: Vec<&str> = images.iter().map(|(reference, _)| reference.as_str()).collect();
    node.cri().pull_all(&references);
    all_at_once(&node, "family", &images, 5 + 2 + 15);
    sent_once(&node, &layers.into_values().collect::<Vec<_>>());
    for reference in references {
        node.cri().remove_image(reference);
    }
    assert_eq!(node.devices().len(), 0);
    node.stop();
}

#[test]
fn ctr_of_containerd_2_starts_containers_lazily() {
    require!(cannot(Release::Sid));
    let node = Node::start(Release::Sid, &[]);
    let image = Runnable::new(1, 2);
    let (reference, layers) = node.push("transferred", &image, Kind::OverlayBd);
    let ctr = |arguments: &[&str]| node.place().ctr("default", arguments).ok();
    let hosts = node.place().hosts();
    let _ = ctr(&[
        "images",
        "pull",
        "--hosts-dir",
        hosts.to_str().expect("UTF-8"),
        "--snapshotter",
        "penstock",
        &reference,
    ]);
    assert!(node.stored(&layers).is_empty(), "no layer is in containerd's store");
    let said = node.place().run("default", (&reference, "speaks"), &["--rm"], &SPEAK).ok();
    assert_eq!(said, "version 2 of 1\n");
    let _ = ctr(&["images", "rm", "--sync", &reference]);
    assert_eq!(node.devices().len(), 0);
    node.stop();
}

#[test]
fn ctr_remote_starts_containers_lazily_on_the_installed_containerd() {
    require!(cannot(Release::Installed), containerd::ctr_remote().err());
    let node = Node::start(Release::Installed, &[]);
    let image = Runnable::new(1, 2);
    let (reference, layers) = node.push("remote", &image, Kind::OverlayBd);
    let mut pull = Command::new(containerd::ctr_remote().expect("asked before"));
    pull.arg("-a").arg(node.place().socket()).args(["-n", "default", "images", "rpull", "--plain-http"]);
    let pulled = pull.args(["--snapshotter", "penstock", &reference]).output().expect("ctr-remote starts");
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    assert!(node.stored(&layers).is_empty(), "no layer is in containerd's store");
    let said = node.place().run("default", (&reference, "speaks"), &["--rm"], &SPEAK).ok();
    assert_eq!(said, "version 2 of 1\n");
    let _ = node.place().ctr("default", &["images", "rm", "--sync", &reference]).ok();
    assert_eq!(node.devices().len(), 0);
    node.stop();
}

#[test]
fn a_layer_is_built_over_an_ordinary_and_over_a_lazy_image() {
    require!(cannot(Release::Installed));
    let node = Node::start(Release::Installed, &[]);
    let image = Runnable::new(1, 1);
    for (kind, name) in [(Kind::Ordinary, "plain"), (Kind::OverlayBd, "lazy")] {
        let (reference, _) = node.push(name, &image, kind);
        node.cri().pull(&reference, None).expect("it is pulled");
        let ctr = |arguments: &[&str]| node.place().ctr("k8s.io", arguments).ok();
        let build = ["sh", "-c", "echo built >/etc/built; echo 3 >/etc/version"];
        let _ = node.place().run("k8s.io", (&reference, name), &[], &build).ok();
        // The difference is the layer that a build would push.
        let diff = node.work.join(&format!("{name}.tar"));
        let mut command = node.place().ctr_command("k8s.io");
        command.args(["snapshots", "--snapshotter", "penstock", "diff", name]);
        command.stdout(fs::File::create(&diff).expect("a file"));
        assert!(command.status().is_ok_and(|status| status.success()), "ctr snapshots diff");
        let listed = runnable::listed(&diff);
        assert!(["etc/built", "etc/version"].iter().all(|path| listed.iter().any(|one| one == path)), "{listed:?}");
        assert!(listed.iter().all(|path| !path.starts_with("data")), "only what was changed: {listed:?}");
        let snapshots =
            |arguments: &[&str]| ctr(&[&["snapshots", "--snapshotter", "penstock"][..], arguments].concat());
        // `ctr` labels what it commits and prepares as roots. A view has no label, and is collected at any time.
        let built = format!("built-{name}");
        let _ = snapshots(&["commit", &built, name]);
        let _ = ctr(&["container", "rm", "--keep-snapshot", name]);
        let _ = snapshots(&["prepare", &format!("over-{name}"), &built]);
        let _ = snapshots(&["rm", &format!("over-{name}")]);
        let _ = snapshots(&["rm", &built]);
        node.cri().remove_image(&reference);
        assert!(node.snapshots().iter().all(|one| !text(&one["name"]).contains(name)), "{:?}", node.snapshots());
    }
    assert_eq!(node.devices().len(), 0);
    node.stop();
}

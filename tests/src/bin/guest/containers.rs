//! containerd and runc start a container from `/dev/ublkbN`, whose agent is killed while the container reads.

use std::{fs, path::Path, thread};

use penstock_registry::{Config, Fault};
use penstock_tests::{
    agent, containerd,
    containerd::{Release, Snapshotter},
    cri::Cri,
    layer_device::{assert_same, comparable, facts},
    loopback::Loopback,
    runnable::{self, SUM_ALL},
    workdir::Workdir,
    workspace::text,
};

/// An ordinary image, indexed and pulled, is on devices of its layers the tree that containerd's own snapshotter unpacks.
fn ordinary((agent, place): (&agent::Agent, &containerd::Place), cri: &Cri, reference: &str, dir: &Path) {
    let _ = agent.run(&["index", reference]).ok();
    cri.pull(reference, None).expect("it is pulled");
    let ours = place.shown(("k8s.io", "penstock"), (reference, dir), |dir| {
        let devices = agent.get("/v1/devices");
        let paths: Vec<&str> =
            devices.as_array().expect("devices").iter().map(|device| text(&device["device_path"])).collect();
        assert!(paths.len() == 3 && paths.iter().all(|path| path.starts_with("/dev/ublkb")), "{devices}");
        facts(dir)
    });
    let _ = place.ctr("plain", &["images", "pull", "--plain-http", "--snapshotter", "overlayfs", reference]).ok();
    let unpacked = place.shown(("plain", "overlayfs"), (reference, dir), facts);
    assert!(ours.len() > 20, "{} paths", ours.len());
    assert_same(&comparable(ours), &comparable(unpacked));
    let _ = place.ctr("plain", &["images", "rm", "--sync", reference]).ok();
    cri.remove_image(reference);
}

/// `/image` holds an OCI layout and what its containers must see, `/ordinary` the same image of ordinary layers.
pub(super) fn start(penstock: &Path) {
    let work = Workdir::new();
    let registry = Loopback::start(Config::default());
    registry.layout(Path::new("/image"), "vm/image");
    registry.layout(Path::new("/ordinary"), "vm/ordinary");
    let reference = format!("{}/vm/image:1", registry.host());
    let dir = work.dir("containerd");
    let (root, socket) = (dir.join("root/io.containerd.snapshotter.v1.penstock"), work.join("snapshotter.sock"));
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let agent_place = agent::Place::of(penstock, work.path())
        .with(&["--device-transport", "ublk", "--cache-chunk-size", "64KiB", "--snapshotter-enable", "true"])
        .with(&["--snapshotter-root", &path(&root), "--snapshotter-socket", &path(&socket), "--layers-accept", "all"]);
    let killed = agent_place.start();
    let snapshotter = Snapshotter::Penstock { socket, root: root.clone() };
    // No pod is run here: which image would keep it does not matter.
    let place = containerd::Place::new(Release::Installed, &dir, (&registry.host(), &reference), snapshotter);
    let containerd = place.start();
    let cri = Cri::connect(&containerd);
    ordinary((&killed, &place), &cri, &format!("{}/vm/ordinary:1", registry.host()), &work.dir("shown"));
    cri.pull(&reference, None).expect("it is pulled");
    let stored = place.content();
    assert!(stored.iter().all(|(bytes, _)| *bytes < 8192), "manifests and configs, and no layer: {stored:?}");

    // The root file system of the VM is an initramfs, which cannot be pivoted away from.
    let flags = ["--no-pivot", "--detach"];
    let _ = place.run("k8s.io", (&reference, "one"), &flags, &["sleep", "1000000000"]).ok();
    // Its agent is killed while it waits for what is not cached; it reads on with the next one.
    registry.fail(Fault::Stall);
    let exec = ["task", "exec", "--exec-id", "a", "one"];
    let (agent, said) = thread::scope(|scope| {
        let read = scope.spawn(|| place.ctr("k8s.io", &[&exec[..], &SUM_ALL].concat()).ok());
        registry.until_stalled(1);
        killed.kill();
        let agent = agent_place.start();
        registry.release();
        (agent, read.join().expect("everything is read"))
    });
    assert_eq!(runnable::sums(&said), fs::read_to_string("/image/sums").expect("the truth"));
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc is mounted");
    let devices = agent.get("/v1/devices");
    let device = text(&devices[0]["device_path"]);
    assert!(device.starts_with("/dev/ublkb"), "{devices}");
    let shown = |line: &str| line.starts_with(&format!("{device} {}", root.display()));
    assert!(mounts.lines().any(shown), "{device} is mounted below {}: {mounts}", root.display());

    // containerd tries a lost snapshotter again every few seconds.
    let list = ["snapshots", "--snapshotter", "penstock", "ls"];
    containerd.until(|| (place.ctr("k8s.io", &list).code == Some(0)).then_some(()));
    for remove in [["task", "rm", "--force", "one"].as_slice(), &["container", "rm", "one"]] {
        let _ = place.ctr("k8s.io", remove).ok();
    }
    cri.remove_image(&reference);
    assert_eq!(agent.get("/v1/devices").as_array().map(Vec::len), Some(0));
    assert!(!Path::new(device).exists(), "{device} is gone");
    drop(containerd);
    assert!(agent.stop().success());
}

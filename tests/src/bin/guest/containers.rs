//! containerd and runc start a container from `/dev/ublkbN`, whose agent is killed while the container reads.

use std::{fs, path::Path, thread};

use penstock_registry::{Config, Fault};
use penstock_tests::{
    agent, containerd,
    containerd::{Release, Snapshotter},
    cri::Cri,
    loopback::Loopback,
    runnable::{self, SUM_ALL},
    workdir::Workdir,
    workspace::text,
};

/// `/image` holds an OCI layout and what its containers must see.
pub(super) fn start(penstock: &Path) {
    let work = Workdir::new();
    let registry = Loopback::start(Config::default());
    registry.layout(Path::new("/image"), "vm/image");
    let reference = format!("{}/vm/image:1", registry.host());
    let dir = work.dir("containerd");
    let (root, socket) = (dir.join("root/io.containerd.snapshotter.v1.penstock"), work.join("snapshotter.sock"));
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let agent_place = agent::Place::of(penstock, work.path())
        .with(&["--device-transport", "ublk", "--cache-chunk-size", "64KiB", "--snapshotter-enable", "true"])
        .with(&["--snapshotter-root", &path(&root), "--snapshotter-socket", &path(&socket)]);
    let killed = agent_place.start();
    let snapshotter = Snapshotter::Penstock { socket, root: root.clone() };
    // No pod is run here: which image would keep it does not matter.
    let place = containerd::Place::new(Release::Installed, &dir, (&registry.host(), &reference), snapshotter);
    let containerd = place.start();
    let cri = Cri::connect(&containerd);
    cri.pull(&reference, None).expect("it is pulled");
    assert_eq!(place.content().len(), 2, "manifest and config, and no layer: {:?}", place.content());

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

//! The pods of the chart in `mode: pod`, as the kubelet would have a real containerd run them; beside it another containerd, whose images
//! are read through them.
//!
//! What is rendered is used as it is, but for two directories, /var/lib/penstock and /run/penstock, which belong to the machine: all that is
//! written lies in the test's own directory. Volumes of ConfigMaps are written as the kubelet writes them. The image is built with buildah, as
//! `make image` builds it (`pod::image`).

use std::{path::Path, process::Command, thread};

use penstock_tests::{
    chart,
    containerd::{Containerd, Place, Release, Snapshotter},
    cri::{Cri, Pod, v1::KeyValue},
    docker_registry::DockerRegistry,
    http::Request,
    node, pod, require,
    runnable::{self, Kind, Runnable, SUM_ALL},
    skip::program,
    workdir::Workdir,
};
use serde_json::Value;

/// Makes `dir` a mount that is shared, as a node's are.
fn share(dir: &Path) {
    for arguments in [&["--bind"][..], &["--make-shared"]] {
        let mut mount = Command::new("mount");
        mount.args(arguments).arg(dir).args((arguments == ["--bind"]).then_some(dir));
        assert!(mount.status().expect("mount starts").success(), "{mount:?}");
    }
}

/// The objects of a kind of `ci/pod-values.yaml`, with the node's directories below `work`.
fn rendered(work: &Workdir, kind: &str) -> Vec<Value> {
    let below = |path: &str| work.join(path).display().to_string();
    let objects = Value::from(chart::objects("pod", kind)).to_string();
    let moved = objects
        .replace("/var/lib/penstock", &below("state"))
        .replace("/var/lib/containerd/io.containerd.snapshotter.v1.penstock", &below("snapshots"))
        .replace("/run/penstock", &below("run"))
        .replace("/run/containerd", &below("lazy"))
        .replace("/etc/containerd/certs.d", &below("lazy/certs.d"));
    serde_json::from_str(&moved).expect("JSON")
}

/// What the kubelet does here: a containerd with its usual snapshotter, and the pods of the chart in it.
struct Kubelet<'a> {
    work: &'a Workdir,
    containerd: &'a Containerd,
    cri: Cri,
    image: String,
}

impl Kubelet<'_> {
    /// Starts the pod of a DaemonSet for the `attempt`th time.
    fn start(&self, set: &str, container: &str, attempt: u32) -> (Pod, String) {
        let sets = rendered(self.work, "DaemonSet");
        let spec =
            &sets.iter().find(|one| one["metadata"]["name"] == set).expect("the set")["spec"]["template"]["spec"];
        let volumes = self.work.dir(&format!("volumes/{set}-{attempt}"));
        let spec = pod::Spec::new(spec, &volumes, &rendered(self.work, "ConfigMap"));
        let mut config = spec.container(container, &self.image);
        let below = |path: &str| self.work.join(path).display().to_string();
        // The two directories that the agent has by default; FUSE also where the machine has ublk, which would outlive the pod by itself.
        for (key, value) in [
            ("PENSTOCK_STATE_DIR", below("state")),
            ("PENSTOCK_SOCKET", below("run/penstock.sock")),
            ("PENSTOCK_SNAPSHOTTER_SOCKET", below("run/snapshotter.sock")),
            ("PENSTOCK_IMAGES_SOCKET", below("run/images.sock")),
            ("PENSTOCK_DEVICE_TRANSPORT", "fuse".to_owned()),
        ] {
            config.envs.push(KeyValue { key: key.to_owned(), value });
        }
        let is_privileged =
            config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()).is_some_and(|one| one.privileged);
        let pod = self.cri.run_pod_as(&format!("{set}-{attempt}"), is_privileged);
        let id = self.cri.start_as(&pod, config).expect("the container starts");
        (pod, id)
    }

    /// Starts the agent's pod, and waits until the rendered probe says that it is ready.
    fn start_agent(&self, attempt: u32) -> (Pod, String) {
        let (pod, id) = self.start("penstock", "agent", attempt);
        let socket = self.work.join("run/penstock.sock").display().to_string();
        let probe = ["/usr/local/bin/penstock", "version", "--socket", &socket];
        self.containerd.until(|| (self.cri.exec(&id, &probe).code == 0).then_some(()));
        (pod, id)
    }

    /// What the agent answers to a GET of `path`.
    fn ask(&self, path: &str) -> Value {
        Request::get(path).to_socket(&self.work.join("run/penstock.sock")).expect("the agent answers").json()
    }
}

#[test]
fn a_container_reads_on_while_the_agents_pod_is_killed_and_replaced() {
    require!(chart::cannot(), node::cannot(Release::Installed), program("buildah"));
    let (work, registry) = (Workdir::new(), DockerRegistry::start());
    for dir in ["state", "snapshots", "run"] {
        share(&work.dir(dir));
    }
    let sandbox = runnable::sandbox(&registry.repository("pause"));
    let agent = pod::image(&registry);
    let usual = Place::new(Release::Installed, &work.dir("usual"), (registry.host(), &sandbox), Snapshotter::Overlayfs);
    let ours = Snapshotter::Penstock { socket: work.join("run/snapshotter.sock"), root: work.join("snapshots") };
    let lazy = Place::new(Release::Installed, &work.dir("lazy"), (registry.host(), &sandbox), ours);
    let usual = usual.start();
    let kubelet = Kubelet { work: &work, containerd: &usual, cri: Cri::connect(&usual), image: agent.clone() };
    kubelet.cri.pull(&agent, None).expect("the agent's image is pulled");
    let (keeper, kept) = kubelet.start("penstock-keeper", "keeper", 1);
    let listens = work.join("run/keeper.sock");
    usual.until(|| listens.exists().then_some(()));
    let (first, running) = kubelet.start_agent(1);

    let parts = ["grep", "-c", "\"bomFormat\": \"CycloneDX\"", "/usr/share/doc/penstock/penstock.cdx.json"];
    assert_eq!(kubelet.cri.exec(&running, &parts).ok(), "1\n", "the image says what is in it");

    // Beside it, containers whose images are read through the agent.
    let lazy = lazy.start();
    let cri = Cri::connect(&lazy);
    let image = Runnable::new(1, 3);
    let layers = image.layers(Kind::Erofs);
    let reference = runnable::push(&registry.repository("app"), "1", &layers, &["sleep", "1000000000"]);
    cri.pull(&reference, None).expect("it is pulled");
    let stored = lazy.place().content();
    assert!(
        layers.iter().all(|layer| stored.iter().all(|(_, one)| *one != layer.digest())),
        "nothing is fetched whole"
    );
    let user = cri.run_pod("user");
    let container = cri.start(&user, "app", &reference, &[]).expect("it starts");
    assert_eq!(cri.exec(&container, &["cat", "/etc/version"]).ok(), "2\n");
    assert!(
        kubelet.ask("/v1/devices").as_array().is_some_and(|all| all.iter().all(|one| one["outlives_agent"] == true))
    );

    // The pod is killed; a container reads meanwhile what was never read, and the next pod answers it.
    kubelet.cri.remove(&running);
    kubelet.cri.remove_pod(&first);
    thread::scope(|scope| {
        let reads = scope.spawn(|| cri.exec(&container, &SUM_ALL).ok());
        let (second, running) = kubelet.start_agent(2);
        assert_eq!(runnable::sums(&reads.join().expect("the reader")), image.sums());
        let events = kubelet.ask("/v1/events")["events"].to_string();
        assert!(events.contains("device.resumed") && !events.contains("device.lost"), "{events}");

        // containerd tries a snapshotter that was away again every few seconds only.
        let list = ["snapshots", "--snapshotter", "penstock", "ls"];
        lazy.until(|| (lazy.place().ctr("k8s.io", &list).code == Some(0)).then_some(()));
        cri.remove(&container);
        cri.remove_pod(&user);
        cri.remove_image(&reference);
        // containerd collects what is left of it after its answer.
        lazy.until(|| kubelet.ask("/v1/devices").as_array().is_some_and(Vec::is_empty).then_some(()));
        kubelet.cri.remove(&running);
        kubelet.cri.remove_pod(&second);
    });
    drop(cri);
    drop(lazy);
    kubelet.cri.remove(&kept);
    kubelet.cri.remove_pod(&keeper);
}

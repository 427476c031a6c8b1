//! A node with everything on it: a registry, the agent with its snapshotter (under `penstock supervise`, through FUSE), a containerd that
//! uses it, and a client that makes kubelet's calls.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::Value;

use crate::{
    agent::{self, binary},
    containerd::{self, Containerd, Release, Snapshotter},
    cri::Cri,
    docker_registry::DockerRegistry,
    http::Request,
    runnable, skip,
    supervisor::Supervisor,
    workdir::Workdir,
};

/// Why a node with this containerd cannot be had here.
#[must_use]
pub fn cannot(release: Release) -> Option<String> {
    runnable::cannot().or_else(skip::fuse).or_else(|| release.cannot())
}

/// The running parts. Dropped in this order: who uses something goes before what it uses.
#[derive(Debug)]
struct Parts {
    cri: Cri,
    containerd: Containerd,
    supervisor: Supervisor,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    // None only while it is rebooted.
    parts: Option<Parts>,
    agent: agent::Place,
    place: containerd::Place,
    /// Where its agent answers the kubelet's image calls.
    images: PathBuf,
    /// Its registry.
    pub registry: DockerRegistry,
    /// Everything it writes.
    pub work: Workdir,
}

impl Node {
    /// A node with a containerd of `release`, whose agent has these flags too.
    #[must_use]
    pub fn start(release: Release, flags: &[&str]) -> Self {
        let (work, registry) = (Workdir::new(), DockerRegistry::start());
        let sandbox = runnable::sandbox(&registry.repository("pause"));
        let dir = work.dir("containerd");
        let root = dir.join("root/io.containerd.snapshotter.v1.penstock");
        let (socket, images) = (work.join("snapshotter.sock"), work.join("images.sock"));
        let snapshotter = Snapshotter::Penstock { socket: socket.clone(), root: root.clone() };
        let place = containerd::Place::new(release, &dir, (registry.host(), &sandbox), snapshotter);
        let path = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
        let agent = agent::Place::new(work.path())
            .with(&["--device-transport", "fuse", "--cache-chunk-size", "64KiB", "--snapshotter-enable", "true"])
            .with(&["--snapshotter-root", &path(&root), "--snapshotter-socket", &path(&socket)])
            .with(&["--images-socket", &path(&images), "--images-containerd", &path(&place.socket())])
            .with(flags);
        let mut node = Self { parts: None, agent, place, images, registry, work };
        node.power_on();
        node
    }

    fn power_on(&mut self) {
        let supervisor = Supervisor::start(&self.agent, binary());
        let containerd = self.place.start();
        let cri = Cri::with_images(&containerd, &self.images);
        self.parts = Some(Parts { cri, containerd, supervisor });
    }

    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("the node is on")
    }

    /// kubelet's side of it.
    #[must_use]
    pub fn cri(&self) -> &Cri {
        &self.parts().cri
    }

    /// Its agent's supervisor.
    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.parts().supervisor
    }

    /// Its containerd.
    #[must_use]
    pub fn containerd(&self) -> &Containerd {
        &self.parts().containerd
    }

    /// Where its containerd lives.
    #[must_use]
    pub fn place(&self) -> &containerd::Place {
        &self.place
    }

    /// Restarts containerd under its containers.
    pub fn restart_containerd(&mut self) {
        let parts = self.parts.as_mut().expect("the node is on");
        parts.containerd.restart();
        // As kubelet does: it connects anew.
        parts.cri = Cri::with_images(&parts.containerd, &self.images);
    }

    /// What a power cut and the start after it do: no process, mount or device stays, nor what `/run` holds; then all starts again.
    pub fn reboot(&mut self) {
        let Parts { cri, containerd, supervisor } = self.parts.take().expect("the node is on");
        drop(cri);
        supervisor.crash();
        containerd.power_off();
        self.work.unmount();
        self.power_on();
    }

    /// What the agent answers to a GET of `path`, which must succeed.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        let answer = Request::get(path).to_socket(self.agent.socket()).expect("the agent answers");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// The agent's devices.
    ///
    /// # Panics
    /// When the agent does not list them.
    #[must_use]
    pub fn devices(&self) -> Vec<Value> {
        self.get("/v1/devices").as_array().expect("a list of devices").clone()
    }

    /// Waits until a device has a read that waits.
    ///
    /// # Panics
    /// When none waits in time.
    pub fn until_a_read_waits(&self) {
        let waits = || self.devices().iter().any(|device| device["stats"]["in_flight"].as_u64() > Some(0));
        self.supervisor().until(|| waits().then_some(()));
    }

    /// SIGKILL for the agent, and waits for the next one.
    pub fn kill_agent(&self) {
        let killed = self.supervisor().kill_agent();
        self.supervisor().until_other_than(Some(killed));
    }

    /// Waits until containerd has connected to the agent of now: it tries a lost snapshotter again every few seconds, and says
    /// UNAVAILABLE until then, which kubelet answers with another try.
    pub fn until_containerd_has_its_snapshotter(&self) {
        let list = ["snapshots", "--snapshotter", "penstock", "ls"];
        let listed = || self.place.ctr("k8s.io", &list).code == Some(0);
        self.containerd().until(|| listed().then_some(()));
    }

    /// Bytes that the registry sent so far, for each blob.
    #[must_use]
    pub fn sent(&self) -> BTreeMap<String, u64> {
        let mut sent = BTreeMap::new();
        for request in self.registry.settled() {
            if let Some((_, digest)) = request.path.split_once("/blobs/sha256:")
                && request.method == "GET"
            {
                *sent.entry(format!("sha256:{digest}")).or_default() += request.bytes;
            }
        }
        sent
    }

    /// The snapshots that the agent keeps for containerd.
    ///
    /// # Panics
    /// When the agent does not list them.
    #[must_use]
    pub fn snapshots(&self) -> Vec<Value> {
        self.get("/v1/snapshots").as_array().expect("a list of snapshots").clone()
    }

    /// What is mounted where snapshots are kept.
    #[must_use]
    pub fn snapshot_mounts(&self) -> Vec<PathBuf> {
        let root = self.place.root();
        self.work.mounts().into_iter().filter(|mount| mount.starts_with(&root)).collect()
    }

    /// What the log of a container with the CRI name `name` holds: its output, without the runtime's own columns.
    #[must_use]
    pub fn output(&self, name: &str) -> String {
        let log = std::fs::read_to_string(self.place.logs().join(format!("{name}.log"))).unwrap_or_default();
        log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(|line| format!("{line}\n")).collect()
    }

    /// Ends the node in order, and sees that nothing is left mounted or attached.
    ///
    /// # Panics
    /// When something is.
    pub fn stop(mut self) {
        let Parts { cri, mut containerd, supervisor } = self.parts.take().expect("the node is on");
        drop(cri);
        containerd.stop();
        drop(containerd);
        assert!(supervisor.stop().success());
        assert_eq!(self.work.mounts(), Vec::<PathBuf>::new(), "nothing stays mounted");
        assert!(self.work.loops().is_empty(), "{:?}", self.work.loops());
    }
}

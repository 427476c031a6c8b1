//! A node with everything on it: a registry, the agent with its snapshotter (under `penstock supervise`, through FUSE), a containerd that
//! uses it, and a client that makes kubelet's calls.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    agent::{self, Ended, binary},
    containerd::{self, Containerd, Release, Snapshotter},
    cri::Cri,
    docker_registry::DockerRegistry,
    http::Request,
    runnable::{self, Kind, Made, Runnable, SUM_ALL},
    skip,
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

/// Where its agent has what containerd and the kubelet are told of.
#[derive(Debug)]
struct Paths {
    /// The snapshotter's data.
    root: PathBuf,
    /// The sockets.
    run: PathBuf,
}

impl Paths {
    /// Where the agent answers the kubelet's image calls.
    fn images(&self) -> PathBuf {
        self.run.join("images.sock")
    }

    /// The agent's config.
    fn config(&self, work: &Workdir, place: &containerd::Place) -> String {
        let (root, run) = (self.root.display(), self.run.display());
        format!(
            "state_dir = \"{}\"\n[snapshotter]\nenable = true\nroot = \"{root}\"\nsocket = \"{run}/snapshotter.sock\"\n\
             [images]\nsocket = \"{run}/images.sock\"\ncontainerd = \"{}\"\n[fetch]\nhosts_dirs = \"{}\"\n",
            work.join("state").display(),
            place.socket().display(),
            place.hosts().display()
        )
    }
}

/// A node.
#[derive(Debug)]
pub struct Node {
    // None only while it is rebooted.
    parts: Option<Parts>,
    agent: agent::Place,
    place: containerd::Place,
    paths: Paths,
    /// Its registry.
    pub registry: DockerRegistry,
    /// Everything it writes.
    pub work: Workdir,
}

impl Node {
    /// A node with a containerd of `release`, whose agent has these flags too.
    #[must_use]
    pub fn start(release: Release, flags: &[&str]) -> Self {
        Self::over(DockerRegistry::start(), release, flags)
    }

    fn over(registry: DockerRegistry, release: Release, flags: &[&str]) -> Self {
        Self::with(registry, (release, flags), |paths| Snapshotter::Penstock {
            socket: paths.run.join("snapshotter.sock"),
            root: paths.root.clone(),
        })
    }

    /// A node whose containerd has never heard of our snapshotter: [`Node::configure`] tells it.
    #[must_use]
    pub fn untold(release: Release) -> Self {
        Self::with(DockerRegistry::start(), (release, &[]), |_| Snapshotter::Overlayfs)
    }

    fn with(
        registry: DockerRegistry,
        (release, flags): (Release, &[&str]),
        snapshotter: impl FnOnce(&Paths) -> Snapshotter,
    ) -> Self {
        let work = Workdir::new();
        let sandbox = runnable::sandbox(&registry.repository("pause"));
        let dir = work.dir("containerd").canonicalize().expect("a directory");
        let paths = Paths { root: dir.join("root/io.containerd.snapshotter.v1.penstock"), run: work.dir("run") };
        let place = containerd::Place::new(release, &dir, (registry.host(), &sandbox), snapshotter(&paths));
        let config = work.join("penstock.toml");
        std::fs::write(&config, paths.config(&work, &place)).expect("the agent's config");
        let agent = agent::Place::new(work.path())
            .with_socket(&paths.run.join("penstock.sock"))
            .with_config(&config)
            .with(&["--device-transport", "fuse", "--cache-chunk-size", "64KiB"])
            .with(flags);
        let mut node = Self { parts: None, agent, place, paths, registry, work };
        node.power_on();
        node
    }

    /// Runs `penstock containerd configure` for its containerd, with these arguments too; answers what it says.
    ///
    /// # Panics
    /// When it fails.
    pub fn configure(&self, arguments: &[&str]) -> String {
        let program = self.place.release().command("containerd");
        let (main, program) = (self.place.config(), program.get_program());
        let paths = [main.as_os_str(), program].map(|path| path.to_str().expect("UTF-8"));
        let command = ["containerd", "configure", "--config", paths[0], "--program", paths[1]];
        self.penstock(&[&command, arguments].concat()).ok()
    }

    /// Runs a command of `penstock` on this node.
    #[must_use]
    pub fn penstock(&self, arguments: &[&str]) -> Ended {
        self.agent.run(arguments)
    }

    fn power_on(&mut self) {
        // As /run: what lies there is there until the next reboot, and never on a disk.
        let mounted = Command::new("mount").args(["-t", "tmpfs", "penstock-run"]).arg(&self.paths.run).status();
        assert!(mounted.is_ok_and(|status| status.success()), "a tmpfs is mounted");
        let supervisor = Supervisor::start(&self.agent, binary());
        let containerd = self.place.start();
        let cri = Cri::with_images(&containerd, &self.paths.images());
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
        parts.cri = Cri::with_images(&parts.containerd, &self.paths.images());
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

    /// Puts `image` in a repository of its own, whose containers sleep unless told otherwise; answers its reference and layers.
    #[must_use]
    pub fn push(&self, name: &str, image: &Runnable, kind: Kind) -> (String, Vec<Made>) {
        let layers = image.layers(kind);
        (runnable::push(&self.registry.repository(name), "1", &layers, &["sleep", "1000000000"]), layers)
    }

    /// The digests of layers that containerd has in its content store.
    #[must_use]
    pub fn stored(&self, layers: &[Made]) -> Vec<String> {
        let stored = self.place.content();
        layers.iter().map(Made::digest).filter(|digest| stored.iter().any(|(_, one)| one == digest)).collect()
    }

    /// Sees that everything in a running container is as it should be.
    ///
    /// # Panics
    /// When a file is not.
    pub fn is_right(&self, container: &str, image: &Runnable) {
        assert_eq!(runnable::sums(&self.cri().exec(container, &SUM_ALL).ok()), image.sums());
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

    /// As [`containerd::Place::shown`].
    pub fn shown<T>(&self, by: (&str, &str), reference: &str, see: impl FnOnce(&Path) -> T) -> T {
        self.place.shown(by, (reference, &self.work.dir("shown")), see)
    }

    /// Ends the node in order, and sees that nothing is left mounted or attached.
    ///
    /// # Panics
    /// When something is.
    pub fn stop(self) {
        drop(self.end());
    }

    /// As [`Node::stop`]; then another node starts with the same registry, and nothing else.
    #[must_use]
    pub fn replaced_by(self, release: Release, flags: &[&str]) -> Self {
        Self::over(self.end(), release, flags)
    }

    fn end(mut self) -> DockerRegistry {
        let Parts { cri, mut containerd, supervisor } = self.parts.take().expect("the node is on");
        drop(cri);
        containerd.stop();
        drop(containerd);
        assert!(supervisor.stop().success());
        assert_eq!(self.work.mounts(), [self.paths.run.clone()], "nothing else stays mounted");
        assert!(self.work.loops().is_empty(), "{:?}", self.work.loops());
        self.registry
    }
}

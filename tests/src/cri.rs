//! A CRI client: the calls that kubelet makes, blocking, each with one generous bound.

use std::{collections::BTreeMap, future::Future, path::Path, time::Duration};

use tokio::runtime::Runtime;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use self::v1::{
    AuthConfig, Container, ContainerConfig, ContainerMetadata, ContainerStatus, CreateContainerRequest, Empty,
    ExecSyncRequest, Image, ImageRequest, ImageSpec, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandbox, PodSandboxConfig, PodSandboxMetadata, PullImageRequest, RunPodSandboxRequest,
    StopContainerRequest, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use crate::containerd::Containerd;

/// The generated messages and clients.
#[expect(missing_docs, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// Longest time of one call: a hang is a finding, a slow machine is not.
const CALL: Duration = Duration::from_secs(300);

/// What tells containerd 1.7 for which runtime an image is pulled (containerd, pkg/cri/annotations: `RuntimeHandler`).
const RUNTIME_HANDLER: &str = "io.containerd.cri.runtime-handler";

/// A connection to a containerd (and to an image service, which may be another socket), with pods on the host's network.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    pods: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    cgroup: String,
    logs: String,
}

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct Pod {
    id: String,
    config: PodSandboxConfig,
}

/// What a command in a container said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its exit status.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// Standard output of a command that must have succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

impl Cri {
    /// Connects to `containerd`, as kubelet with its defaults does, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn connect(containerd: &Containerd) -> Self {
        Self::with_images(containerd, &containerd.place().socket())
    }

    /// Connects to `containerd`, with another socket for images: kubelet's `imageServiceEndpoint`.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn with_images(containerd: &Containerd, images: &Path) -> Self {
        let place = containerd.place();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let channel = |socket: &Path| {
            let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("a path");
            runtime.block_on(endpoint.timeout(CALL).connect()).expect("containerd listens")
        };
        let pods = RuntimeServiceClient::new(channel(&place.socket()));
        let images = ImageServiceClient::new(channel(images));
        let logs = place.logs().display().to_string();
        let cri = Self { pods, images, cgroup: place.cgroup(), logs, runtime };
        // containerd serves before its CRI plugin has found out what there is.
        containerd.until(|| cri.wait(cri.images.clone().list_images(Empty {})).ok());
        cri
    }

    fn wait<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
        self.runtime.block_on(call).map(tonic::Response::into_inner)
    }

    /// Pulls an image; answers what the runtime calls it.
    ///
    /// # Errors
    /// The runtime's.
    pub fn pull(&self, reference: &str, auth: Option<(&str, &str)>) -> Result<String, Status> {
        let auth = auth.map(|(name, password)| AuthConfig { username: name.to_owned(), password: password.to_owned() });
        let request = PullImageRequest { image: Some(spec(reference)), auth, sandbox_config: None };
        Ok(self.wait(self.images.clone().pull_image(request))?.image_ref)
    }

    /// Pulls an image for pods of the runtime `handler`, which kubelet says in a field of the image, or for older runtimes in an annotation
    /// of the pod.
    ///
    /// # Panics
    /// When it is not pulled.
    pub fn pull_for(&self, reference: &str, handler: &str) {
        let image = ImageSpec { image: reference.to_owned(), runtime_handler: handler.to_owned() };
        let sandbox_config = Some(self.pod_config("pulls", handler));
        let request = PullImageRequest { image: Some(image), auth: None, sandbox_config };
        self.wait(self.images.clone().pull_image(request)).expect("PullImage");
    }

    /// Pulls images, all at once.
    ///
    /// # Panics
    /// When one is not pulled.
    pub fn pull_all(&self, references: &[&str]) {
        let pull = async |reference: &str| {
            let request = PullImageRequest { image: Some(spec(reference)), auth: None, sandbox_config: None };
            self.images.clone().pull_image(request).await
        };
        let pulled = self.runtime.block_on(futures_util::future::join_all(references.iter().map(|one| pull(one))));
        pulled.into_iter().for_each(|one| drop(one.expect("it is pulled")));
    }

    /// What the runtime knows of an image.
    ///
    /// # Panics
    /// When the runtime fails.
    #[must_use]
    pub fn image(&self, reference: &str) -> Option<Image> {
        let request = ImageRequest { image: Some(spec(reference)) };
        self.wait(self.images.clone().image_status(request)).expect("ImageStatus").image
    }

    /// The images that the runtime has.
    ///
    /// # Panics
    /// When the runtime fails.
    #[must_use]
    pub fn images(&self) -> Vec<Image> {
        self.wait(self.images.clone().list_images(Empty {})).expect("ListImages").images
    }

    /// Removes an image.
    ///
    /// # Panics
    /// When the runtime fails.
    pub fn remove_image(&self, reference: &str) {
        let request = ImageRequest { image: Some(spec(reference)) };
        self.wait(self.images.clone().remove_image(request)).expect("RemoveImage");
    }

    /// Where images are kept, and the bytes used there.
    ///
    /// # Panics
    /// When the runtime fails.
    #[must_use]
    pub fn image_file_systems(&self) -> BTreeMap<String, u64> {
        let usage = self.wait(self.images.clone().image_fs_info(Empty {})).expect("ImageFsInfo").image_filesystems;
        let path = |usage: &v1::FilesystemUsage| usage.fs_id.clone().unwrap_or_default().mountpoint;
        usage.iter().map(|one| (path(one), one.used_bytes.unwrap_or_default().value)).collect()
    }

    /// Starts a pod.
    ///
    /// # Panics
    /// When the runtime fails.
    #[must_use]
    pub fn run_pod(&self, name: &str) -> Pod {
        self.run_pod_with(name, "")
    }

    /// Starts a pod whose RuntimeClass has this handler.
    ///
    /// # Panics
    /// When the runtime fails.
    #[must_use]
    pub fn run_pod_with(&self, name: &str, handler: &str) -> Pod {
        let config = self.pod_config(name, handler);
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let id = self.wait(self.pods.clone().run_pod_sandbox(request)).expect("RunPodSandbox").pod_sandbox_id;
        Pod { id, config }
    }

    /// Starts a pod, in which containers may be privileged if told so.
    ///
    /// # Panics
    /// When the runtime fails.
    #[must_use]
    pub fn run_pod_as(&self, name: &str, privileged: bool) -> Pod {
        let mut config = self.pod_config(name, "");
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().privileged = privileged;
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let id = self.wait(self.pods.clone().run_pod_sandbox(request)).expect("RunPodSandbox").pod_sandbox_id;
        Pod { id, config }
    }

    fn pod_config(&self, name: &str, handler: &str) -> PodSandboxConfig {
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let context = LinuxSandboxSecurityContext { namespace_options: Some(namespaces()), privileged: false };
        let linux = LinuxPodSandboxConfig { cgroup_parent: self.cgroup.clone(), security_context: Some(context) };
        let annotation = (!handler.is_empty()).then(|| (RUNTIME_HANDLER.to_owned(), handler.to_owned()));
        PodSandboxConfig {
            metadata: Some(metadata),
            log_directory: self.logs.clone(),
            annotations: annotation.into_iter().collect(),
            linux: Some(linux),
        }
    }

    /// Stops and removes a pod with its containers.
    ///
    /// # Panics
    /// When the runtime fails.
    pub fn remove_pod(&self, pod: &Pod) {
        let request = || PodSandbox { pod_sandbox_id: pod.id.clone() };
        self.wait(self.pods.clone().stop_pod_sandbox(request())).expect("StopPodSandbox");
        self.wait(self.pods.clone().remove_pod_sandbox(request())).expect("RemovePodSandbox");
    }

    /// Makes a container of `image` in `pod` that runs `command` (the image's own when it is empty), and starts it.
    ///
    /// # Errors
    /// The runtime's.
    pub fn start(&self, pod: &Pod, name: &str, image: &str, command: &[&str]) -> Result<String, Status> {
        self.runtime.block_on(self.starting(pod, name, image, command))
    }

    /// Starts a container of `image` for each name in `names`, all at once; answers their ids.
    ///
    /// # Panics
    /// When one does not start.
    #[must_use]
    pub fn start_all(&self, pod: &Pod, containers: &[(String, String)], command: &[&str]) -> Vec<String> {
        let starts = containers.iter().map(|(name, image)| self.starting(pod, name, image, command));
        let started = self.runtime.block_on(futures_util::future::join_all(starts));
        started.into_iter().map(|one| one.expect("it starts")).collect()
    }

    async fn starting(&self, pod: &Pod, name: &str, image: &str, command: &[&str]) -> Result<String, Status> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(spec(image)),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            ..ContainerConfig::default()
        };
        self.creating(pod, config).await
    }

    /// Makes a container as `config` says and starts it; its log and namespaces are those of all containers here.
    ///
    /// # Errors
    /// The runtime's.
    pub fn start_as(&self, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
        self.runtime.block_on(self.creating(pod, config))
    }

    async fn creating(&self, pod: &Pod, mut config: ContainerConfig) -> Result<String, Status> {
        config.log_path = format!("{}.log", config.metadata.clone().unwrap_or_default().name);
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options = Some(namespaces());
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let mut pods = self.pods.clone();
        let id = pods.create_container(request).await?.into_inner().container_id;
        pods.start_container(Container { container_id: id.clone() }).await?;
        Ok(id)
    }

    /// How a container is.
    ///
    /// # Panics
    /// When the runtime does not know it.
    #[must_use]
    pub fn status(&self, container: &str) -> ContainerStatus {
        let request = Container { container_id: container.to_owned() };
        let answer = self.wait(self.pods.clone().container_status(request)).expect("ContainerStatus");
        answer.status.expect("a status")
    }

    /// Runs a command in a running container.
    ///
    /// # Panics
    /// When the runtime fails.
    #[must_use]
    pub fn exec(&self, container: &str, command: &[&str]) -> Said {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 0 };
        let said = self.wait(self.pods.clone().exec_sync(request)).expect("ExecSync");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { code: said.exit_code, stdout: text(&said.stdout), stderr: text(&said.stderr) }
    }

    /// Kills and removes a container.
    ///
    /// # Panics
    /// When the runtime fails.
    pub fn remove(&self, container: &str) {
        self.remove_all(&[container.to_owned()]);
    }

    /// Kills and removes containers, all at once.
    ///
    /// # Panics
    /// When the runtime fails.
    pub fn remove_all(&self, containers: &[String]) {
        let remove = async |container: &String| {
            let mut pods = self.pods.clone();
            pods.stop_container(StopContainerRequest { container_id: container.clone(), timeout: 0 }).await?;
            pods.remove_container(Container { container_id: container.clone() }).await
        };
        let removed = self.runtime.block_on(futures_util::future::join_all(containers.iter().map(remove)));
        removed.into_iter().for_each(|one| drop(one.expect("it is removed")));
    }

    /// The runtime's name and version.
    ///
    /// # Panics
    /// When the runtime fails.
    #[must_use]
    pub fn version(&self) -> String {
        let said = self.wait(self.pods.clone().version(v1::VersionRequest::default())).expect("Version");
        format!("{} {}", said.runtime_name, said.runtime_version)
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), runtime_handler: String::new() }
}

/// The host's network, so that no CNI is needed; the rest as pods have it.
fn namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
    }
}

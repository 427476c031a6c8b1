//! A pod of the chart without Kubernetes: what the kubelet makes of its spec for containerd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    agent,
    cri::v1::{
        Capability, ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
        LinuxContainerSecurityContext, Mount, MountPropagation,
    },
    docker_registry::DockerRegistry,
    workdir::Workdir,
    workspace::{self, text},
};

/// A pod's spec, with the directories of its volumes that are not the node's own.
#[derive(Debug)]
pub struct Spec<'a> {
    spec: &'a Value,
    volumes: PathBuf,
}

impl<'a> Spec<'a> {
    /// The `spec` of a pod, whose volumes other than those of the node are made in `volumes`, from these ConfigMaps.
    ///
    /// # Panics
    /// When a volume is of a kind that is not known here.
    #[must_use]
    pub fn new(spec: &'a Value, volumes: &Path, config_maps: &[Value]) -> Self {
        for volume in list(&spec["volumes"]) {
            let dir = volumes.join(text(&volume["name"]));
            if let Some(path) = volume["hostPath"]["path"].as_str() {
                if volume["hostPath"]["type"] == "DirectoryOrCreate" {
                    fs::create_dir_all(path).expect("a directory of the node");
                }
                continue;
            }
            fs::create_dir_all(&dir).expect("a directory");
            if volume["configMap"].is_object() {
                let map = config_maps.iter().find(|map| map["metadata"]["name"] == volume["configMap"]["name"]);
                for (name, data) in map.expect("the ConfigMap")["data"].as_object().expect("its data") {
                    fs::write(dir.join(name), text(data)).expect("a file");
                }
            } else {
                assert!(volume["emptyDir"].is_object(), "{volume}");
            }
        }
        Self { spec, volumes: volumes.to_path_buf() }
    }

    /// What the kubelet asks containerd for, of one container.
    ///
    /// # Panics
    /// When there is none of that name, or it says something that is not known here.
    #[must_use]
    pub fn container(&self, name: &str, image: &str) -> ContainerConfig {
        let container = list(&self.spec["containers"]).find(|one| one["name"] == name).expect("the container");
        let words = |value: &Value| list(value).map(|word| text(word).to_owned()).collect::<Vec<_>>();
        let env = |one: &Value| KeyValue { key: text(&one["name"]).to_owned(), value: text(&one["value"]).to_owned() };
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() }),
            command: words(&container["command"]),
            envs: list(&container["env"]).map(env).collect(),
            mounts: list(&container["volumeMounts"]).map(|mount| self.mount(mount)).collect(),
            linux: Some(LinuxContainerConfig { security_context: Some(context(&container["securityContext"])) }),
            ..ContainerConfig::default()
        }
    }

    fn mount(&self, mount: &Value) -> Mount {
        let volume = list(&self.spec["volumes"]).find(|one| one["name"] == mount["name"]).expect("its volume");
        let own = || self.volumes.join(text(&mount["name"])).display().to_string();
        let propagation = match mount["mountPropagation"].as_str() {
            None => MountPropagation::PropagationPrivate,
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            Some(other) => panic!("propagation {other}"),
        };
        Mount {
            container_path: text(&mount["mountPath"]).to_owned(),
            host_path: volume["hostPath"]["path"].as_str().map_or_else(own, str::to_owned),
            readonly: mount["readOnly"] == true,
            propagation: propagation.into(),
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn context(context: &Value) -> LinuxContainerSecurityContext {
    let drop = list(&context["capabilities"]["drop"]).map(|one| text(one).to_owned()).collect();
    LinuxContainerSecurityContext {
        capabilities: Some(Capability { add_capabilities: Vec::new(), drop_capabilities: drop }),
        privileged: context["privileged"] == true,
        run_as_user: context["runAsUser"].as_i64().map(|value| Int64Value { value }),
        readonly_rootfs: context["readOnlyRootFilesystem"] == true,
        no_new_privs: context["allowPrivilegeEscalation"] == false,
        ..LinuxContainerSecurityContext::default()
    }
}

/// Builds the agent's image as `make image` does, with the program under test, and pushes it to a registry; answers its reference.
///
/// # Panics
/// When that fails.
#[must_use]
pub fn image(registry: &DockerRegistry) -> String {
    let work = Workdir::new();
    let dir = work.path().display();
    let buildah = format!("buildah --root {dir}/root --runroot {dir}/run --storage-driver vfs");
    let mut build = Command::new(workspace::root().join("packaging/image.sh"));
    build.arg(IMAGE).arg(agent::binary()).env("BUILDAH", &buildah).env("CARGO", env!("CARGO"));
    done(&mut build);
    let reference = format!("{}/penstock:1", registry.host());
    let mut words = buildah.split(' ');
    let mut push = Command::new(words.next().expect("a program"));
    done(push.args(words).args(["push", "--tls-verify=false", IMAGE]).arg(format!("docker://{reference}")));
    reference
}

/// What the image is called where it is built.
const IMAGE: &str = "localhost/penstock:1";

fn done(command: &mut Command) {
    let out = command.stdin(Stdio::null()).output().expect("it starts");
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

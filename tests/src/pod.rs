//! A pod of the chart without Kubernetes: what the kubelet makes of its spec for containerd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    agent,
    cri::v1::{
        Capability, ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
        LinuxContainerSecurityContext, Mount, MountPropagation,
    },
    runnable::{self, Made},
    workdir::Workdir,
    workspace::text,
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

/// The agent's image as a layer: the program of the tests with the libraries that it wants, and busybox' shell.
///
/// # Panics
/// When a file cannot be copied.
#[must_use]
pub fn image() -> Made {
    let work = Workdir::new();
    let root = work.dir("image");
    for dir in ["bin", "usr/local/bin", "dev", "proc", "sys", "tmp", "run", "etc", "lib", "lib64", "var"] {
        fs::create_dir_all(root.join(dir)).expect("a directory");
    }
    fs::copy(agent::binary(), root.join("usr/local/bin/penstock")).expect("the program");
    copy_libraries(agent::binary(), &root);
    let busybox = Command::new("sh").args(["-c", "command -v busybox"]).output().expect("a shell").stdout;
    let busybox = String::from_utf8(busybox).expect("a path");
    fs::copy(busybox.trim(), root.join("bin/busybox")).expect("busybox is installed");
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).expect("a link");
    runnable::archived(&root)
}

/// Copies the libraries of `program` to where it looks for them below `root`.
///
/// # Panics
/// When one cannot be copied.
pub fn copy_libraries(program: &Path, root: &Path) {
    let said = Command::new("ldd").arg(program).output().expect("ldd starts").stdout;
    let said = String::from_utf8(said).expect("UTF-8");
    for library in said.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().expect("a directory")).expect("a directory");
        fs::copy(library, copy).expect("a library");
    }
}

//! Where credentials may come from.

use std::{path::PathBuf, time::Duration};

/// The providers of a fetcher besides what is handed over to it. Each that is not named is not asked.
#[derive(Debug, Clone)]
pub struct CredentialSources {
    /// A file of Penstock's own ([`crate::StaticCredentials`]). Refused while others than its owner and group can read it.
    pub static_file: Option<PathBuf>,
    /// Docker's `config.json`.
    pub docker_config: Option<PathBuf>,
    /// The directory of the `docker-credential-*` programs; `None` searches the process's `PATH`.
    pub helpers: Option<PathBuf>,
    /// The kubelet's credential provider plugins.
    pub kubelet: Option<KubeletSource>,
    /// Directories where Kubernetes secrets with `.dockerconfigjson`, `.dockercfg` or `config.json` are mounted.
    pub secret_dirs: Vec<PathBuf>,
    /// Where credentials that were handed over are kept for the next process. It must lie on a file system in memory, so that they
    /// are never on a disk: elsewhere they are not kept. `None`: not kept.
    pub kept: Option<PathBuf>,
    /// How long a helper or a plugin may take. Default 10 s, a third of the deadline of a read.
    pub program_timeout: Duration,
}

/// What the kubelet is started with for its plugins.
#[derive(Debug, Clone)]
pub struct KubeletSource {
    /// `--image-credential-provider-config`: a `CredentialProviderConfig`, YAML or JSON.
    pub config: PathBuf,
    /// `--image-credential-provider-bin-dir`: the directory of the plugins.
    pub bin_dir: PathBuf,
}

impl Default for CredentialSources {
    fn default() -> Self {
        Self {
            static_file: None,
            docker_config: None,
            helpers: None,
            kubelet: None,
            secret_dirs: Vec::new(),
            kept: None,
            program_timeout: Duration::from_secs(10),
        }
    }
}

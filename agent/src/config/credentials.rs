//! Where credentials come from: the keys of `[credentials]`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use penstock_fetcher::{CredentialSources, KubeletSource};

/// The name of the file beside the socket in which handed-over credentials are kept.
const KEPT_FILE: &str = "credentials.kept";

/// Whether handed-over credentials outlive a restart of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Until the next reboot, beside the socket, where that is a file system in memory.
    Memory,
    /// They do not.
    No,
}

/// The keys.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// A file of Penstock's own.
    pub file: Option<PathBuf>,
    /// The kubelet's `CredentialProviderConfig`.
    pub kubelet_config: Option<PathBuf>,
    /// The directory of its plugins.
    pub kubelet_bin_dir: Option<PathBuf>,
    /// Directories where Kubernetes secrets are mounted.
    pub secret_dirs: Vec<PathBuf>,
    /// How long a helper or plugin may take.
    pub timeout: Duration,
    /// Whether handed-over credentials outlive a restart.
    pub keep: Keep,
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            file: None,
            kubelet_config: None,
            kubelet_bin_dir: None,
            secret_dirs: Vec::new(),
            timeout: Duration::from_secs(10),
            keep: Keep::Memory,
        }
    }
}

impl Credentials {
    /// The fetcher's providers. `socket` is the agent's own.
    #[must_use]
    pub fn sources(&self, docker_config: Option<PathBuf>, socket: &Path) -> CredentialSources {
        let kubelet = self.kubelet_config.clone().zip(self.kubelet_bin_dir.clone());
        CredentialSources {
            static_file: self.file.clone(),
            docker_config,
            helpers: None,
            kubelet: kubelet.map(|(config, bin_dir)| KubeletSource { config, bin_dir }),
            secret_dirs: self.secret_dirs.clone(),
            kept: match self.keep {
                Keep::Memory => socket.parent().map(|dir| dir.join(KEPT_FILE)),
                Keep::No => None,
            },
            program_timeout: self.timeout,
        }
    }

    /// The key that is missing beside the one that is set.
    pub(super) const fn half_set(&self) -> Option<(&'static str, &'static str)> {
        match (&self.kubelet_config, &self.kubelet_bin_dir) {
            (Some(_), None) => Some(("credentials.kubelet_config", "credentials.kubelet_bin_dir")),
            (None, Some(_)) => Some(("credentials.kubelet_bin_dir", "credentials.kubelet_config")),
            _ => None,
        }
    }
}

impl Keep {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::No => "no",
        }
    }
}

impl std::str::FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "memory" => Ok(Self::Memory),
            "no" => Ok(Self::No),
            _ => Err(format!("{text:?} is not known; write memory or no")),
        }
    }
}

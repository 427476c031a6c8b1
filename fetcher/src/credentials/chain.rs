//! The chain: every provider that is set up, in the order in which they are asked.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use super::{
    Found, HandedOver, Provider, Wanted, docker::Docker, kubelet::Kubelet, secret_dir::SecretDir,
    settings::CredentialSources, static_file::StaticFile,
};
use crate::failure::Failure;

/// One provider that is set up.
#[derive(Debug)]
pub(crate) enum Source {
    Api(Arc<HandedOver>),
    StaticFile(StaticFile),
    Docker(Docker),
    Kubelet(Kubelet),
    SecretDir(SecretDir),
}

/// All of them, in order.
#[derive(Debug)]
pub(crate) struct Chain {
    handed_over: Arc<HandedOver>,
    /// The first is what was handed over.
    sources: Vec<Source>,
}

/// One provider, and whether it can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderState {
    /// Which.
    pub provider: Provider,
    /// Its file or directory.
    pub place: Option<PathBuf>,
    /// Why it cannot be used, and what to do.
    pub problem: Option<String>,
}

impl Chain {
    /// The chain of a config. Reads what was kept of handed-over credentials.
    pub(crate) fn new(settings: &CredentialSources) -> Self {
        let timeout = settings.program_timeout;
        let handed_over = Arc::new(HandedOver::new(settings.kept.clone(), SystemTime::now()));
        let mut sources = vec![Source::Api(handed_over.clone())];
        sources.extend(settings.static_file.clone().map(|path| Source::StaticFile(StaticFile { path })));
        let docker = settings.docker_config.clone();
        sources.extend(docker.map(|config| Source::Docker(Docker::new(config, settings.helpers.clone(), timeout))));
        sources.extend(settings.kubelet.clone().map(|source| Source::Kubelet(Kubelet::new(source, timeout))));
        sources.extend(settings.secret_dirs.iter().map(|dir| Source::SecretDir(SecretDir { dir: dir.clone() })));
        Self { handed_over, sources }
    }

    pub(crate) fn sources(&self) -> &[Source] {
        &self.sources
    }

    pub(crate) fn handed_over(&self) -> &HandedOver {
        &self.handed_over
    }

    /// The first credentials that any provider has for the repository.
    pub(crate) async fn first(&self, wanted: Wanted<'_>) -> Result<Found, Failure> {
        let mut failed = None;
        for source in &self.sources {
            match source.find(wanted).await {
                Ok(offered) => {
                    if let Some(found) = offered.into_iter().next() {
                        return Ok(found);
                    }
                }
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        failed.map_or_else(|| Ok(Found::anonymous()), Err)
    }

    /// Which providers there are, and which of them cannot be used now. Reads their files; runs nothing.
    pub(crate) async fn states(&self) -> Vec<ProviderState> {
        let mut states = Vec::new();
        for source in &self.sources {
            states.push(source.state().await);
        }
        states
    }
}

impl Found {
    pub(crate) const fn anonymous() -> Self {
        Self { provider: Provider::Anonymous, credential: super::Credential::Anonymous }
    }
}

impl Source {
    pub(crate) const fn provider(&self) -> Provider {
        match self {
            Self::Api(_) => Provider::Api,
            Self::StaticFile(_) => Provider::StaticFile,
            Self::Docker(_) => Provider::DockerConfig,
            Self::Kubelet(_) => Provider::KubeletPlugin,
            Self::SecretDir(_) => Provider::SecretDir,
        }
    }

    /// What the provider offers for a repository; nothing when it has nothing for it. A failure means that it could not be asked.
    pub(crate) async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Found>, Failure> {
        match self {
            Self::Api(handed) => Ok(handed.find(wanted, SystemTime::now())),
            Self::StaticFile(file) => file.find(wanted).await,
            Self::Docker(docker) => docker.find(wanted).await,
            Self::Kubelet(kubelet) => kubelet.find(wanted).await,
            Self::SecretDir(dir) => dir.find(wanted).await,
        }
    }

    async fn state(&self) -> ProviderState {
        let (place, problem) = match self {
            Self::Api(_) => (None, None),
            Self::StaticFile(file) => (Some(&file.path), file.problem().await),
            Self::Docker(docker) => (Some(&docker.config), docker.problem().await),
            Self::Kubelet(kubelet) => (Some(kubelet.config()), kubelet.problem().await),
            Self::SecretDir(secret) => (Some(&secret.dir), secret.problem().await),
        };
        ProviderState { provider: self.provider(), place: place.cloned(), problem }
    }
}

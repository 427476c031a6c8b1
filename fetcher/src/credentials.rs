//! Who we are to a registry: a chain of providers, asked in one order each time credentials are needed, so that new ones are
//! picked up without a restart.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
};

use crate::{failure::Failure, secret::Secret};

mod chain;
pub(crate) mod docker;
mod file;
pub(crate) mod handed;
mod helper;
pub(crate) mod kept;
pub(crate) mod kubelet;
mod program;
pub(crate) mod scope;
pub(crate) mod secret_dir;
pub(crate) mod settings;
pub(crate) mod static_file;
#[cfg(test)]
mod tests;

pub(crate) use chain::Chain;
pub use chain::ProviderState;
pub(crate) use handed::HandedOver;

/// Most credentials that one provider offers for one repository. A kubelet plugin may answer with several globs that fit.
pub(crate) const MAX_OFFERED: usize = 8;

/// What to show a registry or its token server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Credential {
    /// Nothing.
    Anonymous,
    /// A user name and a password.
    Basic {
        /// The user name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth2 refresh token, which the token server exchanges (docker calls it identity token).
    Identity(Secret),
    /// A token for the registry itself.
    Token(Secret),
}

impl Credential {
    /// What kind it is, in a word.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Basic { .. } => "password",
            Self::Identity(_) => "identity-token",
            Self::Token(_) => "registry-token",
        }
    }
}

/// The kinds of providers, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provider {
    /// Handed over through [`crate::Fetcher::hand_over`].
    Api,
    /// A file of Penstock's own.
    StaticFile,
    /// Docker's `config.json`, its credential helpers included.
    DockerConfig,
    /// A credential-provider plugin of the kubelet.
    KubeletPlugin,
    /// A directory where a Kubernetes secret is mounted.
    SecretDir,
    /// Nobody has credentials for it.
    Anonymous,
}

impl Provider {
    /// Its name in reports and events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::StaticFile => "static-file",
            Self::DockerConfig => "docker-config",
            Self::KubeletPlugin => "kubelet-plugin",
            Self::SecretDir => "secret-dir",
            Self::Anonymous => "anonymous",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Credentials, and who had them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) provider: Provider,
    pub(crate) credential: Credential,
}

/// A repository on a host, for which credentials are looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) host: &'a str,
    pub(crate) repository: &'a str,
}

/// Tells credentials apart without keeping them: a hash under a key of this process.
#[derive(Debug, Default)]
pub(crate) struct Fingerprints(RandomState);

/// The fingerprint of one credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64);

impl Fingerprints {
    pub(crate) fn of(&self, credential: &Credential) -> Fingerprint {
        Fingerprint(self.0.hash_one(credential))
    }
}

/// A provider that cannot be used. The text never repeats what the provider holds.
fn unusable(what: impl fmt::Display, reason: impl fmt::Display) -> Failure {
    Failure::denied(format!("{what} cannot be used: {reason}"))
}

//! `CredentialProviderConfig` of `kubelet.config.k8s.io` v1, v1beta1 and v1alpha1. Pure and total.

use std::time::Duration;

use super::{
    answer::go_duration,
    image::{Glob, Image},
};

/// Most plugins and most globs of one. A cloud has one plugin with some twenty globs.
const MAX_PLUGINS: usize = 64;
const MAX_GLOBS: usize = 1024;
/// Most events of the YAML parser: many times what the bounds above need.
const MAX_YAML_EVENTS: usize = 50_000;

/// The plugins that a kubelet may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletConfig {
    plugins: Vec<Plugin>,
}

/// A config that cannot be used. Its text repeats no value of the environment or the arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KubeletConfigError {
    /// Neither YAML nor JSON of the expected shape.
    #[error("it is not a CredentialProviderConfig (line {line})")]
    Malformed {
        /// Line of the first fault, from 1; 0 when it is not known.
        line: u64,
    },
    /// Another kind, or another version of it.
    #[error("it is {kind:?} of {api_version:?}; a CredentialProviderConfig of kubelet.config.k8s.io/v1 is wanted")]
    Kind {
        /// The kind it says.
        kind: String,
        /// The version it says.
        api_version: String,
    },
    /// A provider that the kubelet would refuse too.
    #[error("provider {name:?}: {reason}")]
    Provider {
        /// Its name, cut to 64 characters.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More than are read.
    #[error("it names {count} plugins, and at most 64 are read")]
    TooMany {
        /// How many it names.
        count: usize,
    },
}

/// One plugin.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Plugin {
    pub(super) name: String,
    globs: Vec<Glob>,
    pub(super) default_lifetime: Duration,
    pub(super) api_version: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Arguments and environment may hold secrets.
        f.debug_struct("Plugin").field("name", &self.name).field("globs", &self.globs).finish_non_exhaustive()
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    /// Since Kubernetes 1.33: the plugin wants a token of the pod's service account.
    token_attributes: Option<serde::de::IgnoredAny>,
}

#[derive(serde::Deserialize)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

impl KubeletConfig {
    /// Reads a config in YAML or JSON.
    ///
    /// # Errors
    /// [`KubeletConfigError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, KubeletConfigError> {
        let document: Document = if bytes.trim_ascii_start().starts_with(b"{") {
            serde_json::from_slice(bytes)
                .map_err(|error| KubeletConfigError::Malformed { line: error.line() as u64 })?
        } else {
            let options = serde_saphyr::options! {
                budget: serde_saphyr::budget! { max_events: MAX_YAML_EVENTS, max_nodes: MAX_YAML_EVENTS },
                with_snippet: false,
            };
            serde_saphyr::from_slice_with_options(bytes, options).map_err(|error| KubeletConfigError::Malformed {
                line: error.location().map_or(0, |location| location.line()),
            })?
        };
        let is_ours = document.api_version.strip_prefix("kubelet.config.k8s.io/").is_some_and(is_version);
        if document.kind != "CredentialProviderConfig" || !is_ours {
            let cut = |text: String| text.chars().take(64).collect();
            return Err(KubeletConfigError::Kind { kind: cut(document.kind), api_version: cut(document.api_version) });
        }
        if document.providers.len() > MAX_PLUGINS {
            return Err(KubeletConfigError::TooMany { count: document.providers.len() });
        }
        let mut plugins: Vec<Plugin> = Vec::new();
        for provider in document.providers {
            let name: String = provider.name.chars().take(64).collect();
            let refused = |reason| KubeletConfigError::Provider { name, reason };
            if plugins.iter().any(|plugin| plugin.name == provider.name) {
                return Err(refused("is named twice"));
            }
            plugins.push(provider.plugin().map_err(refused)?);
        }
        Ok(Self { plugins })
    }

    pub(super) fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// The names of the plugins that are asked about an image, in order.
    #[must_use]
    pub fn asked_about(&self, host: &str, repository: &str) -> Vec<&str> {
        let image = Image::new(host, repository);
        self.plugins.iter().filter(|plugin| plugin.is_for(&image)).map(|plugin| plugin.name.as_str()).collect()
    }
}

fn is_version(version: &str) -> bool {
    matches!(version, "v1" | "v1beta1" | "v1alpha1")
}

impl Provider {
    /// Checks what the kubelet checks at its start (`validateCredentialProviderConfig`).
    fn plugin(self) -> Result<Plugin, &'static str> {
        let is_file_name = !matches!(self.name.as_str(), "" | "." | "..")
            && !self.name.contains(|c: char| c == '/' || c == '\\' || c.is_whitespace() || c.is_control());
        if !is_file_name {
            return Err("its name is not the name of a program in the plugin directory");
        }
        if !self.api_version.strip_prefix("credentialprovider.kubelet.k8s.io/").is_some_and(is_version) {
            return Err("its apiVersion must be credentialprovider.kubelet.k8s.io/v1, v1beta1 or v1alpha1");
        }
        if self.match_images.is_empty() || self.match_images.len() > MAX_GLOBS {
            return Err("it needs matchImages, from 1 to 1024");
        }
        let globs: Option<Vec<Glob>> = self.match_images.iter().map(|text| Glob::parse(text)).collect();
        let globs = globs.ok_or("one of its matchImages is no glob for a registry")?;
        let lifetime = self.default_cache_duration.as_deref().and_then(go_duration);
        let default_lifetime = lifetime.ok_or("its defaultCacheDuration must be a duration such as 12h or 0s")?;
        if self.token_attributes.is_some() {
            return Err("it wants a token of the pod's service account (tokenAttributes), which only the kubelet has");
        }
        let env = self.env.unwrap_or_default().into_iter().map(|variable| (variable.name, variable.value));
        let env: Vec<_> = env.collect();
        if env.iter().any(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')) {
            return Err("a variable in its env has a name that no program can be given");
        }
        let args = self.args.unwrap_or_default();
        if args.iter().any(|arg| arg.contains('\0')) {
            return Err("one of its args holds a NUL");
        }
        Ok(Plugin { name: self.name, globs, default_lifetime, api_version: self.api_version, args, env })
    }
}

impl Plugin {
    pub(super) fn is_for(&self, image: &Image) -> bool {
        self.globs.iter().any(|glob| glob.fits(image))
    }
}

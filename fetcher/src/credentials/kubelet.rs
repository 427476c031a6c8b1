//! The kubelet's credential provider plugins: programs that get credentials from a cloud, as the kubelet itself would run them
//! (Kubernetes, "Configure a kubelet image credential provider", and `credentialprovider.kubelet.k8s.io/v1`).
//!
//! As the kubelet does: every plugin with a `matchImages` entry that fits is asked, in the order of the config; of an answer all
//! globs that fit are tried, the longest first; answers are kept as long as they say, for the image, the registry or all. Unlike
//! the kubelet, a plugin has [`super::settings::CredentialSources::program_timeout`] instead of a minute, because reads wait for it.

mod answer;
mod config;
mod image;

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Credential, Found, MAX_OFFERED, Provider, Wanted,
    docker::{found, read},
    file::Audience,
    program::{Ended, Program},
    settings::KubeletSource,
    unusable,
};
use crate::failure::Failure;

use answer::Keyed;
pub use answer::{KubeletAnswer, KubeletAnswerError};
use config::Plugin;
pub use config::{KubeletConfig, KubeletConfigError};
use image::Image;

/// Largest answer of a plugin, in bytes: one for each of some hundred registries.
const MAX_ANSWER_BYTES: usize = 256 << 10;
/// How long a plugin that failed is not asked again for the same registry: readers come in crowds.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// Longest an answer is kept, whatever it says: a day. Clouds give credentials for 12 hours and less.
const MAX_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Most answers kept of all plugins; beyond it those that have ended go, and then all.
const MAX_ANSWERS: usize = 1024;

/// The plugins as a provider.
#[derive(Debug)]
pub(crate) struct Kubelet {
    source: KubeletSource,
    timeout: Duration,
    answers: Mutex<Answers>,
    running: Mutex<Running>,
}

/// What plugins answered, by the plugin's name and what the answer is for.
type Answers = HashMap<(String, Keyed), Kept>;

/// One lock for each plugin and registry, held while it runs: a crowd runs it once.
type Running = HashMap<(String, String), Arc<tokio::sync::Mutex<()>>>;

#[derive(Debug, Clone)]
struct Kept {
    answer: Result<Arc<KubeletAnswer>, Failure>,
    until: Instant,
}

impl Kubelet {
    pub(crate) fn new(source: KubeletSource, timeout: Duration) -> Self {
        Self { source, timeout, answers: Mutex::default(), running: Mutex::default() }
    }

    /// What all plugins that the image is for offer. One that fails does not keep the others from being asked; its failure
    /// counts when none has anything.
    pub(crate) async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Found>, Failure> {
        let image = Image::new(wanted.host, wanted.repository);
        let config = self.read().await?;
        let mut offered: Vec<Credential> = Vec::new();
        let mut failed = None;
        for plugin in config.plugins().iter().filter(|plugin| plugin.is_for(&image)) {
            match self.ask(plugin, &image).await {
                Ok(answer) => offered.extend(answer.fitting(&image)),
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        offered.truncate(MAX_OFFERED);
        match failed {
            Some(failure) if offered.is_empty() => Err(failure),
            _ => Ok(found(Provider::KubeletPlugin, offered)),
        }
    }

    async fn ask(&self, plugin: &Plugin, image: &Image) -> Result<Arc<KubeletAnswer>, Failure> {
        if let Some(kept) = self.kept(plugin, image) {
            return kept;
        }
        let running = self.running(plugin, image);
        let _running = running.lock().await;
        // Answered while we waited.
        if let Some(kept) = self.kept(plugin, image) {
            return kept;
        }
        let answer = self.run(plugin, image).await;
        let (keyed, lifetime) = match &answer {
            Ok(answer) => (answer.keyed(image), answer.lifetime.unwrap_or(plugin.default_lifetime).min(MAX_KEPT)),
            Err(_) => (Keyed::Registry(image.registry().to_owned()), FAILED_FOR),
        };
        if !lifetime.is_zero() {
            let kept = Kept { answer: answer.clone(), until: Instant::now() + lifetime };
            keep(&mut self.answers.lock(), (plugin.name.clone(), keyed), kept);
        }
        answer
    }

    fn kept(&self, plugin: &Plugin, image: &Image) -> Option<Result<Arc<KubeletAnswer>, Failure>> {
        let now = Instant::now();
        let answers = self.answers.lock();
        // In the kubelet's order.
        let keys = [Keyed::Image(image.to_string()), Keyed::Registry(image.registry().to_owned()), Keyed::Global];
        keys.into_iter()
            .filter_map(|keyed| answers.get(&(plugin.name.clone(), keyed)))
            .find(|kept| now < kept.until)
            .map(|kept| kept.answer.clone())
    }

    fn running(&self, plugin: &Plugin, image: &Image) -> Arc<tokio::sync::Mutex<()>> {
        let mut running = self.running.lock();
        running.retain(|_, lock| Arc::strong_count(lock) > 1);
        running.entry((plugin.name.clone(), image.registry().to_owned())).or_default().clone()
    }

    async fn run(&self, plugin: &Plugin, image: &Image) -> Result<Arc<KubeletAnswer>, Failure> {
        let request = serde_json::json!({
            "apiVersion": plugin.api_version,
            "kind": "CredentialProviderRequest",
            "image": image.to_string(),
        });
        let (path, input) = (self.source.bin_dir.join(&plugin.name), request.to_string());
        let program = Program {
            path: &path,
            args: &plugin.args,
            env: &plugin.env,
            input: input.as_bytes(),
            timeout: self.timeout,
            max_output: MAX_ANSWER_BYTES,
        };
        let Ended { success, output } = program.run().await?;
        if !success {
            return Err(Failure::denied(format!("kubelet plugin {} failed; run it by hand to see why", plugin.name)));
        }
        let answer = KubeletAnswer::parse(&output, &plugin.api_version);
        answer.map(Arc::new).map_err(|error| Failure::denied(format!("kubelet plugin {}: {error}", plugin.name)))
    }

    async fn read(&self) -> Result<KubeletConfig, Failure> {
        let path = &self.source.config;
        let refused = |reason: &str| unusable(format_args!("kubelet plugin config {}", path.display()), reason);
        let bytes = read(path.clone(), Audience::Anyone).await.map_err(|reason| refused(&reason))?;
        let bytes = bytes.ok_or_else(|| refused("there is no such file"))?;
        KubeletConfig::parse(&bytes).map_err(|error| refused(&error.to_string()))
    }

    pub(crate) const fn config(&self) -> &std::path::PathBuf {
        &self.source.config
    }

    /// Why the config cannot be used now, or which plugin is not there.
    pub(crate) async fn problem(&self) -> Option<String> {
        let config = match self.read().await {
            Ok(config) => config,
            Err(failure) => return Some(failure.reason),
        };
        let missing =
            config.plugins().iter().map(|plugin| self.source.bin_dir.join(&plugin.name)).find(|path| !path.is_file());
        missing.map(|path| {
            format!("kubelet plugin {} is not there; install it, or take it out of the config", path.display())
        })
    }
}

fn keep(answers: &mut Answers, key: (String, Keyed), kept: Kept) {
    if answers.len() >= MAX_ANSWERS {
        let now = Instant::now();
        answers.retain(|_, kept| now < kept.until);
        if answers.len() >= MAX_ANSWERS {
            answers.clear();
        }
    }
    answers.insert(key, kept);
}

#[cfg(test)]
pub(super) mod tests;

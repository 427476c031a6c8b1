//! The agent's config, and files with secrets that it names.

use std::path::{Path, PathBuf};

use super::check::Check;
use crate::{
    config::{Config, ConfigError, Loaded},
    serve::read_secret,
};

/// What was seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    /// Why it cannot be used.
    pub(super) fault: Option<String>,
    /// What the agent would warn of.
    pub(super) notices: Vec<String>,
    /// Files with secrets: the key that names each, and what is wrong with it.
    pub(super) secrets: Vec<(&'static str, PathBuf, Option<String>)>,
}

pub(super) fn look(loaded: Result<&Loaded, &ConfigError>, config: &Config) -> Settings {
    let secret = |key, path: &Option<PathBuf>| {
        let path = path.as_deref()?;
        Some((key, path.to_path_buf(), read_secret(path).err().map(|error| error.to_string())))
    };
    let files = [
        secret("api.token_file", &config.api_token_file),
        secret("api.tls_key", &config.api_tls_key),
        secret("credentials.file", &config.credentials.file),
        // Docker's own may be missing.
        secret("fetch.docker_config", &config.docker_config.clone().filter(|path| Path::exists(path))),
    ];
    Settings {
        fault: loaded.err().map(ToString::to_string),
        notices: loaded.map(|loaded| loaded.notices.clone()).unwrap_or_default(),
        secrets: files.into_iter().flatten().collect(),
    }
}

pub(super) fn judge(settings: &Settings) -> Vec<Check> {
    let name = "config";
    let mut checks = vec![match (&settings.fault, settings.notices.first()) {
        (Some(fault), _) => Check::failed(
            name,
            fault,
            "mend it: the agent does not start with it; docs/configuration.md lists all keys",
        ),
        (None, Some(notice)) => {
            Check::warning(name, notice, "take it out, or spell it as `penstock agent --print-config` does")
        }
        (None, None) => Check::ok(name, "every key is known, every value passes its check"),
    }];
    for (key, path, fault) in &settings.secrets {
        checks.push(match fault {
            None => Check::ok(*key, format!("{} can be read by nobody else", path.display())),
            // Docker writes its own, and others read it by Docker's rules.
            Some(fault) if *key == "fetch.docker_config" => Check::warning(*key, fault, "chmod 0600 it"),
            Some(fault) => Check::failed(*key, fault, "chmod 0600 it, and give it to root"),
        });
    }
    checks
}

//! A directory where Kubernetes mounts a secret of type `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`.
//!
//! Kubernetes swaps the whole content at once, by pointing the symbolic link `..data` elsewhere: it is followed once for each look,
//! so that what is read is of one version. Modes are not checked: a mounted secret is 0644 in a directory that only its container
//! sees. Helpers that such a config names are not run: who may write a secret may not choose what the agent runs.

use std::path::{Path, PathBuf};

use super::{
    Found, Provider, Wanted,
    docker::{DockerConfig, found},
    file::{self, Audience},
    unusable,
};
use crate::failure::Failure;

/// The files looked for, in this order, and whether each is in the old form.
const NAMES: [(&str, bool); 3] = [(".dockerconfigjson", false), (".dockercfg", true), ("config.json", false)];

/// A secret's directory as a provider.
#[derive(Debug)]
pub(crate) struct SecretDir {
    pub(crate) dir: PathBuf,
}

impl SecretDir {
    /// A directory that is not there has nothing: its secret may be optional.
    pub(crate) async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Found>, Failure> {
        let Some(config) = self.read().await? else { return Ok(Vec::new()) };
        let stored = config.stored(wanted.host, wanted.repository).map_err(|e| self.refused(&e.to_string()))?;
        Ok(found(Provider::SecretDir, vec![stored]))
    }

    async fn read(&self) -> Result<Option<DockerConfig>, Failure> {
        let dir = self.dir.clone();
        let read = tokio::task::spawn_blocking(move || read(&dir)).await;
        read.unwrap_or_else(|error| Err(error.to_string())).map_err(|reason| self.refused(&reason))
    }

    /// Why the secret cannot be used now.
    pub(crate) async fn problem(&self) -> Option<String> {
        self.read().await.err().map(|failure| failure.reason)
    }

    fn refused(&self, reason: &str) -> Failure {
        unusable(format_args!("the secret in {}", self.dir.display()), reason)
    }
}

fn read(dir: &Path) -> Result<Option<DockerConfig>, String> {
    // A plain directory has no such link and is read as it is.
    let version = dir.join("..data").canonicalize().unwrap_or_else(|_| dir.to_owned());
    for (name, is_old) in NAMES {
        let Some(bytes) = file::read(&version.join(name), Audience::Anyone)? else { continue };
        let parsed = if is_old { DockerConfig::parse_old(&bytes) } else { DockerConfig::parse(&bytes) };
        return parsed.map(Some).map_err(|error| format!("{name}: {error}"));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Credential, Secret};

    async fn find(dir: &Path) -> Vec<Credential> {
        let dir = SecretDir { dir: dir.to_owned() };
        let wanted = Wanted { host: "r.io", repository: "x" };
        dir.find(wanted).await.unwrap().into_iter().map(|found| found.credential).collect()
    }

    fn basic(password: &str) -> Vec<Credential> {
        vec![Credential::Basic { user: "u".to_owned(), password: Secret::new(password.to_owned()) }]
    }

    #[tokio::test]
    async fn each_type_of_secret_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path()).await, []);
        assert_eq!(find(&dir.path().join("missing")).await, []);
        for (name, text) in [
            ("config.json", r#"{"auths": {"r.io": {"auth": "dTpw"}}, "credsStore": "never-run"}"#),
            (".dockercfg", r#"{"https://r.io": {"username": "u", "password": "q", "email": "e"}}"#),
            (".dockerconfigjson", r#"{"auths": {"r.io": {"username": "u", "password": "r"}}}"#),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        assert_eq!(find(dir.path()).await, basic("r"));
        std::fs::remove_file(dir.path().join(".dockerconfigjson")).unwrap();
        assert_eq!(find(dir.path()).await, basic("q"));
        std::fs::remove_file(dir.path().join(".dockercfg")).unwrap();
        assert_eq!(find(dir.path()).await, basic("p"));
        std::fs::write(dir.path().join("config.json"), "hunter2").unwrap();
        let problem = SecretDir { dir: dir.path().to_owned() }.problem().await.unwrap();
        assert!(problem.contains("config.json") && !problem.contains("hunter2"), "{problem}");
    }

    #[tokio::test]
    async fn a_new_version_is_seen_when_the_link_is_swapped() {
        // As kubelet's AtomicWriter lays it out: file -> ..data/file, ..data -> ..TIMESTAMP.
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, at(name)).unwrap();
        for (version, password) in [("..2026_1", "p"), ("..2026_2", "q")] {
            std::fs::create_dir(at(version)).unwrap();
            let json = format!(r#"{{"auths": {{"r.io": {{"username": "u", "password": "{password}"}}}}}}"#);
            std::fs::write(at(version).join(".dockerconfigjson"), json).unwrap();
        }
        link("..2026_1", "..data");
        link("..data/.dockerconfigjson", ".dockerconfigjson");
        assert_eq!(find(dir.path()).await, basic("p"));
        link("..2026_2", "..data_tmp");
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert_eq!(find(dir.path()).await, basic("q"));
    }
}

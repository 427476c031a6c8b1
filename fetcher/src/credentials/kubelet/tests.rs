//! Plugins as real programs, and configs by table.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::*;
use crate::failure::Class;

/// One plugin for every host in .io.
pub(in crate::credentials) const CONFIG: &str = "\
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: kubelet-plugin
    matchImages: ['*.io', '*.*.io/team']
    defaultCacheDuration: 12h
    apiVersion: credentialprovider.kubelet.k8s.io/v1
";

struct Scene {
    dir: tempfile::TempDir,
    kubelet: Kubelet,
}

/// The plugin, with these variables and one argument.
fn scene(env: &[(&str, &str)], timeout: Duration) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let requests = dir.path().join("requests").display().to_string();
    let mut text =
        format!("{CONFIG}    args: ['--flag', 'a b']\n    env:\n    - {{name: REQUESTS, value: '{requests}'}}\n");
    for (name, value) in env {
        text.push_str(&format!("    - name: {name}\n      value: {value}\n"));
    }
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, text).unwrap();
    let bin_dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/helpers");
    Scene { dir, kubelet: Kubelet::new(KubeletSource { config, bin_dir }, timeout) }
}

impl Scene {
    async fn find(&self, host: &str, repository: &str) -> Result<Vec<String>, Failure> {
        let offered = self.kubelet.find(Wanted { host, repository }).await?;
        Ok(offered
            .into_iter()
            .map(|found| match found.credential {
                Credential::Basic { user, .. } => user,
                other => panic!("{other:?}"),
            })
            .collect())
    }

    /// What the plugin was run with, a line for each run.
    fn runs(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("requests")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_plugin_is_asked_as_the_kubelet_asks_it() {
    let scene = scene(&[], LONG);
    assert_eq!(scene.find("plugin.io", "x/y").await.unwrap(), ["longer", "plugin"], "the longest first");
    let request = r#"{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"plugin.io/x/y","kind":"CredentialProviderRequest"}"#;
    assert_eq!(scene.runs(), [format!("--flag a b {request}")]);
    assert_eq!(scene.find("r.example.com", "x").await.unwrap(), [""; 0], "no glob is for it");
    assert_eq!(scene.find("a.b.io", "other").await.unwrap(), [""; 0]);
    assert_eq!(scene.runs().len(), 1);
}

#[tokio::test]
async fn answers_are_kept_for_what_they_say() {
    for (key, runs) in [("Image", 3), ("Registry", 2), ("Global", 1)] {
        let scene = scene(&[("KEY", key)], LONG);
        for (host, repository) in [("r.io", "a"), ("r.io", "b"), ("s.io", "a"), ("r.io", "a"), ("s.io", "a")] {
            assert_eq!(scene.find(host, repository).await.unwrap(), ["plugin"]);
        }
        assert_eq!(scene.runs().len(), runs, "{key}");
    }
    let scene = scene(&[("LIFE", "0s")], LONG);
    scene.find("r.io", "a").await.unwrap();
    scene.find("r.io", "a").await.unwrap();
    assert_eq!(scene.runs().len(), 2, "not kept at all");
}

#[tokio::test]
async fn a_crowd_runs_a_plugin_once() {
    let scene = scene(&[], LONG);
    let all = futures_util::future::join_all((0..16).map(|n| {
        let (scene, repository) = (&scene, format!("r{n}"));
        async move { scene.find("r.io", &repository).await }
    }));
    assert!(all.await.iter().all(Result::is_ok));
    assert_eq!(scene.runs().len(), 1);
}

#[tokio::test]
async fn plugins_that_fail_are_named_and_not_run_again_at_once() {
    let scene = scene(&[("SECRET", "hunter2")], LONG);
    for host in ["garbage.io", "large.io", "broken.io"] {
        for _ in 0..3 {
            let failure = scene.find(host, "x").await.unwrap_err();
            assert_eq!(failure.class, Class::Denied, "{host}");
            assert!(
                failure.reason.contains("kubelet-plugin") && !failure.reason.contains("hunter2"),
                "{}",
                failure.reason
            );
        }
    }
    assert_eq!(scene.runs().len(), 3);
    assert_eq!(scene.find("nothing.io", "x").await.unwrap(), [""; 0]);
    assert!(!format!("{:?} {:?}", scene.kubelet, scene.kubelet.read().await.unwrap()).contains("hunter2"));
}

#[tokio::test]
async fn a_plugin_that_hangs_is_given_up() {
    let scene = scene(&[], Duration::from_millis(300));
    assert_eq!(scene.find("hang.io", "x").await.unwrap_err().class, Class::Timeout);
}

#[tokio::test]
async fn another_version_than_asked_for_is_refused() {
    let scene = scene(&[("VERSION", "credentialprovider.kubelet.k8s.io/v1beta1")], LONG);
    assert!(scene.find("r.io", "x").await.unwrap_err().reason.contains("another version"));
}

#[tokio::test]
async fn a_config_that_changes_is_read_again_and_a_missing_plugin_is_said() {
    let scene = scene(&[], LONG);
    assert_eq!(scene.kubelet.problem().await, None);
    let config = scene.dir.path().join("config.yaml");
    std::fs::write(&config, CONFIG.replace("kubelet-plugin", "missing-plugin")).unwrap();
    assert!(scene.kubelet.problem().await.unwrap().contains("missing-plugin"));
    assert_eq!(scene.find("r.io", "x").await.unwrap_err().class, Class::Denied);
    std::fs::remove_file(&config).unwrap();
    assert!(scene.kubelet.problem().await.unwrap().contains("there is no such file"));
}

#[tokio::test]
async fn of_several_plugins_one_that_fails_does_not_hide_the_others() {
    let scene = scene(&[], LONG);
    let bin = scene.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/helpers/kubelet-plugin");
    std::fs::copy(plugin, bin.join("kubelet-plugin")).unwrap();
    std::fs::write(bin.join("broken-plugin"), "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(bin.join("broken-plugin"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (head, provider) = CONFIG.split_at(CONFIG.find("  - name").unwrap());
    let text = format!("{head}{}{provider}", provider.replace("kubelet-plugin", "broken-plugin"));
    let config = scene.dir.path().join("two.yaml");
    std::fs::write(&config, text).unwrap();
    let two = Scene { kubelet: Kubelet::new(KubeletSource { config, bin_dir: bin }, LONG), dir: scene.dir };
    assert_eq!(two.find("r.io", "x").await.unwrap(), ["plugin"]);
}

#[test]
fn configs_are_read_in_every_version_as_yaml_and_json() {
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let text = CONFIG.replace("/v1\n", &format!("/{version}\n"));
        let config = KubeletConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.asked_about("r.io", "x"), ["kubelet-plugin"]);
        assert_eq!(config.plugins()[0].default_lifetime, Duration::from_secs(43_200));
        assert_eq!(config.plugins()[0].api_version, format!("credentialprovider.kubelet.k8s.io/{version}"));
    }
    let json = r#"{"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": [{
        "name": "ecr-credential-provider", "matchImages": ["*.dkr.ecr.*.amazonaws.com", "*.dkr.ecr.*.amazonaws.com.cn"],
        "defaultCacheDuration": "12h", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "args": null,
        "env": [{"name": "AWS_PROFILE", "value": "example"}]}]}"#;
    let config = KubeletConfig::parse(json.as_bytes()).unwrap();
    assert_eq!(config.asked_about("123.dkr.ecr.eu-west-1.amazonaws.com", "app"), ["ecr-credential-provider"]);
}

#[test]
fn configs_that_the_kubelet_would_refuse_are_refused_with_their_reason() {
    for (change, to, reason) in [
        ("kubelet.config.k8s.io/v1\n", "kubelet.config.k8s.io/v2\n", "v2"),
        ("CredentialProviderConfig", "KubeletConfiguration", "KubeletConfiguration"),
        ("kubelet-plugin", "../plugin", "plugin directory"),
        ("kubelet-plugin", "''", "plugin directory"),
        ("['*.io', '*.*.io/team']", "[]", "matchImages"),
        ("'*.io'", "'a[b.io'", "glob"),
        ("12h", "soon", "defaultCacheDuration"),
        ("    defaultCacheDuration: 12h\n", "", "defaultCacheDuration"),
        ("credentialprovider.kubelet.k8s.io/v1", "v1", "apiVersion"),
        (
            "    defaultCacheDuration",
            "    tokenAttributes: {serviceAccountTokenAudience: a}\n    defaultCacheDuration",
            "service account",
        ),
        ("    defaultCacheDuration", "    env: [{name: 'a=b', value: hunter2}]\n    defaultCacheDuration", "env"),
        ("providers:", "providers: [hunter2", "line"),
    ] {
        let text = CONFIG.replace(change, to);
        assert_ne!(text, CONFIG, "{change}");
        let error = KubeletConfig::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(reason) && !error.contains("hunter2"), "{change} -> {to}: {error}");
    }
    let twice = format!("{CONFIG}{}", &CONFIG[CONFIG.find("  - name").unwrap()..]);
    assert!(KubeletConfig::parse(twice.as_bytes()).unwrap_err().to_string().contains("twice"));
    // References to references: the whole would be 10^9 entries.
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for n in 1..9 {
        bomb.push_str(&format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(",")));
    }
    assert!(KubeletConfig::parse(bomb.as_bytes()).is_err());
}

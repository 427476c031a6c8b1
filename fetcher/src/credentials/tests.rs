//! Docker configs, by table, helpers as real programs, and the order of providers.

use std::time::Duration;

use super::{
    docker::{Docker, DockerConfig, DockerConfigError},
    settings::CredentialSources,
    *,
};
use crate::failure::Class;

/// What docker calls its own registry in its config.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

fn basic(user: &str, password: &str) -> Credential {
    Credential::Basic { user: user.to_owned(), password: Secret::new(password.to_owned()) }
}

fn config(json: &str) -> DockerConfig {
    DockerConfig::parse(json.as_bytes()).unwrap()
}

#[test]
fn keys_are_found_in_every_spelling() {
    for (key, host, repository) in [
        ("https://index.docker.io/v1/", "registry-1.docker.io", "library/alpine"),
        ("docker.io", "registry-1.docker.io", "library/alpine"),
        ("ghcr.io", "ghcr.io", "a/b"),
        ("https://ghcr.io", "ghcr.io", "a/b"),
        ("https://ghcr.io/v2/", "ghcr.io", "a/b"),
        ("http://localhost:5000/", "localhost:5000", "x"),
        ("GHCR.io/a", "ghcr.io", "a/b"),
        ("ghcr.io/a/b", "ghcr.io", "a/b"),
    ] {
        // "u:p"
        let config = config(&format!(r#"{{"auths": {{"{key}": {{"auth": "dTpw"}}}}}}"#));
        assert_eq!(config.stored(host, repository).unwrap(), basic("u", "p"), "{key}");
    }
}

#[test]
fn other_registries_and_paths_get_nothing() {
    let config = config(r#"{"auths": {"ghcr.io/a": {"auth": "dTpw"}, "example.com:5000": {"auth": "dTpw"}}}"#);
    for (host, repository) in
        [("ghcr.io", "b"), ("ghcr.io", "ab/c"), ("example.com", "x"), ("xghcr.io", "a"), ("quay.io", "a")]
    {
        assert_eq!(config.stored(host, repository).unwrap(), Credential::Anonymous, "{host}/{repository}");
    }
}

#[test]
fn the_longest_path_wins_and_tokens_are_told_apart() {
    let config = config(
        r#"{"auths": {
            "r.io": {"username": "u", "password": "p"},
            "r.io/a": {"identitytoken": "i", "auth": "dTpw"},
            "r.io/a/b": {"registrytoken": "t"},
            "r.io/empty": {}
        }, "HttpHeaders": {"x": "y"}, "detachKeys": "ctrl-x"}"#,
    );
    assert_eq!(config.stored("r.io", "z").unwrap(), basic("u", "p"));
    assert_eq!(config.stored("r.io", "a/c").unwrap(), Credential::Identity(Secret::new("i".to_owned())));
    assert_eq!(config.stored("r.io", "a/b/c").unwrap(), Credential::Token(Secret::new("t".to_owned())));
    assert_eq!(config.stored("r.io", "empty").unwrap(), Credential::Anonymous);
}

#[test]
fn broken_configs_are_refused_without_repeating_them() {
    for bad in ["", "hunter2", "{\"auths\": \"hunter2\"}", "{\"auths\": {\"r\": {\"auth\": [\"hunter2\"]}}}", "[]"] {
        let error = DockerConfig::parse(bad.as_bytes()).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
    for bad in ["%%%", "aHVudGVyMg==", "//8="] {
        let config = config(&format!(r#"{{"auths": {{"r.io": {{"auth": "{bad}"}}}}}}"#));
        assert_eq!(config.stored("r.io", "x"), Err(DockerConfigError::Auth { key: "r.io".to_owned() }));
    }
}

#[test]
fn a_helper_of_the_host_goes_before_the_store() {
    let config =
        config(r#"{"credHelpers": {"gcr.io": "gcr", "https://index.docker.io/v1/": "hub"}, "credsStore": "store"}"#);
    assert_eq!(config.helper("gcr.io"), Some(("gcr", "gcr.io".to_owned())));
    assert_eq!(config.helper("registry-1.docker.io"), Some(("hub", DOCKER_HUB_KEY.to_owned())));
    assert_eq!(config.helper("quay.io"), Some(("store", "quay.io".to_owned())));
    assert_eq!(DockerConfig::default().helper("quay.io"), None);
}

fn helpers() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/helpers")
}

fn docker(dir: &tempfile::TempDir, json: &str) -> Docker {
    let path = dir.path().join("config.json");
    std::fs::write(&path, json).unwrap();
    Docker::new(path, Some(helpers()), Duration::from_secs(20))
}

async fn find(docker: &Docker, host: &str) -> Result<Credential, Failure> {
    let offered = docker.find(Wanted { host, repository: "x" }).await?;
    Ok(offered.into_iter().next().map_or(Credential::Anonymous, |found| found.credential))
}

#[tokio::test]
async fn helpers_are_asked_and_the_file_is_what_remains() {
    let dir = tempfile::tempdir().unwrap();
    let docker = docker(&dir, r#"{"auths": {"b.io": {"auth": "dTpw"}}, "credsStore": "test"}"#);
    assert_eq!(find(&docker, "a.io").await.unwrap(), basic("user-of-a.io", "hunter2"));
    assert_eq!(find(&docker, "token.io").await.unwrap(), Credential::Identity(Secret::new("hunter2".to_owned())));
    assert_eq!(find(&docker, "b.io").await.unwrap(), basic("u", "p"));
    for server in ["broken.io", "endless.io", "garbage.io", "large.io"] {
        let failure = find(&docker, server).await.unwrap_err();
        assert_eq!(failure.class, Class::Denied, "{server}: {}", failure.reason);
        assert!(!failure.reason.contains("hunter2"), "{}", failure.reason);
    }
}

#[tokio::test]
async fn a_helper_that_hangs_is_given_up_with_all_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let mut docker = docker(&dir, r#"{"credsStore": "test"}"#);
    docker.timeout = Duration::from_millis(300);
    let failure = find(&docker, "hang.io").await.unwrap_err();
    assert_eq!(failure.class, Class::Timeout, "{}", failure.reason);
    // A second time it is not run again: the answer is there at once.
    docker.timeout = Duration::from_secs(3600);
    assert_eq!(find(&docker, "hang.io").await.unwrap_err().class, Class::Timeout);
}

#[tokio::test]
async fn a_helper_that_is_missing_or_no_plain_word_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["missing", "../test", "a b"] {
        let docker = docker(&dir, &format!(r#"{{"credsStore": "{name}"}}"#));
        assert_eq!(find(&docker, "a.io").await.unwrap_err().class, Class::Denied, "{name}");
    }
}

#[tokio::test]
async fn new_credentials_are_picked_up_and_no_file_is_anonymous() {
    let dir = tempfile::tempdir().unwrap();
    let docker = docker(&dir, r#"{"auths": {"r.io": {"auth": "dTpw"}}}"#);
    assert_eq!(find(&docker, "r.io").await.unwrap(), basic("u", "p"));
    std::fs::write(&docker.config, r#"{"auths": {"r.io": {"auth": "dTpx"}}}"#).unwrap();
    assert_eq!(find(&docker, "r.io").await.unwrap(), basic("u", "q"));
    std::fs::write(&docker.config, "x".repeat(2 << 20)).unwrap();
    assert_eq!(find(&docker, "r.io").await.unwrap_err().class, Class::Denied);
    std::fs::remove_file(&docker.config).unwrap();
    assert_eq!(find(&docker, "r.io").await.unwrap(), Credential::Anonymous);
}

/// A chain of all providers over files in `dir`, each with credentials of its own for r.io, and one alone for a host of its name.
fn full_chain(dir: &std::path::Path) -> Chain {
    use std::os::unix::fs::PermissionsExt as _;
    let write = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        dir.join(name)
    };
    let toml = |scope: &str| format!("[[credential]]\nscope = \"{scope}\"\nusername = \"static\"\npassword = \"p\"\n");
    let json = |user: &str, scope: &str| {
        format!(
            r#"{{"auths": {{"r.io": {{"username": "{user}", "password": "p"}}, "{scope}": {{"username": "{user}", "password": "p"}}}}}}"#
        )
    };
    std::fs::create_dir(dir.join("secret")).unwrap();
    write("secret/.dockerconfigjson", &json("secret", "secret.example.com"));
    let settings = CredentialSources {
        static_file: Some(write("static.toml", &(toml("r.io") + &toml("static.io")))),
        docker_config: Some(write("config.json", &json("docker", "docker.io"))),
        kubelet: Some(settings::KubeletSource {
            config: write("plugins.yaml", kubelet::tests::CONFIG),
            bin_dir: helpers(),
        }),
        secret_dirs: vec![dir.join("secret")],
        ..CredentialSources::default()
    };
    let chain = Chain::new(&settings);
    for scope in ["r.io", "api.io"] {
        chain
            .handed_over()
            .take(scope.parse().unwrap(), (basic("api", "p"), None), std::time::SystemTime::now())
            .unwrap();
    }
    chain
}

#[tokio::test]
async fn providers_are_asked_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let chain = full_chain(dir.path());
    let mut order = Vec::new();
    for source in chain.sources() {
        let offered = source.find(Wanted { host: "r.io", repository: "x" }).await.unwrap();
        order.extend(offered.into_iter().map(|found| found.provider));
    }
    let all =
        [Provider::Api, Provider::StaticFile, Provider::DockerConfig, Provider::KubeletPlugin, Provider::SecretDir];
    assert_eq!(order, all);
    assert!(order.is_sorted(), "as the documentation of the enum says");
    for (host, provider) in [
        ("r.io", Provider::Api),
        ("api.io", Provider::Api),
        ("static.io", Provider::StaticFile),
        ("registry-1.docker.io", Provider::DockerConfig),
        ("plugin.io", Provider::KubeletPlugin),
        ("secret.example.com", Provider::SecretDir),
        ("nobody.example.com", Provider::Anonymous),
    ] {
        let found = chain.first(Wanted { host, repository: "x" }).await.unwrap();
        assert_eq!(found.provider, provider, "{host}");
    }
}

#[tokio::test]
async fn a_provider_that_cannot_be_used_is_named_and_does_not_hide_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let chain = full_chain(dir.path());
    assert!(chain.states().await.iter().all(|state| state.problem.is_none()), "{:?}", chain.states().await);
    for name in ["static.toml", "config.json", "plugins.yaml", "secret/.dockerconfigjson"] {
        std::fs::write(dir.path().join(name), "hunter2: [").unwrap();
    }
    for state in chain.states().await.iter().skip(1) {
        let problem = state.problem.as_deref().unwrap();
        assert!(problem.contains(&state.place.as_ref().unwrap().display().to_string()), "{problem}");
        assert!(!problem.contains("hunter2"), "{problem}");
    }
    assert_eq!(chain.first(Wanted { host: "api.io", repository: "x" }).await.unwrap().provider, Provider::Api);
    let failure = chain.first(Wanted { host: "nobody.io", repository: "x" }).await.unwrap_err();
    assert!(failure.reason.contains("static.toml"), "{}", failure.reason);
}

#[test]
fn fingerprints_tell_credentials_apart() {
    let prints = Fingerprints::default();
    assert_eq!(prints.of(&basic("u", "p")), prints.of(&basic("u", "p")));
    let token = |text: &str| Secret::new(text.to_owned());
    for other in [basic("u", "q"), basic("v", "p"), Credential::Identity(token("p")), Credential::Token(token("p"))] {
        assert_ne!(prints.of(&basic("u", "p")), prints.of(&other));
    }
    assert_ne!(prints.of(&Credential::Identity(token("p"))), prints.of(&Credential::Token(token("p"))));
}

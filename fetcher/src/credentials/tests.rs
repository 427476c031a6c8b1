//! Docker configs, by table, and helpers as real programs.

use super::*;
use crate::failure::Class;

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
    assert_eq!(super::DockerConfig::default().helper("quay.io"), None);
}

fn credentials(dir: &tempfile::TempDir, json: &str) -> Credentials {
    let path = dir.path().join("config.json");
    std::fs::write(&path, json).unwrap();
    let helpers = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/helpers");
    Credentials { config: Some(path), helpers: Some(helpers), patience: Duration::from_secs(20) }
}

#[tokio::test]
async fn helpers_are_asked_and_the_file_is_what_remains() {
    let dir = tempfile::tempdir().unwrap();
    let json = r#"{"auths": {"b.io": {"auth": "dTpw"}}, "credsStore": "test"}"#;
    let credentials = credentials(&dir, json);
    assert_eq!(credentials.find("a.io", "x").await.unwrap(), basic("user-of-a.io", "hunter2"));
    assert_eq!(
        credentials.find("token.io", "x").await.unwrap(),
        Credential::Identity(Secret::new("hunter2".to_owned()))
    );
    assert_eq!(credentials.find("b.io", "x").await.unwrap(), basic("u", "p"));
    let failure = credentials.find("broken.io", "x").await.unwrap_err();
    assert_eq!(failure.class, Class::Denied);
    assert!(!failure.reason.contains("hunter2"), "{}", failure.reason);
    let failure = credentials.find("endless.io", "x").await.unwrap_err();
    assert_eq!(failure.class, Class::Denied, "an endless answer is cut");
}

#[tokio::test]
async fn a_helper_that_hangs_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut credentials = credentials(&dir, r#"{"credsStore": "test"}"#);
    credentials.patience = Duration::from_millis(50);
    assert_eq!(credentials.find("hang.io", "x").await.unwrap_err().class, Class::Timeout);
}

#[tokio::test]
async fn a_helper_that_is_missing_or_no_plain_word_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["missing", "../test", "a b"] {
        let credentials = credentials(&dir, &format!(r#"{{"credsStore": "{name}"}}"#));
        assert_eq!(credentials.find("a.io", "x").await.unwrap_err().class, Class::Denied, "{name}");
    }
}

#[tokio::test]
async fn new_credentials_are_picked_up_and_no_file_is_anonymous() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = credentials(&dir, r#"{"auths": {"r.io": {"auth": "dTpw"}}}"#);
    assert_eq!(credentials.find("r.io", "x").await.unwrap(), basic("u", "p"));
    let path = credentials.config.clone().unwrap();
    std::fs::write(&path, r#"{"auths": {"r.io": {"auth": "dTpx"}}}"#).unwrap();
    assert_eq!(credentials.find("r.io", "x").await.unwrap(), basic("u", "q"));
    std::fs::write(&path, "x".repeat(2 << 20)).unwrap();
    assert_eq!(credentials.find("r.io", "x").await.unwrap_err().class, Class::Denied);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(credentials.find("r.io", "x").await.unwrap(), Credential::Anonymous);
}

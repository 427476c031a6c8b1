//! Logging in: Basic, tokens, renewals, docker configs.

use std::time::Duration;

use futures_util::future::join_all;
use penstock_blob::ReadError;
use penstock_fetcher::{Config, CredentialSources};
use penstock_registry::{Auth, Config as RegistryConfig, Credentials, Fault, Redirect};
use tempfile::TempDir;

use crate::support::{Scene, config, hasty};

/// base64 of `user:hunter2`
const AUTH: &str = "dXNlcjpodW50ZXIy";

fn credentials() -> Credentials {
    Credentials::new("user", "hunter2")
}

fn tokens(ttl: Duration) -> RegistryConfig {
    RegistryConfig { auth: Auth::Token { credentials: Some(credentials()), ttl }, ..RegistryConfig::default() }
}

/// A scene whose fetcher reads a docker config, written afterwards: the registry's port is only known then.
async fn scene(registry: RegistryConfig, auth: &str) -> (Scene, TempDir) {
    scene_with(config(), registry, auth).await
}

async fn scene_with(config: Config, registry: RegistryConfig, auth: &str) -> (Scene, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let credentials = CredentialSources { docker_config: Some(path), ..CredentialSources::default() };
    let config = Config { credentials, ..config };
    let scene = Scene::new(1 << 20, registry, config).await;
    write(&scene, &dir, auth);
    (scene, dir)
}

fn write(scene: &Scene, dir: &TempDir, auth: &str) {
    let json = format!(r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#, scene.registry.host());
    std::fs::write(dir.path().join("config.json"), json).unwrap();
}

#[tokio::test]
async fn basic_credentials_are_shown_when_asked_for_and_then_always() {
    let registry = RegistryConfig { auth: Auth::Basic(credentials()), ..RegistryConfig::default() };
    let (scene, _dir) = scene(registry, AUTH).await;
    scene.good(0, 10).await;
    scene.good(10, 20).await;
    let statuses: Vec<u16> = scene.registry.requests().iter().map(|r| r.status).collect();
    assert_eq!(statuses, [401, 206, 206]);
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_by_all() {
    let (scene, _dir) = scene(tokens(Duration::from_secs(600)), AUTH).await;
    join_all((0..8).map(|at| scene.good(at * 100_000, at * 100_000 + 10))).await;
    scene.good(5, 6).await;
    assert_eq!(scene.registry.counts().token_requests, 1);
}

#[tokio::test]
async fn a_revoked_token_is_renewed_once_for_all() {
    let (scene, _dir) = scene(tokens(Duration::from_secs(600)), AUTH).await;
    scene.good(0, 10).await;
    scene.registry.revoke_tokens();
    join_all((0..8).map(|at| scene.good(at * 100_000, at * 100_000 + 10))).await;
    assert_eq!(scene.registry.counts().token_requests, 2);
    assert_eq!(scene.fetcher.fetched().failures, 0, "a renewal is no failure");
}

#[tokio::test]
async fn a_token_near_its_end_is_renewed_without_being_refused() {
    let (scene, _dir) = scene(tokens(Duration::from_secs(60)), AUTH).await;
    scene.good(0, 10).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(50)).await;
    tokio::time::resume();
    scene.good(10, 20).await;
    let refused = scene.registry.requests().iter().filter(|request| request.status == 401).count();
    assert_eq!((refused, scene.registry.counts().token_requests), (1, 2));
}

#[tokio::test]
async fn a_pass_that_is_forbidden_is_renewed_once() {
    let (scene, _dir) = scene_with(hasty(), tokens(Duration::from_secs(600)), AUTH).await;
    scene.good(0, 10).await;
    scene.registry.fail(Fault::Status(403));
    scene.good(0, 10).await;
    assert_eq!(scene.registry.counts().token_requests, 2);
    scene.registry.fail(Fault::Status(403).always());
    let error = scene.read(0, 10).await.unwrap_err();
    assert!(matches!(error, ReadError::Deadline { .. }) && error.to_string().contains("403"), "{error}");
    assert_eq!(scene.registry.counts().token_requests, 3, "however often it was tried until the deadline");
}

#[tokio::test]
async fn an_unasked_401_is_answered_once_and_waited_out() {
    let (scene, _dir) = scene_with(hasty(), tokens(Duration::from_secs(600)), AUTH).await;
    scene.registry.fail(Fault::Unauthorized.times(1));
    scene.good(0, 10).await;
    scene.registry.fail(Fault::Unauthorized.always());
    let error = scene.read(0, 10).await.unwrap_err();
    assert!(matches!(error, ReadError::Deadline { .. }) && error.to_string().contains("docker-config"), "{error}");
    scene.registry.clear_faults();
    scene.good(0, 10).await;
}

#[tokio::test]
async fn wrong_credentials_are_denied_and_never_shown() {
    // "user:wrong-one"
    let wrong = "dXNlcjp3cm9uZy1vbmU=";
    let basic = RegistryConfig { auth: Auth::Basic(credentials()), ..RegistryConfig::default() };
    for registry in [basic, tokens(Duration::from_secs(600))] {
        let (scene, _dir) = scene(registry, wrong).await;
        let error = scene.read(0, 10).await.unwrap_err();
        assert!(matches!(error, ReadError::Denied { .. }), "{error}");
        let shown = format!("{error} {error:?} {:?}", scene.fetcher);
        assert!(!shown.contains("wrong-one") && !shown.contains(wrong), "{shown}");
    }
}

#[tokio::test]
async fn new_credentials_are_picked_up_without_a_restart() {
    for registry in [
        RegistryConfig { auth: Auth::Basic(credentials()), ..RegistryConfig::default() },
        tokens(Duration::from_secs(600)),
    ] {
        let (scene, dir) = scene(registry, "dXNlcjp3cm9uZw==").await;
        assert!(matches!(scene.read(0, 10).await, Err(ReadError::Denied { .. })));
        write(&scene, &dir, AUTH);
        scene.good(0, 10).await;
    }
}

#[tokio::test]
async fn without_credentials_a_login_is_asked_for() {
    for registry in [
        RegistryConfig { auth: Auth::Basic(credentials()), ..RegistryConfig::default() },
        tokens(Duration::from_secs(600)),
    ] {
        let scene = Scene::new(1000, registry, config()).await;
        let error = scene.read(0, 10).await.unwrap_err();
        assert!(matches!(error, ReadError::Denied { .. }), "{error}");
        assert!(error.to_string().contains("check the credentials"), "{error}");
    }
}

#[tokio::test]
async fn a_token_never_goes_where_a_redirect_leads() {
    // The registry's storage answers 400 to a request that carries an Authorization header, on its own port or another.
    for other_port in [true, false] {
        let redirect = Some(Redirect { ttl: Duration::from_secs(600), other_port });
        let (scene, _dir) = scene(RegistryConfig { redirect, ..tokens(Duration::from_secs(600)) }, AUTH).await;
        scene.good(0, 10).await;
        scene.good(100_000, 100_010).await;
        let counts = scene.registry.counts();
        assert_eq!((counts.token_requests, counts.storage_requests), (1, 2));
    }
}

#[tokio::test]
async fn a_token_server_that_fails_is_asked_again() {
    let (scene, _dir) = scene(tokens(Duration::from_secs(600)), AUTH).await;
    scene
        .registry
        .fail(Fault::Status(503).on(penstock_registry::Target::Kind(penstock_registry::Kind::Token)).times(2));
    scene.good(0, 10).await;
    assert_eq!(scene.registry.counts().token_requests, 3);
}

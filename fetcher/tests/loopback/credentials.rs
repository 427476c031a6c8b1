//! Where credentials come from, how they are renewed while reads go on, and what becomes of those that are refused.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use penstock_blob::{BlobSource as _, Purpose, ReadError};
use penstock_fetcher::{Config, Credential, CredentialSources, Event, Fetcher, Platform, Provider, Secret};
use penstock_registry::{Auth, Config as RegistryConfig, Credentials, Fault, Kind, Redirect, Target};
use tempfile::TempDir;
use tokio::sync::broadcast::Receiver;

use crate::support::{Scene, config, range, reference};

fn account(password: &str) -> Option<Credentials> {
    Some(Credentials::new("user", password))
}

fn tokens(password: &str, ttl: Duration) -> Auth {
    Auth::Token { credentials: account(password), ttl }
}

const LONG: Duration = Duration::from_secs(600);

/// A registry, a fetcher with a static file and a docker config, both empty at first, and what the fetcher says.
struct Stage {
    scene: Scene,
    dir: TempDir,
    events: Receiver<Event>,
}

impl Stage {
    async fn new(auth: Auth) -> Self {
        Self::with(RegistryConfig { auth, ..RegistryConfig::default() }, config()).await
    }

    async fn with(registry: RegistryConfig, config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let credentials = CredentialSources {
            static_file: Some(dir.path().join("static.toml")),
            docker_config: Some(dir.path().join("config.json")),
            ..CredentialSources::default()
        };
        let scene = Scene::new(1 << 20, registry, Config { credentials, ..config }).await;
        let events = scene.fetcher.events();
        Self { scene, dir, events }
    }

    fn host(&self) -> String {
        self.scene.registry.host()
    }

    /// Puts the whole file there at once, as whoever rotates a password does.
    fn put(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let (path, new) = (self.dir.path().join(name), self.dir.path().join("new"));
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(new, &path).unwrap();
        path
    }

    fn put_static(&self, password: &str) -> PathBuf {
        let host = self.host();
        self.put(
            "static.toml",
            &format!("[[credential]]\nscope = \"{host}\"\nusername = \"user\"\npassword = \"{password}\"\n"),
        )
    }

    fn put_docker(&self, password: &str) -> PathBuf {
        let host = self.host();
        self.put(
            "config.json",
            &format!(r#"{{"auths": {{"{host}": {{"username": "user", "password": "{password}"}}}}}}"#),
        )
    }

    async fn hand_over(&self, credential: Credential, expires: Option<SystemTime>) {
        let scope = self.host().parse().unwrap();
        self.scene.fetcher.hand_over(scope, credential, expires).await.unwrap();
    }

    /// The events so far.
    fn said(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    /// A read that others go on beside.
    fn reading(&self, start: u64) -> tokio::task::JoinHandle<Result<bytes::Bytes, ReadError>> {
        let (fetcher, blob): (Arc<Fetcher>, _) = (self.scene.fetcher.clone(), self.scene.blob);
        tokio::runtime::Handle::current()
            .spawn(async move { fetcher.read(blob, range(start, start + 10), Purpose::Demand).await })
    }

    /// Why an image cannot be found: there is none.
    async fn resolve(&self, repository: &str) -> String {
        let reference = reference(&self.scene.registry, repository);
        self.scene.fetcher.resolve(&reference, &Platform::host()).await.unwrap_err().to_string()
    }

    fn token_requests(&self) -> u64 {
        self.scene.registry.counts().token_requests
    }
}

fn password(text: &str) -> Credential {
    Credential::Basic { user: "user".to_owned(), password: Secret::new(text.to_owned()) }
}

async fn advance(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

/// Reads of 8 readers at a time, for 20 s of the registry's clock, with tokens that live 2 s.
async fn read_with_short_tokens(stage: &Stage) {
    for round in 0..40 {
        join_all((0..8).map(|reader| {
            let start = round * 8 + reader * 100_000;
            stage.scene.good(start, start + 8)
        }))
        .await;
        advance(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn reads_never_fail_while_tokens_live_for_seconds() {
    let stage = Stage::new(tokens("hunter2", Duration::from_secs(2))).await;
    stage.put_static("hunter2");
    read_with_short_tokens(&stage).await;
    assert_eq!(stage.scene.fetcher.fetched().failures, 0);
    let refused = stage.scene.registry.requests().iter().filter(|request| request.status == 401).count();
    assert!(
        refused <= 8,
        "{refused} refusals, more than there were readers at the start: tokens were shown after their end"
    );
    let requests = stage.token_requests();
    assert!((10..=20).contains(&requests), "{requests} tokens for 20 s");
}

#[tokio::test]
async fn reads_never_fail_where_ended_tokens_are_forbidden_and_addresses_end_too() {
    let redirect = Some(Redirect { ttl: Duration::from_secs(3), other_port: true });
    let registry =
        RegistryConfig { auth: tokens("hunter2", Duration::from_secs(2)), redirect, ..RegistryConfig::default() };
    let stage = Stage::with(registry, config()).await;
    stage.scene.registry.set_forbids(true);
    stage.put_static("hunter2");
    for round in 0..20 {
        if round % 5 == 4 {
            stage.scene.registry.revoke_tokens();
        }
        join_all((0..4).map(|reader| stage.scene.good(reader * 100_000, reader * 100_000 + 8))).await;
        advance(Duration::from_millis(700)).await;
    }
    assert_eq!(stage.scene.fetcher.fetched().failures, 0);
    assert!(stage.scene.registry.requests().iter().any(|request| request.status == 403));
}

#[tokio::test]
async fn a_token_near_its_end_is_renewed_once_while_the_others_go_on_with_it() {
    let stage = Stage::new(tokens("hunter2", Duration::from_secs(100))).await;
    stage.put_static("hunter2");
    stage.scene.good(0, 10).await;
    advance(Duration::from_secs(80)).await;
    // The token server does not answer: only the reader that asks it waits, and not for long.
    stage.scene.registry.fail(Fault::Stall.on(Target::Kind(Kind::Token)));
    let reads = (0..8).map(|reader| stage.reading(reader * 100_000));
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap().unwrap();
    }
    assert_eq!(stage.token_requests(), 2);
    stage.scene.registry.release();
    advance(Duration::from_secs(6)).await;
    join_all((0..8).map(|reader| stage.scene.good(reader * 100_000, reader * 100_000 + 8))).await;
    assert_eq!(stage.token_requests(), 3);
}

#[tokio::test]
async fn a_password_that_is_rotated_in_a_file_is_picked_up_by_reads_that_wait() {
    for auth in [|password: &str| tokens(password, LONG), |password: &str| Auth::Basic(account(password).unwrap())] {
        let mut stage = Stage::new(auth("old")).await;
        stage.put_static("old");
        stage.scene.good(0, 10).await;
        stage.scene.registry.set_auth(auth("new"));
        stage.scene.registry.revoke_tokens();
        let reads: Vec<_> = (0..4).map(|reader| stage.reading(reader * 100_000)).collect();
        let event = stage.events.recv().await.unwrap();
        assert!(matches!(&event, Event::CredentialsRefused { provider: Provider::StaticFile, .. }), "{event}");
        stage.put_static("new");
        for read in reads {
            read.await.unwrap().unwrap();
        }
        let host = stage.host();
        assert_eq!(stage.said(), [Event::CredentialsRefreshed { host, provider: Provider::StaticFile }]);
    }
}

#[tokio::test]
async fn what_is_handed_over_wakes_reads_that_wait() {
    // Nobody waits this long: only the hand-over can end the wait.
    let slow = Config { backoff_first: Duration::from_secs(3600), backoff_max: Duration::from_secs(3600), ..config() };
    let registry = RegistryConfig { auth: tokens("old", LONG), ..RegistryConfig::default() };
    let mut stage = Stage::with(registry, slow).await;
    stage.hand_over(password("old"), None).await;
    stage.scene.good(0, 10).await;
    stage.scene.registry.set_auth(tokens("new", LONG));
    stage.scene.registry.revoke_tokens();
    let read = stage.reading(0);
    stage.events.recv().await.unwrap();
    stage.hand_over(password("new"), None).await;
    read.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_not_shown_again_and_again() {
    let stage = Stage::new(tokens("right", LONG)).await;
    stage.put_static("wrong");
    for _ in 0..20 {
        assert!(matches!(stage.scene.read(0, 10).await, Err(ReadError::Denied { .. })));
    }
    assert_eq!(stage.token_requests(), 1);
    for requests in 2..5 {
        advance(LONG).await;
        for _ in 0..5 {
            stage.scene.read(0, 10).await.unwrap_err();
        }
        assert_eq!(stage.token_requests(), requests);
    }
    stage.put_static("right");
    stage.scene.good(0, 10).await;

    let stage = Stage::new(Auth::Basic(account("right").unwrap())).await;
    stage.put_static("wrong");
    for _ in 0..20 {
        assert!(matches!(stage.scene.read(0, 10).await, Err(ReadError::Denied { .. })));
    }
    // Each read asks without credentials; the first also with them.
    assert_eq!(stage.scene.registry.requests().len(), 21);
}

#[tokio::test]
async fn what_is_refused_leads_on_to_the_next_provider_and_is_named() {
    for auth in [tokens("right", LONG), Auth::Basic(account("right").unwrap())] {
        let mut stage = Stage::new(auth).await;
        stage.hand_over(password("wrong-1"), None).await;
        stage.put_static("wrong-2");
        stage.put_docker("right");
        stage.scene.good(0, 10).await;
        let refused: Vec<Provider> = stage
            .said()
            .into_iter()
            .map(|event| match event {
                Event::CredentialsRefused { provider, .. } => provider,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(refused, [Provider::Api, Provider::StaticFile]);
        let report = stage.scene.fetcher.credentials().await;
        assert_eq!(report.scopes.len(), 1);
        assert_eq!(report.scopes[0].provider, Some(Provider::DockerConfig));
        assert_eq!(report.scopes[0].refused.iter().map(|refused| refused.0).collect::<Vec<_>>(), refused);
    }
}

#[tokio::test]
async fn refused_credentials_do_not_turn_into_none() {
    // Everybody gets a token; with wrong credentials nobody does.
    let stage = Stage::new(Auth::Token { credentials: None, ttl: LONG }).await;
    stage.scene.good(0, 10).await;
    stage.scene.registry.set_auth(tokens("right", LONG));
    stage.scene.registry.revoke_tokens();
    stage.hand_over(password("wrong"), None).await;
    let before = stage.token_requests();
    let error = stage.resolve("team/app:1").await;
    assert!(error.contains("401"), "{error}");
    assert_eq!(stage.token_requests(), before + 1);
}

#[tokio::test]
async fn a_refusal_is_said_once_for_all_repositories_of_a_host() {
    let mut stage = Stage::new(tokens("right", LONG)).await;
    stage.put_static("wrong");
    for repository in ["a/b", "a/c", "a/b", "d"] {
        stage.resolve(repository).await;
    }
    assert!(matches!(&stage.said()[..], [Event::CredentialsRefused { provider: Provider::StaticFile, .. }]));
    stage.put_static("right");
    for repository in ["a/b", "a/c", "d"] {
        stage.resolve(repository).await;
    }
    assert!(matches!(&stage.said()[..], [Event::CredentialsRefreshed { .. }]));
    stage.put_static("wrong");
    stage.scene.registry.revoke_tokens();
    stage.resolve("a/b").await;
    assert!(matches!(&stage.said()[..], [Event::CredentialsRefused { .. }]), "a change is said again");
}

#[tokio::test]
async fn identity_tokens_are_exchanged_and_registry_tokens_shown() {
    let stage = Stage::new(tokens("hunter2", LONG)).await;
    stage.hand_over(Credential::Identity(Secret::new("hunter2".to_owned())), None).await;
    stage.scene.good(0, 10).await;
    let posted = stage.scene.registry.requests().into_iter().find(|request| request.kind == Kind::Token).unwrap();
    assert_eq!((posted.method.as_str(), posted.status), ("POST", 200));
    // A token of the registry itself needs no token server.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/token?scope=repository:team/app:pull", stage.host());
    let answer = client.get(url).basic_auth("user", Some("hunter2")).send().await.unwrap().text().await.unwrap();
    let token: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let before = stage.token_requests();
    stage.hand_over(Credential::Token(Secret::new(token["token"].as_str().unwrap().to_owned())), None).await;
    stage.scene.good(100_000, 100_010).await;
    assert_eq!(stage.token_requests(), before);
}

#[tokio::test]
async fn handed_over_credentials_go_first_end_and_can_be_withdrawn() {
    let stage = Stage::new(tokens("right", Duration::from_secs(2))).await;
    let soon = SystemTime::now() + Duration::from_secs(3600);
    stage.hand_over(password("right"), Some(soon)).await;
    stage.put_static("wrong");
    stage.scene.good(0, 10).await;
    let report = stage.scene.fetcher.credentials().await;
    assert_eq!(report.handed_over.len(), 1);
    assert_eq!((report.handed_over[0].kind, report.handed_over[0].expires), ("password", Some(soon)));
    assert_eq!(report.scopes[0].provider, Some(Provider::Api));
    let scope = stage.host().parse().unwrap();
    assert!(stage.scene.fetcher.withdraw(&scope).await);
    assert!(!stage.scene.fetcher.withdraw(&scope).await);
    let error = stage.resolve("team/app:1").await;
    assert!(error.contains("static-file") || error.contains("401"), "{error}");
    assert!(stage.scene.fetcher.credentials().await.handed_over.is_empty());
}

#[tokio::test]
async fn a_file_that_others_can_read_is_refused_by_name() {
    use std::os::unix::fs::PermissionsExt as _;
    let stage = Stage::new(tokens("hunter2", LONG)).await;
    let path = stage.put_static("hunter2");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = stage.scene.read(0, 10).await.unwrap_err().to_string();
    assert!(error.contains("static.toml") && error.contains("chmod 0600"), "{error}");
    let report = stage.scene.fetcher.credentials().await;
    let problem = |provider| report.providers.iter().find(|state| state.provider == provider).unwrap().problem.clone();
    assert!(problem(Provider::StaticFile).unwrap().contains("0644"));
    assert_eq!(problem(Provider::DockerConfig), None);
    // Credentials that another provider has are still used.
    stage.put_docker("hunter2");
    stage.scene.good(0, 10).await;
}

#[tokio::test]
async fn nothing_that_is_shown_holds_a_secret() {
    let mut stage = Stage::new(tokens("right-secret", LONG)).await;
    stage.hand_over(password("wrong-secret"), None).await;
    stage.put_static("other-secret");
    let error = stage.scene.read(0, 10).await.unwrap_err();
    stage.put_static("right-secret");
    stage.scene.good(0, 10).await;
    let report = stage.scene.fetcher.credentials().await;
    let shown = format!("{error} {error:?} {report:?} {:?} {:?}", stage.said(), stage.scene.fetcher);
    assert!(!shown.contains("secret"), "{shown}");
    assert!(Path::new(stage.dir.path()).exists());
}

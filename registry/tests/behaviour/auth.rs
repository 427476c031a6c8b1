//! Credentials, tokens and signed URLs.

use std::time::Duration;

use penstock_registry::{Artifact, Auth, Config, Credentials, Redirect};
use reqwest::{Method, Response};

use crate::client::{Pair, code, header, noise};

fn token_auth(credentials: Option<Credentials>) -> Config {
    Config { auth: Auth::Token { credentials, ttl: Duration::from_secs(60) }, ..Config::default() }
}

/// The realm's URL with the service and the scope of a challenge.
fn token_url(challenge: &Response) -> String {
    let text = header(challenge, "www-authenticate");
    let value = |key: &str| text.split(&format!("{key}=\"")).nth(1).unwrap().split('"').next().unwrap();
    format!("{}?service={}&scope={}", value("realm"), value("service"), value("scope"))
}

async fn bearer(response: Response) -> String {
    response.json::<serde_json::Value>().await.unwrap()["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn basic_credentials_are_asked_for_and_checked() {
    let credentials = Credentials::new("me", "secret:with:colons");
    assert!(!format!("{credentials:?}").contains("secret"));
    let pair = Pair::start(Config { auth: Auth::Basic(credentials), ..Config::default() }).await;
    for path in ["/v2/", "/v2/a/manifests/1"] {
        let answer = pair.pull(path).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "www-authenticate")), (401, "Basic realm=\"penstock\""));
        assert_eq!(code(answer).await, "UNAUTHORIZED");
    }
    let ping =
        async |password| pair.request(Method::GET, "/v2/").basic_auth("me", Some(password)).send().await.unwrap();
    assert_eq!(ping("secret:with:colons").await.status(), 200);
    assert_eq!(ping("secret").await.status(), 401);
}

#[tokio::test]
async fn an_anonymous_token_pulls_and_does_not_push() {
    let pair = Pair::start(token_auth(None)).await;
    pair.registry.put_image("a", "1", Artifact::default()).unwrap();
    let challenge = pair.pull("/v2/a/manifests/1").await;
    assert_eq!(challenge.status(), 401);
    let token = bearer(pair.pull(&token_url(&challenge)).await).await;
    let with_token = async |method, path| pair.request(method, path).bearer_auth(&token).send().await.unwrap();
    assert_eq!(with_token(Method::GET, "/v2/a/manifests/1").await.status(), 200);
    assert_eq!(with_token(Method::GET, "/v2/").await.status(), 200);
    let refused = with_token(Method::POST, "/v2/a/blobs/uploads/").await;
    assert!(
        header(&refused, "www-authenticate").contains("scope=\"repository:a:pull,push\",error=\"insufficient_scope\"")
    );
    assert_eq!(with_token(Method::GET, "/v2/b/manifests/1").await.status(), 401);
    assert_eq!(pair.registry.counts().token_requests, 1);
    pair.registry.revoke_tokens();
    let revoked = with_token(Method::GET, "/v2/a/manifests/1").await;
    assert!(header(&revoked, "www-authenticate").contains("error=\"invalid_token\""));
}

#[tokio::test]
async fn tokens_with_credentials_push() {
    let pair = Pair::start(token_auth(Some(Credentials::new("me", "secret")))).await;
    let challenge = pair.ask(Method::POST, "/v2/a/blobs/uploads/").await;
    let url = token_url(&challenge);
    assert_eq!(pair.pull(&url).await.status(), 401);
    let answer = pair.request(Method::GET, &url).basic_auth("me", Some("secret")).send().await.unwrap();
    let token = bearer(answer).await;
    let begun = pair.request(Method::POST, "/v2/a/blobs/uploads/").bearer_auth(token).send().await.unwrap();
    assert_eq!(begun.status(), 202);
}

#[tokio::test]
async fn credentials_can_change() {
    let pair = Pair::start(Config::default()).await;
    pair.registry.set_auth(Auth::Basic(Credentials::new("a", "b")));
    assert_eq!(pair.pull("/v2/").await.status(), 401);
    pair.registry.set_auth(Auth::None);
    assert_eq!(pair.pull("/v2/").await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_blob_download_is_redirected_to_a_url_that_expires() {
    for other_port in [false, true] {
        let redirect = Some(Redirect { ttl: Duration::from_secs(10), other_port });
        let pair = Pair::start(Config { redirect, ..Config::default() }).await;
        let bytes = noise(1000);
        let blob = pair.registry.put_blob(bytes.clone());
        let path = format!("/v2/a/blobs/{}", blob.digest);
        let answer = pair.pull(&path).await;
        assert_eq!(answer.status(), 307);
        let url = header(&answer, "location").to_owned();
        assert_eq!(url.contains(&pair.registry.host()), !other_port, "{url}");
        let part = pair.range(&url, "bytes=1-2").await;
        assert_eq!((part.status().as_u16(), part.bytes().await.unwrap()), (206, bytes.slice(1..3)));
        assert_eq!(pair.ask(Method::HEAD, &path).await.status(), 200, "HEAD is not redirected");
        let twice = pair.request(Method::GET, &url).bearer_auth("x").send().await.unwrap();
        assert_eq!(twice.status(), 400, "a signed URL takes no other credentials");
        assert_eq!(pair.pull(&url.replace("signature=", "signature=0")).await.status(), 403);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(pair.pull(&url).await.status(), 403);
        let counts = pair.registry.counts();
        assert_eq!((counts.blob_requests, counts.storage_requests, counts.blob_bytes), (2, 4, 2));
    }
}

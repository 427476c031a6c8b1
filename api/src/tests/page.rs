//! The page's files: what they are, what they may load, and that they are the only ones.

use axum::{body::Body, http::Request};
use tower::ServiceExt as _;

use super::fake::{Fake, get, request};
use crate::{is_asset, read_only_router};

#[tokio::test]
async fn every_file_that_a_file_of_the_page_names_is_served_and_nothing_from_elsewhere_is_named() {
    let mut files = vec!["/".to_owned()];
    let mut at = 0;
    while let Some(path) = files.get(at).cloned() {
        at += 1;
        assert!(is_asset(&path), "{path}");
        let reply = get(Fake::default(), &path).await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(!reply.body.contains("://"), "{path} names another place");
        let named = reply.body.split('"').filter(|word| word.ends_with(".js") || word.ends_with(".css"));
        for name in named {
            if !files.iter().any(|known| known == name) {
                files.push(name.to_owned());
            }
        }
    }
    assert_eq!(files.len(), 6, "{files:?}");
}

#[tokio::test]
async fn the_page_may_load_and_ask_nothing_but_this_agent_and_be_in_nobodys_frame() {
    let router = read_only_router(std::sync::Arc::new(Fake::default()));
    let response = router.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    let policy = header("content-security-policy");
    for rule in ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(rule), "{rule} is not in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(
        (header("content-type").as_str(), header("x-content-type-options").as_str()),
        ("text/html; charset=utf-8", "nosniff")
    );
}

#[tokio::test]
async fn the_page_is_only_read() {
    let problem = super::fake::ask(Fake::default(), request("POST", "/")).await.problem();
    assert_eq!(problem.status, 405);
    assert!(!is_asset("/v1/devices") && !is_asset("/page.css/") && !is_asset(""));
}

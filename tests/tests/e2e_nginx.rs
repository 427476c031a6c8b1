//! Registries as companies run them: Debian's `docker-registry` behind Debian's `nginx`, with TLS by a private authority, passwords, and
//! the token protocol.

use std::{fs, fs::File, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use penstock_tests::{
    agent::{Agent, Place},
    docker_registry::DockerRegistry,
    fixture,
    nginx::{Front, Nginx},
    require,
    skip::{fuse, program, root},
    tls::Authority,
    token_server::TokenServer,
    tree,
    workdir::Workdir,
    workspace::text,
};
use serde_json::json;

const USER: (&str, &str) = ("someone", "a secret that is logged nowhere");

fn cannot() -> Option<String> {
    root().or_else(fuse).or_else(|| ["docker-registry", "nginx", "openssl"].into_iter().find_map(program))
}

/// A registry with the fixtures in it that asks nothing of anybody.
fn filled() -> DockerRegistry {
    let registry = DockerRegistry::start();
    registry.repository("private/overlaybd").layout(&fixture::layout());
    registry
}

fn reference(front: &Nginx, tag: &str) -> String {
    format!("{}/private/overlaybd:{tag}", front.host())
}

/// Docker's config.json with the user's password for `host`, where an agent at home in `work` finds it.
fn log_in(work: &Workdir, host: &str, password: &str) {
    let auth = STANDARD.encode(format!("{}:{password}", USER.0));
    fs::write(work.dir(".docker").join("config.json"), json!({"auths": {host: {"auth": auth}}}).to_string())
        .expect("a file");
}

/// An agent that trusts `bundle`, with chunks so small that the fixture takes many requests.
fn place(work: &Workdir, bundle: &Path) -> Place {
    let bundle = bundle.to_str().expect("UTF-8");
    Place::new(work.path()).with(&["--cache-chunk-size", "64KiB", "--fetch-ca-bundle", bundle])
}

fn read_whole(agent: &Agent, reference: &str) {
    let device = agent.attach(reference, &["--transport", "fuse"]);
    let found = File::open(text(&device["device_path"])).and_then(tree::sha256);
    assert_eq!(found.expect("every byte can be read"), fixture::DEVICE_SHA256);
}

fn assert_not_logged(agent: &Agent, secret: &str) {
    let said = agent.log().join("\n");
    assert!(!said.contains(secret), "a secret is in the log:\n{said}");
    for path in ["/v1/devices", "/v1/events", "/metrics"] {
        let answer = agent.http(&penstock_tests::http::Request::get(path)).expect("the agent answers").text();
        assert!(!answer.contains(secret), "a secret is in {path}");
    }
}

#[test]
fn a_registry_with_a_private_authority_and_a_password_is_read() {
    require!(cannot());
    let (work, registry) = (Workdir::new(), filled());
    let authority = Authority::new(work.join("tls"));
    let user = (USER.0.to_owned(), USER.1.to_owned());
    let front = Front { tls: Some(authority.issue("registry")), user: Some(user), ..Front::default() };
    let front = Nginx::start(work.join("nginx"), registry.host(), &front);
    log_in(&work, &front.host(), USER.1);
    let tls = format!("--fetch-tls={}", front.host());
    let agent = place(&work, &authority.bundle()).with(&[&tls]).start();
    read_whole(&agent, &reference(&front, "obd-lz4"));
    assert_not_logged(&agent, USER.1);
    assert_not_logged(&agent, &STANDARD.encode(format!("{}:{}", USER.0, USER.1)));
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused() {
    require!(cannot());
    let (work, registry) = (Workdir::new(), filled());
    let authority = Authority::new(work.join("tls"));
    let front = Front { tls: Some(authority.issue("registry")), ..Front::default() };
    let front = Nginx::start(work.join("nginx"), registry.host(), &front);
    let other = Authority::new(work.join("other")).bundle();
    let tls = format!("--fetch-tls={}", front.host());
    let agent = place(&work, &other).with(&[&tls, "--fetch-deadline", "2s"]).start();
    let line = agent.run(&["attach", &reference(&front, "obd-lz4"), "--transport", "fuse"]).error_line();
    assert!(line.to_lowercase().contains("certificate"), "{line}");
    assert!(front.requests().is_empty(), "nothing was asked over it: {:?}", front.requests());
}

#[test]
fn tokens_of_the_distribution_protocol_are_asked_for_and_renewed() {
    require!(cannot());
    let (work, open) = (Workdir::new(), filled());
    let authority = Authority::new(work.join("tls"));
    let signer = authority.issue("signer");
    let tokens = TokenServer::start(signer.clone(), work.join("text"), USER.0, USER.1);
    // The realm is known only once nginx has its port, and nginx wants to know the registry: the token server has an nginx of its own.
    let realm =
        Front { tls: Some(authority.issue("realm")), tokens: Some(tokens.host().to_owned()), ..Front::default() };
    let realm = Nginx::start(work.join("realm"), open.host(), &realm);
    let closed = open.with_tokens(&format!("https://{}/token", realm.host()), &signer.certificate);
    let front = Front { tls: Some(authority.issue("registry")), ..Front::default() };
    let front = Nginx::start(work.join("nginx"), closed.host(), &front);

    log_in(&work, &front.host(), USER.1);
    let tls = format!("--fetch-tls={},{}", front.host(), realm.host());
    let agent = place(&work, &authority.bundle()).with(&[&tls]).start();
    read_whole(&agent, &reference(&front, "obd-lz4"));
    assert!(tokens.issued() >= 1);
    // Each attach asks for the manifest with the token at hand. Tokens die while this goes on, and no attach notices.
    let renewed = (0..10_000).any(|_| {
        let device = agent.attach(&reference(&front, "obd-zstd16"), &["--transport", "fuse"]);
        let _ = agent.run(&["detach", text(&device["id"])]).ok();
        tokens.issued() >= 3
    });
    assert!(renewed, "{} tokens", tokens.issued());
    read_whole(&agent, &reference(&front, "obd-zstd16"));
    assert_eq!(tokens.refused(), 0);
    assert_not_logged(&agent, USER.1);
}

#[test]
fn a_wrong_password_is_an_error_that_names_the_registry() {
    require!(cannot());
    let (work, registry) = (Workdir::new(), filled());
    let user = (USER.0.to_owned(), USER.1.to_owned());
    let front = Nginx::start(work.join("nginx"), registry.host(), &Front { user: Some(user), ..Front::default() });
    log_in(&work, &front.host(), "something else");
    let agent = Place::new(work.path()).start();
    let line = agent.run(&["attach", &reference(&front, "obd-lz4"), "--transport", "fuse"]).error_line();
    assert!(line.contains(&front.host()) && line.contains("credentials"), "{line}");
    assert!(front.requests().len() < 5, "a bad password is not tried again and again: {:?}", front.requests());
}

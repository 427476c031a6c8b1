//! References, by table and by property.

use proptest::prelude::*;

use super::*;

fn digest() -> String {
    Digest::of(b"manifest").to_string()
}

#[test]
fn short_forms_mean_docker_hub() {
    for (typed, shown) in [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
    ] {
        let reference: Reference = typed.parse().unwrap();
        assert_eq!(reference.to_string(), shown, "{typed}");
        assert_eq!(reference.registry(), "docker.io");
        assert_eq!(reference.host(), "registry-1.docker.io");
    }
}

#[test]
fn registries_ports_tags_and_digests_are_told_apart() {
    let digest = digest();
    for (typed, registry, repository, tag, pinned) in [
        ("ghcr.io/a/b/c:v1", "ghcr.io", "a/b/c", Some("v1"), false),
        ("localhost/app", "localhost", "app", Some("latest"), false),
        ("localhost:5000/app", "localhost:5000", "app", Some("latest"), false),
        ("127.0.0.1:5000/app:x", "127.0.0.1:5000", "app", Some("x"), false),
        ("[::1]:5000/app:x", "[::1]:5000", "app", Some("x"), false),
        ("[fe80::1]/app", "[fe80::1]", "app", Some("latest"), false),
        ("LocalHost/app", "localhost", "app", Some("latest"), false),
        ("REG.example.COM/app", "reg.example.com", "app", Some("latest"), false),
        (&format!("quay.io/app@{digest}"), "quay.io", "app", None, true),
        (&format!("quay.io:443/app:1@{digest}"), "quay.io:443", "app", Some("1"), true),
        ("quay.io/a.b_c__d---e/f", "quay.io", "a.b_c__d---e/f", Some("latest"), false),
    ] {
        let reference: Reference = typed.parse().unwrap_or_else(|e| panic!("{typed}: {e}"));
        assert_eq!(reference.registry(), registry, "{typed}");
        assert_eq!(reference.host(), registry, "{typed}");
        assert_eq!(reference.repository(), repository, "{typed}");
        assert_eq!(reference.tag(), tag, "{typed}");
        assert_eq!(reference.digest().is_some(), pinned, "{typed}");
    }
}

#[test]
fn a_pinned_reference_keeps_its_tag() {
    let reference: Reference = "alpine:3".parse().unwrap();
    let pinned = reference.with_digest(Digest::of(b"manifest"));
    assert_eq!(pinned.to_string(), format!("docker.io/library/alpine:3@{}", digest()));
    assert_eq!(pinned.to_string().parse::<Reference>().unwrap(), pinned);
}

fn refused(text: &str) -> ReferenceError {
    text.parse::<Reference>().unwrap_err()
}

#[test]
fn hostile_repositories_are_refused() {
    let long = "a".repeat(256);
    for bad in [
        " ",
        "/",
        "//",
        "a//b",
        "a/",
        "/a",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a._b",
        "Alpine",
        "é",
        "a b",
        "a\nb",
        "..",
        "a/../b",
        "ghcr.io/",
        "ghcr.io/A",
        "Team/app",
        "L/z",
        &long,
        "https://ghcr.io/a",
        "a%2fb",
        "a?x=1",
        "a#b",
        "a\\b",
    ] {
        let error = refused(bad);
        let typed = matches!(
            error,
            ReferenceError::Repository { .. } | ReferenceError::Registry { .. } | ReferenceError::Tag { .. }
        );
        assert!(typed, "{bad:?}: {error:?}");
    }
    assert_eq!(refused(""), ReferenceError::Empty);
    assert_eq!(refused(&"a".repeat(2000)), ReferenceError::TooLong { bytes: 2000 });
}

#[test]
fn hostile_registries_are_refused() {
    let long = format!("{}.b/c", "a".repeat(300));
    for bad in [
        "a..b/c",
        "-a.b/c",
        "a.b-/c",
        "a.b:/c",
        "a.b:0/c",
        "a.b:65536/c",
        "a.b:+1/c",
        "a.b:1:2/c",
        "[::1/c",
        "[::g]/c",
        "[::1]x/c",
        "[::1]:/c",
        "u:p/c",
        ".a/c",
        "a./c",
        "é.b/c",
        "a_b.c/d",
        &long,
    ] {
        assert!(matches!(refused(bad), ReferenceError::Registry { .. }), "{bad:?}: {:?}", refused(bad));
    }
}

#[test]
fn hostile_tags_and_digests_are_refused() {
    for bad in ["a:", "a:.x", "a:-x", "a:é", "a:x y", &format!("a:{}", "x".repeat(129)), "a:b:c"] {
        let error = refused(bad);
        assert!(matches!(error, ReferenceError::Tag { .. } | ReferenceError::Repository { .. }), "{bad:?}: {error:?}");
    }
    for bad in ["a@", "a@sha256:", "a@sha512:00", "a@x@y", "a:1@sha256:zz"] {
        assert!(matches!(refused(bad), ReferenceError::Digest(_)), "{bad:?}");
    }
    let hex = Digest::of(b"").to_hex();
    for bad in [&hex, &format!("{hex}:x")] {
        assert!(matches!(refused(bad), ReferenceError::BareDigest { .. }), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn any_text_parses_or_is_refused_and_what_parses_reads_back(text in "\\PC{0,80}|[a-zA-Z0-9./:@_\\[\\]-]{0,120}|[a-zA-Z]{1,3}/[a-z]{1,3}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn what_the_grammar_allows_is_parsed(
        host in "[a-z0-9]{1,8}\\.[a-z0-9]{1,8}", port in proptest::option::of(1u16..),
        path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,5}){0,3}", tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}",
    ) {
        let registry = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        let reference: Reference = format!("{registry}/{path}:{tag}").parse().unwrap();
        prop_assert_eq!(reference.registry(), registry);
        prop_assert_eq!(reference.repository(), path);
        prop_assert_eq!(reference.tag(), Some(tag.as_str()));
    }
}

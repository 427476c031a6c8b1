//! hosts.toml as containerd reads it: by table.

use super::*;
use crate::Config;

fn parse(text: &str) -> HostsFile {
    HostsFile::parse(text).unwrap()
}

fn names(file: &HostsFile) -> Vec<String> {
    file.hosts.iter().map(|host| host.base.as_ref().map_or_else(|| "itself".to_owned(), Base::shown)).collect()
}

#[test]
fn hosts_are_asked_in_the_order_of_the_file_and_the_server_last() {
    let file = parse(
        r#"
        server = "https://registry-1.docker.io"
        [host."https://z.mirror.lan"]
          capabilities = ["pull", "resolve"]
        [host."http://a.mirror.lan:5000".header]
          x-custom = ["1", "2"]
        [host."http://a.mirror.lan:5000"]
          skip_verify = true
        [host."m.mirror.lan"]
        "#,
    );
    assert_eq!(
        names(&file),
        [
            "https://z.mirror.lan/v2",
            "http://a.mirror.lan:5000/v2",
            "https://m.mirror.lan/v2",
            "https://registry-1.docker.io/v2"
        ]
    );
    let capabilities: Vec<_> = file.hosts.iter().map(|host| host.capabilities.names()).collect();
    assert_eq!(capabilities[0], ["pull", "resolve"]);
    assert_eq!(capabilities[1], ["pull", "resolve", "push"]);
    assert_eq!(file.hosts[1].headers.len(), 2);
    assert_eq!(file.hosts[1].skip_verify, Some(true));
    assert_eq!(names(&parse("")), ["itself"]);
    assert_eq!(names(&parse("[host.\"https://m.lan\"]")), ["https://m.lan/v2", "itself"]);
}

#[test]
fn urls_are_read_as_containerd_reads_them() {
    for (text, override_path, shown) in [
        ("https://r.io", false, "https://r.io/v2"),
        ("https://r.io/", false, "https://r.io/v2"),
        ("r.io", false, "https://r.io/v2"),
        ("r.io:5000", false, "https://r.io:5000/v2"),
        ("http://r.io:5000", false, "http://r.io:5000/v2"),
        ("https://r.io/v2", false, "https://r.io/v2"),
        ("https://r.io/v2/", false, "https://r.io/v2"),
        ("https://r.io/proxy", false, "https://r.io/proxy/v2"),
        ("https://r.io/v2/proxy", true, "https://r.io/v2/proxy"),
        ("https://r.io/v2/proxy/", true, "https://r.io/v2/proxy"),
        ("https://r.io", true, "https://r.io"),
        ("https://r.io/a/../b", true, "https://r.io/b"),
        ("https://[::1]:5000", false, "https://[::1]:5000/v2"),
        ("https://R.io:443", false, "https://r.io/v2"),
    ] {
        assert_eq!(Base::parse(text, override_path).map(|base| base.shown()), Ok(shown.to_owned()), "{text}");
    }
    for (text, port) in [("https://r.io", 443), ("http://r.io", 80), ("http://r.io:5000", 5000), ("https://[::1]", 443)]
    {
        assert_eq!(Base::parse(text, false).unwrap().port(), port, "{text}");
    }
    for bad in ["", "https://", "ftp://r.io", "unix:///run/x", "https://r.io?x=1", "https://r.io#x", "a b"] {
        assert!(Base::parse(bad, false).is_err(), "{bad:?}");
    }
    let error = Base::parse("https://user:hunter2@r.io", false).unwrap_err();
    assert!(!error.contains("hunter2") && error.contains("credentials"), "{error}");
}

#[test]
fn every_form_of_every_field_is_read() {
    let host = |fields: &str| parse(&format!("[host.\"https://m.lan\"]\n{fields}")).hosts.remove(0);
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    assert_eq!(host("ca = \"ca.pem\"").ca, paths(&["ca.pem"]));
    assert_eq!(host("ca = [\"/a.pem\", \"b.pem\"]").ca, paths(&["/a.pem", "b.pem"]));
    let pair = |certificate: &str, key: Option<&str>| (PathBuf::from(certificate), key.map(PathBuf::from));
    assert_eq!(host("client = \"c.pem\"").client, [pair("c.pem", None)]);
    assert_eq!(host("client = [\"c.pem\", \"d.pem\"]").client, [pair("c.pem", None), pair("d.pem", None)]);
    assert_eq!(
        host("client = [[\"c.pem\", \"c.key\"], [\"d.pem\", \"\"]]").client,
        [pair("c.pem", Some("c.key")), pair("d.pem", None)]
    );
    assert_eq!(host("skip_verify = false").skip_verify, Some(false));
    assert_eq!(host("").skip_verify, None);
    assert_eq!(host("dial_timeout = \"1m30s\"").dial_timeout, Some(Duration::from_secs(90)));
    assert_eq!(host("dial_timeout = \"0s\"").dial_timeout, None);
    assert_eq!(host("override_path = true").base.unwrap().path, "");
    let none = Capabilities { pull: false, resolve: false, push: false };
    assert_eq!(host("capabilities = []").capabilities, Capabilities::ALL);
    assert_eq!(host("capabilities = [\"push\"]").capabilities, Capabilities { push: true, ..none });
    assert_eq!(host("capabilities = [\"referrers\"]").capabilities, none);
    let header = host("header = { Authorization = \"Basic aHVudGVyMg==\" }").headers.remove(0);
    assert_eq!((header.0.as_str(), header.1.to_str().unwrap()), ("authorization", "Basic aHVudGVyMg=="));
    assert!(!format!("{header:?}").contains("aHVudGVyMg"), "a header is often a credential");
}

#[test]
fn go_durations_are_read() {
    for (text, ms) in [
        ("30s", Some(30_000)),
        ("1.5h", None),
        ("0.5h", Some(1_800_000)),
        ("300ms", Some(300)),
        ("1m30s", Some(90_000)),
        ("2000us", Some(2)),
        ("2000µs", Some(2)),
        ("1000000ns", Some(1)),
        ("+5s", Some(5_000)),
        ("0", Some(0)),
        ("", None),
        ("30", None),
        ("s", None),
        ("-1s", None),
        ("1d", None),
        ("1e3s", None),
        ("..s", None),
        ("99999999999h", None),
    ] {
        let read = fields::go_duration(text).map(|duration| duration.as_millis());
        assert_eq!(read, ms, "{text:?}");
    }
}

#[test]
fn keys_of_other_releases_are_passed_over_and_named() {
    let file = parse("future = 1\n[host.\"https://m.lan\"]\nskip_verfy = true\nrewrite = { a = \"b\" }");
    let mut ignored = file.ignored().to_vec();
    ignored.sort();
    assert_eq!(ignored, ["future", "rewrite", "skip_verfy"]);
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_line() {
    for (text, line, says) in [
        ("server = 5", 1, "URL"),
        ("\n\nserver = \"ftp://x\"", 3, "https"),
        ("host = 5", 1, "[host."),
        ("[host]\n\"https://m.lan\" = 5", 2, "table"),
        ("[host.\"https://m.lan\"]\ncapabilities = [\"pul\"]", 2, "\"pull\""),
        ("[host.\"https://m.lan\"]\ncapabilities = \"pull\"", 2, "list"),
        ("[host.\"https://m.lan\"]\nca = 1", 2, "file"),
        ("[host.\"https://m.lan\"]\nclient = [[\"a\", \"b\", \"c\"]]", 2, "[certificate, key]"),
        ("[host.\"https://m.lan\"]\nskip_verify = \"yes\"", 2, "true or false"),
        ("[host.\"https://m.lan\"]\n\ndial_timeout = \"soon\"", 3, "30s"),
        ("[host.\"https://m.lan\"]\nheader = { \"a b\" = \"x\" }", 2, "header"),
        ("[host.\"https://m.lan\"]\nheader = { a = 1 }", 2, "string"),
        ("[host.\"ftp://m.lan\"]", 1, "https"),
        ("[host.\"https://m.lan\"]\n[host.\"https://m.lan\"]", 2, ""),
        ("a = \n", 1, ""),
    ] {
        let fault = HostsFile::parse(text).unwrap_err();
        assert!(fault.line == line && fault.reason.contains(says), "{text:?}: {fault}");
    }
    let many: String = (0..MAX_HOSTS).map(|n| format!("[host.\"https://m{n}.lan\"]\n")).collect();
    assert!(HostsFile::parse(&many).unwrap_err().reason.contains("too many"));
    let secret = HostsFile::parse("[host.\"https://m.lan\"]\nheader = { a = \"hunter2\\u0000\" }").unwrap_err();
    assert!(!secret.to_string().contains("hunter2"));
}

/// A `certs.d` with files in it.
struct Certs(tempfile::TempDir);

impl Certs {
    fn new(files: &[(&str, &str)]) -> Self {
        let certs = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = certs.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        certs
    }

    fn load(&self, registry: &str) -> Result<Loaded, String> {
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        load(&[self.0.path().to_owned()], registry, host, &Config::default()).map_err(|error| error.to_string())
    }

    fn urls(&self, registry: &str) -> Vec<String> {
        self.load(registry).unwrap().hosts.iter().map(|(spec, _)| spec.base.shown()).collect()
    }
}

const PEM: &str = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n";

#[test]
fn directories_are_looked_up_by_every_spelling_in_containerds_order() {
    let one = |name: &str| format!("[host.\"https://{name}.mirror\"]");
    let certs = Certs::new(&[
        ("r.lan_5000_/hosts.toml", &one("underscores")),
        ("r.lan:5000/hosts.toml", &one("colon")),
        ("q.lan:5000/hosts.toml", &one("colon")),
        ("docker.io/hosts.toml", &one("hub")),
        ("[::1]:5000/hosts.toml", &one("v6")),
        ("_default/hosts.toml", &one("default")),
    ]);
    for (registry, mirror, server) in [
        ("r.lan:5000", "underscores", "https://r.lan:5000/v2"),
        ("q.lan:5000", "colon", "https://q.lan:5000/v2"),
        ("r.lan", "default", "https://r.lan/v2"),
        ("docker.io", "hub", "https://registry-1.docker.io/v2"),
        ("[::1]:5000", "v6", "http://[::1]:5000/v2"),
        ("localhost:5000", "default", "http://localhost:5000/v2"),
        ("localhost:443", "default", "https://localhost:443/v2"),
    ] {
        assert_eq!(certs.urls(registry), [format!("https://{mirror}.mirror/v2"), server.to_owned()], "{registry}");
    }
}

#[test]
fn a_place_that_is_named_twice_is_asked_once_for_each_thing() {
    let certs = Certs::new(&[
        ("whole.lan/hosts.toml", "server = \"https://whole.lan\"\n[host.\"https://whole.lan\"]\nskip_verify = true"),
        ("part.lan/hosts.toml", "[host.\"https://part.lan/v2/\"]\ncapabilities = [\"pull\", \"resolve\"]"),
        ("other.lan/hosts.toml", "[host.\"https://other.lan/proxy\"]"),
    ]);
    let asked = |registry: &str| {
        let loaded = certs.load(registry).unwrap();
        loaded.hosts.iter().map(|(spec, may)| (spec.base.shown(), may.names())).collect::<Vec<_>>()
    };
    let all = vec!["pull", "resolve", "push"];
    assert_eq!(asked("whole.lan"), [("https://whole.lan/v2".to_owned(), all.clone())]);
    assert!(certs.load("whole.lan").unwrap().hosts[0].0.trust.skip_verify, "the first says how it is spoken to");
    assert_eq!(
        asked("part.lan"),
        [("https://part.lan/v2".to_owned(), vec!["pull", "resolve"]), ("https://part.lan/v2".to_owned(), vec!["push"])]
    );
    assert_eq!(
        asked("other.lan"),
        [("https://other.lan/proxy/v2".to_owned(), all.clone()), ("https://other.lan/v2".to_owned(), all)]
    );
}

#[test]
fn the_first_root_that_has_something_counts() {
    let (first, second) = (
        Certs::new(&[("a.lan/hosts.toml", "[host.\"https://first\"]")]),
        Certs::new(&[
            ("a.lan/hosts.toml", "[host.\"https://second\"]"),
            ("b.lan/hosts.toml", "[host.\"https://second\"]"),
        ]),
    );
    let roots = [first.0.path().to_owned(), "/nonexistent".into(), second.0.path().to_owned()];
    let mirror = |registry: &str| {
        load(&roots, registry, registry, &Config::default()).unwrap().hosts[0].0.base.authority.clone()
    };
    assert_eq!((mirror("a.lan"), mirror("b.lan"), mirror("c.lan")), ("first".into(), "second".into(), "c.lan".into()));
}

#[test]
fn without_a_hosts_toml_the_directory_is_read_as_docker_reads_it() {
    let certs = Certs::new(&[
        ("r.lan/ca.crt", PEM),
        ("r.lan/b.crt", PEM),
        ("r.lan/client.cert", PEM),
        ("r.lan/client.key", KEY),
        ("r.lan/README", "x"),
        ("empty.lan/hosts.toml", ""),
        ("empty.lan/ca.crt", PEM),
        ("keyless.lan/client.cert", PEM),
    ]);
    let loaded = certs.load("r.lan").unwrap();
    let (spec, _) = &loaded.hosts[0];
    assert_eq!((loaded.hosts.len(), spec.trust.ca.len(), spec.base.shown()), (1, 2, "https://r.lan/v2".to_owned()));
    assert_eq!(spec.trust.client.as_ref().unwrap().expose(), format!("{PEM}\n{KEY}"));
    assert_eq!(certs.load("empty.lan").unwrap().hosts[0].0.trust.ca.len(), 1, "an empty file is no file");
    let error = certs.load("keyless.lan").unwrap_err();
    assert!(error.contains("client.key"), "{error}");
}

#[test]
fn files_are_found_beside_the_hosts_toml_and_tls_settings_mean_tls() {
    let certs = Certs::new(&[
        (
            "r.lan/hosts.toml",
            "skip_verify = true\n[host.\"http://m.lan:5000\"]\nca = \"sub/ca.pem\"\n[host.\"http://m.lan\"]\nca = \"sub/ca.pem\"\n[host.\"http://n.lan:5000\"]\n[host.\"https://o.lan\"]\nclient = [[\"c.pem\", \"c.key\"]]\n",
        ),
        ("r.lan/sub/ca.pem", PEM),
        ("r.lan/c.pem", PEM),
        ("r.lan/c.key", KEY),
    ]);
    let loaded = certs.load("r.lan").unwrap();
    let schemes: Vec<_> = loaded.hosts.iter().map(|(spec, _)| spec.base.scheme).collect();
    assert_eq!(schemes, [Scheme::HttpsElseHttp, Scheme::Http, Scheme::Http, Scheme::Https, Scheme::Https]);
    assert_eq!(loaded.hosts[0].0.trust.ca.len(), 1);
    assert!(loaded.hosts[3].0.trust.client.is_some() && loaded.hosts[4].0.trust.skip_verify);
    assert!(!format!("{loaded:?}").contains("PRIVATE KEY"), "keys do not show");
}

#[test]
fn a_bad_file_is_named_and_is_nobody_elses_trouble() {
    let certs = Certs::new(&[
        ("syntax.lan/hosts.toml", "server = \n"),
        ("gone.lan/hosts.toml", "[host.\"https://m.lan\"]\nca = \"gone.pem\""),
        ("text.lan/hosts.toml", "ca = \"text.pem\""),
        ("text.lan/text.pem", "no certificate"),
        ("good.lan/hosts.toml", "[host.\"https://m.lan\"]"),
        ("file.lan", "a file where a directory should be"),
    ]);
    for (registry, file) in [("syntax.lan", "hosts.toml"), ("gone.lan", "gone.pem"), ("text.lan", "text.pem")] {
        let error = certs.load(registry).unwrap_err();
        assert!(error.contains(registry) && error.contains(file), "{error}");
    }
    assert_eq!(certs.urls("good.lan"), ["https://m.lan/v2", "https://good.lan/v2"]);
}

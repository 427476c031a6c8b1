//! The config as people write it: which source wins, and how a mistake is named.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Args as _, FromArgMatches as _};
use penstock_agent::config::{Config, ConfigError, Flags, KEYS, Loaded};

struct Sources {
    dir: tempfile::TempDir,
    environment: BTreeMap<OsString, OsString>,
    flags: Vec<&'static str>,
}

impl Sources {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), environment: BTreeMap::new(), flags: Vec::new() }
    }

    fn file(self, text: &str) -> Self {
        std::fs::write(self.default_file(), text).unwrap();
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    fn flags(mut self, flags: &[&'static str]) -> Self {
        self.flags.extend(flags);
        self
    }

    fn default_file(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        let command = Flags::augment_args(clap::Command::new("agent").no_binary_name(true));
        let flags = Flags::from_arg_matches(&command.get_matches_from(&self.flags)).unwrap();
        Config::from_sources(&flags, &self.environment, &self.default_file())
    }

    fn error(&self) -> String {
        let text = self.load().unwrap_err().to_string();
        assert!(!text.contains('\n'), "an error is one line: {text}");
        text
    }
}

#[test]
fn a_later_source_wins() {
    let sources = Sources::new();
    assert_eq!(sources.load().unwrap().config.cache_cap_bytes, 10 << 30, "the default file may be missing");
    let sources = sources.file("[cache]\ncap = \"1GiB\"\n");
    assert_eq!(sources.load().unwrap().config.cache_cap_bytes, 1 << 30);
    let sources = sources.variable("PENSTOCK_CACHE_CAP", "2GiB");
    assert_eq!(sources.load().unwrap().config.cache_cap_bytes, 2 << 30);
    let sources = sources.flags(&["--cache-cap", "3GiB"]);
    assert_eq!(sources.load().unwrap().config.cache_cap_bytes, 3 << 30);
}

#[test]
fn a_mistake_in_the_file_is_named_with_its_line() {
    for (text, words) in [
        ("stat_dir = \"/x\"\n", &["line 1", "no key stat_dir", "did you mean state_dir?"][..]),
        ("\n[cache]\ncapp = 1\n", &["line 3", "no key cache.capp", "did you mean cache.cap?"]),
        ("[fetch]\ncap = \"1GiB\"\n", &["line 2", "fetch.cap", "did you mean cache.cap?"]),
        ("\n\n[nonsense]\na = 1\n", &["line 4", "nonsense.a", "--print-config"]),
        ("state_dir = \n", &["line 1"]),
        ("[cache]\ncap = \"much\"\n", &["line 2", "cache.cap", "10GiB"]),
        ("[cache]\ncap = \"1MiB\"\n", &["line 2", "64MiB"]),
        ("[cache]\nchunk_size = 100000\n", &["line 2", "power of two"]),
        ("[fetch]\ndeadline = \"0s\"\n", &["line 2", "1s"]),
        ("[fetch]\ndeadline = 30\n", &["line 2", "30s"]),
        ("[fetch]\nrequests_in_flight = 0\n", &["line 2", "1 to 1024"]),
        ("[fetch]\nplatform = \"linux\"\n", &["line 2", "linux"]),
        ("listen = \"0.0.0.0:9180\"\n", &["line 1", "api.token_file", "127.0.0.1"]),
        ("state_dir = \"state\"\n", &["line 1", "absolute"]),
        ("[device]\ntransport = \"nbd\"\n", &["line 2", "auto, ublk or fuse"]),
        ("[mount]\nflags = [\"rw\"]\n", &["line 2", "\"rw\"", "nodev"]),
        ("[log]\nlevel = \"loud\"\n", &["line 2", "debug"]),
        ("[log]\nformat = true\n", &["line 2", "log.format"]),
    ] {
        let error = Sources::new().file(text).error();
        for word in words.iter().chain(&["config.toml"]) {
            assert!(error.contains(word), "{word:?} is not in {error:?}, from {text:?}");
        }
    }
}

#[test]
fn a_mistake_elsewhere_names_the_variable_or_the_flag() {
    let error = Sources::new().variable("PENSTOCK_CACHE_CAP", "x").error();
    assert!(error.contains("environment variable PENSTOCK_CACHE_CAP"), "{error}");
    let error = Sources::new().flags(&["--drain-deadline", "1y"]).error();
    assert!(error.contains("flag --drain-deadline"), "{error}");
}

#[test]
fn a_password_in_a_flag_is_refused_and_not_quoted() {
    let error = Sources::new().flags(&["--fetch-proxy", "http://u:hunter2@p:1"]).error();
    assert!(error.contains("PENSTOCK_FETCH_PROXY") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_named_file_must_exist() {
    let error = Sources::new().flags(&["--config", "/nonexistent/penstock.toml"]).error();
    assert!(error.contains("/nonexistent/penstock.toml") && error.contains("--config"), "{error}");
    let error = Sources::new().variable("PENSTOCK_CONFIG", "/nonexistent/other.toml").error();
    assert!(error.contains("/nonexistent/other.toml"), "{error}");
}

#[test]
fn a_variable_that_names_no_key_is_noticed_and_not_refused() {
    let loaded = Sources::new()
        .variable("PENSTOCK_PORT", "tcp://10.0.0.1:80")
        .variable("PENSTOCK_CONFIG_X", "")
        .variable("PENSTOCK_OUTPUT", "json")
        .load()
        .unwrap();
    assert_eq!(loaded.notices.len(), 2, "{:?}", loaded.notices);
    assert!(loaded.notices.iter().any(|notice| notice.contains("PENSTOCK_PORT")));
}

#[test]
fn paths_of_flags_are_meant_from_where_they_are_typed() {
    let loaded = Sources::new().flags(&["--state-dir", "here"]).load().unwrap();
    assert_eq!(loaded.config.state_dir, std::env::current_dir().unwrap().join("here"));
}

#[test]
fn the_cache_has_a_directory_of_its_own() {
    let error = Sources::new().file("state_dir = \"/s\"\n[cache]\ndir = \"/s\"\n").error();
    assert!(error.contains("cache.dir") && error.contains("of its own"), "{error}");
    let error = Sources::new().flags(&["--state-dir", "/s", "--socket", "/s/cache/sock"]).error();
    assert!(error.contains("of its own"), "{error}");
}

#[test]
fn kubelet_plugins_need_their_config_and_their_directory() {
    let error = Sources::new().flags(&["--credentials-kubelet-config", "/k.yaml"]).error();
    assert!(error.contains("--credentials-kubelet-config") && error.contains("credentials.kubelet_bin_dir"), "{error}");
    let error = Sources::new().variable("PENSTOCK_CREDENTIALS_SECRET_DIRS", "/a,b").error();
    assert!(error.contains("absolute"), "{error}");
}

#[test]
fn customs_of_other_programs_hold_where_nothing_was_said() {
    let sources = Sources::new().variable("HOME", "/home/u").variable("https_proxy", "http://me:pw@p:3128");
    let loaded = sources.load().unwrap();
    assert_eq!(loaded.config.docker_config.as_deref(), Some(Path::new("/home/u/.docker/config.json")));
    assert_eq!(loaded.config.proxy.as_deref(), Some("http://me:pw@p:3128"));
    for shown in [loaded.print(), format!("{:?}", loaded.config)] {
        assert!(shown.contains("http://***@p:3128") && !shown.contains("pw"), "{shown}");
    }
    let loaded =
        sources.variable("DOCKER_CONFIG", "/etc/docker").flags(&["--fetch-proxy", "http://q:1"]).load().unwrap();
    assert_eq!(loaded.config.docker_config.as_deref(), Some(Path::new("/etc/docker/config.json")));
    assert_eq!(loaded.config.proxy.as_deref(), Some("http://q:1"));
}

#[test]
fn what_is_printed_reads_back_as_the_same_config() {
    let text = "state_dir = \"/s\"\nsocket = \"/s.sock\"\nsocket_group = \"990\"\nlisten = \"127.0.0.1:9180\"\ndrain_deadline = \"5s\"\non_stop = \"detach\"\n\
        [api]\ntoken_file = \"/t\"\ntls_cert = \"/c.pem\"\ntls_key = \"/c.key\"\nclient_ca = \"/a.pem\"\nplain_token = true\n\
        [cache]\ndir = \"/c\"\ncap = \"1GiB\"\nchunk_size = \"64KiB\"\nwatermarks = \"80%,70%\"\nreserve = \"2GiB\"\nscrub_interval = \"24h\"\nread_ahead = \"8MiB\"\n\
        [fetch]\ndeadline = \"1500ms\"\nbytes_in_flight = \"8MiB\"\nrequests_in_flight = 4\nca_bundle = \"/ca.pem\"\n\
        hosts_dirs = \"/certs.d:/etc/docker/certs.d\"\nredirects_allowed = [\"minio.lan\", \"10.0.0.0/8\"]\nplain_http = [\"a:1\", \"b\"]\ntls = [\"127.0.0.1:8443\"]\nproxy = \"http://p:1\"\nno_proxy = \"x,y\"\ndocker_config = \"/d.json\"\nplatform = \"linux/arm64/v8\"\n\
        [credentials]\nfile = \"/c.toml\"\nkubelet_config = \"/k.yaml\"\nkubelet_bin_dir = \"/bin\"\nsecret_dirs = [\"/a\", \"/b\"]\ntimeout = \"5s\"\nkeep = \"no\"\n\
        [layers]\naccept = \"r.example\"\nkey = \"/cosign.pub\"\nindex_pulled = \"push\"\n\
        [device]\ntransport = \"fuse\"\ndeadline = \"7s\"\non_failure = \"wait\"\nwait_limit = \"90s\"\n[mount]\nflags = \"noexec,nodev\"\n\
        [traces]\nendpoint = \"https://otel.example.com\"\nslow = \"1s\"\nplain = true\nca = \"/otel.pem\"\ntoken_file = \"/otel\"\n[log]\nformat = \"json\"\nlevel = \"debug\"\n";
    let first = Sources::new().file(text).load().unwrap();
    let shown = |loaded: &Loaded| format!("{:?}", loaded.config);
    assert!(!shown(&first).contains("None"), "the text sets every key: {}", shown(&first));
    let again = Sources::new().file(&first.print()).load().unwrap();
    assert_eq!(shown(&again), shown(&first));
    let defaults = Sources::new().load().unwrap();
    assert_eq!(shown(&Sources::new().file(&defaults.print()).load().unwrap()), shown(&defaults));
}

#[test]
fn every_key_can_be_said_in_all_three_ways_and_nothing_twice() {
    let mut names = std::collections::BTreeSet::new();
    for key in KEYS {
        assert!(names.insert(key.variable()) && names.insert(key.flag()), "{}", key.name);
    }
}

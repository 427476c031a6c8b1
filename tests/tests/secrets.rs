//! No secret of any credential provider is where others could see it: not in the log at its most talkative, in events, metrics, answers
//! of the API and of commands, in arguments and environments of processes, nor in files.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use penstock_image::write;
use penstock_registry::{Auth, Config, Credentials};
use penstock_tests::{
    agent::{Agent, Place, binary},
    http::Request,
    loopback::Loopback,
    push::Layer,
    require,
    skip::{fuse, root},
    workdir::Workdir,
    workspace::text,
};
use serde_json::{Value, json};

const USER: &str = "robot";
/// Bytes of each image: reads a third apart need requests of their own.
const DISK_BYTES: usize = 6 << 20;
/// Tokens of the accepting registries: longer than the test takes.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// Everything that can be asked for.
const OPENAPI: &str = include_str!("../../api/openapi.json");
/// Run as a helper and as a plugin: notes how it was run, and answers what lies ready for what it is asked.
const SPY: &str = r#"#!/bin/sh
cat /proc/self/cmdline /proc/$$/cmdline /proc/$$/environ >>"$SPY_DIR/runs"
case $0 in
*/docker-credential-spy) read -r server; exec cat "$SPY_DIR/helper-$server" ;;
*) exec cat "$SPY_DIR/plugin" ;;
esac
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Provider {
    DockerConfig,
    DockerHelper,
    StaticFile,
    KubeletPlugin,
    SecretDir,
    Api,
}

const PROVIDERS: [Provider; 6] = [
    Provider::DockerConfig,
    Provider::DockerHelper,
    Provider::StaticFile,
    Provider::KubeletPlugin,
    Provider::SecretDir,
    Provider::Api,
];

/// A provider, its secret, and a registry that takes it or does not.
struct Case {
    provider: Provider,
    accepts: bool,
    secret: String,
    registry: Loopback,
    reference: String,
}

/// A disk of random bytes as an OverlayBD layer.
fn disk() -> Layer {
    let mut bytes = vec![0; DISK_BYTES];
    fastrand::fill(&mut bytes);
    let work = Workdir::new();
    fs::write(work.join("disk"), bytes).expect("room for a disk");
    let disk = File::open(work.join("disk")).expect("the disk");
    let out = File::options().create_new(true).read(true).write(true).open(work.join("layer")).expect("a file");
    write::disk(&disk, out, write::Options::default()).expect("a layer");
    Layer::overlaybd(fs::read(work.join("layer")).expect("the layer"))
}

impl Case {
    fn new(provider: Provider, accepts: bool) -> Self {
        let secret = format!("Secret{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let tokens =
            |password: &str| Auth::Token { credentials: Some(Credentials::new(USER, password)), ttl: TOKEN_LIFE };
        let auth = match (accepts, provider) {
            (true, _) => tokens(&secret),
            // It has a token of the registry's own there, which is not shown to one that wants a password.
            (false, Provider::StaticFile) => tokens("another one"),
            (false, _) => Auth::Basic(Credentials::new(USER, "another one")),
        };
        let registry = Loopback::start(Config { auth, ..Config::default() });
        // No two alike: what one registry gave is not served for another.
        let reference = registry.image("private/disk", "1", &[disk()]);
        Self { provider, accepts, secret, registry, reference }
    }

    fn auth(&self) -> String {
        STANDARD.encode(format!("{USER}:{}", self.secret))
    }
}

fn of(cases: &[Case], provider: Provider) -> impl Iterator<Item = &Case> {
    cases.iter().filter(move |case| case.provider == provider)
}

/// A file that only its owner may read.
fn private(path: PathBuf, text: &str, mode: u32) -> PathBuf {
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
    path
}

/// `{host: {"auth": ..}}`.
fn auths(cases: &[Case], provider: Provider) -> Value {
    of(cases, provider).map(|case| (case.registry.host(), json!({"auth": case.auth()}))).collect()
}

/// Lays every provider's secrets out below `work`, and returns the place of an agent that knows of all.
fn place(work: &Workdir, cases: &[Case]) -> Place {
    let path = |name: &str| work.join(name).to_str().expect("UTF-8").to_owned();
    let spy = work.dir("spy");
    let helpers: Value = of(cases, Provider::DockerHelper).map(|case| (case.registry.host(), json!("spy"))).collect();
    let docker = json!({"auths": auths(cases, Provider::DockerConfig), "credHelpers": helpers});
    private(work.dir(".docker").join("config.json"), &docker.to_string(), 0o600);
    for case in of(cases, Provider::DockerHelper) {
        let answer = json!({"Username": USER, "Secret": case.secret}).to_string();
        private(spy.join(format!("helper-{}", case.registry.host())), &answer, 0o600);
    }
    let credential = |case: &Case| {
        let host = case.registry.host();
        match case.accepts {
            true => {
                format!("[[credential]]\nscope = \"{host}\"\nusername = \"{USER}\"\npassword = \"{}\"\n", case.secret)
            }
            false => format!("[[credential]]\nscope = \"{host}\"\nregistry_token = \"{}\"\n", case.secret),
        }
    };
    let credentials: String = of(cases, Provider::StaticFile).map(credential).collect();
    private(work.join("credentials.toml"), &credentials, 0o600);
    kubelet(work, &spy, cases);
    let secret = json!({"auths": auths(cases, Provider::SecretDir)});
    private(work.dir("secret").join(".dockerconfigjson"), &secret.to_string(), 0o600);

    private(work.dir("bin").join("docker-credential-spy"), SPY, 0o700);
    let script =
        format!("#!/bin/sh\nPATH={}:$PATH SPY_DIR={} exec {} \"$@\"\n", path("bin"), path("spy"), binary().display());
    let program = private(work.join("bin/penstock"), &script, 0o700);
    Place::of(&program, work.path()).with_socket(&work.join("run/penstock.sock")).with(&[
        "--cache-chunk-size",
        "64KiB",
        "--fetch-deadline",
        "2s",
        "--credentials-file",
        &path("credentials.toml"),
        "--credentials-kubelet-config",
        &path("kubelet.yaml"),
        "--credentials-kubelet-bin-dir",
        &path("bin"),
        "--credentials-secret-dirs",
        &path("secret"),
    ])
}

/// The kubelet's config with one plugin, and the plugin.
fn kubelet(work: &Workdir, spy: &Path, cases: &[Case]) {
    let auth: Value = of(cases, Provider::KubeletPlugin)
        .map(|case| (case.registry.host(), json!({"username": USER, "password": case.secret})))
        .collect();
    let version = "credentialprovider.kubelet.k8s.io/v1";
    let answer = json!({
        "kind": "CredentialProviderResponse", "apiVersion": version,
        "cacheKeyType": "Global", "cacheDuration": "1h", "auth": auth,
    });
    private(spy.join("plugin"), &answer.to_string(), 0o600);
    let hosts: Vec<String> = of(cases, Provider::KubeletPlugin).map(|case| case.registry.host()).collect();
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
        "providers": [{
            "name": "spy-plugin", "matchImages": hosts, "defaultCacheDuration": "1h", "apiVersion": version,
        }],
    });
    private(work.join("kubelet.yaml"), &config.to_string(), 0o600);
    private(work.dir("bin").join("spy-plugin"), SPY, 0o700);
}

/// What must be found nowhere: a secret as it is, and as it looks within base64, wherever it begins there.
fn needles(secret: &str) -> Vec<Vec<u8>> {
    let mut needles = vec![secret.as_bytes().to_vec()];
    for before in 0..3 {
        let text = [vec![b'x'; before], secret.as_bytes().to_vec()].concat();
        // Characters that also hold a bit of what stands before or behind.
        let own = |text: String| text.as_bytes()[[0, 2, 3][before]..text.len() - 4].to_vec();
        needles.extend([own(STANDARD.encode(&text)), own(URL_SAFE.encode(&text))]);
    }
    needles
}

fn first_two(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 8 | usize::from(bytes[1])
}

/// Collects what was seen, and finds secrets in it.
struct Search {
    needles: Vec<Vec<u8>>,
    /// By their first two bytes, whether there are needles: megabytes are searched for a hundred of them.
    begins: Vec<bool>,
    found: Vec<String>,
}

impl Search {
    fn new(secrets: impl Iterator<Item = String>) -> Self {
        let needles: Vec<Vec<u8>> = secrets.flat_map(|secret| needles(&secret)).collect();
        let mut begins = vec![false; 1 << 16];
        for needle in &needles {
            begins[first_two(needle)] = true;
        }
        Self { needles, begins, found: Vec::new() }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        let begins = bytes.windows(2).enumerate().filter(|(_, two)| self.begins[first_two(two)]);
        let mut begins = begins.map(|(at, _)| &bytes[at..]);
        begins.any(|rest| self.needles.iter().any(|needle| rest.starts_with(needle)))
    }

    fn look(&mut self, place: &str, bytes: &[u8]) {
        if self.is_in(bytes) {
            self.found.push(place.to_owned());
        }
    }

    /// Every regular file below `dir` of which `wanted` says so, on the same file system: the disks of images are mounted there too.
    fn look_below(&mut self, dir: &Path, wanted: &dyn Fn(&Path, u32) -> bool) {
        let own = fs::metadata(dir).expect("a directory").dev();
        for entry in fs::read_dir(dir).expect("a directory") {
            let entry = entry.expect("an entry");
            let (path, meta) = (entry.path(), entry.metadata().expect("it stays"));
            if meta.dev() != own {
                continue;
            }
            if meta.is_dir() {
                self.look_below(&path, wanted);
            } else if meta.is_file() && wanted(&path, meta.permissions().mode()) {
                let mut bytes = Vec::new();
                File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)).expect("a readable file");
                self.look(&path.display().to_string(), &bytes);
            }
        }
    }
}

/// Hands the API's secrets over, attaches every image, reads of those that could be, takes their tokens back and reads more. Returns all
/// that commands said, and the tokens that registries gave out.
fn drive(work: &Workdir, agent: &Agent, cases: &[Case]) -> (String, Vec<String>) {
    let (mut said, mut tokens) = (String::new(), Vec::new());
    for case in of(cases, Provider::Api) {
        let file = private(work.join("handed"), &case.secret, 0o600);
        let kind: &[&str] = if case.accepts { &["--identity-token"] } else { &["--username", USER] };
        let command = ["credentials", "set", &case.registry.host(), "--from-file", file.to_str().expect("UTF-8")];
        said += &agent.run(&[&command, kind].concat()).ok();
        fs::remove_file(file).expect("the file");
    }
    for case in cases {
        let ended = agent.run(&["attach", &case.reference, "--transport", "fuse", "--output", "json"]);
        assert_eq!(ended.code == Some(0), case.accepts, "{:?}: {ended:?}", case.provider);
        said += &ended.stdout;
        said += &ended.stderr;
        assert!(
            case.registry.counts().requests > 1,
            "{:?}: the registry is asked again with what there is",
            case.provider
        );
        if !case.accepts {
            continue;
        }
        let device: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        let file = File::open(text(&device["device_path"])).expect("the device");
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, 0).expect("a read");
        tokens.extend(case.registry.tokens());
        case.registry.revoke_tokens();
        file.read_exact_at(&mut block, DISK_BYTES as u64 / 3).expect("a read with a new token");
        tokens.extend(case.registry.tokens());
        case.registry.set_auth(Auth::Basic(Credentials::new(USER, "changed")));
        file.read_exact_at(&mut block, DISK_BYTES as u64 * 2 / 3).expect_err("nothing is good any more");
    }
    for command in [&["credentials", "list"][..], &["list"], &["endpoints"], &["events"], &["stats"]] {
        said += &agent.run(command).ok();
    }
    (said, tokens)
}

#[test]
fn no_secret_of_any_provider_is_logged_shown_or_left_anywhere() {
    require!(root().or_else(fuse));
    let cases: Vec<Case> =
        PROVIDERS.iter().flat_map(|&provider| [true, false].map(|accepts| Case::new(provider, accepts))).collect();
    let work = Workdir::new();
    // Where handed-over credentials are kept over a restart: memory, as /run is.
    let mounted = Command::new("mount").args(["-t", "tmpfs", "penstock-run"]).arg(work.dir("run")).status();
    assert!(mounted.expect("mount starts").success());
    let place = place(&work, &cases);
    let agent = place.start();
    let (said, tokens) = drive(&work, &agent, &cases);

    assert!(tokens.len() >= 2 * PROVIDERS.len(), "{tokens:?}");
    let secrets = cases.iter().map(|case| case.secret.clone()).chain(tokens);
    let mut search = Search::new(secrets);
    for known in [".docker/config.json", "credentials.toml", "spy/plugin", "run/credentials.kept"] {
        assert!(search.is_in(&fs::read(work.join(known)).expect("a file")), "the search finds what is in {known}");
    }

    let log = agent.log().join("\n");
    assert!(log.contains("DEBUG"), "the log says everything");
    search.look("the log", log.as_bytes());
    search.look("what commands say", said.as_bytes());
    let api: Value = serde_json::from_str(OPENAPI).expect("JSON");
    let paths = api["paths"].as_object().expect("paths").iter();
    // The stream has no end, and brings what the others answer.
    let is_list = |path: &str| !path.contains('{') && path != "/v1/live";
    let lists = paths.filter(|(path, methods)| is_list(path) && methods.get("get").is_some());
    let devices = agent.get("/v1/devices");
    let devices = devices.as_array().expect("a list").iter();
    let devices = devices.map(|device| format!("/v1/devices/{}", text(&device["id"])));
    for path in lists.map(|(path, _)| path.clone()).chain(devices) {
        let answer = agent.http(&Request::get(&path)).expect("an answer");
        search.look(&path, answer.text().as_bytes());
    }
    let of_agent = |name: &str| fs::read(format!("/proc/{}/{name}", agent.pid().as_raw_nonzero())).expect("it lives");
    search.look("the agent's arguments", &of_agent("cmdline"));
    search.look("the agent's environment", &of_agent("environ"));
    let runs = fs::read(work.join("spy/runs")).expect("helper and plugin ran");
    search.look("arguments and environments of its children", &runs);
    search.look_below(&work.join("state"), &|_, _| true);
    search.look_below(work.path(), &|_, mode| mode & 0o044 != 0);
    search.look_below(&work.join("run"), &|path, mode| !path.ends_with("credentials.kept") || mode & 0o077 != 0);
    assert!(search.found.is_empty(), "secrets are in {:?}; the log:\n{log}", search.found);
}

//! What the agent is told: defaults, then the config file, then `PENSTOCK_*`, then flags; the last one wins.
//!
//! The only reader of the environment and of the config file. Every key stands in one table, [`KEYS`]; every value, from
//! wherever it comes, goes through the same check, and a refusal names the file and line, the variable or the flag.

pub mod credentials;
mod file;
mod flags;
mod key;
mod keys;
mod layers;
mod service;
mod traces;
pub mod value;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use penstock_api::OnFailure;
use penstock_blob::ChunkSize;
use penstock_cache::Watermarks;
use penstock_device::Wanted;
use penstock_fetcher::Platform;

pub use flags::Flags;
pub use key::Key;
pub use keys::KEYS;
pub use layers::{IndexPulled, Prefer, Way};
pub use service::{SUPERVISED, SUPERVISED_VARIABLE, Service};
pub use traces::Traces;

use crate::{log::Format, mount::Flag};

/// Where the config file is looked for when nobody names one; it may be missing.
pub const DEFAULT_FILE: &str = "/etc/penstock/config.toml";
/// Where the state is when nobody says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/penstock";
/// Where it is said whom to ask for the content of registries, when nobody says otherwise: containerd's own `config_path`.
pub const DEFAULT_HOSTS_DIR: &str = "/etc/containerd/certs.d";
/// Where the admin API answers when nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/penstock/penstock.sock";
/// Where containerd's snapshots are when nobody says otherwise: where containerd 1.6 looks for what a snapshotter named `penstock` takes on the disk.
pub const DEFAULT_SNAPSHOTTER_ROOT: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.penstock";
/// Where containerd finds them when nobody says otherwise.
pub const DEFAULT_SNAPSHOTTER_SOCKET: &str = "/run/penstock/snapshotter.sock";
/// Where the image service answers when nobody says otherwise.
pub const DEFAULT_IMAGES_SOCKET: &str = "/run/penstock/images.sock";
/// Where containerd answers when nobody says otherwise.
pub const DEFAULT_CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Names the config file in the environment.
const FILE_VARIABLE: &str = "PENSTOCK_CONFIG";
/// Variables with our prefix that are no keys: they belong to the commands.
const COMMAND_VARIABLES: [&str; 9] = [
    SUPERVISED_VARIABLE,
    FILE_VARIABLE,
    "PENSTOCK_OUTPUT",
    "PENSTOCK_API",
    TOKEN_VARIABLE,
    "PENSTOCK_TOKEN_FILE",
    "PENSTOCK_CA",
    "PENSTOCK_CERT",
    "PENSTOCK_KEY",
];
/// A token for commands. There is no flag for it: every user of a node can see the flags of a process.
const TOKEN_VARIABLE: &str = "PENSTOCK_TOKEN";

/// Everything an agent is told. Made by [`Config::load`], or by [`Config::in_dir`] for tests, benches and the demo.
#[derive(Clone)]
pub struct Config {
    /// Directory of the agent's state.
    pub state_dir: PathBuf,
    /// Unix socket of the admin API.
    pub socket: PathBuf,
    /// Group whose users may use the socket, by name or number.
    pub socket_group: Option<String>,
    /// Address of the admin API over TCP.
    pub listen: Option<SocketAddr>,
    /// File of the tokens that are taken over TCP.
    pub api_token_file: Option<PathBuf>,
    /// Certificate, PEM, that is shown over TCP.
    pub api_tls_cert: Option<PathBuf>,
    /// Its key.
    pub api_tls_key: Option<PathBuf>,
    /// Authorities of the clients' certificates.
    pub api_client_ca: Option<PathBuf>,
    /// Whether tokens may cross the network without TLS.
    pub api_plain_token: bool,
    /// Longest time that stopping may take.
    pub drain_deadline: Duration,
    /// What becomes of devices at SIGTERM.
    pub on_stop: OnStop,
    /// Directory of cached chunks, when not `<state_dir>/cache`.
    pub cache_dir: Option<PathBuf>,
    /// Most disk space for everything that is kept of images, in bytes.
    pub cache_cap_bytes: u64,
    /// When eviction begins and ends.
    pub cache_watermarks: Watermarks,
    /// What stays free of the cache's file system, in bytes, when not the usual.
    pub cache_reserve_bytes: Option<u64>,
    /// How long a pass over all cached chunks may take in the background; zero for none.
    pub cache_scrub_interval: Duration,
    /// Most bytes under way that nobody asked for yet; 0 for no reading ahead.
    pub cache_read_ahead_bytes: u64,
    /// Whether bytes that were read stay in the page cache below the devices.
    pub cache_keep_pages: bool,
    /// Unit of fetching and keeping.
    pub chunk_size: ChunkSize,
    /// Longest time that one fetch may take with its retries.
    pub fetch_deadline: Duration,
    /// Most bytes asked of registries at once.
    pub fetch_bytes_in_flight: u64,
    /// Most requests to registries at once.
    pub fetch_requests_in_flight: u32,
    /// Certificate authorities trusted besides the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Directories laid out as containerd's `certs.d`.
    pub hosts_dirs: Vec<PathBuf>,
    /// Hosts and networks that redirects may lead to although they are private, loopback or link-local.
    pub redirects_allowed: Vec<String>,
    /// Registries asked over plain HTTP.
    pub plain_http: Vec<String>,
    /// Loopback hosts, or host:port, asked over TLS.
    pub tls: Vec<String>,
    /// Proxy for registries, which may hold a password: never logged.
    pub proxy: Option<String>,
    /// Hosts asked without the proxy.
    pub no_proxy: Option<String>,
    /// Docker's `config.json`.
    pub docker_config: Option<PathBuf>,
    /// Where else credentials come from.
    pub credentials: credentials::Credentials,
    /// Memory for all indexes and buffers, in bytes.
    pub memory_budget_bytes: u64,
    /// Whether images without an index that verifies them are refused.
    pub verify_require: bool,
    /// Longest time that looking for an image's index may take.
    pub verify_deadline: Duration,
    /// Whether the start of each image is recorded.
    pub recordings_enable: bool,
    /// How long a start is recorded, from its first read.
    pub recordings_duration: Duration,
    /// Whether images are read along their recordings.
    pub recordings_replay: bool,
    /// Which registries' recordings are used.
    pub recordings_accept: crate::recordings::Accept,
    /// How many images that are read widely are completed at the same time; 0: none.
    pub recordings_fills: u32,
    /// In which ways ordinary layers are read on demand, the best first.
    pub layers_prefer: Prefer,
    /// Whose indexes of layers are believed besides the node's own.
    pub layers_accept: crate::recordings::Accept,
    /// The public key of whoever must have signed them.
    pub layers_key: Option<PathBuf>,
    /// What becomes of images that are pulled without indexes of their layers.
    pub layers_index_pulled: IndexPulled,
    /// Whether SOCI indexes of version 1 are believed: anybody who may push to an image's repository can add one.
    pub layers_soci_v1: bool,
    /// Platform taken from an image index.
    pub platform: Platform,
    /// How devices are shown to the kernel.
    pub transport: Wanted,
    /// Longest time of one fetch as a reader sees it, when not that of a fetch.
    pub device_deadline: Option<Duration>,
    /// What a reader gets then.
    pub on_failure: OnFailure,
    /// Longest time that a reader waits in all where it waits.
    pub wait_limit: Duration,
    /// Flags of mounts besides `ro`.
    pub mount_flags: Vec<Flag>,
    /// Whether containerd is served.
    pub snapshotter_enable: bool,
    /// Directory of its snapshots.
    pub snapshotter_root: PathBuf,
    /// Unix socket on which it finds them.
    pub snapshotter_socket: PathBuf,
    /// Unix socket of the image service.
    pub images_socket: PathBuf,
    /// containerd's own socket.
    pub images_containerd: PathBuf,
    /// Where spans are sent.
    pub traces: Traces,
    /// How log lines are written.
    pub log_format: Format,
    /// Least severity logged.
    pub log_level: tracing::Level,
}

impl fmt::Debug for Config {
    /// Every key as it is printed: without passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(KEYS.iter().map(|key| (key.name, (key.show)(self)))).finish()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: DEFAULT_STATE_DIR.into(),
            socket: DEFAULT_SOCKET.into(),
            socket_group: None,
            listen: None,
            api_token_file: None,
            api_tls_cert: None,
            api_tls_key: None,
            api_client_ca: None,
            api_plain_token: false,
            drain_deadline: Duration::from_secs(30),
            on_stop: OnStop::Leave,
            cache_dir: None,
            cache_cap_bytes: 10 << 30,
            cache_watermarks: Watermarks::default(),
            cache_reserve_bytes: None,
            cache_scrub_interval: Duration::from_secs(7 * 24 * 3600),
            cache_read_ahead_bytes: 32 << 20,
            cache_keep_pages: false,
            chunk_size: ChunkSize::DEFAULT,
            fetch_deadline: Duration::from_secs(30),
            fetch_bytes_in_flight: 64 << 20,
            fetch_requests_in_flight: 32,
            ca_bundle: None,
            hosts_dirs: vec![DEFAULT_HOSTS_DIR.into()],
            redirects_allowed: Vec::new(),
            plain_http: Vec::new(),
            tls: Vec::new(),
            proxy: None,
            no_proxy: None,
            docker_config: None,
            credentials: credentials::Credentials::default(),
            memory_budget_bytes: 64 << 20,
            verify_require: false,
            verify_deadline: Duration::from_secs(5),
            recordings_enable: true,
            recordings_duration: Duration::from_secs(10),
            recordings_replay: true,
            recordings_accept: crate::recordings::Accept::All,
            recordings_fills: 2,
            layers_prefer: Prefer::default(),
            layers_accept: crate::recordings::Accept::None,
            layers_key: None,
            layers_index_pulled: IndexPulled::No,
            layers_soci_v1: false,
            platform: Platform::host(),
            transport: Wanted::Auto,
            device_deadline: None,
            on_failure: OnFailure::Eio,
            wait_limit: Duration::from_secs(600),
            mount_flags: vec![Flag::Nodev, Flag::Nosuid],
            snapshotter_enable: false,
            snapshotter_root: DEFAULT_SNAPSHOTTER_ROOT.into(),
            snapshotter_socket: DEFAULT_SNAPSHOTTER_SOCKET.into(),
            images_socket: DEFAULT_IMAGES_SOCKET.into(),
            images_containerd: DEFAULT_CONTAINERD.into(),
            traces: Traces::default(),
            log_format: Format::Human,
            log_level: tracing::Level::INFO,
        }
    }
}

/// What becomes of devices when the agent is told to stop and a successor is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// Those that outlive the agent stay: their readers wait for the successor. The others are taken away.
    Leave,
    /// All are taken away.
    Detach,
}

impl OnStop {
    /// The name that parses back.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leave => "leave",
            Self::Detach => "detach",
        }
    }
}

impl std::str::FromStr for OnStop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Leave, Self::Detach]
            .into_iter()
            .find(|known| known.name() == text)
            .ok_or_else(|| format!("{text:?} is not what becomes of devices; write leave or detach"))
    }
}

/// A config and where each of its values comes from.
#[derive(Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    origins: BTreeMap<&'static str, Origin>,
    /// Things worth a warning in the log, such as a variable with our prefix that names no key.
    pub notices: Vec<String>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A line of the config file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A variable of the environment.
    Variable(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// Why there is no config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read config file {}: {reason}; name an existing file with --config, or name none", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// The file is not TOML of the expected shape.
    #[error("{}, line {line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The file sets a key that does not exist.
    #[error("{}, line {line}: there is no key {key}{}; `penstock agent --print-config` lists all keys", path.display(), meant(key))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key as written.
        key: String,
    },
    /// A value does not pass its check.
    #[error("{origin}: {key}: {reason}")]
    Value {
        /// Where the value stands.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// Why it is refused.
        reason: String,
    },
}

/// `, did you mean ...` when a key of the same last word exists or differs by one letter.
fn meant(key: &str) -> String {
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned);
    KEYS.iter()
        .find(|known| last(known.name) == last(key) || is_one_slip(known.name, key))
        .map_or_else(String::new, |known| format!(", did you mean {}?", known.name))
}

/// Whether one letter added, lost or changed turns one text into the other.
fn is_one_slip(a: &str, b: &str) -> bool {
    let same_start = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let same_end = a.bytes().rev().zip(b.bytes().rev()).take_while(|(x, y)| x == y).count();
    let longer = a.len().max(b.len());
    a.len().abs_diff(b.len()) <= 1 && same_start + same_end + 1 >= longer
}

impl Config {
    /// The config of this process: defaults, the config file, `PENSTOCK_*`, `flags`.
    ///
    /// # Errors
    /// [`ConfigError`], which names what is wrong and where.
    pub fn load(flags: &Flags) -> Result<Loaded, ConfigError> {
        let environment = std::env::vars_os().collect();
        Self::from_sources(flags, &environment, Path::new(DEFAULT_FILE))
    }

    /// As [`load`](Self::load), with everything that the process brings given.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_sources(
        flags: &Flags,
        environment: &BTreeMap<OsString, OsString>,
        default_file: &Path,
    ) -> Result<Loaded, ConfigError> {
        let mut loaded = Loaded { config: Self::default(), origins: BTreeMap::new(), notices: Vec::new() };
        let named = flags
            .config
            .clone()
            .or_else(|| environment.get(OsString::from(FILE_VARIABLE).as_os_str()).map(PathBuf::from));
        loaded.take_file(named.as_deref(), default_file)?;
        loaded.take_environment(environment)?;
        for (key, text) in &flags.values {
            let text = if key.is_path { flags::from_working_directory(text) } else { text.clone() };
            if key.name == "fetch.proxy" && value::has_password(&text) {
                let reason = "every user of this node can see the flags of a process; set PENSTOCK_FETCH_PROXY or the config file where a password is needed".to_owned();
                return Err(ConfigError::Value { origin: Origin::Flag(key.flag()), key: key.name, reason });
            }
            loaded.take(key, &text, Origin::Flag(key.flag()))?;
        }
        loaded.check_together()?;
        loaded.notice_idle_keys();
        loaded.config.take_customs(environment);
        Ok(loaded)
    }

    /// What other programs of a node read from their environment too holds where nothing was said: Docker's credentials, the proxy.
    fn take_customs(&mut self, environment: &BTreeMap<OsString, OsString>) {
        let variable = |names: &[&str]| {
            let mut values =
                names.iter().filter_map(|name| environment.get(OsString::from(name).as_os_str())?.to_str());
            values.find(|value| !value.is_empty()).map(str::to_owned)
        };
        let docker = || {
            let dir = variable(&["DOCKER_CONFIG"]).map(PathBuf::from);
            let dir = dir.or_else(|| Some(PathBuf::from(variable(&["HOME"])?).join(".docker")))?;
            Some(dir.join("config.json")).filter(|path| path.is_absolute())
        };
        self.docker_config = self.docker_config.take().or_else(docker);
        self.proxy = self.proxy.take().or_else(|| variable(&["HTTPS_PROXY", "https_proxy"]));
        self.no_proxy = self.no_proxy.take().or_else(|| variable(&["NO_PROXY", "no_proxy"]));
    }

    /// The token that a command shows, when it stands in the environment.
    #[must_use]
    pub fn token() -> Option<String> {
        let (_, token) = std::env::vars_os().find(|(name, _)| name == TOKEN_VARIABLE)?;
        token.into_string().ok().filter(|token| !token.is_empty())
    }

    /// Defaults with everything under one directory: agents side by side in tests, benches and the demo.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            state_dir: dir.join("state"),
            socket: dir.join("penstock.sock"),
            images_socket: dir.join("images.sock"),
            hosts_dirs: vec![dir.join("certs.d")],
            snapshotter_root: dir.join("snapshotter"),
            snapshotter_socket: dir.join("snapshotter.sock"),
            ..Self::default()
        }
    }

    /// The value of the key `name` as `--print-config` shows it; `None` when it has none, or there is no such key.
    pub(crate) fn shown(&self, name: &str) -> Option<String> {
        (Key::find(name)?.show)(self)
    }

    /// Directory of cached chunks.
    #[must_use]
    pub fn cache_dir(&self) -> PathBuf {
        self.cache_dir.clone().unwrap_or_else(|| self.state_dir.join("cache"))
    }
}

impl Loaded {
    fn take_file(&mut self, named: Option<&Path>, default: &Path) -> Result<(), ConfigError> {
        let path = named.unwrap_or(default).to_path_buf();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(reason) => return Err(ConfigError::Read { path, reason }),
        };
        let entries = file::parse(&text).map_err(|fault| ConfigError::Syntax {
            path: path.clone(),
            line: fault.line,
            reason: fault.reason,
        })?;
        for entry in entries {
            let Some(key) = Key::find(&entry.key) else {
                return Err(ConfigError::UnknownKey { path, line: entry.line, key: entry.key });
            };
            self.take(key, &entry.text, Origin::File { path: path.clone(), line: entry.line })?;
        }
        Ok(())
    }

    fn take_environment(&mut self, environment: &BTreeMap<OsString, OsString>) -> Result<(), ConfigError> {
        for (name, text) in environment {
            let Some(name) = name.to_str().filter(|name| name.starts_with("PENSTOCK_")) else { continue };
            let Some(key) = KEYS.iter().find(|key| key.variable() == name) else {
                // Not refused: Kubernetes sets PENSTOCK_PORT and its like for a service of that name.
                if !COMMAND_VARIABLES.contains(&name) {
                    self.notices
                        .push(format!("environment variable {name} names no key of the config; it has no effect"));
                }
                continue;
            };
            let origin = Origin::Variable(name.to_owned());
            let Some(text) = text.to_str() else {
                return Err(ConfigError::Value { origin, key: key.name, reason: "the value is not UTF-8".to_owned() });
            };
            self.take(key, text, origin)?;
        }
        Ok(())
    }

    fn take(&mut self, key: &'static Key, text: &str, origin: Origin) -> Result<(), ConfigError> {
        match (key.set)(&mut self.config, text) {
            Ok(()) => self.origins.insert(key.name, origin),
            Err(reason) => return Err(ConfigError::Value { origin, key: key.name, reason }),
        };
        Ok(())
    }

    /// What no single value shows: the socket is not inside a directory that holds something else, and TCP is not open to all.
    fn check_together(&self) -> Result<(), ConfigError> {
        let config = &self.config;
        if let Err(refused) = crate::serve::policy(config) {
            // Some key of these was set, or nothing would listen.
            let origin = self.origins.get(refused.key).or_else(|| self.origins.get("listen"));
            let origin = origin.cloned().unwrap_or_else(|| Origin::Flag("listen".to_owned()));
            return Err(ConfigError::Value { origin, key: refused.key, reason: refused.reason });
        }
        if let Err(refused) = crate::traces::Collector::of(config)
            && let Some(origin) = self.origins.get(refused.key)
        {
            return Err(ConfigError::Value { origin: origin.clone(), key: refused.key, reason: refused.reason });
        }
        if let Some((key, missing)) = config.credentials.half_set()
            && let Some(origin) = self.origins.get(key)
        {
            let reason = format!("it needs {missing} beside it; set both, or neither");
            return Err(ConfigError::Value { origin: origin.clone(), key, reason });
        }
        let clash = config.socket.starts_with(config.cache_dir()) || config.cache_dir() == config.state_dir;
        match (clash, self.origins.get("cache.dir").or_else(|| self.origins.get("socket"))) {
            (true, Some(origin)) => Err(ConfigError::Value {
                origin: origin.clone(),
                key: "cache.dir",
                reason: "the cache needs a directory of its own, without the state or the socket in it".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Keys of a listener that there is not.
    fn notice_idle_keys(&mut self) {
        let tables = [
            ("api.", "listen", self.config.listen.is_none()),
            ("traces.", "traces.endpoint", self.config.traces.endpoint.is_none()),
        ];
        let idle = |name: &str| tables.into_iter().find(|(table, _, is_idle)| *is_idle && name.starts_with(table));
        let idle = self.origins.keys().filter_map(|name| Some((name, idle(name)?.1)));
        let notices: Vec<String> =
            idle.map(|(name, missing)| format!("{name} has no effect, because {missing} is not set")).collect();
        self.notices.extend(notices);
    }

    /// The config as a file that says the same, each key with what it does and where its value comes from.
    #[must_use]
    pub fn print(&self) -> String {
        let mut text = String::from(
            "# Penstock's config. Order: defaults, this file, PENSTOCK_* variables, flags; the last wins.\n",
        );
        let mut section = "";
        for key in KEYS {
            let (table, name) = key.name.split_once('.').unwrap_or(("", key.name));
            if table != section {
                section = table;
                text.push_str(&format!("\n[{table}]\n"));
            }
            let origin = self.origins.get(key.name).map_or_else(|| "default".to_owned(), ToString::to_string);
            let assignment = match (key.show)(&self.config) {
                Some(value) => format!("{name} = {}", toml::Value::String(value)),
                None => format!("# {name} is not set"),
            };
            text.push_str(&format!("# {}\n{assignment} # {origin}\n", key.what));
        }
        text
    }
}

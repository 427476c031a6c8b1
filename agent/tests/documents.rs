//! That the documents say what is true.

use std::{fs, io, path::PathBuf};

use penstock_agent::{
    Config, FileError,
    client::ClientError,
    config::{ConfigError, KEYS, Origin, value},
    containerd::{Refusal, Release, Unknown},
    mount::{MountError, found::NotFound, users::User},
    socket::SocketError,
    state::StateError,
};
use penstock_blob::Digest;
use penstock_device::DeviceError;
use penstock_fetcher::ResolveError;
use penstock_image::{LayerError, OpenError, Qcow2Error, What};
use penstock_snapshotter::content::StoreError;

fn document(name: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).expect(name)
}

/// What stands before the tables of docs/configuration.md.
const REFERENCE: &str = "\
# Configuration reference

<!-- Made by agent/tests/documents.rs from agent/src/config/keys.rs: change that, run `cargo test -p penstock-agent --test documents`, and copy what it says. -->

Every setting of the agent. Defaults hold first, then the config file, then `PENSTOCK_*` variables, then flags; the last one wins. `cache.cap` is `cap` in the table `[cache]` of the file, the variable
`PENSTOCK_CACHE_CAP` and the flag `--cache-cap`; so for all of them. `/etc/penstock/config.toml` may be missing; a file that is named with `--config` or `PENSTOCK_CONFIG` must exist. An unknown key, or
a value that does not pass its check, is refused with the file and line, the variable or the flag. A variable with our prefix that names no key is logged and ignored, because Kubernetes makes such for
a service named `penstock`.

Sizes: bytes, or a whole number and KiB, MiB, GiB, TiB, KB, MB, GB or TB. Durations: a whole number and ms, s, m or h. Lists: a list of strings in the file, words with commas elsewhere. Paths are
absolute; those of flags may be relative to the shell's directory. What settings mean for a node: [operations](operations.md), [sizing](sizing.md). `penstock agent --print-config` shows those that
hold, and where each is from.
";

/// docs/configuration.md, as the keys are now.
fn reference() -> String {
    let loaded = Config::from_sources(&Default::default(), &Default::default(), "/nonexistent".as_ref());
    let printed = loaded.expect("defaults").print();
    let defaults: Vec<&str> = printed.lines().filter(|line| line.ends_with(" # default")).collect();
    assert_eq!(defaults.len(), KEYS.len(), "each key has its line");
    let (mut text, mut section) = (REFERENCE.to_owned(), None);
    for (key, line) in KEYS.iter().zip(defaults) {
        let table = key.name.split_once('.').map_or("", |(table, _)| table);
        if section != Some(table) {
            let head = if table.is_empty() { "At the top" } else { table };
            text += &format!("\n## {head}\n\n| setting | default | what | variable |\n|---|---|---|---|\n");
            section = Some(table);
        }
        let value = line.split_once(" = \"").and_then(|(_, value)| value.strip_suffix("\" # default"));
        let default = match value {
            // What is made here has the platform of this machine.
            _ if key.name == "fetch.platform" => "this machine's".to_owned(),
            Some("") => "empty".to_owned(),
            Some(value) => format!("`{value}`"),
            None => "-".to_owned(),
        };
        text += &format!("| `{}` | {default} | {} | `{}` |\n", key.name, key.what.replace('|', "\\|"), key.variable());
    }
    text
}

#[test]
fn the_config_reference_is_what_the_keys_make() {
    let now = reference();
    if document("configuration.md") != now {
        let made = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("configuration.md");
        fs::write(&made, &now).expect("room in the target directory");
        panic!(
            "docs/configuration.md is not what the keys make now; review it and: cp {} docs/configuration.md",
            made.display()
        );
    }
    for key in KEYS {
        assert!(!key.what.is_empty() && now.matches(&format!("\n| `{}` | ", key.name)).count() == 1, "{}", key.name);
    }
}

#[test]
fn what_the_threat_model_names_as_proof_exists() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = document("security.md");
    let mut proofs = 0;
    for row in text.lines().filter(|line| line.starts_with('|')) {
        let quoted: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        let files: Vec<&&str> = quoted.iter().filter(|word| word.ends_with(".rs")).collect();
        for file in &files {
            assert!(root.join(file).is_file(), "{file} does not exist: {row}");
        }
        // A test is named right after its file.
        for (file, name) in row.split('`').collect::<Vec<_>>().windows(3).filter(|w| w[1] == ": ").map(|w| (w[0], w[2]))
        {
            let source = fs::read_to_string(root.join(file)).expect(file);
            assert!(source.contains(&format!("fn {name}(")), "{file} has no {name}");
            proofs += 1;
        }
    }
    assert!(proofs >= 5, "the page names {proofs} tests");
}

/// Whether `text` is of the documented `shape`, in which each `…` stands for something.
fn is_of(shape: &str, text: &str) -> bool {
    let pieces: Vec<&str> = shape.split('…').collect();
    let mut rest = text;
    for (nth, piece) in pieces.iter().enumerate() {
        match rest.find(piece) {
            Some(0) => rest = &rest[piece.len()..],
            Some(at) if nth > 0 => rest = &rest[at + piece.len()..],
            _ => return false,
        }
    }
    rest.is_empty() || shape.ends_with('…')
}

#[test]
fn shapes_are_compared_from_end_to_end() {
    assert!(is_of("no … here", "no dog here") && is_of("no …", "no dog") && is_of("… b", "a b"));
    assert!(!is_of("no … here", "no dog here, yet") && !is_of("no …", "yes no dog") && !is_of("a b", "a c"));
}

#[test]
fn every_refusal_is_one_line_and_documented() {
    let text = document("errors.md");
    let shapes: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("| `")?.split("` |").next()).collect();
    for error in refusals() {
        assert!(!error.contains('\n'), "{error:?}");
        // A generic shape of values in files must not stand in for all others.
        let found = shapes.iter().filter(|shape| is_of(shape, &error)).count();
        assert!(found >= 1, "{error:?} is not in docs/errors.md");
    }
}

/// The refusals that people meet, as they are printed.
fn refusals() -> Vec<String> {
    let path = || PathBuf::from("/some/path");
    let system = || io::Error::from(io::ErrorKind::PermissionDenied);
    let refused = |reason: Result<_, String>| reason.map(|_: u64| ()).expect_err("refused");
    let line = Origin::File { path: path(), line: 3 };
    let mut all = vec![
        ClientError::NoSocket { socket: path() }.to_string(),
        ClientError::Dead { socket: path() }.to_string(),
        StateError::InUse { dir: path(), owner: Some(7) }.to_string(),
        StateError::NoRoom { path: path() }.to_string(),
        StateError::Io { verb: "create", path: path(), reason: system() }.to_string(),
        SocketError::InUse { path: path(), setting: "--socket" }.to_string(),
        SocketError::NotASocket { path: path(), setting: "--socket" }.to_string(),
        SocketError::NoGroup { name: "staff".into() }.to_string(),
        SocketError::OpenDir { dir: path() }.to_string(),
        SocketError::File(FileError::TooOpen { path: path(), mode: 0o644 }).to_string(),
        SocketError::File(FileError::Owner { path: path(), owner: 7 }).to_string(),
        ConfigError::UnknownKey { path: path(), line: 3, key: "a".into() }.to_string(),
        ConfigError::Value { origin: line, key: "cache.cap", reason: refused(value::size("x")) }.to_string(),
        ConfigError::Value { origin: Origin::Flag("x".into()), key: "listen", reason: "y".into() }.to_string(),
        ConfigError::Value { origin: Origin::Variable("X".into()), key: "listen", reason: "y".into() }.to_string(),
        ConfigError::Read { path: path(), reason: system() }.to_string(),
        penstock_cache::OpenError::Full { dir: path() }.to_string(),
        DeviceError::NoTransport { reason: "none".into() }.to_string(),
    ];
    all.extend(configured().iter().map(ToString::to_string));
    all.extend(stores().iter().map(ToString::to_string));
    all.extend(mounts().iter().map(ToString::to_string));
    all.extend(lookups().iter().map(ToString::to_string));
    for what in [What::Gzip, What::Unknown] {
        all.push(format!("r/i:t: {}", OpenError::NotADisk { blob: Digest::of(b""), what }));
    }
    for error in [LayerError::Qcow2(Qcow2Error::Corrupt), LayerError::NoBacking, LayerError::NotBacked] {
        all.push(format!("r/i:t: layer x cannot be opened: {error}"));
    }
    all
}

fn configured() -> Vec<Box<dyn std::error::Error>> {
    let path = || PathBuf::from("/some/path");
    let (release, other) = (Release::new(1, 6), Release::new(2, 1));
    let (key, value, wanted) = ("a.b".to_owned(), "1".to_owned(), "2".to_owned());
    let later =
        Refusal::Later { path: path(), ours: path(), key: key.clone(), value: value.clone(), wanted: wanted.clone() };
    vec![
        Box::new(Unknown::Nobody { running: "/s: refused".into(), program: "containerd: not found".into() }),
        Box::new(Unknown::Two { running: release, program: other }),
        Box::new(Refusal::Conflict { path: path(), key, value, wanted }),
        Box::new(later),
        Box::new(Refusal::Taken { path: path(), reason: "was edited since it was written", kept: path() }),
        Box::new(Refusal::Taken { path: path(), reason: "was not written by penstock", kept: path() }),
        Box::new(Refusal::NotImported { path: path(), ours: path() }),
        Box::new(Refusal::OldPlugins { path: path(), plugins: "cri".into() }),
        Box::new(Refusal::NewConfig { path: path(), version: 3, release }),
        Box::new(Refusal::NoRuntimeSnapshotters { release }),
    ]
}

fn stores() -> Vec<StoreError> {
    let blob = Digest::of(b"");
    vec![
        StoreError::Away { socket: "/run/c.sock".into(), reason: "No such file".to_owned() },
        StoreError::Namespace { namespace: "a b".to_owned() },
        StoreError::Busy { blob },
        StoreError::WrongBytes { blob },
        StoreError::Read(penstock_blob::ReadError::Stopping),
        StoreError::Refused { what: "commit a blob", code: "INTERNAL", text: "disk".to_owned() },
    ]
}

fn mounts() -> Vec<MountError> {
    let dir = || PathBuf::from("/mnt");
    let file_system = penstock_image::FileSystem::Ext;
    let users = vec![User { pid: 7, name: "bash".into() }];
    vec![
        MountError::Place { dir: dir(), reason: "it is not a directory".into() },
        MountError::Taken { dir: dir(), file_system: "xfs".into() },
        MountError::NoFileSystem(NotFound::Blank),
        MountError::NoDriver { file_system },
        MountError::Denied { dir: dir() },
        MountError::Refused { file_system, dir: dir(), reason: io::ErrorKind::InvalidData.into() },
        MountError::Busy { dir: dir(), users },
        MountError::Covered { dir: dir(), file_system: "tmpfs".into() },
    ]
}

fn lookups() -> Vec<ResolveError> {
    let reference = || "registry.example.com/a/b:c".parse::<penstock_fetcher::Reference>().expect("a reference");
    let endpoint = || "registry.example.com".to_owned();
    let reason = || "status 404".to_owned();
    let digest = Digest::of(b"");
    let wanted = "linux/arm64".parse().expect("a platform");
    vec![
        ResolveError::NotFound { reference: reference(), endpoint: endpoint(), reason: reason() },
        ResolveError::Denied { reference: reference(), endpoint: endpoint(), reason: reason() },
        ResolveError::Unavailable { reference: reference(), endpoint: endpoint(), reason: reason() },
        ResolveError::Digest { reference: reference(), endpoint: endpoint(), expected: digest, actual: digest },
        ResolveError::Platform { reference: reference(), wanted, offered: "linux/amd64".into() },
    ]
}

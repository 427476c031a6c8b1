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
use penstock_image::{OpenError, What};
use penstock_snapshotter::content::StoreError;

fn document(name: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).expect(name)
}

#[test]
fn the_config_reference_lists_every_key_with_its_default() {
    let text = document("operations.md");
    let loaded = Config::from_sources(&Default::default(), &Default::default(), "/nonexistent".as_ref());
    let printed = loaded.expect("defaults").print();
    let rows: Vec<&str> = text.lines().filter(|line| line.contains("| `PENSTOCK_")).collect();
    assert_eq!(rows.len(), KEYS.len());
    for (row, key) in rows.iter().zip(KEYS) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells[..2], [format!("`{}`", key.name), format!("`{}`", key.variable())], "{row}");
        assert_eq!(cells[3], key.what, "{row}");
        let name = key.name.rsplit('.').next().unwrap_or_default();
        match cells[2] {
            "-" => assert!(printed.contains(&format!("\n# {name} is not set")), "{row}"),
            "this machine's" => assert_eq!(key.name, "fetch.platform"),
            default => assert!(printed.contains(&format!("\n{name} = \"{default}\" # default")), "{row}"),
        }
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

//! Handed-over credentials, kept for the next process of the agent in a file system in memory (docs/decisions/0008).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::{
    Credential,
    file::{self, Audience},
    handed::Entry,
    scope::CredentialScope,
    static_file::Fields,
};

/// Largest file read, in bytes: 1024 credentials of 16 KiB, escaped.
const MAX_KEPT_BYTES: u64 = 64 << 20;
/// What `statfs` calls file systems in memory (linux/magic.h): tmpfs and ramfs.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;
/// The version of the file. Another one is not read: its writer's credentials are asked for again.
const VERSION: u32 = 1;

/// Whether handed-over credentials outlive the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeping {
    /// They do, until the node is rebooted.
    UntilReboot,
    /// They do not, for this reason.
    No(String),
}

/// The file, or why there is none.
#[derive(Debug)]
pub(super) struct Kept {
    path: Option<PathBuf>,
    keeping: Mutex<Keeping>,
}

#[derive(serde::Deserialize)]
struct Document {
    version: u32,
    credentials: Vec<Record>,
}

#[derive(serde::Deserialize)]
struct Record {
    #[serde(flatten)]
    fields: Fields,
    /// Seconds since 1970.
    expires: Option<u64>,
}

impl Kept {
    /// The file at `path`, and what is in it. A file that cannot be read holds nothing.
    pub(super) fn open(path: Option<PathBuf>) -> (Self, BTreeMap<CredentialScope, Entry>) {
        let no = |reason: String| Self { path: None, keeping: Mutex::new(Keeping::No(reason)) };
        let Some(path) = path else { return (no("it is not configured".to_owned()), BTreeMap::new()) };
        let dir = path.parent().unwrap_or(Path::new("/"));
        match is_in_memory(dir) {
            Ok(true) => {}
            Ok(false) => {
                let reason = format!("{} is not on a file system in memory (tmpfs)", dir.display());
                return (no(reason), BTreeMap::new());
            }
            Err(error) => return (no(format!("{}: {error}", dir.display())), BTreeMap::new()),
        }
        let (keeping, entries) = match read(&path) {
            Ok(entries) => (Keeping::UntilReboot, entries),
            // Written anew with the next that is handed over.
            Err(reason) => (Keeping::No(format!("{} was left unread: {reason}", path.display())), BTreeMap::new()),
        };
        (Self { path: Some(path), keeping: Mutex::new(keeping) }, entries)
    }

    pub(super) fn keeping(&self) -> Keeping {
        self.keeping.lock().clone()
    }

    pub(super) async fn write(&self, entries: BTreeMap<CredentialScope, Entry>) {
        let Some(path) = self.path.clone() else { return };
        let shown = path.display().to_string();
        let written = tokio::task::spawn_blocking(move || write(&path, &document(&entries)?)).await;
        let keeping = match written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => Keeping::UntilReboot,
            Err(error) => {
                tracing::warn!(%error, path = shown, "handed-over credentials are not kept for the next process");
                Keeping::No(format!("{shown} cannot be written: {error}"))
            }
        };
        *self.keeping.lock() = keeping;
    }
}

fn is_in_memory(dir: &Path) -> io::Result<bool> {
    let kind = rustix::fs::statfs(dir)?.f_type;
    // The type differs between architectures; the numbers have 32 bits everywhere.
    let kind = u64::try_from(kind).unwrap_or_default();
    Ok(matches!(kind, TMPFS_MAGIC | RAMFS_MAGIC))
}

fn read(path: &Path) -> Result<BTreeMap<CredentialScope, Entry>, String> {
    let Some(bytes) = file::read_up_to(path, Audience::OwnerAndGroup, MAX_KEPT_BYTES)? else {
        return Ok(BTreeMap::new());
    };
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<CredentialScope, Entry>, String> {
    let foreign = || "it was not written by this release".to_owned();
    let document: Document = serde_json::from_slice(bytes).map_err(|_| foreign())?;
    if document.version != VERSION {
        return Err(foreign());
    }
    let entries = document.credentials.into_iter().map(|record| {
        let scope: CredentialScope = record.fields.scope.parse().map_err(|_| foreign())?;
        let expires = record.expires.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds.min(MAX_SECONDS)));
        let credential = record.fields.credential().map_err(|_| foreign())?;
        Ok((scope, Entry { credential, expires }))
    });
    entries.collect()
}

/// The end of the year 9999, in seconds since 1970: no clock counts further.
const MAX_SECONDS: u64 = 253_402_300_799;

/// What a record is written as; read back as [`Record`].
#[derive(serde::Serialize)]
struct Written<'a> {
    scope: String,
    username: Option<&'a str>,
    password: Option<&'a str>,
    identity_token: Option<&'a str>,
    registry_token: Option<&'a str>,
    expires: Option<u64>,
}

#[derive(serde::Serialize)]
struct WrittenDocument<'a> {
    version: u32,
    credentials: Vec<Written<'a>>,
}

fn written<'a>(scope: &CredentialScope, entry: &'a Entry) -> Written<'a> {
    let (username, password, identity_token, registry_token) = match &entry.credential {
        Credential::Anonymous => (None, None, None, None),
        Credential::Basic { user, password } => (Some(user.as_str()), Some(password.expose()), None, None),
        Credential::Identity(token) => (None, None, Some(token.expose()), None),
        Credential::Token(token) => (None, None, None, Some(token.expose())),
    };
    let since = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let scope = scope.to_string();
    Written { scope, username, password, identity_token, registry_token, expires: entry.expires.map(since) }
}

fn document(entries: &BTreeMap<CredentialScope, Entry>) -> io::Result<Zeroizing<Vec<u8>>> {
    let credentials = entries.iter().map(|(scope, entry)| written(scope, entry)).collect();
    let text = serde_json::to_vec(&WrittenDocument { version: VERSION, credentials })?;
    Ok(Zeroizing::new(text))
}

/// Puts a new file in the old one's place: who reads sees one of them whole.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file: File = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::Secret;

    fn entries() -> BTreeMap<CredentialScope, Entry> {
        let secret = |text: &str| Secret::new(text.to_owned());
        let end = UNIX_EPOCH + Duration::from_secs(4_000_000_000);
        [
            ("a.io", Credential::Basic { user: "u".to_owned(), password: secret("p\"\u{e9}") }, None),
            ("b.io/team", Credential::Identity(secret("i")), Some(end)),
            ("c.io", Credential::Token(secret("t")), None),
        ]
        .map(|(scope, credential, expires)| (scope.parse().unwrap(), Entry { credential, expires }))
        .into()
    }

    #[test]
    fn what_is_written_reads_back_and_nobody_else_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        for _ in 0..2 {
            write(&path, &document(&entries()).unwrap()).unwrap();
        }
        assert_eq!(read(&path), Ok(entries()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path).is_err(), "somebody may have put it there");
    }

    #[test]
    fn what_another_release_wrote_is_not_read_and_not_repeated() {
        for text in
            ["", "hunter2", r#"{"version":2,"credentials":[]}"#, r#"{"version":1,"credentials":[{"scope":"a.io"}]}"#]
        {
            let reason = parse(text.as_bytes()).unwrap_err();
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_outside_memory() {
        // The source tree lies on a disk.
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("never-written");
        let (kept, held) = Kept::open(Some(path.clone()));
        assert!(held.is_empty());
        kept.write(entries()).await;
        let on_disk = !is_in_memory(path.parent().unwrap()).unwrap();
        assert_eq!(matches!(kept.keeping(), Keeping::No(_)), on_disk);
        assert_eq!(path.exists(), !on_disk);
    }

    #[tokio::test]
    async fn the_next_process_finds_what_was_kept_in_memory() {
        // What Linux machines have for shared memory.
        let shm = Path::new("/dev/shm");
        if !is_in_memory(shm).unwrap_or(false) {
            eprintln!("skipped: no file system in memory at /dev/shm");
            return;
        }
        let dir = tempfile::tempdir_in(shm).unwrap();
        let path = dir.path().join("kept");
        let (kept, held) = Kept::open(Some(path.clone()));
        assert!(held.is_empty());
        kept.write(entries()).await;
        let (kept, held) = Kept::open(Some(path));
        assert_eq!((kept.keeping(), held), (Keeping::UntilReboot, entries()));
    }
}

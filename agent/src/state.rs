//! The state directory: who owns it, and what is recorded in it.
//!
//! ```text
//! lock                     locked by the one agent that uses the directory; holds its process id
//! attachments/<id>.json    one record per attachment, see `record`, and its `check`
//! indexes/                 what images are verified by
//! layers/                  indexes of ordinary layers
//! manifests/               of images whose layers containerd was told are there
//! maps/                    merged maps of images, made again when lost
//! recordings/              what images read while starting; of no use when lost
//! fuse/                    where images are shown as files without ublk; empty while no agent runs
//! cache/                   chunks, unless `cache.dir` says otherwise
//! ```

pub mod check;
pub mod record;
pub(crate) mod sealed;

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use penstock_device::DeviceId;
use record::{Record, RecordError};

/// Ends the name of a record that is being written. One found at start was never answered for: it is removed.
const UNFINISHED: &str = ".unfinished";

/// A state directory that this process owns until the value is dropped.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    /// Closing it, at the latest, gives the directory up.
    lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process holds the lock.
    #[error("state directory {} is in use by another agent{}; stop that one, or give this one a directory of its own with --state-dir", dir.display(), by(owner))]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The process id that the other one wrote, if it can be read.
        owner: Option<u32>,
    },
    /// The disk is full, or a quota is.
    #[error("no room in {}; free some disk space (cached chunks are bounded by cache.cap), then try again", path.display())]
    NoRoom {
        /// What was being written.
        path: PathBuf,
    },
    /// The system refused for another reason.
    #[error("cannot {verb} {}: {reason}; check that this user may write there, or name another directory with --state-dir", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// A record would not be read back.
    #[error("cannot record attachment: {0}")]
    Record(#[from] RecordError),
}

fn by(owner: &Option<u32>) -> String {
    owner.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

impl StateError {
    fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |reason| match reason.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoRoom { path },
            _ => Self::Io { verb, path, reason },
        }
    }
}

/// A file among the records that is not one.
#[derive(Debug)]
pub struct Unreadable {
    /// The file, left where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub error: RecordError,
}

impl StateDir {
    /// Makes the directory if it is missing (mode 0700), takes its lock, and removes records and maps that were never finished.
    ///
    /// # Errors
    /// [`StateError::InUse`] when another agent has it; else what the system says.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let below =
            ["attachments", "maps", "fuse", "indexes", "layers", "manifests", "recordings"].map(|name| root.join(name));
        for dir in std::iter::once(root.to_path_buf()).chain(below) {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(StateError::io("create", &dir))?;
        }
        let lock = lock(root)?;
        let state = Self { root: root.to_path_buf(), lock };
        for path in state.files()?.into_iter().filter(|path| path.to_string_lossy().ends_with(UNFINISHED)) {
            fs::remove_file(&path).map_err(StateError::io("remove", &path))?;
        }
        let maps = state.maps();
        penstock_image::sweep(&maps).map_err(StateError::io("clear", &maps))?;
        Ok(state)
    }

    /// Gives the directory up before the value is dropped. Nothing may be written to it from then on.
    ///
    /// # Errors
    /// When the system does not unlock the file.
    pub fn release(&self) -> Result<(), StateError> {
        self.lock.unlock().map_err(StateError::io("unlock", &self.root.join("lock")))
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where maps of images are kept.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Where indexes of attached images are kept.
    #[must_use]
    pub fn indexes(&self) -> PathBuf {
        self.root.join("indexes")
    }

    /// Where indexes of ordinary layers are kept.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Where manifests of images are kept whose layers containerd was told are there.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// Where recordings of what images read while starting are kept.
    #[must_use]
    pub fn recordings(&self) -> PathBuf {
        self.root.join("recordings")
    }

    /// Where images are shown as files.
    #[must_use]
    pub fn fuse(&self) -> PathBuf {
        self.root.join("fuse")
    }

    /// All records, in the order of their attaching, and the files that are none.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn records(&self) -> Result<(Vec<Record>, Vec<Unreadable>), StateError> {
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for path in self.files()? {
            match record::read(&path) {
                Ok(record) => records.push(record),
                Err(error) => unreadable.push(Unreadable { path, error }),
            }
        }
        records.sort_by(|a, b| (a.attached_at, a.id.as_str()).cmp(&(b.attached_at, b.id.as_str())));
        Ok((records, unreadable))
    }

    /// Writes a record so that it survives a power cut once this returns.
    ///
    /// # Errors
    /// [`StateError::NoRoom`] on a full disk; else what the system says. Nothing is recorded then.
    pub fn save(&self, record: &Record) -> Result<(), StateError> {
        let text = check::seal(&record.to_text()?);
        let path = self.path(&record.id);
        let unfinished = path.with_extension(format!("json{UNFINISHED}"));
        let written = File::create(&unfinished)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| self.sync());
        written.map_err(|error| {
            // Best effort: what stays is removed at the next start.
            let _ = fs::remove_file(&unfinished);
            StateError::io("write", &path)(error)
        })
    }

    /// Removes a record so that a power cut does not bring it back once this returns. Removing one that is not there is done already.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self, id: &DeviceId) -> Result<(), StateError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::io("remove", &path)(error)),
            _ => self.sync().map_err(StateError::io("remove", &path)),
        }
    }

    fn path(&self, id: &DeviceId) -> PathBuf {
        self.root.join("attachments").join(format!("{id}.json"))
    }

    fn files(&self) -> Result<Vec<PathBuf>, StateError> {
        let dir = self.root.join("attachments");
        let list = || fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
        list().map_err(StateError::io("list", &dir))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(self.root.join("attachments"))?.sync_all()
    }
}

/// The locked lock file, with our process id in it.
fn lock(root: &Path) -> Result<File, StateError> {
    let path = root.join("lock");
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(StateError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let owner = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(StateError::InUse { dir: root.to_path_buf(), owner });
        }
        Err(TryLockError::Error(error)) => return Err(StateError::io("lock", &path)(error)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(StateError::io("write", &path))?;
    Ok(file)
}

//! Which images were pulled with credentials: what a removal, which names an image by its ID or by one of its names, takes them back by.
//!
//! Holds no secret. Kept in a file of the same lifetime as the credentials.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::events::{Events, Kind};

/// Most pulls remembered. A node has some hundred images; beyond this the oldest is forgotten, and its credentials stay until the reboot.
const MOST_PULLS: usize = 4096;
/// Largest file read, in bytes: that many pulls with the longest names.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// The version of the file.
const VERSION: u32 = 1;

/// One name under which an image was pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pull {
    /// The reference in full.
    reference: String,
    /// What its credentials were handed over for.
    scope: String,
    /// containerd's ID of the image.
    id: Option<String>,
    /// It was removed, but something still read of its repository.
    #[serde(default)]
    is_removed: bool,
}

/// The pulls, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pulled(VecDeque<Pull>);

impl Pulled {
    /// An image was pulled, with credentials that were handed over for `scope`.
    pub(super) fn add(&mut self, reference: String, scope: String, id: Option<String>) {
        self.0.retain(|pull| pull.reference != reference);
        if self.0.len() >= MOST_PULLS {
            self.0.pop_front();
        }
        self.0.push_back(Pull { reference, scope, id, is_removed: false });
    }

    /// The image that is called `name`, a reference in full or an ID, was removed, with all its names as containerd has it. Answers the
    /// scopes that no image is left for and of which nothing is read any more (`is_read`); they are forgotten.
    pub(super) fn remove(&mut self, name: &str, is_read: impl Fn(&str) -> bool) -> Vec<String> {
        let is_named = |pull: &Pull| pull.reference == name || pull.id.as_deref().is_some_and(|id| is_id(id, name));
        let ids: BTreeSet<String> =
            self.0.iter().filter(|pull| is_named(pull)).filter_map(|pull| pull.id.clone()).collect();
        for pull in &mut self.0 {
            pull.is_removed |= is_named(pull) || pull.id.as_ref().is_some_and(|id| ids.contains(id));
        }
        let left: BTreeSet<&str> =
            self.0.iter().filter(|pull| !pull.is_removed).map(|pull| pull.scope.as_str()).collect();
        let gone: BTreeSet<String> =
            self.0.iter().map(|pull| &pull.scope).filter(|scope| !left.contains(scope.as_str())).cloned().collect();
        let unused: Vec<String> = gone.into_iter().filter(|scope| !is_read(scope)).collect();
        // A removed name matters only while its scope waits to be withdrawn.
        let still_left: BTreeSet<String> = left.into_iter().map(str::to_owned).collect();
        let is_over = |pull: &Pull| pull.is_removed && still_left.contains(&pull.scope);
        self.0.retain(|pull| !(unused.contains(&pull.scope) || is_over(pull)));
        unused
    }
}

/// Whether a name is this ID, written with or without its algorithm.
fn is_id(id: &str, name: &str) -> bool {
    id == name || id.split_once(':').is_some_and(|(_, hex)| hex == name)
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    pulls: VecDeque<Pull>,
}

/// The table, and where it is kept for the next process.
#[derive(Debug)]
pub(super) struct PulledFile {
    path: Option<PathBuf>,
    /// Held while it is written, so that what was said last stays.
    pulled: tokio::sync::Mutex<Pulled>,
    events: Events,
}

impl PulledFile {
    /// What the last process kept; nothing when that cannot be read.
    pub(super) async fn open(path: Option<PathBuf>, events: Events) -> Self {
        let from = path.clone();
        let read = tokio::task::spawn_blocking(move || from.map_or_else(|| Ok(Pulled::default()), |path| read(&path)));
        let read = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let pulled = read.unwrap_or_else(|error| {
            let text = format!(
                "which images were pulled with credentials is forgotten ({error}): those credentials stay until the reboot, unless `penstock credentials remove` is told"
            );
            events.record(Kind::ImagesCredentials, &text, &[]);
            Pulled::default()
        });
        Self { path, pulled: tokio::sync::Mutex::new(pulled), events }
    }

    /// Changes the table, and keeps it.
    pub(super) async fn change<T>(&self, change: impl FnOnce(&mut Pulled) -> T) -> T {
        let mut pulled = self.pulled.lock().await;
        let before = pulled.clone();
        let answer = change(&mut pulled);
        let Some(path) = self.path.clone().filter(|_| before != *pulled) else { return answer };
        let document = Document { version: VERSION, pulls: pulled.0.clone() };
        let written = tokio::task::spawn_blocking(move || write(&path, &document)).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            let text = format!("which images were pulled with credentials cannot be kept for the next start: {error}");
            self.events.record(Kind::ImagesCredentials, &text, &[]);
        }
        answer
    }
}

fn read(path: &Path) -> io::Result<Pulled> {
    let mut text = String::new();
    match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pulled::default()),
        opened => opened?.take(MAX_FILE_BYTES).read_to_string(&mut text)?,
    };
    let document: Document = serde_json::from_str(&text)?;
    if document.version != VERSION {
        return Err(io::Error::other(format!("{} is of version {}", path.display(), document.version)));
    }
    let skipped = document.pulls.len().saturating_sub(MOST_PULLS);
    Ok(Pulled(document.pulls.into_iter().skip(skipped).collect()))
}

/// Not synced: it goes with the reboot, as what it is about does.
fn write(path: &Path, document: &Document) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(&serde_json::to_vec(document)?)?;
    fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulled(pulls: &[(&str, &str, &str)]) -> Pulled {
        let mut pulled = Pulled::default();
        for (reference, scope, id) in pulls {
            pulled.add((*reference).to_owned(), (*scope).to_owned(), Some((*id).to_owned()));
        }
        pulled
    }

    #[test]
    fn credentials_go_with_the_last_image_of_their_repository() {
        let mut all =
            pulled(&[("r/a:1", "r/a", "sha256:1"), ("r/a:2", "r/a", "sha256:2"), ("r/b:1", "r/b", "sha256:3")]);
        let nobody = |_: &str| false;
        assert_eq!(all.remove("sha256:1", nobody), Vec::<String>::new());
        assert_eq!(all.remove("r/c:1", nobody), Vec::<String>::new());
        assert_eq!(all.remove("2", nobody), ["r/a"], "an ID without its algorithm");
        assert_eq!(all.remove("r/b:1", nobody), ["r/b"]);
        assert_eq!(all, Pulled::default());
    }

    #[test]
    fn an_image_is_removed_with_all_its_names() {
        let mut all = pulled(&[("r/a:1", "r/a", "sha256:1"), ("r/b:1", "r/b", "sha256:1")]);
        assert_eq!(all.remove("r/b:1", |_| false), ["r/a", "r/b"]);
    }

    #[test]
    fn a_name_that_is_pulled_again_counts_once() {
        let mut all = pulled(&[("r/a:1", "r/a", "sha256:1"), ("r/a:1", "r/a", "sha256:2")]);
        assert_eq!(all.remove("sha256:1", |_| false), Vec::<String>::new());
        assert_eq!(all.remove("sha256:2", |_| false), ["r/a"]);
    }

    #[test]
    fn credentials_of_what_is_still_read_go_with_a_later_removal() {
        let mut all = pulled(&[("r/a:1", "r/a", "sha256:1"), ("r/b:1", "r/b", "sha256:2")]);
        assert_eq!(all.remove("sha256:1", |scope| scope == "r/a"), Vec::<String>::new());
        let mut again = all.clone();
        assert_eq!(all.remove("sha256:2", |_| false), ["r/a", "r/b"]);
        again.add("r/a:1".to_owned(), "r/a".to_owned(), Some("sha256:1".to_owned()));
        assert_eq!(again.remove("sha256:2", |_| false), ["r/b"], "it was pulled again");
    }

    #[test]
    fn no_more_than_the_bound_is_remembered() {
        let mut all = Pulled::default();
        for n in 0..=MOST_PULLS {
            all.add(format!("r/a:{n}"), "r/a".to_owned(), None);
        }
        assert_eq!(all.0.len(), MOST_PULLS);
        assert_eq!(all.0[0].reference, "r/a:1");
    }

    #[tokio::test]
    async fn the_table_is_there_again_after_a_restart_and_for_nobody_else() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images.pulled");
        let events = Events::new();
        let first = PulledFile::open(Some(path.clone()), events.clone()).await;
        first.change(|all| all.add("r/a:1".to_owned(), "r/a".to_owned(), Some("sha256:1".to_owned()))).await;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = PulledFile::open(Some(path.clone()), events.clone()).await;
        assert_eq!(second.change(|all| all.remove("sha256:1", |_| false)).await, ["r/a"]);
        fs::write(&path, "{").unwrap();
        let third = PulledFile::open(Some(path), events.clone()).await;
        assert_eq!(third.change(|all| all.clone()).await, Pulled::default());
        assert_eq!(events.since(0, 9).events[0].kind, "images.credentials");
    }
}

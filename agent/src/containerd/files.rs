//! Reading and replacing the files. The only part that touches the disk.
//!
//! A file is replaced whole, by renaming a new one over it: containerd reads the old text or the new one. Mode and owner stay. A config that
//! is a mount of its own, as in a container, cannot be renamed over and is written in place.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use super::{
    plan::{Change, Imported, Paths, Seen, is_of, patterns},
    release::Release,
    settings::Settings,
};

/// Longest config that is read; containerd's own default has 10 KiB.
const MOST_BYTES: u64 = 1 << 20;
/// Most files that a config imports.
const MOST_IMPORTED: usize = 256;
/// Mode of a file that was not there, as of containerd's package.
const MODE: u32 = 0o644;

/// What could not be done with which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}: {reason}; run this as a user who may, mostly root", path.display())]
pub struct FileError {
    verb: &'static str,
    path: PathBuf,
    reason: io::Error,
}

impl FileError {
    fn on(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |reason| Self { verb, path: path.to_path_buf(), reason }
    }
}

/// The text of a file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, FileError> {
    let mut text = String::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::on("read", path)(error)),
    };
    let read = file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(FileError::on("read", path))?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MOST_BYTES {
        let reason = io::Error::other(format!("it is longer than {MOST_BYTES} bytes"));
        return Err(FileError::on("read", path)(reason));
    }
    Ok(Some(text))
}

/// The files that are ours to change, as they are.
pub(super) fn see(paths: &Paths) -> Result<Seen, FileError> {
    let (main, drop_in, backup) = (read(&paths.main)?, read(&paths.drop_in)?, read(&paths.backup())?);
    Ok(Seen { main, drop_in, backup, imported: Vec::new() })
}

/// The files that containerd reads besides, in its order.
pub(super) fn imported(paths: &Paths, seen: &Seen, release: Release) -> Result<Vec<Imported>, FileError> {
    // What is no TOML imports nothing; the plan says so.
    let settings = Settings::parse(seen.main.as_deref().unwrap_or_default()).unwrap_or_default();
    let (mut all, mut is_later) = (Vec::new(), false);
    for pattern in patterns(release, &settings) {
        let has_ours = is_of(&pattern, &paths.main, &paths.drop_in);
        for path in expand(&pattern, &paths.main).into_iter().filter(|path| *path != paths.drop_in) {
            if let Some(text) = read(&path)?
                && all.len() < MOST_IMPORTED
            {
                // The files of a pattern are read in the order of their names.
                let is_later = is_later || has_ours && path > paths.drop_in;
                all.push(Imported { path, text, is_later });
            }
        }
        is_later |= has_ours;
    }
    Ok(all)
}

/// Whether the main config has our file read.
pub(super) fn imports_ours(paths: &Paths, seen: &Seen, release: Release) -> bool {
    let settings = Settings::parse(seen.main.as_deref().unwrap_or_default()).unwrap_or_default();
    patterns(release, &settings).iter().any(|pattern| is_of(pattern, &paths.main, &paths.drop_in))
}

/// The files of a pattern, sorted as containerd sorts them.
fn expand(pattern: &str, main: &Path) -> Vec<PathBuf> {
    let full = main.parent().unwrap_or(Path::new("/")).join(pattern);
    if !pattern.contains(['*', '?']) {
        return vec![full];
    }
    let entries = full.parent().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_of(pattern, main, path)).collect();
    paths.sort();
    paths
}

/// Does one change. A new file gets the mode and owner of `main`, of which it may repeat a part that not everybody may read.
pub(super) fn apply(change: &Change, main: &Path) -> Result<(), FileError> {
    let Some(text) = &change.after else {
        fs::remove_file(&change.path).map_err(FileError::on("remove", &change.path))?;
        sync_dir(&change.path)?;
        return remove_empty(change.path.parent().filter(|dir| Some(*dir) != main.parent()));
    };
    // A link leads to the file that is meant.
    let path = change.path.canonicalize().unwrap_or_else(|_| change.path.clone());
    write(&path, text, main).map_err(FileError::on("write", &path))?;
    sync_dir(&path)
}

/// Removes the directory beside the main config that was made for our file, unless somebody has a file in it.
fn remove_empty(dir: Option<&Path>) -> Result<(), FileError> {
    let Some(dir) = dir else { return Ok(()) };
    match fs::remove_dir(dir) {
        Ok(()) => sync_dir(dir),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) => Err(FileError::on("remove", dir)(error)),
    }
}

fn write(path: &Path, text: &str, main: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let mut new = tempfile::Builder::new().prefix(".penstock-").tempfile_in(dir)?;
    new.write_all(text.as_bytes())?;
    let old = fs::metadata(path).or_else(|_| fs::metadata(main)).ok();
    if let Some(old) = &old {
        fchown(new.as_file(), Some(old.uid()), Some(old.gid()))?;
    }
    new.as_file().set_permissions(Permissions::from_mode(old.as_ref().map_or(MODE, |old| old.mode() & 0o7777)))?;
    new.as_file().sync_all()?;
    match new.persist(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
            in_place(path, text)
        }
        Err(error) => Err(error.error),
    }
}

/// Writes over a file that is a mount point.
fn in_place(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).truncate(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn sync_dir(path: &Path) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(FileError::on("write", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_through_its_links() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real.toml"), dir.path().join("config.toml"));
        fs::write(&real, "a = 1\n").unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real.toml", &link).unwrap();
        let change = |path: &Path, after: Option<&str>| Change {
            path: path.to_path_buf(),
            before: None,
            after: after.map(str::to_owned),
            is_copy: false,
        };
        let apply = |change: &Change| apply(change, &link).unwrap();
        apply(&change(&link, Some("a = 2\n")));
        assert_eq!(read(&real).unwrap().as_deref(), Some("a = 2\n"));
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let new = dir.path().join("conf.d/x.toml");
        apply(&change(&new, Some("b = 1\n")));
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o7777, 0o640, "as the main config");
        let other = new.with_file_name("other.toml");
        fs::write(&other, "").unwrap();
        apply(&change(&new, None));
        assert_eq!((read(&new).unwrap(), read(&other).unwrap().as_deref()), (None, Some("")), "it is somebody's");
        fs::remove_file(&other).unwrap();
        apply(&change(&new, Some("b = 1\n")));
        apply(&change(&new, None));
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["config.toml", "real.toml"], "the directory that was made for it goes with it");
    }

    #[test]
    fn imports_are_seen_with_their_order_around_ours() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::beside(&dir.path().join("config.toml"));
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        for name in ["a.toml", "penstock.toml", "z.toml", "z.toml.edited"] {
            fs::write(dir.path().join("conf.d").join(name), format!("# {name}")).unwrap();
        }
        let see = |imports: &str| {
            fs::write(&paths.main, format!("version = 2\nimports = {imports}\n")).unwrap();
            let seen = see(&paths).unwrap();
            let of = |file: &Imported| (file.path.file_name().unwrap().to_str().unwrap().to_owned(), file.is_later);
            assert_eq!(seen.drop_in.as_deref(), Some("# penstock.toml"));
            imported(&paths, &seen, Release::new(1, 7)).unwrap().iter().map(of).collect::<Vec<_>>()
        };
        let expected = [("a.toml".to_owned(), false), ("z.toml".to_owned(), true)];
        assert_eq!(see(&format!("[\"{}/conf.d/*.toml\"]", dir.path().display())), expected);
        assert_eq!(see("[\"conf.d/a.toml\", \"conf.d/penstock.toml\", \"conf.d/?.toml\"]")[0], expected[0]);
        assert_eq!(see("[\"conf.d/z.toml\"]"), [("z.toml".to_owned(), false)]);
        assert_eq!(see("[\"conf.d/none.toml\"]"), []);
    }
}

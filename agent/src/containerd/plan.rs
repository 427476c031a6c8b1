//! What is to be written so that containerd uses our snapshotter, and what is to be taken back. Pure: texts in, texts out.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{
    drop_in::{self, Content, NAME, OVERLAYFS, Origin, Proxy},
    imports::{self, Fault},
    release::Release,
    settings::{CRI, Runtime, Settings, dotted},
};

/// Where containerd 2.2 and later look for more files when the config names none.
const DEFAULT_IMPORTS: &str = "/etc/containerd/conf.d";
/// First line of a config that we made because there was none.
const MADE: &str =
    "# Made by `penstock containerd configure`, because there was no config; with --undo it is removed.\n";

/// The files that are looked at and written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Paths {
    /// containerd's config.
    pub(super) main: PathBuf,
    /// Our file.
    pub(super) drop_in: PathBuf,
    /// Whether the main config must import it by itself: then that is not changed.
    pub(super) is_named: bool,
}

impl Paths {
    /// Beside `main`, where containerd's own examples have them.
    pub(super) fn beside(main: &Path) -> Self {
        let dir = main.parent().unwrap_or(Path::new("/")).join("conf.d");
        Self { main: main.to_path_buf(), drop_in: dir.join("penstock.toml"), is_named: false }
    }

    /// With our file at `drop_in`, which `main` imports.
    pub(super) fn named(main: &Path, drop_in: &Path) -> Self {
        Self { main: main.to_path_buf(), drop_in: drop_in.to_path_buf(), is_named: true }
    }

    /// The main config as it was before our change.
    pub(super) fn backup(&self) -> PathBuf {
        let mut name = self.main.clone().into_os_string();
        name.push(".before-penstock");
        name.into()
    }

    /// Our file as somebody else had changed it. containerd reads `*.toml` only.
    pub(super) fn edited(&self) -> PathBuf {
        let mut name = self.drop_in.clone().into_os_string();
        name.push(".edited");
        name.into()
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) release: Release,
    pub(super) paths: Paths,
    pub(super) proxy: Proxy,
    /// The runtime whose containers are to be ours; all containers when `None`.
    pub(super) class: Option<String>,
    /// This machine's platform.
    pub(super) platform: String,
    /// Also against what somebody else has set.
    pub(super) force: bool,
}

/// A file that the main config has containerd read too, without ours.
#[derive(Debug, Clone)]
pub(super) struct Imported {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// Whether it is read after our file, so that it has the last word.
    pub(super) is_later: bool,
}

/// The files as they are.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) main: Option<String>,
    pub(super) imported: Vec<Imported>,
    pub(super) drop_in: Option<String>,
    pub(super) backup: Option<String>,
}

/// One file to write or to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) path: PathBuf,
    pub(super) before: Option<String>,
    /// What it is to hold; removed when `None`.
    pub(super) after: Option<String>,
    /// Whether it is a copy of something, of which nobody needs to see a difference.
    pub(super) is_copy: bool,
}

/// Everything to be done, in this order: containerd may be started between any two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
    /// What a person should know, each in a line.
    pub(super) notes: Vec<String>,
}

impl Plan {
    fn change(&mut self, path: &Path, before: Option<&str>, after: Option<&str>, is_copy: bool) {
        if before != after {
            let (before, after) = (before.map(str::to_owned), after.map(str::to_owned));
            self.changes.push(Change { path: path.to_path_buf(), before, after, is_copy });
        }
    }
}

/// Why nothing is written. Each text is one line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A config is no TOML.
    #[error("{}, line {line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The main config is of version 1.
    #[error("{} names plugins as before version 2 ({plugins}); migrate it first: containerd config migrate", path.display())]
    OldPlugins {
        /// The file.
        path: PathBuf,
        /// Their names.
        plugins: String,
    },
    /// The main config is newer than containerd.
    #[error("{} is of version {version}, which containerd {release} does not read; name the right release with --version", path.display())]
    NewConfig {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: i64,
        /// The release of containerd.
        release: Release,
    },
    /// Runtimes have no snapshotters there.
    #[error(
        "containerd {release} has one snapshotter for all runtimes; leave --runtime-class out, or use containerd 1.7 or later"
    )]
    NoRuntimeSnapshotters {
        /// The release of containerd.
        release: Release,
    },
    /// Somebody has set something else.
    #[error(
        "{} sets {key} = {value}, where {wanted} would hold; take that line out, choose some containers only with --runtime-class, or override it with --force", path.display()
    )]
    Conflict {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value there.
        value: String,
        /// What we would set.
        wanted: String,
    },
    /// Somebody has the last word.
    #[error("{} sets {key} = {value} and is read after {}, so that {wanted} would not hold; take that line out", path.display(), ours.display())]
    Later {
        /// The file.
        path: PathBuf,
        /// Our file.
        ours: PathBuf,
        /// The key.
        key: String,
        /// Its value there.
        value: String,
        /// What we would set.
        wanted: String,
    },
    /// Our file was named, and would not be read.
    #[error("{} does not import {}; take a file that it imports, or leave --drop-in out to have it import ours", path.display(), ours.display())]
    NotImported {
        /// containerd's config.
        path: PathBuf,
        /// Our file.
        ours: PathBuf,
    },
    /// Our file's place is taken.
    #[error("{} {reason}; with --force it is replaced, and kept under the name {}", path.display(), kept.display())]
    Taken {
        /// Our file.
        path: PathBuf,
        /// Why it is not replaced.
        reason: &'static str,
        /// Where it would be kept.
        kept: PathBuf,
    },
}

impl Refusal {
    fn syntax(path: &Path) -> impl Fn(Fault) -> Self {
        move |fault| Self::Syntax { path: path.to_path_buf(), line: fault.line, reason: fault.reason }
    }
}

fn parse(path: &Path, text: &str) -> Result<Settings, Refusal> {
    let syntax = |(line, reason)| Refusal::Syntax { path: path.to_path_buf(), line, reason };
    Settings::parse(text).map_err(syntax)
}

/// What makes containerd use our snapshotter.
pub(super) fn configure(wanted: &Wanted, seen: &Seen) -> Result<Plan, Refusal> {
    let paths = &wanted.paths;
    let main = parse(&paths.main, seen.main.as_deref().unwrap_or_default())?;
    let version = config_version(wanted, seen, &main)?;
    if wanted.class.is_some() && !wanted.release.has_runtime_snapshotters() {
        return Err(Refusal::NoRuntimeSnapshotters { release: wanted.release });
    }
    let mut files = vec![(paths.main.as_path(), main.clone(), false)];
    for file in &seen.imported {
        files.push((&file.path, parse(&file.path, &file.text)?, file.is_later));
    }
    let earlier = || files.iter().rev().filter(|(.., is_later)| !is_later).map(|(_, settings, _)| settings);
    let runtime = earlier().find_map(Settings::default_runtime).unwrap_or_else(Runtime::runc);
    let content = Content {
        release: wanted.release,
        version,
        proxy: &wanted.proxy,
        cri: if wanted.release.replaces_sections() {
            earlier().find_map(Settings::cri).unwrap_or_default()
        } else {
            Table::new()
        },
        class: wanted.class.as_deref().map(|name| (name, runtime)),
        unpack: earlier().find_map(Settings::unpack_configs).unwrap_or_default(),
        platform: &wanted.platform,
    };
    let text = content.text();
    let mut plan = Plan::default();
    let ours = parse(&paths.drop_in, &text)?;
    for (path, settings, is_later) in &files {
        compare(wanted, &ours, (path, settings, *is_later), &mut plan)?;
    }
    take_place(wanted, seen, &mut plan)?;
    plan.change(&paths.drop_in, seen.drop_in.as_deref(), Some(&text), false);
    import(wanted, seen, &main, version, &mut plan)?;
    Ok(plan)
}

/// The version of the main config, if containerd reads it beside our file.
fn config_version(wanted: &Wanted, seen: &Seen, main: &Settings) -> Result<i64, Refusal> {
    let path = wanted.paths.main.clone();
    let newest = wanted.release.newest_config();
    if seen.main.is_none() {
        return Ok(newest);
    }
    if main.version() > newest {
        return Err(Refusal::NewConfig { path, version: main.version(), release: wanted.release });
    }
    let plugins = main.old_plugins();
    if main.version() < 2 && !plugins.is_empty() {
        return Err(Refusal::OldPlugins { path, plugins: plugins.join(", ") });
    }
    // A later version here than there has containerd pass over the older keys of the main config without a word.
    Ok(main.version().max(2))
}

/// Looks for what another file says of the keys that ours sets.
fn compare(
    wanted: &Wanted,
    ours: &Settings,
    (path, theirs, is_later): (&Path, &Settings, bool),
    plan: &mut Plan,
) -> Result<(), Refusal> {
    if is_later && wanted.release.replaces_sections() && theirs.cri().is_some() {
        let (path, ours, key) = (path.to_path_buf(), wanted.paths.drop_in.clone(), dotted(&["plugins", CRI]));
        return Err(Refusal::Later {
            path,
            ours,
            key,
            value: "a section".to_owned(),
            wanted: "our section".to_owned(),
        });
    }
    for (keys, value) in ours.values().into_iter().filter(|(keys, _)| *keys != ["version"]) {
        let Some(other) = theirs.at(&keys).filter(|other| *other != value) else { continue };
        let (path, key) = (path.to_path_buf(), dotted(&keys));
        let (value, wanted_value) = (shown(other), shown(value));
        if is_later {
            return Err(Refusal::Later { path, ours: wanted.paths.drop_in.clone(), key, value, wanted: wanted_value });
        }
        if is_chosen(&keys, other) && !wanted.force {
            return Err(Refusal::Conflict { path, key, value, wanted: wanted_value });
        }
        if !keys.ends_with(&["unpack_config"]) {
            plan.notes.push(format!("{} sets {key} = {value}; from now on it is {wanted_value}", path.display()));
        }
    }
    Ok(())
}

/// Whether somebody has chosen `value`: what containerd writes into a config by itself is nobody's choice, and our list of what is
/// unpacked has theirs in it.
fn is_chosen(keys: &[&str], value: &Value) -> bool {
    match keys.last() {
        Some(&"snapshotter") => ![OVERLAYFS, ""].contains(&value.as_str().unwrap_or_default()),
        Some(&("disable_snapshot_annotations" | "discard_unpacked_layers" | "unpack_config")) => false,
        _ => true,
    }
}

fn shown(value: &Value) -> String {
    value.to_string().replace('\n', " ")
}

/// Makes room for our file: what is not ours, or not as we wrote it, is kept under another name.
fn take_place(wanted: &Wanted, seen: &Seen, plan: &mut Plan) -> Result<(), Refusal> {
    let (path, kept) = (wanted.paths.drop_in.clone(), wanted.paths.edited());
    let Some(text) = seen.drop_in.as_deref() else { return Ok(()) };
    let reason = match drop_in::origin(text) {
        Origin::Ours => return Ok(()),
        Origin::Edited => "was edited since it was written",
        Origin::Foreign => "was not written by penstock",
    };
    if !wanted.force {
        return Err(Refusal::Taken { path, reason, kept });
    }
    plan.notes.push(format!("{} {reason}; it is kept as {}", path.display(), kept.display()));
    plan.change(&kept, None, Some(text), true);
    Ok(())
}

/// Has the main config import our file, unless it does.
fn import(wanted: &Wanted, seen: &Seen, main: &Settings, version: i64, plan: &mut Plan) -> Result<(), Refusal> {
    let paths = &wanted.paths;
    let patterns = patterns(wanted.release, main);
    let is_imported = patterns.iter().any(|pattern| is_of(pattern, &paths.main, &paths.drop_in));
    if paths.is_named && !(is_imported && seen.main.is_some()) {
        return Err(Refusal::NotImported { path: paths.main.clone(), ours: paths.drop_in.clone() });
    }
    let Some(text) = seen.main.as_deref() else {
        plan.change(&paths.main, None, Some(&made(version, &paths.drop_in)), false);
        return Ok(());
    };
    if is_imported {
        return Ok(());
    }
    let path = paths.drop_in.display().to_string();
    let after = imports::with(text, &path).map_err(Refusal::syntax(&paths.main))?;
    plan.change(&paths.backup(), seen.backup.as_deref(), Some(text), true);
    plan.change(&paths.main, Some(text), Some(&after), false);
    Ok(())
}

/// A config for who had none.
fn made(version: i64, drop_in: &Path) -> String {
    format!("{MADE}version = {version}\nimports = [{}]\n", Value::String(drop_in.display().to_string()))
}

/// What the main config has containerd read besides.
pub(super) fn patterns(release: Release, main: &Settings) -> Vec<String> {
    match main.imports() {
        Some(imports) => imports.into_iter().map(str::to_owned).collect(),
        None if release.imports_by_default() => vec![format!("{DEFAULT_IMPORTS}/*.toml")],
        None => Vec::new(),
    }
}

/// Whether `path` is of the `pattern` of imports in `main`: `*` and `?` in the name of the file, relative ones from beside the config.
pub(super) fn is_of(pattern: &str, main: &Path, path: &Path) -> bool {
    let pattern = main.parent().unwrap_or(Path::new("/")).join(pattern);
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    pattern.parent() == path.parent() && fits(name(&pattern).as_bytes(), name(path).as_bytes())
}

fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skipped| fits(rest, &name[skipped..])),
        ([b'?', pattern @ ..], [_, name @ ..]) => fits(pattern, name),
        ([a, pattern @ ..], [b, name @ ..]) => a == b && fits(pattern, name),
        _ => false,
    }
}

/// What takes back all that [`configure`] did.
pub(super) fn undo(paths: &Paths, seen: &Seen) -> Result<Plan, Refusal> {
    let mut plan = Plan::default();
    if let Some(text) = seen.main.as_deref() {
        let after = main_before(paths, seen, text, &mut plan)?;
        // First: containerd does not start with an import that is not there.
        plan.change(&paths.main, Some(text), after.as_deref(), false);
    }
    plan.change(&paths.backup(), seen.backup.as_deref(), None, true);
    match seen.drop_in.as_deref().map(|text| (text, drop_in::origin(text))) {
        Some((text, Origin::Ours)) => plan.change(&paths.drop_in, Some(text), None, false),
        Some((text, Origin::Edited)) => {
            let kept = paths.edited();
            plan.notes.push(format!("{} was edited; it is kept as {}", paths.drop_in.display(), kept.display()));
            plan.change(&kept, None, Some(text), true);
            plan.change(&paths.drop_in, Some(text), None, false);
        }
        Some((_, Origin::Foreign)) => {
            plan.notes.push(format!("{} was not written by penstock; it stays", paths.drop_in.display()));
        }
        None => {}
    }
    Ok(plan)
}

/// The main config as it was, or when it has been edited since, as it is without our import.
fn main_before(paths: &Paths, seen: &Seen, text: &str, plan: &mut Plan) -> Result<Option<String>, Refusal> {
    let ours = paths.drop_in.display().to_string();
    if [2, 3].iter().any(|version| made(*version, &paths.drop_in) == text) {
        return Ok(None);
    }
    let foreign = seen.drop_in.as_deref().is_some_and(|text| drop_in::origin(text) == Origin::Foreign);
    if foreign {
        return Ok(Some(text.to_owned()));
    }
    if let Some(backup) = &seen.backup {
        if imports::with(backup, &ours).as_deref() == Ok(text) {
            return Ok(Some(backup.clone()));
        }
        plan.notes.push(format!("{} was edited since; only the import is taken out", paths.main.display()));
    }
    imports::without(text, &ours).map(Some).map_err(Refusal::syntax(&paths.main))
}

/// What a person should know about this containerd and this agent, however the files stand.
pub(super) fn advice(wanted: &Wanted, seen: &Seen, hosts_dirs: &[PathBuf]) -> Vec<String> {
    let all = std::iter::once(seen.main.as_deref()).flatten().chain(seen.imported.iter().map(|file| &*file.text));
    let all: Vec<Settings> = all.filter_map(|text| Settings::parse(text).ok()).collect();
    let mut notes = Vec::new();
    let dirs: Vec<String> = hosts_dirs.iter().map(|dir| dir.display().to_string()).collect();
    if let Some(path) = all.iter().rev().find_map(Settings::config_path) {
        let theirs: Vec<&str> = path.split(':').filter(|dir| !dir.is_empty()).collect();
        if theirs != dirs {
            notes.push(format!(
                "containerd looks for hosts.toml in {path}, the agent in {}: set hosts_dirs = {theirs:?} in [fetch] of the agent's config",
                if dirs.is_empty() { "no directory".to_owned() } else { dirs.join(":") }
            ));
        }
    }
    if all.iter().any(Settings::has_mirrors) {
        notes.push("containerd's config has registry.mirrors or registry.configs, which the agent does not read: move them to hosts.toml files".to_owned());
    }
    let root = all.iter().rev().find_map(Settings::root).unwrap_or("/var/lib/containerd");
    let usual = format!("{}/io.containerd.snapshotter.v1.{NAME}", root.trim_end_matches('/'));
    if wanted.proxy.root != usual && !wanted.release.has_exports() {
        notes.push(format!(
            "containerd {} takes {usual} for our directory when the kubelet asks how full the disk is: set root to it in [snapshotter] of the agent's config",
            wanted.release
        ));
    }
    notes
}

#[cfg(test)]
mod tests;

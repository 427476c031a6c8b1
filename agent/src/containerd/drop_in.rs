//! What our own file of containerd's config says. Pure.

use penstock_blob::Digest;
use toml::{Table, Value};

use super::{
    release::Release,
    settings::{CRI, CRI_IMAGES, CRI_RUNTIME, Runtime, TRANSFER},
};

/// The name under which containerd knows our snapshotter.
pub(crate) const NAME: &str = "penstock";
/// The snapshotter that containerd has where none is named.
pub(super) const OVERLAYFS: &str = "overlayfs";

/// What the first line of our file begins with.
const MARK: &str = "# Written by `penstock containerd configure`";
/// What stands before the digest of all lines below.
const DIGEST: &str = "# Better not edited here. Below: ";

/// What containerd is told about our snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    /// The socket of our snapshotter.
    pub(super) address: String,
    /// The directory of its data.
    pub(super) root: String,
}

/// Everything that the file depends on.
#[derive(Debug)]
pub(super) struct Content<'a> {
    pub(super) release: Release,
    /// Version of the main config: containerd 2 understands the keys of that version only.
    pub(super) version: i64,
    pub(super) proxy: &'a Proxy,
    /// The runtime whose containers are to be ours, and how they are started; all containers when `None`.
    pub(super) class: Option<(&'a str, Runtime)>,
    /// What CRI is told so far, where the section of our file takes the place of all others.
    pub(super) cri: Table,
    /// What the transfer service unpacked so far.
    pub(super) unpack: Vec<Table>,
    /// This machine's platform, as `linux/amd64`.
    pub(super) platform: &'a str,
}

impl Content<'_> {
    /// The file.
    pub(super) fn text(&self) -> String {
        let mut body = format!("version = {}\n\n", self.version);
        body.push_str(&self.proxy_section());
        body.push_str(&if self.cri.is_empty() { self.cri_sections() } else { self.repeated() });
        if self.release.transfers_lazily() {
            body.push_str(&self.unpack_section());
        }
        let body = format!("{}\n", body.trim_end());
        let head = format!("{MARK} for containerd {}; with --undo it is removed.", self.release);
        format!("{head}\n{DIGEST}{}\n{body}", Digest::of(body.as_bytes()))
    }

    fn proxy_section(&self) -> String {
        let mut text =
            format!("[proxy_plugins.{NAME}]\n  type = \"snapshot\"\n  address = {}\n\n", quoted(&self.proxy.address));
        if self.release.has_exports() {
            text.push_str(&format!("  [proxy_plugins.{NAME}.exports]\n    root = {}\n", quoted(&self.proxy.root)));
            if self.release.transfers_lazily() {
                text.push_str("    enable_remote_snapshot_annotations = \"true\"\n");
            }
            text.push('\n');
        }
        text
    }

    fn cri_sections(&self) -> String {
        let class = self.class.as_ref().map(|(name, runtime)| self.class_section(name, runtime));
        self.images_section() + &class.unwrap_or_default()
    }

    /// CRI's section with all that it said before, and what is ours.
    fn repeated(&self) -> String {
        // Our own text is TOML, and its tables are those of the section.
        let ours: Table = self.cri_sections().parse().unwrap_or_default();
        let theirs = Table::from_iter([(CRI.to_owned(), Value::Table(self.cri.clone()))]);
        let mut all = Table::from_iter([("plugins".to_owned(), Value::Table(theirs))]);
        merge(&mut all, ours);
        format!(
            "# containerd {} takes a plugin's settings from the last file that has some: those of the main config are repeated here.\n\
             # After a change there, run `penstock containerd configure` again.\n{all}\n",
            self.release
        )
    }

    fn images_section(&self) -> String {
        let table = if self.splits() { format!("{CRI_IMAGES:?}") } else { format!("{CRI:?}.containerd") };
        let default = if self.class.is_none() { format!("  snapshotter = {NAME:?}\n") } else { String::new() };
        format!(
            "[plugins.{table}]\n{default}  # Tells the snapshotter which layers it is asked for: without it nothing is lazy.\n  \
             disable_snapshot_annotations = false\n  discard_unpacked_layers = false\n\n"
        )
    }

    fn class_section(&self, name: &str, runtime: &Runtime) -> String {
        let plugin = if self.splits() { CRI_RUNTIME } else { CRI };
        let table = format!("plugins.{plugin:?}.containerd.runtimes.{name}");
        let kind = quoted(&runtime.kind);
        let mut text = format!("[{table}]\n  runtime_type = {kind}\n  snapshotter = {NAME:?}\n\n");
        if !runtime.options.is_empty() {
            text.push_str(&format!("  [{table}.options]\n"));
            text.extend(runtime.options.iter().map(|(key, value)| format!("    {key} = {value}\n")));
            text.push('\n');
        }
        if self.release.splits_cri() {
            // There is no older name for it, so that it stands beside the older keys as well.
            let platform = quoted(self.platform);
            text.push_str(&format!("[plugins.{CRI_IMAGES:?}.runtime_platforms.{name}]\n  platform = {platform}\n  snapshotter = {NAME:?}\n\n"));
        }
        text
    }

    fn unpack_section(&self) -> String {
        let entry = |snapshotter: &str| {
            let pair = |key: &str, value: &str| (key.to_owned(), Value::String(value.to_owned()));
            Table::from_iter([pair("platform", self.platform), pair("snapshotter", snapshotter)])
        };
        // A list here replaces the one before, containerd's own default too.
        let mut all = if self.unpack.is_empty() { vec![entry(OVERLAYFS)] } else { self.unpack.clone() };
        if !all.iter().any(|entry| entry.get("snapshotter").and_then(Value::as_str) == Some(NAME)) {
            all.push(entry(NAME));
        }
        let list = all.iter().map(|entry| {
            let keys: String = entry.iter().map(|(key, value)| format!("  {key} = {value}\n")).collect();
            format!("[[plugins.{TRANSFER:?}.unpack_config]]\n{keys}\n")
        });
        list.collect()
    }

    /// Whether the keys are those of config version 3.
    const fn splits(&self) -> bool {
        self.release.splits_cri() && self.version >= 3
    }
}

/// Puts `over` into `base`, table by table.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// Whose file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Ours, as we wrote it.
    Ours,
    /// Ours, and somebody has changed it since.
    Edited,
    /// Somebody else's.
    Foreign,
}

/// Whose file `text` is.
pub(super) fn origin(text: &str) -> Origin {
    let mut lines = text.splitn(3, '\n');
    let (mark, digest, body) = (lines.next(), lines.next(), lines.next());
    if !mark.is_some_and(|line| line.starts_with(MARK)) {
        return Origin::Foreign;
    }
    let written = digest.and_then(|line| line.strip_prefix(DIGEST)?.parse::<Digest>().ok());
    let now = body.map(|body| Digest::of(body.as_bytes()));
    if written.is_some() && written == now { Origin::Ours } else { Origin::Edited }
}

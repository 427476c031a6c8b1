//! What `penstock containerd configure` says.

use serde::Serialize;

use super::{
    diff,
    plan::{Change, Plan},
    release::Chosen,
};
use crate::output::escape;

/// The answer, as JSON has it.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    release: Option<String>,
    release_from: Option<String>,
    changes: Vec<Shown>,
    notes: Vec<String>,
    /// Whether the files are now as they should be because of this command.
    pub(super) written: bool,
    pub(super) restart: Restart,
}

#[derive(Debug, Serialize)]
struct Shown {
    path: String,
    /// `created`, `changed` or `removed`.
    change: &'static str,
    /// Unified; empty for a copy.
    diff: String,
}

/// What has to happen for containerd to see the files.
#[derive(Debug, Serialize)]
pub(super) struct Restart {
    pub(super) is_needed: bool,
    /// Nothing was written now, and containerd does not know what was written before.
    is_behind: bool,
    /// Where systemd runs.
    pub(super) command: Option<&'static str>,
}

impl Answer {
    pub(super) fn new(chosen: Option<&Chosen>, plan: &Plan, command: Option<&'static str>) -> Self {
        Self {
            release: chosen.map(|chosen| chosen.release.to_string()),
            release_from: chosen.map(|chosen| chosen.why.clone()),
            changes: plan.changes.iter().map(shown).collect(),
            notes: plan.notes.clone(),
            written: false,
            restart: Restart { is_needed: !plan.changes.is_empty(), is_behind: false, command },
        }
    }

    /// The files are as they should be, and containerd was started before they were.
    pub(super) const fn behind(&mut self) {
        self.restart.is_needed = true;
        self.restart.is_behind = true;
    }

    /// containerd has been restarted.
    pub(super) const fn restarted(&mut self) {
        self.restart.is_needed = false;
    }

    /// For people, before anything is written.
    pub(super) fn before(&self) -> String {
        let mut text = String::new();
        if let (Some(release), Some(from)) = (&self.release, &self.release_from) {
            text.push_str(&format!("containerd {release} ({from})\n", from = escape(from)));
        }
        for change in &self.changes {
            text.push_str(&lines(&change.diff));
        }
        text.extend(self.notes.iter().map(|note| format!("note: {}\n", escape(note))));
        text
    }

    /// For people, in the end.
    pub(super) fn after(&self, dry_run: bool) -> String {
        if self.changes.is_empty() {
            return match (self.restart.is_behind, self.restart.is_needed) {
                (false, _) => "nothing to change\n".to_owned(),
                (true, false) => "nothing to change; containerd was restarted\n".to_owned(),
                (true, true) => format!(
                    "nothing to change, but containerd was started before: {} (running containers go on)\n",
                    self.restart.command.unwrap_or("restart it")
                ),
            };
        }
        if dry_run {
            return "nothing was written (--dry-run)\n".to_owned();
        }
        let mut text = String::new();
        text.extend(self.changes.iter().map(|change| format!("{} {}\n", change.change, escape(&change.path))));
        text.push_str(&match (self.restart.is_needed, self.restart.command) {
            (false, _) => "containerd was restarted\n".to_owned(),
            (true, Some(command)) => {
                format!("containerd reads it when it starts: {command} (running containers go on)\n")
            }
            (true, None) => "containerd reads it when it starts: restart it (running containers go on)\n".to_owned(),
        });
        text
    }
}

fn shown(change: &Change) -> Shown {
    let path = change.path.display().to_string();
    let diff = if change.is_copy {
        String::new()
    } else {
        masked(&diff::unified(&path, change.before.as_deref(), change.after.as_deref()))
    };
    let change = match (&change.before, &change.after) {
        (None, _) => "created",
        (Some(_), Some(_)) => "changed",
        (Some(_), None) => "removed",
    };
    Shown { path, change, diff }
}

/// Keys of containerd's registry section whose values nobody should read over a shoulder, or in a log.
const SECRETS: [&str; 4] = ["password", "auth", "identitytoken", "token"];

/// The lines of a difference with secrets left out.
fn masked(text: &str) -> String {
    let mask = |line: &str| match line.split_once('=') {
        Some((key, _)) if SECRETS.contains(&key.trim_matches([' ', '\t', '+', '-', '"'])) => format!("{key}= ***\n"),
        _ => line.to_owned(),
    };
    text.split_inclusive('\n').map(mask).collect()
}

/// Lines of files, without what a terminal would obey; tabs stay.
fn lines(text: &str) -> String {
    let line = |line: &str| line.split('\t').map(escape).collect::<Vec<_>>().join("\t") + "\n";
    text.lines().map(line).collect()
}

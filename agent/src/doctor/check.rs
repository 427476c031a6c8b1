//! One thing that was looked at, and all of them together.

use serde::Serialize;

use crate::output::escape;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not for everything.
    Warning,
    /// It does not work.
    Failed,
    /// Not looked at, for the reason given.
    Skipped,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// A check: what was seen, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) state: State,
    /// What was seen, in a line.
    pub(super) seen: String,
    /// What to do, in a line; `None` when it is good or was skipped.
    pub(super) next: Option<String>,
}

impl Check {
    fn new(name: impl Into<String>, state: State, seen: impl Into<String>, next: Option<&str>) -> Self {
        Self { name: name.into(), state, seen: seen.into(), next: next.map(str::to_owned) }
    }

    pub(super) fn ok(name: impl Into<String>, seen: impl Into<String>) -> Self {
        Self::new(name, State::Ok, seen, None)
    }

    pub(super) fn warning(name: impl Into<String>, seen: impl Into<String>, next: &str) -> Self {
        Self::new(name, State::Warning, seen, Some(next))
    }

    pub(super) fn failed(name: impl Into<String>, seen: impl Into<String>, next: &str) -> Self {
        Self::new(name, State::Failed, seen, Some(next))
    }

    pub(super) fn skipped(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(name, State::Skipped, why, None)
    }
}

/// Everything that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    checks: Vec<Check>,
    ok: usize,
    warnings: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    pub(super) fn new(checks: Vec<Check>) -> Self {
        let count = |state| checks.iter().filter(|check| check.state == state).count();
        let (ok, warnings) = (count(State::Ok), count(State::Warning));
        Self { ok, warnings, failed: count(State::Failed), skipped: count(State::Skipped), checks }
    }

    /// Whether nothing failed.
    pub(super) const fn is_good(&self) -> bool {
        self.failed == 0
    }

    /// For people: a line for each check, and one below it where there is something to do.
    pub(super) fn table(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for check in &self.checks {
            text.push_str(&format!("{:<7}  {:<width$}  {}\n", check.state.word(), check.name, escape(&check.seen)));
            if let Some(next) = &check.next {
                text.push_str(&format!("{:<7}  {:<width$}  -> {}\n", "", "", escape(next)));
            }
        }
        let Self { ok, warnings, failed, skipped, .. } = self;
        text.push_str(&format!("\n{ok} ok, {warnings} warnings, {failed} failed, {skipped} skipped\n"));
        text
    }
}

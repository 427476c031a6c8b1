//! axe-core, which looks for what keeps people out of a page: its rules for WCAG 2.2 A and AA, and its best practices.

use std::{
    fs,
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::{browser::Browser, skip, workspace};

/// The script, or why there is none.
fn script() -> Result<&'static str, String> {
    static SCRIPT: OnceLock<Result<String, String>> = OnceLock::new();
    let script = SCRIPT.get_or_init(|| {
        if let Some(missing) = skip::program("npm") {
            return Err(missing);
        }
        let dir = workspace::target().join("axe-core");
        let fetch = workspace::root().join("tests/scripts/axe.sh");
        let out = Command::new(fetch).arg(&dir).stdin(Stdio::null()).output();
        let out = out.map_err(|error| format!("tests/scripts/axe.sh: {error}"))?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            return Err(format!("no axe-core can be had through npm: {}", said.lines().last().unwrap_or_default()));
        }
        fs::read_to_string(dir.join("axe.min.js")).map_err(|error| error.to_string())
    });
    script.as_deref().map_err(Clone::clone)
}

/// Why it cannot be used here.
#[must_use]
pub fn cannot() -> Option<String> {
    script().err()
}

/// What it finds in what the page shows now: a rule, what it says, and the elements.
///
/// # Panics
/// When it cannot be had: ask [`cannot`] first.
pub fn violations(browser: &mut Browser) -> Vec<String> {
    if browser.value("typeof axe") != "object" {
        browser.value(&format!("{}; true", script().expect("axe, asked for with `cannot`")));
    }
    let run = "axe.run().then((found) => found.violations.map((one) =>
        `${one.id} (${one.impact}): ${one.help}: ${one.nodes.map((node) => node.html).join(' ')}`))";
    let found = browser.value(run);
    let list = found.as_array().expect("a list");
    list.iter().map(|one| one.as_str().expect("a sentence").to_owned()).collect()
}

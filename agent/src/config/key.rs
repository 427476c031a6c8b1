//! What a key of the config is.

use super::{Config, KEYS};

/// One key. Its environment variable and its flag follow from its name.
#[derive(Debug)]
pub struct Key {
    /// Dotted name, as in the file.
    pub name: &'static str,
    /// What it does, in a line.
    pub what: &'static str,
    /// Whether the value is a path: flags may then be relative to the shell's directory.
    pub(super) is_path: bool,
    /// Takes the value over, or says why it is not one.
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
    /// The value as text that `set` takes; `None` when there is none.
    pub(super) show: fn(&Config) -> Option<String>,
}

impl Key {
    /// The key named `name`.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// `cache.chunk_size` is `PENSTOCK_CACHE_CHUNK_SIZE`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("PENSTOCK_{}", self.name.replace('.', "_").to_uppercase())
    }

    /// `cache.chunk_size` is `cache-chunk-size` (without the dashes before it).
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace(['.', '_'], "-")
    }
}

//! What a config file of containerd says, as far as it matters here. Pure.

use toml::{Table, Value};

/// The CRI plugin of containerd 1.x, and of config files before version 3.
pub(super) const CRI: &str = "io.containerd.grpc.v1.cri";
/// CRI's images, in config files of version 3.
pub(super) const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
/// CRI's runtimes, in config files of version 3.
pub(super) const CRI_RUNTIME: &str = "io.containerd.cri.v1.runtime";
/// The transfer service, through which `ctr images pull` of containerd 2 goes.
pub(super) const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// The runtime that containerd has where none is named.
const RUNC: (&str, &str) = ("runc", "io.containerd.runc.v2");

/// A parsed config file.
#[derive(Debug, Default, Clone)]
pub(super) struct Settings(Table);

/// How containers of a runtime are started.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Runtime {
    pub(super) kind: String,
    pub(super) options: Table,
}

impl Runtime {
    /// The one that containerd has where none is named.
    pub(super) fn runc() -> Self {
        Self { kind: RUNC.1.to_owned(), options: Table::new() }
    }
}

impl Settings {
    /// The settings of `text`; the line and the reason when it is no TOML.
    pub(super) fn parse(text: &str) -> Result<Self, (usize, String)> {
        text.parse().map(Self).map_err(|error: toml::de::Error| {
            let offset = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count();
            (line, error.message().trim().replace('\n', "; "))
        })
    }

    /// The version of the file; one without is of version 1.
    pub(super) fn version(&self) -> i64 {
        self.0.get("version").and_then(Value::as_integer).unwrap_or(1)
    }

    /// The files to read after this one; `None` when the file does not speak of it.
    pub(super) fn imports(&self) -> Option<Vec<&str>> {
        Some(self.0.get("imports")?.as_array()?.iter().filter_map(Value::as_str).collect())
    }

    /// Plugins named as before version 2: containerd refuses them beside a drop-in of version 2.
    pub(super) fn old_plugins(&self) -> Vec<&str> {
        let plugins = self.table(&["plugins"]).into_iter().flat_map(Table::keys);
        plugins.map(String::as_str).filter(|name| !name.contains('.')).collect()
    }

    /// Where `hosts.toml` files are looked for: the last word of CRI, when it says something.
    pub(super) fn config_path(&self) -> Option<&str> {
        let places =
            [CRI_IMAGES, CRI].iter().filter_map(|plugin| self.text(&["plugins", plugin, "registry", "config_path"]));
        places.into_iter().find(|path| !path.is_empty())
    }

    /// Whether mirrors stand in this file itself, which containerd has deprecated.
    pub(super) fn has_mirrors(&self) -> bool {
        let table = |plugin: &str, name: &str| self.table(&["plugins", plugin, "registry", name]);
        let tables =
            [CRI, CRI_IMAGES].into_iter().flat_map(|plugin| [table(plugin, "mirrors"), table(plugin, "configs")]);
        tables.flatten().any(|table| !table.is_empty())
    }

    /// The directory of containerd's data.
    pub(super) fn root(&self) -> Option<&str> {
        self.text(&["root"])
    }

    /// The socket that containerd answers on.
    pub(super) fn address(&self) -> Option<&str> {
        self.text(&["grpc", "address"])
    }

    /// The runtime that CRI uses unless told otherwise, when this file describes it.
    pub(super) fn default_runtime(&self) -> Option<Runtime> {
        let of = |plugin: &str| {
            let containerd = self.table(&["plugins", plugin, "containerd"])?;
            let name = containerd.get("default_runtime_name").and_then(Value::as_str).unwrap_or(RUNC.0);
            let runtime = containerd.get("runtimes")?.get(name)?;
            let kind = runtime.get("runtime_type").and_then(Value::as_str).unwrap_or(RUNC.1).to_owned();
            let options = runtime.get("options").and_then(Value::as_table).cloned().unwrap_or_default();
            Some(Runtime { kind, options })
        };
        of(CRI_RUNTIME).or_else(|| of(CRI))
    }

    /// What CRI is told under its older name.
    pub(super) fn cri(&self) -> Option<Table> {
        self.table(&["plugins", CRI]).filter(|table| !table.is_empty()).cloned()
    }

    /// What the transfer service unpacks, and with which snapshotter.
    pub(super) fn unpack_configs(&self) -> Option<Vec<Table>> {
        let list = self.at(&["plugins", TRANSFER, "unpack_config"])?.as_array()?;
        Some(list.iter().filter_map(Value::as_table).cloned().collect())
    }

    /// Every value with the keys that lead to it; a list is one value.
    pub(super) fn values(&self) -> Vec<(Vec<&str>, &Value)> {
        let (mut values, mut waiting) = (Vec::new(), vec![(Vec::new(), &self.0)]);
        while let Some((path, table)) = waiting.pop() {
            for (key, value) in table {
                let path: Vec<&str> = path.iter().copied().chain([key.as_str()]).collect();
                match value {
                    Value::Table(inner) => waiting.push((path, inner)),
                    value => values.push((path, value)),
                }
            }
        }
        values.sort_by(|(a, _), (b, _)| a.cmp(b));
        values
    }

    /// The value that `keys` lead to.
    pub(super) fn at(&self, keys: &[&str]) -> Option<&Value> {
        let (last, tables) = keys.split_last()?;
        let mut table = &self.0;
        for key in tables {
            table = table.get(*key)?.as_table()?;
        }
        table.get(*last)
    }

    fn table(&self, keys: &[&str]) -> Option<&Table> {
        self.at(keys)?.as_table()
    }

    fn text(&self, keys: &[&str]) -> Option<&str> {
        self.at(keys)?.as_str()
    }
}

/// Keys as one writes them: `plugins."io.containerd.grpc.v1.cri".containerd.snapshotter`.
pub(super) fn dotted(keys: &[&str]) -> String {
    let bare = |key: &str| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let keys: Vec<String> =
        keys.iter().map(|key| if bare(key) { (*key).to_owned() } else { format!("{key:?}") }).collect();
    keys.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_under_the_names_of_both_versions() {
        let old = r#"
            version = 2
            [plugins."io.containerd.grpc.v1.cri".registry]
            config_path = "/a"
            mirrors = { "docker.io" = {} }
            [plugins."io.containerd.grpc.v1.cri".containerd]
            default_runtime_name = "crun"
            runtimes.crun = { runtime_type = "io.containerd.runc.v2", options = { SystemdCgroup = true } }"#;
        let new = old.replace("\"io.containerd.grpc.v1.cri\".registry", "\"io.containerd.cri.v1.images\".registry");
        let new = new.replace("grpc.v1.cri", "cri.v1.runtime").replace("version = 2", "version = 3");
        for (text, version) in [(old, 2), (&*new, 3)] {
            let settings = Settings::parse(text).unwrap();
            assert_eq!((settings.version(), settings.config_path()), (version, Some("/a")));
            assert!(settings.has_mirrors() && settings.imports().is_none());
            assert_eq!(settings.default_runtime().unwrap().options.to_string().trim(), "SystemdCgroup = true");
        }
        let bare = Settings::parse("[plugins.cri]\n[plugins.\"a.b\"]\n").unwrap();
        assert_eq!((bare.version(), bare.old_plugins()), (1, vec!["cri"]));
        assert_eq!(bare.default_runtime(), None);
        assert_eq!(Settings::parse("a = 1\nb").unwrap_err().0, 2);
    }

    #[test]
    fn values_come_with_the_keys_that_lead_to_them() {
        let settings = Settings::parse("b = [1]\n[a.\"x.y\"]\nz = 2\n").unwrap();
        let seen: Vec<String> =
            settings.values().iter().map(|(keys, value)| format!("{}={value}", dotted(keys))).collect();
        assert_eq!(seen, ["a.\"x.y\".z=2", "b=[1]"]);
    }
}

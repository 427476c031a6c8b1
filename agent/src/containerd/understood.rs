//! What a containerd config says of us, for who only looks.

use std::path::{Path, PathBuf};

use toml::Value;

use super::{
    SOCKET, files,
    plan::Paths,
    release::Release,
    settings::{CRI, CRI_IMAGES, Settings, dotted},
};
use crate::containerd::NAME;

/// What all files of a config say together.
#[derive(Debug, Clone)]
pub(crate) struct Understood {
    /// Whether there is a main config.
    pub(crate) exists: bool,
    /// Where containerd answers.
    pub(crate) socket: PathBuf,
    /// Whether our snapshotter is in it.
    pub(crate) names_us: bool,
    /// The snapshotter of CRI unless told otherwise.
    pub(crate) default: String,
    /// Whether CRI tells snapshotters which layers they are asked for.
    pub(crate) has_labels: bool,
    /// A setting of the main config that our file repeats as it was, so that it does not hold.
    pub(crate) stale: Option<String>,
    /// Where CRI looks for `hosts.toml`.
    pub(crate) config_path: Option<String>,
}

/// What the config `main` says to the `release` of containerd that reads it.
///
/// # Errors
/// Why that cannot be told, in a line.
pub(crate) fn understood(main: &Path, release: Option<&str>) -> Result<Understood, String> {
    let paths = Paths::beside(main);
    let seen = files::see(&paths).map_err(|error| error.to_string())?;
    // Of an unknown release only what the config imports by itself is read.
    let release = release.and_then(|text| text.parse().ok()).unwrap_or(Release::new(1, 6));
    let imported = files::imported(&paths, &seen, release).map_err(|error| error.to_string())?;
    let (earlier, later): (Vec<_>, Vec<_>) = imported.iter().partition(|file| !file.is_later);
    let main_text = seen.main.as_deref().map(|text| (&*paths.main, text));
    let ours = seen.drop_in.as_deref().filter(|_| files::imports_ours(&paths, &seen, release));
    let texts = main_text.into_iter().chain(earlier.iter().map(|file| (&*file.path, &*file.text)));
    let texts = texts.chain(ours.map(|text| (&*paths.drop_in, text)));
    let texts = texts.chain(later.iter().map(|file| (&*file.path, &*file.text)));
    let parse = |(path, text): (&Path, &str)| {
        Settings::parse(text).map_err(|(line, reason)| format!("{}, line {line}: {reason}", path.display()))
    };
    let all: Vec<Settings> = texts.map(parse).collect::<Result<_, _>>()?;
    let ours = ours.and_then(|text| Settings::parse(text).ok()).filter(|_| release.replaces_sections());
    let stale = all.first().zip(ours).and_then(|(main, ours)| stale(main, &ours));
    Ok(Understood { stale, ..together(&all, seen.main.is_some()) })
}

/// The first of the main config's CRI settings that our file, whose section takes their place, does not repeat.
fn stale(main: &Settings, ours: &Settings) -> Option<String> {
    const OURS: [&str; 3] = ["snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"];
    ours.cri()?;
    let values = main.values().into_iter().filter(|(keys, _)| keys.starts_with(&["plugins", CRI]));
    let mut values = values.filter(|(keys, _)| keys.last().is_none_or(|last| !OURS.contains(last)));
    values
        .find(|(keys, value)| ours.at(keys) != Some(*value))
        .map(|(keys, value)| format!("{} = {value}", dotted(&keys)))
}

/// What the files say together, later ones over earlier ones.
fn together(all: &[Settings], exists: bool) -> Understood {
    let last = |key: &str| {
        let places = [["plugins", CRI_IMAGES, key].to_vec(), ["plugins", CRI, "containerd", key].to_vec()];
        all.iter().rev().find_map(|file| places.iter().find_map(|keys| file.at(keys)))
    };
    let address = all.iter().rev().find_map(Settings::address);
    Understood {
        exists,
        stale: None,
        socket: address.unwrap_or(SOCKET).into(),
        names_us: all.iter().any(|file| file.at(&["proxy_plugins", NAME]).is_some()),
        default: last("snapshotter").and_then(Value::as_str).unwrap_or("overlayfs").to_owned(),
        has_labels: last("disable_snapshot_annotations").and_then(Value::as_bool) == Some(false),
        config_path: all.iter().rev().find_map(Settings::config_path).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_our_file_repeats_as_it_was_is_told() {
        let settings =
            |text: &str| Settings::parse(&text.replace("CRI", "plugins.\"io.containerd.grpc.v1.cri\"")).unwrap();
        let ours = settings("[CRI]\nsandbox_image = \"a\"\n[CRI.containerd]\nsnapshotter = \"penstock\"\n");
        let main = settings("[CRI]\nsandbox_image = \"a\"\n[CRI.containerd]\nsnapshotter = \"overlayfs\"\n");
        assert_eq!(stale(&main, &ours), None);
        let changed = settings("[CRI]\nsandbox_image = \"b\"\n");
        assert!(stale(&changed, &ours).is_some_and(|stale| stale.ends_with("sandbox_image = \"b\"")));
        let without = settings("[proxy_plugins.penstock]\n");
        assert_eq!(stale(&changed, &without), None, "nothing takes its place");
        let all = together(&[main, ours], true);
        assert_eq!((all.default.as_str(), all.names_us, all.has_labels), ("penstock", false, false));
    }
}

//! containerd's configuration files, for each release. The keys differ between 1.x and 2.x.

use std::{fs, path::PathBuf};

use super::Place;

/// The snapshotter of a containerd.
#[derive(Debug, Clone)]
pub enum Snapshotter {
    /// containerd's own, by its defaults: the config says nothing of any.
    Overlayfs,
    /// Ours, as a proxy plugin.
    Penstock {
        /// Where it listens.
        socket: PathBuf,
        /// Where it keeps its snapshots.
        root: PathBuf,
    },
}

impl Snapshotter {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::Penstock { .. } => "penstock",
        }
    }

    /// What the plugin of images is told.
    fn keys(&self) -> &'static str {
        match self {
            Self::Overlayfs => "",
            Self::Penstock { .. } => {
                "snapshotter = \"penstock\"\ndisable_snapshot_annotations = false\ndiscard_unpacked_layers = false\n"
            }
        }
    }

    /// What the transfer service is told.
    fn unpacks(&self) -> &'static str {
        match self {
            Self::Overlayfs => "",
            Self::Penstock { .. } => {
                "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
                 platform = \"linux/amd64\"\nsnapshotter = \"penstock\"\n"
            }
        }
    }
}

/// Writes `config.toml`, and `certs.d` with the one registry.
pub(super) fn write(place: &Place) {
    let hosts = place.dir.join("certs.d").join(&place.registry);
    fs::create_dir_all(&hosts).expect("a directory");
    let registry = &place.registry;
    let host = format!("server = \"http://{registry}\"\n");
    fs::write(hosts.join("hosts.toml"), host).expect("hosts.toml");
    let (major, _) = place.release.version();
    let text = if major < 2 { common(place, 2) + &first(place) } else { common(place, 3) + &second(place) };
    fs::write(place.config(), text).expect("config.toml");
}

/// What all releases have: directories, sockets, our snapshotter.
fn common(place: &Place, version: u32) -> String {
    let (dir, socket) = (place.dir.display(), place.socket());
    let socket = socket.display();
    let plugin = match &place.snapshotter {
        Snapshotter::Overlayfs => String::new(),
        Snapshotter::Penstock { socket, root } => format!(
            "[proxy_plugins.penstock]\ntype = \"snapshot\"\naddress = \"{}\"\n\
             [proxy_plugins.penstock.exports]\nroot = \"{}\"\nenable_remote_snapshot_annotations = \"true\"\n",
            socket.display(),
            root.display()
        ),
    };
    format!(
        "version = {version}\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
         [grpc]\naddress = \"{socket}\"\n[ttrpc]\naddress = \"{socket}.ttrpc\"\n[debug]\nlevel = \"debug\"\n\
         [plugins.\"io.containerd.gc.v1.scheduler\"]\nmutation_threshold = 1\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{dir}/opt\"\n\
         [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n{plugin}"
    )
}

/// A runtime whose own state is private too.
fn runc(place: &Place, plugin: &str) -> String {
    format!(
        "[plugins.\"{plugin}\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"{plugin}\".containerd.runtimes.runc.options]\nRoot = \"{}/runc\"\n",
        place.dir.display()
    )
}

/// 1.6 and 1.7: one CRI plugin.
fn first(place: &Place) -> String {
    let (cri, dir) = ("io.containerd.grpc.v1.cri", place.dir.display());
    format!(
        "[plugins.\"{cri}\"]\nsandbox_image = \"{}\"\nrestrict_oom_score_adj = true\n\
         [plugins.\"{cri}\".cni]\nbin_dir = \"{dir}/cni-bin\"\nconf_dir = \"{dir}/cni-conf\"\n\
         [plugins.\"{cri}\".registry]\nconfig_path = \"{dir}/certs.d\"\n\
         [plugins.\"{cri}\".containerd]\n{}{}",
        place.sandbox,
        place.snapshotter.keys(),
        runc(place, cri)
    )
}

/// 2.x: CRI in three plugins, and the transfer service, which is what `ctr images pull` asks.
fn second(place: &Place) -> String {
    let (images, runtime, dir) = ("io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", place.dir.display());
    let (keys, unpacks) = (place.snapshotter.keys(), place.snapshotter.unpacks());
    format!(
        "[plugins.\"{images}\"]\n{keys}\
         [plugins.\"{images}\".pinned_images]\nsandbox = \"{}\"\n\
         [plugins.\"{images}\".registry]\nconfig_path = \"{dir}/certs.d\"\n\
         [plugins.\"{runtime}\"]\nrestrict_oom_score_adj = true\n\
         [plugins.\"{runtime}\".cni]\nbin_dirs = [\"{dir}/cni-bin\"]\nconf_dir = \"{dir}/cni-conf\"\n\
         [plugins.\"io.containerd.transfer.v1.local\"]\nconfig_path = \"{dir}/certs.d\"\n{unpacks}{}",
        place.sandbox,
        runc(place, runtime)
    )
}

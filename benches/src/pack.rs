//! The same files as two images in one registry: an OverlayBD layer, and ordinary tar.gz layers.

use std::{
    fmt,
    fs::File,
    io::{BufWriter, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use penstock_agent::output::size;
use penstock_blob::{Blob, Digest};
use penstock_image::write;
use penstock_registry::{Artifact, Config, Layer, Registry};
use serde::Serialize;
use tokio::process::Command;

use crate::{report::Measured, tree::Tree};

/// Repository of the image that is read lazily.
pub const LAZY: &str = "bench/overlaybd";
/// Repository of the ordinary image.
pub const ORDINARY: &str = "bench/ordinary";
/// The tag of both.
pub const TAG: &str = "1";
/// Layers of the ordinary image: real ones have several, and clients download some at once.
const LAYERS: usize = 4;

/// The link between the registry and the node.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Link {
    /// How long every answer waits, in seconds.
    pub latency_seconds: f64,
    /// What the registry sends at most, in bytes per second.
    pub bandwidth_bytes_per_second: u64,
}

/// Both images, in a running registry.
#[derive(Debug)]
pub struct Packed {
    /// The registry.
    pub registry: Registry,
    /// Its link.
    pub link: Link,
    /// The files in the images.
    pub tree: Tree,
    /// The ext4 disk of the files: what a lazy read must answer.
    pub disk: PathBuf,
    /// The OverlayBD layer.
    pub layer: Blob,
    /// The same as manifests name it.
    pub lazy: Layer,
    /// The manifest of the image that is read lazily.
    pub manifest: Digest,
    /// The tar.gz layers, bottom first.
    pub ordinary: Vec<Blob>,
    /// Facts for the report.
    pub facts: Facts,
}

/// What was measured with these images.
#[derive(Debug, Clone, Serialize)]
pub struct With<M> {
    /// The images.
    pub image: Facts,
    /// What was measured.
    pub rows: M,
}

impl<M: Measured> Measured for With<M> {
    const NAME: &'static str = M::NAME;

    fn tables(&self) -> String {
        format!("{}\n{}", self.image, self.rows.tables())
    }
}

/// What the images are.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Files and links.
    pub entries: usize,
    /// Bytes of the files.
    pub content_bytes: u64,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Extents in the OverlayBD layer.
    pub extents: u64,
    /// Bytes of the OverlayBD layer as stored in the registry.
    pub lazy_bytes: u64,
    /// Bytes of the tar.gz layers as stored in the registry.
    pub ordinary_bytes: u64,
}

impl fmt::Display for Facts {
    /// A line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (content, lazy, ordinary) = (size(self.content_bytes), size(self.lazy_bytes), size(self.ordinary_bytes));
        writeln!(f, "image: {} entries of {content}; OverlayBD layer {lazy}, tar.gz layers {ordinary}", self.entries)
    }
}

impl Packed {
    /// Makes the images in `dir` of about `size_bytes` of this machine's files, and starts their registry.
    ///
    /// # Errors
    /// When files cannot be copied, or `mke2fs`, `tar` or `gzip` fails or is not installed.
    pub async fn make(dir: &Path, size_bytes: u64, link: Link) -> anyhow::Result<Self> {
        let root = dir.join("root");
        let tree = tokio::task::spawn_blocking(move || Tree::copy(&root, size_bytes)).await??;
        let disk = dir.join("disk");
        make_disk(&tree, &disk).await?;
        let written = write_layer(&disk, &dir.join("layer")).await?;
        let registry = Registry::start(over(link)).await.context("the registry cannot listen on loopback")?;
        let layer = registry.put_file(&dir.join("layer")).await?;
        ensure!(layer == written.blob, "the layer changed after it was written");
        let lazy = Layer { blob: layer, media_type: write::MEDIA_TYPE.into(), annotations: written.annotations };
        let manifest = put(&registry, LAZY, vec![lazy.clone()], Some(write::ARTIFACT_TYPE))?;
        let ordinary = make_ordinary(&registry, &tree, dir).await?;
        let facts = Facts {
            entries: tree.files.len() + tree.links.len(),
            content_bytes: tree.bytes,
            disk_bytes: written.device_bytes,
            extents: written.extents,
            lazy_bytes: layer.size_bytes,
            ordinary_bytes: ordinary.iter().map(|blob| blob.size_bytes).sum(),
        };
        Ok(Self { registry, link, tree, disk, layer, lazy, manifest, ordinary, facts })
    }

    /// The reference of a repository's image.
    #[must_use]
    pub fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}:{TAG}", self.registry.host())
    }
}

/// A registry behind this link.
pub(crate) fn over(link: Link) -> Config {
    Config {
        latency: Duration::from_secs_f64(link.latency_seconds),
        bandwidth_bytes_per_second: Some(link.bandwidth_bytes_per_second),
        ..Config::default()
    }
}

/// Puts an image of these layers; answers its manifest.
pub(crate) fn put(
    registry: &Registry,
    repository: &str,
    layers: Vec<Layer>,
    artifact_type: Option<&str>,
) -> anyhow::Result<Digest> {
    let config =
        serde_json::json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } });
    let config = config.to_string().into();
    let artifact_type = artifact_type.map(str::to_owned);
    let image = Artifact { config, layers, artifact_type, ..Artifact::default() };
    Ok(registry.put_image(repository, TAG, image)?.digest)
}

/// An ext4 file system of the tree, without a journal, as image builders make it.
pub(crate) async fn make_disk(tree: &Tree, disk: &Path) -> anyhow::Result<()> {
    let entries = tree.files.len() + tree.links.len() + tree.dirs;
    // Files end in half-filled blocks of 4 KiB; inodes have 256 bytes each.
    let disk_kib = ((tree.bytes + (entries as u64) * 6144) / 1024 * 9 / 8 + (16 << 10)).next_multiple_of(1024);
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode"]);
    command.arg("-N").arg((entries + 1024).to_string()).arg("-d").arg(&tree.root);
    command.arg(disk).arg(format!("{disk_kib}k"));
    run(command, "e2fsprogs").await
}

pub(crate) async fn write_layer(disk: &Path, layer: &Path) -> anyhow::Result<write::Written> {
    write_layer_as(disk, layer, write::Options::default()).await
}

pub(crate) async fn write_layer_as(
    disk: &Path,
    layer: &Path,
    options: write::Options,
) -> anyhow::Result<write::Written> {
    let (disk, layer) = (disk.to_owned(), layer.to_owned());
    let written = tokio::task::spawn_blocking(move || {
        let disk = File::open(disk)?;
        let out = File::options().read(true).write(true).create(true).truncate(true).open(layer)?;
        anyhow::Ok(write::disk(&disk, out, options)?)
    });
    written.await?
}

async fn make_ordinary(registry: &Registry, tree: &Tree, dir: &Path) -> anyhow::Result<Vec<Blob>> {
    let mut blobs = Vec::new();
    let mut layers = Vec::new();
    for (nth, part) in tree.parts(LAYERS).into_iter().enumerate() {
        let (list, layer) = (dir.join(format!("part{nth}")), dir.join(format!("layer{nth}.tar.gz")));
        let mut names = BufWriter::new(File::create(&list)?);
        for path in part {
            names.write_all(path.as_os_str().as_bytes())?;
            names.write_all(&[0])?;
        }
        names.into_inner()?.sync_data()?;
        let mut command = Command::new("tar");
        command.args(["--create", "--gzip", "--null", "--no-recursion"]).arg("--file").arg(&layer);
        command.arg("--directory").arg(&tree.root).arg("--files-from").arg(&list);
        run(command, "tar and gzip").await?;
        let blob = registry.put_file(&layer).await?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".into();
        layers.push(Layer { blob, media_type, annotations: Default::default() });
        blobs.push(blob);
    }
    put(registry, ORDINARY, layers, None)?;
    Ok(blobs)
}

/// Runs a program to its end; `package` is what to install when it is not there.
pub(crate) async fn run(mut command: Command, package: &str) -> anyhow::Result<()> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("{name} cannot be run: install {package}"))?;
    ensure!(output.status.success(), "{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

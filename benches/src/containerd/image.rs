//! An image that runs a Python program, twice in the registry: as one OverlayBD layer, and as ordinary tar.gz layers.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, ensure};
use penstock_blob::{Blob, Digest};
use penstock_image::write;
use penstock_registry::{Artifact, Layer, Registry};
use tokio::process::Command;

use crate::{pack, tree::Tree};

/// The program: what a small service loads before it says that it is ready.
pub(super) const PROGRAM: [&str; 3] = [
    "/usr/bin/python3",
    "-c",
    "import json, ssl, http.server, sqlite3, asyncio, email.mime.text, decimal, logging.config, concurrent.futures; print('ready', flush=True)",
];
/// Repository of the image that is read on demand.
pub(crate) const LAZY: &str = "bench/python-overlaybd";
/// Repository of the ordinary image.
pub(super) const ORDINARY: &str = "bench/python";
/// Layers of the ordinary image.
const LAYERS: usize = 4;

/// What the images are.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Facts {
    /// Files and links.
    pub entries: usize,
    /// Bytes of the files.
    pub content_bytes: u64,
    /// Bytes of the OverlayBD layer as stored in the registry.
    pub lazy_bytes: u64,
    /// Bytes of the tar.gz layers as stored in the registry.
    pub ordinary_bytes: u64,
}

/// Puts both images, with about `size_bytes` of files, into `registry`. The raw disk of the first stays: `disk` in `dir`.
///
/// # Errors
/// When this machine has no Python, or a tool fails.
pub(crate) async fn make(dir: &Path, size_bytes: u64, registry: &Registry) -> anyhow::Result<Facts> {
    tokio::fs::create_dir_all(dir).await?;
    let root = dir.join("root");
    let (program, copied) = (program()?, root.clone());
    let tree = tokio::task::spawn_blocking(move || Tree::copy_after(&copied, &program, size_bytes)).await??;
    for name in ["proc", "sys", "dev", "etc", "tmp"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    let disk = dir.join("disk");
    pack::make_disk(&tree, &disk).await?;
    let written = pack::write_layer(&disk, &dir.join("layer")).await?;
    let blob = registry.put_file(&dir.join("layer")).await?;
    let layer = Layer { blob, media_type: write::MEDIA_TYPE.into(), annotations: written.annotations };
    // Not compressed as far as OCI is concerned: blob and content have one digest.
    put(registry, LAZY, vec![(layer, blob.digest)])?;
    let ordinary = ordinary(&tree, dir, registry).await?;
    let ordinary_bytes = ordinary.iter().map(|(layer, _)| layer.blob.size_bytes).sum();
    put(registry, ORDINARY, ordinary)?;
    Ok(Facts {
        entries: tree.files.len() + tree.links.len(),
        content_bytes: tree.bytes,
        lazy_bytes: blob.size_bytes,
        ordinary_bytes,
    })
}

/// This machine's Python: its binary, its library, the libraries that they are linked with, and the links at the root by which they
/// are found.
fn program() -> anyhow::Result<Vec<PathBuf>> {
    let said = |program: &str, arguments: &[&str]| {
        let out = process::Command::new(program).args(arguments).stdin(process::Stdio::null()).output()?;
        ensure!(out.status.success(), "{program} failed: {}", String::from_utf8_lossy(&out.stderr).trim());
        anyhow::Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let library = said(PROGRAM[0], &["-c", "import os; print(os.path.dirname(os.__file__))"]);
    let library = PathBuf::from(library.context("there is no /usr/bin/python3: install python3")?.trim());
    let binary = Path::new(PROGRAM[0]).canonicalize()?;
    let mut objects: Vec<String> = vec![binary.display().to_string()];
    for entry in library.join("lib-dynload").read_dir()?.flatten() {
        objects.push(entry.path().display().to_string());
    }
    let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
    // `name => /path (0x...)`, or `/path (0x...)` for the loader.
    let linked = said("ldd", &objects)?;
    let words = linked.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let mut files: Vec<PathBuf> = ["/bin", "/lib", "/lib64", PROGRAM[0]].map(PathBuf::from).into();
    for word in words {
        files.push(Path::new(word).canonicalize()?);
        // The name by which it is looked for, where links lead.
        let parent = Path::new(word).parent().unwrap_or(Path::new("/")).canonicalize()?;
        files.extend(Path::new(word).file_name().map(|name| parent.join(name)));
    }
    files.extend([binary, library]);
    Ok(files)
}

/// The tree as tar.gz layers, each with its diff ID.
async fn ordinary(tree: &Tree, dir: &Path, registry: &Registry) -> anyhow::Result<Vec<(Layer, Digest)>> {
    let mut layers = Vec::new();
    for (nth, part) in tree.parts(LAYERS).into_iter().enumerate() {
        let (list, tar) = (dir.join("list"), dir.join(format!("part{nth}.tar")));
        let mut names = BufWriter::new(File::create(&list)?);
        for path in part {
            names.write_all(path.as_os_str().as_bytes())?;
            names.write_all(&[0])?;
        }
        names.into_inner()?.sync_data()?;
        let mut command = Command::new("tar");
        command.args(["--create", "--null", "--no-recursion"]).arg("--file").arg(&tar);
        command.arg("--directory").arg(&tree.root).arg("--files-from").arg(&list);
        pack::run(command, "tar").await?;
        let bytes = tokio::fs::read(&tar).await?;
        let diff_id = tokio::task::spawn_blocking(move || Digest::of(&bytes)).await?;
        let mut command = Command::new("gzip");
        command.arg("-n").arg(&tar);
        pack::run(command, "gzip").await?;
        let blob = registry.put_file(&tar.with_extension("tar.gz")).await?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".into();
        layers.push((Layer { blob, media_type, annotations: Default::default() }, diff_id));
    }
    Ok(layers)
}

fn put(registry: &Registry, repository: &str, layers: Vec<(Layer, Digest)>) -> anyhow::Result<Blob> {
    let diff_ids: Vec<String> = layers.iter().map(|(_, diff_id)| diff_id.to_string()).collect();
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64",
        "config": { "Env": ["PATH=/usr/bin:/bin"], "Cmd": PROGRAM },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let layers = layers.into_iter().map(|(layer, _)| layer).collect();
    let image = Artifact { config: config.to_string().into(), layers, ..Artifact::default() };
    Ok(registry.put_image(repository, pack::TAG, image)?)
}

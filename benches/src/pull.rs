//! What a container runtime does without lazy images: download every layer, check it, unpack it.
//!
//! As containerd does by default: three layers are downloaded at a time, each hashed as it comes; layers are unpacked in their order, each as soon as
//! it and those below it are there; gzip runs in its own process beside tar.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use penstock_blob::{Blob, Hasher};
use tokio::{io::AsyncWriteExt as _, process::Command, sync::mpsc};

use crate::pack::{ORDINARY, Packed, TAG, run};

/// Layers downloaded at a time (containerd's `max_concurrent_downloads`).
const DOWNLOADS: usize = 3;

/// Downloads and unpacks the ordinary image into `dir/rootfs`, and answers that.
///
/// # Errors
/// When a download fails or differs from its digest, or a layer cannot be unpacked.
pub async fn pull(packed: &Packed, client: &reqwest::Client, dir: &Path) -> anyhow::Result<PathBuf> {
    let base = format!("http://{}/v2/{ORDINARY}", packed.registry.host());
    let manifest = client.get(format!("{base}/manifests/{TAG}")).send().await?.error_for_status()?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes().await?)?;
    let config = manifest["config"]["digest"].as_str().context("the manifest names no config")?;
    client.get(format!("{base}/blobs/{config}")).send().await?.error_for_status()?.bytes().await?;
    let rootfs = dir.join("rootfs");
    tokio::fs::create_dir_all(&rootfs).await?;
    let (done, mut ready) = mpsc::channel(packed.ordinary.len());
    let download = async {
        let downloads = packed.ordinary.iter().map(|&blob| download(client, &base, blob, dir));
        let mut downloads = futures_util::stream::iter(downloads).buffered(DOWNLOADS);
        while let Some(layer) = downloads.next().await {
            // The receiver lives until both sides end.
            done.send(layer?).await?;
        }
        drop(done);
        anyhow::Ok(())
    };
    let unpack = async {
        while let Some(layer) = ready.recv().await {
            let mut command = Command::new("tar");
            command.args(["--extract", "--gzip", "--file"]).arg(layer).arg("--directory").arg(&rootfs);
            run(command, "tar and gzip").await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(download, unpack)?;
    Ok(rootfs)
}

async fn download(client: &reqwest::Client, base: &str, blob: Blob, dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join(blob.digest.to_hex());
    let mut response = client.get(format!("{base}/blobs/{}", blob.digest)).send().await?.error_for_status()?;
    let mut file = tokio::fs::File::create(&path).await?;
    let mut hasher = Hasher::new();
    while let Some(bytes) = response.chunk().await? {
        hasher.update(&bytes);
        file.write_all(&bytes).await?;
    }
    file.flush().await?;
    ensure!(hasher.finish() == blob.digest, "layer {} came with other bytes", blob.digest);
    Ok(path)
}

/// A client of the bench's registry.
///
/// # Errors
/// When it cannot be made.
pub fn client() -> anyhow::Result<reqwest::Client> {
    // An error says that a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().no_proxy().build()?)
}

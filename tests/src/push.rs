//! Filling a registry over HTTP: blobs, configs, manifests, whole OCI layouts.

use std::{collections::BTreeMap, path::Path};

use penstock_blob::Digest;
use serde_json::{Value, json};

use crate::{http::Request, workspace::text};

/// The media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The media type given to a layer that is a whole disk.
pub const DISK: &str = "application/octet-stream";

/// The config of an image whose layers have these diff IDs.
#[must_use]
pub fn config(diff_ids: impl IntoIterator<Item = String>) -> Vec<u8> {
    let diff_ids: Vec<String> = diff_ids.into_iter().collect();
    let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
    json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).to_string().into_bytes()
}

/// A layer to be pushed.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The blob.
    pub bytes: Vec<u8>,
    /// Its media type in the manifest.
    pub media_type: String,
    /// Its annotations in the manifest.
    pub annotations: BTreeMap<String, String>,
}

impl Layer {
    /// A layer without annotations.
    #[must_use]
    pub fn new(bytes: Vec<u8>, media_type: &str) -> Self {
        Self { bytes, media_type: media_type.to_owned(), annotations: BTreeMap::new() }
    }

    /// A layer annotated as OverlayBD's convertor does (reference: accelerated-container-image, `--oci`).
    #[must_use]
    pub fn overlaybd(bytes: Vec<u8>) -> Self {
        let prefix = "containerd.io/snapshot/overlaybd";
        let annotations = BTreeMap::from([
            (format!("{prefix}/blob-digest"), Digest::of(&bytes).to_string()),
            (format!("{prefix}/blob-size"), bytes.len().to_string()),
            (format!("{prefix}/version"), "0.1.0".to_owned()),
        ]);
        Self { bytes, media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(), annotations }
    }

    /// A whole disk as one blob.
    #[must_use]
    pub fn disk(bytes: Vec<u8>) -> Self {
        Self::new(bytes, DISK)
    }
}

/// A repository of a registry that takes pushes without credentials.
#[derive(Debug, Clone)]
pub struct Repository {
    /// `address:port` of the registry.
    pub host: String,
    /// Its name.
    pub name: String,
}

impl Repository {
    /// The reference of `tag` in it.
    #[must_use]
    pub fn reference(&self, tag: &str) -> String {
        format!("{}/{}:{tag}", self.host, self.name)
    }

    /// Uploads one blob, as a whole, and answers its digest.
    ///
    /// # Panics
    /// When the registry refuses it.
    pub fn blob(&self, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes).to_string();
        let path = format!("/v2/{}/blobs/uploads/", self.name);
        let begun =
            Request { method: "POST", ..Request::get(&path) }.to_host(&self.host).expect("the registry answers");
        assert_eq!(begun.status, 202, "{}", begun.text());
        let location = begun.header("location").expect("where to upload");
        let path = location.split_once(&self.host).map_or(location, |(_, path)| path);
        let path = format!("{path}{}digest={digest}", if path.contains('?') { '&' } else { '?' });
        let put = Request { method: "PUT", path: &path, content_type: Some("application/octet-stream"), body: bytes };
        let put = put.to_host(&self.host).expect("the registry answers");
        assert_eq!(put.status, 201, "{}", put.text());
        digest
    }

    /// Uploads a manifest's bytes under `tag`, and answers its digest.
    ///
    /// # Panics
    /// When the registry refuses it.
    pub fn manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> String {
        let path = format!("/v2/{}/manifests/{tag}", self.name);
        let put = Request { method: "PUT", path: &path, content_type: Some(media_type), body: bytes };
        let put = put.to_host(&self.host).expect("the registry answers");
        assert_eq!(put.status, 201, "{}", put.text());
        Digest::of(bytes).to_string()
    }

    /// Uploads an image of these layers (bottom first) under `tag`, and answers the manifest's digest.
    pub fn image(&self, tag: &str, layers: &[Layer]) -> String {
        let config = config(layers.iter().map(|layer| Digest::of(&layer.bytes).to_string()));
        let descriptor = |bytes: &[u8], media_type: &str| json!({"mediaType": media_type, "digest": self.blob(bytes), "size": bytes.len()});
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let mut json = descriptor(&layer.bytes, &layer.media_type);
                if !layer.annotations.is_empty() {
                    json["annotations"] = json!(layer.annotations);
                }
                json
            })
            .collect();
        let config = descriptor(&config, "application/vnd.oci.image.config.v1+json");
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.manifest(tag, MANIFEST, manifest.to_string().as_bytes())
    }

    /// Uploads every image of an OCI layout under the name that the layout gives it.
    ///
    /// # Panics
    /// When the layout or the registry is not as it should be.
    pub fn layout(&self, dir: &Path) {
        let read = |path: &str| std::fs::read(dir.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let blob = |digest: &Value| read(&format!("blobs/sha256/{}", text(digest).trim_start_matches("sha256:")));
        let index: Value = serde_json::from_slice(&read("index.json")).expect("index.json");
        for entry in index["manifests"].as_array().expect("manifests") {
            let bytes = blob(&entry["digest"]);
            let manifest: Value = serde_json::from_slice(&bytes).expect("a manifest");
            let layers = manifest["layers"].as_array().expect("layers");
            for descriptor in layers.iter().chain([&manifest["config"]]) {
                self.blob(&blob(&descriptor["digest"]));
            }
            let tag = text(&entry["annotations"]["org.opencontainers.image.ref.name"]);
            assert_eq!(self.manifest(tag, text(&entry["mediaType"]), &bytes), text(&entry["digest"]));
        }
    }
}

//! What the TCP listener shows and asks for in a TLS handshake, read again when its files change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio_rustls::rustls::{
    self, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use super::{
    access::Pair,
    files::{self, FileError, Stamp},
};
use crate::events::{Events, Kind};

/// The most bytes of a PEM file: a bundle of every public authority is a quarter of it.
const FILE_BYTES: u64 = 1 << 20;

/// A TLS configuration that follows its files.
#[derive(Debug)]
pub(super) struct Tls {
    files: Files,
    events: Events,
    loaded: Mutex<(Stamps, Arc<ServerConfig>)>,
}

type Stamps = [Option<Stamp>; 3];

#[derive(Debug)]
struct Files {
    pair: Pair,
    client_ca: Option<PathBuf>,
    /// Whether a client may also come without a certificate, because it can show a token.
    is_optional: bool,
}

impl Tls {
    /// From files that must be good.
    pub(super) fn open(
        pair: Pair,
        client_ca: Option<PathBuf>,
        has_tokens: bool,
        events: Events,
    ) -> Result<Self, FileError> {
        let files = Files { pair, client_ca, is_optional: has_tokens };
        let loaded = Mutex::new((files.stamps(), Arc::new(files.load()?)));
        Ok(Self { files, events, loaded })
    }

    /// What holds for the next connection. Files that were changed to something that cannot be used change nothing, and are told of
    /// once: the halves of a pair are seldom replaced at the same moment.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        let stamps = self.files.stamps();
        let mut loaded = self.loaded.lock();
        if loaded.0 == stamps {
            return Arc::clone(&loaded.1);
        }
        loaded.0 = stamps;
        match self.files.load() {
            Ok(config) => {
                loaded.1 = Arc::new(config);
                self.events.record(Kind::ApiReloaded, "the certificates of the TCP listener have changed", &[]);
            }
            Err(error) => {
                let text = format!("the certificates from before go on: {error}");
                self.events.record(Kind::ApiReloadFailed, &text, &[]);
            }
        }
        Arc::clone(&loaded.1)
    }
}

impl Files {
    fn stamps(&self) -> Stamps {
        let ca = self.client_ca.as_deref().and_then(Stamp::of);
        [Stamp::of(&self.pair.cert), Stamp::of(&self.pair.key), ca]
    }

    fn load(&self) -> Result<ServerConfig, FileError> {
        let wrong = |reason: String| FileError::Content { path: self.pair.cert.clone(), reason };
        let chain = certificates(&self.pair.cert)?;
        let bytes = files::read(&self.pair.key, FILE_BYTES, true)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| FileError::Content {
            path: self.pair.key.clone(),
            reason: "it holds no private key in PEM".to_owned(),
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?;
        let builder = match self.verifier()? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| wrong(format!("it cannot be used with {}: {error}", self.pair.key.display())))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn verifier(&self) -> Result<Option<Arc<dyn ClientCertVerifier>>, FileError> {
        let Some(path) = &self.client_ca else { return Ok(None) };
        let wrong = |reason: String| FileError::Content { path: path.clone(), reason };
        let mut roots = RootCertStore::empty();
        for authority in certificates(path)? {
            roots.add(authority).map_err(|error| wrong(format!("it holds a certificate of no authority: {error}")))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = if self.is_optional { builder.allow_unauthenticated() } else { builder };
        builder.build().map(Some).map_err(|error| wrong(error.to_string()))
    }
}

/// All certificates of a PEM file, which must have one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let wrong = |reason: &str| FileError::Content { path: path.to_path_buf(), reason: reason.to_owned() };
    let bytes = files::read(path, FILE_BYTES, false)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(wrong("it holds no certificate in PEM")),
    }
}

//! Putting an image into a registry, through `oci-distribution`: its uploads and its login are sound, and nobody waits on them.

use std::path::PathBuf;

use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use http::{HeaderValue, StatusCode};
use oci_distribution::{
    Client, Reference as OciReference,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    secrets::RegistryAuth,
};
use penstock_blob::{Blob, Digest};
use tokio::io::AsyncReadExt as _;

use crate::{
    Fetcher, Reference,
    auth::{Action, Scope},
    credentials::Credential,
    failure::{Class, Failure},
    metrics::Purpose,
};

/// How much of a file is read at a time, in bytes: also the size of one upload request.
const PIECE_BYTES: usize = 4 << 20;
/// A proxy for nobody: without one, `oci-distribution` would take the one of the environment.
const NO_PROXY: &str = "http://127.0.0.1:9";
/// All names and all addresses, as `NO_PROXY` writes them.
const EVERYBODY: &str = "*,0.0.0.0/0,::/0";

/// A blob to be pushed.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Its digest and size; the registry refuses other content.
    pub blob: Blob,
    /// Its content.
    pub content: Content,
}

/// Where the content of an [`Upload`] is.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// In a file, read piece by piece.
    File(PathBuf),
}

/// Why an image could not be pushed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The registry refused the credentials, or asks for some.
    #[error(
        "{endpoint} does not let us push to {reference}: {reason}; run `docker login {endpoint}` as somebody who may"
    )]
    Denied {
        /// Where to push.
        reference: Reference,
        /// Who was asked.
        endpoint: String,
        /// Its answer.
        reason: String,
    },
    /// A file to be pushed cannot be read.
    #[error("{path} cannot be read: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// The registry did not take it.
    #[error("{endpoint} did not take {what} for {reference}: {reason}")]
    Refused {
        /// Where to push.
        reference: Reference,
        /// Who was asked.
        endpoint: String,
        /// `a blob`, `the manifest`, ...
        what: &'static str,
        /// Its answer.
        reason: String,
    },
    /// It was pushed, but the registry does not list it where it is looked for.
    #[error("the artifact is in the registry, but could not be listed beside {reference}: {reason}")]
    Unlisted {
        /// The image, or the tag that lists.
        reference: Reference,
        /// What failed.
        reason: String,
    },
    /// The client could not be made, or the media type is no header.
    #[error("cannot push: {reason}")]
    Client {
        /// Why.
        reason: String,
    },
}

impl Fetcher {
    /// Pushes blobs that the registry does not have, then the manifest that names them, under the tag (or digest) of `to`.
    /// Returns the manifest's digest. Nothing is retried: whoever pushes is there to do it again.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn push(
        &self,
        to: &Reference,
        uploads: &[Upload],
        manifest: Bytes,
        media_type: &str,
    ) -> Result<Digest, PushError> {
        let session = Session { fetcher: self, to };
        let client = session.client().map_err(|reason| PushError::Client { reason })?;
        let content_type =
            HeaderValue::from_str(media_type).map_err(|e| PushError::Client { reason: e.to_string() })?;
        let (host, repository) = (to.host().to_owned(), to.repository().to_owned());
        let digest = Digest::of(&manifest);
        let target = match (to.tag(), to.digest()) {
            (Some(tag), None) => OciReference::with_tag(host, repository, tag.to_owned()),
            _ => OciReference::with_digest(host, repository, digest.to_string()),
        };
        let auth = session.login().await?;
        client.store_auth_if_needed(target.resolve_registry(), &auth).await;
        for upload in uploads {
            session.upload(&client, &target, upload).await?;
        }
        let put = client.push_manifest_raw(&target, manifest, content_type).await;
        put.map(|_url| digest).map_err(|e| session.refused("the manifest", e))
    }

    /// Has the repository of `to` take over a blob of another repository of the same registry, `from`, without sending it. Answers whether it has the blob
    /// now: a registry need not do this, and who may push to the one need not be allowed to pull from the other.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn mount(&self, to: &Reference, from: &Reference, blob: Blob) -> Result<bool, PushError> {
        let session = Session { fetcher: self, to };
        let client = session.client().map_err(|reason| PushError::Client { reason })?;
        let named = |of: &Reference| {
            OciReference::with_digest(of.host().to_owned(), of.repository().to_owned(), blob.digest.to_string())
        };
        let (target, source, digest) = (named(to), named(from), blob.digest.to_string());
        client.store_auth_if_needed(target.resolve_registry(), &session.login().await?).await;
        if client.blob_exists(&target, &digest).await.map_err(|e| session.refused("a blob", e))? {
            return Ok(true);
        }
        if from.host() != to.host() {
            return Ok(false);
        }
        match client.mount_blob(&target, &source, &digest).await {
            Ok(()) => Ok(true),
            Err(error) => {
                let reason = session.refused("a blob of another repository", error);
                tracing::info!(%reason, %from, "a blob has to be sent");
                Ok(false)
            }
        }
    }
}

struct Session<'a> {
    fetcher: &'a Fetcher,
    to: &'a Reference,
}

impl Session<'_> {
    fn client(&self) -> Result<Client, String> {
        let core = &self.fetcher.core;
        if !core.dialer.has_system_roots {
            return Err("no system CA certificates; install ca-certificates".to_owned());
        }
        let host = self.to.host();
        let protocol = if core.config.is_plain(host) {
            ClientProtocol::HttpsExcept(vec![host.to_owned()])
        } else {
            ClientProtocol::Https
        };
        let certificate = |data: &Vec<u8>| Certificate { encoding: CertificateEncoding::Pem, data: data.clone() };
        let proxy = core.config.proxy.as_ref().map(|proxy| proxy.expose().to_owned());
        let config = ClientConfig {
            protocol,
            extra_root_certificates: core.dialer.ca_bundle.iter().map(certificate).collect(),
            connect_timeout: Some(core.config.connect_timeout),
            read_timeout: Some(core.config.deadline),
            user_agent: core.config.user_agent,
            https_proxy: proxy.clone(),
            no_proxy: Some(match (&proxy, &core.config.no_proxy) {
                (None, _) => EVERYBODY.to_owned(),
                (Some(_), hosts) => format!("localhost,127.0.0.0/8,::1,{}", hosts.as_deref().unwrap_or_default()),
            }),
            http_proxy: Some(proxy.unwrap_or_else(|| NO_PROXY.to_owned())),
            ..ClientConfig::default()
        };
        Client::try_from(config).map_err(|e| e.to_string())
    }

    /// What `oci-distribution` logs in with. It answers Basic and token challenges itself; a refresh token is exchanged here.
    async fn login(&self) -> Result<RegistryAuth, PushError> {
        let core = &self.fetcher.core;
        let denied = |failure: Failure| PushError::Denied {
            reference: self.to.clone(),
            endpoint: self.to.host().to_owned(),
            reason: failure.reason,
        };
        let scope = Scope {
            host: self.to.host().to_owned(),
            repository: self.to.repository().to_owned(),
            action: Action::Push,
        };
        match core.auth.credential(&scope).await.map_err(denied)? {
            Credential::Anonymous => Ok(RegistryAuth::Anonymous),
            Credential::Basic { user, password } => Ok(RegistryAuth::Basic(user, password.expose().to_owned())),
            Credential::Token(token) => Ok(RegistryAuth::Bearer(token.expose().to_owned())),
            Credential::Identity(_) => {
                let token = self.exchange(&scope).await.map_err(denied)?;
                Ok(RegistryAuth::Bearer(token))
            }
        }
    }

    async fn exchange(&self, scope: &Scope) -> Result<String, Failure> {
        let core = &self.fetcher.core;
        let unknown = || Failure::denied("no token can be had from this registry".to_owned());
        let endpoint = core.namespaces.server(self.to).map_err(|reason| Failure::new(Class::Refused, &reason))?;
        let (web, root) = (&endpoint.web, endpoint.root().ok_or_else(unknown)?);
        let pass = core.auth.pass(web, scope).await?;
        let response = web.get(Purpose::Manifest, root.clone(), http::HeaderMap::new(), None).await?;
        let headers = response.headers().clone();
        web.discard(response).await;
        let pass = core.auth.answer(web, scope, (&headers, &root), pass.generation).await?;
        let header = pass.header.ok_or_else(unknown)?;
        let token = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(unknown)?;
        Ok(token.to_owned())
    }

    async fn upload(&self, client: &Client, target: &OciReference, upload: &Upload) -> Result<(), PushError> {
        let digest = upload.blob.digest.to_string();
        if client.blob_exists(target, &digest).await.map_err(|e| self.refused("a blob", e))? {
            return Ok(());
        }
        let pushed = match &upload.content {
            Content::Bytes(bytes) => client.push_blob(target, bytes.clone(), &digest).await,
            Content::File(path) => {
                let unreadable = |e: std::io::Error| PushError::File { path: path.clone(), reason: e.to_string() };
                let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
                let pieces = stream::try_unfold(file, |mut file| async move {
                    let mut piece = Vec::new();
                    (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece).await?;
                    Ok::<_, std::io::Error>(if piece.is_empty() { None } else { Some((Bytes::from(piece), file)) })
                });
                let pieces = pieces.map_err(OciDistributionError::from);
                client.push_blob_stream(target, pieces, &digest, Some(upload.blob.size_bytes)).await
            }
        };
        pushed.map(|_url| ()).map_err(|e| match (e, &upload.content) {
            (OciDistributionError::IoError(e), Content::File(path)) => {
                PushError::File { path: path.clone(), reason: e.to_string() }
            }
            (e, _) => self.refused("a blob", e),
        })
    }

    /// What the library met, without the URLs: those of uploads carry a state that nobody else should have.
    fn refused(&self, what: &'static str, error: OciDistributionError) -> PushError {
        let (reference, endpoint) = (self.to.clone(), self.to.host().to_owned());
        let reason = match error {
            OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => {
                let reason = "the credentials are missing or not good enough".to_owned();
                return PushError::Denied { reference, endpoint, reason };
            }
            OciDistributionError::RequestError(error) => match error.status() {
                Some(status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) => {
                    return PushError::Denied { reference, endpoint, reason: format!("answered {status}") };
                }
                _ => Failure::transport(error).reason,
            },
            OciDistributionError::ServerError { code, .. } => format!("answered {code}"),
            OciDistributionError::RegistryError { envelope, .. } => envelope.to_string(),
            other => other.to_string(),
        };
        PushError::Refused { reference, endpoint, what, reason: reason.chars().take(300).collect() }
    }
}

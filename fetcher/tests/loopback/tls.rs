//! A registry behind TLS whose certificate only a CA bundle knows.

use std::{path::PathBuf, sync::Arc};

use penstock_blob::{BlobSource as _, Purpose, ReadError};
use penstock_fetcher::Config;
use penstock_registry::Config as RegistryConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::support::{Scene, config, content, fetcher, hasty, range};

/// Made with openssl for 127.0.0.1 and localhost, good for a hundred years, known to nobody else.
pub(crate) fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// TLS in front of a plain registry.
pub(crate) async fn front(registry: String) -> (String, JoinSet<()>) {
    let certificate = CertificateDer::from_pem_file(file("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
    let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((inner, _)) = listener.accept().await {
            let (acceptor, registry) = (acceptor.clone(), registry.clone());
            connections.spawn(async move {
                if let Ok(mut inner) = acceptor.accept(inner).await {
                    let mut outer = TcpStream::connect(registry).await.unwrap();
                    let _cut = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
                }
            });
        }
    });
    (host, tasks)
}

#[tokio::test]
async fn a_private_authority_is_trusted_only_when_its_bundle_is_given() {
    let scene = Scene::plain(10).await;
    let bytes = content(10_000, 5);
    let blob = scene.registry.put_blob(bytes.clone());
    let (host, _front) = front(scene.registry.host()).await;
    let from = format!("{host}/team/app").parse().unwrap();

    let trusting = Config { ca_bundle: Some(file("ca.pem")), tls: vec![host.clone()], ..config() };
    let fetcher_with = fetcher(trusting);
    fetcher_with.serve(blob, &from);
    assert_eq!(fetcher_with.read(blob, range(10, 5000), Purpose::Demand).await.unwrap(), bytes.slice(10..5000));

    let fetcher_without = fetcher(Config { tls: vec![host], ..config() });
    fetcher_without.serve(blob, &from);
    let error = fetcher_without.read(blob, range(0, 10), Purpose::Demand).await.unwrap_err();
    assert!(matches!(&error, ReadError::Unavailable { reason, .. } if reason.contains("CA bundle")), "{error}");
    assert_eq!(scene.registry.counts().requests, 1, "nothing was sent without trust");
}

#[tokio::test]
async fn a_registry_without_tls_is_not_spoken_to_as_if_it_had_it() {
    let mut config = hasty();
    let scene = Scene::new(10, RegistryConfig::default(), config.clone()).await;
    config.tls = vec![scene.registry.host()];
    let fetcher = fetcher(config);
    fetcher.serve(scene.blob, &format!("{}/team/app", scene.registry.host()).parse().unwrap());
    assert!(matches!(fetcher.read(scene.blob, range(0, 10), Purpose::Demand).await, Err(ReadError::Deadline { .. })));
    assert_eq!(scene.registry.counts().requests, 0, "there is no falling back to plain HTTP");
}

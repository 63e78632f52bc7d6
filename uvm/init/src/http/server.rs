//! The transport: TCP, TLS 1.3 with client certificates, HTTP/1.1.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::{Api, Peer, routes};

/// Connections served at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 256;
/// Time a client has for its handshake, and for the headers of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Threads for calls that read devices.
const BLOCKING_THREADS: usize = 8;

/// Who this node is, and whose certificates it trusts. All PEM.
pub(crate) struct TlsFiles<'a> {
    pub(crate) certificate: &'a str,
    pub(crate) private_key: &'a str,
    pub(crate) client_ca: &'a str,
}

fn invalid(what: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: {error}"))
}

fn certificates(what: &str, pem: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(invalid(what, "there is no certificate in it")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(invalid(what, error)),
    }
}

fn tls_config(files: &TlsFiles<'_>) -> io::Result<rustls::ServerConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("client_ca", files.client_ca)? {
        roots.add(certificate).map_err(|error| invalid("client_ca", error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // A client without a certificate gets as far as /healthz; the routes refuse it the rest.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| invalid("client_ca", error))?;
    let key = PrivateKeyDer::from_pem_slice(files.private_key.as_bytes())
        .map_err(|error| invalid("private_key", error))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| invalid("TLS", error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates("certificate", files.certificate)?, key)
        .map_err(|error| invalid("certificate", error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves the API on a thread of its own. Returns when it listens; `listening` is called just before.
pub(crate) fn serve(listen: SocketAddr, files: &TlsFiles<'_>, api: Api) -> io::Result<SocketAddr> {
    let acceptor = TlsAcceptor::from(Arc::new(tls_config(files)?));
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let router = routes::router(api);
    std::thread::Builder::new().name("api".to_owned()).spawn(move || {
        runtime.block_on(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => accept(listener, acceptor, router).await,
                Err(error) => crate::log::warn(&format!("the API cannot listen: {error}")),
            }
        });
    })?;
    Ok(address)
}

/// SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` prints it but for the colons.
pub(crate) fn fingerprint(certificate: &[u8]) -> String {
    crate::job::hex(&Sha256::digest(certificate))
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, router: Router) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = serve_connection(stream, acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            // Out of file descriptors, or a client that gave up: neither may end the API.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else { return };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = Peer(shown.map(|certificate| fingerprint(certificate.as_ref())));
    let service = TowerToHyperService::new(router.layer(axum::Extension(peer)));
    // A connection that ends badly is the client's affair.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// The fingerprint of the first certificate in a PEM text.
pub(crate) fn certificate_fingerprint(pem: &str) -> Option<String> {
    let chain = certificates("certificate", pem).ok()?;
    chain.first().map(|certificate| fingerprint(certificate.as_ref()))
}

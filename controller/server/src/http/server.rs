//! The transport: TCP, TLS 1.3, HTTP/1.1, limits, and the end.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::patience::Patient;
use super::{Api, Services, routes, service};

/// Connections served at once; more wait in the listen queue.
const MAX_CONNECTIONS: u32 = 1_024;
/// Connections of the metrics' own address.
const MAX_SCRAPES: usize = 8;
/// Time a client has for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time a client has for the headers of a request, and to begin another one.
const HEADERS: Duration = Duration::from_secs(30);
/// Time after which a client that takes nothing is left.
const STALLED: Duration = Duration::from_secs(60);
/// Time that requests have to end once the controller ends.
const GRACE: Duration = Duration::from_secs(10);
/// Time that threads have after that.
const LAST: Duration = Duration::from_secs(1);
/// Pause after a connection could not be accepted.
const BREATH: Duration = Duration::from_millis(50);
/// Bytes of a request's headers.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// Threads that serve connections.
const MAX_THREADS: usize = 4;
/// Threads that read the store, and send and receive blobs.
const BLOCKING_THREADS: usize = 64;

/// Who the API is. Both PEM.
pub struct Identity<'a> {
    /// Certificate chain.
    pub certificate: &'a str,
    /// Private key.
    pub private_key: &'a str,
}

/// The API, served.
pub struct Server {
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    identity: IdentityHandle,
    places: Arc<Semaphore>,
    runtime: Runtime,
}

/// Gives a server another identity while it serves.
#[derive(Clone)]
pub struct IdentityHandle(watch::Sender<TlsAcceptor>);

impl IdentityHandle {
    /// Connections from now on see this identity.
    ///
    /// # Errors
    /// Where it makes no sense; the old one stays.
    pub fn renew(&self, identity: &Identity<'_>) -> io::Result<()> {
        self.0.send_replace(acceptor(identity)?);
        Ok(())
    }
}

impl Server {
    /// Where the API is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the metrics are without a token.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// By which its identity is renewed.
    pub fn identity(&self) -> IdentityHandle {
        self.identity.clone()
    }

    /// Accepts nothing more, lets requests come to their end, ends streams of events.
    pub fn stop(self) {
        self.stop.send_replace(true);
        self.runtime.block_on(async {
            // Once every connection gave its place back there is none any more. What takes longer breaks off.
            let _ = tokio::time::timeout(GRACE, self.places.acquire_many(MAX_CONNECTIONS)).await;
        });
        self.runtime.shutdown_timeout(LAST);
    }
}

fn invalid(what: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: {error}"))
}

fn acceptor(identity: &Identity<'_>) -> io::Result<TlsAcceptor> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).collect();
    let chain = chain.map_err(|error| invalid("certificate", error))?;
    let key = PrivateKeyDer::from_pem_slice(identity.private_key.as_bytes())
        .map_err(|error| invalid("private key", error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| invalid("TLS", error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| invalid("certificate", error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves the API on these sockets, on threads of its own, until it is stopped. `metrics` is for Prometheus alone:
/// plain HTTP, no token, nothing but `/metrics`.
///
/// # Errors
/// Where the identity makes no sense, or there are no threads.
pub fn serve(
    listener: StdListener,
    metrics: Option<StdListener>,
    identity: &Identity<'_>,
    services: Arc<Services>,
) -> io::Result<Server> {
    let (identity, tls) = watch::channel(acceptor(identity)?);
    let (stop, stopping) = watch::channel(false);
    let api = Api::new(services, stopping.clone());
    let address = listener.local_addr()?;
    let metrics_address = metrics.as_ref().map(StdListener::local_addr).transpose()?;
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(MAX_THREADS));
    let runtime = Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("api")
        .enable_all()
        .build()?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let entered = runtime.enter();
    let front = Front {
        listener: listening(listener)?,
        places: Arc::clone(&places),
        tls: Some(tls),
        router: routes::router(api.clone()),
        stopping: stopping.clone(),
    };
    tokio::spawn(front.accept());
    if let Some(listener) = metrics {
        let router = Router::new().route("/metrics", get(scrape)).with_state(api);
        let places = Arc::new(Semaphore::new(MAX_SCRAPES));
        tokio::spawn(Front { listener: listening(listener)?, places, tls: None, router, stopping }.accept());
    }
    drop(entered);
    Ok(Server { address, metrics_address, stop, identity: IdentityHandle(identity), places, runtime })
}

async fn scrape(State(api): State<Api>) -> Response {
    service::exposition(&api)
}

fn listening(listener: StdListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// A socket that connections come in by.
struct Front {
    listener: TcpListener,
    places: Arc<Semaphore>,
    /// `None`: plain HTTP.
    tls: Option<watch::Receiver<TlsAcceptor>>,
    router: Router,
    stopping: watch::Receiver<bool>,
}

impl Front {
    async fn accept(mut self) {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = self.stopping.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let tls = self.tls.as_ref().map(|tls| tls.borrow().clone());
                    let router = self.router.clone();
                    let stopping = self.stopping.clone();
                    tokio::spawn(async move {
                        serve_connection(stream, tls, router, stopping).await;
                        drop(place);
                    });
                }
                // Out of file descriptors, or a client that gave up: neither may end the API.
                Err(_) => tokio::time::sleep(BREATH).await,
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    stopping: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => speak(stream, router, stopping).await,
        Some(acceptor) => {
            let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
            let Ok(Ok(stream)) = shaken else { return };
            speak(stream, router, stopping).await;
        }
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let stream = TokioIo::new(Patient::new(stream, STALLED));
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(stream, TowerToHyperService::new(router))
    );
    // A connection that ends badly is the client's affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopping.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

//! A controller, put together: everything it keeps is in one folder.
//!
//! | in the state folder | what |
//! |---|---|
//! | `controller.db` | the grid's state |
//! | `statistics.db` | time series |
//! | `images/` | disks captured from instances |
//! | `ca.pem`, `ca.key` | the certificate authority |
//! | `signing.key` | signs records of sanitization |
//! | `blobs.key`, `tokens.key` | what authorizations and secrets of tokens are derived from |
//! | `operator.token` | the first operator's token |
//! | `url` | where the API is |

use std::collections::BTreeMap;
use std::fmt;
use std::fs::DirBuilder;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::blobs::{self, Blobs};
use crate::ca::{Authority, KeyPair};
use crate::config::{OPERATOR_TOKEN_FILE, ServeConfig, URL_FILE};
use crate::core::{Command, Options};
use crate::http::{self, Identity, IdentityHandle, Server, Services, TokenKey, operator_token};
use crate::model::Millis;
use crate::runtime::nodes::{Factory, GridNodes, GridOptions};
use crate::runtime::{Clock, Grid, OnForget, OnObservation, Parts, own_request};
use crate::signing::Signer;
use crate::store::{Rates, Series, SqliteStore};
use crate::{durable, log};

const STORE_FILE: &str = "controller.db";
const SERIES_FILE: &str = "statistics.db";
const IMAGES_FOLDER: &str = "images";
/// Whatever is in the state folder is nobody else's to read.
const FOLDER_MODE: u32 = 0o700;
/// The API's certificate is good for a year, and a controller may run for longer.
const RENEW_EVERY: Duration = Duration::from_secs(30 * 86_400);

/// Why there is no controller.
#[derive(Debug)]
pub struct Error {
    /// What was being done.
    pub context: String,
    /// Why it failed.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// Result of putting one together.
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was being done when something failed.
fn doing<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    context: impl Into<String>,
) -> impl FnOnce(E) -> Error {
    let context = context.into();
    move |error| Error { context, source: error.into() }
}

/// A controller at work.
pub struct Controller {
    server: Server,
    grid: Arc<Grid>,
    series: Arc<Series>,
    certificate: Arc<ApiCertificate>,
    /// Ends the thread that renews the certificate, by being dropped.
    _renewing: mpsc::Sender<()>,
}

/// The API's certificate, and whoever issues the next one.
struct ApiCertificate {
    server: IdentityHandle,
    authority: Arc<Authority>,
    names: Vec<String>,
}

impl ApiCertificate {
    fn renew(&self) -> Result<()> {
        let issued = self
            .authority
            .issue_server(&self.names, Clock::default().now())
            .map_err(doing("issuing the API's certificate"))?;
        let identity = Identity { certificate: &issued.certificate, private_key: &issued.private_key };
        self.server.renew(&identity).map_err(doing("renewing the API's certificate"))
    }

    /// Renews it on a thread of its own, until the answer's other end is dropped.
    fn keep_fresh(self: Arc<Self>) -> Result<mpsc::Sender<()>> {
        let (renewing, end) = mpsc::channel::<()>();
        let work = move || {
            while end.recv_timeout(RENEW_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                match self.renew() {
                    Ok(()) => log::info("the API's certificate was renewed"),
                    Err(error) => log::warn(&format!("{error}: {}", error.source)),
                }
            }
        };
        let started = std::thread::Builder::new().name("certificate".to_owned()).spawn(work);
        started.map(|_| renewing).map_err(doing("starting a thread"))
    }
}

impl Controller {
    /// Takes up what is in the state folder, or begins there, and serves. Nodes are opened by `factory`; utility VMs
    /// boot with `command_line`.
    ///
    /// # Errors
    /// Where the state folder cannot be used, or the addresses are taken.
    pub fn start(config: &ServeConfig, factory: Factory, command_line: String) -> Result<Self> {
        let state = config.state.as_path();
        DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(state)
            .map_err(doing(format!("making the state folder {}", state.display())))?;
        // First of all: it refuses a second controller on the same folder.
        let store = SqliteStore::open(&state.join(STORE_FILE)).map_err(doing("opening the store"))?;
        let now = Clock::default().now();
        let (services, listener, identity) = prepare(config, Box::new(store), (factory, command_line), now)?;
        let metrics = config.metrics_listen.map(bind).transpose()?;
        let (grid, series) = (Arc::clone(&services.grid), Arc::clone(&services.series));
        remove_orphans(&services)?;
        first_token(state, &grid)?;
        let identity = Identity { certificate: &identity.certificate, private_key: &identity.private_key };
        let authority = Arc::clone(&services.authority);
        let server = http::serve(listener, metrics, &identity, Arc::new(services))
            .map_err(doing("serving the API"))?;
        let names = config.certificate_names();
        let certificate = Arc::new(ApiCertificate { server: server.identity(), authority, names });
        let renewing = Arc::clone(&certificate).keep_fresh()?;
        let url = format!("https://{}", reachable(server.address()));
        durable::write(&state.join(URL_FILE), durable::PUBLIC, url.as_bytes())
            .map_err(doing("saying where the API is"))?;
        log::info(&format!("the API is at {url}, the state in {}", state.display()));
        if let Some(address) = server.metrics_address() {
            log::info(&format!("metrics without a token are at http://{address}/metrics"));
        }
        Ok(Self { server, grid, series, certificate, _renewing: renewing })
    }

    /// Where the API is.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where the metrics are without a token.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.server.metrics_address()
    }

    /// Issues the API another certificate, as happens by itself every month.
    ///
    /// # Errors
    /// Where none can be issued; the old one stays.
    pub fn renew_certificate(&self) -> Result<()> {
        self.certificate.renew()
    }

    /// The grid.
    pub fn grid(&self) -> &Arc<Grid> {
        &self.grid
    }

    /// Lets requests come to their end, finishes the batch at work. What goes on at nodes is taken up at the next start.
    pub fn stop(self) {
        self.server.stop();
        self.grid.stop();
        if let Err(error) = self.series.flush() {
            log::warn(&format!("the last statistics are lost: {error}"));
        }
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).map_err(doing(format!("listening on {address}")))
}

/// Where clients on this machine reach a server that listens there.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback: IpAddr = match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    address
}

/// Everything but the server: the port comes first, since utility VMs are told of it.
fn prepare(
    config: &ServeConfig,
    store: Box<SqliteStore>,
    (factory, command_line): (Factory, String),
    now: Millis,
) -> Result<(Services, TcpListener, KeyPair)> {
    let state = config.state.as_path();
    let authority =
        Authority::open_or_create(state, now).map_err(doing("opening the certificate authority"))?;
    let identity = authority
        .issue_server(&config.certificate_names(), now)
        .map_err(doing("issuing the API's certificate"))?;
    let signer = Signer::open_or_create(state).map_err(doing("opening the signing key"))?;
    let secret = Zeroizing::new(blobs::secret(state).map_err(doing("opening the image store's key"))?);
    let blobs = Blobs::open(&state.join(IMAGES_FOLDER), &secret).map_err(doing("opening the image store"))?;
    let series = Series::open(&state.join(SERIES_FILE)).map_err(doing("opening the statistics"))?;
    let token_key = TokenKey::open_or_create(state).map_err(doing("opening the tokens' key"))?;
    let listener = bind(config.listen)?;
    let port = listener.local_addr().map_err(doing("asking for the API's port"))?.port();
    let (authority, blobs) = (Arc::new(authority), Arc::new(blobs));
    let (signer, series) = (Arc::new(signer), Arc::new(series));
    let options = GridOptions {
        kernel: config.kernel.clone(),
        initramfs: config.initramfs.clone(),
        command_line,
        controller_url: config.url_for_utility_vms(port),
        hosts: BTreeMap::new(),
    };
    let nodes = GridNodes::new(options, Arc::clone(&authority), Arc::clone(&blobs), factory);
    let parts = Parts {
        store,
        nodes: Arc::new(nodes),
        options: core_options(config, &signer),
        on_observation: keep_statistics(Arc::clone(&series)),
        on_forget: forget_blobs(Arc::clone(&blobs)),
    };
    let grid = Grid::start(parts).map_err(doing("starting the grid"))?;
    Ok((Services { grid, blobs, series, authority, signer, token_key }, listener, identity))
}

fn core_options(config: &ServeConfig, signer: &Arc<Signer>) -> Box<dyn Fn() -> Options + Send> {
    let poll_interval_ms = config.poll_interval.as_millis().try_into().unwrap_or(u64::MAX);
    let signer = Arc::clone(signer);
    Box::new(move || {
        let signer = Arc::clone(&signer);
        Options { poll_interval_ms, seed: rand::random(), sign: Box::new(move |record| signer.sign(record)) }
    })
}

fn keep_statistics(series: Arc<Series>) -> OnObservation {
    let (rates, started) = (Mutex::new(Rates::new()), Instant::now());
    Box::new(move |node, time, seen| {
        let monotonic = started.elapsed().as_millis().try_into().unwrap_or(Millis::MAX);
        let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = rates.samples(node, monotonic, &seen.report);
        drop(rates);
        if let Err(error) = series.append(node, time, &samples) {
            log::warn(&format!("statistics of node {node} are lost: {error}"));
        }
    })
}

fn forget_blobs(blobs: Arc<Blobs>) -> OnForget {
    Box::new(move |image| {
        if let Err(error) = blobs.delete(image) {
            log::warn(&format!("the contents of image {image} stay until the next start: {error}"));
        }
    })
}

/// Contents of images whose records are gone: the controller ended before it could delete them.
fn remove_orphans(services: &Services) -> Result<()> {
    let kept = services.blobs.images().map_err(doing("listing the image store"))?;
    let orphans: Vec<_> = services
        .grid
        .read(|state| kept.into_iter().filter(|image| !state.images.contains_key(image)).collect());
    for image in orphans {
        services.blobs.delete(image).map_err(doing("clearing the image store"))?;
        log::info(&format!("removed the contents of image {image}, whose record is gone"));
    }
    Ok(())
}

/// Where nobody has a token yet, an operator gets one, in a file. The file comes first: a controller that is killed in
/// between makes both anew.
fn first_token(state: &Path, grid: &Grid) -> Result<()> {
    if grid.read(|state| !state.tokens.is_empty()) {
        return Ok(());
    }
    let random = Zeroizing::new(durable::random::<32>().map_err(doing("making the operator's token"))?);
    let secret = Zeroizing::new(format!("uvm_{}", URL_SAFE_NO_PAD.encode(random)));
    let path = state.join(OPERATOR_TOKEN_FILE);
    durable::write(&path, durable::PRIVATE, secret.as_bytes())
        .map_err(doing("writing the operator's token"))?;
    let token = operator_token("made at the first start", &secret, grid.now());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(doing("making the operator's token"))?;
    runtime
        .block_on(grid.submit(own_request(Command::CreateToken(token))))
        .map_err(|problem| doing("keeping the operator's token")(problem.detail))?;
    log::info(&format!("the operator's token is in {}", path.display()));
    Ok(())
}

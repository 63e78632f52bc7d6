//! The API `/v1`: HTTPS with bearer tokens. Async lives here and nowhere else.
//!
//! | file | owns |
//! |---|---|
//! | `server` | the transport: TCP, TLS 1.3, HTTP/1.1, limits, the end |
//! | `access` | who calls, and what that caller may do |
//! | `request` | what is read from a request: ids, parameters, bodies, keys, generations |
//! | `answer` | what is sent: problems, accepted changes, records with their `ETag` |
//! | `page` | lists by cursor |
//! | `lens` | what a tenant is not shown |
//! | `stream` | server-sent events |
//! | `instances` … `tokens` | the routes, each with its document |
//! | `metrics` | Prometheus |
//! | `openapi` | the document, generated from the routes |

mod access;
mod answer;
mod blobs;
mod disks;
mod events;
mod grid;
mod images;
mod instances;
mod jobs;
mod lens;
mod metrics;
mod nodes;
mod openapi;
mod page;
mod patience;
mod request;
mod routes;
mod server;
mod service;
mod statistics;
mod stream;
mod tokens;

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

pub use blobs::StoredBlob;
pub use grid::PublicKey;
pub use nodes::RegisteredNode;
pub use openapi::document;
pub use server::{Identity, IdentityHandle, Server, serve};
pub use service::Health;
pub use statistics::{Statistics, StatisticsSeries};
pub use tokens::{TokenKey, operator_token};

use answer::{Answer, Refusal};
use lens::Lens;
use request::Mutation;

use crate::blobs::Blobs;
use crate::ca::Authority;
use crate::core::Command;
use crate::model::{Accepted, ErrorCode};
use crate::runtime::Grid;
use crate::signing::Signer;
use crate::store::{Reader, Series, StoreError};

/// Streams of events served at once.
const MAX_STREAMS: usize = 512;
/// Blobs sent and received at once.
const MAX_TRANSFERS: usize = 32;

/// What the routes work with.
pub struct Services {
    /// The grid.
    pub grid: Arc<Grid>,
    /// The images captured from instances.
    pub blobs: Arc<Blobs>,
    /// Statistics.
    pub series: Arc<Series>,
    /// Issues the certificates of nodes.
    pub authority: Arc<Authority>,
    /// Signs records of sanitization.
    pub signer: Arc<Signer>,
    /// What the secrets of tokens are derived from.
    pub token_key: TokenKey,
}

/// What every handler is given.
#[derive(Clone)]
pub(crate) struct Api {
    services: Arc<Services>,
    tokens: Arc<access::KnownTokens>,
    requests: Arc<metrics::Requests>,
    streams: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
    /// Says when everything ends.
    stopping: watch::Receiver<bool>,
}

impl Api {
    fn new(services: Arc<Services>, stopping: watch::Receiver<bool>) -> Self {
        Self {
            services,
            tokens: Arc::default(),
            requests: Arc::default(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
            stopping,
        }
    }

    fn grid(&self) -> &Grid {
        &self.services.grid
    }

    /// Has the core decide, and waits until what it decided is durable.
    async fn submit<T>(&self, sent: Mutation<T>, command: impl FnOnce(T) -> Command) -> Answer<Accepted> {
        let session = sent.session.clone();
        let request = sent.ask(command);
        let takes_a_token = matches!(request.command, Command::DeleteToken(_) | Command::CreateNode(_));
        let result = self.grid().submit(request).await;
        if takes_a_token {
            self.tokens.forget();
        }
        result.map_err(|problem| {
            let lens = self.grid().read(|state| Lens::new(&session, state));
            lens.problem(problem).into()
        })
    }

    /// Reads the store off the event loop.
    async fn read_store<T: Send + 'static>(
        &self,
        look: impl FnOnce(&dyn Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<T> {
        let reader = Arc::clone(self.grid().reader());
        blocking(move || look(&*reader)).await?.map_err(Refusal::from)
    }
}

/// Runs what may take a while off the event loop.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    let result = tokio::task::spawn_blocking(work).await;
    result.map_err(|_| Refusal::new(ErrorCode::Internal, "a fault in the controller; its log says more"))
}

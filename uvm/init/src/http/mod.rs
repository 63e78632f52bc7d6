//! The API: HTTPS with mutual TLS. Async lives here and nowhere else.
//!
//! The routes with their documents are in [`routes`], the transport in [`server`].

mod events;
mod metrics;
mod openapi;
mod problem;
mod routes;
mod server;

use std::sync::Arc;

use uvm_api::PowerAction;

use crate::job::Engine;
use crate::node::NodeFacts;

pub(crate) use openapi::document;
pub(crate) use server::{TlsFiles, certificate_fingerprint, serve};

/// What the routes work with.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) engine: Arc<Engine>,
    pub(crate) node: Arc<NodeFacts>,
    /// Carries out a power action; called after the answer was sent.
    pub(crate) power: Arc<dyn Fn(PowerAction) + Send + Sync>,
}

/// SHA-256 fingerprint of the client certificate of a connection; `None` where the client showed none.
#[derive(Debug, Clone)]
pub(crate) struct Peer(pub(crate) Option<String>);

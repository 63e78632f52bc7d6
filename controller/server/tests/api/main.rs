//! The API as its callers have it: a real controller over TLS on a free port, fake nodes behind it.
#![allow(clippy::unwrap_used)]

mod access;
mod changes;
mod images;
mod requests;
mod service;
mod streams;
mod support;

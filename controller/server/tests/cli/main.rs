//! The command line as operators have it: the binary itself, against a controller over TLS with fake nodes behind it.
#![allow(clippy::unwrap_used)]

mod broken;
mod life;
mod manual;
mod support;

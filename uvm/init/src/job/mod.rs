//! Jobs: planned, journaled, carried out, verified.

mod context;
mod copy;
mod customize;
mod draft;
mod engine;
mod entry;
mod error;
mod format;
mod inspect;
mod journal;
mod layout;
mod partition;
mod plan;
mod progress;
mod provision;
mod request;
mod sanitize;
mod table;

pub(crate) use engine::{Engine, Options, max_running};
pub(crate) use error::{CancelledMarker, JobError, SourceFault};
pub(crate) use journal::now;
pub(crate) use layout::derive;
pub(crate) use plan::hex;
pub(crate) use progress::Progress;

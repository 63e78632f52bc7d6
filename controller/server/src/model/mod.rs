//! The words of the API. The same types are kept in the store: one record, one shape.
//!
//! Sizes of memory and disks are MiB, of statistics bytes; times are UTC milliseconds since 1970 in the store and
//! RFC 3339 nowhere but in people's tables; ids are UUIDs (version 7, so that order of id is order of creation).

mod capacity;
mod disk;
mod event;
mod id;
mod image;
mod instance;
mod job;
mod node;
mod plan;
mod problem;
mod sanitization;
mod snapshot;
mod token;

pub use capacity::*;
pub use disk::*;
pub use event::*;
pub use id::*;
pub use image::*;
pub use instance::*;
pub use job::*;
pub use node::*;
pub use plan::*;
pub use problem::*;
pub use sanitization::*;
pub use snapshot::*;
pub use token::*;

/// Milliseconds since 1970, UTC.
pub type Millis = u64;

/// A page of a list, in order of creation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// The records.
    pub items: Vec<T>,
    /// Give this as `?cursor=` to get what follows; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

//! A guest's file tree, and everything that is done to one without running anything of the guest.
//!
//! The trait [`GuestTree`] stands for a guest's files, whether they are being built or mounted. On it work:
//! - [`layer`]: an OCI image layer, streamed onto a tree,
//! - [`customize`]: hostname, users, keys, identity, network, `/etc/fstab`,
//! - [`boot`]: what the EFI system partition must hold so that the guest's own kernel boots.
//!
//! Bytes from an image or a guest are hostile: paths are [`GuestPath`]s that only go down, no link is followed
//! unless [`resolve`] says where it leads inside the guest, and every read has a limit. There is no clock and no
//! source of randomness here: both come from the caller, so the same input gives the same tree.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod boot;
pub mod customize;
mod error;
pub mod layer;
mod memory;
mod path;
mod tree;

pub use error::{Error, ErrorKind, Result};
pub use memory::MemoryTree;
pub use path::{GuestPath, MAX_COMPONENT, MAX_PATH};
pub use tree::{
    Attributes, GuestTree, Kind, Metadata, Timestamp, create_dir_all, edit, remove_all, resolve,
    resolve_parent, resolved_metadata, write_bytes,
};

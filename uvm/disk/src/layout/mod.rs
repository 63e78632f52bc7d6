//! Which partitions a disk will have, and where: pure arithmetic, no device is read or written.
//!
//! [`decide`] compares what is wanted with what a disk holds, by the rules of Ignition: a partition is found by its
//! number, its GUID, its label or its type; one that is as it should be stays, one that is not is made anew or resized
//! where the caller said so, and refused where not. [`place`] gives every partition its room: those with a place keep
//! it, the others go into the gaps, and what a gap has left is shared by weight within each one's minimum and maximum,
//! as systemd-repart does.
//!
//! Sizes come out exact: in each gap they add up to all of it, or every partition has its maximum. Equal requests give
//! equal answers, and the order of the partitions decides where they lie, not how large they are.

mod place;
mod reuse;
mod share;

pub use place::{Claim, Placement, Space, Taken, place};
pub use reuse::{Action, Decided, MAX_WANTED, Wanted, WantedFileSystem, decide};
pub use share::{Share, share};

const MIB: u64 = 1 << 20;

/// A size as people say it: in MiB where it is whole, else in bytes.
fn said(bytes: u64) -> String {
    if bytes.is_multiple_of(MIB) { format!("{} MiB", bytes / MIB) } else { format!("{bytes} bytes") }
}

//! An existing ext2, ext3 or ext4: its used blocks, and its growing and shrinking, with the judges behind.
#![allow(clippy::unwrap_used)]

mod faults;
mod grow;
#[path = "../judge/mod.rs"]
mod judge;
mod shrink;
mod support;
mod usage;

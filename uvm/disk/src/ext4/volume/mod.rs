//! An ext2, ext3 or ext4 that is there already, whoever made it.

#![allow(dead_code)]

mod bitmap;
mod descriptor;
mod features;
mod inode;
mod journal;
mod map;
mod source;
mod superblock;
mod usage;
#[expect(clippy::module_inception, reason = "the opened file system is what this module is about")]
mod volume;

pub use usage::used_extents;

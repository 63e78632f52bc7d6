//! An ext2, ext3 or ext4 that is there already, whoever made it.

mod bitmap;
mod commit;
mod descriptor;
mod edit;
mod features;
mod grow;
mod inode;
mod journal;
mod map;
mod plan;
mod relocate;
mod relocate_journal;
mod renumber;
mod resize_inode;
mod shrink;
mod source;
mod superblock;
mod survey;
mod tree;
mod usage;
#[expect(clippy::module_inception, reason = "the opened file system is what this module is about")]
mod volume;

pub use plan::{ResizePlan, plan_resize, resize};
pub use usage::used_extents;

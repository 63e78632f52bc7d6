//! ext2, ext3 and ext4, written in one pass.
//!
//! [`Ext4Builder`] is a new file system under construction. Contents go to the device as they come, each
//! block once, into extents that are contiguous as far as the metadata in between allows; all metadata
//! stays in memory until [`Ext4Builder::finish`] writes each block of it once and the superblock last.
//! Until then the device carries no file system.
//!
//! The format is that of the kernel's `Documentation/filesystems/ext4`. [`Ext4Options::new`] chooses what mke2fs 1.47
//! gives each [`Variant`], but for the resize inode of ext4, orphan_file and, past 2 TiB, the place of the group
//! descriptors. Inode tables are left for the kernel to zero when first mounted, as mke2fs does. The same calls
//! with the same options write the same bytes.
//!
//! Memory: 64 bytes an inode, about 40 bytes and the name a directory entry, 100 bytes and 12 an extent more
//! for a file in several extents. At most 4 MiB and 145 bytes a file with a name of 16 bytes, finishing included
//! (`tests/ext4_memory.rs` holds it); 104 to 113 were measured over a million files.
//! Nothing grows with the size of the device: group descriptors leave memory as they come, 1 MiB at a time.
//!
//! A directory past one block gets a hash index of one or two levels, as the kernel makes them: room for ten
//! million names of 60 bytes with blocks of 4096 bytes, 170,000 with blocks of 1024. More are refused.

mod alloc;
mod builder;
mod bytes;
mod dir;
mod dir_blocks;
mod extent;
mod finish;
mod format;
mod groups;
mod growth;
mod hash;
mod htree;
mod inode;
mod journal;
mod layout;
mod mapping;
mod names;
mod options;
mod sparse;
mod state;
mod superblock;
mod volume;
mod writer;
mod xattr;

pub use builder::Ext4Builder;
pub use finish::Ext4Summary;
pub use inode::{Attributes, Ino, NodeKind, Timestamp};
pub use options::{Backups, Checksums, Ext4Options, Features, Inodes, Journal, Variant};
pub use state::{JournalPlace, State, read_state};
pub use volume::{ResizePlan, plan_resize, resize, used_extents};

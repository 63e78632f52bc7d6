//! The resize inode: the room behind each copy of the group descriptors, as a file, so that nothing else takes it.
//!
//! Its double indirect block points to the reserved blocks behind the first copy. Each of those is an indirect
//! block that points to its likes behind the other copies. The kernel and resize2fs take them from there when a
//! file system grows.

use super::alloc::Allocator;
use super::bytes::{low32, put_u32};
use super::extent::{Map, Reserve};
use super::layout::Layout;
use super::writer::WriteBehind;
use crate::{Error, ErrorKind, Result};

/// The resize inode.
pub(super) const INODE: u32 = 7;
const DOUBLE_INDIRECT: usize = 13;

/// Bytes the inode claims to have: all that its double indirect block could reach.
pub(super) fn size(layout: &Layout) -> u64 {
    let pointers = u64::from(layout.block_size) / 4;
    layout.offset(pointers * pointers + pointers + 12)
}

/// Writes the pointers.
pub(super) fn create(layout: &Layout, allocator: &mut Allocator, writer: &mut WriteBehind) -> Result<Map> {
    let full = || Error::new(ErrorKind::NoSpace, "no block is left for the resize inode");
    let double = allocator.allocate(1)?.ok_or_else(full)?.start;
    let block_size = layout.block_size as usize;
    let pointers = block_size / 4;
    let backups: Vec<u32> = layout.superblock_groups().into_iter().filter(|group| *group > 0).collect();
    let reserved = layout.reserved_descriptor_blocks;
    let mut root = [0; 60];
    let mut double_block = vec![0; block_size];
    put_u32(&mut root, DOUBLE_INDIRECT * 4, low32(double));
    for number in layout.descriptor_blocks..layout.descriptor_blocks + reserved {
        let in_group = |group: u32| layout.group(group).start + 1 + number;
        let mut block = vec![0; block_size];
        for (index, group) in backups.iter().enumerate() {
            put_u32(&mut block, index * 4, low32(in_group(*group)));
        }
        put_u32(&mut double_block, number as usize % pointers * 4, low32(in_group(0)));
        writer.write(layout.offset(in_group(0)), &block)?;
    }
    writer.write(layout.offset(double), &double_block)?;
    let blocks = 1 + reserved * (1 + backups.len() as u64);
    Ok(Map::Reserve(Box::new(Reserve { root, blocks })))
}

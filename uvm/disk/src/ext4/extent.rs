//! Extents and the tree that holds more of them than an inode has room for. A file with a block map is kept as
//! extents too, until its map is written.

use super::bytes::{crc, high32, low32, put_u16, put_u32};
use super::mapping;

/// Longest run of one initialized extent.
pub(super) const LONGEST: u64 = 32_768;
/// Entries in an inode.
pub(super) const INLINE: usize = 4;
const MAGIC: u16 = 0xF30A;
const ENTRY: usize = 12;

/// A run of a file's blocks, packed as on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    logical: u32,
    physical_low: u32,
    physical_high: u16,
    length: u16,
}

impl Extent {
    fn new(logical: u32, physical: u64, length: u16) -> Self {
        Self { logical, physical_low: low32(physical), physical_high: high32(physical) as u16, length }
    }

    /// First block within the file.
    pub(super) fn logical(&self) -> u64 {
        u64::from(self.logical)
    }

    /// Blocks within the file.
    pub(super) fn logicals(&self) -> std::ops::Range<u64> {
        self.logical()..self.logical() + u64::from(self.length)
    }

    /// Blocks on the device.
    pub(super) fn physical(&self) -> std::ops::Range<u64> {
        let start = u64::from(self.physical_high) << 32 | u64::from(self.physical_low);
        start..start + u64::from(self.length)
    }
}

/// Adds `blocks` of the device as the file's blocks from `logical`, lengthening the last extent if it can.
pub(super) fn append(extents: &mut Vec<Extent>, mut logical: u64, blocks: std::ops::Range<u64>) {
    let mut start = blocks.start;
    if let Some(last) = extents.last_mut() {
        let length = u64::from(last.length);
        if last.physical().end == start && last.logical() + length == logical && length < LONGEST {
            let more = (LONGEST - length).min(blocks.end - start);
            last.length += more as u16;
            start += more;
            logical += more;
        }
    }
    while start < blocks.end {
        let length = (blocks.end - start).min(LONGEST);
        extents.push(Extent::new(logical as u32, start, length as u16));
        start += length;
        logical += length;
    }
}

/// How the files of one file system find their blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mapping {
    pub(super) block_size: usize,
    /// Extents, or else block maps.
    pub(super) extents: bool,
    /// Blocks of the tree end with a checksum.
    pub(super) checksums: bool,
}

/// The block map of a file: almost always nothing or one extent.
#[derive(Debug, Default)]
pub(super) enum Map {
    #[default]
    Empty,
    One(Extent),
    Many(Box<Tree>),
    /// The resize inode's: a block map, whatever other files have, over blocks that are the groups' own.
    Reserve(Box<Reserve>),
}

/// The resize inode's map.
#[derive(Debug)]
pub(super) struct Reserve {
    pub(super) root: [u8; 60],
    pub(super) blocks: u64,
}

/// The extents of a file, and the blocks that hold them where there are more than four.
#[derive(Debug)]
pub(super) struct Tree {
    extents: Box<[Extent]>,
    /// Blocks of the tree itself.
    nodes: Box<[u64]>,
    /// What goes into the inode.
    root: [u8; 60],
}

impl Map {
    /// Blocks a tree over `extents` needs outside the inode.
    pub(super) fn nodes_needed(extents: &[Extent], mapping: Mapping) -> u64 {
        if !mapping.extents {
            return mapping::nodes_needed(extents, mapping.block_size);
        }
        let (mut entries, mut nodes) = (extents.len(), 0);
        while entries > INLINE {
            entries = entries.div_ceil(per_node(mapping.block_size));
            nodes += entries as u64;
        }
        nodes
    }

    /// Builds the map bottom-up. `nodes` are as many blocks as [`Self::nodes_needed`] said, `write` gets
    /// each with its contents; `seed` is the inode's checksum seed.
    pub(super) fn build<E>(
        extents: Vec<Extent>,
        nodes: Vec<u64>,
        mapping: Mapping,
        seed: u32,
        mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        match extents[..] {
            [] => return Ok(Self::Empty),
            [only] if nodes.is_empty() => return Ok(Self::One(only)),
            _ => {}
        }
        let block_size = mapping.block_size;
        if !mapping.extents {
            let root = mapping::build(&extents, &nodes, block_size, write)?;
            return Ok(Self::Many(Box::new(Tree { extents: extents.into(), nodes: nodes.into(), root })));
        }
        let mut level: Vec<[u8; ENTRY]> = extents.iter().map(leaf_entry).collect();
        let mut depth = 0;
        let mut unused = nodes.iter();
        while level.len() > INLINE {
            let mut above = Vec::new();
            for entries in level.chunks(per_node(block_size)) {
                let Some(&block) = unused.next() else { break };
                let mut bytes = vec![0; block_size];
                put_node(&mut bytes, entries, per_node(block_size), depth);
                let tail = ENTRY + ENTRY * per_node(block_size);
                if mapping.checksums {
                    let checksum = crc(seed, &bytes[..tail]);
                    put_u32(&mut bytes, tail, checksum);
                }
                write(block, &bytes)?;
                above.push(index_entry(entries[0], block));
            }
            level = above;
            depth += 1;
        }
        let mut root = [0; 60];
        put_node(&mut root, &level, INLINE, depth);
        Ok(Self::Many(Box::new(Tree { extents: extents.into(), nodes: nodes.into(), root })))
    }

    /// The extents in the file's order.
    pub(super) fn extents(&self) -> &[Extent] {
        match self {
            Self::Empty | Self::Reserve(_) => &[],
            Self::One(extent) => std::slice::from_ref(extent),
            Self::Many(tree) => &tree.extents,
        }
    }

    /// Blocks of the tree itself.
    pub(super) fn nodes(&self) -> &[u64] {
        match self {
            Self::Many(tree) => &tree.nodes,
            _ => &[],
        }
    }

    /// Blocks that hold data.
    pub(super) fn blocks_of_data(&self) -> u64 {
        self.extents().iter().map(|extent| u64::from(extent.length)).sum()
    }

    /// All blocks the inode counts, those of the tree included.
    pub(super) fn blocks(&self) -> u64 {
        if let Self::Reserve(reserve) = self {
            return reserve.blocks;
        }
        self.blocks_of_data() + self.nodes().len() as u64
    }

    /// Whether it is made of extents.
    pub(super) fn has_extents(&self, mapping: Mapping) -> bool {
        mapping.extents && !matches!(self, Self::Reserve(_))
    }

    /// The 60 bytes of `i_block`.
    pub(super) fn root(&self, mapping: Mapping) -> [u8; 60] {
        match self {
            Self::Many(tree) => tree.root,
            Self::Reserve(reserve) => reserve.root,
            _ if !mapping.extents => mapping::direct(self.extents()),
            _ => {
                let mut root = [0; 60];
                let entries: Vec<_> = self.extents().iter().map(leaf_entry).collect();
                put_node(&mut root, &entries, INLINE, 0);
                root
            }
        }
    }
}

fn per_node(block_size: usize) -> usize {
    (block_size - ENTRY) / ENTRY
}

fn leaf_entry(extent: &Extent) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    put_u32(&mut bytes, 0, extent.logical);
    put_u16(&mut bytes, 4, extent.length);
    put_u16(&mut bytes, 6, extent.physical_high);
    put_u32(&mut bytes, 8, extent.physical_low);
    bytes
}

/// `first` is the first entry below: both kinds begin with the logical block.
fn index_entry(first: [u8; ENTRY], block: u64) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[..4].copy_from_slice(&first[..4]);
    put_u32(&mut bytes, 4, low32(block));
    put_u16(&mut bytes, 8, high32(block) as u16);
    bytes
}

fn put_node(bytes: &mut [u8], entries: &[[u8; ENTRY]], most: usize, depth: u16) {
    put_u16(bytes, 0, MAGIC);
    put_u16(bytes, 2, entries.len() as u16);
    put_u16(bytes, 4, most as u16);
    put_u16(bytes, 6, depth);
    for (slot, entry) in bytes[ENTRY..].chunks_exact_mut(ENTRY).zip(entries) {
        slot.copy_from_slice(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_join_up_to_the_longest() {
        let mut extents = Vec::new();
        append(&mut extents, 0, 100..20_100);
        append(&mut extents, 20_000, 20_100..60_100);
        append(&mut extents, 60_000, 70_000..70_001);
        append(&mut extents, 60_002, 70_001..70_002);
        let lengths: Vec<_> = extents.iter().map(|e| (e.logical, e.length)).collect();
        assert_eq!(lengths, [(0, 32_768), (32_768, 27_232), (60_000, 1), (60_002, 1)]);
    }

    #[test]
    fn a_tree_grows_to_the_depth_it_needs() {
        for (count, nodes, depth) in
            [(4, 0, 0), (5, 1, 1), (84 * 4, 4, 1), (84 * 4 + 1, 6, 2), (84 * 84 * 4 + 1, 343, 3)]
        {
            let mut extents = Vec::new();
            for n in 0..count {
                append(&mut extents, 2 * n, 3 * n + 1..3 * n + 2);
            }
            let mapping = Mapping { block_size: 1024, extents: true, checksums: true };
            assert_eq!(Map::nodes_needed(&extents, mapping), nodes);
            let mut written = 0;
            let blocks = (0..nodes).map(|n| 1_000_000 + n).collect();
            let map = Map::build(extents, blocks, mapping, 1, |_, bytes| {
                assert_eq!(bytes.len(), 1024);
                written += 1;
                Ok::<(), ()>(())
            });
            assert_eq!(written, nodes);
            assert_eq!(map.expect("a map").root(mapping)[6], depth);
        }
    }
}

//! Block maps of ext2 and ext3: twelve blocks in the inode, then one, two and three levels of indirect blocks.

use std::ops::Range;

use super::bytes::{low32, put_u32};
use super::extent::Extent;

/// Blocks the inode itself points to.
pub(super) const DIRECT: u64 = 12;
const POINTER: usize = 4;

/// Where the indirect blocks of a map over blocks of one size begin.
#[derive(Clone, Copy)]
struct Levels {
    /// Pointers in a block.
    pointers: u64,
}

impl Levels {
    fn new(block_size: usize) -> Self {
        Self { pointers: (block_size / POINTER) as u64 }
    }

    /// Leaves, numbered through all levels, that `blocks` of the file need; leaf 0 is the single indirect block.
    fn leaves(self, blocks: &Range<u64>) -> Range<u64> {
        if blocks.end <= DIRECT {
            return 0..0;
        }
        (blocks.start.max(DIRECT) - DIRECT) / self.pointers..(blocks.end - 1 - DIRECT) / self.pointers + 1
    }

    /// Which of the middle blocks below the triple indirect block has the leaf.
    fn middle(self, leaf: u64) -> Option<u64> {
        leaf.checked_sub(1 + self.pointers).map(|below| below / self.pointers)
    }
}

/// Blocks of a file that a map can reach.
pub(super) fn most_blocks(block_size: u32) -> u64 {
    let pointers = u64::from(block_size) / POINTER as u64;
    DIRECT + pointers + pointers.pow(2) + pointers.pow(3)
}

/// Indirect blocks of a file without holes that is as large as can be.
pub(super) fn most_nodes(block_size: u32) -> u64 {
    let pointers = u64::from(block_size) / POINTER as u64;
    1 + (1 + pointers) + (1 + pointers + pointers.pow(2))
}

/// Indirect blocks over the first `blocks` of a file, or a few more.
pub(super) fn nodes_of(blocks: u64, block_size: u32) -> u64 {
    let pointers = u64::from(block_size) / POINTER as u64;
    blocks / pointers + blocks / pointers.pow(2) + 5
}

/// Indirect blocks that `extents`, ascending, need.
pub(super) fn nodes_needed(extents: &[Extent], block_size: usize) -> u64 {
    let levels = Levels::new(block_size);
    let (mut nodes, mut next_leaf, mut next_middle, mut double) = (0, 0, 0, false);
    for extent in extents {
        let leaves = levels.leaves(&extent.logicals());
        let leaves = leaves.start.max(next_leaf)..leaves.end;
        if leaves.is_empty() {
            continue;
        }
        nodes += leaves.end - leaves.start;
        next_leaf = leaves.end;
        if !double && leaves.start <= levels.pointers && leaves.end > 1 {
            double = true;
            nodes += 1;
        }
        if let Some(last) = levels.middle(leaves.end - 1) {
            let first = levels.middle(leaves.start).unwrap_or(0).max(next_middle);
            // The triple indirect block comes with the first below it.
            nodes += u64::from(next_middle == 0) + (last + 1).saturating_sub(first);
            next_middle = last + 1;
        }
    }
    nodes
}

/// The 60 bytes of `i_block` where no indirect block is needed.
pub(super) fn direct(extents: &[Extent]) -> [u8; 60] {
    let mut root = [0; 60];
    for extent in extents {
        let blocks = extent.logicals().zip(extent.physical());
        for (logical, physical) in blocks.take_while(|(logical, _)| *logical < DIRECT) {
            put_pointer(&mut root, logical, physical);
        }
    }
    root
}

fn put_pointer(bytes: &mut [u8], index: u64, block: u64) {
    put_u32(bytes, index as usize * POINTER, low32(block));
}

/// An indirect block being filled, and which of its level it is.
struct Open {
    index: Option<u64>,
    bytes: Vec<u8>,
}

impl Open {
    fn new(block_size: usize) -> Self {
        Self { index: None, bytes: vec![0; block_size] }
    }
}

/// Writes the indirect blocks over `extents` and returns the 60 bytes of `i_block`. `nodes` are as many blocks as
/// [`nodes_needed`] said; `write` gets each with its contents.
pub(super) fn build<E>(
    extents: &[Extent],
    nodes: &[u64],
    block_size: usize,
    write: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<[u8; 60], E> {
    let levels = Levels::new(block_size);
    let open = || Open::new(block_size);
    let mut new = Builder {
        levels,
        nodes: nodes.iter(),
        root: direct(extents),
        leaf: open(),
        double: open(),
        middle: open(),
        triple: open(),
        write,
    };
    for extent in extents {
        for (logical, physical) in extent.logicals().zip(extent.physical()) {
            if let Some(beyond) = logical.checked_sub(DIRECT) {
                new.open_leaf(beyond / levels.pointers)?;
                put_pointer(&mut new.leaf.bytes, beyond % levels.pointers, physical);
            }
        }
    }
    new.close()
}

struct Builder<'n, W> {
    levels: Levels,
    nodes: std::slice::Iter<'n, u64>,
    root: [u8; 60],
    leaf: Open,
    double: Open,
    middle: Open,
    triple: Open,
    write: W,
}

impl<E, W: FnMut(u64, &[u8]) -> Result<(), E>> Builder<'_, W> {
    fn open_leaf(&mut self, index: u64) -> Result<(), E> {
        if self.leaf.index == Some(index) {
            return Ok(());
        }
        self.close_leaf()?;
        if let Some(middle) = self.levels.middle(index)
            && self.middle.index != Some(middle)
        {
            self.close_middle()?;
            self.middle.index = Some(middle);
        }
        self.leaf.index = Some(index);
        Ok(())
    }

    fn close_leaf(&mut self) -> Result<(), E> {
        let Some((index, block)) = put_node(&mut self.leaf, &mut self.nodes, &mut self.write)? else {
            return Ok(());
        };
        match (index.checked_sub(1), self.levels.middle(index)) {
            (None, _) => put_pointer(&mut self.root, DIRECT, block),
            (Some(below), None) => {
                self.double.index = Some(0);
                put_pointer(&mut self.double.bytes, below, block);
            }
            (_, Some(_)) => {
                let within = (index - 1 - self.levels.pointers) % self.levels.pointers;
                put_pointer(&mut self.middle.bytes, within, block);
            }
        }
        Ok(())
    }

    fn close_middle(&mut self) -> Result<(), E> {
        if let Some((index, block)) = put_node(&mut self.middle, &mut self.nodes, &mut self.write)? {
            self.triple.index = Some(0);
            put_pointer(&mut self.triple.bytes, index, block);
        }
        Ok(())
    }

    fn close(mut self) -> Result<[u8; 60], E> {
        self.close_leaf()?;
        self.close_middle()?;
        if let Some((_, block)) = put_node(&mut self.double, &mut self.nodes, &mut self.write)? {
            put_pointer(&mut self.root, DIRECT + 1, block);
        }
        if let Some((_, block)) = put_node(&mut self.triple, &mut self.nodes, &mut self.write)? {
            put_pointer(&mut self.root, DIRECT + 2, block);
        }
        Ok(self.root)
    }
}

/// Writes an open block and empties it: its index and where it went.
fn put_node<E>(
    open: &mut Open,
    nodes: &mut std::slice::Iter<'_, u64>,
    write: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<Option<(u64, u64)>, E> {
    let Some(index) = open.index.take() else { return Ok(None) };
    let Some(&block) = nodes.next() else { return Ok(None) };
    write(block, &open.bytes)?;
    open.bytes.fill(0);
    Ok(Some((index, block)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::extent::append;
    use super::*;

    /// Follows the pointers of every block of the file as a driver does.
    fn lookup(root: &[u8; 60], written: &BTreeMap<u64, Vec<u8>>, logical: u64) -> u64 {
        let pointer = |bytes: &[u8], index: u64| {
            let at = index as usize * 4;
            u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")))
        };
        let below = |block: u64, index: u64| if block == 0 { 0 } else { pointer(&written[&block], index) };
        let n = 256;
        if logical < 12 {
            return pointer(root, logical);
        }
        let rest = logical - 12;
        if rest < n {
            return below(pointer(root, 12), rest);
        }
        let rest = rest - n;
        if rest < n * n {
            return below(below(pointer(root, 13), rest / n), rest % n);
        }
        let rest = rest - n * n;
        below(below(below(pointer(root, 14), rest / n / n), rest / n % n), rest % n)
    }

    #[test]
    fn every_block_is_found_at_every_level() {
        let n = 256u64;
        let (double, triple) = (12 + n, 12 + n + n * n);
        for runs in [
            &[(0, 5)][..],
            &[(0, 12)][..],
            &[(0, 13)][..],
            &[(3, 4), (11, double + 3)][..],
            &[(double - 1, double + 1)][..],
            &[(5, 6), (triple - 2, triple + 2)][..],
            &[(triple + 5, triple + 6), (triple + 3 * n * n, triple + 3 * n * n + 2 * n)][..],
            &[(triple + n * n - 3, triple + n * n + 3)][..],
            &[(12, 13), (14, 15), (300, 301), (600, 601), (double + n * 7, double + n * 7 + 1)][..],
            &[(0, triple + 2 * n + 9)][..],
            &[(most_blocks(1024) - 2, most_blocks(1024))][..],
        ] {
            let mut extents = Vec::new();
            let mut physical = 7;
            for &(start, end) in runs {
                append(&mut extents, start, physical..physical + end - start);
                physical += end - start + 1;
            }
            let needed = nodes_needed(&extents, 1024);
            let nodes: Vec<u64> = (0..needed).map(|node| 1_000_000 + node).collect();
            let mut written = BTreeMap::new();
            let root = build(&extents, &nodes, 1024, |block, bytes| {
                assert!(written.insert(block, bytes.to_vec()).is_none());
                Ok::<(), ()>(())
            });
            let root = root.expect("writes");
            assert_eq!(written.len() as u64, needed, "{runs:?}");
            let mut physical = 7;
            for &(start, end) in runs {
                for logical in start..end {
                    assert_eq!(lookup(&root, &written, logical), physical, "{logical} of {runs:?}");
                    physical += 1;
                }
                physical += 1;
                let behind = end < most_blocks(1024);
                let found = if behind { lookup(&root, &written, end) } else { 0 };
                assert_eq!(found, 0, "the hole at {end} of {runs:?}");
            }
        }
    }
}

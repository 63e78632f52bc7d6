//! What stands in the way of a shorter file system: read, counted, nothing changed.

use std::collections::BTreeSet;

use super::bitmap;
use super::descriptor::{Field, INODE_UNINIT};
use super::features::{EA_INODE, ORPHAN_FILE, ORPHAN_PRESENT, QUOTA, STABLE_INODES};
use super::inode::{Inode, JOURNAL, RESIZE};
use super::relocate::ATTRIBUTES_MAGIC;
use super::superblock::{Geometry, corrupt, has_descriptor_checksums};
use super::tree;
use super::volume::{BATCH, Volume};
use crate::field::le32;
use crate::{Error, ErrorKind, Result};

/// The inode of bad blocks.
const BAD_BLOCKS: u32 = 1;
/// `s_creator_os`.
const CREATOR_HURD: u32 = 1;
/// The part of a transaction that one file's map may take.
const MAP_PART: u64 = 4;

/// What is to be moved for an end at some block.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Blocks of files, of maps and of attributes behind the end.
    pub(super) blocks: u64,
    /// Files some of whose blocks are behind the end.
    pub(super) files: u64,
    /// Used inodes of groups that go.
    pub(super) inodes: u64,
    /// Blocks of bitmaps and inode tables of kept groups behind the end.
    pub(super) metadata: u64,
    /// Blocks of the journal, where some of them are behind the end.
    pub(super) journal: u64,
    /// Blocks marked as used that belong to nobody.
    pub(super) leaked: u64,
}

impl Volume<'_> {
    /// Visits the inodes in use of the groups up to `groups`.
    pub(super) fn for_each_inode(
        &self,
        groups: std::ops::Range<u32>,
        visit: &mut dyn FnMut(Inode) -> Result<()>,
    ) -> Result<()> {
        let geometry = &self.geometry;
        let size = geometry.inode_size as usize;
        let per_block = geometry.block_size / geometry.inode_size;
        for group in groups {
            let bits = self.inode_bitmap(group)?;
            let table = self.descriptor(group).get(Field::InodeTable);
            let mut block = 0;
            while block < geometry.inode_table_blocks() {
                let count = BATCH.min(geometry.inode_table_blocks() - block);
                let first = block * u64::from(per_block);
                let limit =
                    ((block + count) * u64::from(per_block)).min(u64::from(geometry.inodes_per_group));
                let mut bit = bitmap::next(&bits, first, limit, true);
                if bit < limit {
                    let bytes = self.read_many(table + block, count)?;
                    while bit < limit {
                        let at = (bit - first) as usize * size;
                        let number = group * geometry.inodes_per_group + bit as u32 + 1;
                        let inode = Inode { number, bytes: bytes[at..at + size].to_vec() };
                        if !inode.fits(&self.superblock) {
                            return Err(corrupt(format!("the checksum of inode {number} does not fit")));
                        }
                        visit(inode)?;
                        bit = bitmap::next(&bits, bit + 1, limit, true);
                    }
                }
                block += count;
            }
        }
        Ok(())
    }

    /// The inode bitmap of a group; empty where the group's own is not initialized.
    pub(super) fn inode_bitmap(&self, group: u32) -> Result<Vec<u8>> {
        let descriptor = self.descriptor(group);
        let inodes = u64::from(self.geometry.inodes_per_group);
        if descriptor.flags() & INODE_UNINIT != 0 && has_descriptor_checksums(self.superblock.features()) {
            let mut bits = vec![0; self.geometry.block_size as usize];
            bitmap::set(&mut bits, inodes..u64::from(self.geometry.block_size) * 8);
            return Ok(bits);
        }
        let bits = self.read(descriptor.get(Field::InodeBitmap))?;
        let summed = &bits[..(inodes / 8) as usize];
        if !descriptor.bitmap_fits(Field::InodeBitmapChecksum, &self.superblock, summed) {
            return Err(corrupt(format!("the checksum of the inode bitmap of group {group} does not fit")));
        }
        Ok(bits)
    }

    /// Looks at every inode for what an end at `new` cuts off; refuses what cannot be moved.
    pub(super) fn survey(&self, new: &Geometry) -> Result<Survey> {
        let limit = new.blocks;
        let mut survey = Survey { metadata: self.metadata_behind(new), ..Survey::default() };
        let (mut attributes, mut owned) = (BTreeSet::new(), 0);
        self.for_each_inode(0..self.geometry.groups, &mut |inode| {
            let mut behind = 0;
            let map = self.owned(&inode)?;
            for run in &map.runs {
                behind += run.end().saturating_sub(run.physical.max(limit));
            }
            behind += map.nodes.iter().filter(|node| **node >= limit).count() as u64;
            owned += map.blocks() + map.nodes.len() as u64;
            if inode.number == RESIZE {
                // What it lists belongs to the groups.
                owned -= map.blocks() + (map.nodes.len() as u64).saturating_sub(1);
                behind = u64::from(map.nodes.first().is_some_and(|node| *node >= limit));
            }
            if let Some(block) = inode.attributes()
                && attributes.insert(block)
            {
                self.check_attributes(inode.number, block, limit)?;
                owned += 1;
                behind += u64::from(block >= limit);
            }
            if inode.number > new.inodes() {
                survey.inodes += 1;
            }
            if behind == 0 {
                return Ok(());
            }
            if Some(inode.number) == self.superblock.journal_inode() {
                survey.journal = map.blocks();
                return Ok(());
            }
            self.check_movable(&inode)?;
            let nodes = if inode.has_extents() { tree::nodes_needed(&map.runs, new.block_size) } else { 0 };
            if nodes as u64 > self.capacity() / MAP_PART {
                let context = format!(
                    "the map of inode {} has {nodes} blocks; the ext journal takes {} at once",
                    inode.number,
                    self.capacity() / MAP_PART
                );
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
            survey.blocks += behind;
            survey.files += 1;
            Ok(())
        })?;
        survey.leaked = self.demand()?.contents.saturating_sub(owned);
        self.check_survey(&survey, new)?;
        Ok(survey)
    }

    /// Before the first write, so that none is in vain.
    fn check_attributes(&self, inode: u32, block: u64, limit: u64) -> Result<()> {
        let geometry = &self.geometry;
        if (geometry.first_data_block..geometry.blocks).contains(&block)
            && (block < limit || le32(&self.read(block)?, 0) == ATTRIBUTES_MAGIC)
        {
            return Ok(());
        }
        Err(corrupt(format!("inode {inode} has no attributes in block {block}")))
    }

    fn check_movable(&self, inode: &Inode) -> Result<()> {
        let features = self.superblock.features();
        let orphan_file = features.compat & ORPHAN_FILE != 0 && inode.number == self.superblock.u32(0x280);
        match inode.number {
            BAD_BLOCKS => Err(unmoved("bad blocks")),
            _ if orphan_file => Err(unmoved("the orphan file")),
            _ if features.ro_compat & QUOTA != 0 => Err(unmoved("a file counted by quota")),
            _ => Ok(()),
        }
    }

    fn check_survey(&self, survey: &Survey, new: &Geometry) -> Result<()> {
        let features = self.superblock.features();
        if survey.inodes > 0 {
            let refused = [
                (features.compat & STABLE_INODES, "stable_inodes"),
                (features.incompat & EA_INODE, "ea_inode"),
            ];
            if let Some((_, name)) = refused.iter().find(|(bit, _)| *bit != 0) {
                let context = format!(
                    "{} inodes of the ext file system need other numbers, which the feature {name} does not allow",
                    survey.inodes
                );
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
        }
        if survey.inodes > 0 {
            self.references(new)?;
        }
        self.check_named_inodes(new)?;
        // The orphan file names inodes as the list does.
        if self.superblock.u32(0xE8) != 0 || features.ro_compat & ORPHAN_PRESENT != 0 {
            return Err(unmoved("a list of orphans (a mount empties it)"));
        }
        // Its inodes have a block for their translator, which is in no map.
        if self.superblock.u32(0x48) == CREATOR_HURD {
            return Err(unmoved("the translators"));
        }
        Ok(())
    }

    /// Refuses where an inode that the superblock names would get another number.
    fn check_named_inodes(&self, new: &Geometry) -> Result<()> {
        let features = self.superblock.features();
        let field = |present: bool, at| if present { self.superblock.u32(at) } else { 0 };
        let quota = features.ro_compat & QUOTA != 0;
        let named = [
            (self.superblock.journal_inode().unwrap_or(JOURNAL), "the inode of the journal"),
            (field(features.compat & ORPHAN_FILE != 0, 0x280), "the inode of the orphan file"),
            (field(quota, 0x240), "the inode of user quota"),
            (field(quota, 0x244), "the inode of group quota"),
            (field(quota, 0x26C), "the inode of project quota"),
        ];
        match named.into_iter().find(|(number, _)| *number > new.inodes()) {
            Some((_, what)) => Err(unmoved(what)),
            None => Ok(()),
        }
    }

    /// Blocks of bitmaps and inode tables of kept groups that are behind the end.
    fn metadata_behind(&self, new: &Geometry) -> u64 {
        (0..new.groups)
            .flat_map(|group| self.metadata_of(group))
            .filter(|(_, blocks)| blocks.end > new.blocks)
            .map(|(_, blocks)| blocks.end - blocks.start)
            .sum()
    }

    /// Where the two bitmaps and the inode table of a group are.
    pub(super) fn metadata_of(&self, group: u32) -> [(Field, std::ops::Range<u64>); 3] {
        let descriptor = self.descriptor(group);
        [
            (Field::InodeTable, self.geometry.inode_table_blocks()),
            (Field::BlockBitmap, 1),
            (Field::InodeBitmap, 1),
        ]
        .map(|(field, length)| (field, descriptor.get(field)..descriptor.get(field) + length))
    }

    /// The fewest blocks all that is in use fits; once shrunk so far, it may be fewer still.
    pub(super) fn minimum_blocks(&self) -> Result<u64> {
        let old = self.geometry;
        let demand = self.demand()?;
        let (mut low, mut high) = (1, old.groups);
        while low < high {
            let middle = low + (high - low) / 2;
            let blocks = (old.first_data_block + u64::from(middle) * old.blocks_per_group).min(old.blocks);
            if self.slack(&demand, blocks)?.is_some() { high = middle } else { low = middle + 1 }
        }
        let end = (old.first_data_block + u64::from(low) * old.blocks_per_group).min(old.blocks);
        let Some(slack) = self.slack(&demand, end)? else { return Ok(old.blocks) };
        let start = old.group_start(low - 1);
        let least = if low == 1 {
            old.base_metadata(0).end
        } else {
            start + super::plan::least_last_group(&old.shrunk(end)?)
        };
        Ok((end - slack).max(least).min(end))
    }

    /// Blocks left over with an end at `blocks`; `None` where it does not fit.
    fn slack(&self, demand: &Demand, blocks: u64) -> Result<Option<u64>> {
        let old = self.geometry;
        let new = old.shrunk(blocks)?;
        // What groups that go have in flex groups that stay is free only when they are gone.
        let going: u64 = (new.groups..old.groups)
            .flat_map(|group| self.metadata_of(group))
            .map(|(_, range)| range.end.min(blocks).saturating_sub(range.start))
            .sum();
        let has = blocks.saturating_sub(new.first_data_block + overhead(&new) + going);
        let slack = has.checked_sub(demand.contents + demand.margin);
        Ok(slack.filter(|_| demand.inodes <= u64::from(new.inodes())))
    }

    /// What has to find room.
    fn demand(&self) -> Result<Demand> {
        let geometry = self.geometry;
        let (mut used, mut inodes, mut runs) = (0, 0, 0);
        for group in 0..geometry.groups {
            let descriptor = self.descriptor(group);
            let blocks = geometry.group(group);
            let length = blocks.end - blocks.start;
            let bits = self.block_bitmap(group)?;
            used += length - bitmap::count_clear(&bits, length);
            inodes += u64::from(geometry.inodes_per_group).saturating_sub(descriptor.get(Field::FreeInodes));
            let mut bit = 0;
            while bit < length {
                bit = bitmap::next(&bits, bit, length, false);
                runs += u64::from(bit < length);
                bit = bitmap::next(&bits, bit, length, true);
            }
        }
        let contents = used.saturating_sub(overhead(&geometry));
        // Every run of free blocks can break one file in two, and the map of that may need a block more.
        let margin = runs.min(inodes) + runs / tree::per_node(geometry.block_size) as u64 * 2 + 8;
        Ok(Demand { contents, inodes, margin })
    }
}

struct Demand {
    contents: u64,
    inodes: u64,
    margin: u64,
}

/// Blocks that belong to groups.
fn overhead(geometry: &Geometry) -> u64 {
    let base: u64 = (0..geometry.groups)
        .map(|group| {
            let base = geometry.base_metadata(group);
            base.end - base.start
        })
        .sum();
    base + u64::from(geometry.groups) * (2 + geometry.inode_table_blocks())
}

fn unmoved(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what} of an ext file system cannot be moved: not shrunk"))
}

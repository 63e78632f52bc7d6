//! MBR partition tables, with logical partitions, and what guards a GPT (UEFI 2.10, 5.2).
//!
//! [`Mbr`] is the value; [`read`], [`write`] and [`update`] move it between device and memory. The partitions of LBA 0
//! have slots, 1 to 4, and keep them. A logical partition is numbered by its turn in the chain of extended boot records,
//! from 5: what is deleted there lets those behind it move up, on every system. A new one goes to the end of the chain,
//! wherever it lies, so that the others keep their numbers.
//!
//! # The states of an update
//!
//! ```text
//! old ── records that nothing refers to yet ──▶ old ── one sector: LBA 0 or one record ──▶ new ── lengths of links ──▶ new
//! ```
//!
//! A sector is written whole or not at all, so every state is the old table or the new one. An edit that would need two
//! such sectors at once, such as one of a primary and one of a logical partition, is refused: it is two updates.

mod edit;
mod entry;
mod store;
pub mod system_id;
mod verify;

pub use edit::{NewMbrPartition, Slot};
pub(crate) use entry::{encode, is_extended, is_signed, protected_until, protective_entry, with_entries};
pub use store::{update, write};
pub(crate) use system_id::PROTECTIVE;
pub use verify::verify;

use crate::field::{le32, read as read_bytes};
use crate::{BlockDevice, Result};
use entry::{decode, entries, is_link, is_used};

/// Logical partitions followed; no system makes more, and a hostile chain may be a circle.
const MAX_LOGICAL: u32 = 124;

/// A partition of an MBR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MbrPartition {
    /// 1 to 4 for a primary one, from 5 for a logical one.
    pub number: u32,
    /// What it is for: see [`system_id`].
    pub kind: u8,
    /// The active flag.
    pub bootable: bool,
    /// First block.
    pub starting_lba: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// The block with its entry: 0, or a logical partition's extended boot record.
    pub record_lba: u64,
}

impl MbrPartition {
    /// Last block, included.
    pub fn ending_lba(&self) -> u64 {
        self.starting_lba.saturating_add(self.blocks.saturating_sub(1))
    }

    /// Whether it is in the extended partition.
    pub fn is_logical(&self) -> bool {
        self.number > 4
    }

    /// Whether it holds the logical partitions.
    pub fn is_extended(&self) -> bool {
        !self.is_logical() && is_extended(self.kind)
    }
}

/// A master boot record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mbr {
    /// The disk's signature.
    pub disk_signature: u32,
    /// Used entries by number, the extended ones included.
    pub partitions: Vec<MbrPartition>,
}

impl Mbr {
    /// Whether it only guards a GPT.
    pub fn is_protective(&self) -> bool {
        self.partitions.iter().any(|p| p.kind == PROTECTIVE)
    }
}

/// Decodes the first block of a device; `None` where it is no MBR: the signature is missing, or an entry
/// has no valid active flag (then it is the boot sector of a file system).
pub fn parse(block: &[u8]) -> Option<Mbr> {
    if !is_signed(block) || entries(block).any(|(_, e)| e[0] & 0x7f != 0) {
        return None;
    }
    let used = entries(block).filter(|(_, e)| is_used(e));
    let partitions: Vec<_> = used.map(|(number, e)| decode(number, e, 0, 0)).collect();
    Some(Mbr { disk_signature: le32(block, 440), partitions })
}

/// An extended boot record.
struct Record {
    lba: u64,
    block: Vec<u8>,
}

/// Everything on the device that makes the table.
struct Found {
    mbr: Mbr,
    lba0: Vec<u8>,
    /// In the order of the chain.
    records: Vec<Record>,
    /// Why the chain ended where it should not.
    broken: Option<String>,
}

/// Reads the table with its logical partitions; `None` where there is none.
pub fn read(device: &dyn BlockDevice) -> Result<Option<Mbr>> {
    Ok(read_chain(device)?.map(|(mbr, _)| mbr))
}

/// The same, and why there may be more logical partitions than were found.
pub(crate) fn read_chain(device: &dyn BlockDevice) -> Result<Option<(Mbr, Option<String>)>> {
    Ok(find(device)?.map(|found| (found.mbr, found.broken)))
}

fn find(device: &dyn BlockDevice) -> Result<Option<Found>> {
    let geometry = device.geometry();
    let block_size = geometry.logical_block_size as usize;
    if geometry.blocks() == 0 {
        return Ok(None);
    }
    let lba0 = read_bytes(device, 0, block_size, "reading the MBR")?;
    let Some(mbr) = parse(&lba0) else { return Ok(None) };
    let extended = mbr.partitions.iter().find(|p| p.is_extended()).map(|p| p.starting_lba);
    let mut found = Found { mbr, lba0, records: Vec::new(), broken: None };
    if let Some(extended) = extended {
        found.broken = follow(device, extended, &mut found)?;
    }
    Ok(Some(found))
}

/// Follows the chain of an extended partition; says why it ended too early.
fn follow(device: &dyn BlockDevice, extended: u64, found: &mut Found) -> Result<Option<String>> {
    let geometry = device.geometry();
    let block_size = u64::from(geometry.logical_block_size);
    let mut lba = extended;
    let mut number = 5;
    for _ in 0..MAX_LOGICAL {
        if lba >= geometry.blocks() {
            return Ok(Some(format!("an extended boot record at LBA {lba} is not on the device")));
        }
        if found.records.iter().any(|record| record.lba == lba) {
            return Ok(Some(format!("the chain of extended boot records comes back to LBA {lba}")));
        }
        let context = "reading an extended boot record";
        let block = read_bytes(device, lba * block_size, block_size as usize, context)?;
        if !is_signed(&block) {
            return Ok(Some(format!("the extended boot record at LBA {lba} has no signature")));
        }
        let data = entries(&block).find(|(_, e)| is_used(e) && !is_extended(e[4]));
        if let Some((_, e)) = data {
            found.mbr.partitions.push(decode(number, e, lba, lba));
            number += 1;
        }
        let next = entries(&block).find(|(_, e)| is_link(e));
        let next = next.map(|(_, e)| extended + u64::from(le32(e, 8)));
        found.records.push(Record { lba, block });
        match next {
            Some(next) => lba = next,
            None => return Ok(None),
        }
    }
    Ok(Some(format!("more than {MAX_LOGICAL} extended boot records")))
}

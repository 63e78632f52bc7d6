//! LBA 0 in front of a GPT: the protective MBR, and the hybrid one that shows some partitions to systems that read no
//! GPT (UEFI 2.10, 5.2.3).

use super::store::{Copies, locate};
use super::{Partition, PartitionTable};
use crate::field::{expect, flush, write as write_bytes};
use crate::mbr::{self, MbrPartition, PROTECTIVE};
use crate::{BlockDevice, Error, ErrorKind, Result};

/// A partition that a hybrid MBR shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirror {
    /// Its number in the GPT.
    pub number: u32,
    /// The system id it has there.
    pub kind: u8,
    /// The active flag.
    pub bootable: bool,
}

/// Partitions that a hybrid MBR has room for, beside the one that protects.
pub const MAX_MIRRORS: usize = 3;

/// What the protective entry of a whole device covers, in blocks from LBA 1.
fn covered(blocks: u64) -> u32 {
    u32::try_from(blocks - 1).unwrap_or(u32::MAX)
}

/// The protective MBR for a device of `blocks` blocks. Boot code and disk signature of a protective MBR
/// that is there already stay; anything else does not.
pub(super) fn protective(current: &[u8], blocks: u64) -> Vec<u8> {
    let guards = mbr::parse(current).is_some_and(|mbr| mbr.is_protective());
    let template = if guards { current.to_vec() } else { vec![0; current.len()] };
    let last = u64::from(covered(blocks));
    mbr::with_entries(template, &[mbr::protective_entry(last)])
}

/// What LBA 0 holds, seen from the GPT.
pub(super) enum Guard {
    /// No boot signature, or no partitions: nothing that speaks against a protective MBR.
    Nothing,
    /// One entry that protects, and whether it covers the device.
    Protective { fits: bool },
    /// The other entries.
    Hybrid(Vec<MbrPartition>),
    /// An MBR of its own, or the boot sector of a file system.
    Foreign(String),
}

pub(super) fn look(lba0: &[u8], blocks: u64) -> Guard {
    if !mbr::is_signed(lba0) {
        return Guard::Nothing;
    }
    let Some(found) = mbr::parse(lba0) else {
        return Guard::Foreign("LBA 0 has a boot signature and is no MBR".into());
    };
    let (guards, others): (Vec<_>, Vec<_>) = found.partitions.into_iter().partition(|p| p.kind == PROTECTIVE);
    match (guards.first(), others.first()) {
        (None, None) => Guard::Nothing,
        (None, Some(p)) => Guard::Foreign(format!(
            "LBA 0 is an MBR with partition {} ({} blocks at LBA {}) and none that protects a GPT",
            p.number, p.blocks, p.starting_lba
        )),
        (Some(guard), None) => {
            let whole = [u64::from(covered(blocks)), u64::from(u32::MAX)];
            Guard::Protective { fits: guard.starting_lba == 1 && whole.contains(&guard.blocks) }
        }
        (Some(_), Some(_)) => Guard::Hybrid(others),
    }
}

/// LBA 0 for a table that replaces `old` on a device of `blocks` blocks; refuses where it would say something else than
/// the table.
pub(super) fn keep(lba0: &[u8], old: &PartitionTable, new: &PartitionTable, blocks: u64) -> Result<Vec<u8>> {
    match look(lba0, blocks) {
        Guard::Nothing => Ok(protective(lba0, blocks)),
        Guard::Protective { fits: true } => Ok(lba0.to_vec()),
        Guard::Protective { fits: false } => Ok(protective(lba0, blocks)),
        Guard::Foreign(what) => {
            let context = format!("{what}: the GPT may be a remainder, and is not edited");
            Err(Error::new(ErrorKind::Unsupported, context))
        }
        Guard::Hybrid(mirrors) => {
            mirrors.iter().try_for_each(|mirror| check_mirror(mirror, old, new))?;
            Ok(lba0.to_vec())
        }
    }
}

/// First and last block.
fn extent(mirror: &MbrPartition) -> (u64, u64) {
    (mirror.starting_lba, mirror.starting_lba + mirror.blocks.max(1) - 1)
}

pub(super) fn mirrored<'t>(mirror: &MbrPartition, table: &'t PartitionTable) -> Option<&'t Partition> {
    let (first, last) = extent(mirror);
    table.partitions.iter().find(|p| (p.starting_lba, p.ending_lba) == (first, last))
}

fn check_mirror(mirror: &MbrPartition, old: &PartitionTable, new: &PartitionTable) -> Result<()> {
    let (first, last) = extent(mirror);
    let conflict = match mirrored(mirror, old) {
        Some(p) => mirrored(mirror, new).is_none().then_some(p),
        // What only the MBR knows must not be given to a partition.
        None => new.partitions.iter().find(|p| {
            p.starting_lba <= last && p.ending_lba >= first && !old.partitions.iter().any(|q| q == *p)
        }),
    };
    let Some(p) = conflict else { return Ok(()) };
    let context = format!(
        "the hybrid MBR shows LBAs {first}..={last} as its partition {}, which an edit of partition {} would contradict: \
         write a protective MBR first, and a hybrid one afterwards",
        mirror.number, p.number
    );
    Err(Error::new(ErrorKind::Unsupported, context))
}

/// Shows up to [`MAX_MIRRORS`] partitions in a hybrid MBR, in that order, behind an entry that protects what is before
/// the first of them. One block is written; its boot code stays.
pub fn write_hybrid(device: &dyn BlockDevice, mirrors: &[Mirror]) -> Result<()> {
    let copies = locate(device)?;
    let table = &copies.valid()?.table;
    table.validate(&copies.geometry)?;
    if mirrors.is_empty() || mirrors.len() > MAX_MIRRORS {
        let context =
            format!("{} partitions in a hybrid MBR: 1 to {MAX_MIRRORS} are possible", mirrors.len());
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    let mut entries = Vec::new();
    let mut first = u64::MAX;
    for (index, mirror) in mirrors.iter().enumerate() {
        let p = table.partition(mirror.number)?;
        if mirrors[..index].iter().any(|other| other.number == mirror.number) {
            let context = format!("partition {} is to be in the hybrid MBR twice", mirror.number);
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        if matches!(mirror.kind, 0 | PROTECTIVE) || mbr::is_extended(mirror.kind) {
            let context =
                format!("system id {:#04x} for partition {} in a hybrid MBR", mirror.kind, p.number);
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        let blocks = p.ending_lba - p.starting_lba + 1;
        entries.push(mbr::encode(mirror.kind, mirror.bootable, 0, p.starting_lba, blocks)?);
        first = first.min(p.starting_lba);
    }
    entries.insert(0, mbr::protective_entry(first - 1));
    write_guard(device, &copies, &entries)
}

/// Makes LBA 0 a protective MBR: a hybrid one, or whatever was there, is gone. Its boot code stays.
pub fn write_protective(device: &dyn BlockDevice) -> Result<()> {
    let copies = locate(device)?;
    copies.valid()?;
    let last = u64::from(covered(copies.geometry.blocks()));
    write_guard(device, &copies, &[mbr::protective_entry(last)])
}

fn write_guard(device: &dyn BlockDevice, copies: &Copies, entries: &[[u8; 16]]) -> Result<()> {
    let template =
        if mbr::is_signed(&copies.lba0) { copies.lba0.clone() } else { vec![0; copies.lba0.len()] };
    let block = mbr::with_entries(template, entries);
    write_bytes(device, 0, &block, "writing the MBR before a GPT")?;
    flush(device, "flushing the MBR before a GPT")?;
    expect(device, 0, &block, "reading back the MBR before a GPT")
}

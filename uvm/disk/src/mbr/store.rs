//! How an MBR gets onto a device. What is to be written is decided whole before the first write, as steps that are each
//! written, flushed and read back before the next.

use super::entry::{
    ENTRIES, ENTRY_SIZE, decode, encode, entries, is_extended, is_link, is_used, with_entries,
};
use super::{Found, Mbr, MbrPartition, find};
use crate::field::{expect, flush, le32, put, write as write_bytes};
use crate::{BlockDevice, Error, ErrorKind, Result, gpt};

/// A step's name, and its blocks.
type Step = (&'static str, Vec<(u64, Vec<u8>)>);

/// A record as it shall be: the partition it lists, and where it leads.
struct Wanted<'m> {
    lba: u64,
    data: Option<&'m MbrPartition>,
    next: Option<&'m MbrPartition>,
}

/// Creates a table on a device, whatever LBA 0 holds. Refused where there is a GPT: its headers have to go first
/// ([`gpt::wipe_tables`]).
///
/// Where logical partitions are to be written, LBA 0 is zero meanwhile: the device has the old table, none, or the new.
pub fn write(device: &dyn BlockDevice, mbr: &Mbr) -> Result<()> {
    let geometry = device.geometry();
    mbr.validate(&geometry)?;
    match gpt::read(device) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
        _ => return refuse("creating an MBR on a device that has a GPT".into()),
    }
    let block_size = geometry.logical_block_size as usize;
    let mut records = Vec::new();
    for wanted in wanted(mbr) {
        records.push((wanted.lba, record(&wanted, None, mbr, block_size)?));
    }
    let lba0 = lba0(mbr, &vec![0; block_size])?;
    let mut steps: Vec<Step> = Vec::new();
    if !records.is_empty() {
        steps.push(("zeroes over LBA 0", vec![(0, vec![0; block_size])]));
        steps.push(("extended boot records", records));
    }
    steps.push(("the MBR", vec![(0, lba0)]));
    carry_out(device, steps)
}

/// Replaces the table of a device by an edited one, with one sector: see the states in the module's description. Boot
/// code, unchanged entries and what else is in the records stay byte by byte.
///
/// Refused are edits that need two sectors at once, tables whose chain is broken, and what guards a GPT.
pub fn update(device: &dyn BlockDevice, mbr: &Mbr) -> Result<()> {
    let geometry = device.geometry();
    let Some(found) = find(device)? else {
        return Err(Error::new(ErrorKind::NotFound, "editing an MBR: there is none"));
    };
    if found.mbr.is_protective() {
        return refuse("editing an MBR that protects a GPT: edit the GPT".into());
    }
    if let Some(broken) = &found.broken {
        return Err(Error::new(ErrorKind::Corrupt, format!("editing an MBR: {broken}")));
    }
    mbr.validate(&geometry)?;
    let steps = plan(&found, mbr, geometry.logical_block_size as usize)?;
    check_free(&found, &steps)?;
    carry_out(device, steps)
}

fn refuse<T>(context: String) -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, context))
}

fn carry_out(device: &dyn BlockDevice, steps: Vec<Step>) -> Result<()> {
    let block_size = u64::from(device.geometry().logical_block_size);
    for (name, writes) in steps {
        for (lba, bytes) in &writes {
            write_bytes(device, lba * block_size, bytes, &format!("writing {name}"))?;
        }
        flush(device, &format!("flushing {name}"))?;
        for (lba, bytes) in &writes {
            expect(device, lba * block_size, bytes, &format!("reading back {name}"))?;
        }
    }
    Ok(())
}

/// The records of a table, in the order of the chain. One is at the extended partition's start whatever it lists.
fn wanted(mbr: &Mbr) -> Vec<Wanted<'_>> {
    let Some(extended) = mbr.extended() else { return Vec::new() };
    let logical: Vec<_> = mbr.logical().collect();
    let mut records: Vec<_> = logical
        .iter()
        .enumerate()
        .map(|(i, p)| Wanted { lba: p.record_lba, data: Some(*p), next: logical.get(i + 1).copied() })
        .collect();
    if logical.first().is_none_or(|p| p.record_lba != extended.starting_lba) {
        let next = logical.first().copied();
        records.insert(0, Wanted { lba: extended.starting_lba, data: None, next });
    }
    records
}

/// What of a record decides which partitions there are: those it lists, and where it leads.
fn meaning(block: &[u8], lba: u64) -> (Option<MbrPartition>, Option<u32>) {
    let data = entries(block).find(|(_, e)| is_used(e) && !is_extended(e[4]));
    let next = entries(block).find(|(_, e)| is_link(e));
    (data.map(|(_, e)| decode(0, e, lba, lba)), next.map(|(_, e)| le32(e, 8)))
}

/// The bytes of a record, on the ground of what is there. A link keeps a length that suffices.
fn record(wanted: &Wanted<'_>, current: Option<&[u8]>, mbr: &Mbr, block_size: usize) -> Result<Vec<u8>> {
    let (start, kind) = mbr.extended().map_or((0, 0), |p| (p.starting_lba, p.kind));
    let empty = vec![0; block_size];
    let block = current.unwrap_or(&empty);
    let slot = |of: &dyn Fn(&[u8]) -> bool| {
        entries(block).find(|(_, e)| of(e)).map(|(number, _)| number as usize - 1)
    };
    let data_slot = slot(&|e| is_used(e) && !is_extended(e[4]));
    let link_slot = slot(&is_link);
    let mut found = [[0; ENTRY_SIZE]; 4];
    for ((_, e), copy) in entries(block).zip(&mut found) {
        copy.copy_from_slice(e);
    }
    let data_at = data_slot.unwrap_or(usize::from(link_slot == Some(0)));
    let link_at = link_slot.unwrap_or(usize::from(data_at == 0));
    found[data_at] = match wanted.data {
        None => [0; ENTRY_SIZE],
        Some(p) => entry_of(p, wanted.lba, &found[data_at], wanted.lba)?,
    };
    found[link_at] = match wanted.next {
        None => [0; ENTRY_SIZE],
        Some(next) => {
            let blocks = next.ending_lba() - next.record_lba + 1;
            let old = decode(0, &found[link_at], start, 0);
            let suffices = link_slot.is_some() && old.starting_lba == next.record_lba && old.blocks >= blocks;
            // Records lead to each other as cylinders did, whatever the extended partition says of itself.
            let kind = if kind == 0x85 { kind } else { super::system_id::EXTENDED };
            if suffices { found[link_at] } else { encode(kind, false, start, next.record_lba, blocks)? }
        }
    };
    Ok(with_entries(block.to_vec(), &found))
}

/// An entry, the bytes that are there where they say the same.
fn entry_of(p: &MbrPartition, base: u64, current: &[u8; ENTRY_SIZE], lba: u64) -> Result<[u8; ENTRY_SIZE]> {
    let wanted = MbrPartition { number: 0, record_lba: lba, ..p.clone() };
    if is_used(current) && decode(0, current, base, lba) == wanted {
        return Ok(*current);
    }
    encode(p.kind, p.bootable, base, p.starting_lba, p.blocks)
}

/// LBA 0 of the table, on the ground of what is there.
fn lba0(mbr: &Mbr, current: &[u8]) -> Result<Vec<u8>> {
    let mut new = [[0; ENTRY_SIZE]; 4];
    for ((number, e), new) in entries(current).zip(&mut new) {
        new.copy_from_slice(e);
        match mbr.partitions.iter().find(|p| p.number == number) {
            Some(p) => *new = entry_of(p, 0, new, 0)?,
            None if is_used(new) => *new = [0; ENTRY_SIZE],
            None => {}
        }
    }
    let mut block = current.to_vec();
    put(&mut block, ENTRIES - 6, &mbr.disk_signature.to_le_bytes());
    Ok(with_entries(block, &new))
}

/// The steps from what is there to `mbr`.
fn plan(found: &Found, mbr: &Mbr, block_size: usize) -> Result<Vec<Step>> {
    let same_chain = match (found.mbr.extended(), mbr.extended()) {
        (Some(old), Some(new)) => old.starting_lba == new.starting_lba,
        _ => false,
    };
    let (mut fresh, mut commit, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    for wanted in wanted(mbr) {
        let there = found.records.iter().find(|record| same_chain && record.lba == wanted.lba);
        let current = there.map(|record| &record.block[..]);
        let block = record(&wanted, current, mbr, block_size)?;
        match current {
            None => fresh.push((wanted.lba, block)),
            Some(current) if current == block => {}
            Some(current) if meaning(current, wanted.lba) == meaning(&block, wanted.lba) => {
                lengths.push((wanted.lba, block));
            }
            Some(_) => commit.push((wanted.lba, block)),
        }
    }
    let lba0 = lba0(mbr, &found.lba0)?;
    if lba0 != found.lba0 {
        commit.push((0, lba0));
    }
    if commit.len() > 1 {
        let blocks: Vec<_> = commit.iter().map(|(lba, _)| lba.to_string()).collect();
        return refuse(format!(
            "this edit of an MBR changes {} blocks at once (LBAs {}): make it in several updates",
            blocks.len(),
            blocks.join(", ")
        ));
    }
    let names =
        ["new extended boot records", "the block that makes the edit", "lengths in extended boot records"];
    let steps = names.into_iter().zip([fresh, commit, lengths]);
    Ok(steps.filter(|(_, writes)| !writes.is_empty()).collect())
}

/// New records must lie where nothing is that the old table needs, for it counts until the last moment.
fn check_free(found: &Found, steps: &[Step]) -> Result<()> {
    let Some((_, fresh)) = steps.iter().find(|(name, _)| name.starts_with("new")) else { return Ok(()) };
    let old = found.mbr.partitions.iter().filter(|p| !p.is_extended());
    for (lba, _) in fresh {
        let within = |p: &&MbrPartition| (p.starting_lba..=p.ending_lba()).contains(lba);
        let in_use = old.clone().find(within).map(|p| p.number);
        let record = found.records.iter().any(|record| record.lba == *lba);
        if in_use.is_some() || record {
            let owner = in_use.map_or("the chain".to_owned(), |number| format!("partition {number}"));
            return refuse(format!(
                "a new extended boot record at LBA {lba}, which {owner} has until this edit: make it in several updates"
            ));
        }
    }
    Ok(())
}

//! How a table gets onto a device. What is to be written is decided whole before the first write ([`plan`]), as steps
//! that are each written, flushed and read back before the next.

use super::header::{self, Position};
use super::store::{Copies, Found, TableCopy, locate};
use super::{PartitionTable, guard};
use crate::field::{expect, flush, le64, read as read_bytes, write as write_bytes};
use crate::{BlockDevice, Error, ErrorKind, Geometry, Result};

/// Where the primary array is, unless another tool has put it elsewhere.
const HOME: u64 = 2;

/// Writes that may reach the medium in any order, and together.
struct Step {
    context: &'static str,
    /// First block, and whole blocks.
    writes: Vec<(u64, Vec<u8>)>,
}

/// What the device shall hold.
struct Target<'t> {
    table: &'t PartitionTable,
    /// Where the backup header goes.
    last_lba: u64,
    lba0: Vec<u8>,
    /// Nothing of what is there stays.
    fresh: bool,
}

/// Creates a table on a device, whatever is there, and the protective MBR, last.
///
/// Where there is a table already, it is replaced as [`update`] does, so that either of them is valid at every instant.
pub fn write(device: &dyn BlockDevice, table: &PartitionTable) -> Result<()> {
    let copies = locate(device)?;
    table.validate(&copies.geometry)?;
    let last_lba = copies.last_lba();
    let lba0 = guard::protective(&copies.lba0, copies.geometry.blocks());
    carry_out(device, &copies, &Target { table, last_lba, lba0, fresh: true })
}

/// Replaces the table of a device by an edited one. At every instant one copy is valid, and where the blocks behind the
/// primary array are free, the primary is: see the states in the module's description. What the table does not speak of
/// stays: unchanged entries byte by byte, what tools keep beyond the fields of the standard, the boot code of LBA 0.
///
/// Refused are a table that does not fit where the copies are ([`grow`] moves them), an edit that would leave a hybrid
/// MBR behind that says otherwise, and a device whose LBA 0 holds something else than a protective MBR.
pub fn update(device: &dyn BlockDevice, table: &PartitionTable) -> Result<()> {
    let copies = locate(device)?;
    let current = copies.valid()?;
    let alternate = if copies.primary.copy().is_some() { current.header.alternate_lba } else { current.lba };
    let last_lba = if alternate > current.header.last_usable_lba && alternate <= copies.last_lba() {
        alternate
    } else {
        copies.last_lba()
    };
    replace(device, &copies, table, last_lba)
}

/// Moves the backup to the end of a device that became larger and makes all of it usable. Returns the table as it is
/// then. Where nothing is to be done, nothing is written.
pub fn grow(device: &dyn BlockDevice) -> Result<PartitionTable> {
    let copies = locate(device)?;
    let mut table = copies.valid()?.table.clone();
    table.fit(&copies.geometry)?;
    replace(device, &copies, &table, copies.last_lba())?;
    Ok(table)
}

/// Moves the backup to where a device of `blocks` blocks ends, before this one is cut to that size. Refused with the
/// numbers where a partition is beyond.
pub fn shrink(device: &dyn BlockDevice, blocks: u64) -> Result<PartitionTable> {
    let copies = locate(device)?;
    let mut table = copies.valid()?.table.clone();
    if blocks > copies.geometry.blocks() {
        let context =
            format!("shrinking a table to {blocks} blocks on a device of {}", copies.geometry.blocks());
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    table.fit(&resized(&copies.geometry, blocks))?;
    replace(device, &copies, &table, blocks - 1)?;
    Ok(table)
}

/// Makes both copies and the protective MBR sound, from whichever copy is; of two that differ, the primary counts, as
/// for every reader. The backup goes to the end of the device. Writes nothing where nothing is wrong.
pub fn repair(device: &dyn BlockDevice) -> Result<PartitionTable> {
    let copies = locate(device)?;
    let mut table = copies.valid()?.table.clone();
    let (first, last) = table.widest(&copies.geometry)?;
    let at_end = |found: &Found| found.copy().is_some_and(|copy| copy.lba == copies.last_lba());
    if !at_end(&copies.backup) || table.last_usable_lba > last {
        table.fit(&copies.geometry)?;
    }
    table.first_usable_lba = table.first_usable_lba.max(first);
    replace(device, &copies, &table, copies.last_lba())?;
    Ok(table)
}

fn resized(geometry: &Geometry, blocks: u64) -> Geometry {
    Geometry { size: blocks * u64::from(geometry.logical_block_size), ..*geometry }
}

fn replace(device: &dyn BlockDevice, copies: &Copies, table: &PartitionTable, last_lba: u64) -> Result<()> {
    let current = &copies.valid()?.table;
    if (table.entry_count, table.entry_size) != (current.entry_count, current.entry_size) {
        let context = format!(
            "an edit to {} entries of {} bytes of a table with {} of {}",
            table.entry_count, table.entry_size, current.entry_count, current.entry_size
        );
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    table.validate(&resized(&copies.geometry, last_lba + 1))?;
    let lba0 = guard::keep(&copies.lba0, current, table, last_lba + 1)?;
    carry_out(device, copies, &Target { table, last_lba, lba0, fresh: false })
}

fn carry_out(device: &dyn BlockDevice, copies: &Copies, target: &Target<'_>) -> Result<()> {
    let block_size = u64::from(copies.geometry.logical_block_size);
    for step in plan(device, copies, target)? {
        for (lba, bytes) in &step.writes {
            write_bytes(device, lba * block_size, bytes, &format!("writing {}", step.context))?;
        }
        flush(device, &format!("flushing {}", step.context))?;
        for (lba, bytes) in &step.writes {
            expect(device, lba * block_size, bytes, &format!("reading back {}", step.context))?;
        }
    }
    Ok(())
}

/// The steps from what is there to the target. The table was validated against `last_lba`.
fn plan(device: &dyn BlockDevice, copies: &Copies, target: &Target<'_>) -> Result<Vec<Step>> {
    let block_size = copies.geometry.logical_block_size as usize;
    let kept = if target.fresh { None } else { Some(copies.valid()?) };
    let entries = header::encode_entries(target.table, kept.map(|copy| &copy.entries[..]), block_size);
    let mut steps = Vec::new();
    let (mut primary, mut clear) = plan_primary(device, copies, target, &entries)?;
    let backup = plan_backup(copies, target, &entries);
    // The copy that cannot be used is written first: the other one is all there is.
    if copies.primary.copy().is_none() && copies.backup.copy().is_some() {
        steps.append(&mut primary);
        steps.extend(backup);
    } else {
        steps.extend(backup);
        steps.append(&mut primary);
    }
    if target.lba0 != copies.lba0 {
        steps.push(Step { context: "the protective MBR", writes: vec![(0, target.lba0.clone())] });
    }
    clear.extend(left_behind(copies, target));
    if !clear.is_empty() {
        let writes =
            runs(clear).into_iter().map(|(lba, blocks)| (lba, vec![0; blocks * block_size])).collect();
        steps.push(Step { context: "zeroes over what is out of use", writes });
    }
    Ok(steps)
}

/// Blocks as extents: first block and count.
fn runs(mut blocks: Vec<u64>) -> Vec<(u64, usize)> {
    let mut runs: Vec<(u64, usize)> = Vec::new();
    blocks.sort_unstable();
    blocks.dedup();
    for lba in blocks {
        match runs.last_mut() {
            Some((first, count)) if *first + *count as u64 == lba => *count += 1,
            _ => runs.push((lba, 1)),
        }
    }
    runs
}

fn plan_backup(copies: &Copies, target: &Target<'_>, entries: &[u8]) -> Option<Step> {
    let block_size = copies.geometry.logical_block_size as usize;
    let blocks = (entries.len() / block_size) as u64;
    let kept = |copy: &&TableCopy| !target.fresh && copy.lba == target.last_lba;
    let there = copies.backup.copy().filter(kept);
    let usable = |copy: &&TableCopy| {
        let (first, last) = copy.entries_extent();
        first > target.table.last_usable_lba && last < target.last_lba
    };
    let entries_lba = there.filter(usable).map_or(target.last_lba - blocks, |copy| copy.header.entries_lba);
    let position = Position { my_lba: target.last_lba, alternate_lba: 1, entries_lba };
    let template = there.or_else(|| copies.primary.copy().filter(|_| !target.fresh));
    let template = template.map(|copy| &copy.block[..]);
    let block = header::encode(template, target.table, position, entries, block_size);
    if there.is_some_and(|copy| copy.block == block && copy.entries == entries) {
        return None;
    }
    let writes = vec![(entries_lba, entries.to_vec()), (target.last_lba, block)];
    Some(Step { context: "the backup GPT", writes })
}

/// The steps of the primary copy, and the blocks that nothing needs after them.
fn plan_primary(
    device: &dyn BlockDevice,
    copies: &Copies,
    target: &Target<'_>,
    entries: &[u8],
) -> Result<(Vec<Step>, Vec<u64>)> {
    let block_size = copies.geometry.logical_block_size as usize;
    let blocks = (entries.len() / block_size) as u64;
    let home = home(device, copies, target, blocks)?;
    let there = copies.primary.copy();
    let template = if target.fresh { None } else { there.or_else(|| copies.backup.copy()) };
    let template = template.map(|copy| &copy.block[..]);
    let header = |entries_lba| {
        let position = Position { my_lba: 1, alternate_lba: target.last_lba, entries_lba };
        header::encode(template, target.table, position, entries, block_size)
    };
    let array = |lba, context| Step { context, writes: vec![(lba, entries.to_vec())] };
    let switch = |lba| Step { context: "the primary GPT header", writes: vec![(1, header(lba))] };
    let whole = || vec![array(home, "the primary GPT entries"), switch(home)];
    // Some readers trust a header whose entries are torn: there is none while they are written, but where it alone
    // tells that the array is not behind LBA 2.
    let direct = || {
        let gone =
            Step { context: "zeroes over the primary GPT header", writes: vec![(1, vec![0; block_size])] };
        let first = (home == HOME && copies.primary.header().is_some()).then_some(gone);
        (first.into_iter().chain(whole()).collect(), Vec::new())
    };
    let Some(there) = there else { return Ok(direct()) };
    if there.header.entries_lba != home {
        let clear = if is_beside(there, home) { there.entries_extent() } else { (1, 0) };
        return Ok((whole(), (clear.0..=clear.1).collect()));
    }
    if there.entries == entries {
        let changed = there.block != header(home);
        return Ok((if changed { vec![switch(home)] } else { Vec::new() }, Vec::new()));
    }
    if !can_lie_beside(device, copies, target, home, entries)? {
        return Ok(direct());
    }
    let beside = home + blocks;
    let mut steps = vec![array(beside, "the GPT entries beside the primary ones"), switch(beside)];
    steps.extend(whole());
    Ok((steps, (beside..beside + blocks).collect()))
}

/// Whether the primary array is where an interrupted edit left it: directly behind its home.
pub(super) fn is_beside(copy: &TableCopy, home: u64) -> bool {
    let (first, last) = copy.entries_extent();
    first == home + (last - first + 1)
}

/// Where the primary array belongs: where it is, unless an interrupted edit has put it beside.
fn home(device: &dyn BlockDevice, copies: &Copies, target: &Target<'_>, blocks: u64) -> Result<u64> {
    let Some(there) = copies.primary.header().filter(|_| !target.fresh) else { return Ok(HOME) };
    let found = there.entries_lba;
    // The table was validated: from LBA 2, an array has room before the first usable block.
    let fits =
        found.checked_add(blocks).is_some_and(|end| found >= HOME && end <= target.table.first_usable_lba);
    if !fits || is_interrupted(device, copies)? {
        return Ok(HOME);
    }
    Ok(found)
}

/// Whether an edit was interrupted while the primary header pointed beside. A table that another tool moved there has
/// something else at LBA 2 than entries: that is why it was moved.
pub(super) fn is_interrupted(device: &dyn BlockDevice, copies: &Copies) -> Result<bool> {
    let Some(there) = copies.primary.copy().filter(|copy| is_beside(copy, HOME)) else { return Ok(false) };
    let block_size = u64::from(copies.geometry.logical_block_size);
    let bytes = read_bytes(device, HOME * block_size, there.entries.len(), "reading GPT entries")?;
    let plausible = |entry: &[u8]| {
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        entry.iter().all(|byte| *byte == 0)
            || (entry[..16] != [0; 16] && first > 1 && first <= last && last < copies.geometry.blocks())
    };
    Ok(bytes.chunks_exact(there.header.entry_size as usize).all(plausible))
}

/// Whether the array may lie behind its home for a moment: no partition is there, neither before nor after the edit, and
/// nothing that someone could miss, such as a board's boot loader.
fn can_lie_beside(
    device: &dyn BlockDevice,
    copies: &Copies,
    target: &Target<'_>,
    home: u64,
    entries: &[u8],
) -> Result<bool> {
    let block_size = copies.geometry.logical_block_size as usize;
    let blocks = (entries.len() / block_size) as u64;
    let Some(there) = copies.primary.copy() else { return Ok(false) };
    let partitions = there.table.partitions.iter().chain(&target.table.partitions);
    let first = partitions.map(|p| p.starting_lba).min().unwrap_or(u64::MAX);
    let limit = first.min(target.last_lba - blocks).min(copies.backup_lba - blocks.min(copies.backup_lba));
    if home != HOME || there.entries.len() > entries.len() || home + 2 * blocks > limit {
        return Ok(false);
    }
    let beside = (home + blocks) * block_size as u64;
    let bytes = read_bytes(device, beside, entries.len(), "reading behind the GPT entries")?;
    // An interrupted edit may have left some blocks of an array there.
    let ours = |(i, block): (usize, &[u8])| {
        let range = i * block_size..(i + 1) * block_size;
        let of = |array: &[u8]| array.get(range.clone()) == Some(block);
        block.iter().all(|byte| *byte == 0)
            || of(entries)
            || of(&there.entries)
            || copies.backup.copy().is_some_and(|copy| of(&copy.entries))
    };
    Ok(bytes.chunks_exact(block_size).enumerate().all(ours))
}

/// The blocks of a backup that is not at the end any more, but for those that a partition has or the new copies.
fn left_behind(copies: &Copies, target: &Target<'_>) -> Vec<u64> {
    let same_disk = |copy: &&TableCopy| copy.header.disk_guid == target.table.disk_guid;
    let Some(old) = copies.backup.copy().filter(same_disk).filter(|copy| copy.lba != target.last_lba) else {
        return Vec::new();
    };
    let table = target.table;
    let block_size = copies.geometry.logical_block_size as usize;
    let blocks = (old.entries.len() / block_size) as u64;
    let new_backup = target.last_lba.saturating_sub(blocks)..=target.last_lba;
    let in_use = |lba: &u64| {
        *lba < table.first_usable_lba
            || new_backup.contains(lba)
            || table.partitions.iter().any(|p| (p.starting_lba..=p.ending_lba).contains(lba))
    };
    let (first, last) = old.entries_extent();
    (first..=last).chain([old.lba]).filter(|lba| !in_use(lba)).collect()
}

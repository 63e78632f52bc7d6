//! What is wrong with an MBR: in itself, and on its device.

use super::{Mbr, MbrPartition, find};
use crate::{BlockDevice, Error, ErrorKind, Geometry, Result};

/// Everything that is wrong with the table of a device, one line each; empty where all is well. An error where there is
/// no MBR.
pub fn verify(device: &dyn BlockDevice) -> Result<Vec<String>> {
    let found =
        find(device)?.ok_or_else(|| Error::new(ErrorKind::NotFound, "reading an MBR: there is none"))?;
    let mut problems: Vec<String> = found.broken.into_iter().collect();
    problems.extend(found.mbr.problems(&device.geometry()));
    Ok(problems)
}

impl Mbr {
    /// Refuses what may not be written to a device of that geometry.
    pub fn validate(&self, geometry: &Geometry) -> Result<()> {
        if !matches!(geometry.logical_block_size, 512 | 4096) {
            let context = format!("an MBR on logical blocks of {} bytes", geometry.logical_block_size);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        match self.problems(geometry).into_iter().next() {
            Some(problem) => Err(Error::new(ErrorKind::Invalid, problem)),
            None => Ok(()),
        }
    }

    fn problems(&self, geometry: &Geometry) -> Vec<String> {
        let mut problems = Vec::new();
        let primary: Vec<_> = self.partitions.iter().filter(|p| !p.is_logical()).collect();
        let count = |of: &dyn Fn(&MbrPartition) -> bool| primary.iter().filter(|p| of(p)).count();
        let active = count(&|p| p.bootable);
        if active > 1 {
            problems.push(format!("{active} partitions are active"));
        }
        let extended = count(&MbrPartition::is_extended);
        if extended > 1 {
            problems.push(format!("{extended} partitions are extended"));
        }
        overlaps(primary.iter().map(|p| (p.number, p.starting_lba, p.ending_lba())).collect(), &mut problems);
        for p in &self.partitions {
            self.extent_problems(p, geometry, &mut problems);
        }
        self.number_problems(&mut problems);
        let Some(extended) = self.extended() else {
            problems.extend(
                self.logical().next().map(|p| {
                    format!("partition {} is logical, and there is no extended partition", p.number)
                }),
            );
            return problems;
        };
        let mut within: Vec<_> = self.logical().map(|p| (p.number, p.starting_lba, p.ending_lba())).collect();
        // The block of a record belongs to nobody else; a record may be that of the partition it leads to alone.
        within.extend(self.logical().map(|p| (p.number, p.record_lba, p.record_lba)));
        let start = extended.starting_lba;
        if !self.logical().any(|p| p.record_lba == start) {
            within.push((extended.number, start, start));
        }
        for &(number, first, last) in &within {
            if first < start || last > extended.ending_lba() {
                problems.push(format!(
                    "partition {number} ({first}..={last}) is not within the extended one ({start}..={})",
                    extended.ending_lba()
                ));
            }
        }
        overlaps(within, &mut problems);
        problems
    }

    fn extent_problems(&self, p: &MbrPartition, geometry: &Geometry, problems: &mut Vec<String>) {
        let (first, last) = (p.starting_lba, p.ending_lba());
        if p.blocks == 0 || first == 0 {
            problems.push(format!("partition {} has {} blocks at LBA {first}", p.number, p.blocks));
        }
        if p.is_logical() && p.record_lba >= first {
            problems.push(format!(
                "partition {} at LBA {first} is not behind its record, {}",
                p.number, p.record_lba
            ));
        }
        if p.blocks > u64::from(u32::MAX) || first > u64::from(u32::MAX) {
            problems.push(format!(
                "partition {} has {} blocks at LBA {first}: an MBR counts to {}",
                p.number,
                p.blocks,
                u32::MAX
            ));
        }
        if last >= geometry.blocks() {
            problems.push(format!(
                "partition {} ({first}..={last}) is not on the device of {} blocks",
                p.number,
                geometry.blocks()
            ));
        }
    }

    fn number_problems(&self, problems: &mut Vec<String>) {
        let mut numbers = std::collections::BTreeSet::new();
        for p in &self.partitions {
            if p.number == 0 || !numbers.insert(p.number) {
                problems.push(format!("partition number {} is not valid or not unique", p.number));
            }
        }
        let logical = numbers.range(5..);
        if let Some((expected, found)) = (5..).zip(logical).find(|(expected, found)| expected != *found) {
            problems.push(format!("logical partition {found} where {expected} is the next"));
        }
    }
}

/// Extents by number: which of them meet.
fn overlaps(mut extents: Vec<(u32, u64, u64)>, problems: &mut Vec<String>) {
    extents.sort_by_key(|(_, first, _)| *first);
    for pair in extents.windows(2) {
        let [(a, a_first, a_last), (b, b_first, b_last)] = [pair[0], pair[1]];
        if b_first <= a_last {
            problems.push(format!(
                "partitions {a} and {b} overlap: {a_first}..={a_last} and {b_first}..={b_last}"
            ));
        }
    }
}

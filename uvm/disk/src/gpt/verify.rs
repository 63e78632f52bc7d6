//! What is wrong with a table, both copies and LBA 0 compared.

use std::fmt;

use super::commit::is_interrupted;
use super::guard::{self, Guard};
use super::store::{Copies, TableCopy, locate};
use crate::{BlockDevice, Result};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// One line, with the numbers.
    pub text: String,
    /// [`super::repair`] makes it good.
    pub repairable: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Everything that is wrong with the table of a device, most important first; empty where all is well. An error where
/// there is no table at all, or none that can be read: see [`super::read`].
pub fn verify(device: &dyn BlockDevice) -> Result<Vec<Problem>> {
    let copies = locate(device)?;
    let mut problems = Vec::new();
    let mut add = |repairable, text: String| problems.push(Problem { text, repairable });
    for (name, found) in [("primary", &copies.primary), ("backup", &copies.backup)] {
        if let Some(problem) = found.problem() {
            add(true, format!("the {name} header: {problem}"));
        }
    }
    let valid = copies.valid()?;
    if let (Some(primary), Some(backup)) = (copies.primary.copy(), copies.backup.copy()) {
        differences(primary, backup).into_iter().for_each(|text| add(true, text));
    }
    if is_interrupted(device, &copies)? {
        let lba = valid.header.entries_lba;
        add(true, format!("the primary entries are at LBA {lba}: an edit was interrupted"));
    }
    positions(&copies, valid, &mut add);
    let last = valid.table.widest(&copies.geometry)?.1;
    for p in valid.table.partitions.iter().filter(|p| p.ending_lba > last) {
        let text = format!(
            "partition {} ({}..={}) ends beyond what the device can hold, LBA {last}",
            p.number, p.starting_lba, p.ending_lba
        );
        add(false, text);
    }
    valid.table.problems().into_iter().for_each(|text| add(false, text));
    guard_problems(&copies, valid, &mut add);
    Ok(problems)
}

fn differences(primary: &TableCopy, backup: &TableCopy) -> Vec<String> {
    let (a, b) = (&primary.header, &backup.header);
    let mut found = Vec::new();
    let mut compare = |what: &str, a: String, b: String| {
        if a != b {
            found.push(format!("the {what} is {a} in the primary and {b} in the backup"));
        }
    };
    compare("disk GUID", a.disk_guid.to_string(), b.disk_guid.to_string());
    compare("first usable LBA", a.first_usable_lba.to_string(), b.first_usable_lba.to_string());
    compare("last usable LBA", a.last_usable_lba.to_string(), b.last_usable_lba.to_string());
    compare("number of entries", a.entry_count.to_string(), b.entry_count.to_string());
    compare("size of entries", a.entry_size.to_string(), b.entry_size.to_string());
    let numbers = primary.table.partitions.iter().chain(&backup.table.partitions).map(|p| p.number);
    for number in numbers.collect::<std::collections::BTreeSet<_>>() {
        let of = |copy: &TableCopy| copy.table.partitions.iter().find(|p| p.number == number).cloned();
        if of(primary) != of(backup) {
            found.push(format!("partition {number} differs in primary and backup"));
        }
    }
    if found.is_empty() && primary.entries != backup.entries {
        found.push("the entries differ in primary and backup".into());
    }
    if b.alternate_lba != 1 {
        found.push(format!("the backup header takes LBA {} for the primary's", b.alternate_lba));
    }
    if a.alternate_lba != backup.lba {
        found.push(format!(
            "the primary header takes LBA {} for the backup's, which is at {}",
            a.alternate_lba, backup.lba
        ));
    }
    found
}

/// Where headers, arrays and usable blocks lie.
fn positions(copies: &Copies, valid: &TableCopy, add: &mut impl FnMut(bool, String)) {
    let last_lba = copies.last_lba();
    let (first_usable, last_usable) = (valid.header.first_usable_lba, valid.header.last_usable_lba);
    if let Some(backup) = copies.backup.copy() {
        if backup.lba != last_lba {
            let lba = backup.lba;
            add(true, format!("the backup header is at LBA {lba}, not at the last one, {last_lba}"));
        }
        let (first, last) = backup.entries_extent();
        if first <= last_usable || last >= backup.lba {
            let lba = backup.lba;
            add(
                true,
                format!("the backup entries {first}..={last} are not between LBA {last_usable} and {lba}"),
            );
        }
    }
    if let Some(primary) = copies.primary.copy() {
        let (first, last) = primary.entries_extent();
        if last >= first_usable {
            add(
                true,
                format!("the primary entries {first}..={last} reach the first usable LBA {first_usable}"),
            );
        }
    }
    if first_usable > last_usable {
        add(false, format!("the first usable LBA {first_usable} is behind the last, {last_usable}"));
    }
    if last_usable > last_lba {
        add(true, format!("the last usable LBA {last_usable} is beyond the device's last, {last_lba}"));
    }
}

fn guard_problems(copies: &Copies, valid: &TableCopy, add: &mut impl FnMut(bool, String)) {
    match guard::look(&copies.lba0, copies.geometry.blocks()) {
        Guard::Nothing => add(true, "LBA 0 is no protective MBR".into()),
        Guard::Protective { fits: true } => {}
        Guard::Protective { fits: false } => add(true, "the protective MBR does not cover the device".into()),
        Guard::Foreign(what) => add(false, what),
        Guard::Hybrid(mirrors) => {
            for mirror in mirrors.iter().filter(|mirror| guard::mirrored(mirror, &valid.table).is_none()) {
                let text = format!(
                    "the hybrid MBR shows {} blocks at LBA {} as its partition {}: no partition of the GPT",
                    mirror.blocks, mirror.starting_lba, mirror.number
                );
                add(false, text);
            }
        }
    }
}

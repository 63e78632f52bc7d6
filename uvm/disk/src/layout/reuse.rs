//! What happens to each partition of a disk that holds some, and why.

use std::collections::BTreeSet;

use super::place::{Claim, Placement, Space, Taken, place};
use super::said;
use crate::gpt::{Guid, partition_type};
use crate::probe::{PartitionKind, ProbedPartition};
use crate::{Error, ErrorKind, Result};

/// Partitions in one layout, at most.
pub const MAX_WANTED: usize = 128;

/// What happens to a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is new.
    Create,
    /// Its entry and every byte of it stay.
    Keep,
    /// What is in it is made anew.
    Wipe,
    /// It gets another size; what is in it stays.
    Resize,
    /// It goes.
    Delete,
}

/// A file system that a partition is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedFileSystem {
    /// As [`crate::probe::FileSystem`] names it.
    pub format: &'static str,
    /// Compared where it is given.
    pub label: Option<String>,
    /// Compared where it is given.
    pub uuid: Option<String>,
    /// It may be made anew where there is a partition already.
    pub wipe: bool,
    /// It has to be made anew: what goes into it is the job's. Says what that is.
    pub must_be_new: Option<&'static str>,
}

/// A partition as it is wanted. What is `None` is not compared with what a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Number in the table.
    pub number: Option<u32>,
    /// Partition name; also what messages call it.
    pub name: Option<String>,
    /// Identity.
    pub unique_guid: Option<Guid>,
    /// Partition type.
    pub kind: Option<PartitionKind>,
    /// First byte.
    pub start: Option<u64>,
    /// Bytes it has at least where it is made.
    pub min: u64,
    /// Bytes it has at least where it is there already: what was asked for, not what a new one needs.
    pub least: u64,
    /// Bytes it has at most.
    pub max: Option<u64>,
    /// Its part of what is left, beside the others' weights.
    pub weight: u32,
    /// What is to be on it.
    pub file_system: Option<WantedFileSystem>,
    /// False for one that is to be gone.
    pub should_exist: bool,
    /// One that is not as it is wanted may be deleted or made anew.
    pub wipe_entry: bool,
    /// One that only has another size may get this one.
    pub resize: bool,
}

/// The fate of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Its index among the wanted.
    pub wanted: usize,
    /// Its index among those that were found, where it is one of them.
    pub found: Option<usize>,
    /// What happens.
    pub action: Action,
    /// Its entry in the table stays as it is, but for its end; false for one that is made anew.
    pub entry_stays: bool,
    /// Its number in the table.
    pub number: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Why.
    pub reason: String,
}

/// Before there are places.
struct Choice {
    found: Option<usize>,
    action: Action,
    reason: String,
    claim: Option<Claim>,
}

/// Decides on every wanted partition, in their order. A partition that was found and is not wanted is an error, and so
/// is one that differs from what is wanted where nothing allows to change it ([`ErrorKind::Exists`]).
pub fn decide(
    space: &Space,
    most: u32,
    wanted: &[Wanted],
    found: &[ProbedPartition],
) -> Result<Vec<Decided>> {
    if wanted.len() > MAX_WANTED {
        let context = format!("{} partitions in one layout, at most {MAX_WANTED}", wanted.len());
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    let reaches_beyond =
        |p: &&ProbedPartition| p.offset.checked_add(p.size).is_none_or(|end| end > space.end);
    if let Some(p) = found.iter().find(reaches_beyond) {
        let context = format!("{} ends beyond {}, where partitions end", described(p), said(space.end));
        return Err(conflict(context));
    }
    let matched = match_up(wanted, found)?;
    let mut choices = Vec::with_capacity(wanted.len());
    for (index, wanted) in wanted.iter().enumerate() {
        choices.push(choose(wanted, index, matched[index].as_ref(), found)?);
    }
    let numbers = numbers(wanted, &choices, found, most)?;
    let stays = |choice: &Choice| choice.claim.is_none() && choice.action != Action::Delete;
    let taken: Vec<Taken> = choices
        .iter()
        .filter(|choice| stays(choice))
        .filter_map(|choice| found.get(choice.found?))
        // A logical partition lies within the extended one.
        .filter(|p| !(matches!(p.kind, PartitionKind::Mbr(_)) && p.number > 4))
        .map(|p| Taken { name: called(p), offset: p.offset, size: p.size })
        .collect();
    let claims: Vec<Claim> = choices.iter().filter_map(|choice| choice.claim.clone()).collect();
    let mut placements = place(space, &taken, &claims)?.into_iter();
    let mut decided = Vec::with_capacity(choices.len());
    for (index, (choice, number)) in choices.into_iter().zip(numbers).enumerate() {
        let old = choice.found.and_then(|found_at| found.get(found_at));
        let place = match (&choice.claim, old) {
            (Some(_), _) => placements.next(),
            (None, Some(old)) => Some(Placement { offset: old.offset, size: old.size }),
            // To be gone, and not there.
            (None, None) => None,
        };
        let (Some(number), Some(Placement { offset, size })) = (number, place) else { continue };
        let entry_stays = matches!(choice.action, Action::Keep | Action::Resize)
            || (choice.action == Action::Wipe && choice.claim.is_none());
        decided.push(settle(
            Decided {
                wanted: index,
                found: choice.found,
                action: choice.action,
                entry_stays,
                number,
                offset,
                size,
                reason: choice.reason,
            },
            old,
        ));
    }
    Ok(decided)
}

/// A partition that may grow and has no room to do so stays.
fn settle(mut decided: Decided, old: Option<&ProbedPartition>) -> Decided {
    if let (Action::Resize, Some(old)) = (decided.action, old) {
        let (from, to) = (said(old.size), said(decided.size));
        if old.size == decided.size {
            decided.action = Action::Keep;
            decided.reason.push_str(", and there is no room to grow");
        } else {
            decided.reason = format!("{}; resize it from {from} to {to}", decided.reason);
        }
    }
    decided
}

/// How a message calls a partition of the disk.
fn called(p: &ProbedPartition) -> String {
    match p.name.as_deref() {
        None | Some("") => format!("partition {}", p.number),
        Some(name) => format!("partition {} {name:?}", p.number),
    }
}

fn described(p: &ProbedPartition) -> String {
    let contents = p.file_system.as_ref().map_or("unknown contents", |found| found.kind);
    format!("{} ({contents}, {})", called(p), said(p.size))
}

fn conflict(context: String) -> Error {
    Error::new(ErrorKind::Exists, context)
}

/// A wanted partition by what says which it is.
fn wanted_as(wanted: &Wanted, index: usize) -> String {
    match (&wanted.name, wanted.number) {
        (Some(name), _) => format!("{name:?}"),
        (None, Some(number)) => format!("number {number}"),
        (None, None) => format!("{} in the list", index + 1),
    }
}

/// Which was found for a wanted one, and by what.
struct Match {
    found: usize,
    by: String,
}

/// Number first, then GUID, label, type; nothing is found twice.
fn match_up(wanted: &[Wanted], found: &[ProbedPartition]) -> Result<Vec<Option<Match>>> {
    let mut matches: Vec<Option<Match>> = wanted.iter().map(|_| None).collect();
    let mut used = BTreeSet::new();
    for (index, wanted) in wanted.iter().enumerate() {
        if let Some(number) = wanted.number
            && let Some(at) = found.iter().position(|p| p.number == number)
            && used.insert(at)
        {
            matches[index] = Some(Match { found: at, by: format!("the number {number}") });
        }
    }
    type Same<'s> = &'s dyn Fn(&Wanted, &ProbedPartition) -> Option<String>;
    let by_guid: Same<'_> = &|wanted, p| {
        let guid = wanted.unique_guid.filter(|guid| p.unique_guid == Some(*guid))?;
        Some(format!("the GUID {guid}"))
    };
    let by_name: Same<'_> = &|wanted, p| {
        let name = wanted.name.as_ref().filter(|name| p.name.as_ref() == Some(name))?;
        Some(format!("the label {name:?}"))
    };
    let by_kind: Same<'_> = &|wanted, p| {
        let kind = wanted.kind.filter(|kind| wanted.name.is_none() && *kind == p.kind)?;
        Some(format!("the type {}", kind_said(kind)))
    };
    for same in [by_guid, by_name, by_kind] {
        for (index, wanted) in wanted.iter().enumerate() {
            if matches[index].is_some() || wanted.number.is_some() {
                continue;
            }
            let candidates: Vec<(usize, String)> = found
                .iter()
                .enumerate()
                .filter(|(at, _)| !used.contains(at))
                .filter_map(|(at, p)| Some((at, same(wanted, p)?)))
                .collect();
            if let [_, _, ..] = candidates[..] {
                let numbers: Vec<String> =
                    candidates.iter().map(|(at, _)| found[*at].number.to_string()).collect();
                let (by, numbers) = (&candidates[0].1, numbers.join(" and "));
                return Err(conflict(format!(
                    "partitions {numbers} have {by}: say which is meant by its number"
                )));
            }
            if let Some((at, by)) = candidates.into_iter().next() {
                used.insert(at);
                matches[index] = Some(Match { found: at, by });
            }
        }
    }
    let unmentioned: Vec<String> =
        (0..found.len()).filter(|at| !used.contains(at)).map(|at| described(&found[at])).collect();
    if !unmentioned.is_empty() {
        return Err(conflict(format!(
            "the disk holds {}, which the layout does not mention: mention it to keep it, say should_exist: false \
             and wipe_partition_entry: true to delete it, or wipe_table: true to replace the whole disk",
            unmentioned.join(", ")
        )));
    }
    Ok(matches)
}

fn kind_said(kind: PartitionKind) -> String {
    match kind {
        PartitionKind::Gpt(guid) => {
            partition_type::name_of(guid).map_or_else(|| guid.to_string(), str::to_owned)
        }
        PartitionKind::Mbr(kind) => format!("0x{kind:02x}"),
    }
}

fn choose(
    wanted: &Wanted,
    index: usize,
    matched: Option<&Match>,
    found: &[ProbedPartition],
) -> Result<Choice> {
    let Some(Match { found: at, by }) = matched else {
        let what = wanted_as(wanted, index);
        let (action, reason) = match (wanted.should_exist, found.is_empty()) {
            (false, _) => (Action::Delete, format!("no partition is {what}")),
            (true, true) => (Action::Create, "the partition table is made anew".to_owned()),
            (true, false) => (Action::Create, format!("no partition is {what}")),
        };
        let claim = wanted.should_exist.then(|| claim(wanted, index));
        return Ok(Choice { found: None, action, reason, claim });
    };
    let old = &found[*at];
    let choice = |action, reason, claim| Ok(Choice { found: Some(*at), action, reason, claim });
    if !wanted.should_exist {
        return match wanted.wipe_entry {
            true => choice(Action::Delete, format!("{} has {by}; should_exist is false", called(old)), None),
            false => Err(conflict(format!(
                "{} has {by} and should not exist; say wipe_partition_entry: true to delete it",
                described(old)
            ))),
        };
    }
    let (differences, size) = differences(wanted, old);
    if !differences.is_empty() || (size.is_some() && !wanted.resize) {
        let what: Vec<String> = differences.into_iter().chain(size.clone()).collect();
        let what = what.join(", ");
        if !wanted.wipe_entry {
            let or = if size.is_some() {
                "; say wipe_partition_entry: true to make it anew, or resize: true where \
             only the size differs"
            } else {
                "; say wipe_partition_entry: true to make it anew"
            };
            return Err(conflict(format!("{} has {by}, but {what}{or}", described(old))));
        }
        let reason = format!("{} has {by}, but {what}; wipe_partition_entry is true", called(old));
        return choice(Action::Wipe, reason, Some(claim(wanted, index)));
    }
    let contents = contents(wanted, old, by)?;
    if wanted.resize && (size.is_some() || !is_fixed(wanted)) {
        if contents.is_some() {
            return Err(conflict(format!(
                "{} has {by}: it cannot be resized and made anew at once; say wipe_partition_entry: true alone",
                described(old)
            )));
        }
        return choice(Action::Resize, format!("{} has {by}", called(old)), Some(resized(wanted, old)?));
    }
    match contents {
        Some(why) => choice(Action::Wipe, why, None),
        None => choice(Action::Keep, format!("{} has {by} and is as it is wanted", called(old)), None),
    }
}

fn is_fixed(wanted: &Wanted) -> bool {
    wanted.max == Some(wanted.min)
}

fn claim(wanted: &Wanted, index: usize) -> Claim {
    Claim {
        name: wanted.name.clone().unwrap_or_else(|| wanted_as(wanted, index)),
        start: wanted.start,
        min: wanted.min,
        max: wanted.max,
        weight: wanted.weight,
    }
}

/// A partition with another size at its place. It never becomes smaller than what is known to be in it.
fn resized(wanted: &Wanted, old: &ProbedPartition) -> Result<Claim> {
    let (mut min, max) = (wanted.min, wanted.max);
    let shrinks = max.is_some_and(|max| max < old.size);
    if shrinks {
        let needed = old.file_system.as_ref().and_then(|found| found.size);
        let to = max.unwrap_or(old.size);
        match needed {
            Some(needed) if needed <= to => min = min.max(needed),
            Some(needed) => {
                return Err(conflict(format!(
                    "{} cannot become {}: the file system on it has {}; shrink that first",
                    described(old),
                    said(to),
                    said(needed)
                )));
            }
            None => {
                return Err(conflict(format!(
                    "{} cannot become {}: how much of it is in use is not known",
                    described(old),
                    said(to)
                )));
            }
        }
    } else {
        min = wanted.least.max(old.size);
    }
    let name = wanted.name.clone().unwrap_or_else(|| called(old));
    Ok(Claim { name, start: Some(old.offset), min, max: max.map(|max| max.max(min)), weight: wanted.weight })
}

/// What is not as it is wanted; the size apart, for it may be changed.
fn differences(wanted: &Wanted, old: &ProbedPartition) -> (Vec<String>, Option<String>) {
    let mut lines = Vec::new();
    if let Some(name) = wanted.name.as_ref().filter(|name| old.name.as_ref().is_some_and(|old| old != *name))
    {
        lines.push(format!("its label is {:?}, not {name:?}", old.name.as_deref().unwrap_or_default()));
    }
    if let Some(kind) = wanted.kind.filter(|kind| *kind != old.kind) {
        lines.push(format!("its type is {}, not {}", kind_said(old.kind), kind_said(kind)));
    }
    if let Some(guid) = wanted.unique_guid.filter(|guid| old.unique_guid.is_some_and(|old| old != *guid)) {
        lines.push(format!("its GUID is not {guid}"));
    }
    if let Some(start) = wanted.start.filter(|start| *start != old.offset) {
        lines.push(format!("it starts at {}, not at {}", said(old.offset), said(start)));
    }
    let size = if is_fixed(wanted) && old.size != wanted.min {
        Some(format!("it has {}, not {}", said(old.size), said(wanted.min)))
    } else if old.size < wanted.least {
        Some(format!("it has {}, less than {}", said(old.size), said(wanted.least)))
    } else {
        let most = wanted.max.filter(|max| old.size > *max);
        most.map(|max| format!("it has {}, more than {}", said(old.size), said(max)))
    };
    (lines, size)
}

/// Why what is in the partition is made anew; `None` where it stays.
fn contents(wanted: &Wanted, old: &ProbedPartition, by: &str) -> Result<Option<String>> {
    let Some(file_system) = &wanted.file_system else { return Ok(None) };
    let format = file_system.format;
    if file_system.wipe {
        return Ok(Some(format!(
            "{} has {by}; its {format} is made anew: wipe_filesystem is true",
            called(old)
        )));
    }
    let refuse = |what: String| {
        Err(conflict(format!("{} has {by}, but {what}; say wipe_filesystem: true", described(old))))
    };
    if let Some(what) = file_system.must_be_new {
        return refuse(format!("{what} is written anew"));
    }
    let Some(found) = &old.file_system else { return refuse(format!("there is no {format} on it")) };
    if found.kind != format {
        return refuse(format!("there is a {} on it, not a {format}", found.kind));
    }
    if let Some(label) = file_system.label.as_ref().filter(|label| found.label.as_ref() != Some(label)) {
        let old = found.label.as_deref().unwrap_or_default();
        return refuse(format!("the label of its {format} is {old:?}, not {label:?}"));
    }
    let differs = |uuid: &&String| !found.uuid.as_ref().is_some_and(|old| old.eq_ignore_ascii_case(uuid));
    if let Some(uuid) = file_system.uuid.as_ref().filter(differs) {
        let old = found.uuid.as_deref().unwrap_or("missing");
        return refuse(format!("the UUID of its {format} is {old}, not {uuid}"));
    }
    Ok(None)
}

/// The number of each: as wanted, as found, else its place in the list, else the lowest that is free, else the lowest
/// that becomes free. `None` for one that is to be gone and is not there.
fn numbers(
    wanted: &[Wanted],
    choices: &[Choice],
    found: &[ProbedPartition],
    most: u32,
) -> Result<Vec<Option<u32>>> {
    let mut used = BTreeSet::new();
    let mut leaving = BTreeSet::new();
    let mut numbers = Vec::with_capacity(wanted.len());
    for (wanted, choice) in wanted.iter().zip(choices) {
        let number =
            choice.found.map(|at| found[at].number).or(wanted.number.filter(|_| wanted.should_exist));
        if let Some(number) = number {
            if choice.found.is_none() && (number == 0 || number > most) {
                let context = format!("partition number {number}: this table has numbers from 1 to {most}");
                return Err(Error::new(ErrorKind::Invalid, context));
            }
            if !used.insert(number) {
                let context =
                    format!("two partitions of the layout have the number {number}: it is not unique");
                return Err(Error::new(ErrorKind::Invalid, context));
            }
            if choice.action == Action::Delete {
                leaving.insert(number);
            }
        }
        numbers.push(number);
    }
    for (index, choice) in choices.iter().enumerate() {
        if numbers[index].is_some() || choice.claim.is_none() {
            continue;
        }
        let place = u32::try_from(index + 1).unwrap_or(u32::MAX);
        let free =
            std::iter::once(place).chain(1..=most).find(|number| *number <= most && !used.contains(number));
        let Some(number) = free.or_else(|| leaving.pop_first()) else {
            let context = format!("{} partitions: this table has room for {most}", wanted.len());
            return Err(Error::new(ErrorKind::NoSpace, context));
        };
        used.insert(number);
        numbers[index] = Some(number);
    }
    Ok(numbers)
}

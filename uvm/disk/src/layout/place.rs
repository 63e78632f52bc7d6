//! Gaps of a disk, and what goes into each.

use super::said;
use super::share::{Share, share};
use crate::{Error, ErrorKind, Result};

/// Where partitions may lie, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// First byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
    /// What partitions start on a multiple of; not zero.
    pub alignment: u64,
}

/// What a partition wants, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What a message calls it; also decides who gets the unit that cannot be split.
    pub name: String,
    /// Its first byte, where that is given.
    pub start: Option<u64>,
    /// It gets at least this.
    pub min: u64,
    /// It gets at most this; the same as `min` for a fixed size.
    pub max: Option<u64>,
    /// Its part of what is left, beside the others' weights.
    pub weight: u32,
}

impl Claim {
    fn is_fixed(&self) -> bool {
        self.max == Some(self.min)
    }

    fn wants(&self) -> String {
        let at = self.start.map_or(String::new(), |start| format!(" at {}", said(start)));
        let least = if self.is_fixed() { "" } else { "at least " };
        format!("{:?} {least}{}{at}", self.name, said(self.min))
    }
}

/// A part of the space that stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// What a message calls it.
    pub name: String,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// Where a partition lies, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// A gap in units of the alignment, and the claims in it, in the order in which they will lie.
struct Gap {
    /// Position of the first unit; before the claim that has its place at an odd position.
    origin: u64,
    end: u64,
    claims: Vec<usize>,
}

/// One claim in units.
struct Need {
    min: u64,
    max: u64,
}

/// Gives every claim its place, in the order of the claims. A partition with a fixed size goes into the first gap that
/// has room for it, one that grows into the gap with the most room. [`ErrorKind::NoSpace`] says what is wanted at least,
/// and by whom, and what there is.
pub fn place(space: &Space, taken: &[Taken], claims: &[Claim]) -> Result<Vec<Placement>> {
    check(space, claims)?;
    let mut gaps = gaps(space, taken, claims)?;
    for gap in &gaps {
        if gap.room(space, claims).is_none() {
            return Err(no_room(space, &gaps, claims));
        }
    }
    let floating = |fixed| {
        (0..claims.len()).filter(move |index| {
            let claim: &Claim = &claims[*index];
            claim.start.is_none() && claim.is_fixed() == fixed
        })
    };
    for index in floating(true).chain(floating(false)) {
        let need = gaps.first().map_or(0, |gap| gap.need(space, claims, index).min);
        let room = |gap: &Gap| gap.room(space, claims).filter(|room| *room >= need);
        let found = if claims[index].is_fixed() {
            gaps.iter().position(|gap| room(gap).is_some())
        } else {
            // Of equal ones the first.
            let rooms = gaps.iter().enumerate().filter_map(|(at, gap)| Some((room(gap)?, at)));
            rooms.max_by_key(|(room, at)| (*room, std::cmp::Reverse(*at))).map(|(_, at)| at)
        };
        let Some(found) = found else { return Err(no_room(space, &gaps, claims)) };
        gaps[found].claims.push(index);
    }
    let mut placements = vec![Placement { offset: 0, size: 0 }; claims.len()];
    for gap in &mut gaps {
        // The one with a place leads, the others follow as they were named.
        gap.claims.sort_by_key(|index| (claims[*index].start.is_none(), *index));
        gap.fill(space, claims, &mut placements)?;
    }
    Ok(placements)
}

fn check(space: &Space, claims: &[Claim]) -> Result<()> {
    let invalid = |context: String| Err(Error::new(ErrorKind::Invalid, context));
    if space.alignment == 0 {
        return invalid("an alignment of 0 bytes".into());
    }
    for claim in claims {
        if claim.min == 0 {
            return invalid(format!("partition {:?} has no size", claim.name));
        }
        if let Some(max) = claim.max.filter(|max| *max < claim.min) {
            let (min, max) = (said(claim.min), said(max));
            return invalid(format!(
                "partition {:?} has at least {min}, more than its maximum {max}",
                claim.name
            ));
        }
        if let Some(start) = claim.start.filter(|start| *start < space.start || *start >= space.end) {
            let context = format!(
                "partition {:?} is to start at {}; the disk has room for partitions from {} to {}",
                claim.name,
                said(start),
                said(space.start),
                said(space.end)
            );
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
    }
    Ok(())
}

/// The space between what stays and what has its place, each gap beginning with the claim that has its place there.
fn gaps(space: &Space, taken: &[Taken], claims: &[Claim]) -> Result<Vec<Gap>> {
    enum Mark<'m> {
        Taken(&'m Taken),
        Claim(usize, &'m Claim),
    }
    let anchored = claims
        .iter()
        .enumerate()
        .filter_map(|(index, claim)| claim.start.map(|start| (start, Mark::Claim(index, claim))));
    let mut marks: Vec<(u64, Mark<'_>)> =
        taken.iter().map(|taken| (taken.offset, Mark::Taken(taken))).chain(anchored).collect();
    marks.sort_by_key(|(start, mark)| (*start, matches!(mark, Mark::Claim(..))));
    let align_up = |at: u64| at.checked_next_multiple_of(space.alignment).unwrap_or(u64::MAX);
    let mut gaps = Vec::new();
    let (mut cursor, mut leads): (u64, Option<usize>) = (space.start, None);
    let mut before = String::from("what lies before the first partition");
    let close = |cursor: u64, leads: Option<usize>, end: u64| Gap {
        origin: if leads.is_some() { cursor - cursor % space.alignment } else { align_up(cursor) },
        end: end.min(space.end),
        claims: leads.into_iter().collect(),
    };
    for (start, mark) in marks {
        let name = match &mark {
            Mark::Taken(taken) => taken.name.clone(),
            Mark::Claim(_, claim) => format!("partition {:?}", claim.name),
        };
        if start < cursor {
            let context = format!(
                "{name} at {} would lie over {before}, which reaches to {}",
                said(start),
                said(cursor)
            );
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        gaps.push(close(cursor, leads, start));
        (cursor, leads) = match mark {
            Mark::Taken(taken) => (taken.offset.saturating_add(taken.size), None),
            Mark::Claim(index, _) => (start, Some(index)),
        };
        before = name;
    }
    gaps.push(close(cursor, leads, space.end));
    Ok(gaps)
}

impl Gap {
    fn units(&self, space: &Space) -> u64 {
        self.end.saturating_sub(self.origin) / space.alignment
    }

    /// Bytes of the first unit that lie before the claim.
    fn lead(&self, claim: &Claim) -> u64 {
        claim.start.map_or(0, |start| start - self.origin)
    }

    fn need(&self, space: &Space, claims: &[Claim], index: usize) -> Need {
        let claim = &claims[index];
        let lead = self.lead(claim);
        let units = |size: u64| lead.saturating_add(size).div_ceil(space.alignment);
        let (min, most) = (units(claim.min), self.units(space));
        // A partition that fills a gap to its odd end is no larger than the gap.
        let exact = claim.start.is_some_and(|start| start.saturating_add(claim.min) <= self.end);
        let min = if exact { min.min(most) } else { min };
        Need { min, max: claim.max.map_or(most, units).clamp(min, most.max(min)) }
    }

    /// Units that the claims in it leave at least; `None` where they do not fit.
    fn room(&self, space: &Space, claims: &[Claim]) -> Option<u64> {
        self.claims
            .iter()
            .try_fold(self.units(space), |room, index| room.checked_sub(self.need(space, claims, *index).min))
    }

    /// Shares the gap among its claims.
    fn fill(&self, space: &Space, claims: &[Claim], placements: &mut [Placement]) -> Result<()> {
        let mut by_name: Vec<usize> = self.claims.clone();
        by_name.sort_by_key(|index| (&claims[*index].name, *index));
        let rank = |index: usize| by_name.iter().position(|other| *other == index).unwrap_or(0);
        let shares: Vec<Share> = self
            .claims
            .iter()
            .map(|index| {
                let Need { min, max } = self.need(space, claims, *index);
                let rank = u32::try_from(rank(*index)).unwrap_or(u32::MAX);
                Share { min, max, weight: claims[*index].weight, rank }
            })
            .collect();
        let units = share(self.units(space), &shares)
            .ok_or_else(|| no_room(space, std::slice::from_ref(self), claims))?;
        let mut at = self.origin;
        for (index, units) in self.claims.iter().zip(units) {
            let claim = &claims[*index];
            let offset = claim.start.unwrap_or(at);
            let end = at.saturating_add(units.saturating_mul(space.alignment));
            let size = end.saturating_sub(offset).max(claim.min).min(claim.max.unwrap_or(u64::MAX));
            placements[*index] = Placement { offset, size };
            at = end;
        }
        Ok(())
    }
}

fn no_room(space: &Space, gaps: &[Gap], claims: &[Claim]) -> Error {
    let least: u64 = claims.iter().fold(0, |sum, claim| sum.saturating_add(claim.min));
    let rooms: Vec<u64> = gaps.iter().map(|gap| gap.units(space).saturating_mul(space.alignment)).collect();
    let all: u64 = rooms.iter().fold(0, |sum, room| sum.saturating_add(*room));
    let mut there = said(all);
    let used: Vec<String> = rooms.iter().filter(|room| **room > 0).map(|room| said(*room)).collect();
    if used.len() > 1 {
        there = format!("{there} in gaps of {}", used.join(", "));
    }
    let wants: Vec<String> = claims.iter().map(Claim::wants).collect();
    let context = format!(
        "the partitions need at least {}, the disk has {there} for them: {}",
        said(least),
        wants.join(", ")
    );
    Error::new(ErrorKind::NoSpace, context)
}

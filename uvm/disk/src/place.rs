//! Where a new partition goes: alignment, and the choice among free extents. The same for GPT and MBR.

use std::ops::RangeInclusive;

use crate::{Error, ErrorKind, Geometry, Result};

/// Partitions start on multiples of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    blocks: u64,
}

impl Alignment {
    /// What every system of today uses: bytes.
    pub const DEFAULT: u64 = 1 << 20;

    /// To multiples of `bytes`, which are whole physical blocks of the device.
    pub fn new(geometry: &Geometry, bytes: u64) -> Result<Self> {
        let (logical, physical) = (geometry.logical_block_size, geometry.physical_block_size);
        let whole = |block: u32| block != 0 && bytes.is_multiple_of(u64::from(block));
        if bytes == 0 || !whole(logical) || !whole(physical.max(logical)) {
            let context =
                format!("an alignment of {bytes} bytes on blocks of {logical} bytes, {physical} physically");
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        Ok(Self { blocks: bytes / u64::from(logical) })
    }

    /// 1 MiB, or the physical block where that is larger.
    pub fn standard(geometry: &Geometry) -> Result<Self> {
        let physical = u64::from(geometry.physical_block_size.max(1));
        Self::new(geometry, Self::DEFAULT.next_multiple_of(physical))
    }

    /// In logical blocks.
    pub fn blocks(self) -> u64 {
        self.blocks
    }

    /// The next multiple, `lba` itself included; `None` where there is none.
    pub(crate) fn up(self, lba: u64) -> Option<u64> {
        lba.checked_next_multiple_of(self.blocks)
    }

    fn down(self, lba: u64) -> u64 {
        lba - lba % self.blocks
    }
}

/// Which free extent a new partition takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// This first block, whatever its alignment.
    At(u64),
    /// The first extent, from the start of the device, that is large enough.
    FirstFit,
    /// The largest extent.
    LargestGap,
}

/// The extents of `within` that no extent of `taken` touches, ascending.
pub(crate) fn gaps(
    within: RangeInclusive<u64>,
    taken: impl Iterator<Item = (u64, u64)>,
) -> Vec<RangeInclusive<u64>> {
    let mut taken: Vec<_> = taken.collect();
    taken.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = *within.start();
    for (first, last) in taken {
        if first > next && next <= *within.end() {
            gaps.push(next..=(first - 1).min(*within.end()));
        }
        next = next.max(last.saturating_add(1));
    }
    if next <= *within.end() {
        gaps.push(next..=*within.end());
    }
    gaps
}

/// First and last block of a partition of `blocks` blocks; without a number, of the whole extent, whose end is then
/// aligned too.
pub(crate) fn choose(
    gaps: &[RangeInclusive<u64>],
    place: Place,
    blocks: Option<u64>,
    alignment: Alignment,
) -> Result<RangeInclusive<u64>> {
    if blocks == Some(0) {
        return Err(Error::new(ErrorKind::Invalid, "a partition of 0 blocks"));
    }
    if let Place::At(start) = place {
        return at(gaps, start, blocks);
    }
    let candidates = gaps.iter().filter_map(|gap| aligned(gap, blocks.is_none(), alignment));
    let wanted = blocks.unwrap_or(1);
    let (mut found, mut largest) = (None::<(u64, u64)>, 0);
    for (start, room) in candidates {
        let better = found.is_none() || (place == Place::LargestGap && room > largest);
        if room >= wanted && better {
            found = Some((start, room));
        }
        largest = largest.max(room);
    }
    match found {
        Some((start, room)) => Ok(start..=start + (blocks.unwrap_or(room) - 1)),
        None => {
            let context = format!(
                "no room for a partition of {wanted} blocks: from a multiple of {} blocks, the largest free extent \
                 holds {largest}",
                alignment.blocks
            );
            Err(Error::new(ErrorKind::NoSpace, context))
        }
    }
}

fn at(gaps: &[RangeInclusive<u64>], start: u64, blocks: Option<u64>) -> Result<RangeInclusive<u64>> {
    let Some(gap) = gaps.iter().find(|gap| gap.contains(&start)) else {
        return Err(Error::new(
            ErrorKind::NoSpace,
            format!("no room for a partition: LBA {start} is not free"),
        ));
    };
    let room = (gap.end() - start).saturating_add(1);
    let blocks = blocks.unwrap_or(room);
    if blocks > room {
        let context = format!(
            "no room for a partition of {blocks} blocks at LBA {start}: free are {start}..={}, {room} blocks",
            gap.end()
        );
        return Err(Error::new(ErrorKind::NoSpace, context));
    }
    Ok(start..=start + (blocks - 1))
}

/// The first aligned block of a gap, and how many blocks follow from there.
fn aligned(gap: &RangeInclusive<u64>, whole: bool, alignment: Alignment) -> Option<(u64, u64)> {
    let start = alignment.up(*gap.start())?;
    let end = gap.end().checked_add(1)?;
    let end = if whole { alignment.down(end) } else { end };
    (end > start).then(|| (start, end - start))
}

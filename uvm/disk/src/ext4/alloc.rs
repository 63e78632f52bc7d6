//! Block allocation: a pointer that only moves forward, and a list of what was given back behind it.
//!
//! What is in use is therefore "below the pointer, less the list": no bitmap is kept.

use std::collections::BTreeMap;
use std::ops::Range;

use super::layout::{Flex, Layout};
use crate::Result;

pub(super) struct Allocator {
    layout: Layout,
    /// The flex group the pointer is in.
    flex: u32,
    /// What is left of that flex group, the next run last.
    runs: Vec<Range<u64>>,
    /// Runs given back: start to end, never adjacent.
    freed: BTreeMap<u64, u64>,
    free: u64,
}

impl Allocator {
    pub(super) fn new(layout: Layout) -> Result<Self> {
        let mut free = 0;
        for flex in 0..layout.flexes() {
            free += layout.flex(flex)?.free.iter().map(|run| run.end - run.start).sum::<u64>();
        }
        let mut runs = layout.flex(0)?.free;
        runs.reverse();
        Ok(Self { layout, flex: 0, runs, freed: BTreeMap::new(), free })
    }

    /// Free blocks.
    pub(super) fn free(&self) -> u64 {
        self.free
    }

    /// Up to `wanted` adjacent blocks; `None` when all are taken. Space given back is used last.
    pub(super) fn allocate(&mut self, wanted: u64) -> Result<Option<Range<u64>>> {
        while self.runs.is_empty() && self.flex + 1 < self.layout.flexes() {
            self.flex += 1;
            self.runs = self.layout.flex(self.flex)?.free;
            self.runs.reverse();
        }
        let taken = match self.runs.last_mut() {
            Some(run) => {
                let taken = run.start..run.end.min(run.start + wanted);
                run.start = taken.end;
                if run.is_empty() {
                    self.runs.pop();
                }
                taken
            }
            None => match self.freed.pop_first() {
                Some((start, end)) => {
                    let taken = start..end.min(start + wanted);
                    if taken.end < end {
                        self.freed.insert(taken.end, end);
                    }
                    taken
                }
                None => return Ok(None),
            },
        };
        self.free -= taken.end - taken.start;
        Ok(Some(taken))
    }

    /// Gives allocated blocks back.
    pub(super) fn release(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        self.free += blocks.end - blocks.start;
        let Range { mut start, mut end } = blocks;
        if let Some((&before, _)) =
            self.freed.range(..start).next_back().filter(|(_, until)| **until == start)
        {
            self.freed.remove(&before);
            start = before;
        }
        if let Some(until) = self.freed.remove(&end) {
            end = until;
        }
        self.freed.insert(start, end);
    }

    /// The free runs within one group of `flex`, whose number is `index`.
    pub(super) fn free_in(&self, flex: &Flex, index: u32, group: Range<u64>) -> Vec<Range<u64>> {
        let ahead: &[Range<u64>] = match index.cmp(&self.flex) {
            std::cmp::Ordering::Less => &[],
            std::cmp::Ordering::Equal => &self.runs,
            std::cmp::Ordering::Greater => &flex.free,
        };
        let before = self.freed.range(..group.start).next_back().map(|(start, end)| *start..*end);
        let within = self.freed.range(group.clone()).map(|(start, end)| *start..*end);
        let all = ahead.iter().cloned().chain(before).chain(within);
        all.map(|run| run.start.max(group.start)..run.end.min(group.end))
            .filter(|run| !run.is_empty())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::{Ext4Options, Variant};
    use super::*;

    #[test]
    fn everything_free_is_given_out_once_and_again_after_release() {
        let options = Ext4Options::new(Variant::Ext4, [0; 16], [0; 16], 0);
        let layout = Layout::new(300 << 20, &options).expect("a layout");
        let mut allocator = Allocator::new(layout).expect("an allocator");
        let total = allocator.free();
        let mut taken = Vec::new();
        while let Some(run) = allocator.allocate(1000).expect("no error") {
            taken.push(run);
        }
        assert_eq!(taken.iter().map(|run| run.end - run.start).sum::<u64>(), total);
        assert!(taken.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert_eq!(allocator.free(), 0);
        for run in taken.iter().rev() {
            allocator.release(run.clone());
        }
        assert_eq!(allocator.free(), total);
        let largest = allocator.freed.iter().map(|(start, end)| end - start).max();
        assert!(largest > Some(30_000), "neighbours join: {largest:?}");
        while allocator.allocate(u64::MAX >> 1).expect("no error").is_some() {}
        assert_eq!(allocator.free(), 0);
    }
}

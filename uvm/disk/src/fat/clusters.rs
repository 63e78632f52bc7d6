//! Which clusters are taken, while a volume is being built.

use std::collections::BTreeMap;

use crate::{Error, ErrorKind, Result};

/// Consecutive clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Run {
    pub(super) fn end(self) -> u32 {
        self.first + self.count
    }
}

/// The clusters of a volume. Those never used come first, so that files stay in one piece; what removed files left is
/// taken when nothing else is left.
#[derive(Debug)]
pub(super) struct Clusters {
    /// The first one never used.
    next: u32,
    /// Behind the last one.
    end: u32,
    /// Given back: first cluster and count, neither adjacent to each other nor to `next`.
    returned: BTreeMap<u32, u32>,
    returned_count: u32,
    /// Kept for directories, which are written last.
    reserved: u32,
    cluster_size: u32,
}

impl Clusters {
    pub(super) fn new(count: u32, cluster_size: u32) -> Self {
        Self {
            next: 2,
            end: count + 2,
            returned: BTreeMap::new(),
            returned_count: 0,
            reserved: 0,
            cluster_size,
        }
    }

    /// Clusters not in use, the reserved ones included.
    pub(super) fn free(&self) -> u32 {
        self.end - self.next + self.returned_count
    }

    /// The first cluster that was never used.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    fn no_space(&self, wanted: u32) -> Error {
        let bytes = |clusters: u32| u64::from(clusters) * u64::from(self.cluster_size);
        let context = format!(
            "the FAT volume is full: {} bytes needed, {} of {} free, {} of them kept for directories",
            bytes(wanted),
            bytes(self.free()),
            bytes(self.end - 2),
            bytes(self.reserved)
        );
        Error::new(ErrorKind::NoSpace, context)
    }

    fn check(&self, wanted: u32) -> Result<()> {
        if wanted > self.free() - self.reserved { Err(self.no_space(wanted)) } else { Ok(()) }
    }

    /// Changes what is kept for directories from `old` to `new` clusters of one of them.
    pub(super) fn reserve(&mut self, old: u32, new: u32) -> Result<()> {
        self.check(new.saturating_sub(old))?;
        self.reserved = self.reserved - old + new;
        Ok(())
    }

    /// Takes `count` clusters: in one run where there is one that long, else in as many as it needs.
    pub(super) fn take(&mut self, count: u32) -> Result<Vec<Run>> {
        self.check(count)?;
        let mut runs = Vec::new();
        if count == 0 {
            return Ok(runs);
        }
        if count <= self.end - self.next {
            runs.push(Run { first: self.next, count });
            self.next += count;
            return Ok(runs);
        }
        let whole = self.returned.iter().find(|(_, free)| **free >= count).map(|(first, _)| *first);
        let mut left = count;
        while left > 0 {
            let Some(first) = whole.or_else(|| self.returned.keys().next().copied()) else {
                runs.push(Run { first: self.next, count: left });
                self.next += left;
                break;
            };
            let free = self.returned.remove(&first).expect("the key was found in the map");
            let taken = free.min(left);
            if taken < free {
                self.returned.insert(first + taken, free - taken);
            }
            self.returned_count -= taken;
            left -= taken;
            runs.push(Run { first, count: taken });
        }
        Ok(runs)
    }

    /// Takes clusters that were reserved.
    pub(super) fn take_reserved(&mut self, count: u32) -> Result<Vec<Run>> {
        self.reserved = self.reserved.saturating_sub(count);
        self.take(count)
    }

    /// Takes clusters back.
    pub(super) fn give_back(&mut self, run: Run) {
        let Run { mut first, mut count } = run;
        self.returned_count += count;
        if let Some((before, len)) = self.returned.range(..first).next_back().map(|(at, len)| (*at, *len))
            && before + len == first
        {
            self.returned.remove(&before);
            (first, count) = (before, len + count);
        }
        if let Some(len) = self.returned.remove(&(first + count)) {
            count += len;
        }
        if first + count == self.next {
            self.next = first;
            self.returned_count -= count;
        } else {
            self.returned.insert(first, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_come_in_one_run_as_long_as_there_is_one() {
        let mut clusters = Clusters::new(100, 512);
        let a = clusters.take(40).unwrap();
        let b = clusters.take(10).unwrap();
        let c = clusters.take(30).unwrap();
        assert_eq!((a[0].first, b[0].first, c[0].first), (2, 42, 52));
        clusters.give_back(b[0]);
        clusters.reserve(0, 5).unwrap();
        assert_eq!(clusters.free(), 30);
        assert_eq!(clusters.take(26).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(clusters.take(25).unwrap(), [Run { first: 42, count: 10 }, Run { first: 82, count: 15 }]);
        assert_eq!(clusters.take_reserved(5).unwrap(), [Run { first: 97, count: 5 }]);
        assert_eq!(clusters.free(), 0);
        // All given back, in any order, all is as before.
        for run in [c[0], Run { first: 97, count: 5 }, a[0], Run { first: 82, count: 15 }, b[0]] {
            clusters.give_back(run);
        }
        assert_eq!((clusters.free(), clusters.next(), clusters.returned.len()), (100, 2, 0));
    }
}

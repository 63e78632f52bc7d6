//! Arithmetic of NUMA nodes: which of them a machine takes, and how many more would fit.

use crate::MAX_NUMA;

/// What one NUMA node has free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Free {
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
}

/// What one machine takes: as many NUMA nodes as `parts`, and this of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) parts: u32,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
}

impl Shape {
    /// The least shape that both fit into.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            parts: self.parts.max(other.parts),
            vcpus: self.vcpus.max(other.vcpus),
            memory_mib: self.memory_mib.max(other.memory_mib),
        }
    }

    fn fits(self, free: Free) -> bool {
        free.vcpus >= self.vcpus && u64::from(free.memory_mib) >= self.memory_mib
    }

    fn copies_in(self, free: Free) -> u64 {
        let by_vcpus = u64::from(free.vcpus / self.vcpus.max(1));
        by_vcpus.min(u64::from(free.memory_mib) / self.memory_mib.max(1))
    }

    /// How many machines of this shape fit beside each other.
    pub(crate) fn copies(self, free: &[Free]) -> u64 {
        let parts = u64::from(self.parts);
        match (parts, free) {
            (0, _) => 0,
            (1, _) => free.iter().map(|numa| self.copies_in(*numa)).sum(),
            (2, [one, other]) => self.copies_in(*one).min(self.copies_in(*other)),
            // `t` machines fit exactly if the NUMA nodes have `parts * t` places, none used by one machine
            // twice, so that each NUMA node counts for `t` places at most.
            _ => {
                let mut t = free.iter().map(|numa| self.copies_in(*numa)).sum::<u64>() / parts;
                loop {
                    let places = free.iter().map(|numa| self.copies_in(*numa).min(t)).sum::<u64>() / parts;
                    if places >= t {
                        return t;
                    }
                    t = places;
                }
            }
        }
    }
}

/// NUMA nodes chosen on one node, one bit each.
pub(crate) type Mask = u8;

/// What is free once `taken` is taken of the chosen NUMA nodes, which have that much.
pub(crate) fn after(free: &[Free], mask: Mask, taken: Shape) -> ([Free; MAX_NUMA], usize) {
    let mut left = [Free::default(); MAX_NUMA];
    for (numa, (left, free)) in left.iter_mut().zip(free).enumerate() {
        let is_chosen = mask & (1 << numa) != 0;
        let (vcpus, memory) = if is_chosen { (taken.vcpus, taken.memory_mib) } else { (0, 0) };
        let memory_mib = u64::from(free.memory_mib).saturating_sub(memory) as u32;
        *left = Free { vcpus: free.vcpus.saturating_sub(vcpus), memory_mib };
    }
    (left, free.len())
}

/// How much more unbalanced a NUMA node is after the shape has taken its part, in MiB.
pub(crate) fn stranded(free: Free, shape: Shape, memory_per_vcpu: i64) -> i64 {
    let skew = |vcpus: i64, memory: i64| (vcpus * memory_per_vcpu - memory).abs();
    let (vcpus, memory) = (i64::from(free.vcpus), i64::from(free.memory_mib));
    skew(vcpus - i64::from(shape.vcpus), memory - shape.memory_mib as i64) - skew(vcpus, memory)
}

/// The NUMA nodes that strand least, the first of equals; and how much they strand together.
pub(crate) fn choose(free: &[Free], shape: Shape, memory_per_vcpu: i64) -> Option<(Mask, i64)> {
    if shape.parts == 1 {
        let mut best: Option<(Mask, i64)> = None;
        for (numa, free) in free.iter().enumerate() {
            if shape.fits(*free) {
                let stranded = stranded(*free, shape, memory_per_vcpu);
                if best.is_none_or(|(_, least)| stranded < least) {
                    best = Some((1 << numa, stranded));
                }
            }
        }
        return best;
    }
    let mut fitting = [(0, 0); MAX_NUMA];
    let mut found = 0;
    for (numa, free) in free.iter().enumerate().take(MAX_NUMA) {
        if shape.fits(*free) {
            fitting[found] = (stranded(*free, shape, memory_per_vcpu), numa);
            found += 1;
        }
    }
    let parts = shape.parts as usize;
    if parts > found {
        return None;
    }
    if found > parts {
        fitting[..found].sort_unstable();
    }
    let chosen = &fitting[..parts];
    Some((
        chosen.iter().fold(0, |mask, (_, numa)| mask | 1 << numa),
        chosen.iter().map(|(stranded, _)| stranded).sum(),
    ))
}

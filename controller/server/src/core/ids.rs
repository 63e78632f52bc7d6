//! Fresh ids, from a seed.

use super::Now;
use crate::model::Id;

/// SplitMix64: what it gives is no secret, only different each time.
#[derive(Debug, Clone)]
pub(super) struct Ids {
    state: u64,
    /// The last id's time, and how many came before it in that millisecond: within it, too, order of id is order of
    /// creation.
    last: (Now, u16),
}

impl Ids {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed, last: (0, 0) }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn id(&mut self, now: Now) -> Id {
        let before = if self.last.0 == now { self.last.1.wrapping_add(1) } else { 0 };
        self.last = (now, before);
        let mut random = [0; 10];
        // The version takes the upper half of the first byte.
        random[..2].copy_from_slice(&(before & 0x0fff).to_be_bytes());
        random[2..].copy_from_slice(&self.number().to_le_bytes());
        Id::new(now, random)
    }
}

/// A locally administered address made of an id's random half.
pub(super) fn mac(id: Id) -> String {
    let bytes = id.0.as_bytes();
    let tail: Vec<String> = bytes[11..].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("02:{}", tail.join(":"))
}

//! Room shared by weight between bounds, exactly.

/// What one takes of the room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// It gets at least this.
    pub min: u64,
    /// It gets at most this; not below `min`.
    pub max: u64,
    /// Its part of what there is, beside the others' weights.
    pub weight: u32,
    /// Who gets a unit that cannot be split, among equals: the lower rank.
    pub rank: u32,
}

/// Splits `total` units in proportion to the weights, each part within its bounds: there is one level so that every
/// part is `weight * level`, or the bound that this is beyond. The parts add up to `total` or are all at their maximum;
/// of fractions the largest are rounded up. `None` where the minima alone need more.
pub fn share(total: u64, shares: &[Share]) -> Option<Vec<u64>> {
    let least = shares.iter().try_fold(0u64, |sum, share| sum.checked_add(share.min))?;
    if least > total {
        return None;
    }
    let mut parts: Vec<Option<u64>> = vec![None; shares.len()];
    loop {
        let fixed: u64 = parts.iter().flatten().sum();
        let open: Vec<usize> = (0..shares.len()).filter(|index| parts[*index].is_none()).collect();
        if open.is_empty() {
            break;
        }
        let level = Level {
            room: i128::from(total - fixed),
            weights: open.iter().map(|index| i128::from(shares[*index].weight)).sum::<i128>().max(1),
        };
        // Frozen is what the sum of the bounds pulls towards; each round freezes at least one.
        let pull: i128 = open.iter().map(|index| level.violation(&shares[*index])).sum();
        let frozen: Vec<usize> = open
            .iter()
            .copied()
            .filter(|index| {
                let violation = level.violation(&shares[*index]);
                if pull == 0 { violation != 0 } else { violation.signum() == pull.signum() }
            })
            .collect();
        for index in &frozen {
            let Share { min, max, .. } = shares[*index];
            parts[*index] = Some(if level.violation(&shares[*index]) > 0 { min } else { max });
        }
        if pull == 0 {
            let rest: Vec<usize> = open.into_iter().filter(|index| parts[*index].is_none()).collect();
            round(&level, &rest, shares, &mut parts);
            break;
        }
    }
    Some(parts.into_iter().map(Option::unwrap_or_default).collect())
}

/// `room / weights` is the part of a weight of 1, kept as a fraction.
struct Level {
    room: i128,
    weights: i128,
}

impl Level {
    /// How far the part is beyond its bound, times `weights`: positive below the minimum.
    fn violation(&self, share: &Share) -> i128 {
        let part = self.room * i128::from(share.weight);
        let (min, max) = (i128::from(share.min) * self.weights, i128::from(share.max) * self.weights);
        if part < min { min - part } else { (max - part).min(0) }
    }
}

/// Whole units for parts that are within their bounds; what the fractions add up to goes to the largest of them.
fn round(level: &Level, open: &[usize], shares: &[Share], parts: &mut [Option<u64>]) {
    let split = |index: usize| {
        let part = level.room * i128::from(shares[index].weight);
        (part / level.weights, part % level.weights)
    };
    let mut order = open.to_vec();
    order.sort_by_key(|index| (-split(*index).1, shares[*index].rank, *index));
    let fractions: i128 = open.iter().map(|index| split(*index).1).sum();
    let mut left = fractions / level.weights;
    for index in order {
        let more = i128::from(left > 0);
        left -= more;
        parts[index] = u64::try_from(split(index).0 + more).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(rows: &[(u64, u64, u32)]) -> Vec<Share> {
        let share = |(rank, (min, max, weight)): (usize, &(u64, u64, u32))| Share {
            min: *min,
            max: *max,
            weight: *weight,
            rank: rank as u32,
        };
        rows.iter().enumerate().map(share).collect()
    }

    #[test]
    fn bounds_hold_and_the_rest_follows_the_weights() {
        const NO: u64 = u64::MAX;
        type Case<'a> = (u64, &'a [(u64, u64, u32)], Option<&'a [u64]>);
        let cases: [Case<'_>; 9] = [
            (100, &[(0, NO, 1), (0, NO, 1)], Some(&[50, 50])),
            (100, &[(0, NO, 1), (0, NO, 3)], Some(&[25, 75])),
            (100, &[(0, NO, 1), (0, NO, 1), (0, NO, 1)], Some(&[34, 33, 33])),
            // The maximum of one goes to the others, the minimum of one comes from them.
            (100, &[(0, 10, 1), (0, NO, 1), (0, NO, 1)], Some(&[10, 45, 45])),
            (100, &[(80, NO, 1), (0, NO, 1), (0, NO, 3)], Some(&[80, 5, 15])),
            (100, &[(60, NO, 1), (0, 10, 1), (0, NO, 1)], Some(&[60, 10, 30])),
            (100, &[(5, 10, 1), (5, 20, 1)], Some(&[10, 20])),
            (100, &[(100, 100, 0)], Some(&[100])),
            (100, &[(60, NO, 1), (41, NO, 1)], None),
        ];
        for (total, rows, expected) in cases {
            assert_eq!(share(total, &shares(rows)), expected.map(<[u64]>::to_vec), "{total} {rows:?}");
        }
    }
}

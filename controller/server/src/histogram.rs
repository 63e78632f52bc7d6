//! Counts of measured values by class, as Prometheus has them.

/// How many values fell into which class.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last is for what is larger than all.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// None yet; `bounds` are the classes' upper ends, rising.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// One more.
    pub fn observe(&mut self, value: f64) {
        let class = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(class) {
            *count += 1;
        }
        self.sum += value;
    }

    /// For each bound how many values were no larger; all of them at the end, where the bound is `None`.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let bounds = self.bounds.iter().copied().map(Some).chain([None]);
        bounds.zip(self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }))
    }

    /// All values together.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

//! Measurements of one thing: their median and their spread.
//! It must not know what was measured.

use serde::Serialize;

/// The measurements.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    sorted: Vec<f64>,
    /// In the order in which they were taken: in turn with those of other tools.
    taken: Vec<f64>,
}

/// A sample in five numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// The first quartile.
    pub(crate) lower: f64,
    /// The third quartile.
    pub(crate) upper: f64,
    pub(crate) least: f64,
    pub(crate) count: usize,
}

impl Sample {
    /// `values` must not be empty.
    pub(crate) fn new(taken: Vec<f64>) -> Self {
        assert!(!taken.is_empty(), "nothing was measured");
        let mut sorted = taken.clone();
        sorted.sort_by(f64::total_cmp);
        Self { sorted, taken }
    }

    pub(crate) fn one(number: f64) -> Self {
        Self::new(vec![number])
    }

    /// The given percentile.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        self.sorted[(self.sorted.len() - 1) * percent / 100]
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// The median of the ratios of measurements taken in the same turn: what disturbs the machine disturbs both. `None` if
    /// there were no turns, or nothing to divide by.
    pub(crate) fn paired_ratio(&self, other: &Self) -> Option<f64> {
        let pairs = self.taken.iter().zip(&other.taken);
        let ratios: Vec<f64> = pairs.map(|(own, theirs)| own / theirs).collect();
        let whole = self.taken.len() == other.taken.len() && ratios.iter().all(|it| it.is_finite());
        whole.then(|| Self::new(ratios).median())
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary {
            median: self.median(),
            lower: self.percentile(25),
            upper: self.percentile(75),
            least: self.sorted[0],
            count: self.sorted.len(),
        }
    }
}

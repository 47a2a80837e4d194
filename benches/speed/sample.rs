//! Measurements of one thing: their median and their spread.
//! It must not know what was measured.

use serde::Serialize;

/// The measurements, sorted.
#[derive(Clone, Debug)]
pub(crate) struct Sample(Vec<f64>);

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
    pub(crate) fn new(mut numbers: Vec<f64>) -> Self {
        assert!(!numbers.is_empty(), "nothing was measured");
        numbers.sort_by(f64::total_cmp);
        Self(numbers)
    }

    pub(crate) fn one(number: f64) -> Self {
        Self::new(vec![number])
    }

    /// The given percentile.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        self.0[(self.0.len() - 1) * percent / 100]
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary {
            median: self.median(),
            lower: self.percentile(25),
            upper: self.percentile(75),
            least: self.0[0],
            count: self.0.len(),
        }
    }
}

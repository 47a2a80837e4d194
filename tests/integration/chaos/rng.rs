//! Random numbers by a seed.
//! It must not know what they are for, nor read anything that the same seed would not repeat.

use std::time::Duration;

/// A sequence of numbers that a seed decides (`SplitMix64`, <https://prng.di.unimi.it/splitmix64.c>).
pub(super) struct Rng(u64);

impl Rng {
    /// A separate sequence for a user that draws at times which a seed does not decide.
    pub(super) fn new(seed: u64, who: usize) -> Self {
        let mut dice = Self(seed);
        for _ in 0..=who {
            dice.next();
        }
        Self(dice.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).expect("64 bits");
        usize::try_from(self.next() % limit).expect("below a usize")
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// A random duration between two, in milliseconds.
    pub(super) fn span(&mut self, from: usize, to: usize) -> Duration {
        let span = from + self.below(to - from);
        Duration::from_millis(span.try_into().expect("64 bits"))
    }

    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

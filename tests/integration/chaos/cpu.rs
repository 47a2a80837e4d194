//! The processor time of each dlock and its guard, and the end of each dlock, sampled repeatedly.
//! It must not know what they do meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::{Process, alive, boot_clock};

const PACE: Duration = Duration::from_millis(200);

/// Minimum time of a rate.
const WINDOW: Duration = Duration::from_secs(5);

/// The samples of one dlock.
#[derive(Default)]
struct Samples {
    dlock: Option<Process>,
    used: Vec<(Duration, Duration)>,
    ended_at: Option<Duration>,
}

/// Samples the dlocks that were registered.
#[derive(Default)]
pub(super) struct Sampler {
    samples: Arc<Mutex<BTreeMap<usize, Samples>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub(super) fn new() -> Self {
        let mut sampler = Self::default();
        let (shared, over) = (Arc::clone(&sampler.samples), Arc::clone(&sampler.over));
        sampler.thread = Some(thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                for one in shared.lock().expect("no panic while locked").values_mut() {
                    one.sample();
                }
                thread::sleep(PACE);
            }
        }));
        sampler
    }

    /// Registers the dlock of this run.
    pub(super) fn watch(&self, run: usize, dlock: Process) {
        let mut samples = self.samples.lock().expect("no panic while locked");
        samples.entry(run).or_default().dlock = Some(dlock);
    }

    pub(super) fn forget(&self, run: usize) {
        let mut samples = self.samples.lock().expect("no panic while locked");
        samples.remove(&run);
    }

    /// The end of the dlock, noticed with a short delay.
    pub(super) fn ended_at(&self, run: usize) -> Option<Duration> {
        let samples = self.samples.lock().expect("no panic while locked");
        samples.get(&run)?.ended_at
    }

    /// The busiest time span until `until`, its start, and its share of a processor.
    pub(super) fn busiest(
        &self,
        run: usize,
        until: Duration,
    ) -> Option<(Duration, Duration, Duration)> {
        let samples = self.samples.lock().expect("no panic while locked");
        let used = &samples.get(&run)?.used;
        let used: Vec<_> = used.iter().filter(|(at, _)| *at <= until).collect();
        let windows = used
            .iter()
            .enumerate()
            .filter_map(|(number, (from, start))| {
                let (to, end) = used[number..]
                    .iter()
                    .find(|(at, _)| *at >= *from + WINDOW)?;
                Some((*from, to.saturating_sub(*from), end.saturating_sub(*start)))
            });
        windows.max_by_key(|(_, _, used)| *used)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Samples {
    fn sample(&mut self) {
        let Some(dlock) = self.dlock.filter(|_| self.ended_at.is_none()) else {
            return;
        };
        let now = boot_clock();
        if !alive(dlock) {
            self.ended_at = Some(now);
            return;
        }
        let both = [dlock].into_iter().chain(dlock.children());
        let both = both.filter(|it| ["dlock", "dlock-guard"].contains(&&*it.name()));
        let used: Duration = both.map(Process::processor_time).sum();
        // The counters of a guard that has ended are lost.
        let used = self.used.last().map_or(used, |(_, last)| used.max(*last));
        self.used.push((now, used));
    }
}

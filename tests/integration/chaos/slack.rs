//! The time between the last beat of a holder and the end of its key, seen from outside.
//! It must not know dlock beyond the form of its keys, nor the faults.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::journal::Tail;
use super::witness::{Place, Witness};
use crate::support::{Scratch, boot_clock, child};

const PACE: Duration = Duration::from_millis(2);

/// Records the time of every beat and of the end of every key.
pub(super) struct Watch {
    dir: Scratch,
    ledger: Arc<Mutex<Ledger>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The records so far, by the leases that are part of the keys.
#[derive(Default)]
struct Ledger {
    /// Number of ended entries of the history that were read.
    seen: usize,
    beaten_at: HashMap<String, Duration>,
    gone_at: HashMap<String, Duration>,
    /// The leases of keys that the holder released itself.
    released: HashSet<String>,
    /// The leases whose keys ended before their last beat, with the time between.
    late: HashMap<String, Duration>,
}

impl Watch {
    /// Watches the keys of one lock. Holders of other locks beat elsewhere, if they do.
    pub(super) fn over(witness: &Arc<Witness>, lock: &'static str) -> Self {
        let dir = Scratch::new();
        dir.write("beats", "");
        let mut beats = Tail::of(&dir.file("beats"));
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let over = Arc::new(AtomicBool::new(false));
        let (shared, ended, witness) =
            (Arc::clone(&ledger), Arc::clone(&over), Arc::clone(witness));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                let ledger = shared.lock();
                ledger
                    .expect("no panic while locked")
                    .update(lock, &witness, &mut beats);
                thread::sleep(PACE);
            }
        });
        Self {
            dir,
            ledger,
            over,
            thread: Some(thread),
        }
    }

    /// The command line of a program that beats for as long as it lives.
    pub(super) fn beats(&self) -> String {
        format!("{} {}", child("beats.sh"), self.beats_file())
    }

    /// The file to which such a program writes the key of its lock.
    pub(super) fn beats_file(&self) -> String {
        self.dir.file("beats")
    }

    /// The leases whose holders beat after their keys were gone, with the time.
    pub(super) fn late(&self) -> HashMap<String, Duration> {
        let ledger = self.ledger.lock().expect("no panic while locked");
        ledger.late.clone()
    }

    /// The slack of all keys that are not in `taken`, a list of leases.
    pub(super) fn slack(&self, taken: &BTreeSet<String>) -> Slack {
        let ledger = self.ledger.lock().expect("no panic while locked");
        let (mut released, mut others) = (Vec::new(), Vec::new());
        for (lease, gone_at) in &ledger.gone_at {
            if let Some(beaten_at) = ledger.beaten_at.get(lease)
                && !ledger.late.contains_key(lease)
            {
                let slack = gone_at.saturating_sub(*beaten_at);
                if ledger.released.contains(lease) {
                    released.push(slack);
                } else if !taken.contains(lease) {
                    others.push(slack);
                }
            }
        }
        released.sort();
        others.sort();
        let mut late: Vec<Duration> = ledger.late.values().copied().collect();
        late.sort();
        Slack {
            released,
            others,
            late,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Ledger {
    /// Beats are read last, so a beat that is read after its key's end was made after it. Their times count as later, and
    /// those of keys' ends as earlier, than they were.
    fn update(&mut self, lock: &str, witness: &Witness, beats: &mut Tail) {
        let place = format!("dlock/lock/{lock}/");
        let mut gone = Vec::new();
        {
            let history = witness.history();
            let places = &history.places()[self.seen..];
            for place in places.iter().filter(|place| place.lock == lock) {
                if let Some(end) = place.gone
                    && !self.gone_at.contains_key(&place.lease)
                {
                    gone.push((place.lease.clone(), end.at));
                    if place.ended_well() {
                        self.released.insert(place.lease.clone());
                    }
                }
            }
            let ended = |place: &&Place| place.gone.is_some();
            self.seen += places.iter().take_while(ended).count();
        }
        let lines = beats.lines();
        let after = boot_clock();
        for line in lines {
            let Some(lease) = line.strip_prefix(&place) else {
                continue;
            };
            if let Some(gone_at) = self.gone_at.get(lease) {
                let late = after.saturating_sub(*gone_at);
                self.late.insert(lease.to_owned(), late);
            }
            self.beaten_at.insert(lease.to_owned(), after);
        }
        self.gone_at.extend(gone);
    }
}

/// Times between last beats and keys' ends, the smallest first.
#[derive(Debug)]
pub(super) struct Slack {
    /// For keys that the holder released itself.
    released: Vec<Duration>,
    /// For keys whose lease expired.
    others: Vec<Duration>,
    /// Times between keys' ends and later last beats.
    late: Vec<Duration>,
}

impl Slack {
    /// The smallest for keys whose lease expired.
    pub(super) fn smallest(&self) -> Option<Duration> {
        self.others.first().copied()
    }

    /// Number of keys that ended while the holder beat, and the longest time it still did.
    pub(super) fn late(&self) -> (usize, Duration) {
        (
            self.late.len(),
            self.late.last().copied().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Slack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [("expired", &self.others), ("released", &self.released)];
        for (number, (how, all)) in kinds.into_iter().enumerate() {
            if number > 0 {
                write!(f, "; ")?;
            }
            write!(f, "{} {how}", all.len())?;
            if let (Some(least), Some(median)) = (all.first(), all.get(all.len() / 2)) {
                write!(
                    f,
                    " (smallest {} ms, median {} ms)",
                    least.as_millis(),
                    median.as_millis()
                )?;
            }
        }
        if let (count @ 1.., longest) = self.late() {
            let longest = longest.as_millis();
            write!(
                f,
                "; {count} taken before their time (stopped within {longest} ms)"
            )?;
        }
        Ok(())
    }
}

//! How much time lies between the last beat of a holder and the end of its key, seen from outside.
//! It must not know dlock beyond the form of its keys, nor which faults there are.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::{Cluster, Dlock, LIMIT, Running, Scratch, boot_clock, child, eventually};

const PACE: Duration = Duration::from_millis(2);

/// Hears every beat, and of every key that is gone, and notes which came when.
pub(super) struct Watch {
    dir: Scratch,
    ledger: Arc<Mutex<Ledger>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// One per member: the earliest to tell counts, for others may be struck.
    _witnesses: Vec<Running>,
}

/// What has been seen so far, by the leases that are part of the keys.
#[derive(Default)]
struct Ledger {
    beaten_at: HashMap<String, Duration>,
    gone_at: HashMap<String, Duration>,
    /// Given back by the holder's own hand.
    released: HashSet<String>,
    /// Whose key was gone before their last beat, and by how much.
    late: HashMap<String, Duration>,
}

/// A file that others append to.
struct Tail {
    file: File,
    rest: Vec<u8>,
    /// The line that was read last.
    previous: String,
}

impl Tail {
    fn of(path: &str) -> Self {
        Self {
            file: File::open(path).expect("made before"),
            rest: Vec::new(),
            previous: String::new(),
        }
    }

    /// The whole lines that are new, each with the one before it.
    fn lines(&mut self) -> Vec<(String, String)> {
        self.file.read_to_end(&mut self.rest).expect("a file");
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n');
        let rest = self.rest.split_off(whole.map_or(0, |last| last + 1));
        let text = std::mem::replace(&mut self.rest, rest);
        String::from_utf8_lossy(&text)
            .lines()
            .map(|line| {
                let previous = std::mem::replace(&mut self.previous, line.to_owned());
                (previous, line.to_owned())
            })
            .collect()
    }
}

impl Watch {
    /// Watches the keys of one lock. Those of others beat elsewhere, if they do.
    pub(super) fn over(cluster: &Cluster, lock: &str) -> Self {
        let dir = Scratch::new();
        dir.write("beats", "");
        let beats = Tail::of(&dir.file("beats"));
        let mut told = Vec::new();
        let mut witnesses = Vec::new();
        for (number, member) in cluster.members().iter().enumerate() {
            let path = dir.write(&format!("told-{number}"), "");
            let file = File::options().append(true).open(&path);
            let witness = Dlock::etcdctl(member)
                .args(["watch", "--prefix", "dlock/"])
                .stdout(file.expect("our own file"));
            witnesses.push(witness.start());
            eventually(LIMIT, "the witness watches", || {
                member.ctl(&["put", "dlock/ready", ""]);
                dir.read(&format!("told-{number}")).contains("dlock/ready")
            });
            told.push(Tail::of(&path));
        }
        cluster.members()[0].ctl(&["del", "dlock/ready"]);
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let over = Arc::new(AtomicBool::new(false));
        let (shared, ended, lock) = (Arc::clone(&ledger), Arc::clone(&over), lock.to_owned());
        let thread = thread::spawn(move || {
            let mut beats = beats;
            while !ended.load(Ordering::SeqCst) {
                shared
                    .lock()
                    .expect("no panic while locked")
                    .update(&lock, &mut told, &mut beats);
                thread::sleep(PACE);
            }
        });
        Self {
            dir,
            ledger,
            over,
            thread: Some(thread),
            _witnesses: witnesses,
        }
    }

    /// The command line of something that beats for as long as it lives.
    pub(super) fn beats(&self) -> String {
        format!("{} {}", child("beats.sh"), self.dir.file("beats"))
    }

    /// How close it was.
    pub(super) fn slack(&self) -> Slack {
        let ledger = self.ledger.lock().expect("no panic while locked");
        let (mut released, mut others) = (Vec::new(), Vec::new());
        for (lease, gone_at) in &ledger.gone_at {
            if let Some(beaten_at) = ledger.beaten_at.get(lease)
                && !ledger.late.contains_key(lease)
            {
                let slack = gone_at.saturating_sub(*beaten_at);
                if ledger.released.contains(lease) {
                    released.push(slack);
                } else {
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
    /// Beats are read last, so one that is read after its key's end was made after it; and they are taken for later, keys'
    /// ends for earlier than they were.
    fn update(&mut self, lock: &str, told: &mut [Tail], beats: &mut Tail) {
        let before = boot_clock();
        let place = format!("dlock/lock/{lock}/");
        let evidence = format!("dlock/released/{lock}/");
        let mut gone = Vec::new();
        for tail in told {
            // etcdctl prints what happened, the key and the value, each in a line.
            for (previous, line) in tail.lines() {
                if let Some(lease) = line.strip_prefix(&evidence) {
                    self.released.insert(lease.to_owned());
                }
                if let Some(lease) = line.strip_prefix(&place)
                    && previous == "DELETE"
                {
                    gone.push(lease.to_owned());
                }
            }
        }
        let lines = beats.lines();
        let after = boot_clock();
        for (_, line) in lines {
            let Some(lease) = line.strip_prefix(&place) else {
                continue;
            };
            if let Some(gone_at) = self.gone_at.get(lease) {
                let late = after.saturating_sub(*gone_at);
                self.late.insert(lease.to_owned(), late);
            }
            self.beaten_at.insert(lease.to_owned(), after);
        }
        for lease in gone {
            self.gone_at.entry(lease).or_insert(before);
        }
    }
}

/// The times between last beats and keys' ends, the smallest first.
#[derive(Debug)]
pub(super) struct Slack {
    /// Of those who gave their key back themselves.
    released: Vec<Duration>,
    /// Of those from whom it was taken: their lease ran out.
    others: Vec<Duration>,
    /// Between keys' ends and last beats of those whose key went first.
    late: Vec<Duration>,
}

impl Slack {
    /// The smallest of those whose lease ran out.
    pub(super) fn smallest(&self) -> Option<Duration> {
        self.others.first().copied()
    }

    /// Those whose key went while they beat, and for how long they beat on at most.
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
                "; {count} taken by etcd before its time (stopped within {longest} ms)"
            )?;
        }
        Ok(())
    }
}

//! A third party that deletes keys with etcdctl, in cases for which the man page makes a promise.
//! It must not know whether the promise was kept.
//!
//! The cases that the page excludes are left out here: a holder that is cut off or stopped at that time, a holder without
//! a waiter, and newcomers while no waiter knows of a command that is being stopped.

use std::thread;
use std::time::Duration;

use super::fault::{Act, Before, Blow, CONTENDERS, Hand};
use super::plan::{Lock, Plan};
use super::witness::Place;
use super::world::World;
use crate::support::{Etcd, Mode, boot_clock, eventually, let_pass};

/// How long to wait for a holder that is covered by the promise.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time after which a waiter knows its blockers, and a holder has found its connections again after an outage.
const SETTLED: Duration = Duration::from_secs(1);

/// The longest time that a command may live on: its grace of 6 s, and a reserve for a busy machine.
const END: Duration = Duration::from_secs(30);

impl World {
    /// Deletes the keys that `hand` names, and waits until the commands that have lost their locks are dead; until then
    /// no new run starts. Returns a description.
    pub(super) fn take_away(&mut self, hand: Hand) -> String {
        let until = boot_clock() + PATIENCE;
        let holder = loop {
            match self.protected_holder() {
                Some(holder) => break holder,
                None if boot_clock() < until => thread::sleep(Duration::from_millis(20)),
                None => return "nobody to whom a promise is made".to_owned(),
            }
        };
        self.taken_away += 1;
        let mut told = vec![format!("holder {holder}")];
        let mut member = 0;
        let ended = match hand.before {
            Before::FailOver(black) => {
                self.troubles.begin(boot_clock(), Some(holder), false);
                self.hosts[holder].links[black].both(Mode::Drop);
                // By then its next renewal has failed, and it has found another member.
                Some(found_out(&self.hosts[holder].run.plan))
            }
            Before::Restart(restarted) => {
                self.troubles.begin(boot_clock(), None, false);
                let members = self.cluster.members();
                members[restarted].restart();
                member = (restarted + 1) % members.len();
                eventually(END, "the cluster serves again", || {
                    members[member].try_ctl(&["--command-timeout=1s", "get", "serves"])
                });
                None
            }
            Before::KillNext => {
                let next = self.hosts[..CONTENDERS]
                    .iter_mut()
                    .map(|host| &mut host.run);
                let history = self.witness.history();
                let queue = history.queue(Lock::Main.name());
                let next_run = queue.get(1).and_then(|place| place.run);
                drop(queue);
                drop(history);
                let mut next = next.filter(|run| Some(run.number) == next_run);
                told.extend(next.next().map(|run| run.strike(Blow::KillDlock)));
                None
            }
            Before::Nothing => None,
            how => {
                self.troubles.begin(boot_clock(), Some(holder), true);
                for link in &self.hosts[holder].links {
                    match how {
                        Before::Cut => link.cut(),
                        Before::CutHalf(direction) => link.cut_half(direction),
                        Before::Reset(direction) => link.reset(direction),
                        _ => {}
                    }
                }
                None
            }
        };
        let_pass(ended.unwrap_or_default() + hand.after);
        for (number, act) in hand.acts.into_iter().flatten().enumerate() {
            if number > 0 {
                let_pass(hand.gap);
            }
            told.push(self.act(act, member));
        }
        if let Before::FailOver(black) = hand.before {
            let link = &self.hosts[holder].links[black];
            let_pass(hand.gap);
            link.cut();
            link.heal();
        }
        self.troubles.end(boot_clock());
        // No new run starts before the commands that have lost their lock are dead, and before the waiters that know of
        // them have joined the queue again.
        for run in self.hosts[..CONTENDERS].iter().map(|host| &host.run) {
            let what = format!(
                "run {} is dead or waits again, that lost its place",
                run.number
            );
            eventually(END, &what, || {
                let history = self.witness.history();
                let own = |it: &&Place| it.run == Some(run.number);
                let lost = history.places().iter().filter(own);
                let has_lost = { lost }.any(|it| self.taken.contains(&it.lease));
                let waits = history.queue(Lock::Main.name()).iter().any(own);
                drop(history);
                !has_lost || waits || run.running.everything().is_empty()
            });
        }
        told.join(", ")
    }

    /// The host of a holder that is covered by the promise when its key is deleted.
    fn protected_holder(&mut self) -> Option<usize> {
        let holder = self.holder()?;
        let now = boot_clock();
        let run = &self.hosts[holder].run;
        let history = self.witness.history();
        let queue = history.queue(Lock::Main.name());
        let is_next = queue.first().is_some_and(|it| it.run == Some(run.number));
        let alive = |number: Option<usize>| {
            let mut hosts = self.hosts[..CONTENDERS].iter();
            hosts.any(|host| Some(host.run.number) == number && !host.run.is_struck())
        };
        let waits = queue
            .iter()
            .skip(1)
            .filter(|it| alive(it.run) && it.made_at + SETTLED < now && !it.cooling);
        let reaches = (0..CONTENDERS).all(|host| {
            let from = now.saturating_sub(SETTLED * 2);
            !self.troubles.lasted(host, from, now)
        });
        // Each run that is just joining knows of the holder, or is too late to see it.
        let arrived = self.hosts[..CONTENDERS].iter().all(|host| {
            let number = host.run.number;
            let begun = self.journal.of(number);
            let mut own = queue.iter().filter(|it| it.run == Some(number));
            begun.is_some_and(|begun| begun.ended_at.is_some())
                || self.cpu.ended_at(number).is_some()
                || own.any(|it| it.made_at + SETTLED < now)
        });
        let promised = is_next && !run.is_struck() && waits.count() > 0 && reaches && arrived;
        promised.then_some(holder)
    }

    fn act(&mut self, act: Act, member: usize) -> String {
        self.read_on();
        let member = &self.cluster.members()[member];
        let history = self.witness.history();
        let lock = if act == Act::RevokeBorrowed {
            Lock::Borrowed.name()
        } else {
            Lock::Main.name()
        };
        let queue = history.queue(lock);
        // There is no promise for a command whose dlock or guard may be stopped.
        let unsafe_to_take = queue.first().and_then(|it| it.run).is_some_and(|number| {
            let runs = self.hosts[..CONTENDERS].iter().map(|host| &host.run);
            let struck = runs.filter(|run| run.is_struck()).map(|run| run.number);
            self.journal.of(number).is_some() && struck.into_iter().any(|it| it == number)
        });
        if unsafe_to_take {
            return "spared".to_owned();
        }
        let which = match act {
            Act::DeleteAll => &queue[..],
            Act::DeleteNext => queue.get(1..2).unwrap_or_default(),
            _ => queue.get(..1).unwrap_or_default(),
        };
        let leases: Vec<String> = which.iter().map(|place| place.lease.clone()).collect();
        let runs: Vec<String> = (which.iter())
            .map(|place| place.run.map_or_else(String::new, |run| run.to_string()))
            .collect();
        drop(queue);
        drop(history);
        let place = format!("dlock/lock/{lock}/");
        for lease in &leases {
            // Before the deletion: a check may run in between.
            self.taken.insert(lease.clone());
            match act {
                Act::Revoke | Act::RevokeBorrowed => try_often(member, &["lease", "revoke", lease]),
                Act::DeleteAll => {}
                _ => try_often(member, &["del", &format!("{place}{lease}")]),
            }
        }
        if act == Act::DeleteAll {
            try_often(member, &["del", "--prefix", &place]);
        }
        format!("{act:?} of runs {}", runs.join(" "))
    }
}

/// Repeats until it succeeds, or nothing is left to do: an election may be in between.
fn try_often(member: &Etcd, words: &[&str]) {
    for _ in 0..3 {
        if member.try_ctl(&[&["--command-timeout=2s"], words].concat()) {
            return;
        }
    }
}

/// The time by which a holder on a silent member has turned to another one: a renewal was due and has timed out, and the
/// next one has had a second.
fn found_out(plan: &Plan) -> Duration {
    plan.ttl / 5
        + plan.ttl / 50
        + (plan.ttl / 8).min(Duration::from_secs(2))
        + Duration::from_secs(1)
}

//! Deadlocks of nested locks: which waiters wait for each other in a ring, and which one of them leaves the queue.
//! It must not know how queues are read, nor how a waiter leaves.
//!
//! A waiter that holds other locks lists them in its record, so the search goes from the locks that we hold to those that
//! wait for them, to the locks that those hold, and so on, until it reaches our own wait. All queues must have been read
//! at one revision: each edge then exists at the same moment.
//!
//! - Listed locks count while their tokens hold them. The outermost of a long list are left out of the record; the record
//!   of the outermost listed one has them.
//! - A holder ends when its command has ended, and that has to wait for each waiter inside of it.
//! - An exclusive request waits for all holders; a shared one for exclusive holders, and through an exclusive waiter before
//!   it for all holders; a request for a slot until any of the slots is free.
//! - Entries that go by themselves block nobody: waiters with a limit, entries that were asked to leave, cooldowns, and
//!   entries whose command has not started.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::blockers::{QueueEntry, holders};
use super::holder::{Holder, OuterLock, StopKind};
use super::name::LockName;
use super::proof::{FencingToken, LeaseId};
use super::request::Mode;
use super::text::printable;

/// Our own wait, and the locks around it.
#[derive(Clone, Debug)]
pub struct NestedWait {
    pub name: LockName,
    pub token: FencingToken,
    pub held: Vec<OuterLock>,
}

/// An entry of a queue, and the moment of its creation in an order that all queues share.
#[derive(Clone, Debug)]
pub struct Aged {
    pub entry: QueueEntry,
    pub age: i64,
}

/// A ring of waiters of which none can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The waiters, from ours on: each waits for what the next one holds.
    members: Vec<Member>,
    /// The entries that have to stay as they are for the ring to stand: name, token, latest change.
    entries: BTreeSet<(LockName, FencingToken, i64)>,
    /// The leases of these entries, which expire if their owners are dead.
    pub leases: BTreeSet<LeaseId>,
    /// Our entry is the youngest of all waiters in the ring, so we leave.
    pub is_ours_to_break: bool,
}

/// A waiter in a [`Ring`].
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    host: String,
    pid: u32,
    holds: LockName,
    awaits: LockName,
}

impl Ring {
    /// For people: `deadlock: host1 holds 'A' and waits for 'B', host2 holds 'B' and waits for 'A'`.
    pub fn describe(&self) -> String {
        let hosts: BTreeSet<&str> = self.members.iter().map(|it| it.host.as_str()).collect();
        let ambiguous = hosts.len() < self.members.len();
        let members = self.members.iter().map(|member| {
            let Member {
                host,
                pid,
                holds,
                awaits,
            } = member;
            let process = if ambiguous {
                format!("{host} pid {pid}")
            } else {
                host.clone()
            };
            format!("{process} holds '{holds}' and waits for '{awaits}'")
        });
        printable(&format!(
            "deadlock: {}",
            members.collect::<Vec<_>>().join(", ")
        ))
    }

    /// How to avoid it.
    pub const HINT: &str = "take these locks in one order everywhere, or all at once with --also";
}

/// An entry by the position of its queue and its own position there.
type Place = (usize, usize);

struct Queue {
    name: LockName,
    entries: Vec<Aged>,
    /// For each entry, whether it holds the lock.
    holds: Vec<bool>,
}

/// The queues that a search has read.
pub struct DeadlockSearch<'a> {
    ours: &'a NestedWait,
    queues: Vec<Queue>,
    positions: BTreeMap<LockName, usize>,
}

/// A waiter without limit that holds other locks.
struct Waiter {
    place: Place,
    age: i64,
    /// The entries that it holds.
    held: BTreeSet<Place>,
    /// It waits for each of these holders.
    any: BTreeSet<Place>,
    /// It waits until one of these is gone, unless there are none.
    all: BTreeSet<Place>,
}

impl Waiter {
    /// Whether its wait cannot end while none of `stuck` is released.
    fn is_blocked(&self, stuck: &BTreeSet<Place>) -> bool {
        !self.any.is_disjoint(stuck) || (!self.all.is_empty() && self.all.is_subset(stuck))
    }

    /// Whether it waits for what `other` holds.
    fn awaits(&self, other: &Self) -> bool {
        !self.any.is_disjoint(&other.held) || !self.all.is_disjoint(&other.held)
    }
}

/// Whether the owner of an entry was asked to give it up, and does so.
fn is_leaving(entry: &QueueEntry, holds: bool) -> bool {
    let asked = entry.record.as_ref().and_then(|it| it.asked.as_ref());
    asked.is_some_and(|asked| asked.to == StopKind::Stop || !holds)
}

impl Queue {
    fn entry(&self, index: usize) -> Option<&QueueEntry> {
        self.entries.get(index).map(|aged| &aged.entry)
    }

    /// Whether the command of this entry runs under the lock, for as long as it likes.
    fn runs(&self, index: usize) -> bool {
        let holds = self.holds.get(index) == Some(&true);
        holds
            && self.entry(index).is_some_and(|entry| {
                !entry.is_cooling() && !entry.is_pending() && !is_leaving(entry, true)
            })
    }

    /// Whether this entry waits without limit.
    fn waits(&self, index: usize) -> bool {
        let holds = self.holds.get(index) == Some(&true);
        !holds
            && self.entry(index).is_some_and(|entry| {
                let limited = entry.record.as_ref().is_some_and(|it| it.limited);
                !limited && !entry.is_cooling() && !is_leaving(entry, false)
            })
    }

    /// The holders before a position that run.
    fn running_before(&self, index: usize) -> impl Iterator<Item = usize> {
        (0..index).filter(|one| self.runs(*one))
    }

    /// The last waiter without limit before a position that is not in one of these modes.
    fn last_waiter_before(&self, index: usize, fits: impl Fn(&QueueEntry) -> bool) -> usize {
        let mut before = (0..index).rev();
        let blocks = |one: &usize| self.waits(*one) && !self.entry(*one).is_some_and(&fits);
        before.find(blocks).unwrap_or(0)
    }

    /// The holders of which the entry at `index` waits for each one, and those of which it waits for any one.
    fn awaited(&self, index: usize) -> (Vec<usize>, Vec<usize>) {
        let Some(own) = self.entry(index) else {
            return (Vec::new(), Vec::new());
        };
        // Those that do not block us themselves, but wait for all holders before them.
        let through = |fits: &dyn Fn(&QueueEntry) -> bool| {
            let last = self.last_waiter_before(index, fits);
            let before = self.running_before(index);
            let each = before.filter(move |one| *one < last || !self.entry(*one).is_some_and(fits));
            each.collect::<Vec<_>>()
        };
        match own.mode() {
            // A lock with one slot is an exclusive one.
            Mode::Exclusive | Mode::Slots(1) => (self.running_before(index).collect(), Vec::new()),
            Mode::Shared => (through(&|one| one.mode() == Mode::Shared), Vec::new()),
            mode @ Mode::Slots(slots) => {
                let shares =
                    |one: &QueueEntry| one.record.is_some() && one.mode().is_compatible_with(mode);
                let taken = self.entries.iter().enumerate();
                let taken = taken.filter(|(_, it)| it.entry.has_slot());
                let taken: Vec<usize> = taken.map(|(one, _)| one).collect();
                let all_taken = taken.len() >= slots.into();
                (through(&shares), if all_taken { taken } else { Vec::new() })
            }
        }
    }
}

impl<'a> DeadlockSearch<'a> {
    /// A search that has read nothing yet.
    pub fn new(ours: &'a NestedWait) -> Self {
        Self {
            ours,
            queues: Vec::new(),
            positions: BTreeMap::new(),
        }
    }

    /// Adds the entries of a whole queue, the oldest first.
    pub fn push(&mut self, name: LockName, entries: Vec<Aged>) {
        let queue: Vec<QueueEntry> = entries.iter().map(|it| it.entry.clone()).collect();
        let holds = holders(&queue);
        self.positions.insert(name.clone(), self.queues.len());
        self.queues.push(Queue {
            name,
            entries,
            holds,
        });
    }

    /// The queues that have been read.
    pub fn names(&self) -> Vec<LockName> {
        self.queues.iter().map(|queue| queue.name.clone()).collect()
    }

    /// The queues that have to be read, too. With none of them, [`Self::ring`] has the answer.
    pub fn missing(&self) -> BTreeSet<LockName> {
        let mut missing = BTreeSet::new();
        let (mut seen, mut expanded, mut others) = (BTreeSet::new(), BTreeSet::new(), false);
        let mut lists = vec![&self.ours.held[..]];
        while let Some(list) = lists.pop() {
            for one in list {
                let Ok(name) = one.name.parse::<LockName>() else {
                    continue;
                };
                let Some(at) = self.positions.get(&name) else {
                    missing.insert(name);
                    continue;
                };
                if !seen.insert((*at, one.token)) {
                    continue;
                }
                let Some(place) = self.find(one) else {
                    continue;
                };
                lists.push(self.listed(place));
                if !expanded.insert(*at) {
                    continue;
                }
                for waiter in self.waiters_in(*at).filter(|it| !self.is_ours(*it)) {
                    others |= !self.listed(waiter).is_empty();
                    lists.push(self.listed(waiter));
                }
            }
        }
        if others && !self.positions.contains_key(&self.ours.name) {
            missing.insert(self.ours.name.clone());
        }
        missing
    }

    /// The ring that our wait is part of.
    pub fn ring(&self) -> Option<Ring> {
        let waiters = self.waiters();
        let ours = waiters.iter().position(|it| self.is_ours(it.place))?;
        // The largest set of waiters, all of them in rings with ours, that keep each other from going on.
        let mut members: BTreeSet<usize> = (0..waiters.len()).collect();
        loop {
            let stuck = stuck(&waiters, &members);
            if !stuck.contains(&ours) {
                return None;
            }
            let after = reachable(ours, &stuck, |one, other| {
                waiters[one].awaits(&waiters[other])
            });
            let ring = reachable(ours, &after, |one, other| {
                waiters[other].awaits(&waiters[one])
            });
            if ring.len() == members.len() {
                break;
            }
            members = ring;
        }
        let order = |one: &usize| {
            let Waiter { place, age, .. } = &waiters[*one];
            let token = self.entry(*place).map(|entry| entry.token);
            (*age, &self.queues[place.0].name, token)
        };
        let (mut places, mut leases) = (BTreeSet::new(), BTreeSet::new());
        for waiter in members.iter().map(|one| &waiters[*one]) {
            places.insert(waiter.place);
            let awaited = waiter.any.union(&waiter.all);
            let between =
                |place: &&Place| members.iter().any(|it| waiters[*it].held.contains(*place));
            places.extend(awaited.filter(between));
        }
        let mut entries = BTreeSet::new();
        for place in places {
            if let Some(entry) = self.entry(place) {
                let name = self.queues[place.0].name.clone();
                entries.insert((name, entry.token, entry.mod_revision));
                leases.insert(entry.lease);
            }
        }
        Some(Ring {
            members: self.cycle(&waiters, &members, ours),
            entries,
            leases,
            is_ours_to_break: members.iter().max_by_key(|one| order(one)) == Some(&ours),
        })
    }

    /// The shortest way from our wait through `members` back to it.
    fn cycle(&self, waiters: &[Waiter], members: &BTreeSet<usize>, ours: usize) -> Vec<Member> {
        let mut from: BTreeMap<usize, usize> = BTreeMap::new();
        let mut next = VecDeque::from([ours]);
        let mut last = None;
        while let (Some(one), None) = (next.pop_front(), last) {
            for other in members
                .iter()
                .filter(|it| waiters[one].awaits(&waiters[**it]))
            {
                if *other == ours {
                    last = Some(one);
                } else if !from.contains_key(other) {
                    from.insert(*other, one);
                    next.push_back(*other);
                }
            }
        }
        let mut way = vec![last.unwrap_or(ours)];
        while let Some(before) = way.last().and_then(|one| from.get(one)) {
            way.push(*before);
        }
        way.reverse();
        let mut before = last.unwrap_or(ours);
        let members = way.into_iter().map(|one| {
            let awaits = &waiters[std::mem::replace(&mut before, one)];
            self.member(&waiters[one], awaits)
        });
        members.collect()
    }

    /// `waiter` as a member of a ring, in which `before` waits for it.
    fn member(&self, waiter: &Waiter, before: &Waiter) -> Member {
        let name = |place: &Place| self.queues[place.0].name.clone();
        let mut awaited = before.any.union(&before.all);
        let holds = awaited.find(|place| waiter.held.contains(*place));
        let record = self.entry(waiter.place).and_then(|it| it.record.as_ref());
        Member {
            host: record.map_or_else(String::new, |record| record.host.clone()),
            pid: record.map_or(0, |record| record.pid),
            holds: holds.map_or_else(|| name(&before.place), name),
            awaits: name(&waiter.place),
        }
    }

    /// The waiters without limit that hold other locks.
    fn waiters(&self) -> Vec<Waiter> {
        let mut waiters = Vec::new();
        for (at, queue) in self.queues.iter().enumerate() {
            for place in self.waiters_in(at) {
                let held = self.held(self.listed(place));
                if held.is_empty() {
                    continue;
                }
                let (each, any) = queue.awaited(place.1);
                let places = |indices: Vec<usize>| indices.into_iter().map(|it| (at, it)).collect();
                waiters.push(Waiter {
                    place,
                    age: queue.entries[place.1].age,
                    held,
                    any: places(each),
                    all: places(any),
                });
            }
        }
        waiters
    }

    fn waiters_in(&self, at: usize) -> impl Iterator<Item = Place> {
        let queue = &self.queues[at];
        let all = 0..queue.entries.len();
        all.filter(|index| queue.waits(*index))
            .map(move |index| (at, index))
    }

    fn entry(&self, (at, index): Place) -> Option<&QueueEntry> {
        self.queues.get(at)?.entry(index)
    }

    fn is_ours(&self, place: Place) -> bool {
        self.queues[place.0].name == self.ours.name
            && self.entry(place).map(|it| it.token) == Some(self.ours.token)
    }

    /// The locks around the owner of an entry, as far as its record lists them.
    fn listed(&self, place: Place) -> &[OuterLock] {
        if self.is_ours(place) {
            return &self.ours.held;
        }
        let record = self.entry(place).and_then(|it| it.record.as_ref());
        record.map_or(&[], |record: &Holder| &record.held)
    }

    /// The entry that holds a listed lock, if it still does.
    fn find(&self, one: &OuterLock) -> Option<Place> {
        let at = *self.positions.get(&one.name.parse().ok()?)?;
        let queue = &self.queues[at];
        let mut entries = queue.entries.iter();
        let index = entries.position(|it| it.entry.token == FencingToken(one.token))?;
        queue.runs(index).then_some((at, index))
    }

    /// The entries of all locks in a list, and of those around these.
    fn held(&self, list: &[OuterLock]) -> BTreeSet<Place> {
        let mut held = BTreeSet::new();
        let mut left: Vec<&OuterLock> = list.iter().collect();
        while let Some(one) = left.pop() {
            if let Some(place) = self.find(one)
                && held.insert(place)
            {
                left.extend(self.listed(place));
            }
        }
        held
    }
}

/// Those of `among` that cannot go on, if all others can.
fn stuck(waiters: &[Waiter], among: &BTreeSet<usize>) -> BTreeSet<usize> {
    let mut stuck = among.clone();
    loop {
        let held = stuck.iter().flat_map(|one| &waiters[*one].held);
        let held: BTreeSet<Place> = held.copied().collect();
        let before = stuck.len();
        stuck.retain(|one| waiters[*one].is_blocked(&held));
        if stuck.len() == before {
            return stuck;
        }
    }
}

/// `from` and those of `among` that a path of `edge`s leads to.
fn reachable(
    from: usize,
    among: &BTreeSet<usize>,
    edge: impl Fn(usize, usize) -> bool,
) -> BTreeSet<usize> {
    let mut reached = BTreeSet::from([from]);
    let mut next = vec![from];
    while let Some(one) = next.pop() {
        for other in among.iter().filter(|other| edge(one, **other)) {
            if reached.insert(*other) {
                next.push(*other);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests;

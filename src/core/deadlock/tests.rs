//! Rings of nested locks: by example, and against a simulation of hosts that take locks in any order.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::core::holder::StopRequest;

/// A change of a record.
type Change<'a> = &'a dyn Fn(&mut Holder);

fn name(text: &str) -> LockName {
    text.parse().unwrap()
}

fn outer(name: &str, token: i64) -> OuterLock {
    OuterLock {
        name: name.to_owned(),
        token,
    }
}

/// The queues of some locks, the oldest entry of each first.
#[derive(Clone, Default)]
struct Store(BTreeMap<String, Vec<Aged>>);

impl Store {
    /// Adds an entry: its host, its mode, and the locks around it.
    fn add(
        &mut self,
        lock: &str,
        token: i64,
        host: &str,
        mode: Mode,
        held: &[OuterLock],
    ) -> &mut Holder {
        let record = Holder {
            host: host.to_owned(),
            held: held.to_vec(),
            ..Holder::new(mode, Duration::from_secs(5))
        };
        let entry = QueueEntry {
            key: format!("dlock/lock/{lock}/{token:x}"),
            token: FencingToken(token),
            lease: LeaseId(token),
            mod_revision: token,
            record: Some(record),
        };
        let queue = self.0.entry(lock.to_owned()).or_default();
        queue.push(Aged { entry, age: token });
        let added = queue.last_mut().unwrap();
        added.entry.record.as_mut().unwrap()
    }

    fn entry(&mut self, lock: &str, token: i64) -> &mut QueueEntry {
        let mut entries = self.0.get_mut(lock).unwrap().iter_mut();
        let found = entries.find(|it| it.entry.token.0 == token).unwrap();
        &mut found.entry
    }

    /// The ring that the waiter with `token` finds by reading queues one after the other.
    fn ring(&self, lock: &str, token: i64) -> Option<Ring> {
        let own = self.0[lock].iter().find(|it| it.entry.token.0 == token);
        let ours = NestedWait {
            name: name(lock),
            token: FencingToken(token),
            held: own.unwrap().entry.record.clone().unwrap().held,
        };
        let mut search = DeadlockSearch::new(&ours);
        loop {
            let missing = search.missing();
            if missing.is_empty() {
                return search.ring();
            }
            for lock in missing {
                let entries = self.0.get(&lock.to_string()).cloned();
                search.push(lock, entries.unwrap_or_default());
            }
        }
    }

    fn says(&self, lock: &str, token: i64) -> String {
        self.ring(lock, token)
            .map_or_else(String::new, |ring| ring.describe())
    }
}

/// host1 holds A and waits for B, and host2 the other way round.
fn two_in_a_ring() -> Store {
    let mut store = Store::default();
    store.add("A", 1, "host1", Mode::Exclusive, &[]);
    store.add("B", 2, "host2", Mode::Exclusive, &[]);
    store.add("A", 3, "host2", Mode::Exclusive, &[outer("B", 2)]);
    store.add("B", 4, "host1", Mode::Exclusive, &[outer("A", 1)]);
    store
}

#[test]
fn the_youngest_of_two_in_a_ring_names_it_and_leaves() {
    let store = two_in_a_ring();
    assert_eq!(
        store.says("B", 4),
        "deadlock: host1 holds 'A' and waits for 'B', host2 holds 'B' and waits for 'A'"
    );
    let (older, younger) = (store.ring("A", 3).unwrap(), store.ring("B", 4).unwrap());
    assert!(younger.is_ours_to_break && !older.is_ours_to_break);
    assert_eq!(older.entries, younger.entries);
    assert_eq!(younger.leases, (1..=4).map(LeaseId).collect());
}

#[test]
fn members_on_one_host_differ_by_their_pids() {
    let mut store = two_in_a_ring();
    for (lock, token, pid) in [("A", 3, 30), ("B", 4, 40)] {
        let record = store.entry(lock, token).record.as_mut().unwrap();
        (record.host, record.pid) = ("db\u{1b}".to_owned(), pid);
    }
    assert_eq!(
        store.says("B", 4),
        r"deadlock: db\u{1b} pid 40 holds 'A' and waits for 'B', db\u{1b} pid 30 holds 'B' and waits for 'A'"
    );
}

#[test]
fn three_in_a_ring_are_named_in_order() {
    let mut store = Store::default();
    for (token, lock) in [(1, "A"), (2, "B"), (3, "C")] {
        store.add(lock, token, &format!("host{token}"), Mode::Exclusive, &[]);
    }
    store.add("B", 4, "host1", Mode::Exclusive, &[outer("A", 1)]);
    store.add("C", 5, "host2", Mode::Exclusive, &[outer("B", 2)]);
    assert_eq!(store.says("C", 5), "");
    store.add("A", 6, "host3", Mode::Exclusive, &[outer("C", 3)]);
    assert_eq!(
        store.says("A", 6),
        "deadlock: host3 holds 'C' and waits for 'A', host1 holds 'A' and waits for 'B', host2 holds 'B' and waits for 'C'"
    );
    assert!(!store.ring("C", 5).unwrap().is_ours_to_break);
}

#[test]
fn a_waiter_behind_a_ring_is_no_part_of_it() {
    let mut store = two_in_a_ring();
    store.add("D", 5, "host3", Mode::Exclusive, &[]);
    store.add("B", 6, "host3", Mode::Exclusive, &[outer("D", 5)]);
    assert_eq!(store.ring("B", 6), None);
    assert!(store.ring("B", 4).unwrap().is_ours_to_break);
}

/// "`--wait` that ends, or a member that just left"
#[test]
fn entries_that_go_by_themselves_make_no_ring() {
    let stop = |to| {
        Some(StopRequest {
            to,
            by: String::new(),
            why: None,
            now: false,
        })
    };
    let changes: [(&str, i64, Change); 7] = [
        ("A", 3, &|it| it.limited = true),
        ("B", 4, &|it| it.limited = true),
        ("A", 3, &|it| it.asked = stop(StopKind::Yield)),
        ("B", 2, &|it| it.asked = stop(StopKind::Stop)),
        ("B", 2, &|it| it.cooling = true),
        ("A", 1, &|it| it.pending = true),
        // The background job of a command that has released its lock.
        ("A", 3, &|it| it.held = vec![outer("B", 1)]),
    ];
    for (position, (lock, token, change)) in changes.into_iter().enumerate() {
        let mut store = two_in_a_ring();
        change(store.entry(lock, token).record.as_mut().unwrap());
        assert_eq!(
            (store.ring("A", 3), store.ring("B", 4)),
            (None, None),
            "{position}"
        );
    }
    let mut store = two_in_a_ring();
    store.0.get_mut("A").unwrap().remove(0);
    assert_eq!(store.ring("B", 4), None);
    // A holder does not yield.
    let mut store = two_in_a_ring();
    store.entry("B", 2).record.as_mut().unwrap().asked = stop(StopKind::Yield);
    assert!(store.ring("B", 4).is_some());
}

#[test]
fn readers_wait_for_a_writer_and_for_what_a_waiting_writer_waits_for() {
    let mut store = Store::default();
    store.add("A", 1, "host1", Mode::Shared, &[]);
    store.add("B", 2, "host2", Mode::Exclusive, &[]);
    store.add("A", 3, "host3", Mode::Exclusive, &[]);
    store.add("A", 4, "host2", Mode::Shared, &[outer("B", 2)]);
    store.add("B", 5, "host1", Mode::Exclusive, &[outer("A", 1)]);
    assert_eq!(
        store.says("B", 5),
        "deadlock: host1 holds 'A' and waits for 'B', host2 holds 'B' and waits for 'A'"
    );
    // The writer leaves by itself, and both readers hold the lock.
    store.entry("A", 3).record.as_mut().unwrap().limited = true;
    assert_eq!(store.ring("B", 5), None);
}

#[test]
fn a_writer_waits_for_each_reader() {
    let mut store = Store::default();
    store.add("A", 1, "host1", Mode::Shared, &[]);
    store.add("A", 2, "host2", Mode::Shared, &[]);
    store.add("B", 3, "host3", Mode::Exclusive, &[]);
    store.add("A", 4, "host3", Mode::Exclusive, &[outer("B", 3)]);
    assert_eq!(store.ring("A", 4), None);
    store.add("B", 5, "host2", Mode::Exclusive, &[outer("A", 2)]);
    assert!(store.ring("B", 5).unwrap().is_ours_to_break);
}

#[test]
fn a_wait_for_a_slot_ends_with_any_holder() {
    let mut store = Store::default();
    store.add("S", 1, "host1", Mode::Slots(2), &[]).slot = Some(0);
    store.add("S", 2, "host2", Mode::Slots(2), &[]).slot = Some(1);
    store.add("B", 3, "host3", Mode::Exclusive, &[]);
    store.add("S", 4, "host3", Mode::Slots(2), &[outer("B", 3)]);
    store.add("B", 5, "host1", Mode::Exclusive, &[outer("S", 1)]);
    assert_eq!((store.ring("S", 4), store.ring("B", 5)), (None, None));
    store.add("B", 6, "host2", Mode::Exclusive, &[outer("S", 2)]);
    assert_eq!(
        store.says("B", 6),
        "deadlock: host2 holds 'S' and waits for 'B', host3 holds 'B' and waits for 'S'"
    );
    assert!(!store.ring("B", 5).unwrap().is_ours_to_break);
    // A slot is about to be taken.
    store.0.get_mut("S").unwrap().remove(0);
    assert_eq!(store.ring("B", 6), None);
}

#[test]
fn locks_that_a_long_list_left_out_are_in_the_record_of_its_first_lock() {
    let mut store = two_in_a_ring();
    store.add("C", 5, "host1", Mode::Exclusive, &[outer("A", 1)]);
    store.entry("B", 4).record.as_mut().unwrap().held = vec![outer("C", 5)];
    assert!(store.ring("A", 3).is_some() && store.ring("B", 4).is_some());
}

#[test]
fn without_a_nested_waiter_only_the_held_locks_are_read() {
    let ours = NestedWait {
        name: name("B"),
        token: FencingToken(4),
        held: vec![outer("A", 1), outer("\n", 2)],
    };
    let mut search = DeadlockSearch::new(&ours);
    assert_eq!(search.missing(), [name("A")].into());
    let mut store = Store::default();
    store.add("A", 1, "host1", Mode::Exclusive, &[]);
    store.add("A", 3, "host2", Mode::Exclusive, &[]);
    search.push(name("A"), store.0.remove("A").unwrap());
    assert_eq!(search.missing(), BTreeSet::new());
    assert_eq!((search.ring(), search.names()), (None, vec![name("A")]));
}

/// A host that takes locks one inside of the other.
#[derive(Clone, Debug, Default)]
struct Host {
    limited: bool,
    /// Lock and token.
    held: Vec<OuterLock>,
    waits: Option<OuterLock>,
}

#[derive(Clone, Debug)]
enum Step {
    /// The host requests a lock, unless it waits or has it already; readers where the lock has no slots.
    Lock {
        host: usize,
        lock: usize,
        shared: bool,
    },
    /// The command of the host ends, with all that it holds.
    End(usize),
}

#[derive(Clone, Default)]
struct World {
    store: Store,
    hosts: Vec<Host>,
    slots: Vec<Option<u16>>,
    last_token: i64,
}

const LOCKS: [&str; 4] = ["A", "B", "C", "D"];

impl World {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Lock {
                host: at,
                lock,
                shared,
            } => {
                let (lock, slots) = (LOCKS[lock], self.slots[lock]);
                let host = &mut self.hosts[at];
                if host.waits.is_some() || host.held.iter().any(|it| it.name == lock) {
                    return;
                }
                let mode = match slots {
                    Some(slots) => Mode::Slots(slots),
                    None if shared => Mode::Shared,
                    None => Mode::Exclusive,
                };
                self.last_token += 1;
                let (token, who) = (self.last_token, format!("host{at}"));
                let record = self.store.add(lock, token, &who, mode, &host.held);
                record.limited = host.limited;
                host.waits = Some(outer(lock, token));
            }
            Step::End(at) if self.hosts[at].waits.is_none() => self.vanish(at),
            Step::End(_) => {}
        }
        self.promote();
    }

    /// Removes all entries of a host.
    fn vanish(&mut self, at: usize) {
        let host = std::mem::take(&mut self.hosts[at]);
        for one in host.held.into_iter().chain(host.waits) {
            let queue = self.store.0.get_mut(&one.name).unwrap();
            queue.retain(|it| it.entry.token.0 != one.token);
        }
    }

    /// Gives the locks to those whose turn has come.
    fn promote(&mut self) {
        for (lock, slots) in LOCKS.iter().zip(&self.slots) {
            let queue = self.store.0.entry((*lock).to_owned()).or_default();
            if let Some(slots) = slots {
                for slot in 0..*slots {
                    let has = |it: &Aged| it.entry.record.as_ref().unwrap().slot == Some(slot);
                    if !queue.iter().any(has)
                        && let Some(next) = queue.iter_mut().find(|it| !it.entry.has_slot())
                    {
                        next.entry.record.as_mut().unwrap().slot = Some(slot);
                    }
                }
            }
            let entries: Vec<QueueEntry> = queue.iter().map(|it| it.entry.clone()).collect();
            for (entry, holds) in entries.iter().zip(holders(&entries)) {
                let awaits = |it: &&mut Host| {
                    it.waits
                        .as_ref()
                        .is_some_and(|it| it.token == entry.token.0)
                };
                if holds && let Some(host) = self.hosts.iter_mut().find(awaits) {
                    host.held.extend(host.waits.take());
                }
            }
        }
    }

    /// The hosts that still wait when all that can end have ended.
    fn stuck(mut self) -> BTreeSet<usize> {
        loop {
            let ends = |host: &Host| match &host.waits {
                None => !host.held.is_empty(),
                Some(_) => host.limited,
            };
            let Some(at) = self.hosts.iter().position(ends) else {
                let waiting = self.hosts.iter().enumerate();
                return waiting
                    .filter(|(_, it)| it.waits.is_some())
                    .map(|(at, _)| at)
                    .collect();
            };
            self.vanish(at);
            self.promote();
        }
    }

    /// The rings that the hosts find.
    fn rings(&self) -> BTreeMap<usize, Ring> {
        let hosts = self.hosts.iter().enumerate();
        let rings = hosts.filter_map(|(at, host)| {
            let waits = host.waits.as_ref().filter(|_| !host.held.is_empty())?;
            Some((at, self.store.ring(&waits.name, waits.token)?))
        });
        rings.collect()
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lock = (0..6_usize, 0..LOCKS.len(), any::<bool>());
    let lock = lock.prop_map(|(host, lock, shared)| Step::Lock { host, lock, shared });
    let end = (0..6_usize).prop_map(Step::End);
    proptest::collection::vec(prop_oneof![8 => lock, 1 => end], 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 500, ..ProptestConfig::default() })]

    /// "alarm if and only if the wait-for graph has a ring": where the simulation shows waiters that can never go on.
    #[test]
    fn a_ring_is_found_exactly_where_hosts_wait_for_ever(
        steps in steps(), limited in proptest::collection::vec(proptest::bool::weighted(0.15), 6),
        slots in proptest::collection::vec(proptest::option::of(1..4_u16), LOCKS.len()),
    ) {
        let hosts = limited.iter().map(|limited| Host { limited: *limited, ..Host::default() });
        let mut world = World { hosts: hosts.collect(), slots, ..World::default() };
        for step in &steps {
            world.step(step);
        }
        loop {
            let (stuck, rings) = (world.clone().stuck(), world.rings());
            prop_assert_eq!(stuck.is_empty(), rings.is_empty(), "{:?}", &world.hosts);
            let Some((_, ring)) = rings.first_key_value() else { break };
            let is_member = |at: &usize| {
                let waits = world.hosts[*at].waits.as_ref().unwrap();
                let mut entries = ring.entries.iter();
                entries.any(|(_, token, _)| token.0 == waits.token)
            };
            let members: Vec<usize> = rings.keys().copied().filter(is_member).collect();
            // They keep each other from going on, whatever others hold; but a writer may wait between two of them.
            let mut alone = world.clone();
            for at in (0..alone.hosts.len()).filter(|at| !members.contains(at)) {
                let waits = alone.hosts[at].waits.take();
                alone.vanish(at);
                alone.hosts[at].waits = waits;
            }
            alone.promote();
            let still = alone.stuck();
            for at in &members {
                prop_assert!(stuck.contains(at) && still.contains(at));
                prop_assert_eq!(&rings[at].entries, &ring.entries);
            }
            let leavers: Vec<&usize> = members.iter().filter(|at| rings[at].is_ours_to_break).collect();
            prop_assert_eq!(leavers.len(), 1);
            let young = |at: &usize| world.hosts[*at].waits.as_ref().unwrap().token;
            prop_assert_eq!(Some(*leavers[0]), members.iter().copied().max_by_key(young));
            world.vanish(*leavers[0]);
            world.promote();
        }
    }
}

//! The entries of a lock's queue: which of them hold the lock, and which ones a waiter waits for.
//! It must not know the form of keys, nor how the queue is read.

use std::collections::BTreeSet;
use std::time::Duration;

use super::holder::{Holder, StopKind, StopRequest};
use super::lock_delay::Predecessor;
use super::proof::{FencingToken, LeaseId};
use super::request::{Mode, Supersede};
use super::text::printable;
use super::time::LeaseTimings;

/// An entry of the queue, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueEntry {
    pub key: String,
    pub token: FencingToken,
    pub lease: LeaseId,
    /// Revision of its latest change.
    pub mod_revision: i64,
    /// `None` for clients that are not dlock: they want the lock exclusively.
    pub record: Option<Holder>,
}

impl QueueEntry {
    /// The mode that its owner requests.
    pub fn mode(&self) -> Mode {
        let mode = self.record.as_ref().and_then(Holder::mode);
        mode.unwrap_or(Mode::Exclusive)
    }

    /// The key, if it is in etcd and has no lease. A local entry has no revision.
    pub fn permanent(&self) -> Option<PermanentKey> {
        let is_permanent = self.lease == LeaseId::NONE && self.mod_revision > 0;
        is_permanent.then(|| PermanentKey::new(self.key.clone(), self.token))
    }

    /// Whether its owner has one of the slots.
    pub fn has_slot(&self) -> bool {
        let slot = self.record.as_ref().and_then(|record| record.slot);
        slot.is_some()
    }

    /// Time that the command of its owner, or an earlier one, may need to end, never more than a dlock can have; `None` for
    /// clients that announce none, and when no command runs any more.
    pub fn grace(&self) -> Option<Duration> {
        let grace = self
            .record
            .as_ref()?
            .grace()
            .min(LeaseTimings::longest_grace());
        (!self.is_cooling() || !grace.is_zero()).then_some(grace)
    }

    /// Whether its owner runs no command and the entry only keeps the lock taken for a while.
    pub fn is_cooling(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.cooling)
    }

    /// Whether its owner has told that its turn has come and that its command has not started.
    pub fn is_pending(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.pending)
    }

    /// Whether it is kept for the command of a vanished holder.
    pub fn is_kept(&self) -> bool {
        self.is_cooling() && self.grace().is_some()
    }

    /// Whether its grace covers the entries before it, so that a waiter need not read those.
    fn covers(&self) -> bool {
        self.record.is_some() && !self.is_kept()
    }

    /// The entry as a predecessor of later ones; `None` if no command of it counts.
    pub fn predecessor(&self) -> Option<Predecessor> {
        let grace = self.grace()?;
        Some(Predecessor::new(self.lease, self.token, grace))
    }
}

/// The key of an entry that has no lease, which no dlock creates: it keeps the lock until somebody deletes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermanentKey {
    key: String,
    pub token: FencingToken,
}

impl PermanentKey {
    pub const fn new(key: String, token: FencingToken) -> Self {
        Self { key, token }
    }

    /// For people.
    pub fn describe(&self) -> String {
        printable(&format!(
            "its key '{}' has no lease, so it never expires",
            self.key
        ))
    }

    /// How to delete it.
    pub fn remedy(&self, name: &str) -> String {
        printable(&format!(
            "when no command runs under it: dlock break '{name}' --token {} --now --yes",
            self.token
        ))
    }
}

/// A slot's key whose entry is gone: no request for a slot knows whom to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrphanSlot {
    pub key: String,
    pub lease: LeaseId,
}

impl OrphanSlot {
    /// The first of the slots `taken`, given with their leases, whose entry is gone. A cooldown moves a slot and its entry to
    /// another lease, and the key of the entry keeps its name, so the leases under which the `entries` are now count.
    pub fn find(
        taken: impl IntoIterator<Item = (String, LeaseId)>,
        entries: &BTreeSet<LeaseId>,
    ) -> Option<Self> {
        // No dlock writes a slot without a lease.
        let is_orphan = |lease| lease == LeaseId::NONE || !entries.contains(&lease);
        let found = taken.into_iter().find(|(_, lease)| is_orphan(*lease));
        found.map(|(key, lease)| Self { key, lease })
    }

    /// For people.
    pub fn describe(&self) -> String {
        let end = match self.lease {
            LeaseId::NONE => "it has no lease, so it never expires".to_owned(),
            lease => format!("it ends with the lease {lease}"),
        };
        printable(&format!(
            "the slot '{}' is taken and its entry in the queue is gone: {end}",
            self.key
        ))
    }

    /// How to free it.
    pub fn remedy(&self) -> String {
        printable(&format!(
            "when no command runs under it: etcdctl del '{}'",
            self.key
        ))
    }
}

/// The result of a [`BlockerScan`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blockers {
    /// The entries whose end, or change, must be waited for. Empty: the lock is acquired.
    pub entries: Vec<QueueEntry>,
    /// All entries that were read, with their modes; `None` for those that do not cover the ones before them.
    pub present: Vec<(FencingToken, Option<Mode>)>,
}

impl Blockers {
    /// The entries to wait for whose commands count.
    pub fn predecessors(&self) -> Vec<Predecessor> {
        let blockers = self.entries.iter();
        blockers.filter_map(QueueEntry::predecessor).collect()
    }

    /// Whether an entry with this token was read.
    pub fn contains(&self, token: FencingToken) -> bool {
        self.present.iter().any(|(one, _)| *one == token)
    }

    /// The entries of `before`, an earlier list of blockers, that are gone. The delay of a kept entry is known already.
    pub fn gone(&self, before: &[QueueEntry]) -> Vec<Predecessor> {
        let gone = before
            .iter()
            .filter(|one| !one.is_kept() && !self.contains(one.token));
        gone.filter_map(QueueEntry::predecessor).collect()
    }

    /// Whether the grace of an entry that is gone matters: it may have held the lock, or may have waited for one that
    /// vanished unseen. If an entry before it covers all others, it was a waiter that gave up.
    pub fn may_have_held(&self, gone: &QueueEntry) -> bool {
        let mut before = self.present.iter().filter(|(token, _)| *token < gone.token);
        match gone.mode() {
            Mode::Exclusive | Mode::Shared => {
                before.all(|(_, mode)| matches!(mode, None | Some(Mode::Shared)))
            }
            Mode::Slots(slots) => gone.has_slot() || before.count() < slots.into(),
        }
    }
}

/// Reads the entries before a waiter, from the nearest to the farthest, as far as necessary.
///
/// - An exclusive request waits for the entry right before it, or for all shared ones there.
/// - A shared request waits for the nearest entry that is not shared, so later readers do not starve a writer.
/// - If that entry does not cover those before it, both also wait for the nearest earlier one that does: `etcdctl lock`
///   announces no grace, so the waiter must watch the entries before it.
/// - A request for a slot waits for the entry right before it to get a slot; the first waiter waits for any holder to
///   end. So each release wakes one waiter. Clients without slots come first.
#[derive(Debug)]
pub struct BlockerScan {
    mode: Mode,
    entries: Vec<QueueEntry>,
}

impl BlockerScan {
    /// A scan for a request in this mode.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            entries: Vec::new(),
        }
    }

    /// Adds the next entry. Returns whether the scan needs more.
    pub fn push(&mut self, entry: QueueEntry) -> bool {
        let (mode, covers) = (entry.mode(), entry.covers());
        let readers = self.mode == Mode::Exclusive
            && self.entries.iter().any(|one| one.mode() == Mode::Shared);
        self.entries.push(entry);
        match self.mode {
            Mode::Exclusive | Mode::Shared => mode == Mode::Shared || (!covers && !readers),
            Mode::Slots(slots) => {
                self.entries.len() < slots.into()
                    || self.entries.first().is_some_and(QueueEntry::has_slot)
            }
        }
    }

    /// The entries to wait for.
    pub fn finish(self) -> Blockers {
        let Self {
            mode,
            entries: mut seen,
        } = self;
        let mode_of = |one: &QueueEntry| one.covers().then(|| one.mode());
        let present = seen.iter().map(|one| (one.token, mode_of(one))).collect();
        let blockers = match mode {
            Mode::Exclusive => {
                // Shared entries cover the exclusive one before them.
                if seen.iter().any(|one| one.mode() == Mode::Shared)
                    && seen.last().is_some_and(|one| one.mode() != Mode::Shared)
                {
                    seen.pop();
                }
                nearest_and_covering(seen)
            }
            Mode::Shared => {
                seen.retain(|entry| entry.mode() != Mode::Shared);
                nearest_and_covering(seen)
            }
            Mode::Slots(slots) => {
                let stranger = seen.iter().position(|entry| {
                    !entry.mode().is_compatible_with(mode) || entry.record.is_none()
                });
                if let Some(stranger) = stranger {
                    vec![seen.swap_remove(stranger)]
                } else if seen.len() < slots.into() {
                    Vec::new()
                } else {
                    if !seen[0].has_slot() {
                        seen.truncate(1);
                    }
                    seen
                }
            }
        };
        Blockers {
            entries: blockers,
            present,
        }
    }
}

/// The nearest entry of `seen`, and those that cover the ones before them.
fn nearest_and_covering(seen: Vec<QueueEntry>) -> Vec<QueueEntry> {
    let seen = seen.into_iter().enumerate();
    let seen = seen.filter(|(position, one)| *position == 0 || one.covers());
    seen.map(|(_, one)| one).collect()
}

/// For each entry of a whole queue, the oldest first, whether it holds the lock.
pub fn holders(queue: &[QueueEntry]) -> Vec<bool> {
    let mut all_shared = true;
    let holds = queue.iter().enumerate().map(|(position, entry)| {
        let mode = entry.mode();
        all_shared &= mode == Mode::Shared;
        match mode {
            Mode::Exclusive => position == 0,
            Mode::Shared => all_shared,
            Mode::Slots(_) => entry.has_slot(),
        }
    });
    holds.collect()
}

/// The entries `before` a newer request that must still be asked to give up, and the kind of request for each.
///
/// The newest come first and the holder last: else a waiter would get the lock before it is asked. If the holder must
/// give up, a waiter that gets the lock at that time is asked to stop as well. Clients that are not dlock cannot be
/// asked, and a cooldown has no process that could answer.
pub fn superseded(before: &[QueueEntry], request: Supersede) -> Vec<(&QueueEntry, StopKind)> {
    let places = before.iter().zip(holders(before)).rev();
    let to_ask = places.filter_map(|(entry, holds)| {
        let record = entry.record.as_ref()?;
        let to = match request {
            Supersede::Holder => StopKind::Stop,
            Supersede::Waiters if holds && !entry.is_pending() => return None,
            Supersede::Waiters => StopKind::Yield,
        };
        let is_asked = |ask: &StopRequest| ask.to == to || ask.to == StopKind::Stop;
        let listens = !entry.is_cooling() && !record.asked.as_ref().is_some_and(is_asked);
        listens.then_some((entry, to))
    });
    to_ask.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(token: i64, mode: Option<Mode>, slot: bool) -> QueueEntry {
        QueueEntry {
            key: format!("k{token}"),
            token: FencingToken(token),
            lease: LeaseId(token),
            mod_revision: token,
            record: mode.map(|mode| Holder {
                slot: slot.then_some(0),
                ..Holder::new(mode, Duration::from_secs(5))
            }),
        }
    }

    /// The tokens that a request in this mode waits for behind `before`, which is given from the oldest on.
    fn waits_for(mode: Mode, before: &[(Option<Mode>, bool)]) -> Vec<i64> {
        let mut scan = BlockerScan::new(mode);
        for (token, (mode, slot)) in (1..).zip(before).collect::<Vec<_>>().into_iter().rev() {
            if !scan.push(entry(token, *mode, *slot)) {
                break;
            }
        }
        let tokens = scan.finish().entries;
        tokens.iter().map(|entry| entry.token.0).collect()
    }

    const WRITER: (Option<Mode>, bool) = (Some(Mode::Exclusive), false);
    const READER: (Option<Mode>, bool) = (Some(Mode::Shared), false);
    const OTHER: (Option<Mode>, bool) = (None, false);
    const INSIDE: (Option<Mode>, bool) = (Some(Mode::Slots(2)), true);
    const WAITING: (Option<Mode>, bool) = (Some(Mode::Slots(2)), false);

    /// The tokens of the entries that are asked to give up, with the kind of request.
    fn asked(before: &[QueueEntry], request: Supersede) -> Vec<(i64, StopKind)> {
        let asked = superseded(before, request).into_iter();
        asked.map(|(one, to)| (one.token.0, to)).collect()
    }

    fn asked_to(to: StopKind, entry: QueueEntry) -> QueueEntry {
        let by = String::new();
        let asked = Some(StopRequest {
            to,
            by,
            why: None,
            now: false,
        });
        QueueEntry {
            record: entry.record.map(|record| Holder { asked, ..record }),
            ..entry
        }
    }

    #[test]
    fn a_newer_request_asks_the_entries_before_it_the_holder_last() {
        let queue = [1, 2, 3].map(|token| entry(token, Some(Mode::Exclusive), false));
        let waiters = [(3, StopKind::Yield), (2, StopKind::Yield)];
        assert_eq!(asked(&queue, Supersede::Waiters), waiters);
        // A waiter that gets the lock meanwhile must stop as well.
        let all = [
            (3, StopKind::Stop),
            (2, StopKind::Stop),
            (1, StopKind::Stop),
        ];
        assert_eq!(asked(&queue, Supersede::Holder), all);
    }

    /// "All earlier waiters end" (dlock-run(1)): also the first of the queue, as long as its command has not started.
    #[test]
    fn a_first_entry_that_has_not_started_is_asked_as_a_waiter() {
        let mut queue = [1, 2].map(|token| entry(token, Some(Mode::Exclusive), false));
        queue[0].record.as_mut().unwrap().pending = true;
        let both = [(2, StopKind::Yield), (1, StopKind::Yield)];
        assert_eq!(asked(&queue, Supersede::Waiters), both);
    }

    #[test]
    fn only_owners_that_run_and_were_not_asked_yet_are_asked() {
        let waiter = |token| entry(token, Some(Mode::Exclusive), false);
        let cooling = QueueEntry {
            record: Some(Holder {
                cooling: true,
                ..Holder::new(Mode::Exclusive, Duration::ZERO)
            }),
            ..waiter(1)
        };
        let queue = [
            cooling,
            entry(2, None, false),
            asked_to(StopKind::Yield, waiter(3)),
            asked_to(StopKind::Stop, waiter(4)),
            waiter(5),
        ];
        let waiters = [(5, StopKind::Yield)];
        assert_eq!(asked(&queue, Supersede::Waiters), waiters);
        let all = [(5, StopKind::Stop), (3, StopKind::Stop)];
        assert_eq!(asked(&queue, Supersede::Holder), all);
    }

    #[test]
    fn a_writer_waits_for_the_one_before_it_or_for_all_readers_there() {
        assert!(waits_for(Mode::Exclusive, &[]).is_empty());
        assert_eq!(waits_for(Mode::Exclusive, &[WRITER, WRITER]), [2]);
        assert_eq!(
            waits_for(Mode::Exclusive, &[WRITER, READER, READER]),
            [3, 2]
        );
        assert_eq!(waits_for(Mode::Exclusive, &[READER, OTHER, READER]), [3]);
    }

    #[test]
    fn an_entry_before_one_that_announces_nothing_is_waited_for_as_well() {
        for mode in [Mode::Exclusive, Mode::Shared] {
            assert_eq!(waits_for(mode, &[OTHER, OTHER]), [2]);
            assert_eq!(waits_for(mode, &[WRITER, OTHER]), [2, 1]);
            assert_eq!(waits_for(mode, &[WRITER, WRITER, OTHER, OTHER]), [4, 2]);
        }
        let readers = [WRITER, READER, READER, OTHER];
        assert_eq!(waits_for(Mode::Exclusive, &readers), [4, 3, 2]);
        assert_eq!(waits_for(Mode::Shared, &readers), [4, 1]);
        let mut scan = BlockerScan::new(Mode::Exclusive);
        assert!(scan.push(cooling(3, 5)));
        assert!(!scan.push(entry(2, Some(Mode::Exclusive), false)));
        assert_eq!(scan.finish().entries.len(), 2);
        let mut scan = BlockerScan::new(Mode::Exclusive);
        assert!(!scan.push(cooling(3, 0)), "nothing runs any more");
    }

    /// A kept entry, for a command with a grace of `grace` seconds.
    fn cooling(token: i64, grace: u64) -> QueueEntry {
        let mut entry = entry(token, Some(Mode::Exclusive), false);
        entry.record = entry.record.map(|record| Holder {
            cooling: true,
            ..record.with_grace(Duration::from_secs(grace))
        });
        entry
    }

    #[test]
    fn a_cooldown_protects_no_command_unless_it_announces_a_grace() {
        assert_eq!(cooling(3, 0).predecessor(), None);
        let kept = cooling(3, 5);
        let grace = kept.predecessor().map(|one| one.grace());
        assert_eq!(grace, Some(Duration::from_secs(5)));
        assert!(
            Blockers::default().gone(&[kept]).is_empty(),
            "its end is known"
        );
    }

    #[test]
    fn a_reader_waits_for_the_nearest_writer() {
        assert!(waits_for(Mode::Shared, &[READER, READER]).is_empty());
        assert_eq!(waits_for(Mode::Shared, &[WRITER, WRITER, READER]), [2]);
        assert_eq!(waits_for(Mode::Shared, &[OTHER, READER, READER]), [1]);
        assert_eq!(waits_for(Mode::Shared, &[WRITER, READER, OTHER]), [3, 1]);
    }

    #[test]
    fn a_request_for_a_slot_waits_for_the_waiter_before_it_or_for_any_holder() {
        let two = Mode::Slots(2);
        assert!(waits_for(two, &[INSIDE]).is_empty());
        assert!(waits_for(two, &[WAITING]).is_empty());
        assert_eq!(waits_for(two, &[INSIDE, INSIDE]), [2, 1]);
        assert_eq!(waits_for(two, &[INSIDE, INSIDE, WAITING]), [3]);
        assert_eq!(waits_for(two, &[INSIDE, WAITING]), [2]);
        assert_eq!(waits_for(two, &[OTHER]), [1]);
        assert_eq!(waits_for(two, &[INSIDE, OTHER]), [2]);
        assert_eq!(waits_for(two, &[(Some(Mode::Slots(3)), true)]), [1]);
    }

    #[test]
    fn an_entry_behind_others_cannot_have_held_the_lock() {
        let turn = |present: &[(i64, Mode)]| Blockers {
            entries: Vec::new(),
            present: present
                .iter()
                .map(|(token, mode)| (FencingToken(*token), Some(*mode)))
                .collect(),
        };
        let (writer, reader) = (Mode::Exclusive, Mode::Shared);
        let gone = |mode| entry(5, Some(mode), false);
        assert!(turn(&[]).may_have_held(&gone(writer)));
        assert!(turn(&[(6, writer)]).may_have_held(&gone(writer)));
        assert!(!turn(&[(4, writer)]).may_have_held(&gone(writer)));
        // It may have waited for another reader, or for an entry before the client that announces no grace.
        assert!(turn(&[(4, reader)]).may_have_held(&gone(writer)));
        let stranger = Blockers {
            present: vec![(FencingToken(4), None)],
            ..Blockers::default()
        };
        assert!(stranger.may_have_held(&gone(writer)));
        assert!(turn(&[(4, reader)]).may_have_held(&gone(reader)));
        assert!(!turn(&[(4, reader), (3, writer)]).may_have_held(&gone(reader)));
        let two = Mode::Slots(2);
        assert!(turn(&[(4, two)]).may_have_held(&gone(two)));
        assert!(!turn(&[(4, two), (3, two)]).may_have_held(&gone(two)));
        let inside = entry(5, Some(two), true);
        assert!(turn(&[(4, two), (3, two)]).may_have_held(&inside));
    }

    #[test]
    fn the_holders_follow_from_the_queue() {
        let holds = |queue: &[(Option<Mode>, bool)]| {
            let queue: Vec<QueueEntry> = (1..)
                .zip(queue)
                .map(|(token, (mode, slot))| entry(token, *mode, *slot))
                .collect();
            holders(&queue)
        };
        assert_eq!(holds(&[OTHER, WRITER, READER]), [true, false, false]);
        assert_eq!(
            holds(&[READER, READER, WRITER, READER]),
            [true, true, false, false]
        );
        assert_eq!(holds(&[INSIDE, INSIDE, WAITING]), [true, true, false]);
        assert!(holds(&[]).is_empty());
    }

    /// A queue in which each waiter reads only when one of its blockers changes.
    #[derive(Default)]
    struct Line {
        places: BTreeMap<i64, (Option<Mode>, bool)>,
        waiting: BTreeMap<i64, Vec<i64>>,
        holding: Vec<i64>,
        next: i64,
    }

    impl Line {
        fn look(&mut self, token: i64) {
            // Clients that are not dlock wait for all entries before them.
            let (mode, _) = self.places[&token];
            let before: Vec<_> = self.places.range(..token).map(|(_, one)| *one).collect();
            let tokens: Vec<i64> = self
                .places
                .range(..token)
                .map(|(token, _)| *token)
                .collect();
            let blockers = match mode {
                None => tokens.last().copied().into_iter().collect(),
                Some(mode) => waits_for(mode, &before)
                    .into_iter()
                    .map(|position| tokens[usize::try_from(position).unwrap() - 1])
                    .collect::<Vec<_>>(),
            };
            if blockers.is_empty() {
                self.waiting.remove(&token);
                self.holding.push(token);
                if let Some(Mode::Slots(_)) = mode {
                    self.places.insert(token, (mode, true));
                    self.wake(token);
                }
            } else {
                self.waiting.insert(token, blockers);
            }
        }

        fn wake(&mut self, moved: i64) {
            let woken = self
                .waiting
                .iter()
                .filter(|(_, blockers)| blockers.contains(&moved));
            for token in woken.map(|(token, _)| *token).collect::<Vec<_>>() {
                self.look(token);
            }
        }

        fn enter(&mut self, mode: Option<Mode>) {
            self.next += 1;
            self.places.insert(self.next, (mode, false));
            self.look(self.next);
        }

        fn leave(&mut self, token: i64) {
            self.places.remove(&token);
            self.waiting.remove(&token);
            self.holding.retain(|holder| *holder != token);
            self.wake(token);
        }

        fn check(&self) {
            let modes: Vec<Option<Mode>> = self
                .holding
                .iter()
                .map(|token| self.places[token].0)
                .collect();
            let fit = match modes.iter().flatten().next() {
                Some(Mode::Shared) => modes.iter().all(|mode| *mode == Some(Mode::Shared)),
                Some(Mode::Slots(slots)) => {
                    modes.len() <= usize::from(*slots) && modes.iter().all(|mode| *mode == modes[0])
                }
                Some(Mode::Exclusive) | None => modes.len() <= 1,
            };
            assert!(fit, "these hold together: {modes:?}");
            assert!(
                self.places.is_empty() || !self.holding.is_empty(),
                "all sleep: {:?}",
                self.waiting
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// In any order of joining and leaving, the holders' modes are compatible, and no waiter misses that it may hold
        /// the lock.
        #[test]
        fn holders_are_compatible_and_no_waiter_misses_its_turn(
            slots in 1..5_u16,
            by_slots in any::<bool>(),
            steps in proptest::collection::vec((any::<bool>(), 0..100_usize), 1..60),
        ) {
            let kinds = if by_slots {
                [Some(Mode::Slots(slots)), Some(Mode::Slots(slots)), None]
            } else {
                [Some(Mode::Shared), Some(Mode::Exclusive), None]
            };
            let mut line = Line::default();
            for (enters, dice) in steps {
                if enters || line.places.is_empty() {
                    line.enter(kinds[dice % kinds.len()]);
                } else {
                    let token = *line.places.keys().nth(dice % line.places.len()).unwrap();
                    line.leave(token);
                }
                line.check();
            }
            while let Some(token) = line.holding.first().copied() {
                line.leave(token);
                line.check();
            }
            prop_assert!(line.places.is_empty());
        }
    }
}

//! The random choice of the next fault, its target, time and duration.
//! It must not know what a fault does, nor read anything that the same seed would not repeat.

use std::time::Duration;

use super::rng::Rng;
use crate::support::{Bait, Direction, Lost, Mode};

/// Number of hosts whose dlocks contend for the main lock.
pub(super) const CONTENDERS: usize = 4;
/// Those, and the hosts whose dlocks use other locks, in other ways.
pub(super) const ALL: usize = CONTENDERS + 3;
/// Those, and the host of the two dlocks that survive everything.
const HOSTS: usize = ALL + 1;
const MEMBERS: usize = 3;

/// A fault of the members, or of the links from one host to them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outage {
    StopLeader,
    StopMember(usize),
    /// This one and the next: no quorum is left.
    StopTwo(usize),
    KillLeader,
    KillMember(usize),
    /// The members have no space for another key.
    NoSpace,
    /// Bytes are dropped, held or delayed, in the direction or in both.
    Slow(Mode, Option<Direction>),
    /// Connections are closed and refused.
    Refuse,
    /// Connections are closed.
    Cut,
    CutHalf(Direction),
    Reset(Direction),
    /// A chosen request, or its answer, is lost with the connection, the given number of times in a row.
    Lose(Lost, Bait, u32),
}

/// A fault of the processes or the clock of one host.
#[derive(Clone, Copy, Debug)]
pub(super) enum Blow {
    KillDlock,
    StopDlock,
    KillGuard,
    StopGuard,
    /// One process of the command's tree; the number selects it.
    KillDescendant(usize),
    StopDescendant(usize),
    /// The wall clock jumps, and back.
    Jump(&'static str),
}

/// The time of its begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Now,
    /// A command under the lock has ended.
    End,
    /// An entry of the lock's queue is gone.
    Release,
    /// An entry of the lock's queue is new.
    Entry,
}

/// One or two faults at the same time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strike {
    pub(super) moment: Moment,
    pub(super) outage: Option<(Outage, Ways)>,
    pub(super) blow: Option<(Blow, Target)>,
    pub(super) hand: Option<Hand>,
    pub(super) lasts: Duration,
    /// Time until the next one.
    pub(super) peace: Duration,
}

/// The links between one host and its members.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ways {
    pub(super) host: Target,
    /// The link to this member only.
    pub(super) member: Option<usize>,
}

/// The host of a fault.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// The holder of the lock at that moment, or this host if there is none.
    HolderOr(usize),
    Host(usize),
}

/// Keys that a third party deletes, and the event right before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hand {
    pub(super) before: Before,
    /// Time between that and the first deletion.
    pub(super) after: Duration,
    pub(super) acts: [Option<Act>; 3],
    pub(super) gap: Duration,
}

/// A fault right before a third party acts. None of them cuts a holder off from etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Nothing,
    Cut,
    CutHalf(Direction),
    Reset(Direction),
    /// The member that serves the holder drops everything, for the whole time.
    FailOver(usize),
    /// This member is killed and started again.
    Restart(usize),
    /// The next waiter's dlock is killed.
    KillNext,
}

/// An act of a third party with etcdctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Revokes the lease of the first entry.
    Revoke,
    /// Deletes the key of the first entry.
    Delete,
    /// Deletes the key of the second entry.
    DeleteNext,
    /// Deletes the whole queue.
    DeleteAll,
    /// Revokes the lease of a lock that `dlock hold` holds without a process.
    RevokeBorrowed,
}

impl Strike {
    pub(super) fn next(dice: &mut Rng) -> Self {
        let outage = (outage(dice), ways(dice));
        let blow = (blow(dice), target(dice, ALL));
        let hand = hand(dice);
        let moments = [Moment::End, Moment::Release, Moment::Entry];
        let moment = dice.one_of(&moments);
        let moment = if dice.one_in(3) { moment } else { Moment::Now };
        let (strikes_members, strikes_host, is_hand) = dice.one_of(&[
            (true, false, false),
            (true, false, false),
            (true, true, false),
            (false, true, false),
            (false, true, false),
            (false, false, true),
            (false, false, true),
            (false, false, true),
            (false, false, false),
        ]);
        // Less than the timeout of a renewal, or up to more than the TTL.
        let (from, to) = dice.one_of(&[(200, 2000), (200, 2000), (2000, 8000)]);
        Self {
            moment,
            outage: strikes_members.then_some(outage),
            blow: strikes_host.then_some(blow),
            hand: is_hand.then_some(hand),
            lasts: dice.span(from, to),
            peace: dice.span(300, 1800),
        }
    }
}

/// Mostly the holder of the lock: faults of waiters find less.
fn target(dice: &mut Rng, hosts: usize) -> Target {
    let host = dice.below(hosts);
    if dice.one_in(3) {
        Target::Host(host)
    } else {
        Target::HolderOr(host)
    }
}

fn ways(dice: &mut Rng) -> Ways {
    let host = target(dice, HOSTS);
    let member = dice.below(MEMBERS);
    Ways {
        host,
        member: dice.one_in(4).then_some(member),
    }
}

fn outage(dice: &mut Rng) -> Outage {
    let member = dice.below(MEMBERS);
    let direction = dice.one_of(&[Direction::ToServer, Direction::ToClient]);
    let late = Mode::Delay(Duration::from_millis(400));
    let mode = dice.one_of(&[Mode::Drop, Mode::Hold, late]);
    let some = dice.one_in(3).then_some(direction);
    let lose = |dice: &mut Rng| {
        let lost = dice.one_of(&[Lost::Request, Lost::Answer]);
        // The bytes of a record, of a release record, of a mark, and of the next request, such as a grant or a renewal.
        let after = Bait::After(u32::try_from(dice.below(8)).expect("a small number"));
        let bait = dice.one_of(&[
            Bait::Bytes("grace_ms"),
            Bait::Bytes("dlock/released/"),
            Bait::Bytes("dlock/once/"),
            Bait::Bytes("dlock/slot/"),
            after,
            after,
        ]);
        let times = dice.one_of(&[1, 1, 2, 3]);
        Outage::Lose(lost, bait, times)
    };
    let (lose_one, lose_other) = (lose(dice), lose(dice));
    dice.one_of(&[
        Outage::StopLeader,
        Outage::StopMember(member),
        Outage::StopTwo(member),
        Outage::KillLeader,
        Outage::KillMember(member),
        Outage::NoSpace,
        Outage::Slow(mode, some),
        Outage::Slow(mode, some),
        Outage::Slow(mode, some),
        Outage::Refuse,
        Outage::Cut,
        Outage::CutHalf(direction),
        Outage::Reset(direction),
        lose_one,
        lose_other,
        lose_other,
    ])
}

fn blow(dice: &mut Rng) -> Blow {
    let which = dice.below(100);
    let jump = dice.one_of(&["-1h", "+5", "+400d"]);
    dice.one_of(&[
        Blow::KillDlock,
        Blow::StopDlock,
        Blow::KillGuard,
        Blow::StopGuard,
        Blow::KillDescendant(which),
        Blow::StopDescendant(which),
        Blow::Jump(jump),
    ])
}

fn hand(dice: &mut Rng) -> Hand {
    let direction = dice.one_of(&[Direction::ToServer, Direction::ToClient]);
    let member = dice.below(MEMBERS);
    let before = dice.one_of(&[
        Before::Nothing,
        Before::Cut,
        Before::CutHalf(direction),
        Before::Reset(direction),
        Before::Reset(direction),
        Before::FailOver(member),
        Before::Restart(member),
        Before::KillNext,
    ]);
    let act = |dice: &mut Rng| {
        dice.one_of(&[
            Act::Revoke,
            Act::Revoke,
            Act::Delete,
            Act::DeleteNext,
            Act::DeleteAll,
            Act::RevokeBorrowed,
        ])
    };
    let (first, second, third) = (act(dice), act(dice), act(dice));
    let more = dice.below(4);
    Hand {
        before,
        after: dice.span(0, 600),
        acts: [
            Some(first),
            (more > 1).then_some(second),
            (more > 2).then_some(third),
        ],
        gap: dice.span(0, 1500),
    }
}

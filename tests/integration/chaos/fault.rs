//! Which fault comes next, on whom, at which moment and for how long, by the dice.
//! It must not know what a fault does, nor look at anything that the same seed would not bring again.

use std::time::Duration;

use super::rng::Rng;
use crate::support::{Bait, Direction, Lost, Mode};

/// Hosts whose dlock contends for the lock that all of this is about.
pub(super) const CONTENDERS: usize = 4;
/// Those, and the hosts whose dlocks use other locks, in other ways.
pub(super) const ALL: usize = CONTENDERS + 3;
/// Those, and the host whose two dlocks outlive everything.
const HOSTS: usize = ALL + 1;
const MEMBERS: usize = 3;

/// A fault of the members, or of the ways from one host to them.
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
    /// Bytes are swallowed, held or late, in the direction or in both.
    Slow(Mode, Option<Direction>),
    /// Connections are closed and refused.
    Refuse,
    /// Connections are closed.
    Cut,
    CutHalf(Direction),
    Reset(Direction),
    /// A chosen request is lost, or its answer, and the connection with it, so many times in a row.
    Lose(Lost, Bait, u32),
}

/// A fault of the processes or the clock of one host.
#[derive(Clone, Copy, Debug)]
pub(super) enum Blow {
    KillDlock,
    StopDlock,
    KillGuard,
    StopGuard,
    /// One process of the command's tree; the number chooses.
    KillDescendant(usize),
    StopDescendant(usize),
    /// The wall clock jumps, and back.
    Jump(&'static str),
}

/// When it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Now,
    /// A command under the lock has come to its end.
    End,
    /// A place in the lock's queue has gone.
    Release,
    /// A place in the lock's queue is new.
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
    /// Until the next one.
    pub(super) peace: Duration,
}

/// The ways between one host and its members.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ways {
    pub(super) host: Target,
    /// The way to this member only.
    pub(super) member: Option<usize>,
}

/// Which host is meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// The holder of the lock at that moment, or this host if there is none.
    HolderOr(usize),
    Host(usize),
}

/// Keys that a third hand takes away, and what happens right before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hand {
    pub(super) before: Before,
    /// Between that and the first act.
    pub(super) after: Duration,
    pub(super) acts: [Option<Act>; 3],
    pub(super) gap: Duration,
}

/// A fault right before a third hand comes. None of it cuts a holder off from etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Nothing,
    Cut,
    CutHalf(Direction),
    Reset(Direction),
    /// The member that the holder has talked to swallows everything, for as long as all of this lasts.
    FailOver(usize),
    /// This member is killed and started again.
    Restart(usize),
    /// The dlock that waits next is killed.
    KillNext,
}

/// An act of a third hand with etcdctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Revokes the lease of the first in the queue.
    Revoke,
    /// Deletes the key of the first in the queue.
    Delete,
    /// Deletes the key of the one behind it.
    DeleteNext,
    /// Deletes the whole queue.
    DeleteAll,
    /// Revokes the lease of a lock that `dlock hold` keeps for nobody.
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
        // Less than a renewal takes to be given up, or up to more than the term.
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

/// Mostly the one that holds the lock: faults of waiters find less.
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
        // Bytes of a record, of a release record, of a mark, and of the next request, as a grant or a renewal.
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

//! Numbers that a seed decides, and which fault comes next by them.
//! It must not know what a fault does, nor look at anything that the same seed would not bring again.

use std::time::Duration;

use crate::support::{Direction, Mode};

/// Hosts whose dlock contends for the lock.
pub(super) const CONTENDERS: usize = 4;
/// Those, and the host whose two dlocks outlive everything.
const HOSTS: usize = CONTENDERS + 1;
const MEMBERS: usize = 3;

/// A sequence of numbers that a seed decides (`SplitMix64`, <https://prng.di.unimi.it/splitmix64.c>).
pub(super) struct Dice(u64);

impl Dice {
    /// Throws of their own for everybody who throws at moments that a seed does not decide.
    pub(super) fn of(seed: u64, who: usize) -> Self {
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

    /// A time between two, in milliseconds.
    pub(super) fn span(&mut self, from: usize, to: usize) -> Duration {
        let span = from + self.below(to - from);
        Duration::from_millis(span.try_into().expect("64 bits"))
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// What befalls the members, or the ways from one host to them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outage {
    StopLeader,
    StopMember(usize),
    /// This one and the next: no quorum is left.
    StopTwo(usize),
    KillMember(usize),
    /// Bytes are swallowed, held or late, in the direction or in both.
    Slow(Mode, Option<Direction>),
    /// Connections are closed and refused.
    Refuse,
    /// Connections are closed.
    Cut,
    CutHalf(Direction),
    Reset(Direction),
}

/// What befalls the processes or the clock of one host.
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

/// One or two faults at the same time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strike {
    pub(super) outage: Option<(Outage, Ways)>,
    pub(super) blow: Option<(Blow, Target)>,
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
    /// Whoever holds the lock at that moment, or this one if nobody does.
    HolderOr(usize),
    Host(usize),
}

impl Strike {
    pub(super) fn next(dice: &mut Dice) -> Self {
        let outage = (outage(dice), ways(dice));
        let blow = (blow(dice), target(dice, CONTENDERS));
        let (strikes_members, strikes_host) = dice.one_of(&[
            (true, false),
            (true, false),
            (true, true),
            (false, true),
            (false, true),
        ]);
        // Less than a renewal takes to be given up, or up to more than the term.
        let (from, to) = dice.one_of(&[(200, 2000), (2000, 8000)]);
        Self {
            outage: strikes_members.then_some(outage),
            blow: strikes_host.then_some(blow),
            lasts: dice.span(from, to),
            peace: dice.span(300, 1800),
        }
    }
}

/// Mostly the one that holds the lock: faults of waiters find less.
fn target(dice: &mut Dice, hosts: usize) -> Target {
    let host = dice.below(hosts);
    if dice.one_in(4) {
        Target::Host(host)
    } else {
        Target::HolderOr(host)
    }
}

fn ways(dice: &mut Dice) -> Ways {
    let host = target(dice, HOSTS);
    let member = dice.below(MEMBERS);
    Ways {
        host,
        member: dice.one_in(4).then_some(member),
    }
}

fn outage(dice: &mut Dice) -> Outage {
    let member = dice.below(MEMBERS);
    let direction = dice.one_of(&[Direction::ToServer, Direction::ToClient]);
    let late = Mode::Delay(Duration::from_millis(400));
    let mode = dice.one_of(&[Mode::Drop, Mode::Hold, late]);
    let some = dice.one_in(3).then_some(direction);
    dice.one_of(&[
        Outage::StopLeader,
        Outage::StopMember(member),
        Outage::StopTwo(member),
        Outage::KillMember(member),
        Outage::Slow(mode, some),
        Outage::Slow(mode, some),
        Outage::Slow(mode, some),
        Outage::Refuse,
        Outage::Cut,
        Outage::CutHalf(direction),
        Outage::Reset(direction),
    ])
}

fn blow(dice: &mut Dice) -> Blow {
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

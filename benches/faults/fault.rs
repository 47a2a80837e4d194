//! The matrix: the faults, their durations, and what each demands of a holder.
//! It must not know how a fault is caused.

use std::time::Duration;

use crate::command::Shape;
use crate::tool::{Tool, installed};

/// The behaviour of a good lock under a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// The waiter gets the lock when, and only when, no process of the command lives.
    HandOver,
    /// The command ends by itself.
    Survive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strike {
    RevokeLease,
    DeleteKey,
    KillServer,
    RestartServer,
    StopServer,
    /// Connections are closed and refused.
    Cut,
    /// Bytes vanish in both directions.
    BlackHole,
    /// Bytes are held back and arrive in one burst.
    Hold,
    /// The answers vanish, the requests arrive.
    LoseAnswers,
    StopLeader,
    KillLeader,
    /// The leader and another one of three members are stopped.
    StopMajority,
    KillHolder,
    StopHolder,
    /// The command is stopped, its holder is killed; later the command is continued.
    StopCommandKillHolder,
    KillGuard,
    StopGuard,
    /// The command ends by itself and leaves a descendant.
    Leave,
    JumpClock,
}

pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) demand: Demand,
    pub(crate) shape: Shape,
    pub(crate) strike: Strike,
    lasts: Duration,
}

/// Longer than the TTL within which the lock must pass to the waiter.
const LONG: Duration = Duration::from_secs(8);

impl Fault {
    /// `--ttl` in seconds for the two tools that have it; consul's TTL is fixed: 15 s that it counts twice, and 15 s of
    /// lock delay.
    pub(crate) const fn ttl(&self) -> &'static str {
        match self.demand {
            // The shortest that dlock allows: the tightest case.
            Demand::HandOver => "5",
            // etcdctl's default.
            Demand::Survive => "10",
        }
    }

    /// How long the command works. A command that must survive works for longer than the TTL after the fault.
    pub(crate) const fn span(&self, tool: Tool) -> Duration {
        match (tool, self.demand) {
            (Tool::Consul, _) => Duration::from_secs(75),
            (_, Demand::HandOver) => Duration::from_secs(12),
            (_, Demand::Survive) => Duration::from_secs(15),
        }
    }

    /// Time until the fault is removed: after the TTL, if the lock must pass to the waiter.
    pub(crate) const fn lasts(&self, tool: Tool) -> Duration {
        match (tool, self.demand) {
            (Tool::Consul, Demand::HandOver) if !self.lasts.is_zero() => Duration::from_secs(50),
            _ => self.lasts,
        }
    }

    /// The command's own exit code.
    pub(crate) const fn code(&self) -> u8 {
        match self.demand {
            Demand::HandOver => 0,
            Demand::Survive => 7,
        }
    }

    /// Whether the fault needs three members instead of one.
    pub(crate) const fn needs_cluster(&self) -> bool {
        matches!(
            self.strike,
            Strike::StopLeader | Strike::KillLeader | Strike::StopMajority
        )
    }

    /// Why this fault cannot be applied to this tool here.
    pub(crate) fn spares(&self, tool: Tool) -> Option<&'static str> {
        let on_processes = matches!(
            self.strike,
            Strike::KillHolder | Strike::StopHolder | Strike::StopCommandKillHolder | Strike::Leave
        );
        match tool {
            Tool::Dlock => None,
            Tool::Consul if !installed("consul") => Some("not here"),
            _ if matches!(self.strike, Strike::KillGuard | Strike::StopGuard) => Some("no guard"),
            // Go calls the kernel without the C library, so no library can be preloaded.
            Tool::Etcdctl | Tool::Consul if self.strike == Strike::JumpClock => {
                Some("not possible here")
            }
            Tool::Flock if self.strike == Strike::JumpClock => Some("no clock"),
            Tool::Flock if !on_processes => Some("no server"),
            Tool::Etcdctl | Tool::Flock | Tool::Consul => None,
        }
    }
}

const fn hand_over(name: &'static str, strike: Strike, shape: Shape, lasts: Duration) -> Fault {
    Fault {
        name,
        demand: Demand::HandOver,
        shape,
        strike,
        lasts,
    }
}

const fn survive(name: &'static str, strike: Strike, lasts: Duration) -> Fault {
    Fault {
        name,
        demand: Demand::Survive,
        shape: Shape::Plain,
        strike,
        lasts,
    }
}

#[rustfmt::skip]
pub(crate) const FAULTS: &[Fault] = &[
    hand_over("lease revoked by an operator", Strike::RevokeLease, Shape::Plain, Duration::ZERO),
    hand_over("lease revoked, the command ignores SIGTERM", Strike::RevokeLease, Shape::Stubborn, Duration::ZERO),
    hand_over("key deleted by an operator", Strike::DeleteKey, Shape::Plain, Duration::ZERO),
    hand_over("etcd killed, back after 8 s", Strike::KillServer, Shape::Plain, LONG),
    hand_over("etcd stopped for 8 s", Strike::StopServer, Shape::Plain, LONG),
    hand_over("the holder's connections cut and refused for 8 s", Strike::Cut, Shape::Plain, LONG),
    hand_over("the holder's network a black hole for 8 s, a daemonised grandchild", Strike::BlackHole, Shape::Daemon, LONG),
    hand_over("the answers to the holder lost for 8 s", Strike::LoseAnswers, Shape::Plain, LONG),
    hand_over("all bytes held for 8 s, then in one burst", Strike::Hold, Shape::Plain, LONG),
    hand_over("the holder's member, the leader of 3, stopped for 8 s", Strike::StopLeader, Shape::Plain, LONG),
    hand_over("quorum lost for 8 s, the leader among it", Strike::StopMajority, Shape::Plain, LONG),
    hand_over("the tool killed", Strike::KillHolder, Shape::Plain, Duration::ZERO),
    hand_over("the tool killed, the command ignores SIGTERM", Strike::KillHolder, Shape::Stubborn, Duration::ZERO),
    hand_over("the tool killed, a daemonised grandchild", Strike::KillHolder, Shape::Daemon, Duration::ZERO),
    hand_over("the tool killed, a fork chain", Strike::KillHolder, Shape::Chain, Duration::ZERO),
    hand_over("the tool killed, the command stopped for 8 s", Strike::StopCommandKillHolder, Shape::Plain, LONG),
    hand_over("the tool stopped for 8 s", Strike::StopHolder, Shape::Plain, LONG),
    hand_over("the guard killed, a daemonised grandchild", Strike::KillGuard, Shape::Daemon, Duration::ZERO),
    hand_over("the guard stopped, a daemonised grandchild", Strike::StopGuard, Shape::Daemon, Duration::ZERO),
    hand_over("the command ends, its daemon lives on", Strike::Leave, Shape::Leaver, Duration::ZERO),
    survive("etcd killed and started again", Strike::RestartServer, Duration::ZERO),
    survive("connections reset and refused for 1 s", Strike::Cut, Duration::from_secs(1)),
    survive("a black hole for 1.5 s", Strike::BlackHole, Duration::from_millis(1500)),
    survive("the wall clock jumps by -1 h, 2 s later to +5 s", Strike::JumpClock, Duration::from_secs(2)),
    survive("the leader of 3 killed", Strike::KillLeader, Duration::ZERO),
];

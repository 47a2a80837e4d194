//! Servers, network and clock for one fault; the fault itself, and its end.
//! It must not know how the result is judged.

use std::time::Duration;

use crate::consul::Agents;
use crate::contenders::{Contest, Measured};
use crate::fault::{Fault, Strike};
use crate::server::Server;
use crate::support::{
    Cluster, Direction, Etcd, Link, Mode, Signal, WallClock, boot_clock, let_pass, since,
};
use crate::tool::Tool;

/// Time beyond the command's work after which a run counts as hanging.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for faults after which the lock passes on only after 45 s.
const LONG_PATIENCE: Duration = Duration::from_secs(90);

/// One server, or three of which one leads.
struct Servers {
    kind: Kind,
    leader: usize,
}

enum Kind {
    Etcd(Etcd),
    Cluster(Cluster),
    Consul(Agents),
}

pub(crate) struct Testbed {
    fault: &'static Fault,
    /// The tool whose timing sets the pace.
    tool: Tool,
    contests: Vec<Contest>,
    /// The holders' connection to the single server.
    link: Link,
    clock: WallClock,
    servers: Servers,
}

impl Testbed {
    /// Starts the servers and, for each tool, a holder and a waiter.
    pub(crate) fn set(fault: &'static Fault, tools: &[Tool]) -> Self {
        let tool = tools[0];
        let servers = Servers::start(tool, fault.needs_cluster());
        let link = Link::to(servers.witness().port());
        let clock = WallClock::new();
        let (holder, waiter) = servers.endpoints(&link, fault);
        let wind = |program| {
            if fault.strike == Strike::JumpClock {
                clock.wind(program)
            } else {
                program
            }
        };
        let contests = tools
            .iter()
            .map(|tool| Contest::start(*tool, fault, &holder, &waiter, servers.witness(), wind))
            .collect();
        Self {
            fault,
            tool,
            contests,
            link,
            clock,
            servers,
        }
    }

    /// Causes the fault and watches until all runs are over.
    pub(crate) fn measure(mut self) -> Vec<Measured> {
        // The holders have renewed once, and are not at the very beginning of their TTL.
        let_pass(Duration::from_millis(1500));
        self.strike();
        let struck_at = boot_clock();
        let mut healed = false;
        let patience = match self.tool {
            Tool::Consul => LONG_PATIENCE,
            Tool::Dlock | Tool::Etcdctl | Tool::Flock => PATIENCE,
        };
        let until = struck_at + self.fault.span(self.tool) + patience;
        loop {
            if !healed && since(struck_at) >= self.fault.lasts(self.tool) {
                self.heal();
                healed = true;
            }
            let mut busy = false;
            for contest in &mut self.contests {
                contest.watch();
                busy |= !contest.is_over();
            }
            if healed && !busy || until < boot_clock() {
                break;
            }
            let_pass(Duration::from_millis(10));
        }
        self.contests
            .into_iter()
            .map(|contest| contest.measured(self.fault))
            .collect()
    }

    fn strike(&mut self) {
        let witness = self.servers.witness();
        for contest in &mut self.contests {
            contest.struck_at = boot_clock();
            match self.fault.strike {
                Strike::RevokeLease => witness.revoke(&contest.handle),
                Strike::DeleteKey => witness.delete(&contest.handle),
                Strike::KillHolder => contest.holder.signal(Signal::KILL),
                Strike::StopHolder => contest.holder.signal(Signal::STOP),
                Strike::StopCommandKillHolder => {
                    contest.stop_command();
                    contest.holder.signal(Signal::KILL);
                }
                Strike::KillGuard => contest.holder.guard().signal(Signal::KILL),
                Strike::StopGuard => contest.holder.guard().signal(Signal::STOP),
                _ => {}
            }
        }
        match self.fault.strike {
            Strike::KillServer => witness.kill(),
            Strike::RestartServer => witness.restart(),
            Strike::StopServer => witness.stop(),
            Strike::Cut => self.link.refuse(),
            Strike::BlackHole => self.link.both(Mode::Drop),
            Strike::Hold => self.link.both(Mode::Hold),
            Strike::LoseAnswers => self.link.set(Direction::ToClient, Mode::Drop),
            Strike::JumpClock => self.clock.jump("-1h"),
            Strike::StopLeader => self.servers.struck(1).for_each(Server::stop),
            Strike::KillLeader => self.servers.struck(1).for_each(Server::kill),
            Strike::StopMajority => self.servers.struck(2).for_each(Server::stop),
            _ => {}
        }
    }

    fn heal(&mut self) {
        match self.fault.strike {
            Strike::KillServer => self.servers.witness().revive(),
            Strike::StopServer => self.servers.witness().cont(),
            Strike::Cut | Strike::Hold => self.link.heal(),
            Strike::BlackHole | Strike::LoseAnswers => {
                // A stream with missing bytes is not TCP any more.
                self.link.cut();
                self.link.heal();
            }
            Strike::JumpClock => self.clock.jump("+5"),
            Strike::StopLeader => self.servers.struck(1).for_each(Server::cont),
            Strike::StopMajority => self.servers.struck(2).for_each(Server::cont),
            Strike::StopHolder => {
                for contest in &self.contests {
                    contest.holder.signal(Signal::CONT);
                }
            }
            Strike::StopCommandKillHolder => {
                self.contests.iter().for_each(Contest::continue_command);
            }
            _ => {}
        }
    }
}

impl Servers {
    fn start(tool: Tool, many: bool) -> Self {
        let kind = match (tool, many) {
            (Tool::Consul, many) => Kind::Consul(Agents::start(if many { 3 } else { 1 })),
            (_, true) => Kind::Cluster(Cluster::start()),
            (_, false) => Kind::Etcd(Etcd::start()),
        };
        let leader = match &kind {
            Kind::Etcd(_) => 0,
            Kind::Cluster(cluster) => cluster.leader(),
            Kind::Consul(agents) => agents.leader(),
        };
        Self { kind, leader }
    }

    /// The members, from the leader on.
    fn all(&self) -> Vec<Server<'_>> {
        let mut all: Vec<Server> = match &self.kind {
            Kind::Etcd(etcd) => vec![Server::Etcd(etcd)],
            Kind::Cluster(cluster) => cluster.members().iter().map(Server::Etcd).collect(),
            Kind::Consul(agents) => agents.all().iter().map(Server::Consul).collect(),
        };
        all.rotate_left(self.leader);
        all
    }

    /// The server that serves to the end, or the only one.
    fn witness(&self) -> Server<'_> {
        *self.all().last().expect("at least one")
    }

    /// The leader's number and those after it.
    fn struck(&self, count: usize) -> impl Iterator<Item = Server<'_>> {
        let all = self.all().into_iter().take(count);
        all.filter(|server| server.is_alive())
    }

    /// The endpoints of the holders, and those of the waiters.
    fn endpoints(&self, link: &Link, fault: &Fault) -> (String, String) {
        let all = self.all();
        let witness = self.witness().endpoint();
        match (&self.kind, &all[..]) {
            (_, [_]) => (link.endpoint(), witness),
            // consul's client has one address, and need not survive the loss of that server.
            (Kind::Consul(_), [_, next, ..]) if fault.strike == Strike::KillLeader => {
                (next.endpoint(), witness)
            }
            (Kind::Consul(_), [leader, ..]) => (leader.endpoint(), witness),
            (_, [leader, ..]) if fault.strike == Strike::StopLeader => (leader.endpoint(), witness),
            _ => {
                let all: Vec<String> = all.into_iter().map(Server::endpoint).collect();
                (all.join(","), all.join(","))
            }
        }
    }
}

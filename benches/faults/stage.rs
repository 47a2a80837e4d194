//! Servers, network and clock for one fault; the fault itself, and its end.
//! It must not know how the outcome is judged.

use std::path::PathBuf;
use std::time::Duration;

use crate::contest::{Contest, Measured};
use crate::fault::{Fault, Strike};
use crate::support::{
    Cluster, Direction, Dlock, Etcd, Link, Mode, Scratch, Signal, alive, boot_clock, let_pass,
    since,
};
use crate::tool::Tool;

/// After that whoever still runs is said to hang.
const PATIENCE: Duration = Duration::from_secs(45);

enum Servers {
    One(Etcd),
    Three { cluster: Cluster, leader: usize },
}

pub(crate) struct Stage {
    fault: &'static Fault,
    contests: Vec<Contest>,
    /// The holders' way to the single server.
    link: Link,
    clock: Clock,
    servers: Servers,
}

/// A wall clock that can be set for one program alone.
pub(crate) struct Clock {
    library: PathBuf,
    file: String,
    _dir: Scratch,
}

impl Clock {
    fn new() -> Self {
        let library = std::fs::read_dir("/usr/lib")
            .expect("a Linux")
            .flatten()
            .map(|dir| dir.path().join("faketime/libfaketime.so.1"))
            .find(|path| path.exists())
            .expect("libfaketime is not installed; install it with: apt-get install faketime");
        let dir = Scratch::new();
        let file = dir.write("clock", "+0\n");
        Self {
            library,
            file,
            _dir: dir,
        }
    }

    fn jump(&self, to: &str) {
        std::fs::write(&self.file, format!("{to}\n")).expect("our own file");
    }

    /// Lets the program live by this clock.
    fn wind(&self, program: Dlock) -> Dlock {
        program
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
    }
}

impl Stage {
    /// Starts the servers and, for each tool, a holder and a waiter.
    pub(crate) fn set(fault: &'static Fault, tools: &[Tool]) -> Self {
        let servers = if fault.needs_cluster() {
            let cluster = Cluster::start();
            let leader = cluster.leader();
            Servers::Three { cluster, leader }
        } else {
            Servers::One(Etcd::start())
        };
        let link = Link::to(servers.witness().port());
        let clock = Clock::new();
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
            contests,
            link,
            clock,
            servers,
        }
    }

    /// Lets the fault happen and watches until all is over.
    pub(crate) fn measure(mut self) -> Vec<Measured> {
        // The holders have renewed once, and do not stand at the very beginning of their term.
        let_pass(Duration::from_millis(1500));
        self.strike();
        let struck_at = boot_clock();
        let mut healed = false;
        loop {
            if !healed && since(struck_at) >= self.fault.lasts {
                self.heal();
                healed = true;
            }
            let mut busy = false;
            for contest in &mut self.contests {
                contest.watch();
                busy |= !contest.is_over();
            }
            if healed && !busy || since(struck_at) > PATIENCE {
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
                Strike::RevokeLease => {
                    witness.revoke(&contest.lease);
                }
                Strike::DeleteKey => {
                    witness.ctl(&["del", &contest.key]);
                }
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
            Strike::StopLeader => self.servers.struck(1).for_each(Etcd::stop),
            Strike::KillLeader => self.servers.struck(1).for_each(Etcd::kill),
            Strike::StopMajority => self.servers.struck(2).for_each(Etcd::stop),
            _ => {}
        }
    }

    fn heal(&mut self) {
        match self.fault.strike {
            Strike::KillServer => self.servers.witness().revive(),
            Strike::StopServer => self.servers.witness().cont(),
            Strike::Cut | Strike::Hold => self.link.heal(),
            Strike::BlackHole | Strike::LoseAnswers => {
                // A stream with a hole in it is no TCP any more.
                self.link.cut();
                self.link.heal();
            }
            Strike::JumpClock => self.clock.jump("+5"),
            Strike::StopLeader => self.servers.struck(1).for_each(Etcd::cont),
            Strike::StopMajority => self.servers.struck(2).for_each(Etcd::cont),
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
    /// The server that serves to the end, or the only one there is.
    fn witness(&self) -> &Etcd {
        match self {
            Self::One(etcd) => etcd,
            Self::Three { cluster, leader } => &cluster.members()[(leader + 2) % 3],
        }
    }

    /// The leader and those after it.
    fn struck(&self, count: usize) -> impl Iterator<Item = &Etcd> {
        let (members, leader) = match self {
            Self::One(etcd) => (std::slice::from_ref(etcd), 0),
            Self::Three { cluster, leader } => (cluster.members(), *leader),
        };
        (0..count)
            .map(move |after| &members[(leader + after) % members.len()])
            .filter(|etcd| alive(etcd.process()))
    }

    /// The holders' endpoints and the waiters'.
    fn endpoints(&self, link: &Link, fault: &Fault) -> (String, String) {
        match self {
            Self::One(etcd) => (link.endpoint(), etcd.endpoint()),
            Self::Three { cluster, leader } if fault.strike == Strike::StopLeader => (
                cluster.members()[*leader].endpoint(),
                self.witness().endpoint(),
            ),
            Self::Three { cluster, .. } => (cluster.endpoints(), cluster.endpoints()),
        }
    }
}

//! Hosts with their ways to the members, what runs on them, and how a fault is brought about and put right.
//! It must not know when which fault comes, nor what is expected of anybody.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use super::dice::{Blow, CONTENDERS, Dice, Outage, Strike, Target, Ways};
use super::slack::Watch;
use crate::support::{
    Cluster, Dlock, Etcd, LIMIT, Link, Mode, Oracle, Outcome, Process, Running, Signal, WallClock,
    boot_clock, eventually, let_pass,
};

/// The lock that they contend for.
pub(super) const LOCK: &str = "chaos";

/// What it takes at most from one holder to the next when nothing is wrong any more but the last one's lease.
const BETWEEN: Duration = Duration::from_secs(4);

/// For how long a leader may be stopped where it may take away leases that are good when it comes back: a holder's last
/// proof is less than 3 s old, or its command would be dead, so its lease of 5 s has not run out by that leader's count.
const SHORT_STOP: Duration = Duration::from_millis(1900);

/// In milliseconds.
const A_MONTH: usize = 30 * 24 * 3_600_000;

/// One host: its own way to each member, its clocks, and the dlock that runs on it now.
struct Host {
    links: Vec<Link>,
    wall: WallClock,
    /// How much longer it has been up than we.
    up: Duration,
    dice: Dice,
    run: Run,
}

/// One dlock that contends, and what it has suffered.
pub(super) struct Run {
    pub(super) running: Running,
    /// With both struck at once nobody is left to kill the tree (the man page says so), so the second is spared.
    dlock_struck: bool,
    guard_struck: bool,
    tree_struck: bool,
}

impl Run {
    /// Some process of it was killed or stopped.
    pub(super) fn is_struck(&self) -> bool {
        self.dlock_struck || self.guard_struck || self.tree_struck
    }
}

/// A holder and a waiter of another lock, on a host of their own, whose lease outlives every fault of the network.
struct Elders {
    links: Vec<Link>,
    holder: Running,
    waiter: Running,
    /// How many descriptors they had before the first fault.
    descriptors: [usize; 2],
}

/// Members, hosts, and what runs on them.
pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) oracle: Oracle,
    pub(super) watch: Watch,
    hosts: Vec<Host>,
    elders: Elders,
    /// A leader that was stopped carries out the revocations that are overdue by its count when it comes back, though its
    /// successor has renewed those leases (etcd issue 15247, mended in 3.4.31 and 3.5.13). Whoever comes to the empty queue
    /// then cannot know that the holder's command is just being stopped; the man page says so.
    leaders_take_leases: bool,
    /// dlocks that have ended; something of their commands may still live.
    gone: Vec<Running>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let cluster = Cluster::start();
        let oracle = Oracle::new();
        let watch = Watch::over(&cluster, LOCK);
        let elders = Elders::start(&cluster);
        let leaders_take_leases = match cluster.version()[..] {
            [3, 4, patch, ..] => patch < 31,
            [3, 5, patch, ..] => patch < 13,
            _ => false,
        };
        let hosts = (0..CONTENDERS)
            .map(|number| {
                let mut dice = Dice::of(seed, number);
                let links = ways(&cluster);
                let wall = WallClock::new();
                let up = dice.span(0, A_MONTH);
                let run = contend(&links, &wall, up, &oracle, &watch, &mut dice);
                Host {
                    links,
                    wall,
                    up,
                    dice,
                    run,
                }
            })
            .collect();
        Self {
            cluster,
            oracle,
            watch,
            hosts,
            elders,
            leaders_take_leases,
            gone: Vec::new(),
        }
    }

    /// Starts a new run where one has ended, and gives the outcomes of those.
    pub(super) fn restart_the_ended(&mut self) -> Vec<(Outcome, bool)> {
        let mut outcomes = Vec::new();
        self.gone.retain(|running| !running.everything().is_empty());
        for host in &mut self.hosts {
            if host.run.running.is_over() {
                let outcome = host.run.running.wait();
                outcomes.push((outcome, host.run.is_struck()));
                let new = contend(
                    &host.links,
                    &host.wall,
                    host.up,
                    &self.oracle,
                    &self.watch,
                    &mut host.dice,
                );
                // Whatever of it still runs is its guard's affair, and the oracle's.
                self.gone
                    .push(std::mem::replace(&mut host.run, new).running);
            }
        }
        outcomes
    }

    /// Waits for the end of whatever contends now; nobody follows.
    pub(super) fn finish(&mut self, limit: Duration) -> Vec<(Outcome, bool)> {
        let hosts = self.hosts.iter_mut();
        hosts
            .map(|host| {
                let outcome = host.run.running.wait_within(limit);
                (outcome, host.run.is_struck())
            })
            .collect()
    }

    /// Starts one more.
    pub(super) fn newcomer(&mut self) -> Running {
        let host = &mut self.hosts[0];
        let (oracle, watch) = (&self.oracle, &self.watch);
        let dice = &mut host.dice;
        contend(&host.links, &host.wall, host.up, oracle, watch, dice).running
    }

    /// The host where the command runs.
    pub(super) fn holder(&self) -> Option<usize> {
        let mut hosts = self.hosts.iter();
        hosts.position(|host| !host.run.running.tree().is_empty())
    }

    /// The same, though between two holders it may take a moment.
    fn await_holder(&self) -> Option<usize> {
        let until = boot_clock() + BETWEEN;
        loop {
            match self.holder() {
                None if boot_clock() < until => thread::sleep(Duration::from_millis(10)),
                holder => return holder,
            }
        }
    }

    /// Everything that was started and lives, the elders apart.
    pub(super) fn everything(&self) -> Vec<Process> {
        let running = self.hosts.iter().map(|host| &host.run.running);
        let all = running.chain(&self.gone);
        all.flat_map(Running::everything).collect()
    }

    /// One or two faults for as long as they last, and their end. Says whom they hit.
    pub(super) fn suffer(&mut self, strike: Strike) -> String {
        let holder = self.await_holder();
        let number = |target| match target {
            Target::HolderOr(host) => holder.unwrap_or(host),
            Target::Host(host) => host,
        };
        let blow = (strike.blow).map(|(blow, target)| (blow, number(target)));
        let hit = blow.map(|(blow, host)| self.hosts[host].strike(blow));
        let outage = strike.outage.map(|(outage, ways)| {
            let links = self.links(ways, number(ways.host));
            (outage, links, self.begin(outage, links))
        });
        let mut lasts = strike.lasts;
        if let Some((Outage::StopLeader | Outage::StopMember(_), ..)) = outage
            && self.leaders_take_leases
        {
            lasts = lasts.min(SHORT_STOP);
        }
        let told = format!("{strike:?}: holder {holder:?}, hit {hit:?}, for {lasts:?}");
        let_pass(lasts);
        if let Some((outage, links, struck)) = outage {
            self.end(outage, links, &struck);
        }
        if let Some((_, host)) = blow {
            self.hosts[host].recover();
        }
        told
    }

    fn links(&self, ways: Ways, host: usize) -> &[Link] {
        let hosts = self.hosts.get(host);
        let links = hosts.map_or(&self.elders.links[..], |host| &host.links[..]);
        match ways.member {
            Some(member) => &links[member..=member],
            None => links,
        }
    }

    /// Gives the members that were struck.
    fn begin(&self, outage: Outage, links: &[Link]) -> Vec<usize> {
        let members = self.cluster.members();
        let struck = match outage {
            Outage::StopLeader => vec![self.cluster.leader()],
            Outage::StopMember(member) | Outage::KillMember(member) => vec![member],
            Outage::StopTwo(member) => vec![member, (member + 1) % members.len()],
            _ => Vec::new(),
        };
        for member in struck.iter().map(|member| &members[*member]) {
            match outage {
                Outage::KillMember(_) => member.kill(),
                _ => member.stop(),
            }
        }
        for link in links {
            match outage {
                Outage::Slow(mode, None) => link.both(mode),
                Outage::Slow(mode, Some(direction)) => link.set(direction, mode),
                Outage::Refuse => link.refuse(),
                Outage::Cut => link.cut(),
                Outage::CutHalf(direction) => link.cut_half(direction),
                Outage::Reset(direction) => link.reset(direction),
                Outage::StopLeader
                | Outage::StopMember(_)
                | Outage::StopTwo(_)
                | Outage::KillMember(_) => {}
            }
        }
        struck
    }

    fn end(&self, outage: Outage, links: &[Link], struck: &[usize]) {
        let struck = struck.iter().map(|member| &self.cluster.members()[*member]);
        match outage {
            Outage::KillMember(_) => struck.for_each(Etcd::revive),
            _ => struck.for_each(Etcd::cont),
        }
        for link in links {
            if let Outage::Slow(Mode::Drop, _) = outage {
                // A stream with a hole in it is no TCP any more.
                link.cut();
            }
            link.heal();
        }
    }

    /// The two that have lived through everything end well, and have not gathered descriptors.
    pub(super) fn elders_end_well(&mut self) -> [usize; 2] {
        let Elders {
            holder,
            waiter,
            descriptors,
            ..
        } = &mut self.elders;
        assert!(!holder.is_over(), "{}", holder.stderr());
        assert!(!waiter.is_over(), "{}", waiter.stderr());
        // A connection to each of the other members, and one that is just being made.
        let spare = self.cluster.members().len();
        let now = eventually(LIMIT, "descriptors are not gathered", || {
            let now = [open_in(holder), open_in(waiter)];
            (now[0] <= descriptors[0] + spare && now[1] <= descriptors[1] + spare).then_some(now)
        });
        holder.let_go();
        waiter.wait().expect_code(0);
        now
    }
}

impl Host {
    /// Says what was hit.
    fn strike(&mut self, blow: Blow) -> String {
        let Run {
            running,
            dlock_struck,
            guard_struck,
            tree_struck,
        } = &mut self.run;
        let (signal, which) = match blow {
            Blow::Jump(offset) => {
                self.wall.jump(offset);
                return "the clock".to_owned();
            }
            Blow::KillDlock | Blow::StopDlock if *guard_struck => return "spared".to_owned(),
            Blow::KillGuard | Blow::StopGuard if *dlock_struck => return "spared".to_owned(),
            Blow::KillDlock => (Signal::KILL, None),
            Blow::StopDlock => (Signal::STOP, None),
            Blow::KillGuard | Blow::StopGuard => {
                let children = running.process().children();
                let guard = children.iter().find(|it| it.name() == "dlock-guard");
                let Some(guard) = guard else {
                    return "nobody".to_owned();
                };
                *guard_struck = true;
                let kills = matches!(blow, Blow::KillGuard);
                guard.signal(if kills { Signal::KILL } else { Signal::STOP });
                return format!("guard {}", guard.0);
            }
            Blow::KillDescendant(which) => (Signal::KILL, Some(which)),
            Blow::StopDescendant(which) => (Signal::STOP, Some(which)),
        };
        if let Some(which) = which {
            let tree = running.tree();
            let Some(process) = tree.get(which % tree.len().max(1)) else {
                return "nobody".to_owned();
            };
            *tree_struck = true;
            process.signal(signal);
            return format!("{} {}", process.name(), process.0);
        }
        *dlock_struck = true;
        running.signal(signal);
        format!("dlock {}", running.process().0)
    }

    /// Whoever is stopped goes on, and the clock goes right; a guard stays as it is.
    fn recover(&self) {
        self.run.running.signal(Signal::CONT);
        for process in self.run.running.tree() {
            process.signal(Signal::CONT);
        }
        self.wall.jump("+0");
    }
}

impl Elders {
    fn start(cluster: &Cluster) -> Self {
        let links = ways(cluster);
        let run = |command: &[&str]| {
            let endpoints: Vec<String> = links.iter().map(Link::endpoint).collect();
            Dlock::at(&endpoints.join(","))
                .run(["--ttl=30", "elders", "--"])
                .args(command)
        };
        let holder = run(&["sh", "-c", "echo on; exec cat"]);
        let mut holder = holder.stdin(Stdio::piped()).start();
        holder.says("on\n");
        let waiter = run(&["true"]).start();
        cluster.members()[0].queue_of("elders", 2);
        let descriptors = [open_in(&holder), open_in(&waiter)];
        Self {
            links,
            holder,
            waiter,
            descriptors,
        }
    }
}

/// The descriptors of a dlock and its guard.
fn open_in(running: &Running) -> usize {
    running.process().descriptors() + running.guard().descriptors()
}

/// A new host's ways to the members.
fn ways(cluster: &Cluster) -> Vec<Link> {
    let members = cluster.members().iter();
    members.map(|member| Link::to(member.port())).collect()
}

/// Contends for the lock; the command and a daemonised descendant of it beat, and every other time nothing of it minds
/// SIGTERM.
fn contend(
    links: &[Link],
    wall: &WallClock,
    up: Duration,
    oracle: &Oracle,
    watch: &Watch,
    dice: &mut Dice,
) -> Run {
    let endpoints: Vec<String> = links.iter().map(Link::endpoint).collect();
    // From much less to more than the term.
    let stay = dice.span(10, 7000);
    let trap = if dice.one_in(2) { "trap '' TERM;" } else { "" };
    let (beats, stay) = (watch.beats(), stay.as_secs_f32());
    let script = format!("{trap} setsid -f {beats}; {beats} & sleep {stay}");
    let dlock = Dlock::at(&endpoints.join(",")).args(["--connect-timeout=20"]);
    let running = wall
        .wind(dlock)
        .up_longer_by(up)
        .run(["--ttl=5", LOCK, "--", "env", "-u", "LD_PRELOAD"])
        .args(oracle.command(&["sh", "-c", &script]))
        .start();
    Run {
        running,
        dlock_struck: false,
        guard_struck: false,
        tree_struck: false,
    }
}

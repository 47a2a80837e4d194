//! Hosts with their links to the members, their processes, and how a fault is caused and repaired.
//! It must not know the choice of faults, nor what is expected.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::checks::{Ended, Evidence};
use super::cpu::Sampler;
use super::fault::{ALL, Blow, CONTENDERS, Moment, Outage, Strike, Target, Ways};
use super::journal::Journal;
use super::plan::{Form, Lock, Plan};
use super::rng::Rng;
use super::run::{Ground, Run};
use super::slack::Watch;
use super::stalls::Stalls;
use super::troubles::Troubles;
use super::witness::Witness;
use crate::support::{
    Cluster, Dlock, Etcd, LIMIT, Link, Mode, Oracle, Process, Running, Scratch, Trap, WallClock,
    boot_clock, eventually, let_pass, since,
};

/// How long to wait for a holder to strike, and for the time of a fault: mostly one holder's time.
const BETWEEN: Duration = Duration::from_secs(2);

/// The longest pause of a leader. When it continues, it executes the revocations that are overdue by its clock, although
/// its successor has renewed those leases (etcd issue 15247; 3.5.30 still does at times). A newcomer to the empty queue
/// cannot know then that the holder's command is just being stopped; the man page says so. After this pause no lease is
/// overdue: a holder's last proof is less than 3 s old, or its command would be dead, so its lease of 5 s has not
/// expired.
const SHORT_STOP: Duration = Duration::from_millis(1900);

/// Time that a cluster needs for an election and for members that restart.
const ELECTION: Duration = Duration::from_secs(3);

/// Number of runs after which the lock beside the main one changes.
const SIDE: u64 = 12;

/// The quota of the members: enough for as many keys as an hour creates, with their old revisions.
const SPACE: &str = "--quota-backend-bytes=33554432";

/// The longest time from the end of a command to that of its dlock: a grace of 6 s for leftovers, a release without an
/// answer, and a reserve for a busy machine.
const ENDING: Duration = Duration::from_secs(40);

/// Interval between checks whether a run has ended.
const PACE: Duration = Duration::from_millis(50);

/// A month in milliseconds.
const A_MONTH: usize = 30 * 24 * 3_600_000;

/// One host: its own link to each member, its clocks, and the dlock that runs on it now.
pub(super) struct Host {
    pub(super) links: Vec<Link>,
    wall: WallClock,
    /// How much longer it has been up than the real host.
    up: Duration,
    dice: Rng,
    pub(super) run: Run,
    /// No new run starts before this: as under cron, there is a time between two runs.
    rests_until: Duration,
}

/// A holder and a waiter of another lock, on a host of their own, whose lease outlives every fault of the network.
struct Elders {
    links: Vec<Link>,
    holder: Running,
    waiter: Running,
    /// Number of their descriptors before the first fault.
    descriptors: [usize; 2],
}

/// Members, hosts, and their processes.
pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) ground: Ground,
    pub(super) watch: Watch,
    pub(super) witness: Arc<Witness>,
    pub(super) journal: Journal,
    pub(super) troubles: Troubles,
    pub(super) stalls: Stalls,
    pub(super) cpu: Sampler,
    /// The leases whose keys a third party deleted.
    pub(super) taken: BTreeSet<String>,
    /// Number of its acts.
    pub(super) taken_away: usize,
    pub(super) hosts: Vec<Host>,
    /// How much longer the runs' hosts have been up than this one, by the number of the run.
    ups: Vec<Duration>,
    /// Starts of the lock with `--once-per`.
    pub(super) once: Vec<(Duration, usize)>,
    /// Runs that did not end.
    stuck: BTreeSet<usize>,
    elders: Elders,
    began_at: Duration,
    /// The lock beside the main one that it begins with.
    first_side: u64,
    /// Whether other tests run at the same time.
    shares_machine: bool,
    /// The time of the last stop of a member.
    pub(super) stopped_at: Option<Duration>,
    /// Runs that have ended since the last request for them.
    pub(super) ended: Vec<Ended>,
    /// Runs that have ended; processes of their commands may still live.
    gone: Vec<Run>,
    big: Scratch,
}

impl World {
    pub(super) fn new(seed: u64, shares_machine: bool) -> Self {
        let cluster = Cluster::start_with(&[SPACE]);
        let witness = Arc::new(Witness::of(&cluster));
        let stalls = Stalls::of(&cluster);
        let watch = Watch::over(&witness, Lock::Main.name());
        let journal = Journal::new();
        let ground = Ground {
            main: Oracle::new(),
            once: Oracle::new(),
            slots: [Oracle::new(), Oracle::new()],
            shared: Oracle::new(),
            journal: journal.path(),
            beats: watch.beats(),
            beats_file: watch.beats_file(),
        };
        let elders = Elders::start(&cluster);
        let big = Scratch::new();
        big.write("big", &"x".repeat(1_000_000));
        let mut world = Self {
            cluster,
            ground,
            watch,
            witness,
            journal,
            troubles: Troubles::default(),
            stalls,
            cpu: Sampler::new(),
            taken: BTreeSet::new(),
            taken_away: 0,
            hosts: Vec::new(),
            ups: Vec::new(),
            once: Vec::new(),
            stuck: BTreeSet::new(),
            elders,
            began_at: boot_clock(),
            first_side: seed,
            shares_machine,
            stopped_at: None,
            ended: Vec::new(),
            gone: Vec::new(),
            big,
        };
        for number in 0..ALL {
            let mut dice = Rng::new(seed, number);
            let (links, wall) = (ways(&world.cluster), WallClock::new());
            let up = dice.span(0, A_MONTH);
            // The time namespace counts whole seconds.
            let up = Duration::from_secs(up.as_secs());
            let run = world.start(number, &links, &wall, up, &mut dice);
            world.hosts.push(Host {
                links,
                wall,
                up,
                dice,
                run,
                rests_until: Duration::ZERO,
            });
        }
        world
    }

    fn start(
        &mut self,
        host: usize,
        links: &[Link],
        wall: &WallClock,
        up: Duration,
        dice: &mut Rng,
    ) -> Run {
        let plan = if host < CONTENDERS {
            Plan::main(dice)
        } else {
            let sides = [Lock::OncePer, Lock::Slots, Lock::Borrowed, Lock::Shared];
            let turn = self.first_side + since(self.began_at).as_secs() / SIDE;
            let side = usize::try_from(turn % 4).expect("below 4");
            Plan::of_side(sides[side], dice)
        };
        let number = self.ups.len();
        self.ups.push(up);
        let run = Run::start(number, host, plan, links, wall, up, &self.ground);
        if run.plan.form == Form::Run {
            self.cpu.watch(number, run.running.process());
        }
        run
    }

    /// Starts a new run in place of each ended one.
    pub(super) fn restart_the_ended(&mut self) {
        self.gone.retain(|run| !run.running.everything().is_empty());
        let mut hosts = std::mem::take(&mut self.hosts);
        for (number, host) in hosts.iter_mut().enumerate() {
            if host.rests_until.is_zero() && host.run.is_over() {
                let ended = self.end_of(&mut host.run);
                let most = if ended.outcome.code() == Some(75) {
                    2000
                } else {
                    300
                };
                host.rests_until = boot_clock() + host.dice.span(1, most);
                self.ended.push(ended);
            }
            if !host.rests_until.is_zero() && host.rests_until <= boot_clock() {
                host.rests_until = Duration::ZERO;
                let new = self.start(number, &host.links, &host.wall, host.up, &mut host.dice);
                // A process of it that still runs is left to its guard and the oracle.
                self.gone.push(std::mem::replace(&mut host.run, new));
            }
        }
        self.hosts = hosts;
    }

    /// Lets the time pass; meanwhile new runs replace those that end.
    pub(super) fn live_for(&mut self, span: Duration) {
        let until = boot_clock() + span;
        while boot_clock() < until {
            self.restart_the_ended();
            let_pass(PACE.min(until.saturating_sub(boot_clock())));
        }
    }

    fn end_of(&self, run: &mut Run) -> Ended {
        let outcome = run.running.wait();
        Ended {
            number: run.number,
            host: run.host,
            plan: run.plan.clone(),
            outcome,
            reported: run.reported(),
            struck: run.is_struck(),
            dlock_struck: run.dlock_struck,
            began_at: run.began_at,
            over_at: self.cpu.ended_at(run.number).unwrap_or_else(boot_clock),
        }
    }

    /// Reads the new notes of the commands.
    pub(super) fn read_on(&mut self) {
        let ups = &self.ups;
        let begun = self.journal.read(|run| ups[run]);
        let running = self.hosts.iter().map(|host| &host.run).chain(&self.gone);
        let is_once: BTreeSet<usize> = running
            .filter(|run| run.plan.lock == Lock::OncePer)
            .map(|run| run.number)
            .collect();
        for run in begun {
            if let Some(begun) = self.journal.of(run)
                && is_once.contains(&run)
            {
                self.once.push((begun.at, run));
            }
        }
    }

    /// The faults of a run that has ended.
    pub(super) fn verdicts(&self, run: &Ended) -> Vec<String> {
        // Before the history is locked, which its thread needs in turn.
        let late = self.watch.late();
        let history = self.witness.history();
        let evidence = Evidence {
            history: &history,
            journal: &self.journal,
            troubles: &self.troubles,
            stalls: &self.stalls,
            cpu: &self.cpu,
            late: &late,
            taken: &self.taken,
            shares_machine: self.shares_machine,
        };
        let faults = evidence.verdicts(run);
        self.cpu.forget(run.number);
        faults
    }

    /// Runs whose commands have ended, and that do not end themselves; each is reported once.
    pub(super) fn stuck(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        for host in &self.hosts {
            let number = host.run.number;
            let begun = self.journal.of(number);
            let ended_at = begun.and_then(|begun| begun.ended_at);
            if let Some(ended_at) = ended_at
                && host.rests_until.is_zero()
                && since(ended_at) > ENDING
                && self.stuck.insert(number)
            {
                let all = host.run.running.everything();
                let all: Vec<String> = all.iter().map(|it| it.line()).collect();
                told.push(format!(
                    "run {number} does not end, though its command has ended {:?} ago: {}",
                    since(ended_at),
                    all.join(", ")
                ));
            }
        }
        told
    }

    /// Waits for the end of all current runs; no new ones start.
    pub(super) fn finish(&mut self, limit: Duration) {
        let until = boot_clock() + limit;
        let mut hosts = std::mem::take(&mut self.hosts);
        for host in &mut hosts {
            if !host.rests_until.is_zero() {
                continue;
            }
            let left = until.saturating_sub(boot_clock()) + Duration::from_secs(1);
            host.run.running.wait_within(left);
            eventually(left, "dlock has ended", || host.run.is_over());
            let ended = self.end_of(&mut host.run);
            self.ended.push(ended);
        }
        self.hosts = hosts;
    }

    /// Starts one more run.
    pub(super) fn newcomer(&mut self) -> Running {
        let mut hosts = std::mem::take(&mut self.hosts);
        let Host {
            links,
            wall,
            up,
            dice,
            ..
        } = &mut hosts[0];
        let number = self.ups.len();
        self.ups.push(*up);
        let mut plan = Plan::main(dice);
        plan.form = Form::Run;
        plan.code = 0;
        plan.stay = Duration::from_secs(1);
        let run = Run::start(number, 0, plan, links, wall, *up, &self.ground);
        self.hosts = hosts;
        run.running
    }

    /// The host on which the command of the main lock runs.
    pub(super) fn holder(&mut self) -> Option<usize> {
        self.read_on();
        let hosts = &self.hosts[..CONTENDERS.min(self.hosts.len())];
        hosts.iter().position(|host| {
            let begun = self.journal.of(host.run.number);
            begun.is_some_and(|begun| begun.ended_at.is_none())
                && !host.run.running.tree().is_empty()
        })
    }

    /// The same, but waits a moment between two holders.
    pub(super) fn await_holder(&mut self) -> Option<usize> {
        let until = boot_clock() + BETWEEN;
        loop {
            match self.holder() {
                None if boot_clock() < until => self.live_for(Duration::from_millis(20)),
                holder => return holder,
            }
        }
    }

    /// All living processes that were started here, except the elders.
    pub(super) fn everything(&self) -> Vec<Process> {
        let runs = self.hosts.iter().map(|host| &host.run);
        let all = runs.chain(&self.gone);
        all.flat_map(|run| run.running.everything()).collect()
    }

    /// Waits for the time of a fault, though not for ever.
    fn await_moment(&mut self, moment: Moment) {
        let state = |world: &mut Self| {
            world.read_on();
            let ended = |host: &Host| {
                let begun = world.journal.of(host.run.number);
                begun.is_some_and(|begun| begun.ended_at.is_some())
            };
            let ended = world.hosts.iter().filter(|host| ended(host)).count();
            let history = world.witness.history();
            let main = history.places().iter();
            let main = main.filter(|place| place.lock == Lock::Main.name());
            let (made, gone) = main.fold((0, 0), |(made, gone), place| {
                (made + 1, gone + usize::from(place.gone.is_some()))
            });
            match moment {
                Moment::Now => 0,
                Moment::End => ended,
                Moment::Release => gone,
                Moment::Entry => made,
            }
        };
        if moment == Moment::Now {
            return;
        }
        let (mut before, until) = (state(self), boot_clock() + BETWEEN);
        while state(self) <= before && boot_clock() < until {
            thread::sleep(Duration::from_millis(1));
            // The number falls when a new run replaces an ended one.
            before = before.min(state(self));
        }
    }

    /// Causes one or two faults for their duration, and repairs them. Returns a description of the targets.
    pub(super) fn suffer(&mut self, strike: Strike) -> String {
        if let Some(hand) = strike.hand {
            let told = self.take_away(hand);
            return format!("{hand:?}: {told}");
        }
        let holder = self.await_holder();
        let number = |target| match target {
            Target::HolderOr(host) => holder.unwrap_or(host),
            Target::Host(host) => host,
        };
        self.await_moment(strike.moment);
        let blow = (strike.blow).map(|(blow, target)| (blow, number(target)));
        let hit = blow.map(|(blow, host)| self.hosts[host].strike(blow));
        let mut lasts = strike.lasts;
        if let Some((Outage::StopLeader | Outage::StopMember(_), ..)) = strike.outage {
            lasts = lasts.min(SHORT_STOP);
        }
        let outage = strike
            .outage
            .map(|(outage, ways)| (outage, ways, number(ways.host)));
        let mut struck = Vec::new();
        if let Some((outage, ways, host)) = outage {
            let (whose, brief) = match outage {
                Outage::Slow(..) | Outage::Refuse => (Some(host), false),
                Outage::Cut | Outage::CutHalf(_) | Outage::Reset(_) | Outage::Lose(..) => {
                    (Some(host), true)
                }
                _ => (None, false),
            };
            self.troubles.begin(boot_clock(), whose, brief);
            if matches!(
                outage,
                Outage::StopLeader | Outage::StopMember(_) | Outage::StopTwo(_)
            ) {
                self.stopped_at = Some(boot_clock());
            }
            struck = self.begin(outage, self.links(ways, host));
        }
        let told = format!(
            "{:?} {:?} {:?}: holder {holder:?}, hit {hit:?}, for {lasts:?}",
            strike.moment, strike.outage, strike.blow
        );
        self.live_for(lasts);
        if let Some((outage, ways, host)) = outage {
            self.end_outage(outage, self.links(ways, host), &struck);
            let aftermath = if struck.is_empty() {
                Duration::ZERO
            } else {
                ELECTION
            };
            self.troubles.end(boot_clock() + aftermath);
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

    /// Returns the members that were struck.
    fn begin(&self, outage: Outage, links: &[Link]) -> Vec<usize> {
        let members = self.cluster.members();
        let struck = match outage {
            Outage::StopLeader | Outage::KillLeader => vec![self.cluster.leader()],
            Outage::StopMember(member) | Outage::KillMember(member) => vec![member],
            Outage::StopTwo(member) => vec![member, (member + 1) % members.len()],
            Outage::NoSpace => (0..members.len()).collect(),
            _ => Vec::new(),
        };
        for member in struck.iter().map(|member| &members[*member]) {
            match outage {
                Outage::KillMember(_) | Outage::KillLeader => member.kill(),
                Outage::NoSpace => {}
                _ => member.stop(),
            }
        }
        if let Outage::NoSpace = outage {
            self.fill();
        }
        if let Outage::Lose(lost, bait, times) = outage {
            let trap = Trap::new(lost, bait, times);
            for link in links {
                link.set_trap(Some(&trap));
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
                _ => {}
            }
        }
        struck
    }

    /// Writes until there is no space left.
    fn fill(&self) {
        let member = &self.cluster.members()[0];
        eventually(LIMIT, "the alarm is raised", || {
            let big = File::open(self.big.file("big")).expect("written before");
            let key = format!("fill-{}", boot_clock().as_nanos());
            let put = Dlock::etcdctl(member).args(["put", &key]).stdin(big);
            let put = put.start().wait();
            put.stderr.contains("database space exceeded")
        });
    }

    fn end_outage(&self, outage: Outage, links: &[Link], struck: &[usize]) {
        let struck = struck.iter().map(|member| &self.cluster.members()[*member]);
        match outage {
            Outage::KillMember(_) | Outage::KillLeader => struck.for_each(Etcd::revive),
            Outage::NoSpace => Etcd::make_space(self.cluster.members()),
            _ => struck.for_each(Etcd::cont),
        }
        for link in links {
            if let Outage::Slow(Mode::Drop, _) = outage {
                // A stream with missing bytes is not TCP any more.
                link.cut();
            }
            link.heal();
        }
    }

    /// The two that have survived everything end successfully, and have gathered no descriptors.
    pub(super) fn elders_end_well(&mut self) -> [usize; 2] {
        let Elders {
            holder,
            waiter,
            descriptors,
            ..
        } = &mut self.elders;
        assert!(!holder.is_over(), "{}", holder.stderr());
        assert!(!waiter.is_over(), "{}", waiter.stderr());
        // A connection to each of the other members, and one that is just being opened.
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
    /// Returns a description of the target.
    fn strike(&mut self, blow: Blow) -> String {
        if let Blow::Jump(offset) = blow {
            self.wall.jump(offset);
            return "the clock".to_owned();
        }
        self.run.strike(blow)
    }

    /// Continues all that were stopped, and corrects the clock; a guard stays as it is.
    fn recover(&self) {
        self.run.recover();
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

/// Number of descriptors of a dlock and its guard.
fn open_in(running: &Running) -> usize {
    running.process().descriptors() + running.guard().descriptors()
}

/// The links of a new host to the members.
fn ways(cluster: &Cluster) -> Vec<Link> {
    let members = cluster.members().iter();
    members.map(|member| Link::to(member.port())).collect()
}

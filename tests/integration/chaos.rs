//! Random faults of every kind on contenders for one lock, under the oracle: whatever happens, never two holders at once.
//! It must not know what each fault does to a run; only that some runs survive, and that the lock works on afterwards.

use std::thread;
use std::time::Duration;

use crate::support::{
    Cluster, Direction, Dlock, LIMIT, Link, Mode, Oracle, Running, Signal, boot_clock, eventually,
    let_pass, since,
};

/// A sequence of numbers that a seed decides (`SplitMix64`, <https://prng.di.unimi.it/splitmix64.c>).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn member(&mut self) -> usize {
        usize::try_from(self.below(3)).expect("three")
    }

    fn milliseconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// One host: its own way to each member, and the dlock that runs on it now.
struct Host {
    links: Vec<Link>,
    running: Running,
}

/// Hosts, members and the faults between them.
struct World {
    cluster: Cluster,
    oracle: Oracle,
    hosts: Vec<Host>,
    dice: Dice,
    /// Which fault came when, for the message of a failure.
    history: Vec<String>,
    seed: u64,
    ended_well: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let cluster = Cluster::start();
        let oracle = Oracle::new();
        let mut dice = Dice(seed);
        let hosts = (0..4)
            .map(|_| {
                let links: Vec<Link> = cluster
                    .members()
                    .iter()
                    .map(|member| Link::to(member.port()))
                    .collect();
                let running = contend(&links, &oracle, &mut dice);
                Host { links, running }
            })
            .collect();
        Self {
            cluster,
            oracle,
            hosts,
            dice,
            history: Vec::new(),
            seed,
            ended_well: 0,
        }
    }

    /// Starts a new run where one has ended.
    fn restart_the_ended(&mut self) {
        for host in &mut self.hosts {
            if host.running.is_over() {
                let outcome = host.running.wait();
                let cause = format!("seed {}: {outcome:?}, after {:#?}", self.seed, self.history);
                assert!(!outcome.stderr.contains("panicked"), "{cause}");
                assert_ne!(outcome.code(), Some(99), "the oracle refused, {cause}");
                self.ended_well += usize::from(outcome.code() == Some(0));
                host.running = contend(&host.links, &self.oracle, &mut self.dice);
            }
        }
    }

    /// One fault, for as long as it takes, and its end.
    fn strike(&mut self) {
        let span = self.dice.milliseconds(200, 8000);
        let member = self.dice.member();
        let any = usize::try_from(self.dice.below(4)).expect("four");
        // Every other time the one that holds the lock: faults of waiters find less.
        let holder = (self.dice.below(2) == 0).then(|| {
            self.hosts
                .iter()
                .position(|host| !host.running.tree().is_empty())
        });
        let host = holder.flatten().unwrap_or(any);
        let kind = self.dice.below(10);
        self.history.push(format!(
            "kind {kind}, host {host}, member {member}, {span:?}"
        ));
        let links = &self.hosts[host].links;
        let running = &self.hosts[host].running;
        match kind {
            0 => {
                let leader = &self.cluster.members()[self.cluster.leader()];
                leader.stop();
                let_pass(span);
                leader.cont();
            }
            1 => {
                self.cluster.members()[member].kill();
                let_pass(span);
                self.cluster.members()[member].revive();
            }
            2..=4 => {
                let mode = [
                    Mode::Drop,
                    Mode::Hold,
                    Mode::Delay(Duration::from_millis(400)),
                ];
                let mode = mode[usize::try_from(kind - 2).expect("small")];
                let some = if self.dice.below(2) == 0 {
                    &links[member..=member]
                } else {
                    &links[..]
                };
                let direction = [None, Some(Direction::ToServer), Some(Direction::ToClient)];
                let direction = direction[self.dice.member()];
                for link in some {
                    match direction {
                        None => link.both(mode),
                        Some(direction) => link.set(direction, mode),
                    }
                }
                let_pass(span);
                for link in some {
                    if mode == Mode::Drop {
                        // A stream with a hole in it is no TCP any more.
                        link.cut();
                    }
                    link.heal();
                }
            }
            5 => links[member].refuse(),
            6 => running.signal(Signal::KILL),
            7 => {
                running.signal(Signal::STOP);
                let_pass(span);
                running.signal(Signal::CONT);
            }
            _ => {
                let guards = running.process().children();
                let signal = if kind == 8 {
                    Signal::KILL
                } else {
                    Signal::STOP
                };
                if let Some(guard) = guards.first() {
                    guard.signal(signal);
                }
                let_pass(span);
            }
        }
    }

    fn heal(&self) {
        for host in &self.hosts {
            host.running.signal(Signal::CONT);
            host.links.iter().for_each(Link::heal);
        }
    }
}

/// Contends for the lock; the command leaves a daemonised descendant and ignores SIGTERM every other time.
fn contend(links: &[Link], oracle: &Oracle, dice: &mut Dice) -> Running {
    let endpoints: Vec<String> = links.iter().map(Link::endpoint).collect();
    // From much less to much more than the term and a fault.
    let stay = dice.milliseconds(10, 12_000).as_secs_f32();
    let trap = if dice.below(2) == 0 {
        "trap '' TERM;"
    } else {
        ""
    };
    let script = format!("{trap} setsid -f sleep 600; sleep {stay}");
    Dlock::at(&endpoints.join(","))
        .args(["--connect-timeout=20"])
        .run(["--ttl=5", "chaos", "--"])
        .args(oracle.command(&["sh", "-c", &script]))
        .start()
}

/// The promise under random faults. A failure names its seed: `DLOCK_TEST_SEED=n` repeats the faults (not their exact
/// timing), `DLOCK_TEST_SOAK=3600` goes on for an hour.
#[test]
fn random_faults_never_make_two_holders() {
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let span = Duration::from_secs(number("DLOCK_TEST_SOAK", 40));
    let seed = number(
        "DLOCK_TEST_SEED",
        u64::from(std::process::id()) ^ boot_clock().as_secs(),
    );
    let mut world = World::new(seed);
    let started_at = boot_clock();
    while since(started_at) < span {
        world.strike();
        world.restart_the_ended();
        let (oracle, history) = (&world.oracle, &world.history);
        let entered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| oracle.tokens()));
        assert!(entered.is_ok(), "seed {seed}, after {history:#?}");
        thread::sleep(world.dice.milliseconds(0, 1500));
        world.heal();
    }
    // The faults are over: soon everybody gets a turn, and nothing stays.
    let before = world.oracle.tokens().len();
    for (number, host) in world.hosts.iter_mut().enumerate() {
        let outcome = host.running.wait_within(LIMIT * 4);
        assert!(
            matches!(outcome.code(), Some(0 | 121 | 125)) || outcome.signal() == Some(9),
            "seed {seed}, host {number}: {outcome:?}, after {:#?}",
            world.history
        );
        world.ended_well += usize::from(outcome.code() == Some(0));
    }
    // In a short run every holder may have been struck; the last ones were left in peace for a while.
    assert!(
        world.ended_well > 0,
        "seed {seed}: nothing survives, {:#?}",
        world.history
    );
    let mut last = contend(&world.hosts[0].links, &world.oracle, &mut world.dice);
    last.wait_within(LIMIT * 2).expect_code(0);
    let entered = world.oracle.tokens().len();
    assert!(entered > before || before > 0, "seed {seed}");
    let member = &world.cluster.members()[0];
    eventually(LIMIT * 2, "no key is left", || {
        member.queue("chaos").is_empty()
    });
}

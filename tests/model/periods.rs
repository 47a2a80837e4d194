//! The keys that outlive a command: the mark of `--once-per`, and the entry that cools down after `--min-hold`.
//! It must not know proofs nor the guard: here, a living client keeps its entry.

use std::time::Duration;

use dlock::core::preparation::{Grant, Mark};
use dlock::core::proof::LeaseId;
use dlock::core::time::{Instant, LeaseTimings};
use stateright::{Checker as _, HasDiscoveries, Model, Property};

use super::world::NOW;
use super::{TTL, show};

/// The age from which a lease is too old for a start.
const TICK: Duration = Duration::from_secs(1);
/// The time of `--once-per` or `--min-hold`.
const PERIOD: u8 = 3;
/// The part of that time that may be lost before the start.
const LOST: u8 = 1;
const CLIENTS: usize = 2;
/// Leases that a client requests for its period.
const ATTEMPTS: usize = 2;
/// The client whose requests may be given up, whose wait a signal may end, and which may be killed.
const UNLUCKY: usize = 0;
const MISHAPS: u8 = 2;

const KEPT: &str = "no command starts within the period of another start";
const HONEST: &str = "a mark without a run, which its owner took back, prevents no run";
const NEXT: &str = "both clients run";

/// The option that both clients have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    OncePer,
    MinHold,
}

/// The rules of dlock, or one that is not enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Dlock,
    /// A mark counts as soon as it is requested.
    Requested,
    /// A lease of any age is good enough for a start.
    AnyAge,
    /// A waiter that leaves deletes its entry before its mark.
    EntryFirst,
    /// A release whose answer was lost is repeated as a deletion of the entry, whatever its lease is by then.
    DeleteByName,
}

#[derive(Clone, Debug)]
struct Periods {
    kept: Kept,
    rule: Rule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lease {
    Unknown,
    /// With the ticks that are left; at 0 it ends, sooner or later.
    Lives(u8),
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Request {
    Grant(usize),
    /// The mark under that lease, if there is none, or if it is under the other lease of the client.
    Mark(usize, Option<usize>),
    /// The entry moves to that lease.
    Cool(usize),
    Delete,
    /// All leases of the client.
    Revoke,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Done,
    AlreadyRan,
    /// The mark is under this other lease of the client, or has ended since.
    Other(Option<usize>),
    NoLease,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Reads the mark, and then enters the queue.
    Comes,
    Enters,
    /// In the queue; when it is the first one, it prepares its start.
    Waits,
    Runs,
    Releases,
    Leaves,
    Over,
    Dead,
}

/// The answer of etcd to a client that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Prepared {
    Nothing,
    /// A lease, if etcd has executed the request.
    Requested,
    Granted,
    /// A mark under that lease, if etcd has executed the request.
    Marking,
    Marked,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Client {
    phase: Phase,
    /// The lease in use, and the ticks since its request.
    attempt: usize,
    age: u8,
    prepared: Prepared,
    /// Its request, and the answer once etcd has executed it.
    request: Option<(Request, Option<Answer>)>,
    /// A request that it has given up, and etcd has not seen yet.
    late: Option<Request>,
    /// Whether its mark may be left although it did not run.
    unrevoked: bool,
    ran: bool,
}

/// An entry in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Entry {
    client: usize,
    /// The lease that keeps it after the command.
    cools: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    queue: Vec<Entry>,
    leases: [[Lease; ATTEMPTS]; CLIENTS],
    mark: Option<(usize, usize)>,
    clients: [Client; CLIENTS],
    /// Ticks since the last start, while another one would be too soon.
    since_start: Option<u8>,
    mishaps: u8,
    too_soon: bool,
    dishonest: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Tick,
    /// A lease without ticks ends.
    Expire(usize, usize),
    /// The entry of a dead client ends with its session.
    Vanish(usize),
    /// The client sends its next request, or takes the next step without one.
    Act(usize),
    Execute(usize),
    ExecuteLate(usize),
    Receive(usize),
    GiveUp(usize),
    Start(usize),
    End(usize),
    /// A signal ends the wait.
    Quit(usize),
    Crash(usize),
}

impl World {
    fn is_first(&self, client: usize) -> bool {
        let first = self.queue.first();
        first.is_some_and(|it| it.client == client && it.cools.is_none())
    }

    fn own(&mut self, client: usize) -> Option<&mut Entry> {
        let own = |it: &&mut Entry| it.client == client && it.cools.is_none();
        self.queue.iter_mut().find(own)
    }

    /// The keys that end with a lease.
    fn end_lease(&mut self, client: usize, attempt: usize) {
        self.leases[client][attempt] = Lease::Ended;
        self.mark = self.mark.filter(|mark| *mark != (client, attempt));
        let kept = Some(attempt);
        self.queue
            .retain(|it| it.client != client || it.cools != kept);
    }

    fn lives(&self, client: usize, attempt: usize) -> bool {
        matches!(self.leases[client][attempt], Lease::Lives(_))
    }
}

impl Client {
    fn grant(&self) -> Grant {
        let sent_at = NOW.since_boot().saturating_sub(TICK * u32::from(self.age));
        Grant {
            lease: LeaseId(1),
            sent_at: Instant::from_boot(sent_at),
        }
    }

    /// Sends a request.
    fn send(&mut self, request: Request) {
        self.request = Some((request, None));
    }

    fn ask(&mut self) {
        (self.prepared, self.age) = (Prepared::Requested, 0);
        self.send(Request::Grant(self.attempt));
    }

    /// Requests another lease, or leaves if this was the last attempt.
    fn renew(&mut self) {
        if self.attempt + 1 < ATTEMPTS {
            self.attempt += 1;
            self.ask();
        } else {
            self.phase = Phase::Leaves;
        }
    }
}

impl Periods {
    fn timings() -> LeaseTimings {
        LeaseTimings::new(TTL, LeaseTimings::default_grace(TTL))
    }

    fn is_young(&self, client: &Client) -> bool {
        self.rule == Rule::AnyAge || client.grant().is_young(NOW, Self::timings(), 0)
    }

    /// Whether the command may start now.
    fn is_complete(&self, client: &Client) -> bool {
        match (self.kept, client.prepared) {
            (Kept::MinHold, Prepared::Granted) => self.is_young(client),
            (Kept::OncePer, Prepared::Marked) if self.rule == Rule::AnyAge => true,
            (Kept::OncePer, Prepared::Marking | Prepared::Marked) => {
                let is_confirmed =
                    client.prepared == Prepared::Marked || self.rule == Rule::Requested;
                let mark = if is_confirmed {
                    Mark::confirmed(client.grant())
                } else {
                    Mark::requested(client.grant())
                };
                mark.is_still_young(NOW, Self::timings(), 0)
            }
            _ => false,
        }
    }

    /// The next request of a client that has none, or its next step.
    fn act(&self, world: &mut World, number: usize) {
        let has_mark = world.mark.is_some();
        let is_first = world.is_first(number);
        let client = &mut world.clients[number];
        match client.phase {
            Phase::Comes if has_mark => client.phase = Phase::Over,
            Phase::Comes => client.phase = Phase::Enters,
            Phase::Enters => {
                client.phase = Phase::Waits;
                world.queue.push(Entry {
                    client: number,
                    cools: None,
                });
            }
            Phase::Waits if is_first => match client.prepared {
                Prepared::Nothing => client.ask(),
                Prepared::Requested => client.renew(),
                _ if !self.is_young(client) => client.renew(),
                Prepared::Granted | Prepared::Marking if self.kept == Kept::OncePer => {
                    client.prepared = Prepared::Marking;
                    client.send(Request::Mark(client.attempt, None));
                }
                _ => {}
            },
            Phase::Releases if self.kept == Kept::MinHold => {
                client.send(Request::Cool(client.attempt));
            }
            Phase::Releases => client.send(Request::Delete),
            Phase::Leaves => {
                let first = if self.rule == Rule::EntryFirst {
                    Request::Delete
                } else {
                    Request::Revoke
                };
                client.send(first);
            }
            _ => {}
        }
    }

    /// etcd executes a request.
    fn execute(&self, world: &mut World, number: usize, request: Request) -> Answer {
        match request {
            Request::Grant(attempt) => {
                if world.leases[number][attempt] == Lease::Unknown {
                    world.leases[number][attempt] = Lease::Lives(PERIOD);
                }
                Answer::Done
            }
            Request::Mark(attempt, replaced) => {
                let expected = replaced.map(|replaced| (number, replaced));
                if !world.lives(number, attempt) {
                    Answer::NoLease
                } else if world.own(number).is_some() && world.mark == expected {
                    world.mark = Some((number, attempt));
                    Answer::Done
                } else {
                    match world.mark {
                        Some((owner, _)) if owner != number => Answer::AlreadyRan,
                        Some((_, lease)) if lease == attempt => Answer::Done,
                        other => Answer::Other(other.map(|(_, lease)| lease)),
                    }
                }
            }
            Request::Cool(attempt) => {
                let lives = world.lives(number, attempt);
                match world.own(number) {
                    Some(_) if !lives => return Answer::NoLease,
                    Some(own) => own.cools = Some(attempt),
                    None => {}
                }
                Answer::Done
            }
            Request::Delete => {
                let by_name = self.rule == Rule::DeleteByName;
                let is_own = |it: &Entry| it.client == number && (by_name || it.cools.is_none());
                world.queue.retain(|it| !is_own(it));
                Answer::Done
            }
            Request::Revoke => {
                for attempt in 0..ATTEMPTS {
                    if world.lives(number, attempt) {
                        world.end_lease(number, attempt);
                    }
                }
                Answer::Done
            }
        }
    }

    /// A client gets an answer.
    fn receive(&self, world: &mut World, number: usize, request: Request, answer: Answer) {
        let client = &mut world.clients[number];
        client.request = None;
        match (request, answer) {
            (Request::Grant(_), _) => client.prepared = Prepared::Granted,
            (Request::Mark(attempt, _), Answer::Other(lease)) => {
                client.send(Request::Mark(attempt, lease));
            }
            (Request::Mark(..), Answer::Done) => client.prepared = Prepared::Marked,
            (Request::Mark(..), Answer::NoLease) => client.renew(),
            (Request::Mark(..), Answer::AlreadyRan) => client.phase = Phase::Leaves,
            (Request::Cool(_), Answer::NoLease) => client.send(Request::Delete),
            (Request::Revoke, _) if self.rule != Rule::EntryFirst => client.send(Request::Delete),
            (Request::Delete, _)
                if client.phase == Phase::Leaves && self.rule == Rule::EntryFirst =>
            {
                client.send(Request::Revoke);
            }
            (Request::Cool(_) | Request::Delete | Request::Revoke, _) => client.phase = Phase::Over,
        }
    }

    /// No answer in time: the request may be lost, or be executed later.
    fn give_up(&self, world: &mut World, number: usize) {
        world.mishaps += 1;
        let client = &mut world.clients[number];
        let Some((request, answer)) = client.request.take() else {
            return;
        };
        if answer.is_none() {
            client.late = Some(request);
        }
        match request {
            Request::Cool(_) if self.rule == Rule::DeleteByName => client.send(Request::Delete),
            Request::Revoke => {
                client.unrevoked = true;
                client.send(Request::Delete);
            }
            Request::Delete if client.phase == Phase::Leaves => client.send(Request::Delete),
            _ => {}
        }
    }

    fn start(world: &mut World, number: usize) {
        let too_soon = world.since_start.is_some_and(|since| since + LOST < PERIOD);
        world.too_soon |= too_soon;
        world.since_start = Some(0);
        let client = &mut world.clients[number];
        (client.phase, client.ran) = (Phase::Runs, true);
    }
}

impl Model for Periods {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let client = Client {
            phase: Phase::Comes,
            attempt: 0,
            age: 0,
            prepared: Prepared::Nothing,
            request: None,
            late: None,
            unrevoked: false,
            ran: false,
        };
        vec![World {
            queue: Vec::new(),
            leases: [[Lease::Unknown; ATTEMPTS]; CLIENTS],
            mark: None,
            clients: [client.clone(), client],
            since_start: None,
            mishaps: 0,
            too_soon: false,
            dishonest: false,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        steps.push(Step::Tick);
        for (number, client) in world.clients.iter().enumerate() {
            let may = number == UNLUCKY && world.mishaps < MISHAPS;
            for attempt in 0..ATTEMPTS {
                if world.leases[number][attempt] == Lease::Lives(0) {
                    steps.push(Step::Expire(number, attempt));
                }
            }
            if client.late.is_some() {
                steps.push(Step::ExecuteLate(number));
            }
            match client.phase {
                Phase::Dead => {
                    steps.push(Step::Vanish(number));
                    continue;
                }
                Phase::Over => continue,
                _ => {}
            }
            match client.request {
                None => steps.push(Step::Act(number)),
                Some((_, None)) => steps.push(Step::Execute(number)),
                Some((_, Some(_))) => steps.push(Step::Receive(number)),
            }
            if may && client.request.is_some() && client.late.is_none() {
                steps.push(Step::GiveUp(number));
            }
            if client.phase == Phase::Waits && client.request.is_none() {
                if may {
                    steps.push(Step::Quit(number));
                }
                if world.is_first(number) && self.is_complete(client) {
                    steps.push(Step::Start(number));
                }
            }
            if client.phase == Phase::Runs {
                steps.push(Step::End(number));
            }
            if may && !matches!(client.phase, Phase::Comes | Phase::Enters) {
                steps.push(Step::Crash(number));
            }
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        match step {
            Step::Tick => {
                for lease in next.leases.iter_mut().flatten() {
                    if let Lease::Lives(left) = lease {
                        *left = left.saturating_sub(1);
                    }
                }
                for client in &mut next.clients {
                    // After that, no rule distinguishes the ages.
                    client.age = (client.age + 1).min(LOST);
                }
                next.since_start = next.since_start.map(|since| (since + 1).min(PERIOD));
            }
            Step::Expire(client, attempt) => next.end_lease(client, attempt),
            Step::Vanish(client) => next
                .queue
                .retain(|it| it.client != client || it.cools.is_some()),
            Step::Act(client) => self.act(&mut next, client),
            Step::Execute(client) => {
                let (request, _) = next.clients[client].request?;
                let answer = self.execute(&mut next, client, request);
                if let (Answer::AlreadyRan, Some((owner, _))) = (answer, next.mark) {
                    // The client is the first in the queue, so the owner of the mark has left.
                    let owner = &next.clients[owner];
                    next.dishonest |= !owner.ran && !owner.unrevoked && owner.phase != Phase::Dead;
                }
                next.clients[client].request = Some((request, Some(answer)));
            }
            Step::ExecuteLate(client) => {
                let request = next.clients[client].late.take()?;
                self.execute(&mut next, client, request);
            }
            Step::Receive(client) => {
                let (request, answer) = next.clients[client].request?;
                self.receive(&mut next, client, request, answer?);
            }
            Step::GiveUp(client) => self.give_up(&mut next, client),
            Step::Start(client) => Self::start(&mut next, client),
            Step::End(client) => next.clients[client].phase = Phase::Releases,
            Step::Quit(client) => {
                next.mishaps += 1;
                next.clients[client].phase = Phase::Leaves;
            }
            Step::Crash(client) => {
                next.mishaps += 1;
                let dead = &mut next.clients[client];
                let ran = dead.ran;
                dead.phase = Phase::Dead;
                dead.late = dead
                    .request
                    .take()
                    .filter(|it| it.1.is_none())
                    .map(|it| it.0);
                // Only the mark outlives a dlock that is killed.
                if ran && self.kept == Kept::MinHold {
                    next.since_start = None;
                }
            }
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(KEPT, |_, world: &World| !world.too_soon),
            Property::always(HONEST, |_, world: &World| !world.dishonest),
            Property::sometimes(NEXT, |_, world: &World| {
                world.clients.iter().all(|it| it.ran)
            }),
        ]
    }
}

/// In every reachable state the promises hold.
#[track_caller]
fn keeps(kept: Kept, states: usize) {
    let rule = Rule::Dlock;
    let checker = Periods { kept, rule }.checker().spawn_bfs().join();
    let unique = checker.unique_state_count();
    show(
        &format!("{kept:?}"),
        &format!("kept in {unique} states, depth {}", checker.max_depth()),
    );
    for broken in [KEPT, HONEST] {
        if let Some(path) = checker.discovery(broken) {
            panic!("{kept:?}: {broken}: {:#?}", path.into_actions());
        }
    }
    assert!(checker.is_done() && checker.discovery(NEXT).is_some());
    assert!(unique >= states, "{kept:?}: only {unique} states");
}

/// With this rule, a promise does not hold.
#[track_caller]
fn breaks(kept: Kept, rule: Rule, promise: &'static str) {
    let checker = Periods { kept, rule }.checker();
    let checker = checker
        .finish_when(HasDiscoveries::AnyOf([promise].into()))
        .spawn_bfs()
        .join();
    let unique = checker.unique_state_count();
    let path = checker.discovery(promise);
    let path = path.unwrap_or_else(|| panic!("{kept:?}, {rule:?}: kept in {unique} states"));
    let steps = path.into_actions();
    show(
        &format!("{kept:?}, {rule:?}"),
        &format!(
            "broken among {unique} states after {} steps: {steps:#?}",
            steps.len()
        ),
    );
}

#[test]
fn no_run_starts_within_the_period_of_a_mark() {
    keeps(Kept::OncePer, 500_000);
}

#[test]
fn no_run_starts_within_the_minimum_hold() {
    keeps(Kept::MinHold, 130_000);
}

#[test]
fn a_mark_that_was_only_requested_lets_two_runs_start() {
    breaks(Kept::OncePer, Rule::Requested, KEPT);
}

#[test]
fn a_lease_that_was_requested_long_ago_is_too_short() {
    breaks(Kept::OncePer, Rule::AnyAge, KEPT);
    breaks(Kept::MinHold, Rule::AnyAge, KEPT);
}

#[test]
fn a_mark_that_outlives_the_entry_of_a_waiter_prevents_a_run() {
    breaks(Kept::OncePer, Rule::EntryFirst, HONEST);
}

#[test]
fn a_repeated_release_that_deletes_the_key_ends_the_minimum_hold() {
    breaks(Kept::MinHold, Rule::DeleteByName, KEPT);
}

//! The rules and bounds of an experiment, and the possible next steps in its world.
//! It must not know the experiments, nor their results.

use std::time::Duration;

use dlock::core::time::LeaseTimings;
use stateright::{Model, Property};

use super::host::Outlook;
use super::world::{
    Asked, Before, Client, End, Key, Letter, Member, Message, Rate, Role, TICK, Tree, World,
};

pub(crate) const EXCLUSION: &str = "not two trees alive";
pub(crate) const PROGRESS: &str = "the second runs after a release";
pub(crate) const PATIENCE: &str = "no waiter that cannot prove blocks the queue for two TTLs";
pub(crate) const LEFT: &str = "a waiter that cannot prove leaves";
pub(crate) const EXPIRY: &str = "the second runs after an expiry";

/// The rule by which a client takes answers as a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A keepalive's answer alone, as etcd's own tools do.
    BareKeepalive,
    /// Keepalive, then the read, but the headers' terms may differ.
    AnyTerm,
    /// [`Ownership::verify`].
    Proof,
}

/// How a holder learns of a loss by a third party.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The holder's dlock learns of it within one tick.
    Prompt,
    /// The watch may break at any time and be reopened at any time. While it is broken, the holder renews as often as the
    /// product's heartbeat demands, and these renewals are answered.
    Renewed,
    /// The same with a heartbeat that does not know of the watch.
    Unhurried,
    /// The watch's message may be lost, and dlock may be stopped.
    Unsure,
}

/// The release record of a waiter that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// It says that nothing of its own command runs.
    None,
    /// It also names the entries it has waited for.
    Names,
}

/// The grace that a waiter announces in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announce {
    /// The grace of its own command.
    Own,
    /// [`Predecessors::grace`](dlock::core::lock_delay::Predecessors::grace).
    Longest,
}

/// An event that may happen once in addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    None,
    /// The operator deletes the keys of the whole queue.
    DeleteAll,
    /// One waiter is killed.
    Kill,
    /// Another client forges a release record of the holder.
    Forge,
}

/// The waiter whose renewals pass a proxy: another member answers its reads than its keepalives.
pub(crate) const PROXIED: usize = 1;

/// The steps of that waiter when its turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unproven {
    /// No waiter is behind a proxy.
    None,
    /// It tries again and again.
    Stays,
    /// [`Turn`](dlock::core::turn::Turn).
    Leaves,
}

/// The rules and the bounds of one experiment.
#[derive(Clone, Debug)]
pub(crate) struct Experiment {
    pub(crate) rule: Rule,
    pub(crate) timings: LeaseTimings,
    /// How long a waiter waits after an unclean end before it, on its own clock; `None` for the product's delay by the
    /// announced grace.
    pub(crate) delay: Option<Duration>,
    /// The graces of the clients, the oldest first; the others have that of `timings`.
    pub(crate) graces: &'static [Duration],
    pub(crate) announce: Announce,
    /// A release record counts although the key exists.
    pub(crate) believes: bool,
    pub(crate) notice: Notice,
    pub(crate) word: Word,
    /// The clocks that each client may have.
    pub(crate) rates: &'static [Rate],
    pub(crate) clients: usize,
    /// The first client holds already and the others wait; else none has begun.
    pub(crate) queued: bool,
    pub(crate) elections: u64,
    pub(crate) revocations: usize,
    pub(crate) pauses: usize,
    /// Waiters may give up.
    pub(crate) leaving: bool,
    pub(crate) mishap: Mishap,
    pub(crate) unproven: Unproven,
    /// How long a message may travel, on its client's clock.
    pub(crate) travel: Duration,
}

/// One step. Any step may be left out: that is a delay or a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A second passes on the leader's clock.
    Tick,
    /// The true leader is deposed; the other member takes over.
    Elect,
    /// A member learns of the last election.
    Learn(Member),
    /// The true leader drops an expired lease.
    Expire(usize),
    /// An operator revokes a lease.
    Revoke(usize),
    /// Or deletes all keys of the queue.
    DeleteAll,
    /// A waiter's dlock is killed; its key stays for as long as its lease lives.
    Kill(usize),
    /// Another client forges a release record of this one.
    Forge(usize),
    Enter(usize),
    /// A keepalive is sent to a member.
    Renew(usize, Member),
    Deliver(Message),
    /// A waiter reads the queue: without a blocker it starts its command, or begins the lock delay.
    Turn(usize),
    Leave(usize),
    /// A waiter whose turn has come reads its entry.
    Check(usize),
    /// The watch on a client's key breaks: its undelivered events are lost.
    Break(usize),
    /// It is reopened, which begins with a read.
    Open(usize),
    /// dlock is stopped, its guard and its command are not.
    Pause(usize),
    Continue(usize),
    /// The whole command ends by itself.
    Finish(usize),
    Release(usize),
}

impl Experiment {
    /// The guard's and the leader's clocks advance.
    fn tick(&self, world: &mut World) {
        for number in 0..world.clients.len() {
            let there = world.is_there(number);
            let client = &mut world.clients[number];
            client.turn = client.turn.filter(|_| there);
            let passed = client.clock.counts(TICK);
            client.proof_age += passed;
            if let Some(asked) = &mut client.asked {
                asked.age += passed;
            }
            if let Role::Delaying { left, .. } = &mut client.role {
                *left = left.saturating_sub(passed);
            }
            if let Some(turn) = &mut client.turn {
                turn.begun += passed;
                if let Some((first, last)) = &mut turn.seen {
                    *first += passed;
                    *last += passed;
                }
            }
            if let Tree::Stopping { since } = &mut client.tree {
                *since += passed;
            }
            self.guard(client);
            if client.tree == Tree::None && self.timings.renew_interval() < client.proof_age {
                // All proofs that are too old for a start are alike.
                client.proof_age = self.timings.ttl();
            }
            let given_up = client.asked.is_some_and(|asked| self.travel < asked.age);
            if given_up {
                world.hang_up(number);
            }
        }
        if self.blocks(world) {
            world.blocked = (world.blocked + TICK).min(self.timings.ttl() * 3);
        }
        for number in 0..world.keys.len() {
            let counts = !self.is_waiting(world, number);
            if let Key::Present { left, .. } = &mut world.keys[number]
                && counts
            {
                *left = left.saturating_sub(TICK);
            }
            if let Role::Cooling { left } = &mut world.clients[number].role {
                *left = left.saturating_sub(TICK);
                if left.is_zero() {
                    world.clients[number].finish(Role::Over);
                    Self::vanish(world, number, End::Left(None));
                }
            }
        }
        let aged = world.network.iter().map(|message| Message {
            age: message.age + world.clients[message.client].clock.counts(TICK),
            ..*message
        });
        world.network = aged.filter(|message| message.age <= self.travel).collect();
        for number in 0..world.clients.len() {
            world.tidy(number);
        }
    }

    /// Whether this client still waits. Its renewals until then are left out, and its lease does not age: a waiter that
    /// loses its lease starts nothing, so there is nothing to check.
    fn is_waiting(&self, world: &World, number: usize) -> bool {
        match world.clients[number].role {
            Role::Waiting => self.outlook(world, number) != Outlook::Free,
            Role::Delaying { left, .. } => {
                !left.is_zero() || self.outlook(world, number) != Outlook::Free
            }
            Role::Cooling { .. } => true,
            _ => false,
        }
    }

    /// Time stops until a holder that must learn of its loss has learnt of it, and until one with a broken watch has the
    /// answer to a renewal that is due.
    fn is_awaited(&self, world: &World) -> bool {
        if self.unproven == Unproven::Leaves && self.blocks(world) && self.must_check(world) {
            return true;
        }
        if self.notice == Notice::Unsure {
            return false;
        }
        let holds = |client: usize| world.clients[client].role == Role::Holding;
        world.network.iter().any(|message| {
            message.letter == Letter::Gone && !message.age.is_zero() && holds(message.client)
        }) || world
            .clients
            .iter()
            .any(|client| client.role == Role::Holding && client.broken && self.is_due(client))
    }

    /// Whether the waiter behind the proxy has its turn and does not start.
    fn blocks(&self, world: &World) -> bool {
        self.unproven != Unproven::None
            && world.clients[PROXIED].role == Role::Waiting
            && world.is_there(PROXIED)
            && self.outlook(world, PROXIED) == Outlook::Free
    }

    /// Whether watches may break.
    fn may_break(&self) -> bool {
        matches!(self.notice, Notice::Renewed | Notice::Unhurried)
    }

    fn steps_of(&self, world: &World, number: usize, steps: &mut Vec<Step>) {
        let client = &world.clients[number];
        if let Key::Present { left, .. } = world.keys[number] {
            if left.is_zero() {
                steps.push(Step::Expire(number));
            }
            if world.revocations < self.revocations && world.is_first(number) {
                steps.push(if self.mishap == Mishap::DeleteAll {
                    Step::DeleteAll
                } else {
                    Step::Revoke(number)
                });
            }
            if self.mishap == Mishap::Forge
                && world.forged.is_none()
                && client.role == Role::Holding
            {
                steps.push(Step::Forge(number));
            }
            if client.role == Role::Ended {
                steps.push(Step::Release(number));
            }
        }
        if client.tree != Tree::None {
            steps.push(Step::Finish(number));
        }
        if client.paused {
            steps.push(Step::Continue(number));
            return;
        }
        if client.role == Role::Away {
            steps.push(Step::Enter(number));
        }
        // The renewal interval is G/5, one tick; a new renewal drops what the last one has not received.
        if client.renews()
            && !self.is_waiting(world, number)
            && client.asked.is_none_or(|asked| !asked.age.is_zero())
        {
            // Without elections all members are alike.
            let members = if self.elections == 0 { 1 } else { 2 };
            steps.extend(
                Member::ALL[..members]
                    .iter()
                    .map(|member| Step::Renew(number, *member)),
            );
        }
        if matches!(client.role, Role::Waiting | Role::Delaying { .. }) {
            // The end of the entry that it waits for wakes it, and every change of its record.
            let is_quiet = |one| world.still(one) == Some(one) && world.forged.is_none();
            if !client.before.is_some_and(is_quiet) || !world.is_there(number) {
                steps.push(Step::Turn(number));
            }
            if self.mishap == Mishap::Kill && !world.killed {
                steps.push(Step::Kill(number));
            }
            if self.leaving {
                steps.push(Step::Leave(number));
            }
            if number == PROXIED && client.turn.is_some() && self.unproven == Unproven::Leaves {
                steps.push(Step::Check(number));
            }
        }
        if client.role == Role::Holding && self.may_break() {
            steps.push(if client.broken {
                Step::Open(number)
            } else {
                Step::Break(number)
            });
        }
        if client.role == Role::Holding && world.pauses < self.pauses {
            steps.push(Step::Pause(number));
        }
    }
}

impl Model for Experiment {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut hosts = vec![Vec::new()];
        for _ in 0..self.clients {
            hosts = hosts
                .into_iter()
                .flat_map(|some: Vec<Client>| {
                    self.rates.iter().map(move |rate| {
                        let mut more = some.clone();
                        more.push(Client::new(*rate));
                        more
                    })
                })
                .collect();
        }
        hosts
            .into_iter()
            .map(|mut clients| {
                let mut keys = vec![Key::Absent; self.clients];
                let mut revision = 0;
                for (number, client) in clients.iter_mut().enumerate() {
                    let grace = self.graces.get(number).copied();
                    client.grace = grace.unwrap_or(self.timings.grace());
                }
                if self.queued {
                    let mut before = None;
                    for (number, (client, key)) in clients.iter_mut().zip(&mut keys).enumerate() {
                        revision += 1;
                        client.before = before;
                        let grace = self.announced(client.grace, before, Duration::ZERO);
                        before = Some(Before {
                            client: number,
                            token: revision,
                            grace,
                        });
                        client.role = Role::Waiting;
                        client.token = revision;
                        client.highest_revision = revision;
                        *key = Key::Present {
                            left: self.timings.ttl(),
                            token: revision,
                            grace,
                        };
                    }
                    clients[0].role = Role::Holding;
                    clients[0].tree = Tree::Running;
                    if self.unproven != Unproven::None {
                        // The holder has just released: only the waiter's turn matters.
                        clients[0].finish(Role::Over);
                        keys[0] = Key::Gone(End::Released);
                    }
                }
                World {
                    term: 1,
                    applied: [1, 1],
                    revision,
                    keys,
                    clients,
                    network: [].into(),
                    revocations: 0,
                    pauses: 0,
                    killed: false,
                    forged: None,
                    blocked: Duration::ZERO,
                }
            })
            .collect()
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if !self.is_awaited(world) {
            steps.push(Step::Tick);
        }
        if world.term <= self.elections {
            steps.push(Step::Elect);
        }
        for member in Member::ALL {
            if world.applied[member.0] < world.term {
                steps.push(Step::Learn(member));
            }
        }
        for client in 0..self.clients {
            self.steps_of(world, client, steps);
        }
        steps.extend(world.network.iter().copied().map(Step::Deliver));
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut next = last.clone();
        let world = &mut next;
        match step {
            Step::Tick => self.tick(world),
            Step::Elect => self.elect(world),
            Step::Learn(member) => world.applied[member.0] = world.term,
            Step::Expire(client) => Self::vanish(world, client, End::Expired),
            Step::Revoke(client) => {
                world.revocations += 1;
                Self::vanish(world, client, End::Revoked);
            }
            Step::DeleteAll => {
                world.revocations += 1;
                Self::delete_all(world);
            }
            Step::Kill(client) => {
                world.killed = true;
                world.clients[client].finish(Role::Over);
            }
            Step::Forge(client) => world.forged = Some(client),
            Step::Enter(client) => {
                world.clients[client].role = Role::Entering;
                world.send(client, Letter::Enter, Duration::ZERO);
            }
            Step::Renew(client, at) => {
                world.hang_up(client);
                world.clients[client].asked = Some(Asked {
                    age: Duration::ZERO,
                    kept: None,
                });
                world.send(client, Letter::Keepalive { at }, Duration::ZERO);
            }
            Step::Deliver(message) => match message.letter {
                Letter::Enter | Letter::Keepalive { .. } | Letter::Read { .. } => {
                    self.serve(world, message);
                }
                _ if world.clients[message.client].paused => return None,
                _ => self.on_message(world, message),
            },
            Step::Turn(client) => self.turn(world, client),
            Step::Leave(client) => self.leave_queue(world, client),
            Step::Check(client) => self.check_turn(world, client),
            Step::Break(client) => {
                world.clients[client].broken = true;
                world.network.retain(|message| {
                    !(message.client == client && message.letter == Letter::Gone)
                });
            }
            Step::Open(client) => Self::open(world, client),
            Step::Pause(client) => {
                world.pauses += 1;
                world.clients[client].paused = true;
            }
            Step::Continue(client) => world.clients[client].paused = false,
            Step::Finish(client) => {
                world.clients[client].tree = Tree::None;
                world.clients[client].role = Role::Ended;
                world.tidy(client);
            }
            // The transaction compares the token, so a repeated release affects no other key.
            Step::Release(client) => Self::vanish(world, client, End::Released),
        }
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(EXCLUSION, |_, world: &World| world.alive().count() <= 1),
            Property::always(PATIENCE, |experiment: &Self, world: &World| {
                world.blocked < experiment.timings.ttl() * 2
            }),
            Property::sometimes(LEFT, |_, world: &World| {
                !world.blocked.is_zero() && world.clients[PROXIED].role == Role::Over
            }),
            Property::sometimes(PROGRESS, |_, world: &World| {
                world.runs_after(|end| end == End::Released)
            }),
            Property::sometimes(EXPIRY, |_, world: &World| {
                world.runs_after(|end| end == End::Expired)
            }),
        ]
    }
}

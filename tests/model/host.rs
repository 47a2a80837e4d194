//! A host's side of the model: dlock's proofs and its guard, with the product's own rules.
//! It must not know why messages are sent, delayed or lost.

use std::time::Duration;

use dlock::core::heartbeat::{Heartbeat, Watch};
use dlock::core::lock_delay::{Predecessor, Predecessors, Sight, lock_delay};
use dlock::core::proof::{EntryId, FencingToken, Header, LeaseId, Ownership, Renewal, Verdict};
use dlock::core::time::{Deadlines, LeaseTimings};
use dlock::core::turn::Turn;

use super::steps::{Announce, Experiment, Mishap, Notice, PROXIED, Rule, Unproven, Word};
use super::world::{
    Before, Client, End, Key, Letter, Message, NOW, Role, TICK, Tree, TurnAge, World,
};

const CLUSTER: u64 = 7;

/// The maximum delay of the guard by the promise (DESIGN 1 (b)); on the leader's clock.
const GUARD_LATE: Duration = Duration::from_millis(500);

fn entry_id(client: usize, token: i64) -> EntryId {
    let lease = i64::try_from(client).expect("two or three clients") + 1;
    EntryId {
        token: FencingToken(token),
        lease: LeaseId(lease),
    }
}

impl Experiment {
    fn deadlines(&self, client: &Client) -> Deadlines {
        let timings = LeaseTimings::new(self.timings.ttl(), client.grace);
        timings.deadlines(NOW - client.proof_age)
    }

    /// The grace that a waiter announces after it has read these entries before it.
    pub(crate) fn announced(
        &self,
        own: Duration,
        before: Option<Before>,
        vanished: Duration,
    ) -> Duration {
        if self.announce == Announce::Own {
            return own;
        }
        let one = |grace| Predecessor::new(LeaseId(1), FencingToken(1), grace);
        let sight = Sight {
            awaited: before.iter().map(|before| one(before.grace)).collect(),
            vanished: (!vanished.is_zero()).then_some(vanished),
            ..Sight::default()
        };
        let mut predecessors = Predecessors::default();
        predecessors.update(NOW, sight);
        predecessors.grace(NOW, own)
    }

    fn show(&self, world: &mut World, number: usize, vanished: Duration) {
        let client = world.clients[number];
        let announced = self.announced(client.grace, client.before, vanished);
        if let Key::Present { grace, .. } = &mut world.keys[number] {
            *grace = announced;
        }
    }

    /// How long a waiter waits for a vanished entry.
    fn delay(&self, grace: Duration) -> Duration {
        self.delay.unwrap_or_else(|| lock_delay(grace))
    }

    /// The guard's actions up to now, as late as the promise allows: [`LeaseTimings::deadlines`] hold whatever dlock
    /// does. A kill that is not certain by now leaves the tree alive until the next tick, in which all others act.
    pub(crate) fn guard(&self, client: &mut Client) {
        let deadlines = self.deadlines(client);
        if client.tree == Tree::Running && deadlines.stop_at <= NOW {
            client.tree = Tree::Stopping {
                since: NOW.since(deadlines.stop_at),
            };
            client.role = Role::Lost;
            client.paused = false;
            client.broken = false;
        }
        let Tree::Stopping { since } = client.tree else {
            return;
        };
        let overdue = NOW
            .since(deadlines.kill_at)
            .max(since.saturating_sub(client.grace));
        if GUARD_LATE <= client.clock.takes(overdue) {
            client.tree = Tree::None;
        }
    }

    /// Whether a holder with a broken watch must renew by now: the product's own rule, from the last proof on.
    pub(crate) fn is_due(&self, client: &Client) -> bool {
        let proven_at = NOW - client.proof_age;
        let mut heartbeat = Heartbeat::new(self.timings, proven_at, 0);
        if self.notice != Notice::Unhurried {
            heartbeat.watch(NOW, Watch::Broken);
        }
        heartbeat.due_at().is_some_and(|due_at| due_at <= NOW)
    }

    /// A watch is reopened.
    pub(crate) fn open(world: &mut World, number: usize) {
        let there = world.is_there(number);
        let client = &mut world.clients[number];
        client.broken = false;
        if !there {
            Self::lose(client);
        }
        world.tidy(number);
    }

    fn lose(client: &mut Client) {
        client.broken = false;
        match client.tree {
            Tree::None => client.finish(Role::Over),
            Tree::Running => {
                client.role = Role::Lost;
                client.tree = Tree::Stopping {
                    since: Duration::ZERO,
                };
            }
            Tree::Stopping { .. } => {}
        }
    }

    /// A dlock receives an answer.
    pub(crate) fn on_message(&self, world: &mut World, message: Message) {
        let number = message.client;
        let client = &mut world.clients[number];
        match message.letter {
            Letter::Entered { token } if client.role == Role::Entering => {
                client.role = Role::Waiting;
                client.token = token;
                client.highest_revision = token;
                // A grant is a raft write, so it is a proof.
                client.proof_age = message.age;
                world.network.retain(|other| {
                    let entry = matches!(other.letter, Letter::Enter | Letter::Entered { .. });
                    !(entry && other.client == number)
                });
            }
            Letter::Gone => Self::lose(client),
            Letter::Kept(kept) => {
                let Some(asked) = client.asked.as_mut().filter(|it| it.age == message.age) else {
                    return;
                };
                if asked.kept.is_some() {
                    return;
                }
                asked.kept = Some(kept);
                // Further answers to this request are ignored.
                world.network.retain(|other| {
                    !(matches!(other.letter, Letter::Kept(_)) && other.client == number)
                });
                if self.rule == Rule::BareKeepalive {
                    if kept.known {
                        client.proof_age = client.proof_age.min(message.age);
                    }
                    world.hang_up(number);
                } else {
                    world.send(number, Letter::Read { at: kept.by }, message.age);
                }
            }
            Letter::Shown {
                by,
                term,
                revision,
                token,
            } => {
                let read_by = Header {
                    cluster: CLUSTER,
                    member: by.0 as u64,
                    term,
                    revision,
                };
                let asked = client.asked.filter(|it| it.age == message.age);
                let Some(kept) = asked.and_then(|it| it.kept) else {
                    return;
                };
                let kept_by = Header {
                    member: kept.by.0 as u64,
                    term: match self.rule {
                        Rule::AnyTerm => term,
                        Rule::BareKeepalive | Rule::Proof => kept.term,
                    },
                    ..read_by
                };
                let renewal = Renewal {
                    sent_at: NOW - message.age,
                    keepalive: kept.known.then_some((kept_by, self.timings.ttl())),
                    read: (read_by, token.map(|token| entry_id(number, token))),
                };
                self.verify(client, number, &renewal);
                world.hang_up(number);
            }
            Letter::Enter
            | Letter::Entered { .. }
            | Letter::Keepalive { .. }
            | Letter::Read { .. } => {}
        }
        world.tidy(number);
    }

    /// The rule of the product.
    fn verify(&self, client: &mut Client, number: usize, renewal: &Renewal) {
        let mut ownership = Ownership {
            entry: entry_id(number, client.token),
            cluster: CLUSTER,
            highest_revision: client.highest_revision,
        };
        let verdict = ownership.verify(renewal);
        client.highest_revision = ownership.highest_revision;
        match verdict {
            Verdict::Proven(ttl) => {
                let proven = self.timings.granted(ttl).deadlines(renewal.sent_at);
                if self.deadlines(client).kill_at < proven.kill_at {
                    client.proof_age = NOW.since(renewal.sent_at);
                }
            }
            Verdict::Inconclusive(_) => {}
            Verdict::Lost(_) => Self::lose(client),
        }
    }

    /// A waiter's read of the entries before it, as in `etcd/queue.rs`.
    pub(crate) fn outlook(&self, world: &World, number: usize) -> Outlook {
        // A successor of an exclusive holder that was alone reads no other entry.
        let before = world.clients[number].before;
        if let Some(one) = before {
            let released = world.end(one) == Some(End::Released);
            // A record may be forged by its writer.
            let told = self.believes && world.forged == Some(one.client);
            if (released || told) && world.is_there(number) {
                return Outlook::Free;
            }
        }
        if let Some(nearest) = world.nearest(number) {
            return Outlook::Behind(nearest);
        }
        Self::vanished(world, before)
            .filter(|grace| !self.delay(*grace).is_zero())
            .map_or(Outlook::Free, Outlook::Vanished)
    }

    /// The announced grace of the vanished entries among those that were waited for.
    fn vanished(world: &World, mut before: Option<Before>) -> Option<Duration> {
        while let Some(one) = before {
            before = match world.end(one) {
                Some(End::Left(awaited)) => awaited,
                Some(End::Expired | End::Revoked) => return Some(one.grace),
                Some(End::Released) | None => None,
            };
        }
        None
    }

    pub(crate) fn turn(&self, world: &mut World, number: usize) {
        if !world.is_there(number) {
            // A waiter that lost its entry in another way is a newcomer, which finds the queue empty: that is a limit.
            if self.mishap == Mishap::DeleteAll && world.keys[number] == Key::Gone(End::Revoked) {
                self.queue_again(world, number);
            }
            return;
        }
        let outlook = self.outlook(world, number);
        let client = &mut world.clients[number];
        match (client.role, outlook) {
            (role @ (Role::Waiting | Role::Delaying { .. }), Outlook::Behind(one)) => {
                // An entry that a read no longer shows may have vanished while others exist.
                client.before = Some(one);
                let vanished = match role {
                    Role::Delaying { left, grace } if !left.is_zero() => grace,
                    _ => Duration::ZERO,
                };
                self.show(world, number, vanished);
            }
            (Role::Waiting, Outlook::Vanished(grace)) => {
                client.before = None;
                let left = self.delay(grace);
                client.role = Role::Delaying { left, grace };
                self.show(world, number, grace);
            }
            (Role::Delaying { left, grace }, Outlook::Vanished(more)) => {
                client.before = None;
                client.role = Role::Delaying {
                    left: left.max(self.delay(more)),
                    grace: grace.max(more),
                };
                self.show(world, number, grace.max(more));
            }
            (Role::Delaying { left, .. }, _) if !left.is_zero() => {}
            // The command starts only with a young proof.
            _ if client.proof_age <= self.timings.renew_interval() => {
                client.role = Role::Holding;
                client.tree = Tree::Running;
                client.before = None;
                self.show(world, number, Duration::ZERO);
            }
            _ if self.unproven != Unproven::None && client.turn.is_none() => {
                client.turn = Some(TurnAge {
                    begun: Duration::ZERO,
                    seen: None,
                });
            }
            _ => {}
        }
    }

    /// The product's rule, with a read in every tick between the first and the last.
    fn turn_of(&self, age: TurnAge) -> Turn {
        let mut turn = Turn::new(NOW - age.begun, self.timings.ttl());
        if let Some((first, last)) = age.seen {
            let mut seen = first;
            while last < seen {
                turn.entry_seen(NOW - seen);
                seen -= TICK;
            }
            turn.entry_seen(NOW - last);
        }
        turn
    }

    /// Whether the waiter behind the proxy has to do something before time passes: etcd answers its reads.
    pub(crate) fn must_check(&self, world: &World) -> bool {
        let client = &world.clients[PROXIED];
        let is_young = client.proof_age <= self.timings.renew_interval();
        client
            .turn
            .map_or(!is_young, |age| self.turn_of(age).check_at() <= NOW)
    }

    /// A waiter whose turn has come reads its entry.
    pub(crate) fn check_turn(&self, world: &mut World, number: usize) {
        let there = world.is_there(number);
        let client = &mut world.clients[number];
        let Some(age) = client.turn.filter(|_| there) else {
            return;
        };
        if self.turn_of(age).entry_seen(NOW) {
            self.leave_queue(world, number);
            return;
        }
        let first = age.seen.map_or(Duration::ZERO, |(first, _)| first);
        let seen = Some((first, Duration::ZERO));
        client.turn = Some(TurnAge { seen, ..age });
    }

    /// A waiter whose entry is gone reads the queue and creates another entry.
    fn queue_again(&self, world: &mut World, number: usize) {
        let client = world.clients[number];
        let mut role = client.role;
        if let Some(grace) = Self::vanished(world, client.before) {
            let (left, before) = match role {
                Role::Delaying { left, grace } => (left, grace),
                _ => Default::default(),
            };
            role = Role::Delaying {
                left: left.max(self.delay(grace)),
                grace: before.max(grace),
            };
        }
        world.revision += 1;
        world.keys[number] = Key::Present {
            left: self.timings.ttl(),
            token: world.revision,
            grace: client.grace,
        };
        world.clients[number] = Client {
            role,
            token: world.revision,
            highest_revision: world.revision,
            proof_age: Duration::ZERO,
            before: world.nearest(number),
            ..client
        };
        let vanished = match role {
            Role::Delaying { left, grace } if !left.is_zero() => grace,
            _ => Duration::ZERO,
        };
        self.show(world, number, vanished);
    }

    /// A waiter leaves, and writes a record.
    pub(crate) fn leave_queue(&self, world: &mut World, number: usize) {
        let client = &mut world.clients[number];
        if let (Word::Names, Role::Delaying { left, .. }) = (self.word, client.role)
            && !left.is_zero()
        {
            client.finish(Role::Cooling { left });
            return;
        }
        let told = match (self.word, client.role) {
            (Word::Names, Role::Waiting | Role::Delaying { .. }) => client.before,
            (Word::Names | Word::None, _) => None,
        };
        client.finish(Role::Over);
        Self::vanish(world, number, End::Left(told));
    }
}

/// A waiter's read of the entries before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlook {
    Behind(Before),
    /// No entry exists, but one vanished without its own release; it announced this.
    Vanished(Duration),
    Free,
}

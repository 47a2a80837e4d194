//! The state of the model: etcd's keys and members, two or more dlocks, and the messages between them.
//! It must not know the next steps, nor the properties.

use std::collections::BTreeSet;
use std::time::Duration;

use dlock::core::time::Instant;

/// The leader's clock steps from one whole second to the next; messages, operators and elections act at whole seconds
/// only, in every order. Guards act between them, to the millisecond.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// Every clock reads this in every state: only differences matter, so states hold ages instead of times, and the model
/// needs no end of time.
pub(crate) const NOW: Instant = Instant::from_boot(Duration::from_hours(1));

/// Rate of a host's clock, in thousandths of the leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rate(pub(crate) u32);

impl Rate {
    pub(crate) const EXACT: Self = Self(1000);

    /// The time on this clock while the leader's counts `duration`.
    pub(crate) fn counts(self, duration: Duration) -> Duration {
        duration * self.0 / 1000
    }

    /// The time on the leader's clock while this one counts `duration`.
    pub(crate) fn takes(self, duration: Duration) -> Duration {
        duration * 1000 / self.0
    }
}

/// One of the two etcd members, which lead in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Member(pub(crate) usize);

impl Member {
    pub(crate) const ALL: [Self; 2] = [Self(0), Self(1)];

    /// The leader of a term.
    pub(crate) fn leading(term: u64) -> Self {
        if term % 2 == 1 { Self(0) } else { Self(1) }
    }
}

/// The entry right before a waiter, by its last read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Before {
    pub(crate) client: usize,
    pub(crate) token: i64,
    /// The grace that it announced.
    pub(crate) grace: Duration,
}

/// How a key was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    /// By its owner's own transaction, when no entry was before it.
    Released,
    /// By its owner's own transaction, before its turn; with the entries it waited for, if it names them.
    Left(Option<Before>),
    /// The true leader saw its lease expire.
    Expired,
    /// By the operator.
    Revoked,
}

/// A client's key and lease in the true leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Absent,
    Present {
        /// Until the lease runs out, on the leader's clock.
        left: Duration,
        /// Its create revision: its position in the queue.
        token: i64,
        /// The grace that its record announces.
        grace: Duration,
    },
    Gone(End),
}

/// The living part of a client's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tree {
    None,
    Running,
    /// It has been asked to stop, this long ago on its host's clock.
    Stopping {
        since: Duration,
    },
}

/// The role of a dlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Away,
    /// Its grant and its key are in transit.
    Entering,
    Waiting,
    /// An entry before it vanished: it waits for that one's tree to die, for the given rest, with this grace.
    Delaying {
        left: Duration,
        grace: Duration,
    },
    /// It has given up during a lock delay: its entry stays for the rest of that time, on the leader's clock.
    Cooling {
        left: Duration,
    },
    Holding,
    /// It has given up the lock; the tree may still be stopping.
    Lost,
    /// The tree is dead, the key still exists.
    Ended,
    Over,
}

/// The answer to a keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Kept {
    pub(crate) by: Member,
    pub(crate) term: u64,
    /// The leader that was asked knew the lease.
    pub(crate) known: bool,
}

/// A pending renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    /// Age of the keepalive, on the sender's clock.
    pub(crate) age: Duration,
    /// The first half of the answer.
    pub(crate) kept: Option<Kept>,
}

/// The turn of a waiter that has no young proof, as ages on its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TurnAge {
    pub(crate) begun: Duration,
    /// The first and the last of the reads that have shown its entry, one in each tick.
    pub(crate) seen: Option<(Duration, Duration)>,
}

/// One dlock with its guard and its command, on a host of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    pub(crate) clock: Rate,
    pub(crate) role: Role,
    /// dlock is stopped, or gets no processor; its guard is not.
    pub(crate) paused: bool,
    /// The watch on the own key is broken.
    pub(crate) broken: bool,
    pub(crate) tree: Tree,
    /// Age of the last proof's keepalive, on this host's clock.
    pub(crate) proof_age: Duration,
    pub(crate) asked: Option<Asked>,
    pub(crate) token: i64,
    pub(crate) highest_revision: i64,
    /// The entry that it waits for: the one right before it at its last read.
    pub(crate) before: Option<Before>,
    pub(crate) turn: Option<TurnAge>,
    /// Time between the stop and the kill of its command.
    pub(crate) grace: Duration,
}

impl Client {
    pub(crate) const fn new(clock: Rate) -> Self {
        Self {
            clock,
            role: Role::Away,
            paused: false,
            broken: false,
            tree: Tree::None,
            proof_age: Duration::ZERO,
            asked: None,
            token: 0,
            highest_revision: 0,
            before: None,
            turn: None,
            grace: Duration::ZERO,
        }
    }

    /// Only the role matters from here on, so all histories lead to one state.
    pub(crate) fn finish(&mut self, role: Role) {
        *self = Self {
            role,
            ..Self::new(Rate::EXACT)
        };
    }

    /// A watch on the own key is open.
    pub(crate) fn watches(&self) -> bool {
        self.is_interested() && !self.broken
    }

    /// In this role dlock renews its lease.
    fn is_interested(&self) -> bool {
        matches!(
            self.role,
            Role::Waiting | Role::Delaying { .. } | Role::Holding
        )
    }

    /// dlock acts, and renews its lease.
    pub(crate) fn renews(&self) -> bool {
        self.is_interested() && !self.paused
    }
}

/// A message between a client and etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Letter {
    /// Grant and transaction.
    Enter,
    Entered {
        token: i64,
    },
    Keepalive {
        at: Member,
    },
    Kept(Kept),
    /// The linearizable read of the own key.
    Read {
        at: Member,
    },
    Shown {
        by: Member,
        term: u64,
        revision: i64,
        token: Option<i64>,
    },
    /// A watch reports that the own key is gone.
    Gone,
}

/// A message, its client, and its age: the age of the request on the client's clock also tells which request an answer
/// belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Message {
    pub(crate) client: usize,
    pub(crate) letter: Letter,
    pub(crate) age: Duration,
}

/// The whole state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// The raft term of the true leader.
    pub(crate) term: u64,
    /// The term of the last entry that each member has applied, which is in its headers.
    pub(crate) applied: [u64; 2],
    pub(crate) revision: i64,
    pub(crate) keys: Vec<Key>,
    pub(crate) clients: Vec<Client>,
    /// A message stays after its delivery and may be delivered again; one that is not delivered in its lifetime is lost.
    pub(crate) network: BTreeSet<Message>,
    pub(crate) revocations: usize,
    pub(crate) pauses: usize,
    /// A waiter was killed.
    pub(crate) killed: bool,
    /// A release record of this client was forged.
    pub(crate) forged: Option<usize>,
    /// How long the waiter behind the proxy has blocked the queue, on the leader's clock.
    pub(crate) blocked: Duration,
}

impl World {
    pub(crate) fn send(&mut self, client: usize, letter: Letter, age: Duration) {
        self.network.insert(Message {
            client,
            letter,
            age,
        });
    }

    /// A finished or dropped renewal: its stream is closed, so that no answer to it arrives any more. The keepalive
    /// itself may still reach a server.
    pub(crate) fn hang_up(&mut self, client: usize) {
        self.clients[client].asked = None;
        self.network.retain(|message| {
            let heard = matches!(
                message.letter,
                Letter::Kept(_) | Letter::Read { .. } | Letter::Shown { .. }
            );
            !(heard && message.client == client)
        });
    }

    /// The entry right before this client in the queue.
    pub(crate) fn nearest(&self, client: usize) -> Option<Before> {
        let own = self.token(client)?;
        let before = (0..self.keys.len()).filter_map(|client| match self.keys[client] {
            Key::Present { token, grace, .. } if token < own => Some(Before {
                client,
                token,
                grace,
            }),
            _ => None,
        });
        before.max_by_key(|before| before.token)
    }

    /// The present state of a client that was read before: its current key, or `None`.
    pub(crate) fn still(&self, before: Before) -> Option<Before> {
        match self.keys[before.client] {
            Key::Present { token, grace, .. } if token == before.token => {
                Some(Before { grace, ..before })
            }
            _ => None,
        }
    }

    /// How the key of a client that was read before was deleted. If the client has another key, the first one was deleted
    /// before.
    pub(crate) fn end(&self, before: Before) -> Option<End> {
        match self.keys[before.client] {
            Key::Gone(end) => Some(end),
            Key::Present { token, .. } if token != before.token => Some(End::Revoked),
            Key::Absent | Key::Present { .. } => None,
        }
    }

    /// Whether no entry is before this client in the queue.
    pub(crate) fn is_first(&self, client: usize) -> bool {
        self.is_there(client) && self.nearest(client).is_none()
    }

    /// Whether this client's key exists.
    pub(crate) fn is_there(&self, client: usize) -> bool {
        self.token(client).is_some()
    }

    fn token(&self, client: usize) -> Option<i64> {
        match self.keys[client] {
            Key::Present { token, .. } => Some(token),
            Key::Absent | Key::Gone(_) => None,
        }
    }

    /// The numbers of the clients whose command, or a part of it, is alive.
    pub(crate) fn alive(&self) -> impl Iterator<Item = usize> {
        (0..self.clients.len()).filter(|client| self.clients[*client].tree != Tree::None)
    }

    /// Whether a command runs while the key of another client was deleted in such a way. Each client joins once, so the
    /// one that runs is the later one.
    pub(crate) fn runs_after(&self, how: impl Fn(End) -> bool) -> bool {
        let went = |key: &Key| matches!(key, Key::Gone(end) if how(*end));
        self.alive().count() == 1
            && self
                .clients
                .iter()
                .any(|client| client.tree == Tree::Running)
            && self.keys.iter().any(went)
    }

    /// This client's key does not matter any more.
    pub(crate) fn tidy(&mut self, client: usize) {
        let key = self.keys[client];
        let subject = &mut self.clients[client];
        if subject.tree == Tree::None && matches!(subject.role, Role::Lost | Role::Ended) {
            let role = match key {
                Key::Present { .. } => Role::Ended,
                Key::Absent | Key::Gone(_) => Role::Over,
            };
            subject.finish(role);
        }
        if matches!(
            self.clients[client].role,
            Role::Lost | Role::Ended | Role::Over
        ) {
            self.clients[client].asked = None;
            self.network.retain(|message| {
                let renews = matches!(message.letter, Letter::Keepalive { .. })
                    && matches!(key, Key::Present { .. });
                message.client != client || renews
            });
        }
    }
}

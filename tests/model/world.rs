//! What there is in the model at one moment: etcd's keys and members, two or more dlocks, and the messages between them.
//! It must not know what may happen next, nor what is to be shown.

use std::collections::BTreeSet;
use std::time::Duration;

use dlock::core::time::Instant;

/// The leader's clock goes from one whole second to the next; messages, people and elections act at
/// whole seconds only, in every order. Guards act between them, to the millisecond.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// Every clock reads this in every state: only differences matter, so states hold ages and not
/// moments, and the model needs no end of time.
pub(crate) const NOW: Instant = Instant::from_boot(Duration::from_hours(1));

/// How fast a host's clock runs, in thousandths of the leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rate(pub(crate) u32);

impl Rate {
    pub(crate) const EXACT: Self = Self(1000);

    /// What this clock counts while the leader's counts `duration`.
    pub(crate) fn counts(self, duration: Duration) -> Duration {
        duration * self.0 / 1000
    }

    /// What the leader's clock counts while this one counts `duration`.
    pub(crate) fn takes(self, duration: Duration) -> Duration {
        duration * 1000 / self.0
    }
}

/// One of the two etcd members that lead in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Member(pub(crate) usize);

impl Member {
    pub(crate) const ALL: [Self; 2] = [Self(0), Self(1)];

    /// Who leads in a term.
    pub(crate) fn leading(term: u64) -> Self {
        if term % 2 == 1 { Self(0) } else { Self(1) }
    }
}

/// The one right before a waiter, as its last look has shown that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Before {
    pub(crate) client: usize,
    pub(crate) token: i64,
    /// The grace that it announced.
    pub(crate) grace: Duration,
}

/// How a key went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    /// By its owner's own transaction, when nobody was before it any more.
    Released,
    /// By its owner's own transaction, before its turn; for whom it has waited, if it says so.
    Left(Option<Before>),
    /// The true leader saw its lease run out.
    Expired,
    /// By the operator's hand.
    Revoked,
}

/// A client's key and lease, as the true leader has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Absent,
    Present {
        /// Until the lease runs out, on the leader's clock.
        left: Duration,
        /// Its create revision: its place in the queue.
        token: i64,
        /// The grace that its record announces.
        grace: Duration,
    },
    Gone(End),
}

/// What runs of a client's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tree {
    None,
    Running,
    /// It has been asked to stop, so long ago on its host's clock.
    Stopping {
        since: Duration,
    },
}

/// Where a dlock stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Away,
    /// Its grant and its key are on their way.
    Entering,
    Waiting,
    /// One before it went uncleanly: it gives that one's tree time to die, so much yet, for this grace.
    Delaying {
        left: Duration,
        grace: Duration,
    },
    /// It has given up while it delayed: its place stays for the rest of that time, on the leader's clock.
    Cooling {
        left: Duration,
    },
    Holding,
    /// It has given up the lock; the tree may still be stopping.
    Lost,
    /// The tree is dead, the key is still there.
    Ended,
    Over,
}

/// The answer to a keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Kept {
    pub(crate) by: Member,
    pub(crate) term: u64,
    /// The lease was known to the leader that was asked.
    pub(crate) known: bool,
}

/// A renewal under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    /// Since the keepalive was sent, on the sender's clock.
    pub(crate) age: Duration,
    /// The first half of the answer.
    pub(crate) kept: Option<Kept>,
}

/// One dlock with its guard and its command, on a host of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    pub(crate) clock: Rate,
    pub(crate) role: Role,
    /// dlock is stopped, or gets no processor; its guard does not share that fate.
    pub(crate) paused: bool,
    /// The watch on the own key is broken.
    pub(crate) broken: bool,
    pub(crate) tree: Tree,
    /// Since the last proof's question was sent, on this host's clock.
    pub(crate) proof_age: Duration,
    pub(crate) asked: Option<Asked>,
    pub(crate) token: i64,
    pub(crate) highest_revision: i64,
    /// Whom it waits for: the one right before it at its last look.
    pub(crate) before: Option<Before>,
    /// Between the stop and the kill of its command.
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
            grace: Duration::ZERO,
        }
    }

    /// Nothing but the role matters from here on, so whatever led here is one state.
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

    /// In this role dlock takes an interest in its lease.
    fn is_interested(&self) -> bool {
        matches!(
            self.role,
            Role::Waiting | Role::Delaying { .. } | Role::Holding
        )
    }

    /// dlock acts at all, and takes an interest in its lease.
    pub(crate) fn renews(&self) -> bool {
        self.is_interested() && !self.paused
    }
}

/// Something on its way between a client and etcd.
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
    /// A watch says that the own key is gone.
    Gone,
}

/// A letter, whose it is, and how old: the question's age on the client's clock also tells which
/// question an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Message {
    pub(crate) client: usize,
    pub(crate) letter: Letter,
    pub(crate) age: Duration,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// The raft term of the true leader.
    pub(crate) term: u64,
    /// The term of the last entry that each member has applied: what its headers say.
    pub(crate) applied: [u64; 2],
    pub(crate) revision: i64,
    pub(crate) keys: Vec<Key>,
    pub(crate) clients: Vec<Client>,
    /// A message stays after its delivery and may come again; one that nobody delivers in its
    /// lifetime is lost.
    pub(crate) network: BTreeSet<Message>,
    pub(crate) revocations: usize,
    pub(crate) pauses: usize,
    /// A waiter was killed.
    pub(crate) killed: bool,
    /// Somebody has written that this one gave the lock back.
    pub(crate) forged: Option<usize>,
}

impl World {
    pub(crate) fn send(&mut self, client: usize, letter: Letter, age: Duration) {
        self.network.insert(Message {
            client,
            letter,
            age,
        });
    }

    /// A finished or dropped renewal: its stream is closed, so that nothing of it is heard any more.
    /// The keepalive itself may still reach a server.
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

    /// The one right before this client in the queue.
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

    /// The present state of a client that was seen before: its key as it is there, or `None`.
    pub(crate) fn still(&self, before: Before) -> Option<Before> {
        match self.keys[before.client] {
            Key::Present { token, grace, .. } if token == before.token => {
                Some(Before { grace, ..before })
            }
            _ => None,
        }
    }

    /// How the key of one that was seen before has gone. A client that stands there with another key was deleted before.
    pub(crate) fn end(&self, before: Before) -> Option<End> {
        match self.keys[before.client] {
            Key::Gone(end) => Some(end),
            Key::Present { token, .. } if token != before.token => Some(End::Revoked),
            Key::Absent | Key::Present { .. } => None,
        }
    }

    /// Whether nobody stands before this client in the queue.
    pub(crate) fn is_first(&self, client: usize) -> bool {
        self.is_there(client) && self.nearest(client).is_none()
    }

    /// Whether this client's key is there.
    pub(crate) fn is_there(&self, client: usize) -> bool {
        self.token(client).is_some()
    }

    fn token(&self, client: usize) -> Option<i64> {
        match self.keys[client] {
            Key::Present { token, .. } => Some(token),
            Key::Absent | Key::Gone(_) => None,
        }
    }

    /// The numbers of those whose command, or a part of it, is alive.
    pub(crate) fn alive(&self) -> impl Iterator<Item = usize> {
        (0..self.clients.len()).filter(|client| self.clients[*client].tree != Tree::None)
    }

    /// Whether a command runs while somebody else's key has gone in such a way. Each client enters
    /// once, so the one that runs is the later one.
    pub(crate) fn runs_after(&self, how: impl Fn(End) -> bool) -> bool {
        let went = |key: &Key| matches!(key, Key::Gone(end) if how(*end));
        self.alive().count() == 1
            && self
                .clients
                .iter()
                .any(|client| client.tree == Tree::Running)
            && self.keys.iter().any(went)
    }

    /// This client's story is over as far as its key is concerned: nothing of it matters any more.
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

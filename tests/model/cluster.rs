//! etcd's side of the model: keys, leases, and the answers of its members.
//! It must not know what clients make of the answers.

use std::time::Duration;

use super::steps::{Experiment, PROXIED, Unproven};
use super::world::{End, Kept, Key, Letter, Member, Message, Role, World};

impl Experiment {
    /// The true leader is deposed; the other member takes over.
    pub(crate) fn elect(&self, world: &mut World) {
        world.term += 1;
        world.applied[Member::leading(world.term).0] = world.term;
        // A new leader extends every lease to its full TTL (lessor.Promote).
        for key in &mut world.keys {
            if let Key::Present { left, .. } = key {
                *left = self.timings.ttl();
            }
        }
    }

    /// The key is deleted, by anyone.
    pub(crate) fn vanish(world: &mut World, gone: usize, end: End) {
        if !world.is_there(gone) {
            return;
        }
        world.revision += 1;
        world.keys[gone] = Key::Gone(end);
        if matches!(end, End::Expired | End::Revoked) && world.clients[gone].watches() {
            world.send(gone, Letter::Gone, Duration::ZERO);
        }
        world.tidy(gone);
    }

    /// All keys of the queue are deleted at once. The waiters continue: they read the queue and join again.
    pub(crate) fn delete_all(world: &mut World) {
        world.revision += 1;
        for number in 0..world.keys.len() {
            if !world.is_there(number) {
                continue;
            }
            world.keys[number] = Key::Gone(End::Revoked);
            if world.clients[number].role == Role::Holding {
                world.send(number, Letter::Gone, Duration::ZERO);
            }
            world.tidy(number);
        }
    }

    /// A server receives a request.
    pub(crate) fn serve(&self, world: &mut World, message: Message) {
        let Message {
            client,
            letter,
            age,
        } = message;
        match letter {
            Letter::Enter if world.keys[client] == Key::Absent => {
                world.revision += 1;
                let token = world.revision;
                world.keys[client] = Key::Present {
                    left: self.timings.ttl(),
                    token,
                    grace: world.clients[client].grace,
                };
                world.send(client, Letter::Entered { token }, age);
            }
            Letter::Keepalive { at } => {
                let term = world.applied[at.0];
                let known = if term == world.term {
                    match &mut world.keys[client] {
                        // etcd blocks until the lease is gone: no answer.
                        Key::Present { left, .. } if left.is_zero() => return,
                        Key::Present { left, .. } => {
                            *left = self.timings.ttl();
                            true
                        }
                        Key::Absent | Key::Gone(_) => false,
                    }
                } else {
                    // The member asks, or still is, the leader of its own term, which is deposed and does not know it: it
                    // answers for leases that the cluster may have dropped, and the true leader does not learn of it.
                    true
                };
                if world.clients[client].asked.is_some_and(|it| it.age == age) {
                    let kept = Kept {
                        by: at,
                        term,
                        known,
                    };
                    world.send(client, Letter::Kept(kept), age);
                }
            }
            // A member of an old term finds no quorum for its read index and does not answer.
            Letter::Read { at } if world.applied[at.0] == world.term => {
                let token = match world.keys[client] {
                    Key::Present { token, .. } => Some(token),
                    Key::Absent | Key::Gone(_) => None,
                };
                let proxied = self.unproven != Unproven::None && client == PROXIED;
                let by = if proxied { Member(1 - at.0) } else { at };
                let shown = Letter::Shown {
                    by,
                    term: world.term,
                    revision: world.revision,
                    token,
                };
                world.send(client, shown, age);
            }
            _ => {}
        }
    }
}

//! Three etcd members that form one cluster.
//! It must not know dlock.

use super::etcd::{Etcd, Plan};
use super::link::{Direction, Link, Mode};
use super::{LIMIT, eventually, free_port};

/// A cluster of three members on this machine.
pub(crate) struct Cluster {
    members: Vec<Etcd>,
    /// Links from the other members to each: its messages to them pass in the direction of the client.
    peers: Vec<Link>,
}

impl Cluster {
    /// Starts three members and waits until they serve.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more flags for each member.
    pub(crate) fn start_with(flags: &[&str]) -> Self {
        for _ in 0..5 {
            let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
            let peers: Vec<Link> = ports.iter().map(|(_, peer)| Link::to(*peer)).collect();
            let names = ["m0", "m1", "m2"];
            let initial_cluster = names
                .iter()
                .zip(&peers)
                .map(|(name, peer)| format!("{name}={}", peer.endpoint()))
                .collect::<Vec<_>>()
                .join(",");
            let members: Vec<Etcd> = names
                .iter()
                .zip(&ports)
                .zip(&peers)
                .map(|((name, (client_port, peer_port)), peer)| {
                    Etcd::launch(&Plan {
                        name,
                        client_port: *client_port,
                        peer_port: *peer_port,
                        advertised_port: peer.port(),
                        initial_cluster: initial_cluster.clone(),
                        scheme: "http",
                        flags,
                        ctl_flags: Vec::new(),
                    })
                })
                .collect();
            if members.iter().all(Etcd::ready) {
                return Self { members, peers };
            }
        }
        panic!("a cluster did not start five times running");
    }

    pub(crate) fn members(&self) -> &[Etcd] {
        &self.members
    }

    /// Holds back a member's messages to the others, while it still receives theirs; they miss it after some five
    /// seconds.
    pub(crate) fn hold_back(&self, member: usize) {
        self.peers[member].set(Direction::ToClient, Mode::Hold);
    }

    /// Delivers a member's messages again, with those held back.
    pub(crate) fn let_through(&self, member: usize) {
        self.peers[member].both(Mode::Pass);
    }

    /// All endpoints, comma separated.
    pub(crate) fn endpoints(&self) -> String {
        self.members
            .iter()
            .map(Etcd::endpoint)
            .collect::<Vec<_>>()
            .join(",")
    }

    /// The number of the current leader.
    pub(crate) fn leader(&self) -> usize {
        eventually(LIMIT, "the cluster has a leader", || {
            self.members.iter().position(|member| {
                let status = member.status().unwrap_or_default();
                let field = |name: &str| {
                    status
                        .lines()
                        .find_map(|line| line.strip_prefix(&format!("\"{name}\" : ")))
                        .map(str::to_owned)
                };
                field("Leader").is_some() && field("Leader") == field("MemberID")
            })
        })
    }
}

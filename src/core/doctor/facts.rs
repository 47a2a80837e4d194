//! The facts that the doctor's probes collect at the endpoints.
//! It must not know how they are collected, nor what they mean for locks.

use std::time::Duration;

use super::latency::Proof;
use crate::core::proof::{FencingToken, Header, is_grpc_proxy};

pub(super) const NO_LEADER: &str = "most members of the cluster are down or cut off from this one, or their disks hang, or an election is under way: try again in a few seconds";

/// A failed request, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    pub cause: String,
    pub hint: Option<String>,
    /// etcd was reached and refused; otherwise another endpoint, or a later try, may succeed.
    pub refused: bool,
}

impl Complaint {
    pub(super) fn denied(&self) -> bool {
        self.refused && self.cause.contains("permission denied")
    }

    /// The hint to show, if there is one.
    pub(super) fn help(&self) -> Option<&str> {
        let no_leader = self.cause.contains("no leader");
        self.hint.as_deref().or(no_leader.then_some(NO_LEADER))
    }

    pub(super) fn no_space(&self) -> bool {
        self.cause.contains("space exceeded")
    }
}

/// An endpoint and the result of its probe.
#[derive(Clone, Debug)]
pub struct Probe {
    pub endpoint: String,
    pub answer: Result<Answer, Complaint>,
}

/// An endpoint that answers, and its answer.
pub(super) type Named<'a> = (&'a str, &'a Answer);

/// The facts about an endpoint that answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Time until the first answer, connecting included.
    pub took: Duration,
    /// Header of the first answer; `None` when every request was refused.
    pub header: Option<Header>,
    /// `None` when the member reports its status to root only.
    pub status: Option<MemberStatus>,
    /// etcd's version, from the status or from the public `/version`.
    pub version: Option<String>,
    /// All members of the endpoint's cluster; empty if it does not list them.
    pub members: Vec<Member>,
    /// Whether authentication is enabled; `None` without a user.
    pub users: Option<bool>,
    pub trial: Trial,
    pub keys: Result<KeyFacts, Complaint>,
}

impl Answer {
    /// Whether an etcd gRPC proxy answers.
    pub fn is_from_proxy(&self) -> bool {
        is_grpc_proxy(self.members.iter().map(|member| member.id))
    }
}

/// The keys under the prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFacts {
    pub count: usize,
    /// Those without a lease.
    pub permanent: Vec<(String, FencingToken)>,
}

/// The status that a member reports.
#[derive(Clone, Debug, Default)]
pub struct MemberStatus {
    /// Member id of the leader; 0 for none.
    pub leader: u64,
    pub learner: bool,
    /// Size of the database and its quota in bytes; 0 when the server does not report it.
    pub size: i64,
    pub quota: i64,
    /// Alarms and other errors, in etcd's words.
    pub errors: Vec<String>,
}

/// A member as the cluster lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    /// Its client URLs.
    pub urls: Vec<String>,
    pub learner: bool,
}

/// A trial lock, taken through one endpoint.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Whether etcd allows every request that a lock needs.
    pub locks: Result<(), Complaint>,
    /// Whether the doctor could put, keep, read and delete a key of its own.
    pub key: Result<(), Complaint>,
    pub proofs: Vec<Proof>,
}

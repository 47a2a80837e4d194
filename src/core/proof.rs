//! The proof that a lock is held: the identity of an entry, and the verdict on the answers to a renewal.
//! It must not know how the requests are sent, nor how long a proof counts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::Instant;

/// An etcd lease's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// The id that etcd itself uses for no lease.
    pub const NONE: Self = Self(0);
}

/// The create revision of our key: it grows with every holder of the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FencingToken(pub i64);

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl std::fmt::Display for FencingToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The member that answered, and its state: the header of every etcd response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub cluster: u64,
    pub member: u64,
    /// The raft term of the last entry that the member applied.
    pub term: u64,
    pub revision: i64,
}

/// The identity of our key in the queue: no other key has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId {
    pub token: FencingToken,
    pub lease: LeaseId,
}

/// The answers to one renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The time before the keepalive was sent.
    pub sent_at: Instant,
    /// The answer to the keepalive; `None` if the server does not know the lease.
    pub keepalive: Option<(Header, Duration)>,
    /// The linearizable read of our key, sent after that answer had arrived.
    pub read: (Header, Option<EntryId>),
}

/// Why the lock is no longer ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// No proof came in time.
    Unproven,
    /// Our key is gone: the lease expired or was revoked, or the key was deleted.
    KeyGone,
    /// Our key is there but under another lease or another revision.
    KeyTaken,
    /// The file of our entry was removed or replaced.
    FileGone,
}

impl LossReason {
    /// The cause, for people.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Unproven => "no proof from etcd in time",
            Self::KeyGone => {
                "its key is gone (the lease expired or was revoked, or the key was deleted)"
            }
            Self::KeyTaken => "its key was overwritten",
            Self::FileGone => "its file in the state directory was removed or replaced",
        }
    }
}

/// Why a renewal with an answer does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inconclusive {
    /// The member belongs to another cluster than the one that granted the lock.
    OtherCluster,
    /// Keepalive and read were answered by different members.
    OtherMember,
    /// A new leader was elected between keepalive and read.
    OtherTerm,
    /// The server has gone back in time: restored from a backup, or a stale read.
    OlderRevision,
    /// The server says that the lease has no time left.
    NoTimeLeft,
}

impl Inconclusive {
    /// The cause, for people.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::OtherCluster => "the answer came from another cluster",
            Self::OtherMember => "two members answered",
            Self::OtherTerm => "a leader was being elected",
            Self::OlderRevision => "the server answered with older data than before",
            Self::NoTimeLeft => "the server did not know the time left of the lease",
        }
    }
}

/// The verdict on a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The lock was surely ours when the keepalive was sent, and the lease starts anew from there
    /// with this time to live.
    Proven(Duration),
    /// Nothing is proven and nothing is lost; the deadline stays.
    Inconclusive(Inconclusive),
    /// The lock is lost for certain.
    Lost(LossReason),
}

/// Our entry in the queue of one cluster, and our knowledge of that cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    pub entry: EntryId,
    pub cluster: u64,
    /// The highest revision in any answer.
    pub highest_revision: i64,
}

impl Ownership {
    /// The proof rule. A keepalive's answer alone proves nothing: a deposed or stuck leader answers for leases that the
    /// cluster has dropped (etcd issue 15247; measured on 3.4.23 and 3.5.30). If one member in one raft term answers a
    /// keepalive **and then** a linearizable read of our key, the true leader handled the keepalive.
    pub fn verify(&mut self, renewal: &Renewal) -> Verdict {
        let (read_by, key) = renewal.read;
        if read_by.cluster != self.cluster {
            return Verdict::Inconclusive(Inconclusive::OtherCluster);
        }
        if read_by.revision < self.highest_revision {
            return Verdict::Inconclusive(Inconclusive::OlderRevision);
        }
        self.highest_revision = read_by.revision;
        match key {
            None => return Verdict::Lost(LossReason::KeyGone),
            Some(entry) if entry != self.entry => return Verdict::Lost(LossReason::KeyTaken),
            Some(_) => {}
        }
        let doubt = match renewal.keepalive {
            None => Inconclusive::NoTimeLeft,
            Some((_, left)) if left.is_zero() => Inconclusive::NoTimeLeft,
            Some((kept_by, _)) if kept_by.cluster != self.cluster => Inconclusive::OtherCluster,
            Some((kept_by, _)) if kept_by.member != read_by.member => Inconclusive::OtherMember,
            Some((kept_by, _)) if kept_by.term != read_by.term => Inconclusive::OtherTerm,
            Some((_, ttl)) => return Verdict::Proven(ttl),
        };
        Verdict::Inconclusive(doubt)
    }
}

/// Whether the members that an endpoint lists have these ids because it is an etcd gRPC proxy, which answers keepalives by
/// itself: it lists itself, without an id (`server/proxy/grpcproxy/cluster.go`).
pub fn is_grpc_proxy(members: impl IntoIterator<Item = u64>) -> bool {
    members.into_iter().any(|id| id == 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::time::tests::at;
    use super::*;

    pub(crate) const HEADER: Header = Header {
        cluster: 7,
        member: 1,
        term: 3,
        revision: 100,
    };
    pub(crate) const PLACE: EntryId = EntryId {
        token: FencingToken(90),
        lease: LeaseId(0x1234),
    };

    pub(crate) fn ownership() -> Ownership {
        Ownership {
            entry: PLACE,
            cluster: HEADER.cluster,
            highest_revision: HEADER.revision,
        }
    }

    pub(crate) fn renewal(sent_at: Instant) -> Renewal {
        Renewal {
            sent_at,
            keepalive: Some((HEADER, Duration::from_secs(10))),
            read: (HEADER, Some(PLACE)),
        }
    }

    #[test]
    fn a_keepalive_and_a_read_by_one_member_in_one_term_prove() {
        assert_eq!(
            ownership().verify(&renewal(at(0.0))),
            Verdict::Proven(Duration::from_secs(10))
        );
    }

    #[test]
    fn answers_that_do_not_belong_together_prove_nothing() {
        let kept_by = |header: Header| Renewal {
            keepalive: Some((header, Duration::from_secs(10))),
            ..renewal(at(0.0))
        };
        let cases = [
            (
                kept_by(Header {
                    cluster: 8,
                    ..HEADER
                }),
                Inconclusive::OtherCluster,
            ),
            (
                kept_by(Header {
                    member: 2,
                    ..HEADER
                }),
                Inconclusive::OtherMember,
            ),
            (
                kept_by(Header { term: 2, ..HEADER }),
                Inconclusive::OtherTerm,
            ),
            (
                Renewal {
                    keepalive: None,
                    ..renewal(at(0.0))
                },
                Inconclusive::NoTimeLeft,
            ),
            (
                Renewal {
                    keepalive: Some((HEADER, Duration::ZERO)),
                    ..renewal(at(0.0))
                },
                Inconclusive::NoTimeLeft,
            ),
        ];
        for (renewal, doubt) in cases {
            assert_eq!(
                ownership().verify(&renewal),
                Verdict::Inconclusive(doubt),
                "{renewal:?}"
            );
        }
    }

    #[test]
    fn a_read_of_another_cluster_or_of_the_past_is_no_loss() {
        let read = |header, entry| Renewal {
            read: (header, entry),
            ..renewal(at(0.0))
        };
        assert_eq!(
            ownership().verify(&read(
                Header {
                    cluster: 8,
                    ..HEADER
                },
                None
            )),
            Verdict::Inconclusive(Inconclusive::OtherCluster)
        );
        assert_eq!(
            ownership().verify(&read(
                Header {
                    revision: 99,
                    ..HEADER
                },
                None
            )),
            Verdict::Inconclusive(Inconclusive::OlderRevision)
        );
    }

    #[test]
    fn a_key_that_is_gone_or_another_s_is_a_loss_whatever_the_keepalive_says() {
        let read = |entry| Renewal {
            read: (HEADER, entry),
            ..renewal(at(0.0))
        };
        assert_eq!(
            ownership().verify(&read(None)),
            Verdict::Lost(LossReason::KeyGone)
        );
        for other in [
            EntryId {
                lease: LeaseId(5),
                ..PLACE
            },
            EntryId {
                token: FencingToken(91),
                ..PLACE
            },
        ] {
            assert_eq!(
                ownership().verify(&read(Some(other))),
                Verdict::Lost(LossReason::KeyTaken)
            );
        }
    }

    #[test]
    fn revisions_that_were_seen_are_remembered() {
        let mut ownership = ownership();
        let mut later = renewal(at(0.0));
        later.read.0.revision = 200;
        assert!(matches!(ownership.verify(&later), Verdict::Proven(_)));
        assert_eq!(
            ownership.verify(&renewal(at(1.0))),
            Verdict::Inconclusive(Inconclusive::OlderRevision)
        );
    }
}

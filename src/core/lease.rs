//! How long we may believe that we hold the lock: moments, terms, and what counts as a proof.
//! It must not know which clock tells the moments, nor how etcd is asked.

use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment on `CLOCK_BOOTTIME` (`clock_gettime(2)`), which goes on counting while the machine sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    /// The moment `since_boot` after the clock's zero.
    pub const fn from_boot(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// Time since the clock's zero.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to `self`, zero when `earlier` is the later one.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

/// The two moments that the guard enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// From here on the command is asked to stop.
    pub stop_at: Instant,
    /// From here on nothing of the command may run.
    pub kill_at: Instant,
}

impl Deadlines {
    /// Of a lock that no time ends.
    pub const NEVER: Self = Self {
        stop_at: Instant::from_boot(Duration::MAX),
        kill_at: Instant::from_boot(Duration::MAX),
    };
}

/// The durations that a lease's time to live and the command's grace lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    ttl: Duration,
    grace: Duration,
}

impl Terms {
    /// No lease lives longer.
    pub const LONGEST_TTL: Duration = Duration::from_hours(24);
    /// The share of the TTL that pays for clocks of different rates: chrony slews by up to 8.3 %.
    const CLOCK_RATE: u32 = 10;
    /// What the kernel may need to run the guard and to end the tree.
    const SCHEDULING: Duration = Duration::from_millis(500);

    /// `ttl` is the lease's, `grace` the time between the stop and the kill of the command.
    pub const fn new(ttl: Duration, grace: Duration) -> Self {
        Self { ttl, grace }
    }

    /// The same with the TTL that the server granted, and never more than was asked: a server that
    /// errs must not make us believe for longer.
    #[must_use]
    pub fn granted(self, ttl: Duration) -> Self {
        Self {
            ttl: self.ttl.min(ttl),
            ..self
        }
    }

    /// The lease's time to live.
    pub const fn ttl(self) -> Duration {
        self.ttl
    }

    /// The time that the command has between being asked to stop and being killed.
    pub const fn grace(self) -> Duration {
        self.grace
    }

    /// What a command gets when the user does not say: five seconds, less under a short lease.
    pub fn default_grace(ttl: Duration) -> Duration {
        (ttl / 5).min(Duration::from_secs(5))
    }

    /// The longest grace that leaves room for two renewals before the command would be stopped.
    pub fn longest_grace(ttl: Duration) -> Duration {
        Self::belief(ttl).saturating_sub(ttl / 5 * 2)
    }

    /// How long after a proof's question was sent the lock is surely still ours.
    fn belief(ttl: Duration) -> Duration {
        (ttl / Self::CLOCK_RATE * (Self::CLOCK_RATE - 1)).saturating_sub(Self::SCHEDULING)
    }

    /// The time between two renewals.
    pub fn heartbeat(self) -> Duration {
        self.ttl / 5
    }

    /// How long one renewal may take before another endpoint is asked.
    pub fn attempt(self) -> Duration {
        (self.ttl / 8).clamp(Duration::from_millis(500), Duration::from_secs(2))
    }

    /// What a proof whose question left at `sent_at` is worth.
    pub fn deadlines(self, sent_at: Instant) -> Deadlines {
        let kill_at = sent_at + Self::belief(self.ttl);
        Deadlines {
            stop_at: kill_at - self.grace,
            kill_at,
        }
    }
}

/// An etcd lease's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// What etcd itself says for no lease.
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

/// Who answered, as the header of every etcd answer tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub cluster: u64,
    pub member: u64,
    /// The raft term of the last entry that the member applied.
    pub term: u64,
    pub revision: i64,
}

/// What makes a key in the queue ours: nobody else can have both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub token: FencingToken,
    pub lease: LeaseId,
}

/// What one attempt to renew brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The moment before the keepalive left.
    pub sent_at: Instant,
    /// The answer to the keepalive; `None` when the server does not know the lease.
    pub keepalive: Option<(Header, Duration)>,
    /// The linearizable read of our key that was sent after that answer had come.
    pub read: (Header, Option<Place>),
}

/// Why the lock is no longer ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// No proof came in time.
    Unproven,
    /// Our key is gone: the lease expired or was revoked, or somebody deleted the key.
    KeyGone,
    /// Our key is there but under another lease or another revision.
    KeyTaken,
    /// The file that is our place is not where it was: somebody removed or replaced it.
    FileGone,
}

/// Why a renewal does not count although it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The member belongs to another cluster than the one that gave us the lock.
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

/// What a renewal is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The lock was surely ours when the keepalive was sent, and the lease starts anew from there
    /// with this time to live.
    Proven(Duration),
    /// Nothing is proven and nothing is lost; the deadline goes on running.
    Doubtful(Doubt),
    /// The lock is lost for certain.
    Lost(Loss),
}

/// Our place in the queue of one cluster, and what we have learnt of that cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub place: Place,
    pub cluster: u64,
    /// The highest revision that any answer has shown.
    pub highest_revision: i64,
}

impl Claim {
    /// The proof rule. A keepalive's answer alone proves nothing: a deposed or stuck leader answers
    /// for leases that the cluster has dropped (etcd issue 15247; measured on 3.4.23 and 3.5.30).
    /// Keepalive, **then** a linearizable read of our key, both by one member in one raft term:
    /// then the keepalive was handled by the true leader.
    pub fn judge(&mut self, renewal: &Renewal) -> Verdict {
        let (read_by, key) = renewal.read;
        if read_by.cluster != self.cluster {
            return Verdict::Doubtful(Doubt::OtherCluster);
        }
        if read_by.revision < self.highest_revision {
            return Verdict::Doubtful(Doubt::OlderRevision);
        }
        self.highest_revision = read_by.revision;
        match key {
            None => return Verdict::Lost(Loss::KeyGone),
            Some(place) if place != self.place => return Verdict::Lost(Loss::KeyTaken),
            Some(_) => {}
        }
        let doubt = match renewal.keepalive {
            None => Doubt::NoTimeLeft,
            Some((_, left)) if left.is_zero() => Doubt::NoTimeLeft,
            Some((kept_by, _)) if kept_by.cluster != self.cluster => Doubt::OtherCluster,
            Some((kept_by, _)) if kept_by.member != read_by.member => Doubt::OtherMember,
            Some((kept_by, _)) if kept_by.term != read_by.term => Doubt::OtherTerm,
            Some((_, ttl)) => return Verdict::Proven(ttl),
        };
        Verdict::Doubtful(doubt)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const HEADER: Header = Header {
        cluster: 7,
        member: 1,
        term: 3,
        revision: 100,
    };
    pub(crate) const PLACE: Place = Place {
        token: FencingToken(90),
        lease: LeaseId(0x1234),
    };

    pub(crate) fn at(seconds: f64) -> Instant {
        Instant::from_boot(Duration::from_secs_f64(seconds))
    }

    pub(crate) fn claim() -> Claim {
        Claim {
            place: PLACE,
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
            claim().judge(&renewal(at(0.0))),
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
                Doubt::OtherCluster,
            ),
            (
                kept_by(Header {
                    member: 2,
                    ..HEADER
                }),
                Doubt::OtherMember,
            ),
            (kept_by(Header { term: 2, ..HEADER }), Doubt::OtherTerm),
            (
                Renewal {
                    keepalive: None,
                    ..renewal(at(0.0))
                },
                Doubt::NoTimeLeft,
            ),
            (
                Renewal {
                    keepalive: Some((HEADER, Duration::ZERO)),
                    ..renewal(at(0.0))
                },
                Doubt::NoTimeLeft,
            ),
        ];
        for (renewal, doubt) in cases {
            assert_eq!(
                claim().judge(&renewal),
                Verdict::Doubtful(doubt),
                "{renewal:?}"
            );
        }
    }

    #[test]
    fn a_read_of_another_cluster_or_of_the_past_is_no_loss() {
        let read = |header, place| Renewal {
            read: (header, place),
            ..renewal(at(0.0))
        };
        assert_eq!(
            claim().judge(&read(
                Header {
                    cluster: 8,
                    ..HEADER
                },
                None
            )),
            Verdict::Doubtful(Doubt::OtherCluster)
        );
        assert_eq!(
            claim().judge(&read(
                Header {
                    revision: 99,
                    ..HEADER
                },
                None
            )),
            Verdict::Doubtful(Doubt::OlderRevision)
        );
    }

    #[test]
    fn a_key_that_is_gone_or_another_s_is_a_loss_whatever_the_keepalive_says() {
        let read = |place| Renewal {
            read: (HEADER, place),
            ..renewal(at(0.0))
        };
        assert_eq!(claim().judge(&read(None)), Verdict::Lost(Loss::KeyGone));
        for other in [
            Place {
                lease: LeaseId(5),
                ..PLACE
            },
            Place {
                token: FencingToken(91),
                ..PLACE
            },
        ] {
            assert_eq!(
                claim().judge(&read(Some(other))),
                Verdict::Lost(Loss::KeyTaken)
            );
        }
    }

    #[test]
    fn revisions_that_were_seen_are_remembered() {
        let mut claim = claim();
        let mut later = renewal(at(0.0));
        later.read.0.revision = 200;
        assert!(matches!(claim.judge(&later), Verdict::Proven(_)));
        assert_eq!(
            claim.judge(&renewal(at(1.0))),
            Verdict::Doubtful(Doubt::OlderRevision)
        );
    }

    #[test]
    fn the_deadlines_are_those_of_the_manual() {
        for (ttl, grace, stop, kill) in [
            (10, 2.0, 6.5, 8.5),
            (30, 5.0, 21.5, 26.5),
            (60, 5.0, 48.5, 53.5),
        ] {
            let ttl = Duration::from_secs(ttl);
            assert_eq!(Terms::default_grace(ttl), Duration::from_secs_f64(grace));
            let terms = Terms::new(ttl, Terms::default_grace(ttl));
            assert_eq!(
                terms.deadlines(at(100.0)),
                Deadlines {
                    stop_at: at(100.0 + stop),
                    kill_at: at(100.0 + kill)
                }
            );
        }
    }

    #[test]
    fn a_generous_server_does_not_lengthen_the_lease() {
        let terms = Terms::new(Duration::from_secs(10), Duration::from_secs(2));
        assert_eq!(terms.granted(Duration::from_mins(1)), terms);
        assert_eq!(
            terms.granted(Duration::from_secs(8)).ttl(),
            Duration::from_secs(8)
        );
    }
}

//! The faults of a fake member and their times; without a rule it is honest.
//! It must not know how requests arrive, nor what is in the store.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use etcd_client::proto::{
    PbLeaseGrantResponse, PbLeaseKeepAliveResponse, PbLeaseRevokeResponse, PbResponseHeader,
    PbTxnResponse, PbWatchResponse,
};
use tokio::sync::watch;
use tonic::Code;

/// The kinds of requests that dlock sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Point {
    Login,
    /// The status of a member.
    Status,
    Grant,
    /// The transaction that puts a key.
    Place,
    /// The transaction that reads the queue.
    Look,
    /// The transaction that reads single keys: second half of a proof, first of a watch.
    Read,
    /// The transaction that deletes a key.
    Release,
    Revoke,
    /// The remaining time of a lease.
    TimeLeft,
    /// A stream of keepalives or watches.
    Open,
    /// One request on a keepalive stream.
    KeepAlive,
    /// One watch to be created on a watch stream.
    Watch,
}

/// A wrong value in an answer. A keepalive with such an answer was not executed, unless only the TTL is too large: a
/// deposed leader does that.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lie {
    /// An older raft term.
    Term,
    Member,
    Cluster,
    /// A revision from long ago.
    Revision,
    /// The TTL of a lease, in seconds.
    Ttl(i64),
    /// Another lease id.
    Lease,
}

/// The treatment of one request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Honest,
    Lie(Lie),
    /// Not executed, and refused.
    Refuse(Code, &'static str),
    /// Executed, and refused nevertheless after a while.
    RefuseDone(Duration, Code, &'static str),
    /// Executed; answered after [`Script::let_go`].
    Hold,
    /// Neither executed nor answered, ever.
    Swallow,
    /// Executed; instead of an answer the connection is closed.
    Cut,
    /// Not executed; instead of an answer the server's half of the stream is closed.
    Close,
    /// Keepalives only: answered as if renewed, but the lease is not.
    Pretend,
    /// Watches only: created, and cancelled at once because the revision is compacted.
    Compacted,
    /// Watches only: the first event, for the current key, is of an unknown kind.
    Strange,
}

struct Rule {
    point: Point,
    /// `None` for ever.
    times: Option<u32>,
    act: Act,
}

/// The rules for the next requests, the earliest first.
pub(super) struct Script {
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<BTreeMap<Point, u32>>,
    resumed: watch::Sender<u64>,
    version: Mutex<&'static str>,
}

impl Script {
    pub(super) fn new() -> Self {
        Self {
            rules: Mutex::default(),
            seen: Mutex::default(),
            resumed: watch::channel(0).0,
            version: Mutex::new("3.6.11"),
        }
    }

    /// Reports another version from now on.
    pub(super) fn set_version(&self, version: &'static str) {
        *self.version.lock().expect("no panic while locked") = version;
    }

    pub(super) fn version(&self) -> &'static str {
        *self.version.lock().expect("no panic while locked")
    }

    /// Applies `act` to the next request of this kind for which nothing else is planned.
    pub(super) fn once(&self, point: Point, act: Act) {
        self.plan(point, Some(1), act);
    }

    /// Applies `act` to all requests of this kind, after those that are planned.
    pub(super) fn always(&self, point: Point, act: Act) {
        self.plan(point, None, act);
    }

    /// Answers nothing at all from now on.
    pub(super) fn silence(&self) {
        use Point::{
            Grant, KeepAlive, Login, Look, Open, Place, Read, Release, Revoke, Status, TimeLeft,
            Watch,
        };
        self.rules.lock().expect("no panic while locked").clear();
        for point in [
            Login, Status, Grant, Place, Look, Read, Release, Revoke, TimeLeft, Open, KeepAlive,
            Watch,
        ] {
            self.always(point, Act::Swallow);
        }
    }

    fn plan(&self, point: Point, times: Option<u32>, act: Act) {
        let mut rules = self.rules.lock().expect("no panic while locked");
        rules.push(Rule { point, times, act });
    }

    /// Honest from now on for requests of this kind.
    pub(super) fn end(&self, point: Point) {
        let mut rules = self.rules.lock().expect("no panic while locked");
        rules.retain(|rule| rule.point != point);
    }

    /// Honest from now on; answers that are held are sent.
    pub(super) fn resume(&self) {
        self.rules.lock().expect("no panic while locked").clear();
        self.let_go();
    }

    /// Sends all answers that are held.
    pub(super) fn let_go(&self) {
        self.resumed.send_modify(|count| *count += 1);
    }

    /// Number of requests of this kind so far.
    pub(super) fn seen(&self, point: Point) -> u32 {
        let seen = self.seen.lock().expect("no panic while locked");
        seen.get(&point).copied().unwrap_or_default()
    }

    /// Whether nothing is planned any more for requests of this kind.
    pub(super) fn is_done(&self, point: Point) -> bool {
        let rules = self.rules.lock().expect("no panic while locked");
        rules.iter().all(|rule| rule.point != point)
    }

    /// Counts a request and returns its treatment.
    pub(super) fn next(&self, point: Point) -> Act {
        *self
            .seen
            .lock()
            .expect("no panic while locked")
            .entry(point)
            .or_default() += 1;
        let mut rules = self.rules.lock().expect("no panic while locked");
        let Some(index) = rules.iter().position(|rule| rule.point == point) else {
            return Act::Honest;
        };
        let rule = &mut rules[index];
        let act = rule.act;
        if let Some(times) = &mut rule.times {
            *times -= 1;
            if *times == 0 {
                rules.remove(index);
            }
        }
        act
    }

    /// Waits until the held answers are released.
    pub(super) async fn resumption(&self) {
        let mut resumed = self.resumed.subscribe();
        resumed.borrow_and_update();
        let _ = resumed.changed().await;
    }
}

/// An answer that can be falsified.
pub(super) trait Answer {
    fn header(&mut self) -> &mut Option<PbResponseHeader>;

    fn ttl(&mut self) -> Option<&mut i64> {
        None
    }

    fn lease(&mut self) -> Option<&mut i64> {
        None
    }

    fn falsify(&mut self, lie: Lie) {
        let header = self.header().get_or_insert_default();
        match lie {
            Lie::Term => header.raft_term -= 1,
            Lie::Member => header.member_id += 1,
            Lie::Cluster => header.cluster_id += 1,
            Lie::Revision => header.revision = 2,
            Lie::Ttl(seconds) => *self.ttl().expect("an answer with a TTL") = seconds,
            Lie::Lease => *self.lease().expect("an answer with a lease id") += 1,
        }
    }
}

macro_rules! answers {
    ($($answer:ty),*) => {$(
        impl Answer for $answer {
            fn header(&mut self) -> &mut Option<PbResponseHeader> {
                &mut self.header
            }
        }
    )*};
    (leases: $($answer:ty),*) => {$(
        impl Answer for $answer {
            fn header(&mut self) -> &mut Option<PbResponseHeader> {
                &mut self.header
            }

            fn ttl(&mut self) -> Option<&mut i64> {
                Some(&mut self.ttl)
            }

            fn lease(&mut self) -> Option<&mut i64> {
                Some(&mut self.id)
            }
        }
    )*};
}

answers!(PbTxnResponse, PbLeaseRevokeResponse, PbWatchResponse);
answers!(leases: PbLeaseGrantResponse, PbLeaseKeepAliveResponse);

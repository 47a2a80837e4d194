//! What a fake member is to do wrong, and when; unless told otherwise it is honest.
//! It must not know how requests come in, nor what is in the store.

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
    /// What a member says of itself.
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
    /// A stream of keepalives or watches.
    Open,
    /// One question on a keepalive stream.
    KeepAlive,
    /// One watch to be created on a watch stream.
    Watch,
}

/// What is not true in an answer. A keepalive that is answered so was not honoured, unless it is only the TTL that
/// is too large: that is what a deposed leader does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lie {
    /// An older raft term.
    Term,
    Member,
    Cluster,
    /// A revision from long ago.
    Revision,
    /// The seconds that a lease has.
    Ttl(i64),
}

/// What is done with one request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Honest,
    Lie(Lie),
    /// Not done, and refused.
    Refuse(Code, &'static str),
    /// Done, and refused nevertheless after a while.
    RefuseDone(Duration, Code, &'static str),
    /// Done; answered when it is let go.
    Hold,
    /// Neither done nor answered, ever.
    Swallow,
    /// Done; instead of the answer the connection is closed.
    Cut,
    /// Not done; instead of an answer the server's half of the stream is closed.
    Close,
    /// Keepalives only: answered as if renewed, but the lease runs on.
    Pretend,
    /// Watches only: created, and cancelled at once because the revision is compacted.
    Compacted,
    /// Watches only: the first thing to be told, about the key as it is, is of an unknown kind.
    Strange,
}

struct Rule {
    point: Point,
    /// `None` for ever.
    times: Option<u32>,
    act: Act,
}

/// The rules for what comes next, the earliest first.
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

    /// Says that it is of another version from now on.
    pub(super) fn set_version(&self, version: &'static str) {
        *self.version.lock().expect("no panic while locked") = version;
    }

    pub(super) fn version(&self) -> &'static str {
        *self.version.lock().expect("no panic while locked")
    }

    /// Does so with the next request of this kind for which nothing else is planned.
    pub(super) fn once(&self, point: Point, act: Act) {
        self.plan(point, Some(1), act);
    }

    /// Does so with all requests of this kind, after what else is planned for them.
    pub(super) fn always(&self, point: Point, act: Act) {
        self.plan(point, None, act);
    }

    /// Answers nothing at all from now on.
    pub(super) fn silence(&self) {
        use Point::{
            Grant, KeepAlive, Login, Look, Open, Place, Read, Release, Revoke, Status, Watch,
        };
        self.rules.lock().expect("no panic while locked").clear();
        for point in [
            Login, Status, Grant, Place, Look, Read, Release, Revoke, Open, KeepAlive, Watch,
        ] {
            self.always(point, Act::Swallow);
        }
    }

    fn plan(&self, point: Point, times: Option<u32>, act: Act) {
        let mut rules = self.rules.lock().expect("no panic while locked");
        rules.push(Rule { point, times, act });
    }

    /// Honest from now on; what is held is let go.
    pub(super) fn resume(&self) {
        self.rules.lock().expect("no panic while locked").clear();
        self.let_go();
    }

    /// Answers all that is held, at once.
    pub(super) fn let_go(&self) {
        self.resumed.send_modify(|count| *count += 1);
    }

    /// How many requests of this kind have come.
    pub(super) fn seen(&self, point: Point) -> u32 {
        let seen = self.seen.lock().expect("no panic while locked");
        seen.get(&point).copied().unwrap_or_default()
    }

    /// Whether nothing is planned any more for requests of this kind.
    pub(super) fn is_done(&self, point: Point) -> bool {
        let rules = self.rules.lock().expect("no panic while locked");
        rules.iter().all(|rule| rule.point != point)
    }

    /// Counts a request and tells what to do with it.
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

    /// Until what is held is let go.
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

    fn falsify(&mut self, lie: Lie) {
        let header = self.header().get_or_insert_default();
        match lie {
            Lie::Term => header.raft_term -= 1,
            Lie::Member => header.member_id += 1,
            Lie::Cluster => header.cluster_id += 1,
            Lie::Revision => header.revision = 2,
            Lie::Ttl(seconds) => *self.ttl().expect("an answer with a TTL") = seconds,
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
        }
    )*};
}

answers!(PbTxnResponse, PbLeaseRevokeResponse, PbWatchResponse);
answers!(leases: PbLeaseGrantResponse, PbLeaseKeepAliveResponse);

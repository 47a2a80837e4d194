//! The places of one queue as requests to one member: take one, look around, give it up.
//! It must not know when which of them is due, nor how a failed one is repeated.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, PutOptions, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};
use futures_util::FutureExt as _;
use rustix::thread::set_current_timer_slack;
use tokio::time::sleep;

use super::connection::Connection;
use super::look::{Look, is_own, reads_of};
use super::trouble::{Kind, Trouble, attempt_after};
use super::{Cluster, random_lease};
use crate::clock;
use crate::core::abandoned::{Attempt, BAR};
use crate::core::evidence::Evidence;
use crate::core::holder::Holder;
use crate::core::lease::{Claim, FencingToken, Instant, LeaseId, Place, Terms};
use crate::core::mode::Mode;
use crate::core::queue::Queue;
use crate::core::release::{Finding, Findings};
use crate::whoami;

/// The lead of the grant over the txn that needs it, up to twice as long, as tokio counts in whole milliseconds. A near
/// server has mostly answered by then, and to wait for that is as quick (measured); of a far one it saves a round trip. With
/// 0.3 ms, what left on a new connection arrived together, and etcd carried out the txn first (measured, at 50 ms).
const LEAD: Duration = Duration::from_millis(1);
/// What a near server needs to take a request on that nobody waits for: without it, one in seven was
/// lost to the closing of the connection (measured on loopback).
const LINGER: Duration = Duration::from_micros(150);
/// Bars that are put at once: etcd allows 128 operations in a request.
const BARS: usize = 100;
/// How often the tasks that lie between a request and the socket get their turn, which is ample.
const FLUSH: usize = 16;

/// A place in the queue, just taken.
pub(super) struct Entry {
    pub(super) claim: Claim,
    pub(super) terms: Terms,
    /// The moment before the grant left: it is a proof as well.
    pub(super) sent_at: Instant,
    pub(super) look: Look,
}

/// How a place is given up, and what the answers have shown so far.
pub(super) struct Leaving {
    /// For whoever comes after us.
    pub(super) evidence: Evidence,
    pub(super) slot: Option<u16>,
    /// The place is to stay taken for as long as this lease lives.
    pub(super) cooldown: Option<Cooldown>,
    /// The answers to all attempts, of which two may be under way at a time.
    pub(super) findings: Cell<Findings>,
}

impl Leaving {
    /// Takes note of an answer. To be called before anything is awaited that ends our lease, and our record with it.
    fn find(&self, finding: Finding) {
        self.findings.set(self.findings.get().with(finding));
    }
}

/// What keeps a lock taken after its command has ended.
#[derive(Clone)]
pub(crate) struct Cooldown {
    pub(super) lease: LeaseId,
    /// How the command ended, for people.
    pub(super) result: Option<String>,
    /// For how long a command that is told to end may run meanwhile; zero when none does.
    pub(super) grace: Duration,
}

/// Our record as it stands in etcd.
pub(super) struct Shown {
    pub(super) record: Holder,
    /// The revision of its latest change that we know of.
    changed: i64,
}

impl Shown {
    /// One that is not there yet.
    pub(super) fn new(record: Holder) -> Self {
        Self { record, changed: 0 }
    }
}

/// Lets what was asked leave, and then the moment pass in which a near server takes it on.
async fn sent(moment: Duration) {
    for _ in 0..FLUSH {
        tokio::task::yield_now().await;
    }
    // tokio's timers count in whole milliseconds, in which a near server has answered; and the kernel's come 50 us late
    // unless they are asked not to. The command does not inherit that: its guard was there before.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    std::thread::sleep(moment);
}

/// Whether a key was `read`, and is bound to this lease.
fn is_under(read: &[KeyValue], lease: LeaseId) -> bool {
    read.first().is_some_and(|key| key.lease() == lease.0)
}

/// The places of one queue.
pub(super) struct Places {
    pub(super) cluster: Rc<Cluster>,
    pub(super) queue: Queue,
    pub(super) mode: Mode,
    /// What others are shown of us.
    pub(super) record: Holder,
    /// The same as it was written last.
    pub(super) shown: RefCell<Shown>,
    pub(super) terms: Terms,
}

impl Places {
    /// Our record as of now.
    pub(super) fn record_now(&self) -> Holder {
        Holder {
            since: whoami::wall_clock(),
            ..self.record.clone()
        }
    }

    /// Grants the lease `lease` and takes a place with it. Each request is boxed: together they would be 28 KiB, moved
    /// about on a stack that nobody else needs as deep. `hear` is told what the answer to the grant says of this attempt.
    pub(super) async fn take(
        &self,
        etcd: &Connection,
        lease: LeaseId,
        hear: impl Fn(Attempt),
    ) -> Result<Entry, Trouble> {
        let mut leases = etcd.leases();
        let seconds = i64::try_from(self.terms.ttl().as_secs()).unwrap_or(i64::MAX);
        let options = Some(LeaseGrantOptions::new().with_id(lease.0));
        let sent_at = clock::now();
        let mut grant = leases
            .grant(seconds, options)
            .map(|granted| {
                let granted = granted.map_err(Trouble::from);
                hear(attempt_after(&granted));
                granted
            })
            .boxed_local();
        // Over a slow link the txn does not wait for the grant's answer, but follows close behind.
        let (granted, placed) = tokio::select! {
            biased;
            granted = &mut grant => (granted, None),
            () = sleep(LEAD) => {
                let (granted, placed) = tokio::join!(grant, self.put(etcd, lease).boxed_local());
                (granted, Some(placed))
            }
        };
        if let (Err(trouble), Some(Ok(placed))) = (&granted, &placed)
            && trouble.kind == Kind::LeaseExists
            && let Ok(header) = self.cluster.observe(placed.header())
        {
            // The key went to somebody else's lease. It goes; the lease is not ours to touch.
            let place = Place {
                token: FencingToken(header.revision),
                lease,
            };
            let txn = Txn::new()
                .when(self.ours(place))
                .and_then(self.removal(place, None));
            etcd.kv().txn(txn).await?;
        }
        let granted = granted?;
        if let Err(trouble) = self.cluster.observe(granted.header()) {
            // Another cluster: nothing of ours is to stay there.
            self.end(etcd, lease).await;
            return Err(trouble);
        }
        let ttl = Duration::from_secs(granted.ttl().try_into().unwrap_or(0));
        let placed = match placed {
            // The txn overtook the grant after all, and has done nothing.
            Some(Err(trouble)) if trouble.kind == Kind::LeaseNotFound => {
                tracing::debug!("the txn overtook the grant");
                None
            }
            Some(placed) => Some(placed?),
            None => None,
        };
        let placed = match placed {
            Some(placed) => placed,
            None => self.put(etcd, lease).boxed_local().await?,
        };
        self.entry(&placed, lease, self.terms.granted(ttl), sent_at, etcd)
            .await
    }

    /// Puts our key, and counts.
    async fn put(&self, etcd: &Connection, lease: LeaseId) -> Result<TxnResponse, Trouble> {
        let key = self.queue.key(lease);
        let all = GetOptions::new()
            .with_range(self.queue.end())
            .with_count_only();
        let record = PutOptions::new().with_lease(lease.0);
        let txn = Txn::new()
            .when([
                Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
                // Nobody has given this attempt up: see `core::abandoned`.
                Compare::create_revision(self.queue.released(lease), CompareOp::Equal, 0),
            ])
            .and_then([
                TxnOp::put(key, self.shown.borrow().record.to_json(), Some(record)),
                TxnOp::get(self.queue.prefix(), Some(all)),
            ]);
        Ok(etcd.kv().txn(txn).await?)
    }

    async fn entry(
        &self,
        placed: &TxnResponse,
        lease: LeaseId,
        terms: Terms,
        sent_at: Instant,
        etcd: &Connection,
    ) -> Result<Entry, Trouble> {
        let header = self.cluster.observe(placed.header())?;
        if !placed.succeeded() {
            return Err(Trouble::elsewhere("the place was taken"));
        }
        self.shown.borrow_mut().changed = header.revision;
        // The txn itself made this revision, so it is our key's create revision.
        let place = Place {
            token: FencingToken(header.revision),
            lease,
        };
        let alone = placed
            .op_responses()
            .iter()
            .all(|read| !matches!(read, TxnOpResponse::Get(read) if read.count() > 1));
        let look = if alone {
            Look::alone(header.revision)
        } else {
            self.look(etcd, place, None).boxed_local().await?
        };
        Ok(Entry {
            claim: Claim {
                place,
                cluster: header.cluster,
                highest_revision: header.revision,
            },
            terms,
            sent_at,
            look,
        })
    }

    /// Deletes our key if it is still the one that we took, or finds out by whom it was deleted.
    ///
    /// The evidence goes under our lease, and in the same request: it shows a later attempt that it was us.
    pub(super) async fn give_up(
        &self,
        etcd: &Connection,
        place: Place,
        leaving: &Leaving,
    ) -> Result<(), Trouble> {
        if leaving.cooldown.is_some() {
            match self.cool(etcd, place, leaving).await {
                // It has lasted long enough, by etcd's count.
                Err(trouble) if trouble.kind == Kind::LeaseNotFound => {}
                // The lock stays taken until our lease ends.
                Err(trouble) if trouble.kind == Kind::Refused => {
                    return match self.inspect(etcd, place, leaving).await? {
                        Finding::Present => Err(trouble),
                        _ => Ok(()),
                    };
                }
                cooled => return cooled,
            }
        }
        let mut waiting = GetOptions::new()
            .with_range(self.queue.end())
            .with_keys_only()
            .with_limit(1);
        if let Evidence::Behind(_) = leaving.evidence {
            // Those before us do not need it.
            waiting = waiting.with_min_create_revision(place.token.0 + 1);
        }
        let mut parting = self.removal(place, leaving.slot);
        parting.push(self.record_release(place, &leaving.evidence));
        parting.push(TxnOp::get(self.queue.prefix(), Some(waiting)));
        let answer = match self.part(etcd, place, leaving, parting).await {
            // Without the evidence, then, and the next one will have to wait: etcd is out of space, or
            // our role is narrower than it should be. The first request that does not fit is refused
            // and carried out all the same (server/etcdserver/apply/quota.go).
            Err(trouble) if trouble.kind == Kind::Refused => {
                // A delete leaves nothing by which its repetition could know it, so the key is seen first.
                return match self.inspect(etcd, place, leaving).await? {
                    Finding::Present => self.delete(etcd, place, leaving).await,
                    _ => Ok(()),
                };
            }
            answer => answer?,
        };
        let Some(answer) = answer else {
            return Ok(());
        };
        let is_next = |read| matches!(read, TxnOpResponse::Get(read) if !read.kvs().is_empty());
        if !answer.op_responses().into_iter().any(is_next) {
            // Nobody needs the evidence.
            self.end(etcd, place.lease).await;
        }
        Ok(())
    }

    /// The put of the record that only our release writes, under our lease.
    fn record_release(&self, place: Place, evidence: &Evidence) -> TxnOp {
        let lease = PutOptions::new().with_lease(place.lease.0);
        let key = self.queue.released(place.lease);
        TxnOp::put(key, evidence.to_json(), Some(lease))
    }

    /// Does what makes our place another's, or nobody's, if it is ours: then the answer is given. Otherwise our record is
    /// read at the same revision.
    async fn part(
        &self,
        etcd: &Connection,
        place: Place,
        leaving: &Leaving,
        parting: Vec<TxnOp>,
    ) -> Result<Option<TxnResponse>, Trouble> {
        let record = TxnOp::get(self.queue.released(place.lease), None);
        let txn = Txn::new()
            .when(self.ours(place))
            .and_then(parting)
            .or_else([record]);
        let answer = etcd.kv().txn(txn).await?;
        self.cluster.observe(answer.header())?;
        if answer.succeeded() {
            leaving.find(Finding::Deleted);
            return Ok(Some(answer));
        }
        let is_there =
            |read| matches!(read, TxnOpResponse::Get(read) if is_under(read.kvs(), place.lease));
        let record = answer.op_responses().into_iter().any(is_there);
        leaving.find(Finding::Absent { record });
        Ok(None)
    }

    /// Reads our key and our record.
    async fn inspect(
        &self,
        etcd: &Connection,
        place: Place,
        leaving: &Leaving,
    ) -> Result<Finding, Trouble> {
        let key = || TxnOp::get(self.queue.key(place.lease), None);
        let record = TxnOp::get(self.queue.released(place.lease), None);
        let (_, reads) = match self.read(etcd, vec![key(), record]).await {
            // A role that may not read the record could not write it either.
            Err(trouble) if trouble.kind == Kind::Refused => self.read(etcd, vec![key()]).await?,
            read => read?,
        };
        let read = |index: usize| reads.get(index).map(Vec::as_slice).unwrap_or_default();
        let finding = if is_own(read(0), place) {
            Finding::Present
        } else {
            Finding::Absent {
                record: is_under(read(1), place.lease),
            }
        };
        leaving.find(finding);
        Ok(finding)
    }

    /// Announces another grace in our record, as often as it takes: what others have written there meanwhile, which is that
    /// somebody asks us to go, has to stay.
    pub(super) async fn announce(
        &self,
        etcd: Connection,
        place: Place,
        grace: Duration,
    ) -> Result<(), Trouble> {
        let key = self.queue.key(place.lease);
        loop {
            let (record, changed) = {
                let shown = self.shown.borrow();
                (shown.record.clone().announcing(grace), shown.changed)
            };
            let mut unchanged = Vec::from(self.ours(place));
            unchanged.push(Compare::mod_revision(
                key.as_str(),
                CompareOp::Equal,
                changed,
            ));
            let keep = PutOptions::new().with_lease(place.lease.0);
            let txn = Txn::new()
                .when(unchanged)
                .and_then([TxnOp::put(key.as_str(), record.to_json(), Some(keep))])
                .or_else([TxnOp::get(key.as_str(), None)]);
            let answer = etcd.kv().txn(txn).await?;
            let header = self.cluster.observe(answer.header())?;
            if answer.succeeded() {
                let changed = header.revision;
                self.shown.replace(Shown { record, changed });
                return Ok(());
            }
            let read = reads_of(&answer).into_iter().next().unwrap_or_default();
            // Without our place there is nothing to announce: the watch tells of that.
            let Some(there) = read.first().filter(|_| is_own(&read, place)) else {
                return Ok(());
            };
            let record = Holder::parse(there.value()).unwrap_or(record);
            let changed = there.mod_revision();
            let is_announced = record.grace() == grace;
            self.shown.replace(Shown { record, changed });
            if is_announced {
                // By an attempt whose answer was lost.
                return Ok(());
            }
        }
    }

    /// Leaves our place, and our slot, to another lease, which nobody renews.
    async fn cool(
        &self,
        etcd: &Connection,
        place: Place,
        leaving: &Leaving,
    ) -> Result<(), Trouble> {
        let Some(cooldown) = &leaving.cooldown else {
            return Ok(());
        };
        let slot = leaving.slot;
        let under = || Some(PutOptions::new().with_lease(cooldown.lease.0));
        let record = Holder {
            slot,
            cooling: true,
            result: cooldown.result.clone(),
            ..self.record_now().announcing(cooldown.grace)
        };
        let key = self.queue.key(place.lease);
        let mut puts = vec![
            TxnOp::put(key, record.to_json(), under()),
            self.record_release(
                place,
                &leaving.evidence.clone().with_place_kept(cooldown.grace),
            ),
        ];
        puts.extend(
            slot.map(|slot| TxnOp::put(self.queue.slot(slot), place.token.to_string(), under())),
        );
        if self.part(etcd, place, leaving, puts).await?.is_some() {
            self.end(etcd, place.lease).await;
        }
        Ok(())
    }

    /// Deletes without a put, and reads nothing that a narrow role may not read.
    async fn delete(
        &self,
        etcd: &Connection,
        place: Place,
        leaving: &Leaving,
    ) -> Result<(), Trouble> {
        let txn = Txn::new()
            .when(self.ours(place))
            .and_then(self.removal(place, leaving.slot));
        let answer = etcd.kv().txn(txn).await?;
        self.cluster.observe(answer.header())?;
        leaving.find(if answer.succeeded() {
            Finding::Deleted
        } else {
            Finding::Absent { record: false }
        });
        self.end(etcd, place.lease).await;
        Ok(())
    }

    /// What makes room for the next one.
    fn removal(&self, place: Place, slot: Option<u16>) -> Vec<TxnOp> {
        let keys = [
            Some(self.queue.key(place.lease)),
            slot.map(|slot| self.queue.slot(slot)),
        ];
        let delete = |key| TxnOp::delete(key, None);
        keys.into_iter().flatten().map(delete).collect()
    }

    pub(super) fn ours(&self, place: Place) -> [Compare; 2] {
        let key = self.queue.key(place.lease);
        [
            Compare::create_revision(key.as_str(), CompareOp::Equal, place.token.0),
            Compare::lease(key, CompareOp::Equal, place.lease.0),
        ]
    }

    /// Revokes a lease whose places are gone. Nobody waits for the answer: the lock is free, and a
    /// lease without keys ends by itself. But a near server, whose acknowledgements then meet a closed
    /// socket, would forget the request without the time to take it on.
    async fn end(&self, etcd: &Connection, lease: LeaseId) {
        let mut leases = etcd.leases();
        tokio::select! {
            biased;
            _ = leases.revoke(lease.0) => {}
            () = sent(LINGER) => {}
        }
    }

    /// Keeps attempts that were given up from putting their keys later. That is no evidence: of those that stood before
    /// them nothing is known.
    pub(super) async fn bar(&self, etcd: Connection, leases: &[LeaseId]) -> Result<(), Trouble> {
        let under = random_lease()?;
        self.grant(etcd.clone(), under, BAR).await?;
        for some in leases.chunks(BARS) {
            let bars = some.iter().map(|lease| {
                let under = PutOptions::new().with_lease(under.0);
                TxnOp::put(self.queue.released(*lease), "", Some(under))
            });
            let txn = Txn::new().and_then(bars.collect::<Vec<_>>());
            let answer = etcd.kv().txn(txn).await?;
            self.cluster.observe(answer.header())?;
        }
        Ok(())
    }

    /// Ends leases whose keys nobody uses, without insisting; answers which of them are gone, and whether they were there.
    pub(super) async fn revoke(
        &self,
        leases: &[LeaseId],
        limit: Duration,
    ) -> BTreeMap<LeaseId, bool> {
        let gone = RefCell::new(BTreeMap::new());
        let revoking = async |etcd: Connection| {
            for lease in leases {
                let known = gone.borrow().contains_key(lease);
                if known {
                    continue;
                }
                let revoked = etcd.leases().revoke(lease.0).await;
                match revoked.map_err(Trouble::from) {
                    Err(trouble) if trouble.kind == Kind::Elsewhere => return Err(trouble),
                    Err(trouble) if trouble.kind == Kind::Token => return Err(trouble),
                    revoked => {
                        let found = !matches!(&revoked, Err(trouble) if trouble.kind == Kind::LeaseNotFound);
                        gone.borrow_mut().entry(*lease).or_insert(found);
                    }
                }
            }
            Ok(())
        };
        if let Err(trouble) = self.cluster.call(limit, revoking).await {
            tracing::debug!("leases that nobody uses cannot be revoked: {trouble}");
        }
        gone.into_inner()
    }
}

//! A lock in small, through one endpoint: is everything allowed, and how long does a proof take?
//! It must not know what the times are measured against, nor touch the key of any lock.

use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, Error, GetOptions, KvClient, LeaseClient, LeaseGrantOptions,
    LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use tokio::time::timeout;

use super::super::connection::Connection;
use super::{STEP, complaint, header, within};
use crate::clock;
use crate::core::doctor::endpoints::Trial;
use crate::core::doctor::latency::Proof;
use crate::core::lease::{
    Claim, Doubt, FencingToken, Header, LeaseId, Place, Renewal, Terms, Verdict,
};
use crate::core::name::LockName;
use crate::core::queue::Queue;
use crate::etcd::trouble::Trouble;

/// What is left of a doctor that was killed goes after this.
const LONGEST: Duration = Duration::from_mins(1);

/// Enough to see one that is slow now and then; who is silent twice is not asked again.
const PROOFS: usize = 5;
const SILENCES: usize = 2;

/// Tries everything, and takes away what it has put. Tells who granted the lease as well.
pub(super) async fn run(etcd: &Connection, prefix: &str, terms: Terms) -> (Trial, Option<Header>) {
    let ttl = terms.ttl().min(LONGEST);
    let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    let mut leases = etcd.leases();
    let grant = leases.grant(seconds, None::<LeaseGrantOptions>);
    let granted = match within(STEP, grant).await {
        Ok(granted) => granted,
        Err(trouble) => {
            let failed = Err(complaint(trouble));
            let trial = Trial {
                locks: failed.clone(),
                key: failed,
                proofs: Vec::new(),
            };
            return (trial, None);
        }
    };
    let mut subject = Subject {
        kv: etcd.kv(),
        leases,
        // Nobody else has the lease's number, so nobody else has the key.
        key: format!("{prefix}doctor/{:x}", granted.id()),
        lease: LeaseId(granted.id()),
        terms,
    };
    let locks = subject.rehearse(prefix).await;
    let (key, proofs) = subject.try_key().await;
    let revoke = subject.leases.revoke(subject.lease.0);
    let revoked = within(STEP, revoke).await;
    let trial = Trial {
        locks: locks.map_err(complaint),
        key: key.and(revoked.map(drop)).map_err(complaint),
        proofs,
    };
    (trial, header(granted.header()))
}

/// The key that is tried with.
struct Subject {
    kv: KvClient,
    leases: LeaseClient,
    key: String,
    lease: LeaseId,
    terms: Terms,
}

impl Subject {
    /// Asks whether what `dlock run` does with a lock would be allowed, and does none of it: etcd checks
    /// the permissions of a transaction's both branches, whichever it then takes
    /// (server/etcdserver/apply, checkTxnAuth), and no key has a version below zero.
    async fn rehearse(&mut self, prefix: &str) -> Result<(), Trouble> {
        let name = format!("doctor {}", self.lease).parse::<LockName>();
        let name = name.map_err(|error| Trouble::elsewhere(error.to_string()))?;
        let queue = Queue::new(prefix, &name);
        let place = queue.key(self.lease);
        let all = GetOptions::new().with_range(queue.end()).with_count_only();
        let never = Compare::version(place.as_str(), CompareOp::Less, 0);
        let txn = Txn::new().when([never]).and_then([
            TxnOp::put(place.as_str(), "", None),
            TxnOp::put(queue.released(self.lease), "", None),
            TxnOp::get(queue.prefix(), Some(all)),
        ]);
        let answer = within(STEP, self.kv.txn(txn)).await?;
        if answer.succeeded() {
            return Err(Trouble::elsewhere(
                "a transaction was done that never may be",
            ));
        }
        Ok(())
    }

    /// Puts the key, keeps and reads it, and deletes it.
    async fn try_key(&mut self) -> (Result<(), Trouble>, Vec<Proof>) {
        let record = PutOptions::new().with_lease(self.lease.0);
        let put = TxnOp::put(self.key.as_str(), "", Some(record));
        let put = within(STEP, self.kv.txn(Txn::new().and_then([put]))).await;
        let put = put.and_then(|put| {
            header(put.header()).ok_or_else(|| Trouble::elsewhere("an answer without a header"))
        });
        let put = match put {
            Ok(put) => put,
            Err(trouble) => return (Err(trouble), Vec::new()),
        };
        let place = Place {
            token: FencingToken(put.revision),
            lease: self.lease,
        };
        let mut claim = Claim {
            place,
            cluster: put.cluster,
            highest_revision: put.revision,
        };
        let proofs = self.prove(&mut claim).await;
        let ours = Compare::create_revision(self.key.as_str(), CompareOp::Equal, place.token.0);
        let delete = TxnOp::delete(self.key.as_str(), None);
        let txn = Txn::new().when([ours]).and_then([delete]);
        let deleted = within(STEP, self.kv.txn(txn)).await;
        (deleted.map(drop), proofs)
    }

    /// Proves the key several times, as `dlock run` proves its place.
    async fn prove(&mut self, claim: &mut Claim) -> Vec<Proof> {
        let limit = self.terms.attempt();
        let mut keeping = None;
        let mut proofs: Vec<Proof> = Vec::new();
        while proofs.len() < PROOFS {
            let opened = match keeping.take() {
                Some(opened) => Ok(opened),
                None => within(STEP, self.leases.keep_alive(self.lease.0)).await,
            };
            let mut opened = match opened {
                Ok(opened) => opened,
                Err(trouble) => {
                    proofs.push(Err(trouble.cause));
                    break;
                }
            };
            let sent_at = clock::now();
            let renewal = timeout(limit, self.renew(&mut opened)).await;
            proofs.push(match renewal {
                Ok(Ok(renewal)) => match claim.judge(&renewal) {
                    Verdict::Proven(_) => Ok(clock::now().since(sent_at)),
                    Verdict::Doubtful(doubt) => Err(explain(doubt).to_owned()),
                    Verdict::Lost(_) => Err("the key was gone".to_owned()),
                },
                Ok(Err(error)) => Err(Trouble::from(error).cause),
                Err(_) => Err(Trouble::silence(limit).cause),
            });
            // Whatever a stream still says after a failure belongs to nothing.
            keeping = proofs.last().is_some_and(Result::is_ok).then_some(opened);
            if proofs.iter().filter(|proof| proof.is_err()).count() >= SILENCES {
                break;
            }
        }
        proofs
    }

    /// The keepalive, and only after its answer the read: see `core::lease::Claim::judge`.
    async fn renew(
        &mut self,
        (keeper, answers): &mut (LeaseKeeper, LeaseKeepAliveStream),
    ) -> Result<Renewal, Error> {
        let sent_at = clock::now();
        keeper.keep_alive().await?;
        let kept = answers.message().await?;
        let read = Txn::new().and_then([TxnOp::get(self.key.as_str(), None)]);
        let read = self.kv.txn(read).await?;
        let missing = || Error::LeaseKeepAliveError("an answer without a header".to_owned());
        let key = read.op_responses().into_iter().find_map(|read| match read {
            TxnOpResponse::Get(read) => read.kvs().first().map(|key| Place {
                token: FencingToken(key.create_revision()),
                lease: LeaseId(key.lease()),
            }),
            _ => None,
        });
        let left = |seconds: i64| Duration::from_secs(seconds.try_into().unwrap_or(0));
        Ok(Renewal {
            sent_at,
            keepalive: kept.and_then(|kept| Some((header(kept.header())?, left(kept.ttl())))),
            read: (header(read.header()).ok_or_else(missing)?, key),
        })
    }
}

fn explain(doubt: Doubt) -> &'static str {
    match doubt {
        Doubt::OtherCluster => "the answer came from another cluster",
        Doubt::OtherMember => "two members answered, as behind a proxy that divides requests",
        Doubt::OtherTerm => "a leader was being elected",
        Doubt::OlderRevision => "the server went back in time",
        Doubt::NoTimeLeft => "the server does not know the lease's time",
    }
}

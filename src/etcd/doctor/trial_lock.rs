//! A lock in small, through one endpoint: is everything allowed, and how long does a proof take?
//! It must not know what the times are measured against, nor touch the key of any lock.

use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, Error, GetOptions, KvClient, LeaseClient, LeaseGrantOptions,
    LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use tokio::time::timeout;

use super::super::connection::Connection;
use super::{STEP_TIMEOUT, complaint, header, within};
use crate::core::doctor::facts::Trial;
use crate::core::doctor::latency::Proof;
use crate::core::keys::LockKeys;
use crate::core::name::LockName;
use crate::core::proof::{
    EntryId, FencingToken, Header, Inconclusive, LeaseId, Ownership, Renewal, Verdict,
};
use crate::core::time::LeaseTimings;
use crate::etcd::error::LockError;
use crate::sys::clock;

/// What is left of a doctor that was killed goes after this.
const MAX_TRIAL_TIME: Duration = Duration::from_mins(1);

/// Enough to see one that is slow now and then; who is silent twice is not asked again.
const PROOF_COUNT: usize = 5;
const MAX_UNANSWERED: usize = 2;

/// Tries everything, and takes away what it has put. Tells who granted the lease as well.
pub(super) async fn run(
    etcd: &Connection,
    prefix: &str,
    timings: LeaseTimings,
) -> (Trial, Option<Header>) {
    let ttl = timings.ttl().min(MAX_TRIAL_TIME);
    let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    let mut leases = etcd.leases();
    let grant = leases.grant(seconds, None::<LeaseGrantOptions>);
    let granted = match within(STEP_TIMEOUT, grant).await {
        Ok(granted) => granted,
        Err(error) => {
            let failed = Err(complaint(error));
            let trial = Trial {
                locks: failed.clone(),
                key: failed,
                proofs: Vec::new(),
            };
            return (trial, None);
        }
    };
    let mut subject = TrialLock {
        kv: etcd.kv(),
        leases,
        // Nobody else has the lease's number, so nobody else has the key.
        key: format!("{prefix}doctor/{:x}", granted.id()),
        lease: LeaseId(granted.id()),
        timings,
    };
    let locks = subject.try_write(prefix).await;
    let (key, proofs) = subject.try_key().await;
    let revoke = subject.leases.revoke(subject.lease.0);
    let revoked = within(STEP_TIMEOUT, revoke).await;
    let trial = Trial {
        locks: locks.map_err(complaint),
        key: key.and(revoked.map(drop)).map_err(complaint),
        proofs,
    };
    (trial, header(granted.header()))
}

/// The key that is tried with.
struct TrialLock {
    kv: KvClient,
    leases: LeaseClient,
    key: String,
    lease: LeaseId,
    timings: LeaseTimings,
}

impl TrialLock {
    /// Asks whether what `dlock run` does with a lock would be allowed, and does none of it: etcd checks
    /// the permissions of a transaction's both branches, whichever it then takes
    /// (server/etcdserver/apply, checkTxnAuth), and no key has a version below zero.
    async fn try_write(&mut self, prefix: &str) -> Result<(), LockError> {
        let name = format!("doctor {}", self.lease).parse::<LockName>();
        let name = name.map_err(|error| LockError::retryable(error.to_string()))?;
        let queue = LockKeys::new(prefix, &name);
        let entry = queue.entry(self.lease);
        let all = GetOptions::new()
            .with_range(queue.ended())
            .with_count_only();
        let never = Compare::version(entry.as_str(), CompareOp::Less, 0);
        let txn = Txn::new().when([never]).and_then([
            TxnOp::put(entry.as_str(), "", None),
            TxnOp::put(queue.released(self.lease), "", None),
            TxnOp::get(queue.prefix(), Some(all)),
        ]);
        let answer = within(STEP_TIMEOUT, self.kv.txn(txn)).await?;
        if answer.succeeded() {
            return Err(LockError::retryable(
                "a transaction was done that never may be",
            ));
        }
        Ok(())
    }

    /// Puts the key, keeps and reads it, and deletes it.
    async fn try_key(&mut self) -> (Result<(), LockError>, Vec<Proof>) {
        let record = PutOptions::new().with_lease(self.lease.0);
        let put = TxnOp::put(self.key.as_str(), "", Some(record));
        let put = within(STEP_TIMEOUT, self.kv.txn(Txn::new().and_then([put]))).await;
        let put = put.and_then(|put| {
            header(put.header()).ok_or_else(|| LockError::retryable("an answer without a header"))
        });
        let put = match put {
            Ok(put) => put,
            Err(error) => return (Err(error), Vec::new()),
        };
        let entry = EntryId {
            token: FencingToken(put.revision),
            lease: self.lease,
        };
        let mut ownership = Ownership {
            entry,
            cluster: put.cluster,
            highest_revision: put.revision,
        };
        let proofs = self.prove(&mut ownership).await;
        let ours = Compare::create_revision(self.key.as_str(), CompareOp::Equal, entry.token.0);
        let delete = TxnOp::delete(self.key.as_str(), None);
        let txn = Txn::new().when([ours]).and_then([delete]);
        let deleted = within(STEP_TIMEOUT, self.kv.txn(txn)).await;
        (deleted.map(drop), proofs)
    }

    /// Proves the key several times, as `dlock run` proves its place.
    async fn prove(&mut self, ownership: &mut Ownership) -> Vec<Proof> {
        let limit = self.timings.renew_timeout();
        let mut keeping = None;
        let mut proofs: Vec<Proof> = Vec::new();
        while proofs.len() < PROOF_COUNT {
            let opened = match keeping.take() {
                Some(opened) => Ok(opened),
                None => within(STEP_TIMEOUT, self.leases.keep_alive(self.lease.0)).await,
            };
            let mut opened = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    proofs.push(Err(error.cause));
                    break;
                }
            };
            let sent_at = clock::now();
            let renewal = timeout(limit, self.renew(&mut opened)).await;
            proofs.push(match renewal {
                Ok(Ok(renewal)) => match ownership.verify(&renewal) {
                    Verdict::Proven(_) => Ok(clock::now().since(sent_at)),
                    Verdict::Inconclusive(doubt) => Err(explain(doubt).to_owned()),
                    Verdict::Lost(_) => Err("the key was gone".to_owned()),
                },
                Ok(Err(error)) => Err(LockError::from(error).cause),
                Err(_) => Err(LockError::no_answer(limit).cause),
            });
            // Whatever a stream still says after a failure belongs to nothing.
            keeping = proofs.last().is_some_and(Result::is_ok).then_some(opened);
            if proofs.iter().filter(|proof| proof.is_err()).count() >= MAX_UNANSWERED {
                break;
            }
        }
        proofs
    }

    /// The keepalive, and only after its answer the read: see `core::proof::Ownership::verify`.
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
            TxnOpResponse::Get(read) => read.kvs().first().map(|key| EntryId {
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

fn explain(doubt: Inconclusive) -> &'static str {
    match doubt {
        Inconclusive::OtherCluster => "the answer came from another cluster",
        Inconclusive::OtherMember => {
            "two members answered, as behind a proxy that divides requests"
        }
        Inconclusive::OtherTerm => "a leader was being elected",
        Inconclusive::OlderRevision => "the server went back in time",
        Inconclusive::NoTimeLeft => "the server does not know the lease's time",
    }
}

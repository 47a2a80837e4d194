//! A small lock through one endpoint: is everything permitted, and how long does a proof take?
//! It must not know what the times are compared with, nor touch the key of any lock.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, LeaseGrantOptions, PutOptions, Txn, TxnOp};

use super::super::cluster::read_header;
use super::super::connection::{Connection, within};
use super::super::queue::{entry_id, reads_of};
use super::super::renewal::KeepAlive;
use crate::core::doctor::facts::{Complaint, Trial};
use crate::core::doctor::latency::{DIVIDED, Proof};
use crate::core::keys::LockKeys;
use crate::core::name::LockName;
use crate::core::proof::{
    EntryId, FencingToken, Header, Inconclusive, LeaseId, Ownership, Verdict,
};
use crate::core::time::LeaseTimings;
use crate::etcd::error::{ErrorKind, LockError};
use crate::sys::clock;

/// Limit on one request, unless it is a proof: those have the limit of a renewal.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest lease of a trial: a doctor that is killed leaves nothing for longer.
const MAX_TRIAL_TIME: Duration = Duration::from_mins(1);

/// Enough to find an endpoint that is slow now and then; after two without an answer the trial ends.
const PROOF_COUNT: usize = 5;
const MAX_UNANSWERED: usize = 2;

/// Tries all steps, and removes the keys. Returns the header of the grant as well.
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
    let trial_lock = TrialLock {
        etcd,
        // No other client has the lease id, so no other client has the key.
        key: format!("{prefix}doctor/{:x}", granted.id()),
        lease: LeaseId(granted.id()),
        timings,
    };
    let locks = trial_lock.try_write(prefix).await;
    let (key, proofs) = trial_lock.try_key().await;
    let revoked = within(STEP_TIMEOUT, leases.revoke(granted.id())).await;
    let trial = Trial {
        locks: locks.map_err(complaint),
        key: key.and(revoked.map(drop)).map_err(complaint),
        proofs,
    };
    (trial, read_header(granted.header()).ok())
}

/// The key of the trial.
struct TrialLock<'a> {
    etcd: &'a Connection,
    key: String,
    lease: LeaseId,
    timings: LeaseTimings,
}

impl TrialLock<'_> {
    /// Checks the permissions of the steps of `dlock run`, without executing them: etcd checks the permissions of both
    /// branches of a transaction, whichever it takes then (server/etcdserver/apply, checkTxnAuth), and no key has a
    /// version below zero.
    async fn try_write(&self, prefix: &str) -> Result<(), LockError> {
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
        let answer = within(STEP_TIMEOUT, self.etcd.kv().txn(txn)).await?;
        if answer.succeeded() {
            return Err(LockError::retryable(
                "etcd did a transaction whose condition was false",
            ));
        }
        Ok(())
    }

    /// Puts the key, renews and reads it, and deletes it.
    async fn try_key(&self) -> (Result<(), LockError>, Vec<Proof>) {
        let record = PutOptions::new().with_lease(self.lease.0);
        let put = TxnOp::put(self.key.as_str(), "", Some(record));
        let put = within(STEP_TIMEOUT, self.etcd.kv().txn(Txn::new().and_then([put]))).await;
        let put = match put.and_then(|put| read_header(put.header())) {
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
        let deleted = within(STEP_TIMEOUT, self.etcd.kv().txn(txn)).await;
        (deleted.map(drop), proofs)
    }

    /// Proves the key several times, as `dlock run` proves its entry.
    async fn prove(&self, ownership: &mut Ownership) -> Vec<Proof> {
        let limit = self.timings.renew_timeout();
        let mut keeping = None;
        let mut proofs: Vec<Proof> = Vec::new();
        while proofs.len() < PROOF_COUNT {
            let mut opened = match keeping.take() {
                Some(opened) => opened,
                None => match within(STEP_TIMEOUT, KeepAlive::open(self.etcd, self.lease)).await {
                    Ok(opened) => opened,
                    Err(error) => {
                        proofs.push(Err(error.cause));
                        break;
                    }
                },
            };
            let proof = match within(limit, opened.renew(read_header, self.read())).await {
                Ok(renewal) => match ownership.verify(&renewal) {
                    Verdict::Proven(_) => Ok(clock::now().since(renewal.sent_at)),
                    Verdict::Inconclusive(doubt) => Err(explain(doubt).to_owned()),
                    Verdict::Lost(_) => Err("the key was gone".to_owned()),
                },
                Err(error) => Err(error.cause),
            };
            keeping = proof.is_ok().then_some(opened);
            proofs.push(proof);
            if proofs.iter().filter(|proof| proof.is_err()).count() >= MAX_UNANSWERED {
                break;
            }
        }
        proofs
    }

    async fn read(&self) -> Result<(Header, Option<EntryId>), LockError> {
        let read = Txn::new().and_then([TxnOp::get(self.key.as_str(), None)]);
        let read = self.etcd.kv().txn(read).await?;
        let keys = reads_of(&read).pop().unwrap_or_default();
        Ok((read_header(read.header())?, keys.first().map(entry_id)))
    }
}

fn explain(doubt: Inconclusive) -> &'static str {
    match doubt {
        Inconclusive::OtherCluster => "the answer came from another cluster",
        Inconclusive::OtherMember => DIVIDED,
        Inconclusive::OtherTerm => "a leader was being elected",
        Inconclusive::OlderRevision => "the server answered with older data than before",
        Inconclusive::NoTimeLeft => "the server did not know the time left of the lease",
    }
}

pub(super) fn complaint(error: LockError) -> Complaint {
    Complaint {
        refused: matches!(
            error.kind,
            ErrorKind::Refused | ErrorKind::LoginRefused | ErrorKind::BadFile
        ),
        cause: error.cause,
        hint: error.hint,
    }
}

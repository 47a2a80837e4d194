//! The keys beside the queue: the mark of a run (`--once-per`), and slots (`--slots`).
//! It must not know when they are written.

use std::collections::BTreeSet;

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp};

use super::connection::Connection;
use super::error::{ErrorKind, LockError};
use super::queue::{is_own, reads_of};
use super::requests::Requests;
use crate::core::blockers::OrphanSlot;
use crate::core::holder::{Holder, StopRequest};
use crate::core::once::{Counting, EarlierRun, counting, has_succeeded};
use crate::core::proof::{EntryId, LeaseId};
use crate::sys::clock;

/// The latest run, while its mark keeps others from running.
pub(super) async fn read_mark(
    requests: &Requests,
    etcd: Connection,
) -> Result<Option<EarlierRun>, LockError> {
    let answer = etcd.kv().get(requests.queue.keys.once(), None).await?;
    requests.queue.cluster.check_header(answer.header())?;
    let key = answer.kvs().first();
    Ok(key.map(earlier_run))
}

/// The run that this mark is of.
fn earlier_run(mark: &KeyValue) -> EarlierRun {
    let permanent = LeaseId(mark.lease()) == LeaseId::NONE;
    EarlierRun {
        record: Holder::parse(mark.value()),
        permanent: permanent.then(|| String::from_utf8_lossy(mark.key()).into_owned()),
    }
}

/// Marks that our run starts now, until `lease` ends, or returns the run whose mark is there. A mark under one of
/// `ours` moves to that lease: an earlier attempt has made it, or time has passed since. The mark of a run that does not
/// count is replaced; see [`core::once`](crate::core::once).
pub(super) async fn mark_run(
    requests: &Requests,
    etcd: Connection,
    entry: EntryId,
    lease: LeaseId,
    ours: &[LeaseId],
    retry_failed: bool,
) -> Result<Marked, LockError> {
    let key = requests.queue.keys.once();
    let free = || Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
    let mut replaceable = vec![free()];
    let mut tried = None;
    loop {
        let under = PutOptions::new().with_lease(lease.0);
        let record = Holder {
            entry: Some(entry.lease),
            ..requests.record_now()
        };
        let conditions = requests
            .ownership_compares(entry)
            .into_iter()
            .chain(replaceable);
        let txn = Txn::new()
            .when(conditions.collect::<Vec<_>>())
            .and_then([TxnOp::put(key.as_str(), record.to_json(), Some(under))])
            .or_else([
                TxnOp::get(key.as_str(), None),
                TxnOp::get(requests.queue.keys.entry(entry.lease), None),
            ]);
        let answer = match etcd.kv().txn(txn).await.map_err(LockError::from) {
            Err(error) if error.kind == ErrorKind::LeaseNotFound => {
                return Ok(Marked::LeaseGone);
            }
            answer => answer?,
        };
        requests.queue.cluster.check_header(answer.header())?;
        if answer.succeeded() {
            return Ok(Marked::Ours);
        }
        let mut reads = reads_of(&answer).into_iter();
        let mut next = || reads.next().unwrap_or_default();
        let (there, own) = (next().pop(), next());
        replaceable = match there {
            // An earlier attempt of ours has made it; its answer was lost.
            Some(there) if there.lease() == lease.0 => return Ok(Marked::Ours),
            _ if !is_own(&own, entry) => return Ok(Marked::EntryLost),
            Some(there) if ours.contains(&LeaseId(there.lease())) => {
                vec![Compare::lease(
                    key.as_str(),
                    CompareOp::Equal,
                    there.lease(),
                )]
            }
            Some(there) => {
                let ran = earlier_run(&there);
                let changed = there.mod_revision();
                let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, changed);
                match counting(ran.record.as_ref(), retry_failed) {
                    Counting::Failed => vec![unchanged],
                    // If it is still there unchanged after this attempt, so is that entry.
                    Counting::WhileQueued(run) if tried.replace(changed) != Some(changed) => {
                        let run = requests.queue.keys.entry(run);
                        vec![
                            unchanged,
                            Compare::create_revision(run, CompareOp::Equal, 0),
                        ]
                    }
                    Counting::Counts | Counting::WhileQueued(_) => {
                        return Ok(Marked::AlreadyRan(ran));
                    }
                }
            }
            // The mark has ended since.
            None => vec![free()],
        };
    }
}

/// Adds the result of the run to our mark, if it is still there. A run succeeds only if its entry is there, too: returns
/// whether etcd has confirmed such a success.
pub(super) async fn mark_result(
    requests: &Requests,
    etcd: Connection,
    entry: EntryId,
    lease: LeaseId,
    result: &str,
) -> Result<bool, LockError> {
    let key = requests.queue.keys.once();
    let record = Holder {
        result: Some(result.to_owned()),
        entry: Some(entry.lease),
        ..requests.record()
    };
    let under = PutOptions::new().with_lease(lease.0);
    let success = has_succeeded(result).then(|| requests.ownership_compares(entry));
    let is_ours = Compare::lease(key.as_str(), CompareOp::Equal, lease.0);
    let conditions = success.clone().into_iter().flatten().chain([is_ours]);
    let txn = Txn::new()
        .when(conditions.collect::<Vec<_>>())
        .and_then([TxnOp::put(key, record.to_json(), Some(under))]);
    match etcd.kv().txn(txn).await.map_err(LockError::from) {
        Err(error) if error.kind == ErrorKind::LeaseNotFound => Ok(false),
        answer => {
            let answer = answer?;
            requests.queue.cluster.check_header(answer.header())?;
            Ok(success.is_some() && answer.succeeded())
        }
    }
}

/// Takes one of the slots.
pub(super) async fn claim_slot(
    requests: &Requests,
    etcd: Connection,
    entry: EntryId,
    slots: u16,
) -> Result<Claimed, LockError> {
    let own_key = requests.queue.keys.entry(entry.lease);
    loop {
        let (taken, own) = taken_slots(requests, &etcd, entry).await?;
        let Some(own) = own.first().filter(|_| is_own(&own, entry)) else {
            return Ok(Claimed::EntryLost);
        };
        if let Some((slot, _)) = taken.iter().find(|(_, lease)| *lease == entry.lease) {
            return Ok(Claimed::Slot(*slot));
        }
        // Others write into our record too: their part stays.
        let record = Holder::parse(own.value()).unwrap_or_else(|| requests.record());
        if let Some(request) = &record.asked
            && !request.now
        {
            return Ok(Claimed::StopRequested(request.clone()));
        }
        let free = (0..slots).find(|slot| taken.iter().all(|(one, _)| one != slot));
        let Some(slot) = free else {
            return Ok(Claimed::NoneFree(orphan(requests, &etcd, &taken).await?));
        };
        let key = requests.queue.keys.slot(slot);
        let under = || Some(PutOptions::new().with_lease(entry.lease.0));
        let record = Holder {
            slot: Some(slot),
            since: clock::wall_clock(),
            ..record
        };
        let conditions = requests.ownership_compares(entry).into_iter().chain([
            Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
            Compare::mod_revision(own_key.as_str(), CompareOp::Equal, own.mod_revision()),
        ]);
        // The slot is in our own record, too: that change wakes the next waiter.
        let txn = Txn::new().when(conditions.collect::<Vec<_>>()).and_then([
            TxnOp::put(key, entry.token.to_string(), under()),
            TxnOp::put(own_key.as_str(), record.to_json(), under()),
        ]);
        let answer = etcd.kv().txn(txn).await?;
        requests.queue.cluster.check_header(answer.header())?;
        if answer.succeeded() {
            return Ok(Claimed::Slot(slot));
        }
    }
}

/// The first of these slots whose entry is gone.
async fn orphan(
    requests: &Requests,
    etcd: &Connection,
    taken: &[(u16, LeaseId)],
) -> Result<Option<OrphanSlot>, LockError> {
    let keys = &requests.queue.keys;
    let all = GetOptions::new().with_range(keys.ended()).with_keys_only();
    let reads = vec![TxnOp::get(keys.prefix(), Some(all))];
    let (_, reads) = requests.queue.read(etcd, reads).await?;
    let entries: BTreeSet<LeaseId> = (reads.iter().flatten())
        .map(|entry| LeaseId(entry.lease()))
        .collect();
    let taken = taken.iter().map(|(slot, lease)| (keys.slot(*slot), *lease));
    Ok(OrphanSlot::find(taken, &entries))
}

/// The slots that are taken, each with its lease, and our own key.
async fn taken_slots(
    requests: &Requests,
    etcd: &Connection,
    entry: EntryId,
) -> Result<(Vec<(u16, LeaseId)>, Vec<KeyValue>), LockError> {
    let all = GetOptions::new()
        .with_range(requests.queue.keys.slots_end())
        .with_keys_only();
    let reads = vec![
        TxnOp::get(requests.queue.keys.slots(), Some(all)),
        TxnOp::get(requests.queue.keys.entry(entry.lease), None),
    ];
    let (_, reads) = requests.queue.read(etcd, reads).await?;
    let mut reads = reads.into_iter();
    let mut next = || reads.next().unwrap_or_default();
    let (slots, own) = (next(), next());
    let slots = slots.iter().filter_map(|key| {
        let number = requests.queue.keys.slot_number(key.key())?;
        Some((number, LeaseId(key.lease())))
    });
    Ok((slots.collect(), own))
}

/// The result of marking a run.
pub(super) enum Marked {
    Ours,
    /// The mark of this run is there.
    AlreadyRan(EarlierRun),
    EntryLost,
    /// The lease for the mark has ended.
    LeaseGone,
}

/// The result of claiming a slot.
pub(super) enum Claimed {
    Slot(u16),
    /// A slot outlives its entry: this one, unless it has ended since.
    NoneFree(Option<OrphanSlot>),
    EntryLost,
    /// Another request asks us to stop.
    StopRequested(StopRequest),
}

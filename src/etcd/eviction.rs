//! Stop requests to the owners of entries, written into their keys, and the removal of entries.
//! It must not know why an owner has to stop, nor how it reacts.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};

use super::Cluster;
use super::connection::Connection;
use super::error::LockError;
use super::queue::read_entries;
use crate::core::blockers::QueueEntry;
use crate::core::holder::{Holder, StopRequest};
use crate::core::keys::LockKeys;

/// Writes a stop request into the record of an entry, if that has not changed; returns whether it did. Clients that are
/// not dlock cannot be asked.
pub(super) async fn write_stop_request(
    cluster: &Cluster,
    connection: &Connection,
    entry: &QueueEntry,
    request: &StopRequest,
) -> Result<bool, LockError> {
    let Some(record) = &entry.record else {
        return Ok(false);
    };
    let record = Holder {
        asked: Some(request.clone()),
        ..record.clone()
    };
    let key = entry.key.as_str();
    let keep = PutOptions::new().with_ignore_lease();
    let txn = Txn::new()
        .when([
            Compare::create_revision(key, CompareOp::Equal, entry.token.0),
            Compare::mod_revision(key, CompareOp::Equal, entry.mod_revision),
        ])
        .and_then([TxnOp::put(key, record.to_json(), Some(keep))]);
    let answer = connection.kv().txn(txn).await?;
    cluster.check_header(answer.header())?;
    Ok(answer.succeeded())
}

/// Reads all entries of a queue from the oldest on.
pub(crate) async fn all_entries(
    cluster: &Cluster,
    queue: &LockKeys,
    limit: Duration,
) -> Result<Vec<QueueEntry>, LockError> {
    let read = async |etcd: Connection| read_entries(cluster, queue, &etcd, None).await;
    cluster.call(limit, read).await
}

/// Asks the owner of an entry to stop; returns whether the entry was there unchanged.
pub(crate) async fn request_stop(
    cluster: &Cluster,
    entry: &QueueEntry,
    request: &StopRequest,
    limit: Duration,
) -> Result<bool, LockError> {
    let asking = async |connection: Connection| {
        write_stop_request(cluster, &connection, entry, request).await
    };
    cluster.call(limit, asking).await
}

/// Deletes the key of an entry, and its slot. Its lease stays: any client can put a key under the lease of another one, whose
/// locks would end with it.
pub(crate) async fn remove_entry(
    cluster: &Cluster,
    queue: &LockKeys,
    entry: &QueueEntry,
    limit: Duration,
) -> Result<(), LockError> {
    let key = entry.key.as_str();
    let slot = entry.record.as_ref().and_then(|record| record.slot);
    let slot = slot.map(|slot| {
        let slot = queue.slot(slot);
        // The record may name the slot of another entry.
        let theirs = Compare::value(slot.as_str(), CompareOp::Equal, entry.token.to_string());
        TxnOp::txn(
            Txn::new()
                .when([theirs])
                .and_then([TxnOp::delete(slot, None)]),
        )
    });
    let removal: Vec<TxnOp> = slot.into_iter().chain([TxnOp::delete(key, None)]).collect();
    let removing = async |etcd: Connection| {
        let there = Compare::create_revision(key, CompareOp::Equal, entry.token.0);
        let txn = Txn::new().when([there]).and_then(removal.clone());
        let answer = etcd.kv().txn(txn).await?;
        cluster.check_header(answer.header())?;
        Ok(())
    };
    cluster.call(limit, removing).await
}

//! Asking the owners of places to leave, by their own keys: they read it from there; or taking the places from them.
//! It must not know why somebody is to leave, nor what they do about it.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp};

use super::Cluster;
use super::connection::Connection;
use super::look::standing;
use super::trouble::{Kind, Trouble};
use crate::core::holder::{Ask, Holder};
use crate::core::lease::FencingToken;
use crate::core::queue::Queue;
use crate::core::turn::Standing;

/// Places that are read at once.
const PAGE: i64 = 500;

/// All places of a queue from the oldest on, or those before a token.
pub(crate) async fn places(
    cluster: &Cluster,
    queue: &Queue,
    etcd: &Connection,
    before: Option<FencingToken>,
) -> Result<Vec<Standing>, Trouble> {
    let (mut places, mut from) = (Vec::new(), 0);
    loop {
        let mut options = GetOptions::new()
            .with_range(queue.end())
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_min_create_revision(from)
            .with_limit(PAGE);
        if let Some(before) = before {
            options = options.with_max_create_revision(before.0 - 1);
        }
        let answer = etcd.kv().get(queue.prefix(), Some(options)).await?;
        cluster.observe(answer.header())?;
        places.extend(answer.kvs().iter().filter_map(|key| standing(queue, key)));
        match answer.kvs().last().filter(|_| answer.more()) {
            Some(last) => from = last.create_revision() + 1,
            None => return Ok(places),
        }
    }
}

/// Writes `ask` into the record of a place, as long as that has not changed; answers whether it has not.
/// Clients that are not dlock cannot be asked.
pub(super) async fn ask_one(
    cluster: &Cluster,
    connection: &Connection,
    standing: &Standing,
    ask: &Ask,
) -> Result<bool, Trouble> {
    let Some(record) = &standing.record else {
        return Ok(false);
    };
    let record = Holder {
        asked: Some(ask.clone()),
        ..record.clone()
    };
    let key = standing.key.as_str();
    let keep = PutOptions::new().with_ignore_lease();
    let txn = Txn::new()
        .when([
            Compare::create_revision(key, CompareOp::Equal, standing.token.0),
            Compare::mod_revision(key, CompareOp::Equal, standing.changed),
        ])
        .and_then([TxnOp::put(key, record.to_json(), Some(keep))]);
    let answer = connection.kv().txn(txn).await?;
    cluster.observe(answer.header())?;
    Ok(answer.succeeded())
}

/// All places of a queue from the oldest on.
pub(crate) async fn everybody(
    cluster: &Cluster,
    queue: &Queue,
    limit: Duration,
) -> Result<Vec<Standing>, Trouble> {
    let read = async |etcd: Connection| places(cluster, queue, &etcd, None).await;
    cluster.call(limit, read).await
}

/// Asks the owner of a place; answers whether it was there as we know it.
pub(crate) async fn ask(
    cluster: &Cluster,
    standing: &Standing,
    words: &Ask,
    limit: Duration,
) -> Result<bool, Trouble> {
    let asking =
        async |connection: Connection| ask_one(cluster, &connection, standing, words).await;
    cluster.call(limit, asking).await
}

/// Takes a place from its owner: revokes its lease, or deletes a key that has none.
pub(crate) async fn evict(
    cluster: &Cluster,
    standing: &Standing,
    limit: Duration,
) -> Result<(), Trouble> {
    let evicting = async |etcd: Connection| {
        if standing.lease.0 != 0 {
            match etcd
                .leases()
                .revoke(standing.lease.0)
                .await
                .map_err(Trouble::from)
            {
                Err(trouble) if trouble.kind == Kind::LeaseNotFound => {
                    // It has ended by itself, unless a member of another cluster says so; only an answer tells which
                    // cluster it comes from.
                    let count = Some(GetOptions::new().with_count_only());
                    let answer = etcd.kv().get(standing.key.as_str(), count).await?;
                    cluster.observe(answer.header())?;
                }
                revoked => drop(cluster.observe(revoked?.header())?),
            }
            return Ok(());
        }
        let key = standing.key.as_str();
        let there = Compare::create_revision(key, CompareOp::Equal, standing.token.0);
        let txn = Txn::new()
            .when([there])
            .and_then([TxnOp::delete(key, None)]);
        let answer = etcd.kv().txn(txn).await?;
        cluster.observe(answer.header())?;
        Ok(())
    };
    cluster.call(limit, evicting).await
}

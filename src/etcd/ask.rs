//! Asking the owners of places to leave, by their own keys: they read it from there.
//! It must not know why somebody is to leave, nor what they do about it.

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
};

use super::Cluster;
use super::connection::Connection;
use super::look::standing;
use super::trouble::Trouble;
use crate::core::holder::{Ask, Holder};
use crate::core::lease::FencingToken;
use crate::core::queue::Queue;
use crate::core::turn::Standing;

/// Places that are read at once.
const PAGE: i64 = 500;

/// All places of a queue from the oldest on, or those before a token.
pub(super) async fn places(
    cluster: &Cluster,
    queue: &Queue,
    client: &mut Client,
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
        let answer = client.get(queue.prefix(), Some(options)).await?;
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
pub(super) async fn ask(
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
    let answer = connection.client.clone().txn(txn).await?;
    cluster.observe(answer.header())?;
    Ok(answer.succeeded())
}

//! The places of one queue as requests to one member: take one, look around, give it up.
//! It must not know when which of them is due, nor how a failed one is repeated.

use std::rc::Rc;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, PutOptions, SortOrder,
    SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use tokio::time::{sleep, timeout};

use super::Cluster;
use super::connection::Connection;
use super::trouble::{Kind, Trouble};
use crate::clock;
use crate::core::holder::Holder;
use crate::core::lease::{Claim, FencingToken, Instant, LeaseId, Place, Terms};
use crate::core::queue::Queue;

/// The lead of the grant over the txn that needs it, on an established connection: enough for the
/// server to handle them in order, and much less than the round trip that it saves.
const LEAD: Duration = Duration::from_micros(1500);
/// How long a request that nobody waits for has to reach the socket.
const FLUSH: Duration = Duration::from_millis(1);

/// Whom we wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// The holder's record; `None` when it is not one of ours.
    pub(crate) holder: Option<Holder>,
    /// How many are before us, the holder among them.
    pub(crate) count: usize,
}

/// A place in the queue, just taken.
pub(super) struct Entry {
    pub(super) claim: Claim,
    pub(super) terms: Terms,
    /// The moment before the grant left: it is a proof as well.
    pub(super) sent_at: Instant,
    pub(super) look: Look,
}

/// What one look at the queue has shown.
#[derive(Default)]
pub(super) struct Look {
    /// Our own place is there.
    pub(super) own: bool,
    pub(super) revision: i64,
    /// The key right before ours.
    pub(super) predecessor: Option<String>,
    pub(super) ahead: Ahead,
}

/// The places of one queue.
pub(super) struct Places {
    pub(super) cluster: Rc<Cluster>,
    pub(super) queue: Queue,
    /// What others are shown of us.
    pub(super) record: String,
    pub(super) terms: Terms,
}

impl Places {
    /// Grants the lease `lease` and takes a place with it.
    pub(super) async fn take(
        &self,
        connection: Connection,
        lease: LeaseId,
    ) -> Result<Entry, Trouble> {
        let Connection { client } = connection;
        let mut granting = client.clone();
        let seconds = i64::try_from(self.terms.ttl().as_secs()).unwrap_or(i64::MAX);
        let options = Some(LeaseGrantOptions::new().with_id(lease.0));
        let sent_at = clock::now();
        let mut grant = std::pin::pin!(granting.lease_grant(seconds, options));
        // Over a slow link the txn does not wait for the grant's answer, but follows close behind.
        let (granted, placed) = tokio::select! {
            biased;
            granted = &mut grant => (granted, None),
            () = sleep(LEAD) => {
                let (granted, placed) = tokio::join!(grant, self.put(client.clone(), lease));
                (granted, Some(placed))
            }
        };
        let ttl = Duration::from_secs(granted?.ttl().try_into().unwrap_or(0));
        let placed = match placed {
            // The txn overtook the grant after all, and has done nothing.
            Some(Err(trouble)) if trouble.kind == Kind::LeaseNotFound => None,
            Some(placed) => Some(placed?),
            None => None,
        };
        let placed = match placed {
            Some(placed) => placed,
            None => self.put(client.clone(), lease).await?,
        };
        self.entry(&placed, lease, self.terms.granted(ttl), sent_at, client)
            .await
    }

    /// Puts our key, and counts.
    async fn put(&self, mut client: Client, lease: LeaseId) -> Result<TxnResponse, Trouble> {
        let key = self.queue.key(lease);
        let all = GetOptions::new()
            .with_range(self.queue.end())
            .with_count_only();
        let record = PutOptions::new().with_lease(lease.0);
        let txn = Txn::new()
            .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put(key, self.record.as_str(), Some(record)),
                TxnOp::get(self.queue.prefix(), Some(all)),
            ]);
        Ok(client.txn(txn).await?)
    }

    async fn entry(
        &self,
        placed: &TxnResponse,
        lease: LeaseId,
        terms: Terms,
        sent_at: Instant,
        client: Client,
    ) -> Result<Entry, Trouble> {
        let header = self.cluster.observe(placed.header())?;
        if !placed.succeeded() {
            return Err(Trouble::elsewhere("the place was taken"));
        }
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
            Look::default()
        } else {
            self.look(client, place).await?
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

    /// One linearizable read of our key, of all places before it, and of the holder's record.
    pub(super) async fn look(&self, mut client: Client, place: Place) -> Result<Look, Trouble> {
        let before = GetOptions::new()
            .with_range(self.queue.end())
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_max_create_revision(place.token.0 - 1);
        let txn = Txn::new().and_then([
            TxnOp::get(self.queue.key(place.lease), None),
            TxnOp::get(self.queue.prefix(), Some(before.clone().with_keys_only())),
            TxnOp::get(self.queue.prefix(), Some(before.with_limit(1))),
        ]);
        let answer = client.txn(txn).await?;
        let header = self.cluster.observe(answer.header())?;
        let mut reads = answer.op_responses().into_iter().map(|read| match read {
            TxnOpResponse::Get(mut read) => read.take_kvs(),
            _ => Vec::new(),
        });
        let own = reads.next().unwrap_or_default().first().is_some_and(|key| {
            key.create_revision() == place.token.0 && key.lease() == place.lease.0
        });
        let earlier = reads.next().unwrap_or_default();
        let mut places = self.queue.places(earlier.iter().map(KeyValue::key));
        let oldest = reads.next().unwrap_or_default();
        let is_place = |key: &&KeyValue| {
            let oldest = places.first().map(String::as_bytes);
            oldest == Some(key.key())
        };
        let holder = oldest.first().filter(is_place);
        let holder = holder.and_then(|key| Holder::parse(key.value()));
        let count = places.len();
        Ok(Look {
            own,
            revision: header.revision,
            predecessor: places.pop(),
            ahead: Ahead { holder, count },
        })
    }

    /// Deletes our key if it is still the one that we took; false when it is not.
    pub(super) async fn give_up(
        &self,
        connection: Connection,
        place: Place,
    ) -> Result<bool, Trouble> {
        let key = self.queue.key(place.lease);
        let ours = [
            Compare::create_revision(key.as_str(), CompareOp::Equal, place.token.0),
            Compare::lease(key.as_str(), CompareOp::Equal, place.lease.0),
        ];
        // No put: etcd refuses those when it is out of space.
        let txn = Txn::new()
            .when(ours)
            .and_then([TxnOp::delete(key.as_str(), None)]);
        let Connection { mut client } = connection;
        let answer = client.txn(txn).await?;
        self.cluster.observe(answer.header())?;
        // Nobody waits for the revoke: the lock is free, and a lease without keys ends by itself.
        let _ = timeout(FLUSH, client.lease_revoke(place.lease.0)).await;
        Ok(answer.succeeded())
    }

    /// Ends leases that may hold places which nobody uses, without insisting.
    pub(super) async fn revoke(&self, leases: &[LeaseId], limit: Duration) {
        let revoking = async {
            let index = self.cluster.current();
            let Connection { mut client } = self.cluster.connection(index, limit).await?;
            for lease in leases {
                let _ = client.lease_revoke(lease.0).await;
            }
            Ok::<(), Trouble>(())
        };
        let _ = timeout(limit, revoking).await;
    }
}

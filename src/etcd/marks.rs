//! What outlives the holding of a lock, by leases that nobody renews: that a run has started
//! (`--once-per`), and that a lock cools down (`--min-hold`). It must not know when that is asked for.

use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, GetOptions, LeaseGrantOptions, PutOptions, Txn, TxnOp, TxnOpResponse,
};

use super::connection::Connection;
use super::places::Places;
use super::random_lease;
use super::trouble::{Kind, Trouble};
use crate::core::holder::Holder;
use crate::core::lease::{LeaseId, Place};

/// A mark could not be made, for there is one.
pub(super) type There = Option<Holder>;

impl Places {
    /// A lease that ends by itself after `ttl`, in whole seconds and never earlier.
    pub(super) async fn lease(&self, etcd: Connection, ttl: Duration) -> Result<LeaseId, Trouble> {
        let lease = random_lease()?;
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let options = LeaseGrantOptions::new().with_id(lease.0);
        let granted = etcd.leases().grant(seconds, Some(options)).await?;
        self.cluster.observe(granted.header())?;
        Ok(lease)
    }

    /// How long a lease that nobody renews has still to live, by the server's count.
    pub(super) async fn left(&self, etcd: Connection, lease: LeaseId) -> Result<Duration, Trouble> {
        let answer = etcd.leases().time_to_live(lease.0, None).await?;
        self.cluster.observe(answer.header())?;
        Ok(Duration::from_secs(answer.ttl().try_into().unwrap_or(0)))
    }

    /// Who has run last, as long as that keeps others from running.
    pub(super) async fn ran(&self, etcd: Connection) -> Result<Option<There>, Trouble> {
        let answer = etcd.kv().get(self.queue.once(), None).await?;
        self.cluster.observe(answer.header())?;
        let key = answer.kvs().first();
        Ok(key.map(|key| Holder::parse(key.value())))
    }

    /// Says that our run starts now, until `lease` ends; answers whose run stands against it.
    pub(super) async fn mark(
        &self,
        etcd: Connection,
        place: Place,
        lease: LeaseId,
    ) -> Result<Marked, Trouble> {
        let key = self.queue.once();
        let under = PutOptions::new().with_lease(lease.0);
        let free = Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
        let txn = Txn::new()
            .when(
                self.ours(place)
                    .into_iter()
                    .chain([free])
                    .collect::<Vec<_>>(),
            )
            .and_then([TxnOp::put(
                key.as_str(),
                self.record_now().to_json(),
                Some(under),
            )])
            .or_else([TxnOp::get(key, None)]);
        let answer = etcd.kv().txn(txn).await?;
        self.cluster.observe(answer.header())?;
        if answer.succeeded() {
            return Ok(Marked::Ours);
        }
        let there = answer
            .op_responses()
            .into_iter()
            .find_map(|read| match read {
                TxnOpResponse::Get(read) => read.kvs().first().cloned(),
                _ => None,
            });
        Ok(match there {
            // An earlier attempt of ours, whose answer was lost.
            Some(key) if key.lease() == lease.0 => Marked::Ours,
            Some(key) => Marked::There(Holder::parse(key.value())),
            None => Marked::PlaceLost,
        })
    }

    /// Adds to our mark how the run ended, if it is still there.
    pub(super) async fn mark_result(
        &self,
        etcd: Connection,
        lease: LeaseId,
        result: &str,
    ) -> Result<(), Trouble> {
        let key = self.queue.once();
        let record = Holder {
            result: Some(result.to_owned()),
            ..self.record.clone()
        };
        let under = PutOptions::new().with_lease(lease.0);
        let txn = Txn::new()
            .when([Compare::lease(key.as_str(), CompareOp::Equal, lease.0)])
            .and_then([TxnOp::put(key, record.to_json(), Some(under))]);
        match etcd.kv().txn(txn).await.map_err(Trouble::from) {
            Err(trouble) if trouble.kind == Kind::LeaseNotFound => Ok(()),
            answer => self.cluster.observe(answer?.header()).map(drop),
        }
    }

    /// Takes one of the slots, a free one by what is known in `taken`.
    pub(super) async fn claim(
        &self,
        etcd: Connection,
        place: Place,
        slots: u16,
    ) -> Result<Claimed, Trouble> {
        loop {
            let taken = self.taken(&etcd).await?;
            if let Some((slot, _)) = taken.iter().find(|(_, lease)| *lease == place.lease) {
                return Ok(Claimed::Slot(*slot));
            }
            let free = (0..slots).find(|slot| taken.iter().all(|(one, _)| one != slot));
            let Some(slot) = free else {
                return Ok(Claimed::NoneFree);
            };
            let key = self.queue.slot(slot);
            let under = || Some(PutOptions::new().with_lease(place.lease.0));
            let record = Holder {
                slot: Some(slot),
                ..self.record_now()
            };
            let free = Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
            // Our own record says so too: that wakes the next in the queue.
            let txn = Txn::new()
                .when(
                    self.ours(place)
                        .into_iter()
                        .chain([free])
                        .collect::<Vec<_>>(),
                )
                .and_then([
                    TxnOp::put(key, place.token.to_string(), under()),
                    TxnOp::put(self.queue.key(place.lease), record.to_json(), under()),
                ])
                .or_else([TxnOp::get(
                    self.queue.key(place.lease),
                    Some(GetOptions::new().with_count_only()),
                )]);
            let answer = etcd.kv().txn(txn).await?;
            self.cluster.observe(answer.header())?;
            if answer.succeeded() {
                return Ok(Claimed::Slot(slot));
            }
            let own = answer
                .op_responses()
                .into_iter()
                .any(|read| matches!(read, TxnOpResponse::Get(read) if read.count() > 0));
            if !own {
                return Ok(Claimed::PlaceLost);
            }
        }
    }

    /// The slots that are taken, and by which leases.
    async fn taken(&self, etcd: &Connection) -> Result<Vec<(u16, LeaseId)>, Trouble> {
        let all = GetOptions::new()
            .with_range(self.queue.slots_end())
            .with_keys_only();
        let answer = etcd.kv().get(self.queue.slots(), Some(all)).await?;
        self.cluster.observe(answer.header())?;
        let slots = answer.kvs().iter();
        let slots = slots.filter_map(|key| {
            let number = self.queue.slot_number(key.key())?;
            Some((number, LeaseId(key.lease())))
        });
        Ok(slots.collect())
    }
}

/// What became of the mark of a run.
pub(super) enum Marked {
    Ours,
    /// That of this run stands there.
    There(There),
    PlaceLost,
}

/// What became of the claim of a slot.
pub(super) enum Claimed {
    Slot(u16),
    /// Somebody's slot outlives its place.
    NoneFree,
    PlaceLost,
}

//! What outlives the holding of a lock, by leases that nobody renews: that a run has started
//! (`--once-per`), and that a lock cools down (`--min-hold`). It must not know when that is asked for.

use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, PutOptions, Txn, TxnOp,
};

use super::connection::Connection;
use super::look::{is_own, reads_of};
use super::places::Places;
use super::trouble::{Kind, Trouble};
use crate::core::holder::{Ask, Holder};
use crate::core::lease::{LeaseId, Place};
use crate::whoami;

/// A mark could not be made, for there is one.
pub(super) type There = Option<Holder>;

impl Places {
    /// Grants a lease that ends by itself after `ttl`, in whole seconds and never earlier.
    pub(super) async fn grant(
        &self,
        etcd: Connection,
        lease: LeaseId,
        ttl: Duration,
    ) -> Result<(), Trouble> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let options = LeaseGrantOptions::new().with_id(lease.0);
        let granted = etcd.leases().grant(seconds, Some(options)).await?;
        self.cluster.observe(granted.header())?;
        Ok(())
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

    /// Says that our run starts now, until `lease` ends; answers whose run stands against it. A mark under one of `ours`
    /// goes over to that lease: an earlier attempt has made it, or time has passed since.
    pub(super) async fn mark(
        &self,
        etcd: Connection,
        place: Place,
        lease: LeaseId,
        ours: &[LeaseId],
    ) -> Result<Marked, Trouble> {
        let key = self.queue.once();
        let free = || Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
        let mut replaceable = free();
        loop {
            let under = PutOptions::new().with_lease(lease.0);
            let record = self.record_now().to_json();
            let conditions = self.ours(place).into_iter().chain([replaceable]);
            let txn = Txn::new()
                .when(conditions.collect::<Vec<_>>())
                .and_then([TxnOp::put(key.as_str(), record, Some(under))])
                .or_else([
                    TxnOp::get(key.as_str(), None),
                    TxnOp::get(self.queue.key(place.lease), None),
                ]);
            let answer = match etcd.kv().txn(txn).await.map_err(Trouble::from) {
                Err(trouble) if trouble.kind == Kind::LeaseNotFound => {
                    return Ok(Marked::LeaseGone);
                }
                answer => answer?,
            };
            self.cluster.observe(answer.header())?;
            if answer.succeeded() {
                return Ok(Marked::Ours);
            }
            let mut reads = reads_of(&answer).into_iter();
            let mut next = || reads.next().unwrap_or_default();
            let (there, own) = (next().pop(), next());
            replaceable = match there {
                // An earlier attempt of ours, whose answer was lost.
                Some(there) if there.lease() == lease.0 => return Ok(Marked::Ours),
                _ if !is_own(&own, place) => return Ok(Marked::PlaceLost),
                Some(there) if ours.contains(&LeaseId(there.lease())) => {
                    Compare::lease(key.as_str(), CompareOp::Equal, there.lease())
                }
                Some(there) => return Ok(Marked::There(Holder::parse(there.value()))),
                // It has ended since.
                None => free(),
            };
        }
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

    /// Takes one of the slots.
    pub(super) async fn claim(
        &self,
        etcd: Connection,
        place: Place,
        slots: u16,
    ) -> Result<Claimed, Trouble> {
        let own_key = self.queue.key(place.lease);
        loop {
            let (taken, own) = self.taken(&etcd, place).await?;
            let Some(own) = own.first().filter(|_| is_own(&own, place)) else {
                return Ok(Claimed::PlaceLost);
            };
            if let Some((slot, _)) = taken.iter().find(|(_, lease)| *lease == place.lease) {
                return Ok(Claimed::Slot(*slot));
            }
            // Others write into our record too: what stands there, stays there.
            let record = Holder::parse(own.value()).unwrap_or_else(|| self.record.clone());
            if let Some(ask) = record.asked {
                return Ok(Claimed::Asked(ask));
            }
            let free = (0..slots).find(|slot| taken.iter().all(|(one, _)| one != slot));
            let Some(slot) = free else {
                return Ok(Claimed::NoneFree);
            };
            let key = self.queue.slot(slot);
            let under = || Some(PutOptions::new().with_lease(place.lease.0));
            let record = Holder {
                slot: Some(slot),
                since: whoami::wall_clock(),
                ..record
            };
            let conditions = self.ours(place).into_iter().chain([
                Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
                Compare::mod_revision(own_key.as_str(), CompareOp::Equal, own.mod_revision()),
            ]);
            // Our own record says so too: that wakes the next in the queue.
            let txn = Txn::new().when(conditions.collect::<Vec<_>>()).and_then([
                TxnOp::put(key, place.token.to_string(), under()),
                TxnOp::put(own_key.as_str(), record.to_json(), under()),
            ]);
            let answer = etcd.kv().txn(txn).await?;
            self.cluster.observe(answer.header())?;
            if answer.succeeded() {
                return Ok(Claimed::Slot(slot));
            }
        }
    }

    /// The slots that are taken, and by which leases; and our own key as it stands.
    async fn taken(
        &self,
        etcd: &Connection,
        place: Place,
    ) -> Result<(Vec<(u16, LeaseId)>, Vec<KeyValue>), Trouble> {
        let all = GetOptions::new()
            .with_range(self.queue.slots_end())
            .with_keys_only();
        let reads = vec![
            TxnOp::get(self.queue.slots(), Some(all)),
            TxnOp::get(self.queue.key(place.lease), None),
        ];
        let (_, reads) = self.read(etcd, reads).await?;
        let mut reads = reads.into_iter();
        let mut next = || reads.next().unwrap_or_default();
        let (slots, own) = (next(), next());
        let slots = slots.iter().filter_map(|key| {
            let number = self.queue.slot_number(key.key())?;
            Some((number, LeaseId(key.lease())))
        });
        Ok((slots.collect(), own))
    }
}

/// What became of the mark of a run.
pub(super) enum Marked {
    Ours,
    /// That of this run stands there.
    There(There),
    PlaceLost,
    /// The lease that it was to stand under has ended.
    LeaseGone,
}

/// What became of the claim of a slot.
pub(super) enum Claimed {
    Slot(u16),
    /// Somebody's slot outlives its place.
    NoneFree,
    PlaceLost,
    /// Somebody wants us to go.
    Asked(Ask),
}

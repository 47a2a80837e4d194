//! A small honest etcd: keys with revisions, transactions, a history, and leases that run in real time.
//! It must not know gRPC's streams, nor any fault.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbEvent, PbKeyValue, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbResponseOp, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse,
    PbTxnRequest, PbTxnResponse,
};
use tokio::sync::watch;
use tonic::Status;

use crate::support::boot_clock;

/// `PUT` and `DELETE` of `mvccpb.Event.EventType`.
const PUT: i32 = 0;
const DELETE: i32 = 1;

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Revoked,
    Expired,
}

struct Lease {
    ttl: Duration,
    /// `None` for a lease that never ends by itself.
    ends_at: Option<Duration>,
}

#[derive(Default)]
struct State {
    revision: i64,
    keys: BTreeMap<Vec<u8>, PbKeyValue>,
    leases: BTreeMap<i64, Lease>,
    history: Vec<PbEvent>,
    granted: Vec<i64>,
    ended: Vec<(i64, End)>,
    /// The time of the last executed renewal or grant.
    renewed_at: Duration,
}

/// The state that all members of one cluster share.
pub(super) struct Store {
    state: Mutex<State>,
    changed: watch::Sender<i64>,
}

impl Store {
    pub(super) fn new() -> Self {
        // A fresh etcd begins at 1; a higher revision leaves room to go back.
        let state = State {
            revision: 1000,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            changed: watch::channel(0).0,
        }
    }

    /// Changes the state and notifies the watchers; also returns the revision after it.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> (i64, T) {
        let mut state = self.state.lock().expect("no panic while locked");
        state.expire();
        let done = act(&mut state);
        self.changed.send_replace(state.revision);
        (state.revision, done)
    }

    /// Ends all expired leases.
    pub(super) fn expire(&self) {
        self.with(|_| ());
    }

    pub(super) fn range(&self, request: &PbRangeRequest) -> (i64, PbRangeResponse) {
        self.with(|state| state.range(request))
    }

    pub(super) fn put(&self, request: &PbPutRequest) -> Result<(i64, PbPutResponse), Status> {
        let (_, done) = self.with(|state| {
            state.check(request)?;
            state.revision += 1;
            Ok((state.revision, state.put(request)))
        });
        done
    }

    pub(super) fn delete(&self, request: &PbDeleteRequest) -> (i64, PbDeleteResponse) {
        self.with(|state| {
            let deleted = state.delete(&request.key, &request.range_end, state.revision + 1);
            state.revision += i64::from(deleted > 0);
            PbDeleteResponse {
                deleted,
                ..PbDeleteResponse::default()
            }
        })
    }

    pub(super) fn txn(&self, request: &PbTxnRequest) -> Result<(i64, PbTxnResponse), Status> {
        let (revision, done) = self.with(|state| state.txn(request));
        Ok((revision, done?))
    }

    pub(super) fn grant(&self, id: i64, ttl: Option<Duration>) -> Result<i64, Status> {
        let (revision, granted) = self.with(|state| {
            if state.leases.contains_key(&id) {
                return Err(Status::failed_precondition(
                    "etcdserver: lease already exists",
                ));
            }
            state.renewed_at = boot_clock();
            let lease = Lease {
                ttl: ttl.unwrap_or_default(),
                ends_at: ttl.map(|ttl| state.renewed_at + ttl),
            };
            state.leases.insert(id, lease);
            state.granted.push(id);
            Ok(())
        });
        granted.map(|()| revision)
    }

    /// The seconds that the lease has from now on, 0 if it does not exist.
    pub(super) fn keep_alive(&self, id: i64) -> (i64, i64) {
        self.with(|state| {
            let now = boot_clock();
            let Some(lease) = state.leases.get_mut(&id) else {
                return 0;
            };
            lease.ends_at = lease.ends_at.map(|_| now + lease.ttl);
            state.renewed_at = now;
            seconds(lease.ttl)
        })
    }

    /// The seconds for which the lease was granted.
    pub(super) fn ttl(&self, id: i64) -> (i64, i64) {
        self.with(|state| state.leases.get(&id).map_or(0, |lease| seconds(lease.ttl)))
    }

    pub(super) fn revoke(&self, id: i64) -> Result<i64, Status> {
        let (revision, known) = self.with(|state| {
            let known = state.leases.contains_key(&id);
            if known {
                state.end_lease(id, End::Revoked);
            }
            known
        });
        if known { Ok(revision) } else { Err(no_lease()) }
    }

    pub(super) fn revision(&self) -> i64 {
        self.with(|_| ()).0
    }

    /// Notifies of every change.
    pub(super) fn changes(&self) -> watch::Receiver<i64> {
        self.changed.subscribe()
    }

    /// The events of the keys from a revision on.
    pub(super) fn events(&self, key: &[u8], end: &[u8], from: i64) -> (i64, Vec<PbEvent>) {
        self.with(|state| {
            let concerns = |event: &&PbEvent| {
                let kv = event.kv.as_ref();
                kv.is_some_and(|kv| kv.mod_revision >= from && within(&kv.key, key, end))
            };
            state.history.iter().filter(concerns).cloned().collect()
        })
    }

    /// All keys, in the order of their creation.
    pub(super) fn keys(&self) -> Vec<PbKeyValue> {
        self.with(|state| {
            let mut keys: Vec<_> = state.keys.values().cloned().collect();
            keys.sort_by_key(|key| key.create_revision);
            keys
        })
        .1
    }

    /// The keys that have no lease.
    pub(super) fn lasting(&self) -> Vec<PbKeyValue> {
        self.with(|state| {
            let mut keys: Vec<_> = state.keys.values().cloned().collect();
            keys.retain(|kv| {
                let lease = state.leases.get(&kv.lease);
                lease.is_none_or(|lease| lease.ends_at.is_none())
            });
            keys
        })
        .1
    }

    pub(super) fn leases(&self) -> Vec<i64> {
        self.with(|state| state.leases.keys().copied().collect()).1
    }

    /// All leases that were ever granted, the oldest first.
    pub(super) fn granted(&self) -> Vec<i64> {
        self.with(|state| state.granted.clone()).1
    }

    /// The leases that have ended, the oldest first.
    pub(super) fn ended(&self) -> Vec<(i64, End)> {
        self.with(|state| state.ended.clone()).1
    }

    /// The time of the last executed renewal or grant.
    pub(super) fn renewed_at(&self) -> Duration {
        self.with(|state| state.renewed_at).1
    }
}

impl State {
    fn expire(&mut self) {
        let now = boot_clock();
        let over = |lease: &Lease| lease.ends_at.is_some_and(|at| at <= now);
        let over: Vec<i64> = (self.leases.iter().filter(|(_, lease)| over(lease)))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.end_lease(id, End::Expired);
        }
    }

    fn end_lease(&mut self, id: i64, end: End) {
        self.leases.remove(&id);
        self.ended.push((id, end));
        let attached = |kv: &&PbKeyValue| kv.lease == id;
        let keys: Vec<_> = (self.keys.values().filter(attached))
            .map(|kv| kv.key.clone())
            .collect();
        self.revision += i64::from(!keys.is_empty());
        for key in keys {
            self.delete(&key, &[], self.revision);
        }
    }

    /// The keys as they were at a revision; 0 for now.
    fn at(&self, revision: i64) -> BTreeMap<Vec<u8>, PbKeyValue> {
        if revision == 0 {
            return self.keys.clone();
        }
        let mut keys = BTreeMap::new();
        for event in &self.history {
            let kv = event.kv.clone().expect("every event has its key");
            if kv.mod_revision > revision {
                break;
            }
            if event.r#type == DELETE {
                keys.remove(&kv.key);
            } else {
                keys.insert(kv.key.clone(), kv);
            }
        }
        keys
    }

    fn range(&self, request: &PbRangeRequest) -> PbRangeResponse {
        let mut found: Vec<PbKeyValue> = (self.at(request.revision).values())
            .filter(|kv| within(&kv.key, &request.key, &request.range_end))
            .cloned()
            .collect();
        let count = i64::try_from(found.len()).expect("a small store");
        if request.count_only {
            found.clear();
        }
        let (most_mod, most_create) = (request.max_mod_revision, request.max_create_revision);
        found.retain(|kv| {
            (most_mod == 0 || kv.mod_revision <= most_mod)
                && (most_create == 0 || kv.create_revision <= most_create)
                && kv.mod_revision >= request.min_mod_revision
                && kv.create_revision >= request.min_create_revision
        });
        // etcdserverpb.RangeRequest.SortTarget and SortOrder.
        match request.sort_target {
            1 => found.sort_by_key(|kv| kv.version),
            2 => found.sort_by_key(|kv| kv.create_revision),
            3 => found.sort_by_key(|kv| kv.mod_revision),
            4 => found.sort_by(|a, b| a.value.cmp(&b.value)),
            _ => {}
        }
        if request.sort_order == 2 {
            found.reverse();
        }
        let limit = usize::try_from(request.limit).expect("a limit");
        let more = limit > 0 && found.len() > limit;
        if more {
            found.truncate(limit);
        }
        if request.keys_only {
            for kv in &mut found {
                kv.value.clear();
            }
        }
        PbRangeResponse {
            header: None,
            kvs: found,
            more,
            count,
        }
    }

    fn check(&self, request: &PbPutRequest) -> Result<(), Status> {
        let known = request.lease == 0 || self.leases.contains_key(&request.lease);
        if known { Ok(()) } else { Err(no_lease()) }
    }

    /// At the current revision.
    fn put(&mut self, request: &PbPutRequest) -> PbPutResponse {
        let old = self.keys.get(&request.key);
        let kv = PbKeyValue {
            key: request.key.clone(),
            create_revision: old.map_or(self.revision, |old| old.create_revision),
            mod_revision: self.revision,
            version: old.map_or(1, |old| old.version + 1),
            value: request.value.clone(),
            lease: match old {
                Some(old) if request.ignore_lease => old.lease,
                _ => request.lease,
            },
        };
        self.keys.insert(kv.key.clone(), kv.clone());
        self.history.push(event(PUT, kv));
        PbPutResponse::default()
    }

    /// Returns the number of deleted keys.
    fn delete(&mut self, key: &[u8], end: &[u8], revision: i64) -> i64 {
        let mut gone: Vec<Vec<u8>> = self.keys.keys().cloned().collect();
        gone.retain(|candidate| within(candidate, key, end));
        let count = i64::try_from(gone.len()).expect("a small store");
        for key in gone {
            self.keys.remove(&key);
            let kv = PbKeyValue {
                key,
                mod_revision: revision,
                ..PbKeyValue::default()
            };
            self.history.push(event(DELETE, kv));
        }
        count
    }

    fn holds(&self, compare: &PbCompare) -> bool {
        let kv = self.keys.get(&compare.key).cloned().unwrap_or_default();
        let order = match compare.target_union.as_ref().expect("a target") {
            PbTargetUnion::Version(version) => kv.version.cmp(version),
            PbTargetUnion::CreateRevision(revision) => kv.create_revision.cmp(revision),
            PbTargetUnion::ModRevision(revision) => kv.mod_revision.cmp(revision),
            PbTargetUnion::Value(value) => kv.value.cmp(value),
            PbTargetUnion::Lease(lease) => kv.lease.cmp(lease),
        };
        // etcdserverpb.Compare.CompareResult.
        match compare.result {
            0 => order.is_eq(),
            1 => order.is_gt(),
            2 => order.is_lt(),
            _ => order.is_ne(),
        }
    }

    fn txn(&mut self, request: &PbTxnRequest) -> Result<PbTxnResponse, Status> {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let branch = if succeeded {
            &request.success
        } else {
            &request.failure
        };
        let steps: Vec<_> = branch.iter().filter_map(|op| op.request.as_ref()).collect();
        for step in &steps {
            if let PbTxnOpRequest::RequestPut(put) = step {
                self.check(put)?;
            }
        }
        let before = self.revision;
        let mut changed = false;
        let mut responses = Vec::new();
        for step in steps {
            self.revision = before + 1;
            let response = match step {
                PbTxnOpRequest::RequestRange(range) => {
                    PbTxnOpResponse::ResponseRange(self.range(range))
                }
                PbTxnOpRequest::RequestPut(put) => {
                    changed = true;
                    PbTxnOpResponse::ResponsePut(self.put(put))
                }
                PbTxnOpRequest::RequestDeleteRange(delete) => {
                    let deleted = self.delete(&delete.key, &delete.range_end, self.revision);
                    changed |= deleted > 0;
                    PbTxnOpResponse::ResponseDeleteRange(PbDeleteResponse {
                        deleted,
                        ..PbDeleteResponse::default()
                    })
                }
                PbTxnOpRequest::RequestTxn(_) => {
                    return Err(Status::unimplemented("nested transactions"));
                }
            };
            responses.push(PbResponseOp {
                response: Some(response),
            });
        }
        self.revision = before + i64::from(changed);
        Ok(PbTxnResponse {
            header: None,
            succeeded,
            responses,
        })
    }
}

fn no_lease() -> Status {
    Status::not_found("etcdserver: requested lease not found")
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).expect("a short duration")
}

fn event(kind: i32, kv: PbKeyValue) -> PbEvent {
    PbEvent {
        r#type: kind,
        kv: Some(kv),
        prev_kv: None,
    }
}

/// Whether `candidate` is in etcd's range of a key and a range end.
fn within(candidate: &[u8], key: &[u8], end: &[u8]) -> bool {
    match end {
        [] => candidate == key,
        [0] => candidate >= key,
        end => key <= candidate && candidate < end,
    }
}

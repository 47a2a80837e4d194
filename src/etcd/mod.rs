//! All requests to etcd and the parsing of its answers; the only room that names its client.
//! It must not know the command that runs under the lock, nor exit codes.

mod acquire;
mod announced;
mod attempts;
pub(crate) mod backend;
mod cluster;
mod connection;
mod deadlock;
pub(crate) mod doctor;
mod error;
pub(crate) mod eviction;
mod history;
pub(crate) mod listing;
mod login;
mod p521;
mod prepare;
pub(crate) mod queue;
mod renewal;
mod requests;
pub(crate) mod session;
mod tls;
mod ttl_keys;
mod wait;

pub(crate) use cluster::Cluster;

use crate::core::proof::LeaseId;
use crate::lock::error::LockError;
use crate::sys::random::random;

/// A random positive id: one that the server picks would be lost with the answer.
fn random_lease() -> Result<LeaseId, LockError> {
    let id = random()
        .map_err(|error| LockError::refused(format!("no random lease id: {error}"), None))?;
    Ok(LeaseId((id.cast_signed() & i64::MAX).max(1)))
}

//! Everything that is said to etcd and understood of its answers; the only room that names its client.
//! It must not know the command that runs under the lock, nor exit codes.

pub(crate) mod ask;
mod cluster;
mod connection;
pub(crate) mod contend;
pub(crate) mod doctor;
pub(crate) mod look;
mod marks;
mod places;
mod prepare;
pub(crate) mod session;
pub(crate) mod survey;
mod trouble;
mod vigil;

pub(crate) use cluster::Cluster;

use crate::core::lease::LeaseId;
use crate::trouble::Trouble;

/// A random positive id: one that the server picks would be lost with the answer.
fn random_lease() -> Result<LeaseId, Trouble> {
    let mut bytes = [0_u8; 8];
    // Eight bytes come whole, and without waiting once the system is up (getrandom(2)).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Trouble::refused(format!("no random lease id: {error}"), None))?;
    Ok(LeaseId((i64::from_ne_bytes(bytes) & i64::MAX).max(1)))
}

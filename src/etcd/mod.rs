//! Everything that is said to etcd and understood of its answers; the only room that names its client.
//! It must not know the command that runs under the lock, nor exit codes.

mod cluster;
mod connection;
pub(crate) mod contend;
mod places;
pub(crate) mod session;
mod trouble;

pub(crate) use cluster::Cluster;
pub(crate) use places::Ahead;
pub(crate) use trouble::Trouble;

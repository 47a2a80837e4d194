//! A server that a fault can be applied to, for any tool.
//! It must not know the time of the fault.

use crate::consul::Agent;
use crate::support::{Etcd, Signal, alive};
use crate::tool::Tool;

/// A server of etcd or of consul.
#[derive(Clone, Copy)]
pub(crate) enum Server<'a> {
    Etcd(&'a Etcd),
    Consul(&'a Agent),
}

/// The holder's key and lease at a server; empty for a tool without a server.
#[derive(Default)]
pub(crate) struct LockHandle {
    /// The holder's key.
    pub(crate) key: String,
    /// The key's lease or session.
    pub(crate) lease: String,
}

impl Server<'_> {
    fn process(self) -> crate::support::Process {
        match self {
            Self::Etcd(etcd) => etcd.process(),
            Self::Consul(agent) => agent.process(),
        }
    }

    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Etcd(etcd) => etcd.port(),
            Self::Consul(agent) => agent.port(),
        }
    }

    pub(crate) fn endpoint(self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    pub(crate) fn stop(self) {
        self.process().signal(Signal::STOP);
    }

    pub(crate) fn cont(self) {
        self.process().signal(Signal::CONT);
    }

    pub(crate) fn is_alive(self) -> bool {
        alive(self.process())
    }

    pub(crate) fn kill(self) {
        match self {
            Self::Etcd(etcd) => etcd.kill(),
            Self::Consul(agent) => agent.kill(),
        }
    }

    pub(crate) fn revive(self) {
        match self {
            Self::Etcd(etcd) => etcd.revive(),
            Self::Consul(agent) => agent.revive(),
        }
    }

    pub(crate) fn restart(self) {
        match self {
            Self::Etcd(etcd) => etcd.restart(),
            Self::Consul(agent) => agent.restart(),
        }
    }

    /// The key and lease of the lock's holder, once a waiter is behind it.
    pub(crate) fn contended(self, tool: Tool, lock: &str) -> Option<LockHandle> {
        match self {
            Self::Etcd(etcd) => match &etcd.entries(&tool.keys(lock)?)[..] {
                [holder, _] => Some(LockHandle {
                    key: holder.key.clone(),
                    lease: holder.lease_hex(),
                }),
                _ => None,
            },
            Self::Consul(agent) => agent.contended(lock).map(|lease| LockHandle {
                key: lock.to_owned(),
                lease,
            }),
        }
    }

    pub(crate) fn revoke(self, handle: &LockHandle) {
        match self {
            Self::Etcd(etcd) => etcd.revoke(&handle.lease),
            Self::Consul(agent) => agent.destroy(&handle.lease),
        }
    }

    pub(crate) fn delete(self, handle: &LockHandle) {
        match self {
            Self::Etcd(etcd) => {
                etcd.ctl(&["del", &handle.key]);
            }
            Self::Consul(agent) => agent.delete(&handle.key),
        }
    }
}

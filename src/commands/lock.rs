//! An errand under the kind of lock that was asked for, with a guard that keeps what that kind needs.
//! It must not know what is done under the lock, nor how any kind of lock works.

use std::rc::Rc;

use anyhow::Context as _;

use super::errand::{self, Errand};
use crate::config::Settings;
use crate::core::lease::Terms;
use crate::core::queue::Queue;
use crate::etcd::Cluster;
use crate::etcd::contend::Contender;
use crate::exit::{Exit, Failure};
use crate::guard::{self, Detached, Policy, Ties};
use crate::whoami;

/// Has a guard run `command` under the lock and tells how it ended. To be called before any thread exists: see
/// guard/mod.rs.
pub(super) fn carry_out(
    errand: Errand,
    settings: &Settings,
    command: guard::Command,
) -> Result<Exit, Failure> {
    let (name, lock) = (errand.name, errand.lock);
    let policy = Policy {
        signal: lock.signal,
        grace: lock.grace,
        leftovers: errand.leftovers,
    };
    let record = whoami::holder(
        errand.program,
        lock.note.as_deref(),
        lock.wish.mode,
        lock.grace,
    );
    let ties = Ties {
        adopted: errand.owner,
        kept: errand.background.iter().map(Detached::descriptor).collect(),
        ..Ties::default()
    };
    let guard = guard::launch(command, policy, &ties).context("cannot start the guard process")?;
    let contender = Contender::new(
        Rc::new(Cluster::new(settings)),
        Queue::new(&settings.prefix, name),
        record,
        Terms::new(lock.ttl, lock.grace),
        lock.wish,
        settings.connect_timeout,
    );
    errand::carry_out(errand, contender, guard)
}

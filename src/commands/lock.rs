//! An errand under the kind of lock that was asked for, with a guard that keeps what that kind needs.
//! It must not know what is done under the lock, nor how any kind of lock works.

use std::rc::Rc;

use anyhow::Context as _;

use super::errand::{self, Errand};
use crate::config::site::Site;
use crate::core::lease::Terms;
use crate::core::ledger::Ledger;
use crate::core::queue::Queue;
use crate::etcd::Cluster;
use crate::etcd::contend::Contender;
use crate::exit::{Exit, Failure};
use crate::guard::{self, Detached, Guard, Policy, Ties};
use crate::local;
use crate::whoami;

/// What a command does not get of every lock: that of a lock around this one would belie it.
pub(super) const NOT_OF_ALL: [&str; 5] = [
    "DLOCK_SLOT",
    "DLOCK_KEY",
    "DLOCK_LEASE",
    "ETCD_LOCK_KEY",
    "ETCD_LOCK_REV",
];

/// Has a guard run `command` under the lock and tells how it ended. To be called before any thread exists: see
/// guard/mod.rs.
pub(super) fn carry_out(
    errand: &Errand,
    site: &Site,
    command: guard::Command,
    ties: Ties,
    ledger: &mut Ledger,
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
    // For what does not live as long as the caller's.
    let mut ties: Ties = ties;
    ties.cleared = &NOT_OF_ALL;
    ties.kept
        .extend(errand.background.map(Detached::descriptor));
    let launch = |ties: &Ties| -> Result<Guard, Failure> {
        let guard = guard::launch(command, policy, ties);
        Ok(guard.context("cannot start the guard process")?)
    };
    match site {
        Site::Etcd(settings) => {
            let guard = launch(&ties)?;
            let contender = Contender::new(
                Rc::new(Cluster::new(settings)),
                Queue::new(&settings.prefix, name),
                record,
                Terms::new(lock.ttl, lock.grace),
                lock.wish,
                settings.connect_timeout,
            );
            errand::carry_out(errand, contender, guard, ledger)
        }
        Site::Local(folder) => {
            let contender = local::Contender::come(folder, name, record, lock.wish)?;
            ties.kept.push(contender.used());
            ties.shared = Some(contender.held());
            let guard = launch(&ties)?;
            drop(ties);
            errand::carry_out(errand, contender, guard, ledger)
        }
    }
}

//! An errand under the kind of lock that was asked for, with a guard that keeps what that kind needs.
//! It must not know what is done under the lock, nor how any kind of lock works.

use std::rc::Rc;

use anyhow::Context as _;

use super::run_locked::{self, LockedRun};
use crate::config::site::BackendConfig;
use crate::core::keys::LockKeys;
use crate::core::run_stats::RunStats;
use crate::core::time::LeaseTimings;
use crate::etcd::Cluster;
use crate::etcd::acquire::EtcdBackend;
use crate::guard::{self, Guard, LaunchOptions, Policy};
use crate::host::identity;
use crate::local;
use crate::output::exit::{Exit, Failure};
use crate::sys::daemonize::Background;

/// What a command does not get of every lock: that of a lock around this one would belie it.
pub(super) const KIND_SPECIFIC_VARIABLES: [&str; 5] = [
    "DLOCK_SLOT",
    "DLOCK_KEY",
    "DLOCK_LEASE",
    "ETCD_LOCK_KEY",
    "ETCD_LOCK_REV",
];

/// Has a guard run `command` under the lock and tells how it ended. To be called before any thread exists: see
/// guard/mod.rs.
pub(super) fn execute(
    run: &LockedRun,
    site: &BackendConfig,
    command: guard::Command,
    ties: LaunchOptions,
    stats: &mut RunStats,
) -> Result<Exit, Failure> {
    let (name, lock) = (run.name, run.lock);
    let policy = Policy {
        signal: lock.signal,
        grace: lock.grace,
        leftovers: run.leftovers,
    };
    let record = identity::holder(
        run.program,
        lock.note.as_deref(),
        lock.request.mode,
        lock.grace,
    );
    // For what does not live as long as the caller's.
    let mut ties: LaunchOptions = ties;
    ties.cleared = &KIND_SPECIFIC_VARIABLES;
    ties.kept.extend(run.background.map(Background::descriptor));
    let launch = |ties: &LaunchOptions| -> Result<Guard, Failure> {
        let guard = guard::launch(command, policy, ties);
        Ok(guard.context("cannot start the guard process")?)
    };
    match site {
        BackendConfig::Etcd(settings) => {
            let guard = launch(&ties)?;
            let backend = EtcdBackend::new(
                Rc::new(Cluster::new(settings)),
                LockKeys::new(&settings.prefix, name),
                record,
                LeaseTimings::new(lock.ttl, lock.grace),
                lock.request,
                settings.connect_timeout,
            );
            run_locked::execute(run, backend, guard, stats)
        }
        BackendConfig::Local(directory) => {
            let backend = local::LocalBackend::new(directory, name, record, lock.request)?;
            ties.kept.push(backend.used());
            ties.shared = Some(backend.held());
            let guard = launch(&ties)?;
            drop(ties);
            run_locked::execute(run, backend, guard, stats)
        }
    }
}

//! The backend for a run, with a guard that keeps the descriptors of that backend open; and the reader of its locks.
//! It must not know what runs under the lock, nor how any backend works.

use std::rc::Rc;

use anyhow::Context as _;

use super::locked_run::LockedRun;
use super::run_end::RunEnd;
use super::run_locked;
use crate::config::backend::BackendConfig;
use crate::config::setting::Setting;
use crate::core::holder::Holder;
use crate::core::keys::LockKeys;
use crate::core::request::WaitPolicy;
use crate::core::run_stats::RunStats;
use crate::core::time::LeaseTimings;
use crate::etcd::Cluster;
use crate::etcd::backend::EtcdBackend;
use crate::etcd::listing::EtcdReader;
use crate::guard::{self, Guard, LaunchOptions, Policy};
use crate::host::identity;
use crate::local::{LocalBackend, LocalReader};
use crate::lock::reader::LockReader;
use crate::output::exit::Failure;

/// Variables that not every lock sets; a value from an outer lock would be wrong.
const KIND_SPECIFIC_VARIABLES: [&str; 5] = [
    "DLOCK_SLOT",
    "DLOCK_KEY",
    "DLOCK_LEASE",
    "ETCD_LOCK_KEY",
    "ETCD_LOCK_REV",
];

/// The reader of the locks.
pub(super) fn reader(config: &BackendConfig) -> Box<dyn LockReader + '_> {
    match config {
        BackendConfig::Etcd(settings) => Box::new(EtcdReader::new(settings)),
        BackendConfig::Local(directory) => Box::new(LocalReader(directory)),
    }
}

/// The variables that a command does not get from dlock's caller.
pub(super) fn cleared_variables() -> Vec<String> {
    KIND_SPECIFIC_VARIABLES
        .map(str::to_owned)
        .into_iter()
        .chain(Setting::variables_of_one_run())
        .collect()
}

/// Runs `command` under its locks and returns its end. The caller must have started no thread: see guard/mod.rs.
pub(super) fn execute(
    run: &LockedRun,
    config: &BackendConfig,
    command: guard::Command,
    launch_options: LaunchOptions,
    stats: &mut RunStats,
) -> Result<RunEnd, Failure> {
    let lock = run.lock;
    let policy = Policy {
        signal: lock.signal,
        grace: lock.grace,
        leftovers: run.leftovers,
    };
    let record = Holder {
        held: identity::outer_locks(&config.scope()),
        limited: lock.request.wait_policy != WaitPolicy::Forever,
        ..identity::holder(
            run.program,
            lock.note.as_deref(),
            lock.request.mode,
            lock.grace,
        )
    };
    // A shorter lifetime, for the references that are added here.
    let mut launch_options: LaunchOptions = launch_options;
    launch_options.cleared = cleared_variables();
    launch_options
        .kept
        .extend(run.background.iter().flat_map(|it| it.descriptors()));
    let launch = |launch_options: &LaunchOptions| -> Result<Guard, Failure> {
        let guard = guard::launch(command, policy, launch_options);
        Ok(guard.context("cannot start the guard process")?)
    };
    match config {
        BackendConfig::Etcd(settings) => {
            let guard = launch(&launch_options)?;
            let cluster = Rc::new(Cluster::new(settings));
            let backend = |name| {
                EtcdBackend::new(
                    Rc::clone(&cluster),
                    LockKeys::new(&settings.prefix, name),
                    record.clone(),
                    LeaseTimings::new(lock.ttl, lock.grace),
                    lock.request,
                    settings.first_answer_limit(lock.request.wait_policy),
                )
            };
            let backends: Vec<EtcdBackend> = run.names.iter().map(backend).collect();
            run_locked::execute(run, &backends, guard, stats)
        }
        BackendConfig::Local(directory) => {
            let backend = |name| LocalBackend::new(directory, name, record.clone(), lock.request);
            let backends: Result<Vec<LocalBackend>, Failure> =
                run.names.iter().map(backend).collect();
            let backends = backends?;
            launch_options
                .kept
                .extend(backends.iter().map(LocalBackend::used));
            launch_options.shared = backends.iter().map(LocalBackend::held).collect();
            let guard = launch(&launch_options)?;
            drop(launch_options);
            run_locked::execute(run, &backends, guard, stats)
        }
    }
}

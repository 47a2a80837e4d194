//! One file per sub-command, and what several of them need to wait for: signals and the guard.
//! It must not know gRPC, nor system calls.

mod break_lock;
mod check;
pub(crate) mod complete;
mod doctor;
mod fence;
mod guard_io;
pub(crate) mod hold;
mod list;
mod names;
mod not_acquired;
mod program;
mod progress;
mod report;
mod run;
mod run_locked;
mod select_backend;
mod signals;
mod supervise;
mod view;

use std::fmt::Display;

use anyhow::{Context as _, anyhow};

use crate::cli::Work;
use crate::config::Settings;
use crate::lock::error::LockError;
use crate::output::exit::{Exit, Failure};

/// Runs what waits for etcd, processes and signals.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let tasks = tokio::task::LocalSet::new();
    let ended = tasks.block_on(&runtime, work);
    // A name look-up that hangs must not keep us: nobody waits for what it finds. And the kernel clears the rest away
    // more quickly, with the process.
    std::mem::forget((tasks, runtime));
    ended
}

/// What was tried and did not go, with what etcd had to say.
fn failed(tried: impl Display, error: LockError) -> Failure {
    Failure {
        hint: error.hint,
        ..anyhow!("{tried}: {}", error.cause).into()
    }
}

/// The names of the locks that begin so, as far as etcd tells at once.
pub(crate) fn names(settings: &Settings, beginning: &str) -> Vec<String> {
    names::beginning_with(settings, beginning)
}

/// Does the work of the sub-command that was asked for.
pub(crate) fn execute(work: &Work) -> Result<Exit, Failure> {
    match work {
        Work::Run(site, options) => own_stack_frame(|| run::run(site, options)),
        Work::Fence(options) => own_stack_frame(|| fence::fence(options)),
        Work::Hold(site, options) => own_stack_frame(|| hold::hold(site, options)),
        Work::Look(site, look) => own_stack_frame(|| list::execute(site, look)),
        Work::Check(site, check) => own_stack_frame(|| check::check(site, check)),
        Work::Break(settings, order) => own_stack_frame(|| break_lock::break_lock(settings, order)),
        Work::Release(hold) => own_stack_frame(|| hold::release(hold)),
        Work::Doctor(settings, options) => own_stack_frame(|| doctor::run(settings, options)),
    }
}

/// What one sub-command needs of the stack would be reserved for each of them, and touched, if it were inlined.
#[inline(never)]
fn own_stack_frame<T>(work: impl FnOnce() -> T) -> T {
    work()
}

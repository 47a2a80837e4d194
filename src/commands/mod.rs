//! One file per sub-command, and the waiting that several of them share: signals and the guard.
//! It must not know gRPC, nor system calls.

mod acquire;
mod break_lock;
mod check;
pub(crate) mod complete;
mod doctor;
mod fence;
mod guard_io;
mod history;
pub(crate) mod hold;
mod list;
mod locked_run;
mod not_acquired;
mod program;
mod progress;
mod report;
mod run;
mod run_end;
mod run_locked;
mod select_backend;
mod signals;
mod supervise;

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use crate::cli::Work;
use crate::lock::error::LockError;
use crate::output::exit::{Exit, Failure};
use crate::sys::clock;

/// Limit for name look-ups that are not needed any more, before the guard is forked.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);

fn event_loop() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
}

/// Runs a future that waits for etcd, processes or signals.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = event_loop()?;
    let tasks = tokio::task::LocalSet::new();
    let ended = tasks.block_on(&runtime, work);
    // A name look-up that hangs must not delay the end: its result is not needed. The kernel frees the rest more quickly, with
    // the process.
    std::mem::forget((tasks, runtime));
    ended
}

/// The same for work before the guard is forked, which needs a process with one thread: a name look-up has threads of its own.
///
/// # Errors
/// A look-up does not end.
fn block_on_and_end_threads<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let runtime = event_loop()?;
    let ended = tokio::task::LocalSet::new().block_on(&runtime, work);
    let limit_at = clock::now() + LOOK_UP_TIMEOUT;
    runtime.shutdown_timeout(LOOK_UP_TIMEOUT);
    // The kernel shows a thread for a moment after it was joined.
    while std::fs::read_dir("/proc/self/task")
        .context("cannot count our own threads")?
        .count()
        > 1
    {
        if clock::now() >= limit_at {
            return Err(anyhow!("a name lookup does not end").into());
        }
        std::thread::yield_now();
    }
    ended
}

/// A failure: the attempt, and the cause that etcd gave.
fn failed(tried: impl Display, error: LockError) -> Failure {
    Failure {
        hint: error.hint,
        ..anyhow!("{tried}: {}", error.cause).into()
    }
}

/// Executes the work of the sub-command.
pub(crate) fn execute(work: &Work) -> Result<Exit, Failure> {
    match work {
        Work::Run(backend, options) => own_stack_frame(|| run::run(backend, options)),
        Work::Fence(options) => own_stack_frame(|| fence::fence(options)),
        Work::Hold(backend, options) => own_stack_frame(|| hold::hold(backend, options)),
        Work::List(backend, request) => own_stack_frame(|| list::execute(backend, request)),
        Work::History(backend, options) => own_stack_frame(|| history::execute(backend, options)),
        Work::Check(backend, check) => own_stack_frame(|| check::check(backend, check)),
        Work::Break(settings, order) => own_stack_frame(|| break_lock::break_lock(settings, order)),
        Work::Release(hold) => own_stack_frame(|| hold::release(hold)),
        Work::Doctor(backend, options) => own_stack_frame(|| doctor::run(backend, options)),
    }
}

/// Not inlined: otherwise every sub-command would reserve and touch the stack of the largest one.
#[inline(never)]
fn own_stack_frame<T>(work: impl FnOnce() -> T) -> T {
    work()
}

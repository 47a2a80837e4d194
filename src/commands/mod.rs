//! One file per sub-command, and what several of them need to wait for: signals and the guard.
//! It must not know gRPC, nor system calls.

mod check;
mod doctor;
mod errand;
mod evict;
mod fence;
pub(crate) mod hold;
mod lock;
mod look;
mod names;
mod post;
mod program;
mod refusal;
mod report;
mod run;
mod signals;
mod supervise;
mod view;
mod waiting;

use std::fmt::Display;

use anyhow::{Context as _, anyhow};

use crate::cli::Work;
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::trouble::Trouble;

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
fn failed(tried: impl Display, trouble: Trouble) -> Failure {
    Failure {
        hint: trouble.hint,
        ..anyhow!("{tried}: {}", trouble.cause).into()
    }
}

/// The names of the locks that begin so, as far as etcd tells at once.
pub(crate) fn names(settings: &Settings, beginning: &str) -> Vec<String> {
    names::beginning_with(settings, beginning)
}

/// Does the work of the sub-command that was asked for.
pub(crate) fn carry_out(work: &Work) -> Result<Exit, Failure> {
    match work {
        Work::Run(site, options) => apart(|| run::run(site, options)),
        Work::Fence(options) => apart(|| fence::fence(options)),
        Work::Hold(site, options) => apart(|| hold::hold(site, options)),
        Work::Look(site, look) => apart(|| look::look(site, look)),
        Work::Check(site, check) => apart(|| check::check(site, check)),
        Work::Break(settings, order) => apart(|| evict::evict(settings, order)),
        Work::Release(hold) => apart(|| hold::release(hold)),
        Work::Doctor(settings, options) => apart(|| doctor::run(settings, options)),
    }
}

/// What one sub-command needs of the stack would be reserved for each of them, and touched, if it were inlined.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

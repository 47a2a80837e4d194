//! One file per sub-command, and what several of them need to wait for: signals and the guard.
//! It must not know gRPC, nor system calls.

mod post;
mod run;
mod signals;
mod supervise;

use crate::cli::Work;
use crate::exit::{Exit, Failure};

/// Does the work of the sub-command that was asked for.
pub(crate) fn carry_out(work: &Work) -> Result<Exit, Failure> {
    match work {
        Work::Run(settings, options) => run::run(settings, options),
    }
}

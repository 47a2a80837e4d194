//! One file per sub-command, and what several of them need to wait for: signals and the guard.
//! It must not know gRPC, nor system calls.

mod post;
pub(crate) mod run;
mod signals;
mod supervise;

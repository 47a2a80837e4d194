//! dlock runs a command under an etcd lock, and kills it before anybody else can get the lock.
//! This file is the map, and leads from the command line to the exit; it must not know etcd or processes.
//!
//! | question | room |
//! |---|---|
//! | which options and settings exist, and what are their limits? | `cli/`, `config/` |
//! | when is the command stopped or killed? | `core/watchdog.rs` |
//! | what proves that the lock is ours, and for how long? | `core/proof.rs`, `core/proven_lock.rs`, `core/time.rs` |
//! | when is the next renewal? | `core/heartbeat.rs` |
//! | which keys does a lock have, and which entries block ours? | `core/name.rs`, `core/keys.rs`, `core/blockers.rs` |
//! | which waiters wait for each other in a ring, and which of them leaves? | `core/deadlock.rs` |
//! | whose command may still run when we have the lock? | `core/lock_delay.rs` |
//! | what does the holder record say? | `core/holder.rs`, `host/identity.rs` |
//! | what do both kinds of lock have in common? | `lock/` |
//! | which requests does etcd get? | `etcd/` |
//! | how does a lock work without etcd? | `local/`, `core/local.rs` |
//! | how is the command started, and how is its whole tree killed? | `guard/` |
//! | which system calls does dlock make? | `sys/`; `unsafe` is in `sys/` and `guard/` only |
//! | which file survives a crash? | `sys/atomic_file.rs` |
//! | which tokens does a fence refuse, and what is in its file? | `core/fence.rs`, `local/token_file.rs` |
//! | how are several locks taken, and kept until all are held? | `core/name.rs` (`in_order`), `commands/acquire.rs` |
//! | in what order does it all happen? | `commands/`, one file per sub-command; `commands/run_locked.rs` |
//! | what does the shell offer at TAB? | `commands/complete.rs`, `cli/partial.rs`, `completions/` |
//! | what does systemd get? | `output/systemd.rs` |
//! | what would go wrong tonight? | `commands/doctor.rs`, `core/doctor.rs`, `etcd/doctor.rs`, `local/doctor.rs`, `host/facts.rs` |
//! | who held a lock last night? | `core/history.rs`, `etcd/history.rs`, `local/history.rs` |
//! | how has a run ended, with which exit status? | `commands/run_end.rs`, `output/exit.rs` |
//! | what time is it? | `sys/clock.rs` |
//! | what do the log and the terminal show? | `output/log.rs`, `output/events.rs`, `output/live_line.rs`, `core/text.rs` |
//! | what is shown during the wait, what is counted? | `core/wait_status.rs`, `core/run_stats.rs`, `commands/report.rs`, `output/metrics.rs` |
//! | what must hold for any bytes that others may have written? | `fuzzing.rs`, `fuzz/` |

pub mod cli;
mod commands;
mod config;
pub mod core;
mod etcd;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod guard;
mod host;
mod local;
mod lock;
pub mod output;
mod sys;

use std::ffi::OsString;
use std::io::Write as _;

use anyhow::anyhow;

use cli::Request;
use commands::{complete, hold};
use output::exit::{Exit, Failure, OrFail as _};
use output::{events, log};
use sys::trust::is_secure_execution;

/// The whole program.
pub fn main() -> ! {
    sys::signals::ignore_file_size_limit();
    // A panic in any task ends the process at once: renewals stop, and the guard sees the end. The exit status must not be
    // one that the command may return.
    log::on_panic(|| end(Exit::Failed));
    end(run().unwrap_or_else(|failure| {
        log::log_failure(&failure);
        failure.exit
    }))
}

fn end(exit: Exit) -> ! {
    if exit != Exit::Done && cli::is_evaluated(std::env::args_os()) {
        // A shell that evaluates an empty text continues without the lock, whatever the exit status is.
        let _ = writeln!(std::io::stdout(), "exit {}", exit.code());
    }
    exit.exit_process()
}

fn run() -> Result<Exit, Failure> {
    if is_secure_execution() {
        // The caller chooses the files that dlock reads and replaces.
        return Err(anyhow!(
            "dlock must not have more rights than its caller: the executable is setuid or setgid, or has capabilities"
        ))
        .or_hint("take them away: chmod ug-s FILE, setcap -r FILE; sudo runs dlock as another user");
    }
    let argv: Vec<OsString> = std::env::args_os().collect();
    if let Some((name, args)) = argv.split_first()
        && name == hold::HOLD_CHILD
    {
        return hold::hold_child(args);
    }
    if let Some(answer) = complete::requested(&argv) {
        let _ = std::io::stdout().write_all(answer.as_bytes());
        return Ok(Exit::Done);
    }
    match cli::parse(argv, &|name| std::env::var_os(name))? {
        Request::Print(text) => {
            // A reader that closed the pipe has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(Exit::Done)
        }
        Request::Welcome(text) => {
            let _ = std::io::stderr().write_all(text.as_bytes());
            Ok(Exit::Failed)
        }
        Request::Task(task) => {
            sys::environment::erase(core::secrets::password_start);
            if task.work.has_secrets() {
                sys::core_dump::forbid();
            }
            log::init(task.output);
            for warning in &task.warnings {
                tracing::warn!(event = events::SETTING, "{}", warning.says);
            }
            commands::execute(&task.work)
        }
    }
}

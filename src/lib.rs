//! dlock runs a command under an etcd lock, and kills it before anybody else can get the lock.
//! This file is the map, and the way from the command line to the exit; it must not know etcd or processes.
//!
//! | question | room |
//! |---|---|
//! | which word on the command line, which setting? | `cli/`, `config/` |
//! | when is the command stopped or killed? | `core/watchdog.rs` |
//! | what proves that the lock is ours, and for how long? | `core/proof.rs`, `core/time.rs` |
//! | when is the next renewal? | `core/heartbeat.rs` |
//! | which keys, whose turn? | `core/name.rs`, `core/queue.rs`, `core/turn.rs` |
//! | whose command may still run when it is our turn? | `core/evidence.rs` |
//! | what do others see of the holder? | `core/holder.rs`, `whoami.rs` |
//! | what is every kind of lock to the one who wants it? | `contest.rs` |
//! | what is said to etcd? | `etcd/` |
//! | how does a lock work without etcd? | `local/`, `core/local.rs` |
//! | how is the command started, and how does all of it die? | `guard/` |
//! | who is a fence's late writer, and what does its file say? | `core/fence.rs`, `fence.rs` |
//! | what survives a crash? | `whole.rs` |
//! | in what order does it all happen? | `commands/` |
//! | what does the shell offer at TAB? | `complete.rs`, `cli/partial.rs`, `completions/` |
//! | what does systemd hear? | `notify.rs` |
//! | what would go wrong tonight? | `commands/doctor.rs`, `core/doctor.rs`, `etcd/doctor.rs`, `machine.rs` |
//! | which exit status? | `exit.rs` |
//! | what time is it? | `clock.rs` |
//! | how is it said, and to whom? | `log.rs`, `events.rs`, `terminal.rs`, `core/text.rs` |
//! | what is shown while it waits, what is counted? | `core/scene.rs`, `core/ledger.rs`, `commands/report.rs`, `metrics.rs` |

pub mod cli;
mod commands;
mod config;
pub mod core;
mod etcd;
mod guard;
mod host;
mod local;
mod lock;
pub mod output;
mod sys;

use std::ffi::OsString;
use std::io::Write as _;

use cli::Request;
use commands::{complete, hold};
use output::exit::{Exit, Failure};
use output::{events, log};

/// The whole program.
pub fn main() -> ! {
    // At once, in whichever task it happens: nothing is renewed any more, and the guard sees the end. A status that the
    // command may return must not follow.
    log::on_panic(|| end(Exit::Failed));
    end(run().unwrap_or_else(|failure| {
        log::log_failure(&failure);
        failure.exit
    }))
}

fn end(exit: Exit) -> ! {
    if exit != Exit::Done && cli::is_evaluated(std::env::args_os()) {
        // A shell that evaluates nothing goes on without the lock, whatever the status of a busy one is to be.
        let _ = writeln!(std::io::stdout(), "exit {}", exit.code());
    }
    exit.exit_process()
}

fn run() -> Result<Exit, Failure> {
    let argv: Vec<OsString> = std::env::args_os().collect();
    if let Some((name, words)) = argv.split_first()
        && name == hold::HOLD_CHILD
    {
        return hold::hold_child(words);
    }
    // Anything else in that variable is none of a shell's, and must not keep a command from running.
    let position = std::env::var(complete::VARIABLE).ok();
    if let Some(position) = position.and_then(|text| text.parse().ok()) {
        let answer = complete::answer(position, &argv);
        let _ = std::io::stdout().write_all(answer.as_bytes());
        return Ok(Exit::Done);
    }
    match cli::parse(argv, &|name| std::env::var_os(name))? {
        Request::Print(text) => {
            // Whoever closed the pipe has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(Exit::Done)
        }
        Request::Welcome(text) => {
            let _ = std::io::stderr().write_all(text.as_bytes());
            Ok(Exit::Failed)
        }
        Request::Task(task) => {
            log::init(task.output);
            for warning in &task.warnings {
                tracing::warn!(event = events::SETTING, "{warning}");
            }
            commands::execute(&task.work)
        }
    }
}

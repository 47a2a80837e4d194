//! The exit statuses of dlock, and the error that goes with one.
//! It must not know the reason of an exit.

use std::process;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::core::remedy::remedy;
use crate::sys::atomic_file::IsSymlink;
use crate::sys::process::ExitStatus;

/// The end of dlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// dlock itself has done the requested work.
    Done,
    /// The answer is no: the lock is free.
    Free,
    /// The work is done, and `dlock doctor` has warnings.
    Warned,
    /// The command ended with this status.
    Command(u8),
    /// The command, or dlock while it waited, was ended by this signal.
    Signalled(i32),
    /// Another client holds the lock; the status is `--conflict-exit-code`.
    Busy(u8),
    Lost,
    Unkillable,
    /// The command was stopped at `--max-hold`; the number is that of `timeout(1)`.
    TimedOut,
    /// dlock itself failed.
    Failed,
    NotExecutable,
    NotFound,
}

/// `EX_TEMPFAIL` of `sysexits.h(3)`, as in `lockf(1)` and `lckdo(1)`.
pub(crate) const BUSY: u8 = 75;

/// The table in the manual page and the README: status and meaning.
pub const TABLE: &[(&str, &str)] = &[
    (
        "the command's",
        "the command has ended; if a signal ended it, dlock ends by the same signal (128+n in a shell)",
    ),
    (
        "75",
        "the command did not run: the lock is busy (at once with --no-wait, or after --wait), the command ran already (--once-per), or a newer request superseded this one; --conflict-exit-code sets another status",
    ),
    (
        "121",
        "the lock was lost, and the command was stopped or had ended by then; or somebody asked for the lock (dlock break, --supersede=holder), and the command was stopped; from dlock fence: the token is lower than the highest that FILE has seen",
    ),
    ("122", "a process of the command could not be killed"),
    (
        "124",
        "the command was stopped because --max-hold had passed",
    ),
    (
        "125",
        "dlock itself failed: usage, configuration, an etcd that cannot be reached or refuses, or a state directory that cannot be used (--local)",
    ),
    ("126", "the command was found but cannot be executed"),
    ("127", "the command was not found"),
];

impl Exit {
    /// The status as a shell sees it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Free | Self::Warned => 1,
            Self::Command(status) | Self::Busy(status) => status,
            Self::Signalled(signal) => u8::try_from(signal).unwrap_or(0).saturating_add(128),
            Self::Lost => 121,
            Self::Unkillable => 122,
            Self::TimedOut => 124,
            Self::Failed => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
        }
    }

    /// Ends the process, by a real signal if a signal ended the work: a shell's loop then stops at Ctrl-C.
    pub(crate) fn exit_process(self) -> ! {
        if let Self::Signalled(signal) = self {
            // The command has dumped its own core; one of dlock would be useless. A pipe in core_pattern ignores the
            // limit (core(5)), hence both.
            let none = Rlimit {
                current: Some(0),
                maximum: Some(0),
            };
            let _ = setrlimit(Resource::Core, none);
            let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
            crate::sys::signals::die_of(signal);
        }
        process::exit(self.code().into())
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Exited(code) => Self::Command(code),
            ExitStatus::Signalled(signal) => Self::Signalled(signal),
        }
    }
}

/// An error that ends dlock. A bare `?` on an `anyhow` error means [`Exit::Failed`]; any other end is named where the
/// error occurs: `.or_exit(Exit::NotFound)?`.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) error: anyhow::Error,
    /// The hint to show, if there is one.
    pub(crate) hint: Option<String>,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self {
            exit: Exit::Failed,
            hint: if error.is::<IsSymlink>() {
                Some(IsSymlink::HINT.to_owned())
            } else {
                remedy(&format!("{error:#}")).map(str::to_owned)
            },
            error,
        }
    }
}

/// Adds an exit status or a hint to an error.
pub(crate) trait OrFail<T> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
    fn or_hint(self, hint: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> OrFail<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            exit,
            ..error.into()
        })
    }

    fn or_hint(self, hint: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            hint: Some(hint.into()),
            ..error.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn the_table_knows_every_number() {
        let own = [
            Exit::Busy(BUSY),
            Exit::Lost,
            Exit::Unkillable,
            Exit::TimedOut,
            Exit::Failed,
            Exit::NotExecutable,
            Exit::NotFound,
        ];
        let numbers: Vec<String> = own.iter().map(|exit| exit.code().to_string()).collect();
        let table: Vec<&str> = TABLE[1..].iter().map(|(code, _)| *code).collect();
        assert_eq!(numbers, table);
    }

    #[test]
    fn a_signal_is_128_and_its_number() {
        assert_eq!(Exit::Signalled(15).code(), 143);
        assert_eq!(Exit::Signalled(64).code(), 192);
        assert_eq!(Exit::Command(255).code(), 255);
        assert_eq!(Exit::Done.code(), 0);
    }

    #[test]
    fn a_bare_error_is_125_and_keeps_its_hint() {
        let failure = Err::<(), _>(anyhow!("x"))
            .or_hint("y")
            .or_exit(Exit::NotFound);
        let failure = failure.unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound);
        assert_eq!(failure.hint.as_deref(), Some("y"));
        assert_eq!(Failure::from(anyhow!("x")).exit, Exit::Failed);
    }
}

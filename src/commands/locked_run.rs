//! A run and its locks, as the command line describes them.
//! It must not know how locks are acquired, nor how a command is started.

use std::ffi::OsStr;

use crate::cli::lock;
use crate::core::name::LockName;
use crate::core::request::Leftovers;
use crate::sys::daemonize::Background;

/// A run and its locks.
pub(super) struct LockedRun<'a> {
    /// The lock whose token the command gets.
    pub(super) name: &'a LockName,
    /// All locks, that one among them, in the order in which they are taken.
    pub(super) names: &'a [LockName],
    pub(super) lock: &'a lock::Options,
    /// The program name that others see.
    pub(super) program: &'a OsStr,
    /// Whether the command is dlock itself, which only waits and answers no watchdog.
    pub(super) is_hold: bool,
    pub(super) leftovers: Leftovers,
    /// Variables of the command, beside those of the lock.
    pub(super) variables: Vec<(String, String)>,
    /// Whether nobody wants the lock any more; polled during the wait.
    pub(super) unwanted: Option<&'a dyn Fn() -> bool>,
    /// The link to the parent that waits in the foreground.
    pub(super) background: Option<&'a Background>,
}

impl LockedRun<'_> {
    /// The names, for people.
    pub(super) fn shown(&self) -> String {
        let names: Vec<String> = self.names.iter().map(|name| format!("'{name}'")).collect();
        names.join(", ")
    }

    /// The cause of the loss of `name`, for the report, which has the name of a lock that is the only one.
    pub(super) fn reason(&self, name: &LockName, cause: &str) -> String {
        match self.names {
            [_] => cause.to_owned(),
            _ => format!("lock '{name}': {cause}"),
        }
    }
}

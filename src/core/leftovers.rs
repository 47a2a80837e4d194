//! What is done with processes that a command leaves behind when it ends.
//! It must not know how it is done.

/// The choices of `--leftovers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// Stop them, then kill them, before the lock is released.
    Kill,
    /// Hold the lock until the last of them has ended, as flock(1) does.
    Wait,
    /// Release the lock and let them run.
    Leave,
}

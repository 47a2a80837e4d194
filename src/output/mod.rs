//! All output of the process for people and programs: log lines, events, the live line, metrics, systemd, the exit
//! status.
//! It must not decide anything.

pub mod events;
pub mod exit;
pub(crate) mod live_line;
pub(crate) mod log;
pub mod metrics;
pub(crate) mod stdout;
pub(crate) mod systemd;

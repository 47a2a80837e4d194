//! The layer around the operating system: clock, signals, descriptors, processes by pidfd, files that survive a crash.
//! It must not know locks, etcd or exit statuses.

pub(crate) mod access;
pub(crate) mod atomic_file;
pub(crate) mod clock;
pub(crate) mod core_dump;
pub(crate) mod daemonize;
pub(crate) mod descriptors;
pub(crate) mod environment;
pub(crate) mod groups;
pub(crate) mod inherited;
pub(crate) mod outcome;
pub(crate) mod pidfd;
pub(crate) mod proc;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod scheduling;
pub(crate) mod signals;
pub(crate) mod stream;
pub(crate) mod syslog;
pub(crate) mod trust;

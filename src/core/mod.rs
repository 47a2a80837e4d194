//! The decisions, as pure code: time is an argument and orders are return values.
//! Nothing in here knows a clock, input or output, tokio, etcd or a process id.

pub mod abandoned;
pub mod blockers;
pub mod cluster_id;
pub mod deadlock;
pub mod doctor;
pub mod fence;
pub mod forwarding;
pub mod heartbeat;
pub mod history;
pub mod hold;
pub mod holder;
pub mod job;
pub mod keys;
pub mod listing;
pub mod local;
pub mod lock_delay;
pub mod name;
pub mod once;
pub mod preparation;
pub mod proof;
#[cfg(test)]
mod properties;
pub mod proven_lock;
pub mod release;
pub(crate) mod remedy;
pub mod request;
pub mod run_stats;
pub(crate) mod secrets;
pub mod text;
pub mod time;
pub mod turn;
pub mod wait_status;
pub mod watchdog;

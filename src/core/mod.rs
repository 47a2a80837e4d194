//! The decisions, pure: time comes in as an argument and orders go out as values.
//! Nothing in here knows a clock, input or output, tokio, etcd or a process id.

pub mod abandoned;
pub mod cluster_id;
pub mod doctor;
pub mod evidence;
pub mod fence;
pub mod forwarding;
pub mod heartbeat;
pub mod hold;
pub mod holder;
pub mod job;
#[cfg(test)]
mod laws;
pub mod lease;
pub mod ledger;
pub mod leftovers;
pub mod local;
pub mod mode;
pub mod name;
pub mod preparation;
pub mod queue;
pub mod release;
pub mod scene;
pub mod survey;
pub mod text;
pub mod turn;
pub mod watchdog;

//! The locks of one machine: entries of a queue are files, and the kernel's flock(2) holds each for as long as its owner
//! or its owner's guard lives. It must not know etcd, nor the command that runs under a lock.
//!
//! `state_dir`: the directory of all locks; `trusted`: who could change it; `lock_dir`: one lock's entries and tokens;
//! `entry`: our entry and its wait; `backend`: the wait in a thread, and the held lock; `listing`: locks as others see
//! them; `deadlock`: rings of nested locks; `history`: past holds; `doctor`: what `dlock doctor` tries; `token_file`: the file of a
//! fence.
//!
//! An entry is a file `TOKEN` with an exclusive flock, created under the lock of the file that counts the tokens: a
//! process with a token finds every entry with a lower one. An entry counts for as long as its flock is held, which the
//! kernel knows and no record; after that, no entry with that token ever counts again. So no process must clean up after
//! another, a waiter sleeps in a shared flock on the entry before it, and the order of the queue follows as in etcd
//! (`core/blockers.rs`).

mod backend;
mod deadlock;
mod dir_util;
pub(crate) mod doctor;
mod entry;
mod history;
mod listing;
mod lock_dir;
mod state_dir;
pub(crate) mod token_file;
mod trusted;

pub(crate) use backend::LocalBackend;
pub(crate) use listing::LocalReader;

//! The locks of one machine: places in a queue that are files, each held by the kernel's flock(2) for as long as its owner
//! or its owner's guard lives. It must not know etcd, nor the command that runs under a lock.
//!
//! *Where is all that?* folder · *who is there, in the queue of one lock?* lane · *whose turn is it?* place · *who waits
//! without standing still?* contend · *what do others see?* survey
//!
//! A place is a file `TOKEN` with an exclusive flock on it, made under the lock of the file that counts the tokens: whoever
//! has a token finds every place with a lower one. A place counts for as long as its flock is held, which the kernel knows
//! and no record; once it is not, no place of that token ever counts again. So nobody has to clean up after anybody, the
//! one who waits sleeps in a shared flock on the place before it, and whose turn it is follows as in etcd (`core/turn.rs`).

mod backend;
mod dir_util;
mod entry;
mod listing;
mod lock_dir;
mod state_dir;
pub(crate) mod token_file;

pub(crate) use backend::LocalBackend;
pub(crate) use listing::{Which, holds, read};

//! What is told of the queue: to those who wait, and to those who do not.
//! It must not know when there is something to tell.

use std::io::{self, IsTerminal as _};

use tracing::{info, warn};

use crate::core::holder::Holder;
use crate::core::name::LockName;
use crate::core::text::span;
use crate::etcd::Ahead;
use crate::etcd::contend::Waiting;
use crate::notify;

/// Tells what is waited for: always to somebody who sits there and wonders.
pub(super) fn say(line: &str) {
    notify::status(line);
    if io::stderr().is_terminal() {
        warn!("{line}");
    } else {
        info!("{line}");
    }
}

/// Tells how waiting for a lock goes on.
pub(super) fn narrate(name: &LockName, waiting: &Waiting) {
    match waiting {
        Waiting::Behind(ahead) => {
            let verb = if cooling(ahead) {
                "cooling down, last held by"
            } else {
                "held by"
            };
            say(&format!(
                "waiting for '{name}', {verb} {}; place {} in the queue",
                who(ahead),
                ahead.count
            ));
        }
        Waiting::HandOver(delay) => say(&format!(
            "the holder of '{name}' vanished without releasing it: waiting {} for its command to end",
            span(*delay)
        )),
        Waiting::PlaceLost => {
            warn!("our own lease ended while waiting: queueing again for '{name}'");
        }
        Waiting::Trouble(trouble) => {
            say(&format!("waiting for '{name}' goes on, though {trouble}"));
        }
    }
}

fn cooling(ahead: &Ahead) -> bool {
    ahead.holder.as_ref().is_some_and(|holder| holder.cooling)
}

/// Whoever holds the lock, for people.
pub(super) fn who(ahead: &Ahead) -> String {
    ahead
        .holder
        .as_ref()
        .map_or_else(|| "another client".to_owned(), Holder::sentence)
}

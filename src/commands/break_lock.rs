//! `dlock break`: ask a holder or waiter to give up a lock, or remove its entry.
//! It must not know how entries are read or changed.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::anyhow;
use tracing::warn;

use super::{block_on, failed};
use crate::cli::look::Break;
use crate::config::Settings;
use crate::core::blockers::QueueEntry;
use crate::core::holder::{StopKind, StopRequest};
use crate::core::keys::LockKeys;
use crate::core::listing::{ListedEntry, ListedLock};
use crate::core::proof::FencingToken;
use crate::core::request::Mode;
use crate::core::text::format_duration;
use crate::etcd::{Cluster, eviction};
use crate::host::identity;
use crate::lock::error::LockError;
use crate::output::events;
use crate::output::exit::{BUSY, Exit, Failure, OrFail as _};
use crate::sys::clock;

/// Pause between two checks whether the entry still exists.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Evicts the owner of an entry.
pub(super) fn break_lock(settings: &Settings, order: &Break) -> Result<Exit, Failure> {
    block_on(async {
        let eviction = Eviction {
            order,
            cluster: Cluster::new(settings),
            queue: LockKeys::new(&settings.prefix, &order.name),
            limit: settings.connect_timeout,
        };
        eviction.run().await
    })
}

struct Eviction<'a> {
    order: &'a Break,
    cluster: Cluster,
    queue: LockKeys,
    limit: Duration,
}

impl Eviction<'_> {
    async fn run(&self) -> Result<Exit, Failure> {
        let Break {
            name, token, yes, ..
        } = self.order;
        let entry = self.find().await?;
        let what = if entry.holds { "holder" } else { "waiter" };
        let who = format!(
            "the {what} of '{name}': {}, {}, since {}, token {token}",
            entry.owner(),
            entry.note(),
            entry.since()
        );
        if *yes {
            warn!(
                event = events::BREAKING,
                lock = %name,
                token = token.0,
                "sending away {who}"
            );
        } else if !confirmed(&who)? {
            return Err(anyhow!("nothing was done: {who}").into());
        }
        if self.order.now {
            return self.remove(&entry).await;
        }
        self.request_stop(&entry.entry).await?;
        self.await_end().await
    }

    /// The entry with the token.
    async fn find(&self) -> Result<ListedEntry, Failure> {
        let Break { name, token, .. } = self.order;
        let lock = ListedLock::new(&name.encoded(), self.all_entries().await?);
        let holder = lock.holders().next().map(|holder| {
            let token = holder.entry.token;
            format!("its holder is {} with token {token}", holder.owner())
        });
        let unheld = match lock.waiting() {
            0 => "it is free",
            _ => "nobody holds it yet",
        };
        let entry = lock
            .entries
            .into_iter()
            .find(|entry| entry.entry.token == *token);
        entry
            .ok_or_else(|| {
                let holder = holder.unwrap_or_else(|| unheld.to_owned());
                anyhow!("nobody has token {token} at the lock '{name}' any more: {holder}")
            })
            .or_exit(Exit::Lost)
    }

    async fn all_entries(&self) -> Result<Vec<QueueEntry>, Failure> {
        let all = eviction::all_entries(&self.cluster, &self.queue, self.limit).await;
        all.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: LockError) -> Failure {
        failed(format_args!("cannot break '{}'", self.order.name), error)
    }

    /// Writes the request; repeats when the record has changed meanwhile, by a taken slot or another request.
    async fn request_stop(&self, first: &QueueEntry) -> Result<(), Failure> {
        let me = identity::holder(
            "dlock break".as_ref(),
            None,
            Mode::Exclusive,
            Duration::ZERO,
        );
        let request = StopRequest {
            to: StopKind::Stop,
            by: me.sentence(),
            why: self.order.reason.clone(),
        };
        let mut entry = first.clone();
        loop {
            if entry.record.is_none() {
                return Err(anyhow!(
                    "cannot ask the owner of token {} at '{}': it is not dlock",
                    entry.token,
                    self.order.name
                ))
                .or_hint("--now takes the lock away, and leaves its command running");
            }
            if entry.is_kept() {
                return Err(anyhow!(
                    "cannot ask the owner of token {} at '{}': it is gone, and its place is kept until the command of a holder that vanished has ended",
                    entry.token,
                    self.order.name
                ))
                .or_hint("--now frees the lock before that");
            }
            if entry.is_cooling() {
                return Err(anyhow!(
                    "cannot ask the owner of token {} at '{}': its command has ended, and the lock cools down",
                    entry.token,
                    self.order.name
                ))
                .or_hint("--now frees the lock at once");
            }
            let written = eviction::request_stop(&self.cluster, &entry, &request, self.limit).await;
            if written.map_err(|error| self.failed(error))? {
                return Ok(());
            }
            match self.still_there().await? {
                Some(now) => entry = now,
                None => return Ok(()),
            }
        }
    }

    async fn still_there(&self) -> Result<Option<QueueEntry>, Failure> {
        let FencingToken(token) = self.order.token;
        let all = self.all_entries().await?;
        Ok(all.into_iter().find(|one| one.token.0 == token))
    }

    async fn await_end(&self) -> Result<Exit, Failure> {
        let until_at = clock::now() + self.order.wait;
        while self.still_there().await?.is_some() {
            if clock::now() >= until_at {
                warn!(
                    event = events::BUSY,
                    lock = %self.order.name,
                    "the owner of token {} at '{}' was asked to go and is still there after {}",
                    self.order.token,
                    self.order.name,
                    format_duration(self.order.wait)
                );
                return Ok(Exit::Busy(BUSY));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(Exit::Done)
    }

    async fn remove(&self, entry: &ListedEntry) -> Result<Exit, Failure> {
        let (cluster, queue) = (&self.cluster, &self.queue);
        let removed = eviction::remove_entry(cluster, queue, &entry.entry, self.limit).await;
        removed.map_err(|error| self.failed(error))?;
        let name = &self.order.name;
        match entry.entry.grace().filter(|_| entry.holds) {
            Some(grace) if entry.entry.is_kept() => warn!(
                event = events::BROKEN,
                lock = %name,
                token = entry.entry.token.0,
                "the lock '{name}' was kept for the command of a holder that vanished: that may run on for {} until it has been stopped",
                format_duration(grace)
            ),
            Some(grace) => warn!(
                event = events::BROKEN,
                lock = %name,
                token = entry.entry.token.0,
                "the lock '{name}' was taken away: its command may run on for {} until it has been stopped",
                format_duration(grace)
            ),
            None if entry.holds && entry.entry.record.is_none() => warn!(
                event = events::BROKEN,
                lock = %name,
                token = entry.entry.token.0,
                "the lock '{name}' was taken away from a client that is not dlock: its command may run on to its end"
            ),
            None => {}
        }
        Ok(Exit::Done)
    }
}

/// Asks the user at the terminal.
fn confirmed(who: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(anyhow!("not sending away {who}")).or_hint("--yes says that it is meant");
    }
    let mut terminal = io::stderr();
    let _ = write!(terminal, "Send away {who}? [y/N] ");
    let _ = terminal.flush();
    let mut answer = String::new();
    // An answer that cannot be read is no yes.
    let _ = io::stdin().lock().read_line(&mut answer);
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

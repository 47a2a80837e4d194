//! `dlock break`: ask a holder or waiter to give up a lock, or remove its entry.
//! It must not know how entries are read or changed.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::anyhow;
use tracing::{debug, warn};

use super::{block_on, failed};
use crate::cli::inspect::Break;
use crate::config::Settings;
use crate::core::blockers::QueueEntry;
use crate::core::holder::{StopKind, StopRequest};
use crate::core::keys::LockKeys;
use crate::core::listing::{ListedEntry, ListedLock};
use crate::core::proof::FencingToken;
use crate::core::request::Mode;
use crate::core::text::{format_duration, shell_word};
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
            limit: settings.connect_timeout(),
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
        let Break { name, yes, now, .. } = self.order;
        let entry = self.find().await?;
        let token = entry.entry.token;
        let facts = [
            entry.owner(),
            entry.note(),
            format!("since {}", entry.since()),
            format!("token {token}"),
        ];
        let known = |fact: &String| !fact.is_empty() && fact != "since ";
        let facts: Vec<String> = facts.into_iter().filter(known).collect();
        let leave = if *now { "" } else { " to leave" };
        let who = format!(
            "the {} of '{name}'{leave}: {}",
            kind(&entry),
            facts.join(", ")
        );
        let verb = if *now { "take the lock from" } else { "ask" };
        if *yes {
            let doing = if *now {
                "taking the lock from"
            } else {
                "asking"
            };
            warn!(
                event = events::BREAKING,
                lock = %name,
                token = token.0,
                "{doing} {who}"
            );
        } else if !confirmed(verb, &who)? {
            return Err(anyhow!("cannot break '{name}': not confirmed").into());
        }
        if *now {
            return self.remove(&entry).await;
        }
        self.request_stop(&entry.entry).await?;
        self.await_end(token).await
    }

    /// The entry with the token.
    async fn find(&self) -> Result<ListedEntry, Failure> {
        let name = &self.order.name;
        let mut lock = ListedLock::new(&name.encoded(), self.all_entries().await?);
        let Some(token) = self.order.token else {
            return Err(self.without_token(&lock));
        };
        let wanted = |entry: &ListedEntry| entry.entry.token == token;
        if let Some(index) = lock.entries.iter().position(wanted) {
            return Ok(lock.entries.swap_remove(index));
        }
        let holder = lock.holders().next().map(|holder| {
            let other = holder.entry.token;
            format!("its holder is {}, token {other}", holder.owner())
        });
        let unheld = match lock.waiting() {
            0 => "the lock is free",
            _ => "no client holds it yet",
        };
        let holder = holder.unwrap_or_else(|| unheld.to_owned());
        Err(anyhow!(
            "token {token} is not in the queue of '{name}': {holder}"
        ))
        .or_exit(Exit::Lost)
    }

    /// Without a token: the error shows the holder, and its hint is the whole command.
    fn without_token(&self, lock: &ListedLock) -> Failure {
        let name = &self.order.name;
        let Some(first) = lock.entries.first() else {
            return anyhow!("cannot break '{name}': the lock is free").into();
        };
        let word = shell_word(&name.to_string());
        let token = first.entry.token;
        let command = if word.starts_with('-') {
            format!("dlock break --token {token} -- {word}")
        } else {
            format!("dlock break {word} --token {token}")
        };
        Failure {
            hint: Some(command),
            ..anyhow!(
                "cannot break '{name}' without --token: its {} is {}, {}",
                kind(first),
                first.owner(),
                first.note()
            )
            .into()
        }
    }

    async fn all_entries(&self) -> Result<Vec<QueueEntry>, Failure> {
        let all = eviction::all_entries(&self.cluster, &self.queue, self.limit).await;
        all.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: LockError) -> Failure {
        failed(format_args!("cannot break '{}'", self.order.name), error)
    }

    fn stop_request(&self) -> StopRequest {
        let me = identity::holder(
            "dlock break".as_ref(),
            None,
            Mode::Exclusive,
            Duration::ZERO,
        );
        StopRequest {
            to: StopKind::Stop,
            by: me.sentence(),
            why: self.order.reason.clone(),
            now: self.order.now,
        }
    }

    /// Writes the request; repeats when the record has changed meanwhile, by a taken slot or another request.
    async fn request_stop(&self, first: &QueueEntry) -> Result<(), Failure> {
        let request = self.stop_request();
        let mut entry = first.clone();
        loop {
            if entry.record.is_none() {
                return Err(anyhow!(
                    "cannot ask the owner of token {} in the queue of '{}': it is not dlock",
                    entry.token,
                    self.order.name
                ))
                .or_hint("--now takes the lock away; its command runs on");
            }
            if entry.is_kept() {
                return Err(anyhow!(
                    "cannot ask the owner of token {} in the queue of '{}': it has ended, and its entry stays until the command of a vanished holder has ended",
                    entry.token,
                    self.order.name
                ))
                .or_hint("--now frees the lock before that");
            }
            if entry.is_cooling() {
                return Err(anyhow!(
                    "cannot ask the owner of token {} in the queue of '{}': its command has ended, and --min-hold keeps the lock",
                    entry.token,
                    self.order.name
                ))
                .or_hint("--now frees the lock at once");
            }
            let written = eviction::request_stop(&self.cluster, &entry, &request, self.limit).await;
            if written.map_err(|error| self.failed(error))? {
                return Ok(());
            }
            match self.still_there(first.token).await? {
                Some(now) => entry = now,
                None => return Ok(()),
            }
        }
    }

    async fn still_there(&self, token: FencingToken) -> Result<Option<QueueEntry>, Failure> {
        let all = self.all_entries().await?;
        Ok(all.into_iter().find(|one| one.token == token))
    }

    async fn await_end(&self, token: FencingToken) -> Result<Exit, Failure> {
        let until_at = clock::now() + self.order.wait;
        while self.still_there(token).await?.is_some() {
            if clock::now() >= until_at {
                warn!(
                    event = events::BUSY,
                    lock = %self.order.name,
                    "token {token} is still in the queue of '{}' after {}, although its owner was asked to leave",
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
        if entry.holds && !entry.entry.is_cooling() {
            // The holder learns who takes the lock away, and so does dlock history. A record that has changed meanwhile, or
            // is not dlock's, makes no difference to the removal.
            let request = self.stop_request();
            let asked = eviction::request_stop(cluster, &entry.entry, &request, self.limit).await;
            if let Err(error) = asked {
                // An etcd without space refuses each put, but no removal.
                debug!("the holder cannot be told who takes the lock away: {error}");
            }
        }
        let removed = eviction::remove_entry(cluster, queue, &entry.entry, self.limit).await;
        removed.map_err(|error| self.failed(error))?;
        let name = &self.order.name;
        match entry.entry.grace().filter(|_| entry.holds) {
            Some(grace) if entry.entry.is_kept() => warn!(
                event = events::BROKEN,
                lock = %name,
                token = entry.entry.token.0,
                "took lock '{name}' away: the command of a vanished holder may run on for {} until it is stopped",
                format_duration(grace)
            ),
            Some(grace) => warn!(
                event = events::BROKEN,
                lock = %name,
                token = entry.entry.token.0,
                "took lock '{name}' away: its command may run on for {} until it is stopped",
                format_duration(grace)
            ),
            None if entry.holds && entry.entry.record.is_none() => warn!(
                event = events::BROKEN,
                lock = %name,
                token = entry.entry.token.0,
                "took lock '{name}' away from a client that is not dlock: its command may run on to its end"
            ),
            None => {}
        }
        Ok(Exit::Done)
    }
}

fn kind(entry: &ListedEntry) -> &'static str {
    if entry.holds { "holder" } else { "waiter" }
}

/// Asks the user at the terminal.
fn confirmed(verb: &str, who: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(anyhow!("cannot {verb} {who}: not confirmed"))
            .or_hint("without a terminal, --yes confirms it");
    }
    let mut terminal = io::stderr();
    let _ = write!(terminal, "{verb} {who}? [y/N] ");
    let _ = terminal.flush();
    let mut answer = String::new();
    // An answer that cannot be read is no yes.
    let _ = io::stdin().lock().read_line(&mut answer);
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

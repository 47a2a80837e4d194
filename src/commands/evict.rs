//! `dlock break`: send away somebody who has a lock or waits for it.
//! It must not know how places are read or changed.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::anyhow;
use tracing::warn;

use super::{block_on, failed};
use crate::cli::look::Break;
use crate::config::Settings;
use crate::core::holder::{Ask, AskTo};
use crate::core::lease::FencingToken;
use crate::core::mode::Mode;
use crate::core::queue::Queue;
use crate::core::survey::{Lock, Place};
use crate::core::text::span;
use crate::core::turn::Standing;
use crate::etcd::{Cluster, ask};
use crate::exit::{BUSY, Exit, Failure, OrFail as _};
use crate::trouble::Trouble;
use crate::{clock, events, whoami};

/// Between two looks at whether the other one has gone.
const LOOK: Duration = Duration::from_millis(200);

/// Sends the owner of a place away.
pub(super) fn evict(settings: &Settings, order: &Break) -> Result<Exit, Failure> {
    block_on(async {
        let eviction = Eviction {
            order,
            cluster: Cluster::new(settings),
            queue: Queue::new(&settings.prefix, &order.name),
            limit: settings.connect_timeout,
        };
        eviction.run().await
    })
}

struct Eviction<'a> {
    order: &'a Break,
    cluster: Cluster,
    queue: Queue,
    limit: Duration,
}

impl Eviction<'_> {
    async fn run(&self) -> Result<Exit, Failure> {
        let Break {
            name, token, yes, ..
        } = self.order;
        let place = self.find().await?;
        let what = if place.holds { "holder" } else { "waiter" };
        let who = format!(
            "the {what} of '{name}': {}, {}, since {}, token {token}",
            place.who(),
            place.what(),
            place.since()
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
            return self.take_away(&place).await;
        }
        self.ask(&place.standing).await?;
        self.see_it_go().await
    }

    /// The place, as long as its token is there.
    async fn find(&self) -> Result<Place, Failure> {
        let Break { name, token, .. } = self.order;
        let lock = Lock::new(&name.encoded(), self.everybody().await?);
        let holder = lock.holders().next().map(|holder| {
            let token = holder.standing.token;
            format!("its holder is {} with token {token}", holder.who())
        });
        let place = lock
            .places
            .into_iter()
            .find(|place| place.standing.token == *token);
        place
            .ok_or_else(|| {
                let holder = holder.unwrap_or_else(|| "it is free".to_owned());
                anyhow!("nobody has token {token} at the lock '{name}' any more: {holder}")
            })
            .or_exit(Exit::Lost)
    }

    async fn everybody(&self) -> Result<Vec<Standing>, Failure> {
        let all = ask::everybody(&self.cluster, &self.queue, self.limit).await;
        all.map_err(|trouble| self.failed(trouble))
    }

    fn failed(&self, trouble: Trouble) -> Failure {
        failed(format_args!("cannot break '{}'", self.order.name), trouble)
    }

    /// Asks for as long as the record changes under our hands, which a slot's taking or another's asking does.
    async fn ask(&self, first: &Standing) -> Result<(), Failure> {
        let me = whoami::holder(
            "dlock break".as_ref(),
            None,
            Mode::Exclusive,
            Duration::ZERO,
        );
        let words = Ask {
            to: AskTo::Stop,
            by: me.sentence(),
            why: self.order.reason.clone(),
        };
        let mut standing = first.clone();
        loop {
            if standing.record.is_none() {
                return Err(anyhow!(
                    "cannot ask the owner of token {} at '{}': it is not dlock",
                    standing.token,
                    self.order.name
                ))
                .or_hint("--now takes the lock away, and leaves its command running");
            }
            if standing.is_kept() {
                return Err(anyhow!(
                    "cannot ask the owner of token {} at '{}': it is gone, and its place is kept until the command of a holder that vanished has ended",
                    standing.token,
                    self.order.name
                ))
                .or_hint("--now frees the lock before that");
            }
            if standing.cools_down() {
                return Err(anyhow!(
                    "cannot ask the owner of token {} at '{}': its command has ended, and the lock cools down",
                    standing.token,
                    self.order.name
                ))
                .or_hint("--now frees the lock at once");
            }
            let asked = ask::ask(&self.cluster, &standing, &words, self.limit).await;
            if asked.map_err(|trouble| self.failed(trouble))? {
                return Ok(());
            }
            match self.still_there().await? {
                Some(now) => standing = now,
                None => return Ok(()),
            }
        }
    }

    async fn still_there(&self) -> Result<Option<Standing>, Failure> {
        let FencingToken(token) = self.order.token;
        let all = self.everybody().await?;
        Ok(all.into_iter().find(|one| one.token.0 == token))
    }

    async fn see_it_go(&self) -> Result<Exit, Failure> {
        let until_at = clock::now() + self.order.wait;
        while self.still_there().await?.is_some() {
            if clock::now() >= until_at {
                warn!(
                    event = events::BUSY,
                    lock = %self.order.name,
                    "the owner of token {} at '{}' was asked to go and is still there after {}",
                    self.order.token,
                    self.order.name,
                    span(self.order.wait)
                );
                return Ok(Exit::Busy(BUSY));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(Exit::Done)
    }

    async fn take_away(&self, place: &Place) -> Result<Exit, Failure> {
        let evicted = ask::evict(&self.cluster, &place.standing, self.limit).await;
        evicted.map_err(|trouble| self.failed(trouble))?;
        let name = &self.order.name;
        match place.standing.grace().filter(|_| place.holds) {
            Some(grace) if place.standing.is_kept() => warn!(
                event = events::BROKEN,
                lock = %name,
                token = place.standing.token.0,
                "the lock '{name}' was kept for the command of a holder that vanished: that may run on for {} until it has been stopped",
                span(grace)
            ),
            Some(grace) => warn!(
                event = events::BROKEN,
                lock = %name,
                token = place.standing.token.0,
                "the lock '{name}' was taken away: its command may run on for {} until it has been stopped",
                span(grace)
            ),
            None if place.holds && place.standing.record.is_none() => warn!(
                event = events::BROKEN,
                lock = %name,
                token = place.standing.token.0,
                "the lock '{name}' was taken away from a client that is not dlock: its command may run on to its end"
            ),
            None => {}
        }
        Ok(Exit::Done)
    }
}

/// Asks who sits at the terminal.
fn confirmed(who: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(anyhow!("not sending away {who}")).or_hint("--yes says that it is meant");
    }
    let mut terminal = io::stderr();
    let _ = write!(terminal, "Send away {who}? [y/N] ");
    let _ = terminal.flush();
    let mut answer = String::new();
    // Whoever cannot be heard has not said yes.
    let _ = io::stdin().lock().read_line(&mut answer);
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

//! `dlock ls` and `dlock status`: who has which lock, and who waits.
//! It must not know how queues are read, nor how they are understood.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use tracing::warn;

use super::view::{Snapshot, View};
use super::{block_on, failed};
use crate::cli::look::{Form, ListRequest};
use crate::config::site::BackendConfig;
use crate::core::listing::{ListedEntry, ListedLock, table};
use crate::lock::error::LockError;
use crate::output::events;
use crate::output::exit::{Exit, Failure};

/// Before etcd is asked again that did not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Shows what is asked for.
pub(super) fn execute(site: &BackendConfig, look: &ListRequest) -> Result<Exit, Failure> {
    block_on(async {
        let viewer = Viewer {
            look,
            view: View::new(site, look),
        };
        viewer.run().await
    })
}

struct Viewer<'a> {
    look: &'a ListRequest,
    view: View<'a>,
}

impl Viewer<'_> {
    async fn run(&self) -> Result<Exit, Failure> {
        let tried = match self.look {
            ListRequest::List(..) => "cannot list the locks".to_owned(),
            ListRequest::Status(name, _) | ListRequest::Held(name) => {
                format!("cannot see the lock '{name}'")
            }
        };
        let (ListRequest::List(_, form) | ListRequest::Status(_, form)) = self.look else {
            let held = self.held().await;
            let held = held.map_err(|error| failed(tried, error))?;
            return Ok(if held { Exit::Done } else { Exit::Free });
        };
        let mut shown = self.show(*form).await;
        loop {
            match shown {
                Err(Shown::Trouble(error)) if !form.watch => return Err(failed(tried, error)),
                Err(Shown::Trouble(error)) => {
                    warn!(event = events::UNSEEN, cause = %error, "{tried}: {error}");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(Shown::Closed(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    // Whoever closed the pipe has seen enough.
                    return Ok(Exit::Done);
                }
                Err(Shown::Closed(error)) => {
                    return Ok(Err(error).context("cannot write to the standard output")?);
                }
                Ok(_) if !form.watch => return Ok(Exit::Done),
                Ok(snapshot) => {
                    if let Err(error) = self.view.change(snapshot).await {
                        tracing::debug!("the watch broke: {error}");
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                }
            }
            shown = self.show(*form).await;
        }
    }

    async fn held(&self) -> Result<bool, LockError> {
        let mut held = false;
        self.view.read(|_| held = true).await?;
        Ok(held)
    }

    /// Reads and prints; JSON at once, a table when all of it is known.
    async fn show(&self, form: Form) -> Result<Snapshot, Shown> {
        let mut out = io::BufWriter::new(io::stdout());
        let mut written = Ok(());
        // Of a list only what is shown is kept, of a lock all of it.
        let (mut rows, mut only) = (heads(), None);
        let take = |lock: ListedLock| {
            if !matches!(self.look, ListRequest::List(..)) {
                only = Some(lock);
            } else if !form.json {
                rows.extend(lines(&lock));
            } else if written.is_ok() {
                written = writeln!(out, "{}", lock.summary());
            }
        };
        let snapshot = self.view.read(take).await.map_err(Shown::Trouble)?;
        let text = match self.look {
            ListRequest::List(..) if form.json => String::new(),
            ListRequest::List(..) => table(&rows),
            ListRequest::Status(name, _) | ListRequest::Held(name) => {
                let free = || ListedLock::new(&name.encoded(), Vec::new());
                let lock = only.unwrap_or_else(free);
                if form.json {
                    lock.detail() + "\n"
                } else {
                    status(&lock)
                }
            }
        };
        // A live picture stands still on a terminal; elsewhere each one follows the last.
        let clear = form.watch && !form.json && io::stdout().is_terminal();
        let before = if clear { "\u{1b}[H\u{1b}[2J" } else { "" };
        written
            .and_then(|()| write!(out, "{before}{text}"))
            .and_then(|()| out.flush())
            .map_err(Shown::Closed)?;
        Ok(snapshot)
    }
}

/// Why something could not be shown.
enum Shown {
    Trouble(LockError),
    /// The standard output takes nothing.
    Closed(io::Error),
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn heads() -> Vec<Vec<String>> {
    vec![row(&[
        "NAME", "WAITING", "HOLDER", "TOKEN", "MODE", "SINCE", "TTL LEFT", "COMMAND",
    ])]
}

/// One line for each holder; the first has the lock's name and how many wait.
fn lines(lock: &ListedLock) -> Vec<Vec<String>> {
    let mut first = [lock.shown_name(), lock.waiting().to_string()];
    let mut holders: Vec<Vec<String>> = lock.holders().map(cells).collect();
    if holders.is_empty() {
        // Between the entry of the first and the taking of its slot.
        holders.push(row(&["-"]));
    }
    let line = |holder| {
        let line = [first.to_vec(), holder].concat();
        first = [String::new(), String::new()];
        line
    };
    holders.into_iter().map(line).collect()
}

/// The whole queue in order.
fn status(lock: &ListedLock) -> String {
    if lock.entries.is_empty() {
        return format!("{}: free\n", lock.shown_name());
    }
    let mut rows = vec![row(&[
        "PLACE", "WHO", "TOKEN", "MODE", "SINCE", "TTL LEFT", "COMMAND",
    ])];
    let mut entry = 0;
    for one in &lock.entries {
        let which = if one.holds {
            "holder".to_owned()
        } else {
            entry += 1;
            entry.to_string()
        };
        rows.push([vec![which], cells(one)].concat());
    }
    format!(
        "{}: {} holding, {} waiting\n{}",
        lock.shown_name(),
        lock.holders().count(),
        lock.waiting(),
        table(&rows)
    )
}

fn cells(entry: &ListedEntry) -> Vec<String> {
    let left = if entry.holds {
        entry.left()
    } else {
        String::new()
    };
    vec![
        entry.owner(),
        entry.entry.token.to_string(),
        entry.state(),
        entry.since(),
        left,
        entry.note(),
    ]
}

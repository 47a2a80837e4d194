//! `dlock ls` and `dlock status`: the holders and waiters of locks.
//! It must not know how queues are read or interpreted.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use anyhow::Context as _;
use tracing::warn;

use super::select_backend::reader;
use super::{block_on, failed};
use crate::cli::inspect::{ListFormat, ListRequest};
use crate::config::backend::BackendConfig;
use crate::core::blockers::OrphanSlot;
use crate::core::listing::{ListedEntry, ListedLock, NestedWaits};
use crate::core::text::{fit, table};
use crate::lock::error::LockError;
use crate::lock::reader::{LockReader, Selection, Snapshot};
use crate::output::exit::{Exit, Failure};
use crate::output::{events, stdout};
use crate::sys::clock;

/// Pause before the next request after an error.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Prints the requested locks.
pub(super) fn execute(backend: &BackendConfig, request: &ListRequest) -> Result<Exit, Failure> {
    let viewer = Viewer {
        which: &request.which,
        reader: reader(backend),
    };
    let tried = match &request.which {
        Selection::BeginningWith(_) => "cannot list the locks".to_owned(),
        Selection::One(name) => format!("cannot see the lock '{name}'"),
    };
    block_on(async {
        match request.format {
            Some(format) => viewer.run(format, &tried).await,
            None => match viewer.is_held().await {
                Ok(held) => Ok(if held { Exit::Done } else { Exit::Free }),
                Err(error) => Err(failed(tried, error)),
            },
        }
    })
}

struct Viewer<'a> {
    which: &'a Selection,
    reader: Box<dyn LockReader + 'a>,
}

impl Viewer<'_> {
    async fn run(&self, format: ListFormat, tried: &str) -> Result<Exit, Failure> {
        loop {
            let broken = match self.show(format).await {
                Ok((text, snapshot)) => {
                    let read =
                        stdout::print(&text).context("cannot write to the standard output")?;
                    if !read || !format.watch {
                        return Ok(Exit::Done);
                    }
                    let changed = self.reader.change(self.which, snapshot).await;
                    changed.inspect_err(|error| tracing::debug!("the watch broke: {error}"))
                }
                Err(error) if !format.watch => return Err(failed(tried, error)),
                Err(error) => {
                    warn!(event = events::WATCH_FAILED, cause = %error, "{tried}: {error}");
                    Err(error)
                }
            };
            if broken.is_err() {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    async fn is_held(&self) -> Result<bool, LockError> {
        let mut held = false;
        self.reader.read(self.which, &mut |_| held = true).await?;
        Ok(held)
    }

    /// Reads the locks; the text has a line of JSON for each, or a table.
    async fn show(&self, format: ListFormat) -> Result<(String, Snapshot), LockError> {
        let (mut locks, mut waits) = (Vec::new(), NestedWaits::default());
        let (now, columns) = (clock::since_1970(), stdout::columns());
        let mut take = |mut lock: ListedLock| {
            if let Selection::BeginningWith(_) = self.which {
                waits.add(&lock);
                lock.drop_waiters();
            }
            locks.push(lock);
        };
        let snapshot = self.reader.read(self.which, &mut take).await?;
        for lock in &mut locks {
            waits.show_in(lock);
        }
        let text = match self.which {
            Selection::BeginningWith(_) if format.json => {
                let lines = locks.iter().map(|lock| lock.summary() + "\n");
                lines.collect()
            }
            Selection::BeginningWith(_) => {
                let rows = locks.iter().flat_map(|lock| holder_rows(lock, now));
                fitted(heads().into_iter().chain(rows).collect(), &[0, 1], columns)
            }
            Selection::One(name) => {
                let free = || ListedLock::new(&name.encoded(), Vec::new());
                let lock = locks.pop().unwrap_or_else(free);
                let orphan = self.reader.orphan_slot(name).await?;
                if format.json {
                    lock.detail(orphan.as_ref()) + "\n"
                } else {
                    status(&lock, orphan.as_ref(), now, columns)
                }
            }
        };
        // On a terminal each snapshot replaces the last one; elsewhere it follows.
        let clear = format.watch && !format.json && io::stdout().is_terminal();
        let before = if clear { "\u{1b}[H\u{1b}[2J" } else { "" };
        Ok((format!("{before}{text}"), snapshot))
    }
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn heads() -> Vec<Vec<String>> {
    vec![row(&[
        "NAME", "HOLDER", "WAITING", "TOKEN", "MODE", "AGE", "TTL LEFT", "COMMAND",
    ])]
}

/// A table in the width of the terminal, if there is one: `elastic` columns may be shortened.
fn fitted(mut rows: Vec<Vec<String>>, elastic: &[usize], columns: Option<usize>) -> String {
    if let Some(columns) = columns {
        fit(&mut rows, elastic, columns);
    }
    table(&rows)
}

/// One line per holder; the first also has the lock's name and the number of waiters.
fn holder_rows(lock: &ListedLock, since_1970: Duration) -> Vec<Vec<String>> {
    let (mut name, mut waiting) = (lock.shown_name(), lock.waiting().to_string());
    let mut holders: Vec<Vec<String>> = lock
        .holders()
        .map(|it| [vec![it.owner_account()], cells(it, since_1970)].concat())
        .collect();
    if holders.is_empty() {
        // The first waiter has no slot yet.
        holders.push(row(&["-"]));
    }
    let line = |mut holder: Vec<String>| {
        holder.insert(1, std::mem::take(&mut waiting));
        holder.insert(0, std::mem::take(&mut name));
        holder
    };
    holders.into_iter().map(line).collect()
}

/// The whole queue in order.
fn status(
    lock: &ListedLock,
    orphan: Option<&OrphanSlot>,
    since_1970: Duration,
    columns: Option<usize>,
) -> String {
    let orphan = orphan.map_or_else(String::new, |orphan| {
        format!("{}\nhint: {}\n", orphan.describe(), orphan.remedy())
    });
    if lock.entries.is_empty() {
        let free = if orphan.is_empty() {
            "free"
        } else {
            "0 holding, 0 waiting"
        };
        return format!("{}: {free}\n{orphan}", lock.shown_name());
    }
    let mut rows = vec![row(&[
        "POSITION", "CLIENT", "TOKEN", "MODE", "AGE", "TTL LEFT", "COMMAND",
    ])];
    let mut entry = 0;
    for one in &lock.entries {
        let which = if one.holds {
            "holder".to_owned()
        } else {
            entry += 1;
            entry.to_string()
        };
        rows.push([vec![which, one.owner()], cells(one, since_1970)].concat());
    }
    let permanent = lock.entries.iter().filter_map(|one| one.entry.permanent());
    let notes = permanent.map(|key| {
        let (what, hint) = (key.describe(), key.remedy(&lock.name));
        format!("token {}: {what}\nhint: {hint}\n", key.token)
    });
    format!(
        "{}: {} holding, {} waiting\n{}{}{orphan}",
        lock.shown_name(),
        lock.holders().count(),
        lock.waiting(),
        fitted(rows, &[1], columns),
        notes.collect::<String>()
    )
}

fn cells(entry: &ListedEntry, since_1970: Duration) -> Vec<String> {
    let left = if entry.holds {
        entry.left()
    } else {
        String::new()
    };
    vec![
        entry.entry.token.to_string(),
        entry.state(),
        entry.age(since_1970),
        left,
        entry.note(),
    ]
}

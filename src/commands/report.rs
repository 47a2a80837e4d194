//! The books of one use of a lock: opened before it is asked for, closed into `--report` and `--metrics`.
//! It must not know how the lock is taken, nor what the metrics are.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rustix::io::Errno;
use tracing::warn;

use crate::cli::lock;
use crate::core::name::LockName;
use crate::core::run_stats::{Outcome, RunEnd, RunReport, RunStats};
use crate::output::events;
use crate::output::exit::{Exit, Failure, OrFail as _};
use crate::output::metrics::Metrics;
use crate::sys::atomic_file::{AtomicFile, try_lock};
use crate::sys::clock;

/// For others who write the same metrics; each takes a moment.
const METRICS_LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Far more than the locks of one machine can fill; keeps a wrong path from filling the memory.
const MAX_METRICS_BYTES: u64 = 16 * 1024 * 1024;

/// Where the books are to be shown. No descriptor is kept: the guard's launch closes all.
pub(super) struct ReportFiles<'a> {
    name: &'a LockName,
    report: Option<PathBuf>,
    metrics: Option<PathBuf>,
}

impl<'a> ReportFiles<'a> {
    /// Fails if what is asked for cannot be written: better now than after the work.
    pub(super) fn open(name: &'a LockName, options: &lock::Options) -> Result<Self, Failure> {
        let find = |path: &Option<PathBuf>, option: &str| {
            let path = path.as_deref().map(std::path::absolute).transpose();
            path.with_context(|| format!("cannot find out where --{option} is"))
        };
        let books = Self {
            name,
            report: find(&options.report, "report")?,
            metrics: find(&options.metrics, "metrics")?,
        };
        if let Some(path) = &books.report {
            AtomicFile::open(path)?.check_writable()?;
        }
        if let Some(path) = &books.metrics {
            let file = AtomicFile::open(path)?;
            file.check_writable()?;
            let _lock = file.lock(lock_within)?;
            read(&file)?;
        }
        Ok(books)
    }

    /// Does the work and shows what became of it. What cannot be written is a warning by then: the status is the work's.
    pub(super) fn record(
        &self,
        work: impl FnOnce(&mut RunStats) -> Result<Exit, Failure>,
    ) -> Result<Exit, Failure> {
        let began = clock::wall_clock();
        let mut stats = RunStats::new(clock::now());
        let ended = work(&mut stats);
        if self.report.is_none() && self.metrics.is_none() {
            return ended;
        }
        let ending = run_end(&stats, &ended, began);
        let account = stats.finish(self.name, clock::now(), ending);
        if let Some(path) = &self.report {
            warn_not_written(path, write_report(path, &account));
        }
        if let Some(path) = &self.metrics {
            warn_not_written(path, add_metrics(path, &account));
        }
        ended
    }
}

fn run_end(stats: &RunStats, ended: &Result<Exit, Failure>, began: String) -> RunEnd {
    let exit = match ended {
        Ok(exit) => *exit,
        Err(failure) => failure.exit,
    };
    let outcome = match exit {
        Exit::Done | Exit::Free | Exit::Warned | Exit::Command(_) | Exit::Signalled(_) => {
            if stats.was_held() {
                Outcome::Completed
            } else {
                Outcome::Interrupted
            }
        }
        Exit::Busy(_) => Outcome::Busy,
        Exit::Lost if stats.was_stop_requested() => Outcome::Asked,
        Exit::Lost => Outcome::Lost,
        Exit::Unkillable => Outcome::Unkillable,
        Exit::TimedOut => Outcome::MaxHold,
        Exit::Failed => Outcome::Failed,
        Exit::NotExecutable | Exit::NotFound => Outcome::NotStarted,
    };
    let signal = match exit {
        Exit::Signalled(signal) => Some(signal),
        _ => None,
    };
    let reason = match ended {
        Err(failure) => Some(format!("{:#}", failure.error)),
        Ok(_) if outcome == Outcome::Interrupted => {
            signal.map(|signal| format!("ended by signal {signal} while waiting"))
        }
        Ok(_) => None,
    };
    RunEnd {
        outcome,
        exit_code: exit.code(),
        signal,
        reason,
        began,
        ended: clock::wall_clock(),
    }
}

fn write_report(path: &Path, account: &RunReport) -> Result<(), Failure> {
    let file = AtomicFile::open(path)?;
    Ok(file.replace_unlocked(account.to_json().as_bytes())?)
}

fn add_metrics(path: &Path, account: &RunReport) -> Result<(), Failure> {
    let file = AtomicFile::open(path)?;
    let _lock = file.lock(lock_within)?;
    let mut metrics = read(&file)?;
    metrics.add(account, clock::since_1970().as_secs_f64());
    Ok(file.replace_locked(metrics.to_text().as_bytes())?)
}

fn read(file: &AtomicFile) -> Result<Metrics, Failure> {
    let bytes = file.read(MAX_METRICS_BYTES)?.unwrap_or_default();
    let text = String::from_utf8(bytes)
        .ok()
        .filter(|text| text.len() as u64 <= MAX_METRICS_BYTES);
    let metrics = text
        .ok_or_else(|| "it is too long, or no text".to_owned())
        .and_then(|text| Metrics::parse(&text));
    metrics
        .map_err(|why| anyhow!("cannot use '{}' for metrics: {why}", file.path().display()))
        .or_hint("dlock makes the file itself, and counts on from what it holds: name one that is not there yet")
}

/// Until the lock that another dlock has is ours.
fn lock_within(lock: &OwnedFd) -> Result<(), Errno> {
    let give_up_at = clock::now() + METRICS_LOCK_TIMEOUT;
    loop {
        match try_lock(lock) {
            Err(Errno::WOULDBLOCK) if clock::now() < give_up_at => {
                std::thread::sleep(LOCK_POLL_INTERVAL);
            }
            locked => return locked,
        }
    }
}

fn warn_not_written(path: &Path, written: Result<(), Failure>) {
    if let Err(failure) = written {
        let cause = format!("{:#}", failure.error);
        warn!(
            event = events::REPORT_FAILED,
            file = %path.display(),
            cause,
            "cannot write '{}': {cause}",
            path.display()
        );
    }
}

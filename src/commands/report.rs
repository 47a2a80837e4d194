//! The files of `--report` and `--metrics`: checked before the run, written after it.
//! It must not know how the lock is acquired, nor what the metrics are.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rustix::io::Errno;
use tracing::warn;

use super::run_end::RunEnd;
use crate::cli::lock;
use crate::core::name::LockName;
use crate::core::run_stats::{RunReport, RunStats};
use crate::core::text::seconds;
use crate::output::events;
use crate::output::exit::{Exit, Failure, OrFail as _};
use crate::output::metrics::Metrics;
use crate::sys::atomic_file::{AtomicFile, try_lock};
use crate::sys::clock;

/// Time that dlock waits for other writers of the same metrics.
const METRICS_LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Far more than the locks of one machine need; a wrong path must not fill the memory.
const MAX_METRICS_BYTES: u64 = 16 * 1024 * 1024;

/// The paths of the files. It keeps no descriptor: the launch of the guard closes all.
pub(super) struct ReportFiles<'a> {
    name: &'a LockName,
    report: Option<PathBuf>,
    metrics: Option<PathBuf>,
}

impl<'a> ReportFiles<'a> {
    /// Checks that the files are writable: an error now is better than after the work.
    pub(super) fn open(name: &'a LockName, options: &lock::Options) -> Result<Self, Failure> {
        let find = |path: &Option<PathBuf>, option: &str| {
            let path = path.as_deref().map(std::path::absolute).transpose();
            path.with_context(|| format!("cannot find out where --{option} is"))
        };
        let files = Self {
            name,
            report: find(&options.report, "report")?,
            metrics: find(&options.metrics, "metrics")?,
        };
        if let Some(path) = &files.report {
            AtomicFile::open(path)?.check_writable()?;
        }
        if let Some(path) = &files.metrics {
            let file = AtomicFile::open(path)?;
            file.check_writable()?;
            // A busy file must not cost the job: the end of the run waits for it, and warns.
            drop(file.lock(|_| Ok(()))?);
            read(&file)?;
        }
        Ok(files)
    }

    /// Does the work and writes the files. A file that cannot be written is only a warning: the exit status is that of the work.
    pub(super) fn record(
        &self,
        work: impl FnOnce(&mut RunStats) -> Result<RunEnd, Failure>,
    ) -> Result<Exit, Failure> {
        let began = clock::wall_clock();
        let mut stats = RunStats::new(clock::now());
        let ended = work(&mut stats);
        let end = RunEnd::of(&ended);
        let now = clock::now();
        let report = RunReport {
            name: self.name.to_string(),
            outcome: end.outcome,
            exit_code: end.exit.code(),
            signal: match end.exit {
                Exit::Signalled(signal) => Some(signal),
                _ => None,
            },
            reason: end.reason,
            token: stats.token().map(|token| token.0),
            began,
            ended: clock::wall_clock(),
            waited_seconds: seconds(stats.waited(now)),
            held_seconds: seconds(stats.held(now)),
            proofs: stats.proofs,
            smallest_slack_seconds: stats.smallest_slack.map(seconds),
        };
        if let Some(path) = &self.report {
            warn_not_written(path, write_report(path, &report));
        }
        if let Some(path) = &self.metrics {
            warn_not_written(path, add_metrics(path, &report));
        }
        ended.map(|end| end.exit)
    }
}

fn write_report(path: &Path, report: &RunReport) -> Result<(), Failure> {
    let file = AtomicFile::open(path)?;
    Ok(file.replace_unlocked(report.to_json().as_bytes())?)
}

fn add_metrics(path: &Path, report: &RunReport) -> Result<(), Failure> {
    let file = AtomicFile::open(path)?;
    let _lock = file.lock(lock_within)?;
    let mut metrics = read(&file)?;
    metrics.add(report, clock::since_1970().as_secs_f64());
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

/// Waits for the lock of the metrics file.
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

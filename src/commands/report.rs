//! The files of `--report` and `--metrics`: checked before the run, written after it.
//! It must not know how the lock is acquired, nor what the metrics are.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rustix::io::Errno;
use tracing::warn;

use super::run_end::RunEnd;
use crate::cli::lock;
use crate::config::backend::BackendConfig;
use crate::core::name::LockName;
use crate::core::run_stats::{RunReport, RunStats};
use crate::core::text::seconds;
use crate::output::events;
use crate::output::exit::{Exit, Failure, OrFail as _};
use crate::output::metrics::Metrics;
use crate::sys::atomic_file::{AtomicFile, lock_until};
use crate::sys::{clock, stream};

/// Time that dlock waits for other writers of the same metrics.
const METRICS_LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Far more than the locks of one machine need; a wrong path must not fill the memory.
const MAX_METRICS_BYTES: u64 = 16 * 1024 * 1024;

/// Far more than a report has.
const MAX_REPORT_BYTES: u64 = 64 * 1024;

/// The files by their paths: the launch of the guard closes all descriptors but [`Self::stream`].
pub(super) struct ReportFiles<'a> {
    name: &'a LockName,
    report: Option<ReportTarget>,
    metrics: Option<PathBuf>,
}

/// The output of `--report`.
enum ReportTarget {
    /// A file that is replaced as a whole.
    File(PathBuf),
    /// A descriptor of the caller, a pipe or a device.
    Stream(PathBuf, OwnedFd),
}

impl ReportTarget {
    /// `keeps_caller`: whether the caller's own descriptors stay open until the end.
    fn open(path: &Path, keeps_caller: bool) -> Result<Self, Failure> {
        let tried = || format!("cannot write '{}'", path.display());
        if let Some(number) = stream::inherited_number(path) {
            if !keeps_caller {
                return Err(anyhow!(
                    "{}: a hold in the background keeps no descriptor of its caller",
                    tried()
                ))
                .or_hint("name a file, or a pipe with a name of its own");
            }
            let descriptor = stream::inherited(number).with_context(tried)?;
            return Ok(Self::Stream(path.to_owned(), descriptor));
        }
        let path = absolute(path, "report")?;
        let special = stream::open_special(&path).map_err(|error| {
            let unread = error.raw_os_error() == Some(Errno::NXIO.raw_os_error());
            Failure {
                hint: unread
                    .then(|| "no process reads that pipe: start the reader first".to_owned()),
                ..anyhow!("{}: {error}", tried()).into()
            }
        });
        if let Some(descriptor) = special? {
            return Ok(Self::Stream(path, descriptor));
        }
        open_report(&path)?.check_writable()?;
        Ok(Self::File(path))
    }

    fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Stream(path, _) => path,
        }
    }

    fn write(&self, report: &RunReport) -> Result<(), Failure> {
        let text = report.to_json();
        match self {
            Self::File(path) => open_report(path)?.replace_unlocked(text.as_bytes())?,
            Self::Stream(_, descriptor) => {
                stream::write_all(descriptor, text.as_bytes()).map_err(anyhow::Error::from)?;
            }
        }
        Ok(())
    }
}

impl<'a> ReportFiles<'a> {
    /// Checks that the files are writable: an error now is better than after the work.
    pub(super) fn open(
        name: &'a LockName,
        options: &lock::Options,
        keeps_caller: bool,
    ) -> Result<Self, Failure> {
        let report = options.report.as_deref();
        let report = report.map(|path| ReportTarget::open(path, keeps_caller));
        let metrics = options.metrics.as_deref();
        let metrics = metrics.map(|path| absolute(path, "metrics"));
        let files = Self {
            name,
            report: report.transpose()?,
            metrics: metrics.transpose()?,
        };
        if let Some(path) = &files.metrics {
            let file = AtomicFile::open(path)?;
            file.check_writable()?;
            // A busy file must not cost the job: the end of the run waits for it, and warns.
            drop(file.lock(|_| Ok(()))?);
            read(&file)?;
        }
        Ok(files)
    }

    /// The descriptor that must stay open until the files are written.
    pub(super) fn stream(&self) -> Option<BorrowedFd<'_>> {
        match self.report.as_ref()? {
            ReportTarget::File(_) => None,
            ReportTarget::Stream(_, descriptor) => Some(descriptor.as_fd()),
        }
    }

    /// Does the work and writes the files. A file that cannot be written is only a warning: the exit status is that of the work.
    pub(super) fn record(
        &self,
        backend: &BackendConfig,
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
            also: std::mem::take(&mut stats.also),
            began,
            ended: clock::wall_clock(),
            waited_seconds: seconds(stats.waited(now)),
            held_seconds: seconds(stats.held(now)),
            proofs: stats.proofs,
            smallest_slack_seconds: stats.smallest_slack.map(seconds),
            endpoints_from: backend.endpoints_source().map(str::to_owned),
        };
        if let Some(target) = &self.report {
            warn_not_written(target.path(), target.write(&report));
        }
        if let Some(path) = &self.metrics {
            warn_not_written(path, add_metrics(path, &report));
        }
        ended.map(|end| end.exit)
    }
}

fn absolute(path: &Path, option: &str) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(path);
    Ok(path.with_context(|| format!("cannot make the path of --{option} absolute"))?)
}

/// The file of a report, which may hold an earlier report but nothing else: a wrong path must not cost another file.
fn open_report(path: &Path) -> Result<AtomicFile, Failure> {
    let file = AtomicFile::open(path)?;
    let before = file.read(MAX_REPORT_BYTES)?.unwrap_or_default();
    if before.is_empty() || RunReport::is_one(&before) {
        return Ok(file);
    }
    Err(anyhow!(
        "cannot use '{}' for a report: the file there is not a report",
        path.display()
    ))
    .or_hint("a report is one JSON object, and replaces the report before: name another file, or remove this one")
}

fn add_metrics(path: &Path, report: &RunReport) -> Result<(), Failure> {
    let file = AtomicFile::open(path)?;
    let give_up_at = clock::now() + METRICS_LOCK_TIMEOUT;
    let _lock = file.lock(|lock| lock_until(lock, give_up_at))?;
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
        .ok_or_else(|| "it is too long, or not text".to_owned())
        .and_then(|text| Metrics::parse(&text));
    metrics
        .map_err(|why| anyhow!("cannot use '{}' for metrics: {why}", file.path().display()))
        .or_hint("dlock creates the file, and adds to the numbers in it: name a file that does not exist yet")
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

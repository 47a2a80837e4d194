//! The options of `dlock history`.
//! It must not know how the past of a lock is read, nor how it is shown.

use std::ffi::OsString;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, ValueHint};

use super::{Resolver, Work, local, lock};
use crate::config::duration;
use crate::config::layers::{SettingValue, parse_digits};
use crate::core::history::Request;
use crate::core::name::LockName;
use crate::output::exit::Failure;
use crate::sys::clock;

/// Number of holds without `--limit`.
const DEFAULT_LIMIT: usize = 20;
/// More than etcd keeps in an hour, the usual time until it forgets them.
const MAX_LIMIT: usize = 1_000_000;

#[derive(Args, Debug)]
pub(crate) struct HistoryArgs {
    /// Name of the lock
    #[arg(value_hint = ValueHint::Other)]
    name: OsString,

    /// Show the last N holds [default: 20]
    #[arg(short = 'n', long, value_name = "N", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    limit: Option<OsString>,

    /// Show holds after this time, or in the last DURATION
    ///
    /// TIME is in UTC: 2026-11-29T03:30:00Z, '2026-11-29 03:30:00' or 2026-11-29. A hold counts with its end.
    #[arg(long, value_name = "TIME|DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    since: Option<OsString>,

    /// Show also requests that left the queue without a hold
    #[arg(short, long)]
    all: bool,

    /// Print JSON, one line with all holds
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    local: local::LocalArgs,
}

/// The resolved options.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) name: LockName,
    pub(crate) request: Request,
    pub(crate) json: bool,
}

impl HistoryArgs {
    pub(super) fn resolve(self, resolver: &mut Resolver) -> Result<Work, Failure> {
        let backend = local::resolve(resolver)?;
        let limit = self.limit.map(|text| SettingValue::flag("limit", text));
        let limit = limit.map(|found| found.parse(parse_limit)).transpose()?;
        let since = self.since.map(|text| SettingValue::flag("since", text));
        let parse = |text: &str| parse_since(text, clock::since_1970());
        let since = since.map(|found| found.parse(parse)).transpose()?;
        let options = Options {
            name: lock::name(&self.name)?,
            request: Request {
                limit: limit.unwrap_or(DEFAULT_LIMIT),
                since,
                all: self.all,
            },
            json: self.json,
        };
        Ok(Work::History(backend, options))
    }
}

fn parse_limit(text: &str) -> Result<usize, String> {
    parse_digits(text)
        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
        .ok_or_else(|| format!("expected a number from 1 to {MAX_LIMIT}"))
}

/// A time since 1970, if `now` is the current one.
fn parse_since(text: &str, now: Duration) -> Result<Duration, String> {
    let text = text.trim();
    let is_time = text.contains('-') && !text.starts_with('-');
    if !is_time {
        return Ok(now.saturating_sub(duration::parse(text)?));
    }
    let time = if text.len() == "2026-11-29".len() {
        format!("{text} 00:00:00")
    } else {
        text.to_owned()
    };
    let time = humantime::parse_rfc3339_weak(&time).ok();
    let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    time.ok_or_else(|| {
        "expected a duration such as 2h, or a time such as 2026-11-29T03:30:00Z".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_and_a_duration_are_understood() {
        let now = Duration::from_mins(29_406_450);
        for (text, seconds) in [
            ("2h", 1_764_379_800),
            ("90", 1_764_386_910),
            ("2025-11-29T03:30:00Z", 1_764_387_000),
            ("2025-11-29 03:30:00", 1_764_387_000),
            ("2025-11-29", 1_764_374_400),
            ("100y", 0),
        ] {
            assert_eq!(
                parse_since(text, now),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "-1",
            "yesterday",
            "2025-13-01",
            "2025-11-29T",
            "1969-01-01",
        ] {
            assert!(parse_since(text, now).is_err(), "{text}");
        }
    }
}

//! The lock options that `run` and `hold` share, their limits, and their conflicts.
//! It must not know how a lock is acquired, nor what runs under it.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, ValueHint};

use super::signal;
use crate::config::backend::BackendKind;
use crate::config::duration;
use crate::config::layers::{Layers, SettingValue, parse_digits};
use crate::config::setting::Setting;
use crate::core::name::{HeldLocks, LockName, Scope, in_order};
use crate::core::proof::FencingToken;
use crate::core::request::{LockRequest, Mode, Supersede, WaitPolicy};
use crate::core::text::format_duration;
use crate::core::time::LeaseTimings;
use crate::output::exit::{self, Failure, OrFail};

const DEFAULT_TTL: Duration = Duration::from_secs(30);
/// A shorter TTL has no room for a renewal, its retry and the margins of `core::time`.
const MIN_TTL: Duration = Duration::from_secs(5);
const MAX_TTL: Duration = LeaseTimings::LONGEST_TTL;

#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct LockArgs {
    /// Do not wait if the lock is busy
    ///
    /// dlock ends with the status of --conflict-exit-code. etcd has 3s for its first answer and 3s for the rest,
    /// unless --connect-timeout is set.
    #[arg(short, long, help_heading = "Waiting")]
    no_wait: bool,

    /// Wait at most this long [default: no limit]
    ///
    /// The limit includes the time in which etcd does not answer. 0 is --no-wait.
    #[arg(short, long, help_heading = "Waiting", value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    wait: Option<OsString>,

    /// Exit status for a busy lock [default: 75]
    ///
    /// 0 to 255. dlock also ends with it when --wait has passed, when --once-per refuses the run and when a
    /// newer run supersedes this one.
    #[arg(short = 'E', long, help_heading = "Waiting", value_name = "N", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    conflict_exit_code: Option<OsString>,

    /// Start at most once in this time on all hosts
    ///
    /// etcd counts the time from the start of the command. A later run ends with the status of
    /// --conflict-exit-code, and names the earlier run, its start and its result. Whole seconds. Not with --local.
    #[arg(long, help_heading = "Waiting", value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    once_per: Option<OsString>,

    /// Ask earlier waiters to leave: the newest wins
    ///
    /// waiters [default]: all earlier waiters end with the status of --conflict-exit-code. holder: dlock also asks
    /// the holder, which stops its command, releases the lock and ends with status 121. Not with --local.
    #[arg(
        long,
        help_heading = "Waiting",
        value_name = "TARGET",
        value_parser = ["waiters", "holder"],
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "waiters",
        hide_possible_values = true
    )]
    supersede: Option<String>,

    /// Take this lock, too; may be repeated
    ///
    /// dlock takes all locks in the order of the bytes of their names, so that two runs never wait for each other, and
    /// runs the command when it holds all of them. The loss of any lock stops the command. Not with --once-per,
    /// --min-hold, --supersede or --reentrant.
    #[arg(long, help_heading = "Sharing", value_name = "NAME", value_hint = ValueHint::Other)]
    also: Vec<OsString>,

    /// Share the lock with other --shared runs
    ///
    /// Such readers hold the lock together; a run without --shared holds it alone. All wait in one queue: a later
    /// reader does not overtake a waiting writer.
    #[arg(short, long, help_heading = "Sharing")]
    shared: bool,

    /// Let up to N runs hold the lock at once
    ///
    /// 1 to 1000. All users of the lock need the same number. The command finds the number of its slot, from 0 on,
    /// in `DLOCK_SLOT`.
    #[arg(long, help_heading = "Sharing", value_name = "N", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    slots: Option<OsString>,

    /// Lease time to live, unless renewed [default: 30s]
    ///
    /// etcd frees the lock if it gets no renewal for this time. Whole seconds, 5s to 24h. A shorter TTL frees the
    /// lock sooner after a crash, a longer TTL survives longer outages of etcd. Not with --local: such a lock has
    /// no lease.
    #[arg(long, help_heading = "Timing", value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    ttl: Option<OsString>,

    /// Keep the lock for at least this long
    ///
    /// The time begins when dlock gets the lock, and etcd counts it, so it goes on after the end of the command and
    /// of dlock. The lock is free earlier if it was lost, if somebody asked for it, or if dlock was killed. Whole
    /// seconds; with --local this machine counts, and fractions of a second are allowed.
    #[arg(long, help_heading = "Timing", value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    min_hold: Option<OsString>,

    /// Stop the command after this time (status 124)
    ///
    /// dlock holds the lock until the last process of the command has ended.
    #[arg(long, help_heading = "Timing", value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    max_hold: Option<OsString>,

    /// Signal that stops the command [default: TERM]
    #[arg(long, help_heading = "Stopping", value_name = "SIGNAL", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    signal: Option<OsString>,

    /// Time from the signal to SIGKILL [default: 5s]
    ///
    /// The default is a fifth of the TTL if that is less than 5s. At most half of the TTL minus 0.5s, so that dlock
    /// can try a second renewal before it stops the command; with --local there is no limit.
    #[arg(short, long, help_heading = "Stopping", value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    kill_after: Option<OsString>,

    /// Text that other users of the lock see
    ///
    /// dlock ls, dlock status and all that wait for the lock show it.
    #[arg(long, help_heading = "Reporting", value_name = "TEXT", value_hint = ValueHint::Other)]
    note: Option<OsString>,

    /// Write a JSON summary of the run to FILE
    ///
    /// dlock replaces the file as a whole, and writes into a pipe, a device or a descriptor of the caller (-,
    /// /dev/stdout, /dev/stderr, /dev/fd/N). If FILE cannot be written, dlock fails before it queues for the lock.
    #[arg(long, help_heading = "Reporting", value_name = "FILE", value_hint = ValueHint::FilePath)]
    report: Option<OsString>,

    /// Add the run to the Prometheus metrics in FILE
    ///
    /// For the textfile collector of Prometheus' node exporter, which reads files whose names end in .prom. The name
    /// of the lock is a label; several runs may use one file at the same time.
    #[arg(long, help_heading = "Reporting", value_name = "FILE", value_hint = ValueHint::FilePath)]
    metrics: Option<OsString>,
}

/// The resolved options.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Exit status for a busy lock.
    pub(crate) conflict: u8,
    pub(crate) ttl: Duration,
    /// Time from the stop signal to SIGKILL.
    pub(crate) grace: Duration,
    /// The stop signal.
    pub(crate) signal: i32,
    pub(crate) note: Option<String>,
    pub(crate) request: LockRequest,
    /// Longest run of the command.
    pub(crate) max_hold: Option<Duration>,
    /// File for the summary of the run.
    pub(crate) report: Option<PathBuf>,
    /// File for the metrics.
    pub(crate) metrics: Option<PathBuf>,
}

/// Reads a lock's name.
pub(crate) fn name(text: &OsStr) -> Result<LockName, Failure> {
    let name = text.to_str().ok_or_else(|| {
        anyhow!(
            "cannot use the lock name '{}': it is not UTF-8 text",
            text.display()
        )
    })?;
    let name = name
        .parse::<LockName>()
        .map_err(|error| anyhow!("cannot use the lock name {name:?}: {error}"))?;
    Ok(name)
}

/// The token of a lock around us that is not the one of `DLOCK_NAME`, whose token is in `DLOCK_FENCING_TOKEN`.
pub(super) fn held_token(
    layers: &Layers,
    name: &LockName,
    scope: Option<&Scope>,
) -> Option<FencingToken> {
    let variable = |name| layers.variable(name)?.into_string().ok();
    if variable("DLOCK_NAME").is_some_and(|own| own == name.to_string()) {
        return None;
    }
    let held = HeldLocks::parse(&variable("DLOCK_HELD")?);
    let found = held.named(name, scope)?;
    Some(FencingToken(found.token))
}

impl LockArgs {
    /// The locks of a run in the order in which they are taken, for the lock that is named first.
    pub(super) fn names(&self, name: &LockName) -> Result<Vec<LockName>, Failure> {
        let also = self.also.iter().map(|text| self::name(text));
        let all = in_order(name, also.collect::<Result<_, _>>()?);
        all.map_err(|twice| anyhow!("cannot use the lock name '{twice}' twice"))
            .or_hint("name each lock once: as NAME or with --also")
    }

    /// Refuses options that say nothing of several locks.
    pub(super) fn refuse_with_several(
        &self,
        layers: &Layers,
        more: &[Setting],
    ) -> Result<(), Failure> {
        if self.also.is_empty() {
            return Ok(());
        }
        let one_lock_each = [Setting::OncePer, Setting::MinHold, Setting::Supersede];
        let mut all = one_lock_each.iter().chain(more);
        match all.find_map(|setting| layers.find(*setting)) {
            Some(found) => Err(anyhow!(
                "cannot use {found} together with --also: it is for one lock"
            ))
            .or_hint("nest two commands: dlock run OPTIONS NAME -- dlock run --also OTHER ANOTHER -- COMMAND"),
            None => Ok(()),
        }
    }
}

/// Resolves the options with the flags, the variables, the file and the defaults.
pub(super) fn resolve(layers: &Layers, kind: BackendKind) -> Result<Options, Failure> {
    let (ttl, grace) = times(layers, kind)?;
    let wait_policy = wait_policy(layers)?;
    let conflict = layers.parse(Setting::ConflictExitCode, parse_status)?;
    let signal = layers.parse(Setting::Signal, signal::parse)?;
    let note = layers.parse(Setting::Note, |text| Ok(text.to_owned()))?;
    let max_hold = layers.parse(Setting::MaxHold, parse_positive_duration)?;
    let request = lock_request(layers, wait_policy, kind)?;
    let file = |setting| layers.find(setting).map(|found| found.path());
    Ok(Options {
        conflict: conflict.unwrap_or(exit::BUSY),
        ttl,
        grace,
        signal: signal.unwrap_or(signal_hook::consts::SIGTERM),
        note: note.filter(|note| !note.is_empty()),
        request,
        max_hold,
        report: file(Setting::Report),
        metrics: file(Setting::Metrics),
    })
}

/// Refuses options that a local lock cannot honour. A TTL from a variable or the file applies to locks in etcd.
fn refuse_etcd_only_options(layers: &Layers) -> Result<(), Failure> {
    let refused = [
        (
            layers.find_flag(Setting::Ttl),
            "it has no lease, and dlock holds it until the command has ended",
        ),
        (
            layers.find(Setting::OncePer),
            "no clock of this machine survives a restart",
        ),
        (
            layers.find(Setting::Supersede),
            "only etcd can ask waiters to leave",
        ),
    ];
    for (found, why) in refused {
        if let Some(found) = found {
            return Err(anyhow!("cannot use {found} for a local lock: {why}"))
                .or_hint("leave out this option, or --local");
        }
    }
    Ok(())
}

fn lock_request(
    layers: &Layers,
    wait_policy: WaitPolicy,
    kind: BackendKind,
) -> Result<LockRequest, Failure> {
    let shared = layers.find_switch(Setting::Shared)?;
    let mode = match SettingValue::stronger(shared, layers.find(Setting::Slots))? {
        (Some(_), _) => Mode::Shared,
        (None, Some(slots)) => Mode::Slots(slots.parse(parse_slots)?),
        (None, None) => Mode::Exclusive,
    };
    let supersede = layers.find(Setting::Supersede);
    if let Some(found) = &supersede {
        let why = match (wait_policy, mode) {
            (WaitPolicy::NoWait, _) => {
                Some("--no-wait: a run that does not wait asks nobody to leave")
            }
            (_, Mode::Shared) => Some("--shared: readers do not block each other"),
            _ => None,
        };
        if let Some(why) = why {
            return Err(anyhow!("cannot use {} together with {why}", found.source).into());
        }
    }
    let time = match kind {
        BackendKind::Etcd => parse_whole_seconds,
        BackendKind::Local => parse_positive_duration,
    };
    Ok(LockRequest {
        mode,
        wait_policy,
        min_hold: layers.parse(Setting::MinHold, time)?,
        once_per: layers.parse(Setting::OncePer, time)?,
        retry_failed: false,
        supersede: supersede
            .map(|found| found.parse(parse_supersede))
            .transpose()?,
    })
}

/// The grace of a command under a lock without a lease.
fn grace_without_a_lease(layers: &Layers) -> Result<Duration, Failure> {
    let grace = layers.parse(Setting::KillAfter, duration::parse)?;
    Ok(grace.unwrap_or(LeaseTimings::default_grace(DEFAULT_TTL)))
}

fn wait_policy(layers: &Layers) -> Result<WaitPolicy, Failure> {
    let no_wait = layers.find_switch(Setting::NoWait)?;
    match SettingValue::stronger(no_wait, layers.find(Setting::Wait))? {
        (Some(_), _) => Ok(WaitPolicy::NoWait),
        (None, Some(wait)) => Ok(match wait.parse(duration::parse)? {
            Duration::ZERO => WaitPolicy::NoWait,
            limit => WaitPolicy::Timeout(limit),
        }),
        (None, None) => Ok(WaitPolicy::Forever),
    }
}

/// TTL and grace.
pub(super) fn times(layers: &Layers, kind: BackendKind) -> Result<(Duration, Duration), Failure> {
    match kind {
        BackendKind::Etcd => times_of_a_lease(layers),
        BackendKind::Local => {
            refuse_etcd_only_options(layers)?;
            Ok((DEFAULT_TTL, grace_without_a_lease(layers)?))
        }
    }
}

/// TTL and grace; each limits the other.
fn times_of_a_lease(layers: &Layers) -> Result<(Duration, Duration), Failure> {
    let ttl = layers
        .parse(Setting::Ttl, parse_ttl)?
        .unwrap_or(DEFAULT_TTL);
    let Some(found) = layers.find(Setting::KillAfter) else {
        return Ok((ttl, LeaseTimings::default_grace(ttl)));
    };
    let grace = found.parse(duration::parse)?;
    let longest = LeaseTimings::max_grace(ttl);
    if grace > longest {
        let fitting = (grace + Duration::from_millis(500)) * 2;
        return Err(anyhow!(
            "cannot use {found} with a TTL of {}: at most {} leaves room for two renewals",
            format_duration(ttl),
            format_duration(longest)
        ))
        .or_hint(format!(
            "use --ttl {}s or more, or a shorter --kill-after",
            fitting.as_millis().div_ceil(1000)
        ));
    }
    Ok((ttl, grace))
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration::parse(text)?;
    if !(MIN_TTL..=MAX_TTL).contains(&ttl) {
        return Err("expected 5s to 24h".to_owned());
    }
    if ttl.subsec_nanos() != 0 {
        return Err("etcd counts a TTL in whole seconds".to_owned());
    }
    Ok(ttl)
}

fn parse_status(text: &str) -> Result<u8, String> {
    parse_digits(text).ok_or_else(|| "expected a number from 0 to 255".to_owned())
}

fn parse_slots(text: &str) -> Result<u16, String> {
    parse_digits(text)
        .filter(|slots| (1..=Mode::MAX_SLOTS).contains(slots))
        .ok_or_else(|| format!("expected a number from 1 to {}", Mode::MAX_SLOTS))
}

fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text)?;
    if time.is_zero() {
        return Err("expected more than 0".to_owned());
    }
    Ok(time)
}

/// A positive duration in whole seconds, as a lease needs it.
fn parse_whole_seconds(text: &str) -> Result<Duration, String> {
    let time = parse_positive_duration(text)?;
    if time.subsec_nanos() != 0 {
        return Err("etcd counts it in whole seconds".to_owned());
    }
    Ok(time)
}

fn parse_supersede(text: &str) -> Result<Supersede, String> {
    match text {
        "waiters" => Ok(Supersede::Waiters),
        "holder" => Ok(Supersede::Holder),
        _ => Err("expected waiters or holder".to_owned()),
    }
}

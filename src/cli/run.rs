//! The words of `dlock run`, their limits, and what they mean together.
//! It must not know how a lock is taken, nor how a command is started.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, ValueHint};

use super::{duration, signal};
use crate::config::layers::{Found, Layers};
use crate::core::lease::Terms;
use crate::core::leftovers::Leftovers;
use crate::core::name::LockName;
use crate::core::text::span;
use crate::exit::{self, Failure, OrFail};

const TTL: Duration = Duration::from_secs(30);
/// Below it a renewal, its second try and the margins of `core::lease` do not fit any more.
const SHORTEST_TTL: Duration = Duration::from_secs(5);
const LONGEST_TTL: Duration = Duration::from_hours(24);

/// The words.
#[derive(Args, Debug)]
pub(crate) struct Words {
    /// Name of the lock, 1 to 255 bytes
    #[arg(value_hint = ValueHint::Other)]
    name: OsString,

    /// Command and its arguments; every word from here on is the command's
    #[arg(trailing_var_arg = true, value_hint = ValueHint::CommandWithArguments)]
    command: Vec<OsString>,

    /// Run STRING with $SHELL -c instead of a command
    #[arg(short = 'c', long = "command", value_name = "STRING", allow_hyphen_values = true, value_hint = ValueHint::CommandString)]
    string: Option<OsString>,

    /// If the lock is busy, end at once
    #[arg(short, long)]
    no_wait: bool,

    /// If the lock is busy, wait no longer than this; 0 is --no-wait
    ///
    /// Without --wait and --no-wait dlock waits for as long as it takes.
    #[arg(short, long, value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    wait: Option<OsString>,

    /// Exit status for a busy lock, 0 to 255; default 75
    #[arg(short = 'E', long, value_name = "STATUS", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    conflict_exit_code: Option<OsString>,

    /// How long etcd keeps the lock for a dlock that it cannot hear; default 30s
    ///
    /// Whole seconds, 5s to 24h. A shorter one frees the lock sooner after a crash, a longer one survives
    /// longer outages of etcd.
    #[arg(long, value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    ttl: Option<OsString>,

    /// How long the command may take to end when it is told to, before it is killed
    ///
    /// Default: 5s, or a fifth of the TTL if that is less. At most half of the TTL less half a second, so that
    /// two renewals may fail before the command has to be told.
    #[arg(short, long, value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    kill_after: Option<OsString>,

    /// Signal that tells the command to end; default TERM
    #[arg(long, value_name = "SIGNAL", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    signal: Option<OsString>,

    /// Text that others see while they wait for the lock
    #[arg(long, value_name = "TEXT", value_hint = ValueHint::Other)]
    note: Option<OsString>,

    /// What to do with processes that the command leaves behind: kill, wait or leave; default kill
    ///
    /// kill: end them, then release the lock. wait: hold the lock until the last one has ended, as flock(1) does.
    /// leave: release the lock and let them run.
    #[arg(long, value_name = "WHAT", value_parser = ["kill", "wait", "leave"], hide_possible_values = true)]
    leftovers: Option<String>,
}

/// What the words mean.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) name: LockName,
    /// The command as the user typed it, never empty; `-c` has become `$SHELL -c STRING`.
    pub(crate) command: Vec<OsString>,
    pub(crate) patience: Patience,
    /// Exit status for a busy lock.
    pub(crate) conflict: u8,
    pub(crate) ttl: Duration,
    /// Time between the stop signal and SIGKILL.
    pub(crate) grace: Duration,
    /// The stop signal.
    pub(crate) signal: i32,
    pub(crate) note: Option<String>,
    pub(crate) leftovers: Leftovers,
}

/// How long to wait for a busy lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    None,
    For(Duration),
    Endless,
}

impl Options {
    /// The command's first word.
    pub(crate) fn program(&self) -> &OsStr {
        self.command
            .first()
            .map_or(OsStr::new(""), OsString::as_os_str)
    }
}

impl Words {
    /// Puts the words together with the variables, the file and the defaults.
    pub(crate) fn resolve(self, layers: &Layers) -> Result<Options, Failure> {
        let name = self.name.to_str().ok_or_else(|| {
            anyhow!(
                "cannot use the lock name '{}': it is not UTF-8 text",
                self.name.display()
            )
        })?;
        let name = name
            .parse::<LockName>()
            .map_err(|error| anyhow!("cannot use the lock name {name:?}: {error}"))?;
        let patience = patience(layers, self.no_wait, self.wait.as_deref())?;
        let (ttl, grace) = times(layers, self.ttl.as_deref(), self.kill_after.as_deref())?;
        let find = |flag: Option<&OsStr>, option| layers.find(flag, option);
        let conflict = find(self.conflict_exit_code.as_deref(), "conflict-exit-code")
            .map(|found| found.parse(status))
            .transpose()?;
        let signal = find(self.signal.as_deref(), "signal")
            .map(|found| found.parse(signal::parse))
            .transpose()?;
        let note = find(self.note.as_deref(), "note")
            .map(|found| found.parse(|text| Ok(text.to_owned())))
            .transpose()?;
        let leftovers = find(self.leftovers.as_deref().map(OsStr::new), "leftovers")
            .map(|found| found.parse(leftovers))
            .transpose()?;
        Ok(Options {
            name,
            command: command(layers, self.command, self.string)?,
            patience,
            conflict: conflict.unwrap_or(exit::BUSY),
            ttl,
            grace,
            signal: signal.unwrap_or(signal_hook::consts::SIGTERM),
            note: note.filter(|note| !note.is_empty()),
            leftovers: leftovers.unwrap_or(Leftovers::Kill),
        })
    }
}

fn command(
    layers: &Layers,
    command: Vec<OsString>,
    string: Option<OsString>,
) -> Result<Vec<OsString>, Failure> {
    match string {
        Some(_) if !command.is_empty() => {
            Err(anyhow!("cannot use -c together with the command '{}'", command[0].display()))
                .or_hint("dlock run NAME -c 'COMMAND ARG...' needs no further words; put the options before the command")
        }
        Some(string) => {
            // As flock(1).
            let shell = layers.variable("SHELL").unwrap_or_else(|| "/bin/sh".into());
            Ok(vec![shell, "-c".into(), string])
        }
        None if command.is_empty() => Err(anyhow!("no command to run"))
            .or_hint("dlock run NAME -- COMMAND [ARG...], or dlock run NAME -c 'SHELL STRING'"),
        None => Ok(command),
    }
}

fn patience(layers: &Layers, no_wait: bool, wait: Option<&OsStr>) -> Result<Patience, Failure> {
    let no_wait = layers.switch(no_wait, "no-wait")?;
    let wait = layers.find(wait, "wait");
    match Found::stronger(no_wait, wait)? {
        Some(found) if found.option == "no-wait" => Ok(Patience::None),
        Some(found) => Ok(match found.parse(duration::parse)? {
            Duration::ZERO => Patience::None,
            limit => Patience::For(limit),
        }),
        None => Ok(Patience::Endless),
    }
}

/// TTL and grace, which limit each other.
fn times(
    layers: &Layers,
    ttl: Option<&OsStr>,
    kill_after: Option<&OsStr>,
) -> Result<(Duration, Duration), Failure> {
    let ttl = layers
        .find(ttl, "ttl")
        .map(|found| found.parse(whole_ttl))
        .transpose()?
        .unwrap_or(TTL);
    let Some(found) = layers.find(kill_after, "kill-after") else {
        return Ok((ttl, Terms::default_grace(ttl)));
    };
    let grace = found.parse(duration::parse)?;
    let longest = Terms::longest_grace(ttl);
    if grace > longest {
        let fitting = (grace + Duration::from_millis(500)) * 2;
        return Err(anyhow!(
            "cannot use {found} with a TTL of {}: at most {} leaves room for two renewals",
            span(ttl),
            span(longest)
        ))
        .or_hint(format!(
            "it would need --ttl {}s or more",
            fitting.as_millis().div_ceil(1000)
        ));
    }
    Ok((ttl, grace))
}

fn whole_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration::parse(text)?;
    if !(SHORTEST_TTL..=LONGEST_TTL).contains(&ttl) {
        return Err("a TTL has 5s to 24h".to_owned());
    }
    if ttl.subsec_nanos() != 0 {
        return Err("etcd counts a TTL in whole seconds".to_owned());
    }
    Ok(ttl)
}

fn status(text: &str) -> Result<u8, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| "an exit status is a number from 0 to 255".to_owned())
}

fn leftovers(text: &str) -> Result<Leftovers, String> {
    match text {
        "kill" => Ok(Leftovers::Kill),
        "wait" => Ok(Leftovers::Wait),
        "leave" => Ok(Leftovers::Leave),
        _ => Err("expected kill, wait or leave".to_owned()),
    }
}

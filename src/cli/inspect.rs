//! The options of the sub-commands that inspect locks or break them: `ls`, `status`, `check`, `break`.
//! It must not know which requests etcd gets.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, ValueHint};

use super::{Resolver, Work, local, lock};
use crate::config::duration;
use crate::config::layers::SettingValue;
use crate::core::fence;
use crate::core::name::LockName;
use crate::core::proof::FencingToken;
use crate::lock::reader::Selection;
use crate::output::exit::{Failure, OrFail as _};

/// Default time that `break` waits for the owner to release.
const BREAK_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// List only locks whose names begin with PREFIX
    #[arg(value_name = "PREFIX", default_value = "", hide_default_value = true, value_hint = ValueHint::Other)]
    beginning: OsString,

    #[command(flatten)]
    local: local::LocalArgs,

    #[command(flatten)]
    format: ListFormat,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Name of the lock
    #[arg(value_hint = ValueHint::Other)]
    name: OsString,

    /// Print nothing; the exit status is 0 if the lock is held, 1 if it is free
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    held: bool,

    #[command(flatten)]
    local: local::LocalArgs,

    #[command(flatten)]
    format: ListFormat,
}

// The form of the output.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
#[group(skip)]
pub(crate) struct ListFormat {
    /// Print JSON, one line for each lock
    #[arg(long)]
    pub(crate) json: bool,

    /// Show the list again after every change, until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[arg(long, help = "Name of the lock [default: DLOCK_NAME]", value_name = "NAME", value_hint = ValueHint::Other)]
    name: Option<OsString>,

    #[arg(long, help = "Fencing token to check [default: DLOCK_FENCING_TOKEN]", value_name = "NUMBER", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    token: Option<OsString>,

    #[command(flatten)]
    local: local::LocalArgs,
}

#[derive(Args, Debug)]
pub(crate) struct BreakArgs {
    /// Name of the lock
    #[arg(value_hint = ValueHint::Other)]
    name: OsString,

    /// Token of the holder or waiter, from dlock status NAME
    ///
    /// Without it dlock prints the command with the token of the holder, and changes nothing.
    #[arg(long, value_name = "NUMBER", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    token: Option<OsString>,

    /// Reason that the holder or waiter reports
    #[arg(long, value_name = "TEXT", value_hint = ValueHint::Other)]
    reason: Option<String>,

    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,

    /// Take the lock away at once, without a request
    ///
    /// The holder learns of it and stops its command, which takes up to its --kill-after. The command of a client
    /// that is not dlock runs on to its end.
    #[arg(long)]
    now: bool,

    /// Wait at most this long for the release [default: 30s]
    // Not the setting of this name, which is for every lock.
    #[arg(short = 'w', long = "wait", value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    timeout: Option<OsString>,

    /// Refused: only a lock in etcd can be broken
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    local: Option<OsString>,
}

/// The request of `ls` or `status`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ListRequest {
    pub(crate) which: Selection,
    /// `None` for the exit status alone.
    pub(crate) format: Option<ListFormat>,
}

/// The holding that `check` verifies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) name: LockName,
    pub(crate) token: FencingToken,
}

/// The entry that `break` evicts, and how.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Break {
    pub(crate) name: LockName,
    /// `None` shows which token the holder has.
    pub(crate) token: Option<FencingToken>,
    pub(crate) reason: Option<String>,
    pub(crate) yes: bool,
    pub(crate) now: bool,
    pub(crate) wait: Duration,
}

impl ListArgs {
    pub(super) fn resolve(self, resolver: &mut Resolver) -> Result<Work, Failure> {
        let backend = local::resolve(resolver)?;
        let prefix = self.beginning.into_string();
        let prefix = prefix.map_err(|text| {
            anyhow!(
                "cannot use the prefix '{}': it is not UTF-8 text",
                text.display()
            )
        })?;
        let request = ListRequest {
            which: Selection::BeginningWith(prefix),
            format: Some(self.format),
        };
        Ok(Work::List(backend, request))
    }
}

impl StatusArgs {
    pub(super) fn resolve(self, resolver: &mut Resolver) -> Result<Work, Failure> {
        let backend = local::resolve(resolver)?;
        let request = ListRequest {
            which: Selection::One(lock::name(&self.name)?),
            format: (!self.held).then_some(self.format),
        };
        Ok(Work::List(backend, request))
    }
}

impl CheckArgs {
    /// Resolves the options with the variables of the lock around us.
    pub(super) fn resolve(self, resolver: &mut Resolver) -> Result<Work, Failure> {
        let backend = local::resolve(resolver)?;
        let layers = &resolver.layers;
        let inherited = |arg: Option<OsString>, variable| {
            let text = arg.or_else(|| layers.variable(variable));
            text.ok_or_else(|| anyhow!("cannot check a lock: {variable} is not set"))
                .or_hint(
                    "give --name and --token; dlock sets the variables only for the command of dlock run",
                )
        };
        let name = lock::name(&inherited(self.name, "DLOCK_NAME")?)?;
        let held = match self.token {
            None => lock::held_token(layers, &name, Some(&backend.scope())),
            Some(_) => None,
        };
        let token = match held {
            Some(token) => token,
            None => parse_token(&inherited(self.token, "DLOCK_FENCING_TOKEN")?)?,
        };
        let check = Check { name, token };
        Ok(Work::Check(backend, check))
    }
}

impl BreakArgs {
    pub(super) fn resolve(self, resolver: &mut Resolver) -> Result<Work, Failure> {
        let hint = "the holder is a process of this machine, which dlock status --local NAME shows; kill PID sends its command a signal";
        local::refuse(&resolver.layers, "break a lock", hint)?;
        let timeout = self.timeout.map(|text| SettingValue::flag("wait", text));
        let timeout = timeout
            .map(|found| found.parse(duration::parse))
            .transpose()?;
        let order = Break {
            name: lock::name(&self.name)?,
            token: self.token.as_deref().map(parse_token).transpose()?,
            reason: self.reason,
            yes: self.yes,
            now: self.now,
            wait: timeout.unwrap_or(BREAK_TIMEOUT),
        };
        Ok(Work::Break(resolver.settings()?, order))
    }
}

fn parse_token(text: &OsStr) -> Result<FencingToken, Failure> {
    let token = text.to_str().and_then(fence::parse_token);
    let token = token.filter(|token| token.0 > 0).ok_or_else(|| {
        anyhow!(
            "cannot use the token '{}': expected a number, 1 or more",
            text.display()
        )
    });
    Ok(token?)
}

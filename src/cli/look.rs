//! The words of the sub-commands that look at locks and step in: `ls`, `status`, `check`, `break`.
//! It must not know how etcd is asked.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, ValueHint};

use super::{Resolver, Work, local, lock};
use crate::config::duration;
use crate::core::name::LockName;
use crate::core::proof::FencingToken;
use crate::output::exit::{Failure, OrFail as _};

/// How long `break` waits for the owner to go, unless it is told otherwise.
const BREAK_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Only locks whose names begin so
    #[arg(value_name = "PREFIX", default_value = "", hide_default_value = true, value_hint = ValueHint::Other)]
    beginning: OsString,

    #[command(flatten)]
    local: local::LocalArgs,

    #[command(flatten)]
    form: Form,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Name of the lock
    #[arg(value_hint = ValueHint::Other)]
    name: OsString,

    /// Say nothing, and end with 0 if somebody has the lock, with 1 if it is free
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    held: bool,

    #[command(flatten)]
    local: local::LocalArgs,

    #[command(flatten)]
    form: Form,
}

// How it is shown.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq)]
#[group(skip)]
pub(crate) struct Form {
    /// Print JSON, one lock in a line
    #[arg(long)]
    pub(crate) json: bool,

    /// Go on, and show every change
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// Name of the lock; default `DLOCK_NAME`
    #[arg(long, value_name = "NAME", value_hint = ValueHint::Other)]
    name: Option<OsString>,

    /// Fencing token of its holder; default `DLOCK_FENCING_TOKEN`
    #[arg(long, value_name = "NUMBER", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    token: Option<OsString>,

    #[command(flatten)]
    local: local::LocalArgs,
}

#[derive(Args, Debug)]
pub(crate) struct BreakArgs {
    /// Name of the lock
    #[arg(value_hint = ValueHint::Other)]
    name: OsString,

    /// Token of who has to go, as `dlock status` shows it
    #[arg(long, value_name = "NUMBER", value_hint = ValueHint::Other, required = true, allow_negative_numbers = true)]
    token: OsString,

    /// Text that the other one is told
    #[arg(long, value_name = "TEXT", value_hint = ValueHint::Other)]
    reason: Option<String>,

    /// Do not ask whether this is meant
    #[arg(long)]
    yes: bool,

    /// Take the lock away at once instead of asking its holder to give it back
    ///
    /// The holder hears of it, but its command runs on until it has been stopped, or to its end under a client
    /// that is not dlock.
    #[arg(long)]
    now: bool,

    /// How long to wait until the other one has gone; default 30s
    #[arg(short, long, value_name = "DURATION", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    wait: Option<OsString>,

    /// Refused: only in etcd can somebody be sent away
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    local: Option<OsString>,
}

/// What `ls` and `status` are to show.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ListRequest {
    List(String, Form),
    Status(LockName, Form),
    Held(LockName),
}

/// Whose holding `check` is about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) name: LockName,
    pub(crate) token: FencingToken,
}

/// Whom `break` sends away, and how.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Break {
    pub(crate) name: LockName,
    pub(crate) token: FencingToken,
    pub(crate) reason: Option<String>,
    pub(crate) yes: bool,
    pub(crate) now: bool,
    pub(crate) wait: Duration,
}

impl ListArgs {
    pub(super) fn resolve(self, asked: &mut Resolver) -> Result<Work, Failure> {
        let site = self.local.resolve(asked)?;
        let prefix = self.beginning.into_string();
        let prefix = prefix.map_err(|text| {
            anyhow!(
                "cannot use the prefix '{}': it is not UTF-8 text",
                text.display()
            )
        })?;
        Ok(Work::Look(site, ListRequest::List(prefix, self.form)))
    }
}

impl StatusArgs {
    pub(super) fn resolve(self, asked: &mut Resolver) -> Result<Work, Failure> {
        let site = self.local.resolve(asked)?;
        let name = lock::name(&self.name)?;
        let look = if self.held {
            ListRequest::Held(name)
        } else {
            ListRequest::Status(name, self.form)
        };
        Ok(Work::Look(site, look))
    }
}

impl CheckArgs {
    /// Puts the words together with the variables of the lock around us.
    pub(super) fn resolve(self, asked: &mut Resolver) -> Result<Work, Failure> {
        let site = self.local.resolve(asked)?;
        let layers = &asked.layers;
        let inherited = |word: Option<OsString>, variable| {
            let text = word.or_else(|| layers.variable(variable));
            text.ok_or_else(|| anyhow!("cannot check a lock: {variable} is not set"))
                .or_hint(
                    "inside a command of dlock run both are known; else give --name and --token",
                )
        };
        let name = inherited(self.name, "DLOCK_NAME")?;
        let token = inherited(self.token, "DLOCK_FENCING_TOKEN")?;
        let check = Check {
            name: lock::name(&name)?,
            token: parse_token(&token)?,
        };
        Ok(Work::Check(site, check))
    }
}

impl BreakArgs {
    pub(super) fn resolve(self, asked: &mut Resolver) -> Result<Work, Failure> {
        let hint = "its holder is a process of this machine, dlock status --local NAME shows it: kill PID hands a signal on to its command";
        local::refuse(asked, self.local.as_deref(), "break a lock", hint)?;
        let wait = self.wait.as_deref().map(|text| {
            let text = text.to_string_lossy();
            duration::parse(&text).map_err(|error| anyhow!("cannot use --wait '{text}': {error}"))
        });
        let order = Break {
            name: lock::name(&self.name)?,
            token: parse_token(&self.token)?,
            reason: self.reason,
            yes: self.yes,
            now: self.now,
            wait: wait.transpose()?.unwrap_or(BREAK_TIMEOUT),
        };
        Ok(Work::Break(asked.settings()?, order))
    }
}

fn parse_token(text: &OsStr) -> Result<FencingToken, Failure> {
    let token = text.to_str().and_then(|text| text.parse::<i64>().ok());
    let token = token.filter(|token| *token > 0);
    let token = token.ok_or_else(|| {
        anyhow!(
            "cannot use the token '{}': expected a number from 1 on",
            text.display()
        )
    })?;
    Ok(FencingToken(token))
}

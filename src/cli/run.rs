//! The options of `dlock run` beside those of every lock.
//! It must not know how a lock is taken, nor how a command is started.

use std::ffi::{OsStr, OsString};

use anyhow::anyhow;
use clap::{Args, ValueHint};

use super::{Resolver, Work, local, lock};
use crate::config::backend::BackendKind;
use crate::config::layers::Layers;
use crate::config::setting::Setting;
use crate::core::name::LockName;
use crate::core::request::{Leftovers, LockRequest};
use crate::host::shell::command_shell;
use crate::output::exit::{Failure, OrFail};

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// Name of the lock, 1 to 255 bytes
    #[arg(hide_short_help = true, value_hint = ValueHint::Other)]
    name: OsString,

    /// Command and its arguments; every word from here on belongs to the command
    #[arg(hide_short_help = true, trailing_var_arg = true, value_hint = ValueHint::CommandWithArguments)]
    command: Vec<OsString>,

    /// Run STRING with $SHELL -c instead of a command
    #[arg(short = 'c', long = "command", hide_short_help = true, value_name = "STRING", allow_hyphen_values = true, value_hint = ValueHint::CommandString)]
    string: Option<OsString>,

    #[command(flatten)]
    lock: lock::LockArgs,

    /// With --once-per: a failed run does not count
    ///
    /// Only a run counts whose command has ended with status 0. If the last one failed, lost the lock or was killed, this
    /// one starts as soon as the lock is free. A run that still holds the lock is awaited.
    #[arg(long, help_heading = "Waiting")]
    retry_failed: bool,

    /// Run at once if a parent dlock holds the lock
    ///
    /// Without it dlock refuses such a run, which would wait for itself.
    #[arg(long, help_heading = "Sharing")]
    reentrant: bool,

    /// Orphans: kill, wait or leave [default: kill]
    ///
    /// Orphans are processes that run on when the command has ended. kill: stop them, then release the lock. wait: hold the lock until the last one has ended, as flock(1) does.
    /// leave: release the lock and let them run.
    #[arg(long, help_heading = "Stopping", value_name = "ACTION", value_parser = ["kill", "wait", "leave"], hide_possible_values = true)]
    leftovers: Option<String>,

    #[command(flatten)]
    local: local::LocalArgs,
}

/// The resolved options.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) name: LockName,
    /// All locks, that one among them, in the order in which they are taken.
    pub(crate) names: Vec<LockName>,
    /// The command as the user typed it, never empty; `-c` has become `$SHELL -c STRING`.
    pub(crate) command: Vec<OsString>,
    pub(crate) lock: lock::Options,
    pub(crate) leftovers: Leftovers,
    /// Whether a lock that a parent dlock holds is used again.
    pub(crate) reentrant: bool,
}

impl Options {
    /// The command's first word.
    pub(crate) fn program(&self) -> &OsStr {
        self.command
            .first()
            .map_or(OsStr::new(""), OsString::as_os_str)
    }
}

impl RunArgs {
    /// Resolves the options with the variables, the file and the defaults.
    pub(super) fn resolve(self, resolver: &mut Resolver) -> Result<Work, Failure> {
        let backend = local::resolve(resolver);
        let options = self.options(&resolver.layers, BackendKind::of(&backend))?;
        Ok(Work::Run(backend?, options))
    }

    fn options(self, layers: &Layers, kind: BackendKind) -> Result<Options, Failure> {
        let leftovers = layers.parse(Setting::Leftovers, leftovers)?;
        let mut lock = lock::resolve(layers, kind)?;
        lock.request.retry_failed = retry_failed(layers, &lock.request)?;
        let name = lock::name(&self.name)?;
        self.lock
            .refuse_with_several(layers, &[Setting::Reentrant])?;
        Ok(Options {
            names: self.lock.names(&name)?,
            name,
            command: command(layers, self.command, self.string)?,
            lock,
            leftovers: leftovers.unwrap_or(Leftovers::Kill),
            reentrant: layers.find_switch(Setting::Reentrant)?.is_some(),
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
            let shell = command_shell(layers.variable("SHELL"));
            Ok(vec![shell, "-c".into(), string])
        }
        None if command.is_empty() => Err(anyhow!("no command to run"))
            .or_hint("dlock run NAME -- COMMAND [ARG...], or dlock run NAME -c 'SHELL STRING'"),
        None => Ok(command),
    }
}

/// A variable or the file may set it for all runs, some of which have no period.
fn retry_failed(layers: &Layers, request: &LockRequest) -> Result<bool, Failure> {
    if request.once_per.is_none() && layers.find_flag(Setting::RetryFailed).is_some() {
        return Err(anyhow!("cannot use --retry-failed without --once-per"))
            .or_hint("a run without --once-per starts whenever the lock is free");
    }
    Ok(layers.find_switch(Setting::RetryFailed)?.is_some())
}

fn leftovers(text: &str) -> Result<Leftovers, String> {
    match text {
        "kill" => Ok(Leftovers::Kill),
        "wait" => Ok(Leftovers::Wait),
        "leave" => Ok(Leftovers::Leave),
        _ => Err("expected kill, wait or leave".to_owned()),
    }
}

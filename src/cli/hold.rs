//! The options of `dlock hold` and `dlock release`.
//! It must not know how a lock is taken, nor how processes are watched.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, ValueHint};

use super::{Resolver, Work, local, lock};
use crate::config::backend::BackendKind;
use crate::config::layers::{Layers, parse_digits};
use crate::config::setting::Setting;
use crate::core::name::LockName;
use crate::output::exit::{Failure, OrFail as _};

#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option")]
pub(crate) struct HoldArgs {
    /// Name of the lock, 1 to 255 bytes
    #[arg(hide_short_help = true, value_hint = ValueHint::Other)]
    name: OsString,

    /// Hold until PID ends; stop it if the lock is lost
    ///
    /// dlock stops the process and all its descendants: with --signal, and after --kill-after with SIGKILL.
    #[arg(long, help_heading = "Holding", value_name = "PID", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    pid: Option<OsString>,

    /// Accept a --pid that leads a terminal's session
    ///
    /// A login shell does that: if the lock is lost, dlock kills everything that runs in the terminal.
    #[arg(long, help_heading = "Holding", requires = "pid")]
    session_leader: bool,

    /// Hold until the end of standard input
    #[arg(long, help_heading = "Holding")]
    until_eof: bool,

    /// Hold in the background, return once the lock is held
    ///
    /// dlock prints text for the shell to evaluate: the variables of the lock, or exit with the status of dlock if it
    /// did not get the lock. Check the status first: h=$(dlock hold --background --pid $$ NAME) || exit; eval "$h"
    #[arg(long, help_heading = "Holding", conflicts_with_all = ["until_eof", "json"])]
    background: bool,

    /// Append messages of --background to FILE
    ///
    /// Without the option they go to syslog.
    #[arg(long, help_heading = "Holding", value_name = "FILE", requires = "background", value_hint = ValueHint::FilePath)]
    log_file: Option<OsString>,

    /// Print a JSON object instead of shell variables
    #[arg(long, help_heading = "Holding")]
    json: bool,

    #[command(flatten)]
    lock: lock::LockArgs,

    #[command(flatten)]
    local: local::LocalArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ReleaseArgs {
    #[arg(help = "Value of DLOCK_HOLD [default: this variable]", value_name = "HOLD", value_hint = ValueHint::Other)]
    hold: Option<OsString>,
}

/// The resolved options.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option")]
pub(crate) struct Options {
    pub(crate) name: LockName,
    /// All locks, that one among them, in the order in which they are taken.
    pub(crate) names: Vec<LockName>,
    pub(crate) lock: lock::Options,
    pub(crate) pid: Option<i32>,
    pub(crate) session_leader: bool,
    pub(crate) until_eof: bool,
    pub(crate) background: bool,
    /// File for the messages of a hold in the background; `None` means syslog.
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) json: bool,
}

impl HoldArgs {
    /// Resolves the options with the variables, the file and the defaults.
    pub(super) fn resolve(self, resolver: &mut Resolver) -> Result<Work, Failure> {
        let backend = local::resolve(resolver);
        let options = self.options(&resolver.layers, BackendKind::of(&backend))?;
        Ok(Work::Hold(backend?, options))
    }

    fn options(self, layers: &Layers, kind: BackendKind) -> Result<Options, Failure> {
        let pid = self.pid.as_deref().map(pid).transpose()?;
        let name = lock::name(&self.name)?;
        self.lock.refuse_with_several(layers, &[])?;
        Ok(Options {
            names: self.lock.names(&name)?,
            name,
            lock: lock::resolve(layers, kind)?,
            pid,
            session_leader: self.session_leader,
            until_eof: self.until_eof,
            background: self.background,
            log_file: layers.find(Setting::LogFile).map(|found| found.path()),
            json: self.json,
        })
    }
}

fn pid(text: &OsStr) -> Result<i32, Failure> {
    let pid = text.to_str().and_then(parse_digits::<i32>);
    let pid = pid.filter(|pid| *pid > 1);
    Ok(pid.ok_or_else(|| {
        anyhow!(
            "cannot use --pid '{}': expected a process id",
            text.display()
        )
    })?)
}

impl ReleaseArgs {
    /// The id of the process to end, as `dlock hold` printed it.
    pub(crate) fn resolve(self, layers: &Layers) -> Result<String, Failure> {
        let hold = self.hold.or_else(|| layers.variable("DLOCK_HOLD"));
        let hold = hold.ok_or_else(|| anyhow!("cannot release a lock: DLOCK_HOLD is not set"));
        let hold = hold.or_hint(
            "dlock release ends a dlock hold --background; dlock run releases its lock by itself",
        )?;
        Ok(hold.to_string_lossy().into_owned())
    }
}

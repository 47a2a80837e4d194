//! The options of `dlock fence` and their limits.
//! It must not know the fence's file, nor how a command is started.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, ValueHint};

use super::lock;
use crate::config::layers::{Layers, SettingValue};
use crate::core::fence::parse_token;
use crate::core::name::LockName;
use crate::core::proof::FencingToken;
use crate::output::exit::{Failure, OrFail};

#[derive(Args, Debug)]
pub(crate) struct FenceArgs {
    /// File with the highest token seen of each lock; dlock creates it
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,

    /// Command and its arguments; every word from here on belongs to the command
    ///
    /// Without a command dlock checks and records the token.
    #[arg(trailing_var_arg = true, value_hint = ValueHint::CommandWithArguments)]
    command: Vec<OsString>,

    #[arg(long, help = "Token to check [default: DLOCK_FENCING_TOKEN]", value_name = "NUMBER", value_hint = ValueHint::Other, allow_negative_numbers = true)]
    token: Option<OsString>,

    #[arg(long, help = "Name of the token's lock [default: DLOCK_NAME]", value_name = "NAME", value_hint = ValueHint::Other)]
    name: Option<OsString>,

    /// Print the highest token seen, and change nothing
    ///
    /// With a name: its token alone, 0 if there was none. Without a name: a line NAME TOKEN for each lock.
    #[arg(long, conflicts_with_all = ["token", "command", "reset"])]
    peek: bool,

    /// Set the highest token seen to NUMBER, even a lower one
    ///
    /// For an etcd that was restored from a backup: its tokens are lower than before, and the fence refuses
    /// them. After the reset the fence no longer refuses late writers from the time before.
    #[arg(long, value_name = "NUMBER", value_hint = ValueHint::Other, allow_negative_numbers = true, conflicts_with_all = ["token", "command"])]
    reset: Option<OsString>,
}

/// The resolved options.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) file: PathBuf,
    pub(crate) task: Task,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Enter {
        name: LockName,
        token: FencingToken,
        /// As the user typed it; empty when there is none.
        command: Vec<OsString>,
    },
    /// All locks if there is no name.
    Peek(Option<LockName>),
    Reset {
        name: LockName,
        token: FencingToken,
    },
}

impl FenceArgs {
    /// Resolves the options with the variables that the command of `dlock run` gets.
    pub(crate) fn resolve(self, layers: &Layers) -> Result<Options, Failure> {
        let name = flag_or_env(layers, self.name, "name", "DLOCK_NAME")
            .map(|found| found.parse(|text| text.parse().map_err(invalid_name)))
            .transpose()?;
        let task = if self.peek {
            Task::Peek(name)
        } else {
            let name = name
                .ok_or_else(|| anyhow!("cannot use the fence: no lock name is given"))
                .or_hint("give --name NAME; the command of dlock run has it in DLOCK_NAME")?;
            match self.reset {
                Some(text) => Task::Reset {
                    name,
                    token: SettingValue::flag("reset", text).parse(|text| number(text, 0))?,
                },
                None => Task::Enter {
                    token: token(layers, &name, self.token)?,
                    name,
                    command: self.command,
                },
            }
        };
        Ok(Options {
            file: self.file,
            task,
        })
    }
}

fn invalid_name(error: crate::core::name::InvalidName) -> String {
    error.to_string()
}

fn token(
    layers: &Layers,
    name: &LockName,
    flag: Option<OsString>,
) -> Result<FencingToken, Failure> {
    if flag.is_none()
        && let Some(token) = lock::held_token(layers, name, None)
    {
        return Ok(token);
    }
    flag_or_env(layers, flag, "token", "DLOCK_FENCING_TOKEN")
        .ok_or_else(|| anyhow!("no token to check"))
        .or_hint("give --token NUMBER; the command of dlock run has it in DLOCK_FENCING_TOKEN")?
        .parse(|text| number(text, 1))
}

fn number(text: &str, lowest: i64) -> Result<FencingToken, String> {
    parse_token(text)
        .filter(|token| token.0 >= lowest)
        .ok_or_else(|| format!("expected a whole number, {lowest} or more"))
}

/// A flag, else the variable that the command of `dlock run` got. Never from the file: it applies to one call only.
fn flag_or_env(
    layers: &Layers,
    text: Option<OsString>,
    option: &'static str,
    variable: &str,
) -> Option<SettingValue> {
    text.map(|text| SettingValue::flag(option, text))
        .or_else(|| layers.find_variable(variable.to_owned()))
}

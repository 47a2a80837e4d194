//! The words of the command line, their limits, and what they ask for.
//! It must not know tokio, etcd or processes.

pub(crate) mod connection;
pub(crate) mod doctor;
pub(crate) mod fence;
pub(crate) mod hold;
mod local;
pub(crate) mod lock;
pub(crate) mod look;
pub(crate) mod partial;
pub(crate) mod run;
mod signal;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use self::connection::{Connection, Output};
use crate::config::file::File;
use crate::config::layers::{self, Layers, SettingValue};
use crate::config::site::BackendConfig;
use crate::config::{self, Settings};
use crate::output::exit::Failure;
use crate::output::log;

/// Run a command under an etcd lock, and kill it before anybody else can get the lock
#[derive(Parser, Debug)]
#[command(name = "dlock", version, args_override_self = true)]
#[command(
    disable_help_subcommand = true,
    arg_required_else_help = false,
    max_term_width = 100
)]
struct DlockArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

// Only the one that is asked for is defined in full. A doc comment above the words of one would be said of it instead of
// what stands here.
#[derive(Subcommand, Debug)]
#[command(defer = true)]
enum Command {
    /// Run a command while holding a lock
    #[command(
        override_usage = "dlock run [OPTIONS] NAME [--] COMMAND [ARG]...\n       dlock run [OPTIONS] NAME -c STRING"
    )]
    Run(Box<run::RunArgs>),
    /// Refuse a token that is lower than the highest one seen, else run a command
    #[command(
        override_usage = "dlock fence [OPTIONS] FILE [[--] COMMAND [ARG]...]\n       dlock fence FILE --peek [--name NAME]\n       dlock fence FILE --reset NUMBER [--name NAME]"
    )]
    Fence(fence::FenceArgs),
    /// Hold a lock without a command
    Hold(Box<hold::HoldArgs>),
    /// End a dlock hold that runs in the background
    Release(hold::ReleaseArgs),
    /// List the locks
    Ls(look::ListArgs),
    /// Show the queue of a lock
    Status(look::StatusArgs),
    /// Test whether a token still has its lock
    Check(look::CheckArgs),
    /// Send away who has a lock, or waits for it
    Break(look::BreakArgs),
    /// Say what would go wrong tonight
    Doctor(doctor::DoctorArgs),
    /// Print the completions for a shell
    Completions(CompletionsArgs),
}

#[derive(Args, Debug)]
struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// What the command line asks for.
pub(crate) enum Request {
    /// Text for stdout, and nothing else to do.
    Print(String),
    /// Nothing was asked for: a text for who wonders what dlock is.
    Welcome(&'static str),
    Task(Box<Task>),
}

/// Work, and how to talk about it.
pub(crate) struct Task {
    pub(crate) output: log::LogFormat,
    /// What is odd but works, to be said once the log is there.
    pub(crate) warnings: Vec<String>,
    pub(crate) work: Work,
}

/// The work of one sub-command with all that it needs.
pub(crate) enum Work {
    Run(BackendConfig, run::Options),
    Fence(fence::Options),
    Hold(BackendConfig, hold::Options),
    Look(BackendConfig, look::ListRequest),
    Check(BackendConfig, look::Check),
    Break(Settings, look::Break),
    /// By the name of the process that holds the lock.
    Release(String),
    Doctor(Settings, doctor::Options),
}

/// The definitions with the variables' names, for help, man pages and completions.
pub fn command() -> clap::Command {
    fn with_variables(command: clap::Command) -> clap::Command {
        command
            .mut_args(|arg| match arg.get_long() {
                Some(long) if has_variable(long) => {
                    // clap wants names for the life of the process; only help and tests come here.
                    let name: &'static str = layers::variable(long).leak();
                    arg.env(name).hide_env_values(true)
                }
                _ => arg,
            })
            .mut_subcommands(with_variables)
    }
    with_variables(definitions())
}

/// All that the command line may say.
fn definitions() -> clap::Command {
    let mut command = with_subcommands(|_| true);
    command.build();
    command
}

/// What the command line may say of the sub-commands that are `wanted`.
fn with_subcommands(wanted: impl Fn(&str) -> bool) -> clap::Command {
    let all = Command::augment_subcommands(clap::Command::new(""));
    let wanted = all.get_subcommands().filter(|sub| wanted(sub.get_name()));
    DlockArgs::command()
        .subcommand_required(true)
        .subcommands(wanted.cloned())
}

/// What the words say. Each sub-command has all the options that stand before it, too, and to define them for those
/// that no word names is half of the instructions of reading a command line (callgrind). Only an error speaks of all.
fn read(argv: &[OsString]) -> Result<(DlockArgs, Command), clap::Error> {
    let read = |command: clap::Command| {
        let matches = command.try_get_matches_from(argv)?;
        Ok((
            DlockArgs::from_arg_matches(&matches)?,
            Command::from_arg_matches(&matches)?,
        ))
    };
    let named = |name: &str| argv.iter().any(|word| word == name);
    read(with_subcommands(named)).or_else(|_| read(with_subcommands(|_| true)))
}

/// `-c` is the command itself; help and version are no settings, and what others than `run` are asked for is of one
/// moment.
fn has_variable(long: &str) -> bool {
    !matches!(
        long,
        "command"
            | "help"
            | "version"
            | "token"
            | "name"
            | "peek"
            | "reset"
            | "pid"
            | "until-eof"
            | "background"
            | "json"
            | "watch"
            | "held"
            | "reason"
            | "yes"
            | "now"
    )
}

/// Every setting: its long option, its variable and etcdctl's variable that stands in for it.
pub fn settings() -> Vec<(String, String, Option<&'static str>)> {
    fn collect(command: &clap::Command, longs: &mut Vec<String>) {
        let own = command.get_arguments().filter_map(clap::Arg::get_long);
        longs.extend(own.filter(|long| has_variable(long)).map(str::to_owned));
        command
            .get_subcommands()
            .for_each(|sub| collect(sub, longs));
    }
    let mut longs = Vec::new();
    collect(&definitions(), &mut longs);
    let mut seen = BTreeSet::new();
    longs.retain(|long| seen.insert(long.clone()));
    let setting = |long: String| {
        let (variable, fall_back) = (layers::variable(&long), layers::fall_back(&long));
        (long, variable, fall_back)
    };
    longs.into_iter().map(setting).collect()
}

/// Reads the command line, the variables and the file.
pub(crate) fn parse(
    argv: Vec<OsString>,
    variables: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Request, Failure> {
    if argv.len() < 2 {
        return Ok(Request::Welcome(include_str!("welcome.txt")));
    }
    let (words, command) = match read(&argv) {
        Ok(words) => words,
        Err(error) => match error.kind() {
            ErrorKind::DisplayVersion => return Ok(Request::Print(error.render().to_string())),
            ErrorKind::DisplayHelp => {
                return Ok(Request::Print(
                    help(argv).unwrap_or(error).render().to_string(),
                ));
            }
            _ => return Err(usage::failure(&error)),
        },
    };
    let DlockArgs { connection, output } = words;
    let form = Globals {
        connection,
        output,
        variables,
    };
    match command {
        Command::Run(words) => form.task(|asked| words.resolve(asked)),
        Command::Hold(words) => form.task(|asked| words.resolve(asked)),
        Command::Ls(words) => form.task(|asked| words.resolve(asked)),
        Command::Status(words) => form.task(|asked| words.resolve(asked)),
        Command::Check(words) => form.task(|asked| words.resolve(asked)),
        Command::Break(words) => form.task(|asked| words.resolve(asked)),
        Command::Release(words) => {
            form.task(|asked| Ok(Work::Release(words.resolve(&asked.layers)?)))
        }
        Command::Fence(words) => form.task(|asked| Ok(Work::Fence(words.resolve(&asked.layers)?))),
        Command::Doctor(words) => form.task(|asked| words.resolve(asked)),
        Command::Completions(words) => Ok(Request::Print(completions(words.shell).to_owned())),
    }
}

/// What is said beside the words of a sub-command.
struct Globals<'a> {
    connection: Connection,
    output: Output,
    variables: &'a dyn Fn(&str) -> Option<OsString>,
}

/// The layers of settings, for the one sub-command that was asked for.
struct Resolver<'a> {
    layers: Layers<'a>,
    connection: &'a Connection,
    warnings: Vec<String>,
}

impl Globals<'_> {
    /// Reads the file, and puts together what `resolve` makes of everything.
    fn task(
        &self,
        resolve: impl FnOnce(&mut Resolver) -> Result<Work, Failure>,
    ) -> Result<Request, Failure> {
        let chosen = config::chosen_file(&self.connection, self.variables);
        let mut asked = Resolver {
            layers: Layers::new(self.variables, File::load(chosen, self.variables)?),
            connection: &self.connection,
            warnings: Vec::new(),
        };
        let output = output(&asked.layers, &self.output)?;
        let work = resolve(&mut asked)?;
        Ok(Request::Task(Box::new(Task {
            output,
            warnings: asked.warnings,
            work,
        })))
    }
}

impl Resolver<'_> {
    /// How etcd is reached.
    fn settings(&mut self) -> Result<Settings, Failure> {
        config::resolve(&self.layers, self.connection, &mut self.warnings)
    }
}

/// Whether a shell evaluates what is printed: `eval "$(dlock hold --background ...)"`, whatever may be wrong with the
/// rest of the words.
pub(crate) fn is_evaluated(argv: impl Iterator<Item = OsString>) -> bool {
    let words: Vec<OsString> = argv.skip(1).take_while(|word| word != "--").collect();
    let first = |one: &str| words.iter().position(|word| word == one);
    match (first("hold"), first("--background")) {
        // A command may be of dlock's own.
        (Some(hold), Some(_)) => first("run").is_none_or(|run| hold < run),
        _ => false,
    }
}

/// The help that was asked for, from the definitions that name the variables.
fn help(argv: Vec<OsString>) -> Option<clap::Error> {
    command().try_get_matches_from(argv).err()
}

fn completions(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => include_str!("../../completions/dlock.bash"),
        Shell::Zsh => include_str!("../../completions/_dlock"),
        Shell::Fish => include_str!("../../completions/dlock.fish"),
    }
}

fn output(layers: &Layers, flags: &Output) -> Result<log::LogFormat, Failure> {
    let count = (flags.verbose > 0).then(|| OsString::from(flags.verbose.to_string()));
    let verbose = layers.find(count.as_deref(), "verbose");
    let quiet = layers.find_switch(flags.quiet, "quiet")?;
    let level = match SettingValue::stronger(quiet, verbose)? {
        None => log::Level::WARN,
        Some(found) if found.option == "quiet" => log::Level::ERROR,
        Some(found) => {
            match found.parse(|text| {
                text.parse::<u8>()
                    .map_err(|_| "expected 0, 1 or 2".to_owned())
            })? {
                0 => log::Level::WARN,
                1 => log::Level::INFO,
                _ => log::Level::DEBUG,
            }
        }
    };
    let json = layers.find(flags.log_format.as_deref().map(OsStr::new), "log-format");
    let json = json.map_or(Ok(false), |found| {
        found.parse(|text| match text {
            "text" => Ok(false),
            "json" => Ok(true),
            _ => Err("expected text or json".to_owned()),
        })
    })?;
    Ok(log::LogFormat { level, json })
}

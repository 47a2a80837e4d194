//! The command line: its options, their limits, and the work that they request.
//! It must not know tokio, etcd or processes.

pub(crate) mod connection;
pub(crate) mod doctor;
pub(crate) mod fence;
pub(crate) mod history;
pub(crate) mod hold;
pub(crate) mod inspect;
mod local;
pub(crate) mod lock;
pub(crate) mod partial;
pub(crate) mod run;
mod signal;
#[cfg(test)]
mod tests;
mod usage;

use std::ffi::{OsStr, OsString};

use anyhow::anyhow;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Id, Parser, Subcommand, ValueEnum};

use self::connection::{Connection, Output};
use crate::config::backend::BackendConfig;
use crate::config::exposure::SettingWarning;
use crate::config::layers::{Flags, Layers, SettingValue, parse_digits};
use crate::config::setting::{Group, Setting};
use crate::config::{self, Settings};
use crate::output::exit::{Failure, OrFail};
use crate::output::log;

/// The usage is first, as in the help of GNU's tools.
const HELP_TEMPLATE: &str = "{usage-heading} {usage}\n{about}\n\n{all-args}{after-help}";

/// Where help goes on.
const MORE: &str = "More: dlock help COMMAND, man dlock";

/// The end of a sub-command's help: its examples, and where to read on.
macro_rules! examples {
    ($command:literal, $($line:literal),+) => {
        concat!(
            "Examples:\n", $("  ", $line, "\n",)+
            "More: dlock help ", $command, ", man dlock-", $command
        )
    };
}

/// The same for a sub-command that asks etcd.
macro_rules! examples_with_etcd {
    ($($word:literal),+) => {
        concat!(examples!($($word),+), ". Options of etcd and output: dlock -h")
    };
}

/// Run a command under a lock, and kill it before anybody else can get the lock
#[derive(Parser, Debug)]
#[command(name = "dlock", version, args_override_self = true, after_help = MORE)]
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

// Only the requested sub-command is defined in full. A doc comment on an args struct would replace the text here.
#[derive(Subcommand, Debug)]
#[command(defer = true)]
enum Command {
    /// Run a command while holding a lock
    #[command(
        override_usage = "dlock run [OPTIONS] NAME [--] COMMAND [ARG]...\n       dlock run [OPTIONS] NAME -c STRING",
        after_help = examples_with_etcd!(
            "run",
            "dlock run deploy -- ./deploy.sh",
            "dlock run -n -E 0 --min-hold 50s report -- ./report.sh  # cron on all hosts",
            "dlock run -w 5m backup -c 'pg_dump app | gzip >app.gz'"
        )
    )]
    Run(Box<run::RunArgs>),
    /// Hold a lock without a command
    #[command(
        override_usage = "dlock hold [OPTIONS] NAME",
        after_help = examples_with_etcd!(
            "hold",
            "h=$(dlock hold --background --pid $$ deploy) || exit; eval \"$h\"",
            "dlock hold --pid 4711 deploy",
            "dlock hold --until-eof deploy <pipe"
        )
    )]
    Hold(Box<hold::HoldArgs>),
    /// Release a lock that is held in the background
    #[command(after_help = examples!("release", "dlock release"))]
    Release(hold::ReleaseArgs),
    /// List the locks
    #[command(
        alias = "list",
        after_help = examples_with_etcd!("ls", "dlock ls", "dlock ls --watch deploy", "dlock ls --json | jq -r .name")
    )]
    Ls(inspect::ListArgs),
    /// Show the holders and waiters of a lock
    #[command(after_help = examples_with_etcd!("status", "dlock status deploy", "dlock status --held deploy && echo busy"))]
    Status(inspect::StatusArgs),
    /// Show who held a lock, for how long, and how it ended
    #[command(after_help = examples_with_etcd!("history", "dlock history backup", "dlock history --since 12h backup"))]
    History(history::HistoryArgs),
    /// Test whether a token still holds its lock
    #[command(after_help = examples_with_etcd!("check", "dlock check || exit", "dlock check --name deploy --token 4711"))]
    Check(inspect::CheckArgs),
    /// Ask a holder or waiter to give up a lock
    #[command(
        override_usage = "dlock break [OPTIONS] NAME --token NUMBER",
        after_help = examples_with_etcd!(
            "break",
            "dlock break deploy --token 4711 --reason 'release freeze'"
        )
    )]
    Break(inspect::BreakArgs),
    /// Refuse a token lower than the highest seen, else run a command
    #[command(
        override_usage = "dlock fence [OPTIONS] FILE [[--] COMMAND [ARG]...]\n       dlock fence FILE --peek [--name NAME]\n       dlock fence FILE --reset NUMBER [--name NAME]",
        after_help = examples!("fence", "dlock fence /srv/app/fence -- ./write-data", "dlock fence /srv/app/fence --peek")
    )]
    Fence(fence::FenceArgs),
    /// Check the servers, the settings and this machine
    #[command(after_help = examples_with_etcd!("doctor", "dlock doctor", "dlock doctor --ttl 10s --json"))]
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell
    #[command(after_help = examples!("completions", "dlock completions bash >/etc/bash_completion.d/dlock"))]
    Completions(CompletionsArgs),
}

#[derive(Args, Debug)]
struct CompletionsArgs {
    /// Shell that reads the script
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The request that the command line makes.
pub(crate) enum Request {
    /// Text for stdout; nothing else to do.
    Print(String),
    /// There are no arguments: an introduction to dlock, for stderr.
    Welcome(&'static str),
    Task(Box<Task>),
}

/// Work, and the form of its messages.
pub(crate) struct Task {
    pub(crate) output: log::LogFormat,
    /// Warnings about the settings; they wait until the log is set up.
    pub(crate) warnings: Vec<SettingWarning>,
    pub(crate) work: Work,
}

/// The work of one sub-command with all that it needs.
pub(crate) enum Work {
    Run(BackendConfig, run::Options),
    Fence(fence::Options),
    Hold(BackendConfig, hold::Options),
    List(BackendConfig, inspect::ListRequest),
    History(BackendConfig, history::Options),
    Check(BackendConfig, inspect::Check),
    Break(Settings, inspect::Break),
    /// The id of the process that holds the lock.
    Release(String),
    Doctor(BackendConfig, doctor::Options),
}

impl Work {
    /// Whether it needs a password or a private key.
    pub(crate) fn has_secrets(&self) -> bool {
        let (Self::Run(BackendConfig::Etcd(settings), _)
        | Self::Hold(BackendConfig::Etcd(settings), _)
        | Self::List(BackendConfig::Etcd(settings), _)
        | Self::History(BackendConfig::Etcd(settings), _)
        | Self::Check(BackendConfig::Etcd(settings), _)
        | Self::Break(settings, _)
        | Self::Doctor(BackendConfig::Etcd(settings), _)) = self
        else {
            return false;
        };
        settings.credentials.is_some() || settings.tls.key.is_some()
    }
}

/// The definitions with the variables' names, for help, man pages and completions.
pub fn command() -> clap::Command {
    fn with_variables(command: clap::Command) -> clap::Command {
        command
            .mut_args(|arg| match setting_of(arg.get_id()) {
                Some(setting) => {
                    // clap wants names for the life of the process; only help and tests come here.
                    let name: &'static str = setting.variable().leak();
                    arg.env(name).hide_env_values(true)
                }
                None => arg,
            })
            .mut_subcommands(with_variables)
    }
    with_variables(with_fitting_options(definitions()))
}

/// Hides options where they are no help: those of all sub-commands in the short help of each, and those of etcd in a
/// sub-command that never asks it.
fn with_fitting_options(command: clap::Command) -> clap::Command {
    let command = command.help_template(HELP_TEMPLATE);
    command.mut_subcommands(|sub| {
        let prints = sub.get_name() == "completions";
        let asks_etcd = !prints && !["fence", "release"].contains(&sub.get_name());
        sub.help_template(HELP_TEMPLATE).mut_args(|arg| {
            let useless = match setting_of(arg.get_id()).map(Setting::group) {
                Some(Group::Connection | Group::File) => !asks_etcd,
                Some(Group::Output) => prints,
                _ => false,
            };
            let common = arg.is_global_set() || arg.get_id() == "help";
            let arg = if useless { arg.hide(true) } else { arg };
            if common {
                arg.hide_short_help(true)
            } else {
                arg
            }
        })
    })
}

/// The definitions of all sub-commands and options.
fn definitions() -> clap::Command {
    let mut command = with_subcommands(|_| true);
    command.build();
    command
}

/// The definitions of the sub-commands that are `wanted`.
fn with_subcommands(wanted: impl Fn(&clap::Command) -> bool) -> clap::Command {
    let all = Command::augment_subcommands(clap::Command::new(""));
    let wanted = all.get_subcommands().filter(|sub| wanted(sub));
    DlockArgs::command()
        .subcommand_required(true)
        .subcommands(wanted.cloned())
}

/// Parses the arguments. Each sub-command repeats the global options, and defining them for sub-commands that no argument
/// names takes half of the instructions of parsing (callgrind). Only an error needs all of them.
fn read(argv: &[OsString]) -> Result<(Flags, Command), clap::Error> {
    let read = |mut command: clap::Command| {
        let matches = command.try_get_matches_from_mut(argv)?;
        usage::refuse_detached_value(&mut command, &matches, argv)?;
        Ok((flags(&matches), Command::from_arg_matches(&matches)?))
    };
    let named = |sub: &clap::Command| {
        let mut names = sub.get_all_aliases().chain([sub.get_name()]);
        names.any(|name| argv.iter().any(|word| word == name))
    };
    read(with_subcommands(named)).or_else(|_| read(with_subcommands(|_| true)))
}

/// The flags on the command line, before the sub-command or after it.
fn flags(matches: &ArgMatches) -> Flags {
    // clap hands the global options on to the sub-command.
    let sub = matches.subcommand().map_or(matches, |(_, sub)| sub);
    let given = |id: &&Id| sub.value_source(id.as_str()) == Some(ValueSource::CommandLine);
    let flag = |id: &Id| {
        let texts: Vec<&OsStr> = sub.get_raw(id.as_str())?.collect();
        Some((setting_of(id)?, texts.join(OsStr::new(","))))
    };
    sub.ids().filter(given).filter_map(flag).collect()
}

/// The setting that an option sets: a field of an `Args` struct and the long option have the same name.
fn setting_of(id: &Id) -> Option<Setting> {
    Setting::named(&id.as_str().replace('_', "-"))
}

/// Every setting: its long option, its variable, and etcdctl's variable as a fallback.
pub fn settings() -> impl Iterator<Item = (&'static str, String, Option<&'static str>)> {
    let all = Setting::ALL.iter();
    all.map(|it| (it.name(), it.variable(), it.etcdctl_variable()))
}

/// Reads the command line, the variables and the file.
pub(crate) fn parse(
    argv: Vec<OsString>,
    variables: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Request, Failure> {
    if argv.len() < 2 {
        return Ok(Request::Welcome(include_str!("welcome.txt")));
    }
    let argv = as_option(argv);
    let (flags, command) = match read(&argv) {
        Ok(read) => read,
        Err(error) => match error.kind() {
            ErrorKind::DisplayVersion => return Ok(Request::Print(error.render().to_string())),
            ErrorKind::DisplayHelp => {
                return Ok(Request::Print(help(&argv)));
            }
            _ => return Err(usage::failure(&error, &definitions())),
        },
    };
    match command {
        Command::Run(options) => task(flags, variables, |resolver| options.resolve(resolver)),
        Command::Hold(options) => task(flags, variables, |resolver| options.resolve(resolver)),
        Command::Ls(options) => task(flags, variables, |resolver| options.resolve(resolver)),
        Command::Status(options) => task(flags, variables, |resolver| options.resolve(resolver)),
        Command::History(options) => task(flags, variables, |resolver| options.resolve(resolver)),
        Command::Check(options) => task(flags, variables, |resolver| options.resolve(resolver)),
        Command::Break(options) => task(flags, variables, |resolver| options.resolve(resolver)),
        Command::Doctor(options) => task(flags, variables, |resolver| options.resolve(resolver)),
        Command::Release(options) => task(flags, variables, |resolver| {
            Ok(Work::Release(options.resolve(&resolver.layers)?))
        }),
        Command::Fence(options) => task(flags, variables, |resolver| {
            Ok(Work::Fence(options.resolve(&resolver.layers)?))
        }),
        Command::Completions(options) => Ok(Request::Print(completions(options.shell).to_owned())),
    }
}

/// `dlock help run` as `dlock run --help`.
fn as_option(mut argv: Vec<OsString>) -> Vec<OsString> {
    if argv.get(1).is_some_and(|word| word == "help") {
        argv.remove(1);
        argv.push("--help".into());
    }
    argv
}

/// Reads the file, and resolves the options of the sub-command with `resolve`.
fn task(
    flags: Flags,
    variables: &dyn Fn(&str) -> Option<OsString>,
    resolve: impl FnOnce(&mut Resolver) -> Result<Work, Failure>,
) -> Result<Request, Failure> {
    let mut resolver = Resolver {
        layers: Layers::load(flags, variables)?,
        warnings: Vec::new(),
    };
    let output = output(&resolver.layers)?;
    let work = resolve(&mut resolver)?;
    Ok(Request::Task(Box::new(Task {
        output,
        warnings: resolver.warnings,
        work,
    })))
}

/// The layers of settings, for the requested sub-command.
struct Resolver<'a> {
    layers: Layers<'a>,
    warnings: Vec<SettingWarning>,
}

impl Resolver<'_> {
    /// The settings of the connection to etcd.
    fn settings(&mut self) -> Result<Settings, Failure> {
        config::resolve(&self.layers, &mut self.warnings)
    }
}

/// Whether a shell evaluates the output: `dlock hold --background ...`, even if the other arguments are wrong.
pub(crate) fn is_evaluated(argv: impl Iterator<Item = OsString>) -> bool {
    let dlock_args: Vec<OsString> = argv.skip(1).take_while(|word| word != "--").collect();
    let first = |one: &str| dlock_args.iter().position(|word| word == one);
    match (first("hold"), first("--background")) {
        // The command of `dlock run` may itself be a dlock.
        (Some(hold), Some(_)) => first("run").is_none_or(|run| hold < run),
        _ => false,
    }
}

/// The requested help. The short form is one screen; the long form names the variables, and has the options of all
/// sub-commands at its end.
fn help(argv: &[OsString]) -> String {
    let long = argv.iter().any(|word| word == "--help");
    let mut root = command();
    let requested = partial::sub_command(argv)
        .and_then(|name| root.find_subcommand_mut(name))
        .cloned();
    let mut command = requested.unwrap_or(root);
    if !long {
        return shortened(command).render_help().to_string();
    }
    let common: Vec<Id> = command
        .get_arguments()
        .filter(|arg| arg.is_global_set())
        .map(|arg| arg.get_id().clone())
        .collect();
    for id in common {
        // Puts the argument behind the others: the order of the headings is that of the arguments.
        command = command.mut_arg(id, |arg| arg);
    }
    command.render_long_help().to_string()
}

/// Without the variables' names.
fn shortened(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| arg.hide_env(true))
}

fn completions(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => include_str!("../../completions/dlock.bash"),
        Shell::Zsh => include_str!("../../completions/_dlock"),
        Shell::Fish => include_str!("../../completions/dlock.fish"),
    }
}

fn output(layers: &Layers) -> Result<log::LogFormat, Failure> {
    let quiet = layers.find_switch(Setting::Quiet)?;
    let level = match SettingValue::stronger(quiet, layers.find(Setting::Verbose))? {
        (Some(_), _) => log::Level::ERROR,
        (None, Some(verbose)) => match verbose.parse(parse_verbosity)? {
            0 => log::Level::WARN,
            1 => log::Level::INFO,
            _ => log::Level::DEBUG,
        },
        (None, None) => log::Level::WARN,
    };
    let json = layers.parse(Setting::LogFormat, |text| match text {
        "text" => Ok(false),
        "json" => Ok(true),
        _ => Err("expected text or json".to_owned()),
    })?;
    let filter = match layers.variable("DLOCK_LOG") {
        None if level == log::Level::ERROR => log::quiet_filter(),
        None => log::level_filter(level),
        Some(directives) => {
            let directives = directives.to_string_lossy();
            log::parse_filter(&directives, level)
                .map_err(|error| anyhow!("cannot use DLOCK_LOG '{directives}': {error}"))
                .or_hint("it takes LEVEL and TARGET=LEVEL, separated by commas: etcd=debug,info")?
        }
    };
    Ok(log::LogFormat {
        filter,
        json: json == Some(true),
    })
}

fn parse_verbosity(text: &str) -> Result<u8, String> {
    parse_digits(text).ok_or_else(|| "expected 0, 1 or 2".to_owned())
}

//! Tests of the command line with variables and a file.
//! No test here starts a process or a connection.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fence::Task;
use super::run::Options;
use super::{Request, Work, definitions, fence, parse, setting_of, settings, with_subcommands};
use crate::config::Settings;
use crate::config::backend::BackendConfig;
use crate::config::exposure::SettingWarning;
use crate::config::setting::Setting;
use crate::core::proof::FencingToken;
use crate::core::request::Leftovers;
use crate::core::request::{Mode, Supersede, WaitPolicy};
use crate::core::time::LeaseTimings;
use crate::output::exit::{Exit, Failure};
use crate::output::log::{self, Level};

/// A directory that the end of the test removes.
struct TestDir(PathBuf);

impl TestDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("dlock-cli-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.into_os_string().into_string().unwrap()
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn parse_args(args: &[&str], set: &[(&str, &str)]) -> Result<Request, Failure> {
    let all = std::iter::once("dlock")
        .chain(args.iter().copied())
        .map(OsString::from);
    let variables = |name: &str| {
        set.iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| OsString::from(value))
    };
    parse(all.collect(), &variables)
}

/// A run with its settings.
struct Run {
    settings: Settings,
    options: Options,
    output: log::LogFormat,
    warnings: Vec<SettingWarning>,
}

fn as_run(task: super::Task) -> Run {
    let Work::Run(BackendConfig::Etcd(settings), options) = task.work else {
        panic!("not a run in etcd");
    };
    Run {
        settings,
        options,
        output: task.output,
        warnings: task.warnings,
    }
}

fn run_with(args: &[&str], set: &[(&str, &str)]) -> Run {
    match parse_args(args, set) {
        Ok(Request::Task(task)) => as_run(*task),
        Ok(Request::Print(text)) => panic!("{text}"),
        Ok(Request::Welcome(text)) => panic!("{text}"),
        Err(failure) => panic!("{failure:?}"),
    }
}

fn run(args: &[&str]) -> Options {
    run_with(args, &[]).options
}

/// Message and hint; every refusal has exit status 125.
fn refused(args: &[&str], set: &[(&str, &str)]) -> String {
    let Err(failure) = parse_args(args, set) else {
        panic!("{args:?} is accepted");
    };
    assert_eq!(failure.exit, Exit::Failed);
    let text = format!(
        "{:#}\nhint: {}",
        failure.error,
        failure.hint.unwrap_or_default()
    );
    assert_eq!(text.lines().count(), 2, "{text}");
    text
}

/// "dlock does not look up SRV records in DNS" (dlock(1)), and follows none of the variables that ask for it.
#[test]
fn a_variable_of_etcdctl_that_dlock_does_not_follow_is_refused_unless_a_setting_overrides_it() {
    let run = ["run", "x", "y"];
    let https = ("ETCDCTL_ENDPOINTS", "https://a");
    for (variable, value, other) in [
        ("ETCDCTL_DISCOVERY_SRV", "example.com", https),
        ("ETCDCTL_DISCOVERY_SRV_NAME", "locks", https),
        ("ETCDCTL_INSECURE_DISCOVERY", "false", https),
        ("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "true", https),
        ("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "nonsense", https),
        (
            "ETCDCTL_INSECURE_TRANSPORT",
            "false",
            ("ETCDCTL_ENDPOINTS", "a"),
        ),
    ] {
        let text = refused(&run, &[(variable, value), other]);
        assert!(
            text.starts_with(&format!("cannot follow {variable} '{value}'\nhint: ")),
            "{text}"
        );
    }
    let directory = TestDir::new("unsupported");
    let cacert = directory.file("ca", "x");
    for set in [
        &[
            ("ETCDCTL_DISCOVERY_SRV", "example.com"),
            ("DLOCK_ENDPOINTS", "a"),
        ][..],
        &[("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "false"), https],
        &[
            ("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "1"),
            https,
            ("DLOCK_CACERT", &cacert),
        ],
        // Without TLS no certificate is verified.
        &[
            ("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "1"),
            ("ETCDCTL_ENDPOINTS", "a"),
        ],
        &[("ETCDCTL_INSECURE_TRANSPORT", "false"), https],
        &[("ETCDCTL_INSECURE_TRANSPORT", "true")],
    ] {
        run_with(&run, set);
    }
    // Locks of this machine have nothing to do with etcd.
    parse_args(
        &["run", "--local", "x", "y"],
        &[("ETCDCTL_DISCOVERY_SRV", "a")],
    )
    .unwrap();
}

#[test]
fn a_value_after_a_blank_is_refused_where_it_belongs_after_an_equals_sign() {
    for (args, option, word) in [
        (
            &["run", "--local", "/tmp/d", "sleep", "1"][..],
            "--local",
            "/tmp/d",
        ),
        (&["run", "--local", "src", "sleep", "1"], "--local", "src"),
        (
            &["run", "x", "--local", "/bin/true"],
            "--local",
            "/bin/true",
        ),
        (&["hold", "--local", "/tmp"], "--local", "/tmp"),
        (&["ls", "--local", "/tmp"], "--local", "/tmp"),
        (
            &["run", "--supersede", "holder", "foo", "--", "true"],
            "--supersede",
            "holder",
        ),
        (
            &["run", "foo", "--supersede", "waiters", "--", "true"],
            "--supersede",
            "waiters",
        ),
    ] {
        let text = refused(args, &[]);
        assert!(
            text.contains(&format!("'{option}' takes its value after '='"))
                && text.contains(&format!("hint: write {option}={word}, or")),
            "{args:?}: {text}"
        );
    }
    for args in [
        &["run", "--local", "x", "y"][..],
        &["run", "--local", "--", "/tmp", "y"],
        &["run", "--local=/tmp", "/tmp", "y"],
        &["run", "--local", "-n", "/tmp", "y"],
        &["run", "x", "y", "--local", "/tmp"],
        &["run", "--supersede", "x", "holder"],
        &["run", "--supersede=holder", "holder", "y"],
        &["run", "x", "--", "y", "--supersede", "holder"],
    ] {
        assert!(parse_args(args, &[]).is_ok(), "{args:?}");
    }
}

#[test]
fn the_default_endpoint_can_be_forbidden() {
    let (run, required) = (["run", "x", "y"], ("DLOCK_REQUIRE_CONFIG", "1"));
    let text = refused(&run, &[required]);
    assert!(
        text.starts_with("no endpoints are set, and DLOCK_REQUIRE_CONFIG forbids the built-in default '127.0.0.1:2379'\nhint: "),
        "{text}"
    );
    assert!(refused(&["run", "--require-config", "x", "y"], &[]).contains("--require-config"));
    run_with(&run, &[required, ("ETCDCTL_ENDPOINTS", "a")]);
    run_with(&run, &[("DLOCK_REQUIRE_CONFIG", "0")]);
}

fn endpoints(run: &Run) -> String {
    let shown: Vec<String> = run
        .settings
        .endpoints
        .iter()
        .map(ToString::to_string)
        .collect();
    shown.join(" ")
}

#[test]
fn options_stop_at_the_command() {
    for (args, command) in [
        (
            &["run", "x", "sh", "-c", "echo -n"][..],
            &["sh", "-c", "echo -n"][..],
        ),
        (&["run", "x", "--", "cmd", "-n", "-w"], &["cmd", "-n", "-w"]),
        (
            &["run", "x", "cmd", "--", "-n", "--"],
            &["cmd", "--", "-n", "--"],
        ),
        (&["run", "x", "--", "--", "y"], &["--", "y"]),
        (&["run", "--", "x", "cmd", "-q"], &["cmd", "-q"]),
        (
            &["run", "x", "cmd", "--endpoints", "nonsense:x"],
            &["cmd", "--endpoints", "nonsense:x"],
        ),
        (
            &["run", "x", "cmd", "", "a b", "--help", "-V"],
            &["cmd", "", "a b", "--help", "-V"],
        ),
        (&["run", "x", ""], &[""]),
    ] {
        let options = run(args);
        assert_eq!(options.command, command, "{args:?}");
        assert_eq!(options.name.to_string(), "x");
        assert_eq!(options.lock.request.wait_policy, WaitPolicy::Forever);
    }
    for args in [
        &["run", "-n", "x", "cmd"][..],
        &["run", "x", "-n", "--", "cmd"],
        &["run", "x", "-n", "cmd"],
        &["run", "-w0", "x", "cmd"],
        &["run", "-w", "0", "x", "cmd"],
    ] {
        let options = run(args);
        assert_eq!(options.command, ["cmd"], "{args:?}");
        assert_eq!(
            options.lock.request.wait_policy,
            WaitPolicy::NoWait,
            "{args:?}"
        );
    }
}

#[test]
fn arguments_need_not_be_text() {
    let odd = OsString::from_vec(vec![b'-', 0xff, b' ']);
    let argv = ["dlock", "run", "x", "cmd"].map(OsString::from);
    let argv = argv.into_iter().chain([odd.clone()]).collect();
    let Ok(Request::Task(task)) = parse(argv, &|_| None) else {
        panic!("refused");
    };
    assert_eq!(
        as_run(*task).options.command,
        [OsString::from("cmd"), odd.clone()]
    );
    let argv = vec!["dlock".into(), "run".into(), odd, "cmd".into()];
    assert!(parse(argv, &|_| None).is_err());
    let argv = vec![
        "dlock".into(),
        "run".into(),
        OsString::from_vec(vec![0xff]),
        "cmd".into(),
    ];
    let failure = parse(argv, &|_| None).err().unwrap();
    assert!(failure.error.to_string().contains("UTF-8"));
}

fn fence(args: &[&str], set: &[(&str, &str)]) -> fence::Options {
    let Ok(Request::Task(task)) = parse_args(args, set) else {
        panic!("{args:?} is refused");
    };
    let Work::Fence(options) = task.work else {
        panic!("not a fence");
    };
    options
}

#[test]
fn a_fence_takes_name_and_token_from_flags_or_the_lock_around_it() {
    let name = || "job".parse().unwrap();
    let enter = |token, command: &[&str]| Task::Enter {
        name: name(),
        token: FencingToken(token),
        command: command.iter().map(OsString::from).collect(),
    };
    let inside = [("DLOCK_NAME", "job"), ("DLOCK_FENCING_TOKEN", "33")];
    let options = fence(&["fence", "f", "cmd", "--token", "5"], &inside);
    assert_eq!(options.file, Path::new("f"));
    assert_eq!(options.task, enter(33, &["cmd", "--token", "5"]));
    let options = fence(&["fence", "--token=34", "f", "--", "cmd"], &inside);
    assert_eq!(options.task, enter(34, &["cmd"]));
    let options = fence(&["fence", "f", "--name", "job", "--token", "1"], &[]);
    assert_eq!(options.task, enter(1, &[]));

    assert_eq!(fence(&["fence", "f", "--peek"], &[]).task, Task::Peek(None));
    let named = fence(&["fence", "f", "--peek"], &inside);
    assert_eq!(named.task, Task::Peek(Some(name())));
    let (name, token) = (name(), FencingToken(0));
    let reset = fence(&["fence", "f", "--reset", "0"], &inside);
    assert_eq!(reset.task, Task::Reset { name, token });

    // An option that applies to one call has no variable and no key in the file.
    let set = [
        ("DLOCK_TOKEN", "5"),
        ("DLOCK_RESET", "5"),
        ("DLOCK_PEEK", "1"),
    ];
    let text = refused(&["fence", "f"], &[&set[..], &inside[..1]].concat());
    assert!(text.starts_with("no token to check"), "{text}");
    let text = refused(&["fence", "f"], &[inside[0], ("DLOCK_FENCING_TOKEN", "x")]);
    assert!(text.contains("DLOCK_FENCING_TOKEN 'x'"), "{text}");
}

#[test]
fn a_shell_string_is_run_by_the_shell_of_the_user() {
    assert_eq!(
        run(&["run", "x", "-c", "a | b"]).command,
        ["/bin/sh", "-c", "a | b"]
    );
    assert_eq!(
        run(&["run", "-c", "-n", "x"]).command,
        ["/bin/sh", "-c", "-n"]
    );
    assert_eq!(run(&["run", "x", "-c", ""]).command, ["/bin/sh", "-c", ""]);
    let bash = run_with(&["run", "x", "--command=ls"], &[("SHELL", "/bin/bash")]);
    assert_eq!(bash.options.command, ["/bin/bash", "-c", "ls"]);
    let service = run_with(&["run", "x", "-cls"], &[("SHELL", "/usr/sbin/nologin")]);
    assert_eq!(service.options.command, ["/bin/sh", "-c", "ls"]);
    assert!(refused(&["run", "x", "-c", "a", "b"], &[]).contains("-c together with the command"));
}

#[test]
fn a_run_without_options_has_the_defaults() {
    let run = run_with(&["run", "x", "cmd"], &[]);
    let options = &run.options;
    assert_eq!(options.lock.ttl, Duration::from_secs(30));
    assert_eq!(options.lock.grace, Duration::from_secs(5));
    assert_eq!((options.lock.conflict, options.lock.signal), (75, 15));
    assert_eq!(options.leftovers, Leftovers::Kill);
    assert_eq!(options.lock.note, None);
    assert_eq!(endpoints(&run), "http://127.0.0.1:2379");
    assert_eq!(run.settings.prefix, "dlock/");
    assert_eq!(run.settings.cluster_id, None);
    assert_eq!(run.settings.connect_timeout(), Duration::from_secs(10));
    assert!(run.settings.credentials.is_none() && run.warnings.is_empty());
    assert!(!run.output.json && run.output.filter == log::level_filter(Level::WARN));
}

/// "With --no-wait dlock gives etcd 3s for its first answer, unless --connect-timeout is set"
#[test]
fn a_run_that_does_not_wait_gives_etcd_three_seconds() {
    let limit = |args: &[&str], set: &[(&str, &str)]| {
        let run = run_with(&[&["run"], args, &["x", "y"]].concat(), set);
        let policy = run.options.lock.request.wait_policy;
        run.settings.first_answer_limit(policy).as_secs()
    };
    let set = ("DLOCK_CONNECT_TIMEOUT", "20");
    for (args, set, seconds) in [
        (&[][..], &[][..], 10),
        (&["-n"], &[], 3),
        (&["-w0"], &[], 3),
        (&["-n", "--connect-timeout=5"], &[], 5),
        (&["-n"], &[set], 20),
        (&[], &[set], 20),
        (&["-w", "15"], &[set], 15),
        (&["-w", "15"], &[], 10),
    ] {
        assert_eq!(limit(args, set), seconds, "{args:?} {set:?}");
    }
}

#[test]
fn every_option_has_its_effect() {
    let options = run(&[
        "run",
        "-w",
        "1m30s",
        "-E",
        "0",
        "--ttl",
        "1m",
        "-k",
        "2",
        "--signal",
        "int",
        "--note",
        "n",
        "--leftovers",
        "wait",
        "job/nightly",
        "cmd",
    ]);
    assert_eq!(
        options.lock.request.wait_policy,
        WaitPolicy::Timeout(Duration::from_secs(90))
    );
    assert_eq!((options.lock.conflict, options.lock.signal), (0, 2));
    assert_eq!(
        (options.lock.ttl, options.lock.grace),
        (Duration::from_mins(1), Duration::from_secs(2))
    );
    assert_eq!(options.lock.note.as_deref(), Some("n"));
    assert_eq!(options.leftovers, Leftovers::Wait);
    assert_eq!(
        run(&["run", "--ttl", "5", "x", "y"]).lock.grace,
        Duration::from_secs(1)
    );
    assert_eq!(
        run(&["run", "--ttl=5", "--ttl=6", "x", "y"]).lock.ttl,
        Duration::from_secs(6)
    );
}

#[test]
fn nonsense_is_refused() {
    for (args, part) in [
        (&["-v"][..], "subcommand"),
        (&["nonsense"], "dlock run NAME -- COMMAND"),
        (&["run"], "missing argument: NAME"),
        (&["run", "x"], "no command to run"),
        (&["run", "x", "-n"], "no command to run"),
        (&["run", "", "y"], "must not be empty"),
        (&["run", "a\nb", "y"], "control characters"),
        (
            &["run", "-n", "-w", "5", "x", "y"],
            "--no-wait together with --wait",
        ),
        (
            &["run", "-q", "-v", "x", "y"],
            "--quiet together with --verbose",
        ),
        (
            &["run", "-E", "256", "x", "y"],
            "--conflict-exit-code '256'",
        ),
        (&["run", "-E", "-1", "x", "y"], "0 to 255"),
        (&["run", "-E", "+1", "x", "y"], "0 to 255"),
        (&["run", "-w", "soon", "x", "y"], "--wait 'soon'"),
        (&["run", "-w", "-5", "x", "y"], "negative"),
        (&["run", "--ttl", "4", "x", "y"], "5s to 24h"),
        (&["run", "--ttl", "25h", "x", "y"], "5s to 24h"),
        (&["run", "--ttl", "5.5", "x", "y"], "whole seconds"),
        (&["run", "-k", "14.6", "x", "y"], "at most 14s 500ms"),
        (&["run", "--signal", "NOPE", "x", "y"], "--signal 'NOPE'"),
        (&["run", "--leftovers", "nope", "x", "y"], "nope"),
        (&["run", "--log-format", "xml", "x", "y"], "xml"),
        (&["run", "--tt", "5", "x", "y"], "--ttl"),
        (&["run", "--endpoints", "a:99999", "x", "y"], "'a:99999'"),
        (
            &["run", "--endpoints", "http://a,https://b", "x", "y"],
            "all https",
        ),
        (&["run", "--prefix", "", "x", "y"], "must not be empty"),
        (
            &["run", "--prefix=dlock/lock", "x", "y"],
            "those of locks with the prefix 'dlock/'",
        ),
        (
            &["run", "--prefix", "a\u{1}", "x", "y"],
            "control characters",
        ),
        (&["run", "--connect-timeout", "0", "x", "y"], "more than 0"),
        (
            &["run", "--cluster-id", "main", "x", "y"],
            "as dlock doctor prints it",
        ),
        (&["run", "--cacert", "/nowhere/x", "x", "y"], "'/nowhere/x'"),
        (&["run", "--cert", "/nowhere/x", "x", "y"], "without --key"),
        (&["run", "--key", "/nowhere/x", "x", "y"], "without --cert"),
        (
            &["run", "--user", "alice", "x", "y"],
            "no password is given",
        ),
        (&["run", "--user", ":x", "x", "y"], "user is empty"),
        (&["run", "--user", "alice:", "x", "y"], "password is empty"),
        (
            &["run", "--password-file", "/nowhere/x", "x", "y"],
            "no user is given",
        ),
        (&["run", "--config", "/nowhere/x", "x", "y"], "'/nowhere/x'"),
        (&["completions", "ksh"], "ksh"),
    ] {
        let text = refused(args, &[]);
        assert!(text.contains(part), "{args:?}: {text}");
        assert!(
            !text.contains("error:") && !text.contains('\u{1b}'),
            "{text}"
        );
    }
    let text = refused(&["run", "-k", "14.6", "x", "y"], &[]);
    assert!(text.contains("--ttl 31s or more"), "{text}");
    assert_eq!(
        run(&["run", "-k", "14.5", "x", "y"]).lock.grace,
        Duration::from_millis(14500)
    );
}

#[test]
fn a_number_with_a_sign_is_refused() {
    for args in [
        &["check", "--name=x", "--token=+5"][..],
        &["break", "x", "--token=+5"],
        &["fence", "f", "--name=x", "--token=+5"],
        &["fence", "f", "--name=x", "--reset=+5"],
        &["hold", "--pid=+5", "x"],
        &["run", "--slots=+5", "x", "y"],
        &["run", "--endpoints=a:+5", "x", "y"],
    ] {
        assert!(refused(args, &[]).contains("+5'"), "{args:?}");
    }
    let text = refused(&["run", "x", "y"], &[("DLOCK_VERBOSE", "+1")]);
    assert!(text.contains("DLOCK_VERBOSE '+1'"), "{text}");
}

#[test]
fn the_time_limit_of_break_is_no_setting() {
    let wait = |args: &[&str]| {
        let args = [&["break", "x", "--token=5"], args].concat();
        match parse_args(&args, &[("DLOCK_WAIT", "7")]) {
            Ok(Request::Task(task)) => match task.work {
                Work::Break(_, order) => order.wait,
                _ => panic!("not a break"),
            },
            _ => panic!("{args:?} is refused"),
        }
    };
    assert_eq!(wait(&[]), Duration::from_secs(30));
    assert_eq!(wait(&["-w5"]), Duration::from_secs(5));
    assert!(refused(&["break", "x", "--token=5", "-wx"], &[]).contains("--wait 'x'"));
}

#[test]
fn help_and_version_are_for_stdout() {
    for args in [
        &["--help"][..],
        &["-h"],
        &["run", "--help"],
        &["run", "x", "--help"],
        &["completions", "-h"],
    ] {
        let Ok(Request::Print(text)) = parse_args(args, &[]) else {
            panic!("{args:?}");
        };
        assert!(text.contains("Usage: dlock"), "{text}");
    }
    let Ok(Request::Print(text)) = parse_args(&["run", "--help"], &[]) else {
        panic!("refused");
    };
    assert!(
        text.contains("[env: DLOCK_TTL]") && text.contains("[env: DLOCK_CLIENT_KEY]"),
        "{text}"
    );
    assert!(
        matches!(parse_args(&["--version"], &[]), Ok(Request::Print(text)) if text.starts_with("dlock "))
    );
    assert!(
        matches!(parse_args(&["completions", "bash"], &[]), Ok(Request::Print(text)) if text.contains("dlock"))
    );
}

/// The short help of a sub-command, or of dlock itself, on a terminal of 80 columns.
fn short_help(sub: &str) -> String {
    let mut root = super::command();
    let command = root.find_subcommand_mut(sub).cloned().unwrap_or(root);
    super::shortened(command)
        .term_width(80)
        .render_help()
        .to_string()
}

fn subcommands() -> Vec<String> {
    let root = definitions();
    let names = root.get_subcommands().map(clap::Command::get_name);
    names.map(str::to_owned).collect()
}

#[test]
fn a_short_help_fits_a_screen() {
    for sub in subcommands().iter().map(String::as_str).chain([""]) {
        let text = short_help(sub);
        // `hold` has a group of options more than `run`.
        let most = if sub == "hold" { 46 } else { 41 };
        assert!(text.lines().count() <= most, "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(
            text.starts_with("Usage: dlock") && text.contains("More: dlock help"),
            "{text}"
        );
        assert!(
            !text.contains("[env:") && !text.contains("; default"),
            "{text}"
        );
    }
    let run = short_help("run");
    let headings = run
        .lines()
        .filter(|line| line.ends_with(':'))
        .collect::<Vec<_>>();
    assert_eq!(
        headings,
        [
            "Waiting:",
            "Sharing:",
            "Timing:",
            "Stopping:",
            "Reporting:",
            "Lock store:",
            "Examples:"
        ]
    );
    assert_eq!(
        run.split("Examples:\n")
            .nth(1)
            .unwrap()
            .matches("  dlock run ")
            .count(),
        3
    );
}

#[test]
fn the_options_of_all_subcommands_are_in_one_short_help() {
    assert!(short_help("").contains("--endpoints") && short_help("").contains("--log-format"));
    for sub in subcommands() {
        let text = short_help(&sub);
        assert!(
            !text.contains("--endpoints") && !text.contains("--log-format"),
            "{text}"
        );
        let Ok(Request::Print(long)) = parse_args(&["help", &sub], &[]) else {
            panic!("no help of {sub}");
        };
        let asks_etcd = !["fence", "release", "completions"].contains(&&*sub);
        assert_eq!(long.contains("--endpoints"), asks_etcd, "{long}");
        assert_eq!(
            long.contains("--log-format"),
            sub != "completions",
            "{long}"
        );
        // Behind those of the sub-command.
        let own = long.find("--local").unwrap_or(0);
        assert!(
            !asks_etcd || sub == "break" || own < long.find("--endpoints").unwrap(),
            "{long}"
        );
    }
}

#[test]
fn help_is_that_of_the_subcommand_wherever_it_is_requested() {
    let print = |args: &[&str]| match parse_args(args, &[]) {
        Ok(Request::Print(text)) => text,
        _ => panic!("{args:?}"),
    };
    for args in [
        &["run", "-h"][..],
        &["--prefix", "ls", "run", "-h"],
        &["run", "x", "-n", "-h"],
        &["run", "-qh"],
    ] {
        assert!(print(args).starts_with("Usage: dlock run "), "{args:?}");
    }
    for args in [
        &["ls", "--help"][..],
        &["list", "--help"],
        &["help", "list"],
    ] {
        assert_eq!(print(args), print(&["help", "ls"]), "{args:?}");
    }
    assert_eq!(print(&["help"]), print(&["--help"]));
}

#[test]
fn a_word_of_another_tool_gets_a_hint() {
    for (word, hint) in [
        ("lock", "dlock run NAME"),
        ("exec", "dlock run NAME"),
        ("unlock", "dlock release"),
        ("lst", "'list'"),
    ] {
        let text = refused(&[word, "x"], &[]);
        assert!(
            text.contains(&format!("unrecognized subcommand '{word}'")),
            "{text}"
        );
        assert!(text.contains(hint), "{text}");
    }
    assert!(matches!(
        parse_args(&["list", "--local=/v"], &[]),
        Ok(Request::Task(task)) if matches!(task.work, Work::List(..))
    ));
}

#[test]
fn flag_before_variable_before_etcdctl_before_file_before_default() {
    let directory = TestDir::new("layers");
    let file = directory.file(
        "c.toml",
        "endpoints = ['file:1', 'file:2']\nttl = 50\nprefix = 'file'\n",
    );
    let etcdctl = [
        ("DLOCK_CONFIG", file.as_str()),
        ("ETCDCTL_ENDPOINTS", "ctl:1"),
    ];
    let own = [
        etcdctl[0],
        etcdctl[1],
        ("DLOCK_ENDPOINTS", "own:1"),
        ("DLOCK_TTL", "40"),
    ];

    let run = run_with(&["run", "--config", &file, "x", "y"], &[]);
    assert_eq!(endpoints(&run), "http://file:1 http://file:2");
    assert_eq!(
        (run.options.lock.ttl, run.settings.prefix.as_str()),
        (Duration::from_secs(50), "file/")
    );
    assert_eq!(
        endpoints(&run_with(&["run", "x", "y"], &etcdctl)),
        "http://ctl:1"
    );
    let run = run_with(&["run", "x", "y"], &own);
    assert_eq!(endpoints(&run), "http://own:1");
    assert_eq!(run.options.lock.ttl, Duration::from_secs(40));
    let run = run_with(
        &[
            "--endpoints",
            "f:1,g:1",
            "run",
            "--ttl=20",
            "--endpoints",
            "h:1",
            "x",
            "y",
        ],
        &own,
    );
    assert_eq!(run.options.lock.ttl, Duration::from_secs(20));
    assert!(
        endpoints(&run).contains("http://h:1"),
        "{}",
        endpoints(&run)
    );
    let run = run_with(
        &[
            "run",
            "--endpoints",
            "f:1",
            "--endpoints",
            "g:1,h:1",
            "x",
            "y",
        ],
        &own,
    );
    assert_eq!(endpoints(&run), "http://f:1 http://g:1 http://h:1");
    let empty = [
        ("DLOCK_ENDPOINTS", ""),
        ("DLOCK_TTL", ""),
        ("DLOCK_CONFIG", ""),
        ("DLOCK_QUIET", ""),
    ];
    assert_eq!(
        endpoints(&run_with(&["run", "x", "y"], &empty)),
        "http://127.0.0.1:2379"
    );
}

#[test]
fn an_error_names_a_wrong_value_with_its_source() {
    let directory = TestDir::new("sources");
    let file = directory.file("c.toml", "\n\nttl = 'x'\n");
    let args = ["run", "x", "y"];
    assert!(
        refused(&args, &[("DLOCK_TTL", "x")]).starts_with("cannot use DLOCK_TTL 'x': expected")
    );
    let text = refused(&args, &[("DLOCK_CONFIG", &file)]);
    assert!(
        text.starts_with(&format!("cannot use ttl 'x' in line 3 of '{file}': ")),
        "{text}"
    );
    let text = refused(&args, &[("ETCDCTL_ENDPOINTS", "a,unix:x")]);
    assert!(
        text.starts_with("cannot use ETCDCTL_ENDPOINTS: endpoint 'unix:x': "),
        "{text}"
    );
    assert!(refused(&args, &[("DLOCK_NO_WAIT", "maybe")]).contains("DLOCK_NO_WAIT 'maybe'"));
}

#[test]
fn the_stronger_of_two_contradicting_settings_counts() {
    let patience =
        |args: &[&str], set: &[(&str, &str)]| run_with(args, set).options.lock.request.wait_policy;
    let five = WaitPolicy::Timeout(Duration::from_secs(5));
    assert_eq!(
        patience(&["run", "-n", "x", "y"], &[("DLOCK_WAIT", "5")]),
        WaitPolicy::NoWait
    );
    assert_eq!(
        patience(&["run", "-w5", "x", "y"], &[("DLOCK_NO_WAIT", "1")]),
        five
    );
    assert_eq!(
        patience(
            &["run", "x", "y"],
            &[("DLOCK_WAIT", "5"), ("DLOCK_NO_WAIT", "0")]
        ),
        five
    );
    let both = [("DLOCK_WAIT", "5"), ("DLOCK_NO_WAIT", "yes")];
    assert!(refused(&["run", "x", "y"], &both).contains("DLOCK_NO_WAIT together with DLOCK_WAIT"));
    let filter = |args: &[&str], set: &[(&str, &str)]| run_with(args, set).output.filter;
    assert_eq!(
        filter(&["-v", "run", "x", "y"], &[("DLOCK_QUIET", "1")]),
        log::level_filter(Level::INFO)
    );
    assert_eq!(
        filter(&["run", "-vv", "x", "y"], &[]),
        log::level_filter(Level::DEBUG)
    );
    assert_eq!(
        filter(&["run", "-q", "x", "y"], &[("DLOCK_VERBOSE", "2")]),
        log::quiet_filter()
    );
}

#[test]
fn the_log_filter_wins_over_the_level_where_it_says_something() {
    let filter = |args: &[&str], directives| {
        let args = [args, &["run", "x", "y"]].concat();
        run_with(&args, &[("DLOCK_LOG", directives)]).output.filter
    };
    assert_eq!(filter(&["-q"], "info"), log::level_filter(Level::INFO));
    assert_eq!(filter(&["-vv"], "error"), log::level_filter(Level::ERROR));
    assert_eq!(filter(&["-v"], ""), log::level_filter(Level::INFO));
    let etcd_only = |level| log::level_filter(level).with_target("dlock::etcd", Level::DEBUG);
    assert_eq!(filter(&["-q"], "etcd=debug"), etcd_only(Level::ERROR));
    assert_eq!(filter(&[], "etcd=debug"), etcd_only(Level::WARN));
    let refused = refused(&["run", "x", "y"], &[("DLOCK_LOG", "loud")]);
    assert!(
        refused.contains("cannot use DLOCK_LOG 'loud': "),
        "{refused}"
    );
}

#[test]
fn the_variables_of_a_lock_never_configure_a_nested_dlock() {
    let own = [
        "DLOCK_NAME",
        "DLOCK_KEY",
        "DLOCK_LEASE",
        "DLOCK_HELD",
        "DLOCK_FENCING_TOKEN",
    ];
    for (long, variable, _) in settings() {
        assert!(!own.contains(&variable.as_str()), "--{long}");
    }
    assert_eq!(Setting::Key.variable(), "DLOCK_CLIENT_KEY");
}

#[test]
fn every_setting_is_looked_up_as_variable() {
    let asked = RefCell::new(BTreeSet::new());
    let variables = |name: &str| {
        asked.borrow_mut().insert(name.to_owned());
        None
    };
    for argv in [&["dlock", "run", "x", "y"][..], &["dlock", "hold", "x"]] {
        let argv = argv.iter().map(OsString::from).collect();
        assert!(parse(argv, &variables).is_ok());
    }
    let asked = asked.into_inner();
    for (long, variable, fall_back) in settings() {
        assert!(asked.contains(&variable), "--{long}: {variable}");
        assert!(
            fall_back.is_none_or(|name| asked.contains(name)),
            "--{long}"
        );
    }
}

#[test]
fn a_password_comes_from_the_strongest_source_and_is_not_shown() {
    let directory = TestDir::new("passwords");
    let secret = directory.file("secret", "from file\n");
    let credentials = |args: &[&str], set: &[(&str, &str)]| {
        let args: Vec<&str> = [args, &["run", "x", "y"]].concat();
        let run = run_with(&args, set);
        let credentials = run.settings.credentials.unwrap();
        format!(
            "{} {}",
            credentials.name.expose(),
            credentials.password.expose()
        )
    };
    let own = ("DLOCK_PASSWORD", "own");
    let ctl = ("ETCDCTL_PASSWORD", "ctl");
    let user = ["--user", "alice:inline"];
    assert_eq!(
        credentials(&["--user", "a", "--password-file", &secret], &[own, ctl]),
        "a from file"
    );
    assert_eq!(credentials(&["--user", "a"], &[own, ctl]), "a own");
    assert_eq!(credentials(&["--user", "a"], &[ctl]), "a ctl");
    assert_eq!(credentials(&user, &[]), "alice inline");
    assert_eq!(
        credentials(&user, &[ctl]),
        "alice:inline ctl",
        "a name may hold a colon, as with etcdctl"
    );
    let run = run_with(&["--user", "alice:inline", "run", "x", "y"], &[ctl]);
    assert_eq!(run.settings.credentials.unwrap().user, "alice");
    directory.file(
        "dlock-password",
        "from systemd
",
    );
    let systemd = ("CREDENTIALS_DIRECTORY", directory.0.to_str().unwrap());
    assert_eq!(credentials(&["--user", "a"], &[systemd]), "a from systemd");
    assert_eq!(credentials(&["--user", "a"], &[systemd, ctl]), "a ctl");
    let nothing = ("CREDENTIALS_DIRECTORY", "/nowhere");
    assert_eq!(credentials(&user, &[nothing]), "alice inline");
    assert_eq!(credentials(&[], &[("ETCDCTL_USER", "b:c:d")]), "b c:d");

    let file = directory.file("c.toml", "user = 'filed'\npassword-file = 'secret'\n");
    assert_eq!(credentials(&["--config", &file], &[]), "filed from file");
    assert_eq!(credentials(&["--config", &file], &[own]), "filed own");
    assert_eq!(
        credentials(&["--config", &file, "--user", "a:b"], &[]),
        "a b"
    );
    assert_eq!(
        credentials(&["--config", &file, "--user", "a"], &[]),
        "a from file"
    );

    for (text, password) in [("x", "x"), ("x\r\n", "x"), ("x\n\n", "x\n"), (" x ", " x ")] {
        let path = directory.file("p", text);
        assert_eq!(
            credentials(&["--user", "a", "--password-file", &path], &[]),
            format!("a {password}")
        );
    }
    for (text, part) in [
        ("", "empty"),
        ("\n", "empty"),
        (&"x".repeat(70_000), "64 KiB"),
    ] {
        let path = directory.file("p", text);
        let text = refused(
            &["--user", "a", "--password-file", &path, "run", "x", "y"],
            &[],
        );
        assert!(text.contains(part) && text.contains(&path), "{text}");
    }
    let text = refused(
        &[
            "--user",
            "a",
            "--password-file",
            "/nowhere/p",
            "run",
            "x",
            "y",
        ],
        &[],
    );
    assert!(
        text.starts_with("cannot read the password file '/nowhere/p': No such file"),
        "{text}"
    );
    let text = refused(&["run", "x", "y"], &[own]);
    assert!(
        text.contains("password of DLOCK_PASSWORD") && !text.contains("own"),
        "{text}"
    );
}

/// "A file whose rights expose a secret, or let another user change what dlock trusts, is a warning."
#[test]
fn files_that_others_can_read_or_change_are_warned_about() {
    let directory = TestDir::new("exposed");
    let [ca, cert, key, password] =
        ["ca.pem", "cert.pem", "key.pem", "password"].map(|name| directory.file(name, "x"));
    let secret = directory.file("secret.toml", "user = 'ci:XYZ'\n");
    let plain = directory.file("plain.toml", "user = 'ci'\n");
    let all = [&ca, &cert, &key, &password, &secret, &plain];
    let chmod = |path: &str, mode| {
        fs::set_permissions(Path::new(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    let warned = |args: &[&str], set: &[(&str, &str)]| -> Vec<String> {
        let run = run_with(&[args, &["run", "x", "y"]].concat(), set);
        let said = run.warnings.iter();
        let said = said.map(|warning| format!("{}: {}", warning.setting, warning.says));
        said.collect()
    };
    let files: &[&str] = &["--cacert", &ca, "--cert", &cert, "--key", &key];
    let files = [files, &["--user", "a", "--password-file", &password]].concat();
    let safe: &[(&str, u32)] = &[
        (&ca, 0o644),
        (&cert, 0o644),
        (&key, 0o640),
        (&password, 0o640),
    ];
    let cases: &[(&str, u32, &[&str])] = &[
        (
            &ca,
            0o646,
            &["cacert: other users can change the CA file '"],
        ),
        (
            &cert,
            0o646,
            &["cert: other users can change the client certificate '"],
        ),
        (&key, 0o644, &["key: every user can read the private key '"]),
        (
            &key,
            0o602,
            &["key: other users can change the private key '"],
        ),
        (
            &password,
            0o604,
            &["password-file: every user can read the password file '"],
        ),
        (
            &password,
            0o606,
            &[
                "password-file: every user can read",
                "password-file: other users can change the password file '",
            ],
        ),
    ];
    for (path, mode, expected) in cases {
        for path in all {
            chmod(path, 0o600);
        }
        for (path, mode) in safe {
            chmod(path, *mode);
        }
        assert_eq!(warned(&files, &[]), [""; 0]);
        chmod(path, *mode);
        let said = warned(&files, &[]);
        assert_eq!(said.len(), expected.len(), "{mode:o}: {said:?}");
        for (line, begin) in said.iter().zip(*expected) {
            assert!(line.starts_with(begin) && line.contains(path), "{line}");
        }
    }

    // The file of the settings counts only if it contains the password.
    chmod(&secret, 0o640);
    assert_eq!(warned(&["--config", &secret], &[]), [""; 0]);
    chmod(&secret, 0o644);
    let said = warned(&["--config", &secret], &[]);
    assert!(
        said[0].starts_with("config: every user can read the configuration file with"),
        "{said:?}"
    );
    let other = [("ETCDCTL_PASSWORD", "x")];
    assert_eq!(warned(&["--config", &secret], &other), [""; 0]);
    chmod(&plain, 0o644);
    assert_eq!(warned(&["--config", &plain], &other), [""; 0]);
}

/// "Every user can read the arguments of a process"
#[test]
fn a_password_on_the_command_line_is_warned_about() {
    let warned = |args: &[&str], set: &[(&str, &str)]| {
        run_with(&[args, &["run", "x", "y"]].concat(), set).warnings
    };
    let said = warned(&["--user", "ci:XYZ"], &[]);
    assert_eq!((said.len(), said[0].setting), (1, Setting::User));
    assert!(said[0].says.contains("--password-file") && !said[0].says.contains("XYZ"));
    assert_eq!(warned(&[], &[("DLOCK_USER", "ci:XYZ")]), []);
    // The name contains a colon.
    assert_eq!(
        warned(&["--user", "ci:x"], &[("DLOCK_PASSWORD", "XYZ")]),
        []
    );
}

#[test]
fn an_error_shows_the_user_without_a_password() {
    let directory = TestDir::new("user-shown");
    let file = directory.file(
        "c.toml",
        "user = 'ci:XYZ'
local = true
",
    );
    let flag: &[&str] = &["run", "--local", "--user", "ci:XYZ", "x", "y"];
    let own: &[_] = &[("DLOCK_USER", "ci:XYZ"), ("DLOCK_LOCAL", "1")];
    let ctl: &[_] = &[("ETCDCTL_USER", "ci:XYZ")];
    let empty: &[_] = &[("ETCDCTL_USER", "ci:XYZ"), ("DLOCK_TTL", "x")];
    for (args, set) in [
        (flag, &[][..]),
        (&["run", "--user", ":XYZ", "x", "y"], &[]),
        (&["run", "x", "y"], own),
        (&["break", "--local", "x"], ctl),
        (&["run", "x", "y"], empty),
        (&["doctor", "--config", &file], &[]),
    ] {
        let text = match parse_args(args, set) {
            Err(failure) => format!("{failure:?}"),
            Ok(Request::Task(task)) => match task.work {
                Work::Doctor(_, options) => format!("{options:?} {:?}", task.warnings),
                _ => format!("{:?}", task.warnings),
            },
            Ok(_) => String::new(),
        };
        assert!(!text.contains("XYZ"), "{args:?} {set:?}: {text}");
    }
}

/// "dlock refuses to send a password over http to another machine" (dlock-security(7))
#[test]
fn a_password_goes_to_another_machine_only_encrypted() {
    let user = [("ETCDCTL_USER", "ci:XYZ")];
    let args = |endpoints| ["run", "--endpoints", endpoints, "x", "y"];
    for endpoints in [
        "db",
        "http://10.0.0.1",
        "127.0.0.1,http://db",
        "[::ffff:10.0.0.1]",
    ] {
        let failure = parse_args(&args(endpoints), &user).err().unwrap();
        let text = failure.error.to_string();
        assert!(text.contains("of 'ci' would go to 'http://"), "{text}");
        assert!(failure.hint.unwrap().contains("--allow-cleartext"));
        let allowed = [user[0], ("DLOCK_ALLOW_CLEARTEXT", "1")];
        assert!(
            parse_args(&args(endpoints), &allowed).is_ok(),
            "{endpoints}"
        );
    }
    let text = refused(&args("db"), &[user[0], ("DLOCK_ALLOW_CLEARTEXT", "0")]);
    assert!(text.contains("http://db:2379"), "{text}");
    for endpoints in [
        "https://db",
        "localhost",
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ] {
        assert!(parse_args(&args(endpoints), &user).is_ok(), "{endpoints}");
    }
    let assumed = |endpoints| run_with(&args(endpoints), &[]).settings.assumed_http;
    assert_eq!(assumed("a,127.0.0.1"), ["http://a:2379"]);
    assert!(assumed("http://a").is_empty() && assumed("localhost").is_empty());
}

#[test]
fn tls_files_are_readable_and_mean_https() {
    let directory = TestDir::new("tls");
    let (ca, cert, key) = (
        directory.file("ca", "x"),
        directory.file("cert", "x"),
        directory.file("key", "x"),
    );
    let args = [
        "run",
        "--cacert",
        &ca,
        "--cert",
        &cert,
        "--key",
        &key,
        "--endpoints",
        "a",
        "x",
        "y",
    ];
    let run = run_with(&args, &[]);
    assert_eq!(endpoints(&run), "https://a:2379");
    assert_eq!(run.settings.tls.key.as_deref(), Some(Path::new(&key)));
    assert_eq!(
        endpoints(&run_with(&["run", "x", "y"], &[("ETCDCTL_CACERT", &ca)])),
        "https://127.0.0.1:2379"
    );
    let text = refused(
        &["run", "--endpoints", "http://a", "x", "y"],
        &[("DLOCK_CACERT", &ca)],
    );
    assert!(
        text.contains("'http://a'") && text.contains("TLS"),
        "{text}"
    );
    let path = directory.0.to_str().unwrap();
    assert!(refused(&["run", "--cacert", path, "x", "y"], &[]).contains("directory"));
    let empty = directory.file("empty", "");
    assert!(refused(&["run", "--cacert", &empty, "x", "y"], &[]).contains("empty"));
    let file = directory.file("c.toml", "cacert = 'ca'\n");
    let run = run_with(&["run", "--config", &file, "x", "y"], &[]);
    assert_eq!(
        run.settings.tls.cacert.as_deref().map(Path::as_os_str),
        Some(OsStr::new(&ca))
    );
}

#[test]
fn sharing_options_have_limits_and_conflicts() {
    let request = |args: &[&str]| {
        let args = [&["run", "x"], args, &["--", "y"]].concat();
        run(&args).lock.request
    };
    assert_eq!(request(&[]).mode, Mode::Exclusive);
    assert_eq!(request(&["-s"]).mode, Mode::Shared);
    assert_eq!(request(&["--slots", "7"]).mode, Mode::Slots(7));
    assert_eq!(request(&["--slots=1000"]).mode, Mode::Slots(1000));
    assert_eq!(request(&[]).supersede, None);
    assert_eq!(
        request(&["--supersede"]).supersede,
        Some(Supersede::Waiters)
    );
    assert_eq!(
        request(&["--supersede=holder"]).supersede,
        Some(Supersede::Holder)
    );
    let times = request(&["--min-hold", "50s", "--once-per=1h"]);
    assert_eq!(times.min_hold, Some(Duration::from_secs(50)));
    assert_eq!(times.once_per, Some(Duration::from_hours(1)));
    let limited = run(&["run", "--max-hold", "1.5", "x", "y"]);
    assert_eq!(limited.lock.max_hold, Some(Duration::from_millis(1500)));
    assert!(run(&["run", "--reentrant", "x", "y"]).reentrant);
    assert!(request(&["--once-per=1h", "--retry-failed"]).retry_failed);
    assert!(!request(&["--once-per=1h"]).retry_failed);
    // Set for all runs, it does not matter to those without a period.
    let everywhere = [("DLOCK_RETRY_FAILED", "1")];
    run_with(&["run", "x", "y"], &everywhere);
    for (args, says) in [
        (&["--slots", "0"][..], "from 1 to 1000"),
        (&["--slots", "1001"], "from 1 to 1000"),
        (&["--slots", "-1"], "from 1 to 1000"),
        (&["-s", "--slots", "2"], "together with"),
        (&["--supersede", "-n"], "asks nobody to leave"),
        (&["--supersede", "-s"], "readers do not block each other"),
        (&["--supersede=me"], "waiters"),
        (&["--min-hold", "0"], "more than 0"),
        (&["--min-hold", "1.5s"], "whole seconds"),
        (&["--once-per", "-1"], "negative"),
        (&["--retry-failed"], "without --once-per"),
        (&["--max-hold", "0s"], "more than 0"),
    ] {
        let all = [&["run", "x"], args, &["--", "y"]].concat();
        let text = refused(&all, &[]);
        assert!(text.contains(says), "{args:?}: {text}");
    }
}

/// The directory of a local lock and its options; `None` if the lock is in etcd.
fn local(args: &[&str], set: &[(&str, &str)]) -> Option<(PathBuf, Options)> {
    let Ok(Request::Task(task)) = parse_args(args, set) else {
        panic!("{args:?} is refused");
    };
    match task.work {
        Work::Run(BackendConfig::Local(directory), options) => Some((directory, options)),
        Work::Run(BackendConfig::Etcd(_), _) => None,
        _ => panic!("not a run"),
    }
}

#[test]
fn every_layer_can_choose_local_locks() {
    let directory = |args: &[&str], set: &[(&str, &str)]| {
        let args = [&["run"], args, &["x", "y"]].concat();
        let (directory, _) = local(&args, set)?;
        Some(directory.into_os_string().into_string().unwrap())
    };
    let own = |state: &str| {
        let usual = if rustix::process::geteuid().is_root() {
            "/var/lib/dlock".to_owned()
        } else {
            format!("{state}/dlock")
        };
        Some(usual)
    };
    let home = ("HOME", "/h");
    assert_eq!(directory(&[], &[home]), None);
    assert_eq!(directory(&["--local"], &[home]), own("/h/.local/state"));
    let state = [home, ("XDG_STATE_HOME", "/s"), ("DLOCK_LOCAL", "yes")];
    assert_eq!(directory(&[], &state), own("/s"));
    let relative = [home, ("XDG_STATE_HOME", "s"), ("DLOCK_LOCAL", "1")];
    assert_eq!(directory(&[], &relative), own("/h/.local/state"));
    assert_eq!(directory(&["--local=false"], &state), None);
    assert_eq!(directory(&["--local=./a"], &state).as_deref(), Some("./a"));
    assert_eq!(
        directory(&[], &[("DLOCK_LOCAL", "/v")]).as_deref(),
        Some("/v")
    );
    let here = TestDir::new("local");
    let file = here.file(
        "config.toml",
        "local = \"locks/\"\nttl = 60\nendpoints = \"e\"\n",
    );
    let beside = here
        .0
        .join("locks/")
        .into_os_string()
        .into_string()
        .unwrap();
    assert_eq!(directory(&["--config", &file], &[]), Some(beside));
    let (_, options) = local(
        &["run", "--local=/v", "-k1h", "--min-hold=0.5", "x", "y"],
        &[],
    )
    .unwrap();
    assert_eq!(options.lock.grace, Duration::from_hours(1));
    assert_eq!(
        options.lock.request.min_hold,
        Some(Duration::from_millis(500))
    );
}

#[test]
fn options_for_etcd_alone_are_refused_for_a_local_lock() {
    let on = [("DLOCK_LOCAL", "/v")];
    for (args, set, says) in [
        (
            &["run", "--local=v", "x", "y"][..],
            &[][..],
            "a slash in it: ./v",
        ),
        (
            &["run", "--local=/v", "--ttl=60", "x", "y"],
            &[],
            "--ttl '60' for a local lock: it has no lease",
        ),
        (
            &["run", "--once-per=1h", "x", "y"],
            &on,
            "--once-per '1h' for a local lock: no clock",
        ),
        (
            &["run", "--supersede", "x", "y"],
            &on,
            "--supersede 'waiters' for a local lock",
        ),
        (
            &["hold", "--endpoints=e", "x"],
            &on,
            "--endpoints together with DLOCK_LOCAL: a local lock has no etcd",
        ),
        (
            &["ls", "--prefix=p", "--local"],
            &[("HOME", "/h")],
            "--prefix together with --local",
        ),
        (
            &["break", "x", "--token=1", "--yes"],
            &on,
            "cannot break a lock with DLOCK_LOCAL",
        ),
        (
            &["break", "--local", "x", "--token=1"],
            &[("HOME", "/h")],
            "cannot break a lock with --local",
        ),
    ] {
        let text = refused(args, set);
        assert!(text.contains(says), "{args:?}: {text}");
    }
    // A setting for all locks is no contradiction.
    let set = [
        ("DLOCK_TTL", "60"),
        ("DLOCK_ENDPOINTS", "e"),
        ("ETCDCTL_USER", "u"),
    ];
    assert!(local(&["run", "--local=/v", "x", "y"], &set).is_some());
}

#[test]
fn the_doctor_uses_the_settings_of_a_run() {
    let doctor = |args: &[&str], set: &[(&str, &str)]| {
        let Ok(Request::Task(task)) = parse_args(&[&["doctor"], args].concat(), set) else {
            panic!("{args:?} is refused");
        };
        let Work::Doctor(BackendConfig::Etcd(settings), options) = task.work else {
            panic!("no doctor");
        };
        assert_eq!(task.warnings, []);
        (settings, options)
    };
    let seconds = Duration::from_secs;
    let (_, options) = doctor(&[], &[]);
    assert_eq!(options.timings, LeaseTimings::new(seconds(30), seconds(5)));
    assert!(!options.json);
    let args = ["--ttl=20", "-k", "3", "--json", "--prefix=team"];
    let (settings, options) = doctor(&args, &[("DLOCK_TTL", "1m")]);
    assert_eq!(options.timings, LeaseTimings::new(seconds(20), seconds(3)));
    assert!(options.json);
    assert_eq!(settings.prefix, "team/");
    let (_, options) = doctor(&[], &[("DLOCK_TTL", "1m"), ("DLOCK_NO_WAIT", "1")]);
    assert_eq!(options.timings.ttl(), seconds(60));
    let origin = |option: &str| {
        let mut all = options.settings.iter();
        let found = all.find(|origin| origin.option == option)?;
        Some((found.value.as_str(), found.source.as_str()))
    };
    assert_eq!(origin("ttl"), Some(("1m", "DLOCK_TTL")));
    assert_eq!(origin("no-wait"), Some(("1", "DLOCK_NO_WAIT")));
    assert_eq!(origin("prefix"), Some(("dlock/", "default")));
    assert_eq!(origin("note"), None);
    assert!(refused(&["doctor", "--ttl=1s"], &[]).contains("--ttl '1s'"));
}

/// The fields of the `Args` structs and the keys of the settings are coupled by their names.
#[test]
fn every_setting_is_an_option_of_the_same_name() {
    fn collect(command: &clap::Command, options: &mut BTreeSet<(Setting, String)>) {
        let settings = command
            .get_arguments()
            .filter_map(|arg| Some((setting_of(arg.get_id())?, arg.get_long()?.to_owned())));
        options.extend(settings);
        let subs = command.get_subcommands();
        subs.for_each(|sub| collect(sub, options));
    }
    let mut options = BTreeSet::new();
    collect(&definitions(), &mut options);
    let settings = Setting::ALL.iter().copied();
    let expected = settings.map(|setting| (setting, setting.name().to_owned()));
    assert_eq!(options, expected.collect());
}

/// "The keys are the long options without the dashes" (dlock.toml(5)): all that have a variable, except the one that
/// names the file.
#[test]
fn the_file_may_contain_every_setting_but_its_own_path() {
    let longs = settings().map(|(long, ..)| long);
    let keys = Setting::in_file().map(Setting::name);
    assert!(longs.filter(|long| *long != "config").eq(keys));
}

#[test]
fn no_two_settings_share_a_name() {
    let mut known = BTreeSet::new();
    for (long, variable, fall_back) in settings() {
        let names = [
            Some(long.to_owned()),
            Some(variable),
            fall_back.map(str::to_owned),
        ];
        for name in names.into_iter().flatten() {
            assert!(known.insert(name), "--{long}");
        }
    }
}

#[test]
fn a_subcommand_is_described_where_it_is_listed() {
    let described = |of: clap::Command| -> Vec<(String, String)> {
        let subs = of.get_subcommands();
        subs.map(|sub| {
            let about = sub.get_about().expect("a description");
            (sub.get_name().to_owned(), about.to_string())
        })
        .collect()
    };
    assert_eq!(
        described(definitions()),
        described(with_subcommands(|_| true))
    );
}

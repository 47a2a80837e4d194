//! The examples that are files for other programs: each is checked by its own program, and its commands are run.
//! It must not know how examples are found.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::How::{By, Story};
use super::Runner;
use super::documents::Block;
use super::scripts::{adapted, furnish, script};
use crate::support::{Certificates, Dlock, Etcd, Outcome, Scratch};

pub(super) const RUNNERS: &[Runner] = &[
    ("README.md", "PATH=/usr/local/bin", By(crontab)),
    ("README.md", "deploy:", By(gitlab)),
    ("README.md", "[Service]", By(service)),
    ("README.md", "endpoints = [", By(config)),
    ("dlock.toml.5", "# Settings of dlock", By(commented_config)),
    ("dlock.toml.5", "endpoints = [\n", By(config)),
    (
        "dlock.toml.5",
        "endpoints = [\"https://etcd.example.com:2379\"]",
        By(config),
    ),
    ("dlock-doctor.1", "0 17 * * *", By(crontab)),
    ("dlock-report.5", "# /etc/prometheus", By(prometheus)),
    ("dlock-run.1", "0 3 * * *", By(crontab)),
    ("dlock-examples.7", "PATH=/usr/local/bin", By(crontab)),
    ("dlock-examples.7", "DLOCK_MAX_HOLD=", By(crontab)),
    (
        "dlock-examples.7",
        "[Unit]\nDescription=Scheduler, active on one host",
        By(active_and_standby),
    ),
    (
        "dlock-examples.7",
        "ExecStart=/usr/bin/env SYSTEMD_EXEC_PID=0",
        By(command_that_notifies),
    ),
    (
        "dlock-examples.7",
        "[Unit]\nDescription=This host is the primary",
        By(service),
    ),
    (
        "dlock-examples.7",
        "[Unit]\nDescription=Nightly report, on one host",
        By(service_with_few_rights),
    ),
    (
        "dlock-examples.7",
        "[Unit]\nDescription=Nightly report, once in the fleet\nWants=",
        By(service_of_a_timer),
    ),
    (
        "dlock-examples.7",
        "[Unit]\nDescription=Nightly report, once in the fleet\n\n[Timer]",
        By(timer),
    ),
    ("dlock-examples.7", "deploy:", By(gitlab)),
    ("dlock-examples.7", "name: deploy", By(github)),
    ("dlock-examples.7", "pipeline {", By(jenkins)),
    ("dlock-examples.7", "FROM debian", By(copied_from_the_image)),
    ("dlock-examples.7", "apiVersion: batch/v1", By(kubernetes)),
    (
        "dlock-examples.7",
        "- name: Migrate the database",
        By(ansible),
    ),
    ("dlock-etcd.7", "", Story),
    ("dlock-security.7", "", Story),
];

/// A program that checks a file; fails with its output if it reports an error.
#[track_caller]
fn content(program: &str, words: &[&str], input: &str, package: &str) -> String {
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{program}: {error}; install it with: apt-get install {package}")
        });
    let mut stdin = child.stdin.take().expect("a pipe");
    // A user may have reasons to ignore it.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("our own child");
    // crontab reports this, and where errors are.
    let errors = String::from_utf8_lossy(&output.stderr);
    let errors = errors.replace(
        "The syntax of the crontab file was successfully checked.\n",
        "",
    );
    assert!(
        output.status.success() && errors.is_empty(),
        "{program} {words:?}: {errors}\n{input}"
    );
    String::from_utf8(output.stdout).expect("text")
}

/// cron accepts each line, and its command runs on the first host and is skipped, silently, on the others.
fn crontab(block: &Block) {
    let scratch = Scratch::new();
    let file = scratch.write("crontab", &block.text);
    content("crontab", &["-n", &file], "", "cron");
    let etcd = Etcd::start();
    let mut variables = String::new();
    let mut ran = 0;
    for line in block
        .text
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.starts_with('#'))
    {
        let fields = if line.starts_with('@') { 1 } else { 5 };
        let is_assignment = line
            .split(' ')
            .next()
            .is_some_and(|word| word.contains('='));
        if is_assignment {
            // PATH is that of the test.
            if !line.starts_with("PATH=") {
                variables = format!("{variables}export {line}\n");
            }
            continue;
        }
        let mut command = line;
        for _ in 0..fields {
            command = command
                .split_once(char::is_whitespace)
                .expect("a field")
                .1
                .trim_start();
        }
        // A simulated host: cron runs each line by sh, without a terminal.
        let host = || {
            script(&etcd, &format!("{variables}{command}"))
                .finish()
                .expect_code(0)
                .expect_silent()
        };
        let first = host();
        ran += 1;
        if line.contains("--min-hold") || line.contains("--once-per") {
            assert!(first.stdout.contains("under token"), "{line}: {first:?}");
            for _ in 0..2 {
                host().expect_stdout("");
            }
        }
    }
    assert!(ran > 0);
}

/// dlock accepts the file: it gets as far as the files that it names.
fn config(block: &Block) {
    let named = [
        "ca.pem",
        "password",
        "dlock.password",
        "team.pem",
        "team.key",
    ];
    let made = Certificates::new();
    let etcd = Etcd::start_tls(&made);
    etcd.add_user("cron", "secret", "dlock/", "dlock0");
    etcd.add_user("ci", "secret", "dlock/", "dlock0");
    etcd.add_user("dlock", "secret", "dlock/", "dlock0");
    etcd.enable_auth();
    let dlock = Dlock::nowhere();
    for name in named {
        dlock.home().write_private(name, "secret\n");
    }
    for (from, to) in [
        ("ca.pem", "ca.pem"),
        ("client.pem", "team.pem"),
        ("client.key", "team.key"),
    ] {
        fs::copy(made.file(from), dlock.home().path().join(to)).expect("a file");
    }
    let mut text = String::new();
    for line in with_endpoint(&block.text, &etcd.endpoint()).lines() {
        let line = if line.starts_with("cluster-id") {
            assert!(line.contains("dlock doctor prints it"), "{line}");
            format!("cluster-id = {}", etcd.cluster_id())
        } else {
            let directory = format!("\"{}/", dlock.home().path().display());
            ["\"/etc/dlock/", "\"/etc/etcd/", "\"/etc/ssl/etcd/"]
                .iter()
                .fold(line.to_owned(), |line, path| line.replace(path, &directory))
        };
        text = format!("{text}{line}\n");
    }
    let file = dlock.home().write("config.toml", &text);
    let dlock = dlock.args(["--config", &file]);
    if block.text.contains("user = ") {
        dlock
            .run(["job", "true"])
            .finish()
            .expect_code(0)
            .expect_silent();
    } else {
        // A client certificate's user is its common name, whom this etcd does not know.
        dlock
            .run(["job", "true"])
            .finish()
            .expect_code(125)
            .expect_stderr(&["user"]);
    }
}

/// The configuration with this endpoint in the place of its own list, which has one endpoint or one on each line.
pub(super) fn with_endpoint(text: &str, endpoint: &str) -> String {
    let (before, rest) = text.split_once("endpoints = [").expect("endpoints");
    let (list, after) = rest.split_once(']').expect("the end of the list");
    let count = list.matches("\"https://").count();
    assert!(
        count > 0 && count * 2 == list.matches('"').count(),
        "{list}"
    );
    format!("{before}endpoints = [\"{endpoint}\"]{after}")
}

/// With its lines uncommented dlock accepts the file; as it is, it changes nothing.
fn commented_config(block: &Block) {
    let etcd = Etcd::shared();
    let dlock = Dlock::on(etcd);
    let file = dlock.home().write("config.toml", &block.text);
    dlock
        .args(["--config", &file])
        .run(["job", "true"])
        .finish()
        .expect_code(0)
        .expect_silent();
    let lines = block.text.lines().filter_map(|line| line.strip_prefix('#'));
    let is_prose = |line: &str| line.starts_with(' ') && !line.starts_with("  ");
    let settings: Vec<&str> = lines.filter(|line| !is_prose(line)).collect();
    assert!(settings.len() >= 4);
    config(&Block {
        text: settings.join("\n"),
        ..block.clone()
    });
}

/// A unit with the programs of the test, as systemd-analyze sees it.
#[track_caller]
fn verified(block: &Block, name: &str) -> (Scratch, String) {
    let scratch = Scratch::new();
    furnish(scratch.path());
    let text = adapted(&block.text, scratch.path(), "");
    let path = scratch.write(name, &text);
    // The service that a timer starts.
    if let Some(stem) = name.strip_suffix(".timer") {
        let started = "[Service]\nExecStart=/bin/true\n";
        scratch.write(&format!("{stem}.service"), started);
    }
    content(
        "systemd-analyze",
        &["verify", "--man=no", &path],
        "",
        "systemd",
    );
    (scratch, text)
}

/// The value of a key, which a backslash at the end of a line continues.
fn value(unit: &str, key: &str) -> String {
    let joined = unit.replace("\\\n", "");
    let line = joined
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key}= in {unit}"))
        .to_owned()
}

/// systemd accepts the unit, and its service starts.
fn service(block: &Block) {
    let (_scratch, unit) = verified(block, "example.service");
    let etcd = Etcd::start();
    let start = value(&block.text, "ExecStart");
    if start.contains(" hold ") {
        // tests/integration/service.rs tests the notification.
        return;
    }
    let outcome = script(&etcd, &start)
        .finish()
        .expect_code(0)
        .expect_silent();
    assert!(outcome.stdout.contains("under token"), "{outcome:?}");
    if unit.contains("SuccessExitStatus") {
        let busy: i32 = value(&unit, "SuccessExitStatus").parse().expect("a status");
        let outcome = script(&etcd, &start).finish().expect_code(busy);
        assert!(outcome.stderr.contains("ran already"), "{outcome:?}");
    }
}

/// systemd accepts the unit and rates it well, and its service works with the rights that are left.
fn service_with_few_rights(block: &Block) {
    let (scratch, unit) = verified(block, "few-rights.service");
    // In tenths; without any of the settings it is 96.
    let words = ["security", "--no-pager", "--offline=true", "--threshold=20"];
    let path = scratch.file("few-rights.service");
    content(
        "systemd-analyze",
        &[&words[..], &[&path]].concat(),
        "",
        "systemd",
    );

    let etcd = Etcd::start();
    etcd.add_user("deploy", "secret", "dlock/", "dlock0");
    etcd.enable_auth();
    let start = value(&block.text, "ExecStart");
    let credential = value(&unit, "LoadCredential");
    assert!(credential.starts_with("dlock-password:"), "{credential}");
    let service = || {
        let service = script(&etcd, &start);
        service.home().write_private("dlock-password", "secret\n");
        let home = service.home().path().to_owned();
        service
            .env("STATE_DIRECTORY", &home)
            .env("CREDENTIALS_DIRECTORY", &home)
            .env("DLOCK_USER", "deploy")
    };

    // The restrictions that the settings put on a process, as far as a namespace can have them.
    for setting in [
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
    ] {
        assert!(unit.lines().any(|line| line == setting), "{setting}");
    }
    assert!(unit.contains("ProtectProc=invisible\nProcSubset=pid\n"));
    let restricted = service();
    let few_rights = format!(
        "mount -t proc -o hidepid=2,subset=pid proc /proc && mount --bind '{0}' '{0}' && \
         mount -o remount,bind,ro / && exec setpriv --no-new-privs --bounding-set=-all \"$@\"",
        restricted.home().path().display()
    );
    let mut namespaces = vec!["unshare"];
    if !rustix::process::geteuid().is_root() {
        namespaces.extend(["--user", "--map-root-user"]);
    }
    namespaces.extend(["--mount", "--pid", "--fork", "sh", "-c", &few_rights, "sh"]);
    let outcome = restricted.under(namespaces).finish();
    let outcome = outcome.expect_code(0).expect_silent();
    assert!(outcome.stdout.contains("under token"), "{outcome:?}");

    let allowed = content(
        "systemd-analyze",
        &["syscall-filter", "--no-pager"],
        "",
        "systemd",
    );
    let allowed = system_calls(&allowed, &value(&unit, "SystemCallFilter"));
    assert!(
        allowed.len() > 200 && !allowed.contains("mount"),
        "{allowed:?}"
    );
    let traced = service();
    let log = scratch.file("strace.log");
    traced
        .under(["strace", "-f", "-qqq", "-o", &log, "-e", "signal=none"])
        .finish()
        .expect_code(0);
    let log = fs::read_to_string(log).expect("a log");
    // `PID NAME(...`, or `PID <... NAME resumed>...`.
    let called = log.lines().filter_map(|line| {
        let (_, call) = line.split_once(' ')?;
        Some(call.trim_start().split_once('(')?.0)
    });
    let is_call = |name: &&str| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let called: BTreeSet<&str> = called.filter(is_call).collect();
    assert!(
        called.contains("execve") && called.contains("pidfd_open"),
        "{called:?}"
    );
    let refused: Vec<&&str> = called
        .iter()
        .filter(|name| !allowed.contains(**name))
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
}

/// The system calls of a set, from the list of `systemd-analyze syscall-filter`: a line for the set, then lines that begin with
/// blanks, each with a call or another set.
fn system_calls(list: &str, set: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let lines = list.lines().skip_while(|line| *line != set).skip(1);
    for line in lines.take_while(|line| line.starts_with(' ')) {
        match line.trim() {
            comment if comment.starts_with('#') => {}
            other if other.starts_with('@') => found.extend(system_calls(list, other)),
            call => drop(found.insert(call.to_owned())),
        }
    }
    found
}

/// The example is what the project ships in contrib.
fn assert_shipped(block: &Block, file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd");
    let shipped = fs::read_to_string(path.join(file)).expect(file);
    assert_eq!(block.text, shipped, "contrib/systemd/{file}");
}

fn timer(block: &Block) {
    assert_shipped(block, "nightly-report.timer");
    verified(block, "example.timer");
}

fn service_of_a_timer(block: &Block) {
    assert_shipped(block, "nightly-report.service");
    service(block);
}

/// tests/integration/standby.rs runs it on three hosts.
fn active_and_standby(block: &Block) {
    assert_shipped(block, "active-standby.service");
    service(block);
}

/// The lines of a unit, in one. tests/integration/service.rs shows that dlock is silent then.
fn command_that_notifies(block: &Block) {
    let unit = format!("[Service]\nType=notify\n{}", block.text);
    verified(
        &Block {
            text: unit,
            ..block.clone()
        },
        "example.service",
    );
    let start = value(&block.text, "ExecStart");
    script(&Etcd::start(), &start).finish().expect_code(0);
}

/// Prometheus accepts the configuration, with the rules that it names.
fn prometheus(block: &Block) {
    let scratch = Scratch::new();
    let contrib = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/");
    let text = block.text.replace("/usr/share/dlock/", contrib);
    let file = scratch.write("prometheus.yml", &text);
    let checked = Dlock::program(["promtool", "check", "config", &file]).finish();
    assert!(checked.expect_code(0).stdout.contains("5 rules found"));
}

/// YAML, parsed as its readers do.
pub(crate) fn yaml(text: &str) -> Value {
    let program = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)";
    let json = content("/usr/bin/python3", &["-c", program], text, "python3-yaml");
    serde_json::from_str(&json).expect("JSON")
}

/// Runs a step with the variables of its example; secrets and files are the test's.
#[track_caller]
fn step(etcd: &Etcd, command: &str, variables: &[(String, String)]) -> Outcome {
    let mut dlock = script(etcd, command);
    for (name, value) in variables {
        if name.starts_with("DLOCK_")
            && ![
                "DLOCK_ENDPOINTS",
                "DLOCK_CACERT",
                "DLOCK_PASSWORD",
                "DLOCK_USER",
                "DLOCK_NOTE",
            ]
            .contains(&&**name)
        {
            panic!("{name}={value} is not tried");
        }
    }
    for (name, value) in [
        ("CI_COMMIT_TITLE", "a title"),
        ("CI_ENVIRONMENT_NAME", "production"),
        ("GITHUB_SHA", "abc"),
        ("DLOCK_NOTE", "a title"),
    ] {
        dlock = dlock.env(name, value);
    }
    dlock.finish().expect_code(0)
}

fn variables(object: &Value) -> Vec<(String, String)> {
    let pairs = object.as_object().into_iter().flatten();
    pairs
        .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

fn gitlab(block: &Block) {
    let job = &yaml(&block.text)["deploy"];
    let lines = job["script"].as_array().expect("a list");
    assert!(job["variables"]["DLOCK_ENDPOINTS"].is_string());
    for line in lines {
        let outcome = step(
            &Etcd::start(),
            line.as_str().expect("a line"),
            &variables(&job["variables"]),
        );
        assert!(outcome.stdout.contains("deploy.sh"), "{outcome:?}");
    }
}

fn github(block: &Block) {
    let job = &yaml(&block.text)["jobs"]["deploy"];
    let steps = job["steps"].as_array().expect("a list");
    let line = steps
        .iter()
        .find_map(|step| step["run"].as_str())
        .expect("a step that runs something");
    let outcome = step(&Etcd::start(), line, &variables(&job["env"]));
    assert!(outcome.stdout.contains("deploy.sh"), "{outcome:?}");
}

/// There is no Groovy here: the braces match, and the step's own line runs.
fn jenkins(block: &Block) {
    assert_eq!(
        block.text.matches('{').count(),
        block.text.matches('}').count()
    );
    let line = block
        .text
        .lines()
        .find_map(|line| line.trim().strip_prefix("sh '")?.strip_suffix('\''));
    let outcome = step(&Etcd::start(), line.expect("a step"), &[]);
    assert!(outcome.stdout.contains("deploy.sh"), "{outcome:?}");
}

/// The command of a list of words.
fn command(words: &Value) -> String {
    let words = words.as_array().expect("a list").iter();
    let quoted = words.map(|word| {
        format!(
            "'{}'",
            word.as_str().expect("every word is text, numbers too")
        )
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// `make dist-test` builds such an image, which takes a container daemon.
fn copied_from_the_image(block: &Block) {
    let test = include_str!("../../image.sh");
    let copied = |line: &&str| {
        line.starts_with("COPY --from=") && line.ends_with(" /usr/bin/dlock /usr/bin/")
    };
    let example = block.text.lines().find(copied).expect("a copy");
    let tried = test.lines().find(copied).expect("a copy");
    let paths = |line: &str| {
        line.split_once(' ')
            .and_then(|(_, rest)| Some(rest.split_once(' ')?.1.to_owned()))
    };
    assert_eq!(paths(example), paths(tried));
}

fn kubernetes(block: &Block) {
    let job = yaml(&block.text);
    assert_eq!(
        (&job["kind"], &job["apiVersion"]),
        (&"CronJob".into(), &"batch/v1".into())
    );
    let pod = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let (mount, volume) = (&container["volumeMounts"][0], &pod["volumes"][0]);
    assert_eq!(mount["name"], volume["name"]);
    let etcd = Etcd::start();
    let outcome = step(&etcd, &command(&container["command"]), &[]);
    assert!(outcome.stdout.contains("nightly-report"), "{outcome:?}");
    step(&etcd, &command(&container["command"]), &[]).expect_stdout("");
}

fn ansible(block: &Block) {
    let tasks = yaml(&block.text);
    let task = &tasks[0];
    let line = command(&task["ansible.builtin.command"]["argv"]);
    let etcd = Etcd::start();
    let outcome = step(&etcd, &line, &variables(&task["environment"]));
    assert!(outcome.stdout.contains("migrate"), "{outcome:?}");
    script(&etcd, &line)
        .finish()
        .expect_code(75)
        .expect_stderr(&["ran already"]);
}

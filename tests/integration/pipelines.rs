//! The action for GitHub and the template for GitLab, which the project ships: their scripts run as the runners run them.
//! It must not know what a pipeline is for.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::examples::yaml;
use crate::support::{
    Dlock, Etcd, LIMIT, Oracle, Outcome, Scratch, dlock_program, eventually, free_port, hold_open,
    search_path, unique,
};

const ACTION: &str = include_str!("../../contrib/github/action.yml");
const TEMPLATE: &str = include_str!("../../contrib/gitlab/dlock.yml");

/// An installation of dlock may use these, and one of the programs that fetch files.
const TOOLS: [&str; 9] = [
    "bash",
    "sh",
    "uname",
    "mktemp",
    "grep",
    "sha256sum",
    "tar",
    "gzip",
    "env",
];

/// A name that a shell would execute, if one read it as a part of a script.
const HOSTILE: &str = r#"it's "$(touch pwned)" `touch pwned` ; touch pwned #"#;

/// The step of the action with this name.
fn action_step(name: &str) -> Value {
    let action = yaml(ACTION);
    let steps = action["runs"]["steps"].as_array().expect("steps");
    let step = steps.iter().find(|step| step["name"] == name);
    step.expect(name).clone()
}

/// The value of an expression of GitHub: `A || B`, `format(...)`, and names of inputs and of contexts.
fn evaluated(expression: &str, known: &dyn Fn(&str) -> String) -> String {
    let mut values = expression.split(" || ").map(|term| {
        let arguments = term
            .strip_prefix("format(")
            .and_then(|it| it.strip_suffix(')'));
        let Some(arguments) = arguments else {
            return known(term);
        };
        let mut arguments = arguments.split(", ");
        let pattern = arguments
            .next()
            .expect("a pattern")
            .trim_matches('\'')
            .to_owned();
        arguments.enumerate().fold(pattern, |text, (at, name)| {
            text.replace(&format!("{{{at}}}"), &known(name))
        })
    });
    values.find(|value| !value.is_empty()).unwrap_or_default()
}

/// The environment that GitHub gives the step, for these inputs.
fn environment(step: &Value, inputs: &[(&str, &str)]) -> Vec<(String, String)> {
    let declared = &yaml(ACTION)["inputs"];
    let known = |name: &str| match name.split_once('.') {
        Some(("inputs", input)) => {
            let given = inputs.iter().find(|(name, _)| *name == input);
            let default = declared[input]["default"].as_str().unwrap_or_default();
            given.map_or(default, |(_, value)| value).to_owned()
        }
        // The values that the job has not set, and those that the test leaves open.
        _ => String::new(),
    };
    let variables = step["env"].as_object().expect("variables").iter();
    let value = |text: &str| {
        let inner = text
            .strip_prefix("${{ ")
            .and_then(|it| it.strip_suffix(" }}"));
        evaluated(inner.expect("one expression"), &known)
    };
    variables
        .map(|(name, text)| (name.clone(), value(text.as_str().expect("text"))))
        .collect()
}

/// A script of a pipeline, in a file as the runner has it, with dlock in PATH.
fn runner(shell: &[&str], script: &str, variables: &[(String, String)]) -> Dlock {
    let mut job = Dlock::program([shell, &["script"]].concat()).after("cd \"$HOME\"");
    job.home().write("script", script);
    let bin = job.home().path().join("bin");
    fs::create_dir(&bin).expect("a directory");
    symlink(dlock_program(), bin.join("dlock")).expect("a link");
    job = job.env("PATH", format!("{}:{}", bin.display(), search_path()));
    variables
        .iter()
        .fold(job, |job, (name, value)| job.env(name, value))
}

/// The step of the action that runs the commands, as GitHub's runner runs it.
fn action(etcd: &Etcd, name: &str, run: &str, more: &[(&str, &str)]) -> Dlock {
    let endpoint = etcd.endpoint();
    let inputs = [("name", name), ("run", run), ("endpoints", &*endpoint)];
    let step = action_step("Run with the lock");
    let variables = environment(&step, &[&inputs, more].concat());
    let script = step["run"].as_str().expect("a script");
    runner(&GITHUB_SHELL, script, &variables)
}

/// `shell: bash`, by GitHub's documentation.
const GITHUB_SHELL: [&str; 6] = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail"];

/// A job that extends the template, in the shell of an image: GitLab's runner joins the lines of `before_script` and
/// `script`, and evaluates them behind a pipe, with the flag of the template in a subshell.
fn template(shell: &[&str], etcd: &Etcd, script: &str, variables: &[(&str, &str)]) -> Dlock {
    let job = &yaml(TEMPLATE)[".dlock"];
    let set = job["variables"].as_object().expect("variables");
    let mut all: Vec<(String, String)> = set
        .iter()
        .map(|(name, value)| (name.clone(), value.as_str().expect("text").to_owned()))
        .collect();
    let given = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    all.extend(given);
    all.push(("DLOCK_ENDPOINTS".to_owned(), etcd.endpoint()));
    let before = job["before_script"].as_array().expect("lines");
    let lines = before.iter().map(|line| line.as_str().expect("text"));
    let lines: Vec<&str> = lines.chain([script]).collect();
    let quoted = lines.join("\n").replace('\'', r"'\''");
    assert_eq!(set["FF_USE_NEW_BASH_EVAL_STRATEGY"], "true");
    let script = format!("set -e\n: | (eval '{quoted}')\nexit 0\n");
    runner(shell, &script, &all)
}

const GITLAB_SHELLS: [&[&str]; 2] = [&["bash", "-o", "pipefail"], &["sh"]];

/// The keys that GitHub's documentation requires, no unknown input, and no expression in a script.
#[test]
fn the_action_is_complete_and_no_input_reaches_the_text_of_a_script() {
    let action = yaml(ACTION);
    for key in ["name", "description"] {
        assert!(action[key].is_string(), "{key}");
    }
    assert_eq!(action["runs"]["using"], "composite");
    let declared: BTreeSet<&str> = action["inputs"]
        .as_object()
        .expect("inputs")
        .iter()
        .map(|(name, input)| {
            assert!(input["description"].is_string(), "{name}");
            &**name
        })
        .collect();
    let mut used = BTreeSet::new();
    for step in action["runs"]["steps"].as_array().expect("steps") {
        assert_eq!(step["shell"], "bash");
        assert!(!step["run"].as_str().expect("a script").contains("${{"));
        let texts = step["env"].as_object().expect("variables").values();
        let texts = texts.chain([&step["if"]]).filter_map(Value::as_str);
        for text in texts {
            let names = text.split("inputs.").skip(1);
            used.extend(names.map(|rest| {
                let end = rest.find(|it: char| !it.is_ascii_lowercase() && it != '-');
                rest[..end.unwrap_or(rest.len())].to_owned()
            }));
        }
    }
    assert_eq!(
        used.iter().map(|name| &**name).collect::<BTreeSet<_>>(),
        declared
    );
}

/// Two steps at once never overlap, and each ends with the status of its commands.
#[test]
fn the_action_runs_its_commands_with_the_lock_and_keeps_their_status() {
    let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("action"));
    let command = oracle
        .command(&["sh", "-c", "sleep 0.5; exit 7"])
        .iter()
        .map(|word| format!("'{word}'"))
        .collect::<Vec<_>>();
    let steps = [(); 3].map(|()| action(etcd, &name, &command.join(" "), &[]).start());
    for mut step in steps {
        step.wait().expect_code(7);
    }
    oracle.assert_no_overlap();
    assert_eq!(oracle.tokens().len(), 3);

    // The commands are bash's, and fail with the first that fails, also in a pipe.
    let step = action(etcd, &name, "false | true\necho not reached", &[]);
    step.finish().expect_code(1).expect_stdout("");
    let _holder = hold_open(Dlock::on(etcd), &[], &name);
    let step = action(
        etcd,
        &name,
        "echo never",
        &[("wait", "1s"), ("note", "a note")],
    );
    step.finish()
        .expect_code(75)
        .expect_stdout("")
        .expect_stderr(&["still held by"]);
}

/// "the inputs are variables, so that no text of theirs is read as a script"
#[test]
fn the_action_takes_every_name_as_a_name() {
    for name in [HOSTILE, "--reentrant", "-n"] {
        let run = "printf '%s\\n' \"$DLOCK_NAME\" \"${LOCK_NAME-none}\"; ls";
        let step = action(Etcd::shared(), name, run, &[])
            .finish()
            .expect_code(0);
        assert!(
            step.stdout.starts_with(&format!("{name}\nnone\n")),
            "{step:?}"
        );
        assert!(!step.stdout.contains("\npwned"), "{step:?}");
    }
}

/// The same for a job that extends the template, in bash and in a plain sh.
#[test]
fn the_template_runs_commands_with_the_lock_and_keeps_their_status() {
    for shell in GITLAB_SHELLS {
        let (etcd, oracle, name) = (Etcd::shared(), Oracle::new(), unique("template"));
        let variables = [("LOCK_NAME", &*name)];
        let command = oracle
            .command(&["sh", "-c", "sleep 0.5; exit 7"])
            .iter()
            .map(|word| format!("'{word}'"))
            .collect::<Vec<_>>();
        let script = format!("locked {}\necho not reached", command.join(" "));
        let jobs = [(); 2].map(|()| template(shell, etcd, &script, &variables).start());
        for mut job in jobs {
            job.wait().expect_code(7).expect_stdout("");
        }
        oracle.assert_no_overlap();
        assert_eq!(oracle.tokens().len(), 2);

        for name in [HOSTILE, "--reentrant"] {
            let script = "locked sh -c 'printf \"%s\\n\" \"$DLOCK_NAME\"'; ls";
            let job = template(shell, etcd, script, &[("LOCK_NAME", name)]);
            let job = job.finish().expect_code(0);
            assert!(job.stdout.starts_with(&format!("{name}\n")), "{job:?}");
            assert!(!job.stdout.contains("\npwned"), "{job:?}");
        }
        let _holder = hold_open(Dlock::on(etcd), &[], &name);
        let busy = [("LOCK_NAME", &*name), ("DLOCK_WAIT", "1s")];
        template(shell, etcd, "locked echo never", &busy)
            .finish()
            .expect_code(75);
    }
}

/// The keys that GitLab's documentation gives a job that others extend.
#[test]
fn the_template_is_a_hidden_job() {
    let template = yaml(TEMPLATE);
    let jobs = template.as_object().expect("an object");
    assert_eq!(jobs.keys().collect::<Vec<_>>(), [".dlock"]);
    let keys: Vec<&String> = jobs[".dlock"].as_object().expect("a job").keys().collect();
    assert_eq!(keys, ["before_script", "variables"]);
    for (name, value) in jobs[".dlock"]["variables"].as_object().expect("variables") {
        assert!(value.is_string(), "{name}");
    }
}

/// Releases of dlock on a web server, ended on drop.
struct Releases {
    server: Child,
    url: String,
    files: Scratch,
}

impl Releases {
    /// A server with the release 1.2.3 for this machine, whose program is a script that becomes the dlock of the test.
    fn start() -> Self {
        let (files, port) = (Scratch::new(), free_port());
        let machine = rustix::system::uname();
        let name = format!(
            "dlock-1.2.3-{}-linux-musl",
            machine.machine().to_str().expect("a name")
        );
        let bin = files.path().join(&name).join("bin");
        fs::create_dir_all(&bin).expect("a directory");
        let program = bin.join("dlock");
        fs::write(
            &program,
            format!("#!/bin/sh\nexec {} \"$@\"\n", dlock_program()),
        )
        .expect("a file");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("our own file");
        let pack = "tar -czf \"$1.tar.gz\" \"$1\" && sha256sum ./*.gz | sed 's| \\./| |' >SHA256SUMS && rm -r \"$1\"";
        let packed = Command::new("sh")
            .args(["-ec", pack, "sh", &name])
            .current_dir(files.path())
            .status();
        assert!(packed.expect("sh").success());
        let server = Command::new("/usr/bin/python3")
            .args([
                "-m",
                "http.server",
                "--bind",
                "127.0.0.1",
                &port.to_string(),
            ])
            .current_dir(files.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3");
        eventually(LIMIT, "the server listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let url = format!("http://127.0.0.1:{port}");
        Self { server, url, files }
    }
}

impl Drop for Releases {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A directory with nothing but these programs.
fn only(programs: &[&str]) -> Scratch {
    let bin = Scratch::new();
    let path = std::env::var("PATH").unwrap_or_default();
    for program in programs {
        let mut found = std::env::split_paths(&path).map(|directory| directory.join(program));
        let found = found
            .find(|path| path.exists())
            .unwrap_or_else(|| panic!("there is no {program}"));
        symlink(found, bin.path().join(program)).expect("a link");
    }
    bin
}

/// The step of the action that installs dlock, with this program and [`TOOLS`] alone; and what it adds to the next steps' PATH.
fn install(version: &str, releases: &Releases, fetch: &str) -> (Outcome, String) {
    let step = action_step("Install dlock");
    assert_eq!(step["if"], "inputs.version != ''");
    let variables = environment(&step, &[("version", version), ("url", &releases.url)]);
    let script = step["run"].as_str().expect("a script");
    let bin = only(&[&TOOLS[..], &[fetch]].concat());
    let job = runner(&GITHUB_SHELL, script, &variables);
    let added = job.home().file("added");
    let job = job
        .env("PATH", bin.path())
        .env("TMPDIR", releases.files.path())
        .env("GITHUB_PATH", &added);
    let mut job = job.start();
    let outcome = job.wait();
    let added = fs::read_to_string(&added).unwrap_or_default();
    (outcome, added)
}

/// "Version of dlock to install": with curl or with wget, and only if the checksum is right.
#[test]
fn the_action_installs_a_release_whose_checksum_is_right() {
    let releases = Releases::start();
    for fetch in ["curl", "wget"] {
        let (outcome, added) = install("1.2.3", &releases, fetch);
        outcome
            .expect_code(0)
            .expect_stdout("")
            .expect_stderr(&["dlock "]);
        let program = Path::new(added.trim_end()).join("dlock");
        let version = Command::new(&program)
            .arg("--version")
            .output()
            .expect("a program");
        assert!(version.stdout.starts_with(b"dlock "), "{version:?}");
    }
    let refused = |version: &str, words: &str| {
        let (outcome, added) = install(version, &releases, "curl");
        assert!(outcome.code() != Some(0) && added.is_empty(), "{outcome:?}");
        assert!(outcome.stderr.contains(words), "{outcome:?}");
    };
    refused("1.2.4", "404");
    refused(
        "$(touch pwned)",
        "this is no version of dlock: '$(touch pwned)'",
    );
    refused("../1.2.3", "this is no version of dlock");
    let sums = releases.files.read("SHA256SUMS");
    let first = if sums.starts_with('0') { "1" } else { "0" };
    let wrong = format!("{first}{}", &sums[1..]);
    releases.files.write("SHA256SUMS", &wrong);
    refused("1.2.3", "FAILED");
    releases.files.write("SHA256SUMS", "");
    refused("1.2.3", "");
}

/// The same for the template, whose text is the same.
#[test]
fn the_template_installs_a_release_as_the_action_does() {
    let function = |script: &str| {
        let (_, rest) = script
            .split_once("install_dlock() {")
            .expect("the function");
        rest.split_once("\n}\n").expect("its end").0.to_owned()
    };
    let in_action = action_step("Install dlock")["run"].as_str().map(function);
    let in_template = yaml(TEMPLATE)[".dlock"]["before_script"][0]
        .as_str()
        .map(function);
    assert_eq!(in_action, in_template);

    let releases = Releases::start();
    for shell in GITLAB_SHELLS {
        let bin = only(&[&TOOLS[..], &["curl"]].concat());
        let (etcd, name) = (Etcd::shared(), unique("installed"));
        let job = |version: &str| {
            let variables = [
                ("LOCK_NAME", &*name),
                ("DLOCK_VERSION", version),
                ("DLOCK_URL", &releases.url),
            ];
            let job = template(
                shell,
                etcd,
                "locked sh -c 'echo \"$DLOCK_NAME\"'",
                &variables,
            );
            job.env("PATH", bin.path())
                .env("TMPDIR", releases.files.path())
                .finish()
        };
        job("1.2.3")
            .expect_code(0)
            .expect_stdout(&format!("{name}\n"));
        assert_ne!(job("1.2.4").expect_stdout("").code(), Some(0));
    }
}

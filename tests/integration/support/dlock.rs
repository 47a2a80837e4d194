//! Starts the program under test (or a peer instead) in a clean environment, watches it and cleans up after it.
//! It must not know what a run is expected to do.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::process::Signal;

use super::etcd::Etcd;
use super::processes::{MARK, Process, kill_marked, marked};
use super::{LIMIT, Scratch, eventually, json, unique};

/// The path of the dlock under test: the one in `DLOCK_TEST_BIN`, else the one that cargo built for the tests.
pub(crate) fn dlock_program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| chosen("DLOCK_TEST_BIN"));
    &PROGRAM
}

/// The path of a dlock that was built before it: the one in `DLOCK_TEST_PREVIOUS`, else the one that cargo built.
pub(crate) fn previous_program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| chosen("DLOCK_TEST_PREVIOUS"));
    &PROGRAM
}

fn chosen(variable: &str) -> String {
    let Some(chosen) = env::var_os(variable) else {
        return env!("CARGO_BIN_EXE_dlock").to_owned();
    };
    // The tests start it in directories of their own, by its name too, and recognise its processes by that name.
    let path = fs::canonicalize(&chosen)
        .unwrap_or_else(|error| panic!("{variable}={}: {error}", chosen.display()));
    assert!(
        path.ends_with("dlock"),
        "{variable}={}: the file's name is not dlock",
        chosen.display()
    );
    path.into_os_string().into_string().expect("a UTF-8 path")
}

/// A program to be started: by default the dlock under test.
pub(crate) struct Dlock {
    /// The program that starts it, such as `nohup`.
    launcher: Vec<OsString>,
    line: Vec<OsString>,
    env: Vec<(String, OsString)>,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    scratch: Scratch,
}

/// A started program; drop kills it and all its descendants.
pub(crate) struct Running {
    child: Child,
    line: Vec<OsString>,
    mark: String,
    scratch: Scratch,
}

/// The end of a program.
#[derive(Debug)]
pub(crate) struct Outcome {
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Dlock {
    /// dlock with the server's endpoint in `DLOCK_ENDPOINTS`.
    pub(crate) fn on(etcd: &Etcd) -> Self {
        Self::at(&etcd.endpoint())
    }

    /// dlock with these endpoints, comma separated.
    pub(crate) fn at(endpoints: &str) -> Self {
        Self::nowhere().env("DLOCK_ENDPOINTS", endpoints)
    }

    /// dlock without an endpoint.
    pub(crate) fn nowhere() -> Self {
        Self::program([dlock_program()])
    }

    /// etcdctl against this server.
    pub(crate) fn etcdctl(etcd: &Etcd) -> Self {
        Self::program(etcd.ctl_command()).env("ETCDCTL_API", "3")
    }

    /// Another program instead of dlock.
    pub(crate) fn program<S: AsRef<OsStr>>(line: impl IntoIterator<Item = S>) -> Self {
        Self {
            launcher: Vec::new(),
            line: line
                .into_iter()
                .map(|word| word.as_ref().to_owned())
                .collect(),
            env: Vec::new(),
            stdin: None,
            stdout: None,
            stderr: None,
            scratch: Scratch::new(),
        }
    }

    /// `run NAME` and further arguments.
    pub(crate) fn run<S: AsRef<OsStr>>(self, words: impl IntoIterator<Item = S>) -> Self {
        self.args(["run"]).args(words)
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.line
            .extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts the program through another one that ends in an `exec`, so that the process id stays.
    pub(crate) fn under<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.launcher
            .extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Starts the program from a line of shell: `setup; exec program...`.
    pub(crate) fn after(self, setup: &str) -> Self {
        self.under(["sh", "-c", &format!("{setup}; exec \"$@\""), "sh"])
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    pub(crate) fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    pub(crate) fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = Some(stderr.into());
        self
    }

    /// The empty directory that is `$HOME`, and takes the output.
    pub(crate) fn home(&self) -> &Scratch {
        &self.scratch
    }

    pub(crate) fn start(self) -> Running {
        let mark = unique("tree");
        let file = |name: &str| File::create(self.scratch.path().join(name)).expect("a new file");
        // An ignored signal is inherited: from nohup, or from a shell that starts the tests in the background.
        let child = Command::new("env")
            .args(["--default-signal", "--"])
            .args(self.launcher.iter().chain(&self.line))
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.scratch.path())
            .env("XDG_CONFIG_HOME", self.scratch.path().join("config"))
            .env("LC_ALL", "C")
            .env(MARK, &mark)
            .envs(self.env)
            .stdin(self.stdin.unwrap_or_else(Stdio::null))
            .stdout(self.stdout.unwrap_or_else(|| file("stdout").into()))
            .stderr(self.stderr.unwrap_or_else(|| file("stderr").into()))
            .spawn()
            .expect("the program starts");
        Running {
            child,
            line: self.line,
            mark,
            scratch: self.scratch,
        }
    }

    /// Starts it and waits for its end.
    #[track_caller]
    pub(crate) fn finish(self) -> Outcome {
        self.start().wait()
    }
}

impl Running {
    pub(crate) fn process(&self) -> Process {
        Process(self.child.id().try_into().expect("a process id"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// The guard, dlock's child that enforces the deadline.
    #[track_caller]
    pub(crate) fn guard(&self) -> Process {
        eventually(LIMIT, "dlock has a guard", || {
            self.process()
                .children()
                .into_iter()
                .find(|child| child.name() == "dlock-guard")
        })
    }

    /// The processes below the guard, and orphans of that tree.
    pub(crate) fn tree(&self) -> Vec<Process> {
        let mut tree = marked(&self.mark);
        tree.retain(|process| {
            *process != self.process() && !["dlock", "dlock-guard"].contains(&&*process.name())
        });
        tree
    }

    /// All living processes that were started here, dlock and its guard included.
    pub(crate) fn everything(&self) -> Vec<Process> {
        marked(&self.mark)
    }

    pub(crate) fn stdout(&self) -> String {
        self.scratch.read("stdout")
    }

    pub(crate) fn stderr(&self) -> String {
        self.scratch.read("stderr")
    }

    pub(crate) fn take_stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("started with a piped stdin")
    }

    pub(crate) fn take_stdout(&mut self) -> std::process::ChildStdout {
        self.child
            .stdout
            .take()
            .expect("started with a piped stdout")
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        let stdin = self
            .child
            .stdin
            .as_mut()
            .expect("started with a piped stdin");
        stdin.write_all(text.as_bytes()).expect("a reader");
        stdin.flush().expect("a reader");
    }

    /// Waits until the standard output holds `text`.
    #[track_caller]
    pub(crate) fn says(&mut self, text: &str) {
        let until = super::boot_clock() + LIMIT;
        while !self.stdout().contains(text) {
            let over = self.is_over() && !self.stdout().contains(text);
            assert!(
                !over && super::boot_clock() < until,
                "no {text:?} in the output\nover: {over}\nstdout: {}\nstderr: {}",
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Closes the standard input, for which its command waits, and expects success.
    #[track_caller]
    pub(crate) fn let_go(&mut self) -> Outcome {
        assert!(!self.is_over(), "{}", self.stderr());
        drop(self.take_stdin());
        self.wait().expect_code(0)
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    #[track_caller]
    pub(crate) fn wait(&mut self) -> Outcome {
        self.wait_within(LIMIT)
    }

    #[track_caller]
    pub(crate) fn wait_within(&mut self, limit: Duration) -> Outcome {
        let until = super::boot_clock() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                let (stdout, stderr) = (self.stdout(), self.stderr());
                json::check_outputs(&self.line, &stdout, &stderr);
                return Outcome {
                    status,
                    stdout,
                    stderr,
                };
            }
            assert!(
                super::boot_clock() < until,
                "not over within {limit:?}\nstdout: {}\nstderr: {}\nprocesses: {:?}",
                self.stdout(),
                self.stderr(),
                self.everything()
                    .iter()
                    .map(|it| (it.0, it.name(), it.state()))
                    .collect::<Vec<_>>(),
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until no process of the command's tree lives.
    #[track_caller]
    pub(crate) fn tree_dies(&self) {
        eventually(LIMIT, "the command's whole tree is dead", || {
            self.tree().is_empty()
        });
    }

    /// Waits until no process of the command's tree lives, and fails if one is seen alive after `too_late` was seen to hold. A
    /// test that is itself late on a busy machine misses something, and blames nothing on dlock.
    #[track_caller]
    pub(crate) fn tree_dies_before(&self, what: &str, mut too_late: impl FnMut() -> bool) {
        eventually(LIMIT, "the command's whole tree is dead", || {
            let too_late = too_late();
            let left = self.tree();
            assert!(left.is_empty() || !too_late, "alive {what}: {left:?}");
            left.is_empty()
        });
    }

    /// Fails unless no process of the command's tree lives now.
    #[track_caller]
    pub(crate) fn assert_tree_dead(&self) {
        let left = self.tree();
        assert!(
            left.is_empty(),
            "still there: {:?}",
            left.iter()
                .map(|it| (it.0, it.name(), it.state()))
                .collect::<Vec<_>>()
        );
    }

    /// A file that the command wrote into its `$HOME`.
    pub(crate) fn written(&self, name: &str) -> String {
        self.scratch.read(name)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.process().signal(Signal::CONT);
        let _ = self.child.kill();
        let _ = self.child.wait();
        kill_marked(&self.mark);
    }
}

impl Outcome {
    /// The exit code, unless a signal ended it.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn expect_signal(self, signal: Signal) -> Self {
        assert_eq!(self.signal(), Some(signal.as_raw()), "{self:?}");
        self
    }

    /// Fails unless each line of dlock's begins with its name, and `words` are all in them.
    #[track_caller]
    pub(crate) fn expect_stderr(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "no {word:?} in: {}",
                self.stderr
            );
        }
        self
    }

    #[track_caller]
    pub(crate) fn expect_silent(self) -> Self {
        assert_eq!(self.stderr, "", "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn expect_stdout(self, stdout: &str) -> Self {
        assert_eq!(self.stdout, stdout, "{self:?}");
        self
    }
}

//! Many processes of one tool at once, and the stamps of their commands.
//! It must not know what is measured.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::stamp::{self, Stamp};
use crate::support::{Etcd, Process, Scratch, boot_clock, dlock_program, eventually, let_pass};
use crate::tool::{Tool, myself};
use crate::{baseline, server};

/// Time limit for anything that takes an instant on an idle machine.
const PATIENCE: Duration = Duration::from_mins(4);

/// The kinds of contenders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tool(Tool),
    /// The bare client.
    Bare,
    /// dlock without a server.
    Local,
}

impl Kind {
    /// The command line up to the command. `file` is the lock of a tool without a server.
    pub(crate) fn line(self, endpoint: &str, file: &str, name: &str, ttl: &str) -> Vec<String> {
        match self {
            Self::Tool(tool) => tool.line(endpoint, file, name, ttl),
            Self::Bare => baseline::line(baseline::QUEUED, endpoint, baseline::PLAIN, name),
            Self::Local => local_line(&format!("{file}.d"), name),
        }
    }

    /// The prefix of all keys of the lock in etcd.
    pub(crate) fn keys(self, name: &str) -> Option<String> {
        match self {
            Self::Tool(tool) => tool.keys(name),
            Self::Bare => Some(format!("{name}/")),
            Self::Local => None,
        }
    }
}

/// The command line up to the command, of dlock with its state in this directory.
pub(crate) fn local_line(directory: &str, name: &str) -> Vec<String> {
    let local = format!("--local={directory}");
    [dlock_program(), "run", &local, name, "--"]
        .map(str::to_owned)
        .to_vec()
}

pub(crate) struct Contenders {
    kind: Kind,
    ttl: &'static str,
    at: String,
    children: Vec<Child>,
    dir: Scratch,
    /// The pipe that commands read until they must end.
    fifo: String,
    stamps: String,
}

impl Contenders {
    pub(crate) fn new(kind: Kind, endpoint: String, ttl: &'static str) -> Self {
        let dir = Scratch::new();
        let fifo = dir.file("fifo");
        mknodat(CWD, &*fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a new file");
        Self {
            kind,
            ttl,
            at: endpoint,
            children: Vec::new(),
            stamps: dir.write("stamps", ""),
            fifo,
            dir,
        }
    }

    /// Starts one more contender for the lock `name`; its command stays until the release of all, or ends at once.
    pub(crate) fn join(&mut self, name: &str, stays: bool) {
        let file = self.dir.file(&format!("lock-{name}"));
        let mut line = self.kind.line(&self.at, &file, name, self.ttl);
        line.extend([myself(), stamp::WORD.to_owned()]);
        line.push(self.stamps.clone());
        line.extend(stays.then(|| self.fifo.clone()));
        let errors = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.file("errors"));
        let child = Command::new(&line[0])
            .args(&line[1..])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .envs(Tool::VARIABLES)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.expect("a new file"))
            .spawn()
            .expect("the program starts");
        self.children.push(child);
    }

    /// Waits until `count` commands that stay have begun.
    pub(crate) fn await_begun(&self, count: usize) {
        eventually(PATIENCE, "the commands run", || {
            self.dir
                .read("stamps")
                .lines()
                .filter(|line| line.is_empty())
                .count()
                >= count
        });
    }

    /// Waits until the queue has `count` entries, that of the holder included.
    pub(crate) fn await_queued(&self, etcd: Option<&Etcd>, name: &str, count: usize) {
        if self.kind == Kind::Local {
            let directory = self.dir.path().join(format!("lock-{name}.d/{name}"));
            return eventually(PATIENCE, "all of them queue", || {
                let files = fs::read_dir(&directory).into_iter().flatten().flatten();
                let is_entry =
                    |name: &OsStr| name.to_str().is_some_and(|it| it.parse::<u64>().is_ok());
                files.filter(|file| is_entry(&file.file_name())).count() == count
            });
        }
        let (Some(keys), Some(etcd)) = (self.kind.keys(name), etcd) else {
            // These tools report nothing; this is enough for all to start on two cores.
            return let_pass(Duration::from_millis(500 + 10 * count as u64));
        };
        // A server may be slow to answer while thousands come.
        let limit = format!("--command-timeout={}s", PATIENCE.as_secs());
        let query = ["get", "--prefix", &keys, "--keys-only", &limit];
        eventually(PATIENCE, "all of them queue", || {
            let found = etcd.ctl(&query);
            found.lines().filter(|line| !line.is_empty()).count() == count
        });
    }

    /// Ends the commands that stay. Returns the time.
    pub(crate) fn let_go(&self) -> Duration {
        let at = boot_clock();
        drop(
            File::options()
                .write(true)
                .open(&self.fifo)
                .expect("a reader"),
        );
        at
    }

    /// Waits for the end of all contenders, and returns the stamps of their commands.
    pub(crate) fn finish(mut self) -> Vec<Stamp> {
        let until = boot_clock() + PATIENCE;
        for child in &mut self.children {
            let ended = loop {
                match child.try_wait().expect("our own child") {
                    Some(status) => break status,
                    None => assert!(boot_clock() < until, "it does not end"),
                }
                let_pass(Duration::from_millis(20));
            };
            let errors = fs::read_to_string(self.dir.path().join("errors")).unwrap_or_default();
            assert!(ended.success(), "{ended}: {errors}");
        }
        stamp::parse(&self.dir.read("stamps"))
    }

    /// The processes started here, each with its guard.
    pub(crate) fn processes(&self) -> Vec<Vec<Process>> {
        let family = |child: &Child| {
            let tool = Process(child.id().try_into().expect("a process id"));
            let mut family = vec![tool];
            family.extend(
                tool.children()
                    .into_iter()
                    .filter(|child| child.name() == "dlock-guard"),
            );
            family
        };
        self.children.iter().map(family).collect()
    }

    /// The proportional share of memory of each, in MiB.
    pub(crate) fn memory(&self) -> Vec<f64> {
        let share =
            |process: &Process| server::kibibytes(process.0, "smaps_rollup", "Pss:") / 1024.0;
        let processes = self.processes();
        processes
            .iter()
            .map(|family| family.iter().map(share).sum())
            .collect()
    }
}

impl Drop for Contenders {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Its command ends with it, or when it has the lock.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.fifo);
    }
}

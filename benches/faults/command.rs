//! The protected command: it writes a beat every 10 ms into a file, takes the oracle's flock, and may leave descendants
//! behind.
//! It must not know which tool protects it, nor which fault is active.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{setpgid, setsid};

use crate::support::boot_clock;
use crate::tool::myself;

/// The first argument that makes this program the protected command.
pub(crate) const WORD: &str = "protected";

const BEAT: Duration = Duration::from_millis(10);
/// Time between two links of the chain: no process of it lives longer.
const LINK: Duration = Duration::from_millis(2);

/// The shape of the command's tree.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One process.
    Plain,
    /// One process that ignores SIGTERM.
    Stubborn,
    /// A grandchild in a session of its own beats as well.
    Daemon,
    /// As `Daemon`, and the command itself ends after two seconds.
    Leaver,
    /// A process that a child in another session replaces again and again.
    Chain,
}

impl Shape {
    fn word(self) -> &'static str {
        match self {
            Self::Plain | Self::Stubborn => "plain",
            Self::Daemon => "daemon",
            Self::Leaver => "leaver",
            Self::Chain => "chain",
        }
    }
}

/// The command line of a command that works for `span` and then exits with `code`.
pub(crate) fn line(shape: Shape, dir: &Path, who: &str, span: Duration, code: u8) -> Vec<String> {
    let mut line = Vec::new();
    if shape == Shape::Stubborn {
        line.extend(["sh", "-c", "trap '' TERM; exec \"$@\"", "sh"].map(str::to_owned));
    }
    line.push(myself());
    line.extend([WORD, "enter", shape.word()].map(str::to_owned));
    line.push(dir.to_str().expect("a plain path").to_owned());
    line.extend([
        who.to_owned(),
        span.as_millis().to_string(),
        code.to_string(),
    ]);
    line
}

/// A prefix that starts a program in a process group of its own, as a shell starts a job: the kernel does not stop one
/// alone.
pub(crate) fn as_job() -> Vec<String> {
    vec![myself(), WORD.to_owned(), "job".to_owned()]
}

/// A prefix that starts a program in a session of its own, as cron or another host does.
pub(crate) fn in_session() -> Vec<String> {
    vec!["setsid".to_owned()]
}

/// Becomes the command, or a descendant of it.
pub(crate) fn run(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["job", program, ref arguments @ ..] => {
            setpgid(None, None).expect("a child of another group");
            let error = Command::new(program).args(arguments).exec();
            panic!("{program}: {error}")
        }
        ["enter", shape, dir, who, span, code] => {
            let span = Duration::from_millis(number(span));
            let code = u8::try_from(number(code)).expect("an exit code");
            enter(shape, Path::new(dir), who, span);
            ExitCode::from(code)
        }
        [role, dir, who, until] => {
            let until = Duration::from_millis(number(until));
            descend(role, Path::new(dir), who, until);
            ExitCode::SUCCESS
        }
        _ => panic!("{words:?} is not for people"),
    }
}

fn enter(shape: &str, dir: &Path, who: &str, span: Duration) {
    let until = boot_clock() + span;
    let lock = append(dir, "oracle.lock");
    let refused = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err();
    // Every descendant inherits the file, so the kernel keeps its lock until the last one is dead.
    fcntl_setfd(&lock, FdFlags::empty()).expect("an open file");
    if refused {
        record(dir, &format!("refused-{who}"));
    }
    beat(&mut append(dir, &format!("beats-{who}")));
    match shape {
        "daemon" | "leaver" => start("daemon", dir, who, until),
        "chain" => start("chain", dir, who, until),
        _ => {}
    }
    let own_end = if shape == "leaver" {
        boot_clock() + Duration::from_secs(2)
    } else {
        until
    };
    beat_until(dir, who, own_end);
    record(dir, &format!("ended-{who}"));
}

fn descend(role: &str, dir: &Path, who: &str, until: Duration) {
    match role {
        "daemon" => {
            setsid().expect("a child leads no process group");
            start("beat", dir, who, until);
        }
        "chain" => {
            setsid().expect("a child leads no process group");
            beat(&mut append(dir, &format!("beats-{who}")));
            thread::sleep(LINK);
            if boot_clock() < until {
                start("chain", dir, who, until);
            }
        }
        _ => beat_until(dir, who, until),
    }
}

#[expect(
    clippy::zombie_processes,
    reason = "who starts one here ends before it"
)]
fn start(role: &str, dir: &Path, who: &str, until: Duration) {
    Command::new(myself())
        .args([WORD, role])
        .arg(dir)
        .args([who, &until.as_millis().to_string()])
        .stdin(Stdio::null())
        .spawn()
        .expect("this program starts again");
}

fn beat_until(dir: &Path, who: &str, until: Duration) {
    let mut beats = append(dir, &format!("beats-{who}"));
    while boot_clock() < until {
        beat(&mut beats);
        thread::sleep(BEAT);
    }
}

/// Writes all at once, so that a reader never sees half of it.
fn beat(beats: &mut File) {
    let line = format!("{}\n", boot_clock().as_micros());
    // The directory is removed when the observation is over.
    let _ = beats.write_all(line.as_bytes());
}

/// Writes the time into a file.
fn record(dir: &Path, name: &str) {
    beat(&mut append(dir, name));
}

fn append(dir: &Path, name: &str) -> File {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join(name))
        .expect("the oracle's directory takes a file")
}

fn number(word: &str) -> u64 {
    word.parse().expect("a number")
}

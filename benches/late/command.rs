//! The commands under the locks: a process that computes, one that waits, and one in a session of its own, none of which ends on
//! SIGTERM; and a plain process that kills such a command at a given time.
//! It must not know the loads.

use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use crate::support::boot_clock;

/// The first argument that makes this program the plain process.
pub(crate) const WORD: &str = "plain";

/// Says "on" when all of its processes run.
pub(crate) const STUBBORN: [&str; 3] = [
    "sh",
    "-c",
    "trap '' TERM; setsid -f sleep 600; (while :; do :; done) & echo on; while :; do sleep 600; done",
];

/// The least that the guard does: it waits until a moment of the boot clock, in microseconds, and kills one process.
pub(crate) fn run(words: &[String]) -> ExitCode {
    let kill_at = words.first().and_then(|word| word.parse().ok());
    let kill_at = Duration::from_micros(kill_at.expect("a moment"));
    let mut child = Command::new("sleep")
        .arg("600")
        .stdin(Stdio::null())
        .spawn()
        .expect("sleep(1) is part of every Linux");
    while let Some(left) = kill_at.checked_sub(boot_clock()) {
        thread::sleep(left);
    }
    let _ = child.kill();
    let _ = child.wait();
    ExitCode::SUCCESS
}

//! The command under the locks: writes down its begin, its end, and its token.
//! It must not know which tool runs it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::ExitCode;

use crate::support::boot_clock;

/// The argument that makes this program the command.
pub(crate) const WORD: &str = "stamp";

/// One run of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    /// Nanoseconds since boot.
    pub(crate) began_at: u128,
    pub(crate) ended_at: u128,
    /// 0 for a tool without tokens.
    pub(crate) token: u64,
}

/// `stamp FILE [FIFO]`: appends one line to FILE at its end. With FIFO, also an empty line at its beginning, and it stays
/// until all writers of FIFO are gone.
pub(crate) fn run(words: &[String]) -> ExitCode {
    let began_at = boot_clock().as_nanos();
    let mut file = OpenOptions::new()
        .append(true)
        .open(&words[0])
        .expect("the file is there");
    if let Some(fifo) = words.get(1) {
        file.write_all(b"\n").expect("room for one byte");
        let _ = File::open(fifo).and_then(|mut fifo| fifo.read(&mut [0; 1]));
    }
    let variable = |name| std::env::var(name).ok();
    let token = variable("DLOCK_FENCING_TOKEN").or_else(|| variable("ETCD_LOCK_REV"));
    let token = token.unwrap_or_else(|| "0".to_owned());
    let line = format!("{began_at} {} {token}\n", boot_clock().as_nanos());
    file.write_all(line.as_bytes()).expect("room for a line");
    ExitCode::SUCCESS
}

/// Parses the lines of all commands, sorted by their begin.
pub(crate) fn parse(text: &str) -> Vec<Stamp> {
    let stamp = |line: &str| {
        let mut words = line.split(' ');
        Some(Stamp {
            began_at: words.next()?.parse().ok()?,
            ended_at: words.next()?.parse().ok()?,
            token: words.next()?.parse().ok()?,
        })
    };
    let mut stamps: Vec<Stamp> = text.lines().filter_map(stamp).collect();
    stamps.sort_unstable();
    stamps
}

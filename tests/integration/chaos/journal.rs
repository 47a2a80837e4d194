//! The notes of the commands themselves: the begin and the end of each, and its token.
//! It must not know what etcd or dlock report of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

use crate::support::Scratch;

/// A file that other processes append to.
pub(super) struct Tail {
    file: File,
    rest: Vec<u8>,
}

impl Tail {
    pub(super) fn of(path: &str) -> Self {
        Self {
            file: File::open(path).expect("made before"),
            rest: Vec::new(),
        }
    }

    /// The new complete lines.
    pub(super) fn lines(&mut self) -> Vec<String> {
        self.file.read_to_end(&mut self.rest).expect("a file");
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n');
        let rest = self.rest.split_off(whole.map_or(0, |last| last + 1));
        let text = std::mem::replace(&mut self.rest, rest);
        let text = String::from_utf8_lossy(&text);
        text.lines().map(str::to_owned).collect()
    }
}

/// A command that has begun.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    pub(super) token: i64,
    /// By this host's boot clock, rounded down to the hundredth of a second.
    pub(super) at: Duration,
    /// The time of its own end.
    pub(super) ended_at: Option<Duration>,
}

/// The file in which commands note their begins and ends, with its content.
pub(super) struct Journal {
    dir: Scratch,
    tail: Tail,
    begun: BTreeMap<usize, Begun>,
}

impl Journal {
    pub(super) fn new() -> Self {
        let dir = Scratch::new();
        let tail = Tail::of(&dir.write("journal", ""));
        Self {
            dir,
            tail,
            begun: BTreeMap::new(),
        }
    }

    pub(super) fn path(&self) -> String {
        self.dir.file("journal")
    }

    /// Reads the new lines; `up_longer` gives by how much the boot clock of a run's host is ahead of this one. Returns
    /// the runs whose commands have begun.
    pub(super) fn read(&mut self, up_longer: impl Fn(usize) -> Duration) -> Vec<usize> {
        let mut new = Vec::new();
        for line in self.tail.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, run, token, _key, at] = words[..] else {
                panic!("no line of a journal: {line}");
            };
            let run: usize = run.parse().expect("the number of a run");
            let at = at.parse().map(Duration::from_secs_f64);
            let at = at.expect("seconds").saturating_sub(up_longer(run));
            if what == "end" {
                if let Some(begun) = self.begun.get_mut(&run) {
                    begun.ended_at = Some(at);
                }
            } else {
                let token = token.parse().expect("a token");
                let ended_at = None;
                self.begun.insert(
                    run,
                    Begun {
                        token,
                        at,
                        ended_at,
                    },
                );
                new.push(run);
            }
        }
        new
    }

    /// The notes of the command of a run, if it has begun.
    pub(super) fn of(&self, run: usize) -> Option<&Begun> {
        self.begun.get(&run)
    }
}

//! A wall clock that can be set for one program alone, and a boot clock that began at another time than ours.
//! It must not know how a program uses its clocks.

use std::path::PathBuf;
use std::time::Duration;

use super::{Dlock, Scratch, in_namespaces};

/// A wall clock for programs that read the time through the C library, by libfaketime. A program that calls the kernel
/// itself, as Go programs do, does not see it.
pub(crate) struct WallClock {
    library: PathBuf,
    dir: Scratch,
}

impl WallClock {
    /// A clock that shows the true time.
    pub(crate) fn new() -> Self {
        let library = std::fs::read_dir("/usr/lib")
            .expect("a Linux")
            .flatten()
            .map(|dir| dir.path().join("faketime/libfaketime.so.1"))
            .find(|path| path.exists())
            .expect(
                "libfaketime is not installed; install it with: apt-get install faketime, or run make test",
            );
        let clock = Self {
            library,
            dir: Scratch::new(),
        };
        clock.jump("+0");
        clock
    }

    /// Sets the clock for all its programs, in faketime(1)'s form: `-1h`, `+5`.
    pub(crate) fn jump(&self, offset: &str) {
        // In one step, so that no program reads half of it.
        let new = self.dir.write("new", &format!("{offset}\n"));
        std::fs::rename(new, self.dir.file("clock")).expect("our own directory");
    }

    /// Lets the program use this clock.
    pub(crate) fn wind(&self, program: Dlock) -> Dlock {
        program
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_TIMESTAMP_FILE", self.dir.file("clock"))
    }
}

impl Dlock {
    /// Starts the program on a simulated host that has been up this much longer than ours.
    pub(crate) fn up_longer_by(self, span: Duration) -> Self {
        let clocks = ["boottime", "monotonic"].map(|clock| format!("--{clock}={}", span.as_secs()));
        let alone = in_namespaces(&["--time", &clocks[0], &clocks[1]]);
        self.under(alone.expect("asked before"))
    }
}

/// Fails unless programs can have another boot clock here.
#[track_caller]
pub(crate) fn assert_time_namespaces() {
    let day = Duration::from_hours(24);
    let outcome = Dlock::program(["cat", "/proc/uptime"])
        .up_longer_by(day)
        .finish();
    let uptime = outcome
        .stdout
        .split('.')
        .next()
        .and_then(|it| it.parse().ok());
    assert!(
        uptime.is_some_and(|seconds: u64| seconds >= day.as_secs()),
        "no time namespaces: run this on Linux 6.2 or newer, as root or where users may make namespaces: {outcome:?}"
    );
}

//! One dlock with its command: how to start it by a plan, its processes, and how to strike it.
//! It must not know why it is struck, nor what is expected of it.

use std::time::Duration;

use super::fault::Blow;
use super::plan::{Form, Lock, Plan};
use super::witness::run_note;
use crate::support::{
    Dlock, Link, Oracle, Process, Running, Scratch, Signal, WallClock, boot_clock, child,
    dlock_program,
};

/// The place where commands enter, beat and note what they do.
pub(super) struct Ground {
    pub(super) main: Oracle,
    pub(super) once: Oracle,
    pub(super) slots: [Oracle; super::plan::SLOTS],
    pub(super) shared: Oracle,
    pub(super) journal: String,
    pub(super) beats: String,
    pub(super) beats_file: String,
}

/// A run that has been started.
pub(super) struct Run {
    pub(super) number: usize,
    pub(super) host: usize,
    pub(super) plan: Plan,
    pub(super) running: Running,
    pub(super) began_at: Duration,
    /// With both struck at once no process is left to kill the tree (the man page says so), so the second is spared.
    pub(super) dlock_struck: bool,
    pub(super) guard_struck: bool,
    pub(super) tree_struck: bool,
}

impl Run {
    pub(super) fn start(
        number: usize,
        host: usize,
        plan: Plan,
        links: &[Link],
        wall: &WallClock,
        up: Duration,
        ground: &Ground,
    ) -> Self {
        let endpoints: Vec<String> = links.iter().map(Link::endpoint).collect();
        let program = match plan.form {
            Form::Run => wall.wind(run(number, &plan, ground)),
            // libfaketime fails at times in processes that such a dlock starts from its own image.
            Form::Hold { .. } | Form::Borrow => hold(number, &plan, ground),
        };
        let program = program.env("DLOCK_ENDPOINTS", endpoints.join(","));
        Self {
            number,
            host,
            plan,
            running: program.up_longer_by(up).start(),
            began_at: boot_clock(),
            dlock_struck: false,
            guard_struck: false,
            tree_struck: false,
        }
    }

    /// Whether a process of it was killed or stopped.
    pub(super) fn is_struck(&self) -> bool {
        self.dlock_struck || self.guard_struck || self.tree_struck
    }

    /// Whether no process of dlock runs any more.
    pub(super) fn is_over(&mut self) -> bool {
        let is_dlock = |it: &Process| it.name() == "dlock";
        self.running.is_over()
            && (self.plan.form == Form::Run || !self.running.everything().iter().any(is_dlock))
    }

    /// The status of dlock by its report, as a shell sees it.
    pub(super) fn reported(&self) -> Option<i64> {
        let report = self.running.written(REPORT);
        let report: serde_json::Value = serde_json::from_str(&report).ok()?;
        report["exit_code"].as_i64()
    }

    /// The dlock that holds or waits.
    pub(super) fn dlock(&self) -> Option<Process> {
        if self.plan.form == Form::Run {
            return Some(self.running.process());
        }
        let all = self.running.everything();
        all.into_iter()
            .find(|it| it.name() == "dlock" && guard_of(*it).is_some())
    }

    pub(super) fn guard(&self) -> Option<Process> {
        guard_of(self.dlock()?)
    }

    /// Returns a description of the target.
    pub(super) fn strike(&mut self, blow: Blow) -> String {
        let spared = || "spared".to_owned();
        let (signal, which) = match blow {
            Blow::Jump(_) => return spared(),
            Blow::KillDlock | Blow::StopDlock if self.guard_struck => return spared(),
            Blow::KillGuard | Blow::StopGuard if self.dlock_struck => return spared(),
            // Its key would stay for that long.
            _ if self.plan.ttl > Duration::from_secs(10) => return spared(),
            Blow::KillDlock => (Signal::KILL, None),
            Blow::StopDlock => (Signal::STOP, None),
            Blow::KillGuard | Blow::StopGuard => {
                let Some(guard) = self.guard() else {
                    return "nobody".to_owned();
                };
                self.guard_struck = true;
                let kills = matches!(blow, Blow::KillGuard);
                guard.signal(if kills { Signal::KILL } else { Signal::STOP });
                return format!("guard {} of run {}", guard.0, self.number);
            }
            // `dlock hold --pid` does not find the children of a process that has ended, as its page says.
            Blow::KillDescendant(_) | Blow::StopDescendant(_) if self.plan.form != Form::Run => {
                return spared();
            }
            Blow::KillDescendant(which) => (Signal::KILL, Some(which)),
            Blow::StopDescendant(which) => (Signal::STOP, Some(which)),
        };
        let Some(which) = which else {
            let Some(dlock) = self.dlock() else {
                return "nobody".to_owned();
            };
            self.dlock_struck = true;
            dlock.signal(signal);
            return format!("dlock {} of run {}", dlock.0, self.number);
        };
        let tree = self.running.tree();
        let Some(process) = tree.get(which % tree.len().max(1)) else {
            return "nobody".to_owned();
        };
        self.tree_struck = true;
        process.signal(signal);
        let (name, number) = (process.name(), self.number);
        format!("{name} {} of run {number}", process.0)
    }

    /// Continues all that were stopped, except the guard.
    pub(super) fn recover(&self) {
        if let Some(dlock) = self.dlock() {
            dlock.signal(Signal::CONT);
        }
        for process in self.running.tree() {
            process.signal(Signal::CONT);
        }
    }
}

fn guard_of(dlock: Process) -> Option<Process> {
    let mut children = dlock.children().into_iter();
    children.find(|it| it.name() == "dlock-guard")
}

/// The file of the report, in the home of a run.
const REPORT: &str = "report";

/// The options and the name of the lock.
fn words(number: usize, plan: &Plan, home: &Scratch) -> Vec<String> {
    let mut words = plan.options.clone();
    words.extend(["-v".to_owned(), format!("--note={}", run_note(number))]);
    words.push(format!("--report={}", home.file(REPORT)));
    words.push(plan.lock.name().to_owned());
    words
}

/// The command and a daemonised descendant of it beat, and some of them ignore SIGTERM.
fn run(number: usize, plan: &Plan, ground: &Ground) -> Dlock {
    let trap = if plan.deaf { "trap '' TERM; " } else { "" };
    let (beats, stay) = (&ground.beats, plan.stay.as_secs_f32());
    let line = match plan.lock {
        Lock::Main => format!("{trap}setsid -f {beats}; {beats} & sleep {stay}"),
        _ => format!("{trap}setsid -f sleep 60; sleep {stay}"),
    };
    let noted = format!(
        "{trap}exec sh {} {} {number} {} \"$0\"",
        child("noted.sh"),
        ground.journal,
        plan.code
    );
    let enters = |oracle: &Oracle| oracle.command(&["sh", "-c", &noted, &line]);
    let command = match plan.lock {
        Lock::Main => enters(&ground.main),
        Lock::OncePer => enters(&ground.once),
        Lock::Shared => enters(&ground.shared),
        Lock::Slots => {
            let [one, other] = ground.slots.each_ref().map(Oracle::dir);
            let choose = format!(
                "case $DLOCK_SLOT in 0) dir={one};; 1) dir={other};; esac; exec sh {} \"$dir\" \"$@\"",
                child("exclusive.sh")
            );
            let inner = ["sh", "-c", &choose, "choose", "sh", "-c", &noted, &line];
            inner.map(str::to_owned).into()
        }
        Lock::Borrowed => unreachable!("a lock for nobody has no command"),
    };
    let share = if plan.shares { "-s" } else { "" };
    let share = format!("ORACLE_SHARED={share}");
    let dlock = Dlock::nowhere().args(["--connect-timeout=20"]);
    let words = words(number, plan, dlock.home());
    dlock
        .run(words)
        .args(["--", "env", "-u", "LD_PRELOAD", &share])
        .args(command)
}

fn hold(number: usize, plan: &Plan, ground: &Ground) -> Dlock {
    let dlock = dlock_program();
    let (run, stay) = (number.to_string(), plan.stay.as_secs_f32().to_string());
    let script = match plan.form {
        Form::Hold { children, releases } => {
            let last = if releases {
                format!("{dlock} release")
            } else {
                String::new()
            };
            let children = children.to_string();
            let words = ["sh", &child("held.sh"), &ground.journal, &run];
            let more = [ground.main.dir(), &ground.beats_file, &stay, &children];
            Dlock::program(words).args(more).args([last.as_str()])
        }
        _ => Dlock::program(["sh", &child("borrowed.sh"), &ground.journal, &run, &stay]),
    };
    let words = words(number, plan, script.home());
    script
        .args(["--", dlock, "--connect-timeout=20", "hold", "--background"])
        .args(words)
}

//! The findings on this machine: its clock, the wake-up of the guard, room for processes.
//! It must not know how the facts are read.

use std::time::Duration;

use super::Finding;
use crate::core::text::format_duration;

/// Warning threshold of lateness. The guard has half a second from its due time until it runs; more than half of that is
/// a warning, as the machine may become busier.
const LATE: Duration = Duration::from_millis(250);

/// Warning threshold: dlock and its guard are two processes, a command has a few.
const FEW_PROCESSES: u64 = 32;

/// Warning threshold: a dlock has about twenty descriptors.
const FEW_FILES: u64 = 64;

/// The facts about the machine; `None` for one that could not be read.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// `current_clocksource` of the kernel.
    pub clock_source: Option<String>,
    /// The difference between `CLOCK_BOOTTIME` and `CLOCK_MONOTONIC`.
    pub suspended: Duration,
    /// The longest delay of a thread's wake-up.
    pub lateness: Duration,
    /// Whether the kernel lists the children of a process; an error if something that the guard needs does not work.
    pub guard: Option<Result<bool, String>>,
    /// This user's processes cannot see those of others (`hidepid` of `proc(5)`).
    pub hides_others: bool,
    /// Number of further processes that the cgroup allows.
    pub room_for_processes: Option<u64>,
    /// The soft limits of `getrlimit(2)`; `None` is no limit.
    pub most_processes: Option<u64>,
    pub most_files: Option<u64>,
}

/// All findings on the machine.
pub fn check_host(facts: &HostFacts) -> Vec<Finding> {
    let mut findings = vec![clock(facts), scheduling(facts.lateness)];
    findings.extend(check_processes(facts));
    findings
}

/// The findings on the processes of a command: all that matters to a lock that no time ends.
pub fn check_processes(facts: &HostFacts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = guard(facts).into_iter().collect();
    findings.extend(limits(facts));
    findings
}

fn clock(facts: &HostFacts) -> Finding {
    const CHECK: &str = "clock";
    let source = facts.clock_source.as_deref().unwrap_or("unknown");
    let slept = if facts.suspended.is_zero() {
        "no suspend since boot".to_owned()
    } else {
        format!(
            "{} of suspend since boot, which dlock counts",
            format_duration(Duration::from_secs(facts.suspended.as_secs().max(1)))
        )
    };
    match source {
        "jiffies" | "refined-jiffies" => {
            let says = format!(
                "a clock that counts timer ticks, and loses time when they are late; {slept}"
            );
            Finding::warning(CHECK, source, &says)
                .hinting("the kernel found no better clock: search for 'clocksource' in its log")
        }
        "hpet" | "acpi_pm" => {
            let says = format!(
                "a slow clock, which the kernel uses when it does not trust the processor's clock; {slept}"
            );
            Finding::warning(CHECK, source, &says).hinting(
                "the kernel's log has the reason: search for 'clocksource' and 'tsc unstable'",
            )
        }
        "kvm-clock" | "xen" | "hyperv_clocksource_tsc_page" => {
            let says = format!(
                "{slept}; a pause of this virtual machine is not counted by any clock in it"
            );
            Finding::ok(CHECK, source, &says)
        }
        _ => Finding::ok(CHECK, source, &slept),
    }
}

fn scheduling(lateness: Duration) -> Finding {
    const CHECK: &str = "scheduling";
    let says = format!(
        "a process was woken at most {} late, the guard may be 500ms late",
        format_duration(lateness.max(Duration::from_millis(1)))
    );
    if lateness < LATE {
        return Finding::ok(CHECK, "wake-up", &says);
    }
    Finding::warning(CHECK, "wake-up", &says).hinting(
        "the machine is too busy, or its CPU quota too small: a command could outlive its lock",
    )
}

fn guard(facts: &HostFacts) -> Option<Finding> {
    const CHECK: &str = "guard";
    let hidden = if facts.hides_others {
        "; /proc hides the processes of other users (hidepid), so dlock cannot name a process that becomes another user's"
    } else {
        ""
    };
    Some(match facts.guard.as_ref()? {
        Err(cause) => Finding::unusable(CHECK, "kernel", &format!("dlock cannot guard a command: {cause}"))
            .hinting("dlock needs /proc, pidfds, timerfds and signalfds (Linux 5.4 or later), also in a container or under a seccomp filter"),
        Ok(true) => Finding::ok(
            CHECK,
            "kernel",
            &format!("dlock can find and kill a command's processes{hidden}"),
        ),
        Ok(false) => Finding::warning(
            CHECK,
            "kernel",
            &format!("the kernel does not list the children of a process, so dlock must search all processes to kill a command{hidden}"),
        )
        .hinting("a kernel with CONFIG_PROC_CHILDREN is quicker"),
    })
}

fn limits(facts: &HostFacts) -> Vec<Finding> {
    const CHECK: &str = "limits";
    let judge = |object, number: Option<u64>, few, what: &str, hint| {
        let Some(number) = number else {
            return Finding::ok(CHECK, object, &format!("no limit on {what}"));
        };
        let says = format!("room for {number} {what}");
        if number < few {
            return Finding::warning(CHECK, object, &says).hinting(hint);
        }
        Finding::ok(CHECK, object, &says)
    };
    let mut findings = vec![
        judge(
            "RLIMIT_NPROC",
            facts.most_processes,
            FEW_PROCESSES,
            "processes of this user",
            "raise it with ulimit -u or in limits.conf: dlock needs one beside the command's",
        ),
        judge(
            "RLIMIT_NOFILE",
            facts.most_files,
            FEW_FILES,
            "open files",
            "raise it with ulimit -n or in limits.conf",
        ),
    ];
    findings.extend(facts.room_for_processes.map(|room| {
        judge(
            "pids.max",
            Some(room),
            FEW_PROCESSES,
            "more processes in the cgroup",
            "raise pids.max (TasksMax in systemd, --pids-limit in docker)",
        )
    }));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::doctor::{Level, worst};

    fn good() -> HostFacts {
        HostFacts {
            clock_source: Some("tsc".to_owned()),
            guard: Some(Ok(true)),
            most_processes: Some(4096),
            most_files: Some(1024),
            ..HostFacts::default()
        }
    }

    #[test]
    fn a_usual_machine_is_clean() {
        let findings = check_host(&good());
        assert_eq!(worst(&findings), Level::Ok, "{findings:?}");
        let checks: Vec<&str> = findings.iter().map(|found| found.check).collect();
        assert_eq!(checks, ["clock", "scheduling", "guard", "limits", "limits"]);
    }

    #[test]
    fn faults_that_break_the_promise_are_reported() {
        type Case = (fn(&mut HostFacts), &'static str, Level);
        let cases: [Case; 8] = [
            (
                |it| it.clock_source = Some("jiffies".into()),
                "clock",
                Level::Warning,
            ),
            (
                |it| it.clock_source = Some("hpet".into()),
                "clock",
                Level::Warning,
            ),
            (
                |it| it.lateness = Duration::from_millis(300),
                "scheduling",
                Level::Warning,
            ),
            (|it| it.guard = Some(Ok(false)), "guard", Level::Warning),
            (
                |it| it.guard = Some(Err("no /proc".into())),
                "guard",
                Level::Unusable,
            ),
            (|it| it.most_processes = Some(10), "limits", Level::Warning),
            (|it| it.most_files = Some(10), "limits", Level::Warning),
            (
                |it| it.room_for_processes = Some(3),
                "limits",
                Level::Warning,
            ),
        ];
        for (spoil, check, level) in cases {
            let mut facts = good();
            spoil(&mut facts);
            let bad: Vec<Finding> = check_host(&facts)
                .into_iter()
                .filter(|found| found.level != Level::Ok)
                .collect();
            assert_eq!(bad.len(), 1, "{bad:?}");
            assert_eq!((bad[0].check, bad[0].level), (check, level));
            assert!(bad[0].hint.is_some());
        }
    }

    #[test]
    fn suspend_is_reported() {
        let facts = HostFacts {
            suspended: Duration::from_secs(3723),
            ..good()
        };
        let clock = clock(&facts);
        assert_eq!(
            clock.says,
            "1h 2m 3s of suspend since boot, which dlock counts"
        );
    }
}

//! Measured facts about this machine: its clock, how late it wakes a thread, room for processes.
//! It must not know how much of it is enough.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, getuid};
use rustix::time::ClockId;

use crate::core::doctor::machine::HostFacts;
use crate::guard;
use crate::sys::clock;

/// Number and length of the sleeps that measure lateness.
const NAP_COUNT: usize = 40;
const NAP_TIME: Duration = Duration::from_millis(5);

/// All facts but the lateness, whose measurement takes time.
pub(crate) fn host_facts() -> HostFacts {
    let limit = |resource| getrlimit(resource).current;
    HostFacts {
        clock_source: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        suspended: suspended(),
        lateness: Duration::ZERO,
        guard: Some(guard::check_available().map_err(|error| error.to_string())),
        hides_others: hides_others(),
        room_for_processes: room_for_processes(),
        // The kernel does not count root's processes.
        most_processes: limit(Resource::Nproc).filter(|_| !getuid().is_root()),
        most_files: limit(Resource::Nofile),
    }
}

/// A thread that measures for a fifth of a second how late it is woken.
pub(crate) fn nap() -> io::Result<JoinHandle<Duration>> {
    thread::Builder::new().spawn(lateness)
}

/// The maximum delay of a thread's wake-up.
fn lateness() -> Duration {
    let nap = |_| {
        let due_at = clock::now() + NAP_TIME;
        thread::sleep(NAP_TIME);
        clock::now().since(due_at)
    };
    (0..NAP_COUNT).map(nap).max().unwrap_or_default()
}

/// Time that the machine has slept since boot: only one of the clocks counts it.
fn suspended() -> Duration {
    let awake = clock::time_of(ClockId::Monotonic);
    let slept = clock::now().since_boot().saturating_sub(awake);
    // The time between the two readings is shorter.
    if slept < Duration::from_secs(1) {
        return Duration::ZERO;
    }
    slept
}

fn hides_others() -> bool {
    let mounts = read("/proc/self/mounts").unwrap_or_default();
    let mut of_proc = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = words.next()?;
        (place == "/proc").then(|| words.nth(1)).flatten()
    });
    let hides = |options: &str| {
        let hidden = options
            .split(',')
            .find_map(|option| option.strip_prefix("hidepid="));
        hidden.is_some_and(|value| !matches!(value, "0" | "off"))
    };
    !getuid().is_root() && of_proc.next_back().is_some_and(hides)
}

/// Number of processes left below `pids.max` in our cgroup and those around it, in either version of cgroups.
fn room_for_processes() -> Option<u64> {
    let groups = read("/proc/self/cgroup")?;
    let places = groups.lines().filter_map(|line| {
        let mut words = line.splitn(3, ':').skip(1);
        let (controllers, path) = (words.next()?, words.next()?);
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            "pids" => "/sys/fs/cgroup/pids",
            _ => return None,
        };
        Some((PathBuf::from(root), path.trim_matches('/').to_owned()))
    });
    let room = |group: &Path| {
        let number = |name| read(group.join(name))?.parse::<u64>().ok();
        // "max" is no number.
        Some(number("pids.max")?.saturating_sub(number("pids.current")?))
    };
    places
        .flat_map(|(root, path)| {
            let within = root.clone();
            let groups = root.join(path);
            let groups: Vec<PathBuf> = groups.ancestors().map(PathBuf::from).collect();
            groups
                .into_iter()
                .filter(move |group| group.starts_with(&within))
        })
        .filter_map(|group| room(&group))
        .min()
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_of_this_machine_are_read() {
        let facts = host_facts();
        assert!(facts.clock_source.is_some_and(|source| !source.is_empty()));
        assert!(facts.guard.is_some_and(|guard| guard.is_ok()));
        assert!(facts.most_files.is_none_or(|most| most > 0));
        assert!(facts.room_for_processes.is_none_or(|room| room > 0));
    }

    #[test]
    fn the_lateness_is_measured() {
        assert!(lateness() > Duration::ZERO);
    }
}

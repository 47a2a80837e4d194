//! The work that the machine has besides: stress-ng(1), in a memory cgroup that it fills, so that the kernel reclaims memory all
//! the time and the rest of the machine keeps its own.
//! It must not know locks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::support::{LIMIT, dlock_program, eventually, unique};

/// Tasks of the load for each processor.
const TASKS_PER_CORE: usize = 8;
/// The size of the cgroup. Two workers keep two thirds of it busy; files, and the program text of dlock, share the rest.
const MEMORY_MIB: usize = 768;
const WORKER_MIB: usize = 256;
/// The size of the file that each of two workers writes again and again.
const FILE_MIB: usize = 512;

/// The work of the machine beside the locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Load {
    Idle,
    Processor,
    Everything,
}

impl Load {
    pub(crate) const ALL: [Self; 3] = [Self::Idle, Self::Processor, Self::Everything];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Processor => "processor",
            Self::Everything => "processor, memory and disk",
        }
    }
}

/// The directory and the cgroup of a measurement; both are removed on drop.
pub(crate) struct Machine {
    /// On a disk, and open to every user.
    dir: PathBuf,
    /// Its directory; `None` where there is no such cgroup to be had.
    cgroup: Option<PathBuf>,
}

/// A running load; it ends on drop.
pub(crate) struct Running(Option<Child>);

impl Machine {
    pub(crate) fn prepare() -> Self {
        assert!(
            rustix::process::getuid().is_root(),
            "only root has a priority over the load that it measures under"
        );
        let dir = Path::new("/var/tmp").join(unique("dlock-late"));
        fs::create_dir_all(&dir).expect("/var/tmp takes a directory");
        let machine = Self {
            dir,
            cgroup: memory_cgroup(),
        };
        // The pages of the copy belong to the cgroup, which reclaims them.
        let copied = machine
            .inside("cp")
            .args([dlock_program(), &machine.dlock()])
            .status();
        assert!(copied.is_ok_and(|status| status.success()), "cp(1) works");
        machine
    }

    /// The path of the program under test.
    pub(crate) fn dlock(&self) -> String {
        let path = self.dir.join("dlock");
        path.to_str().expect("a plain path").to_owned()
    }

    /// The prefix that starts a program in the cgroup.
    pub(crate) fn launcher(&self) -> Vec<String> {
        let enter = self.cgroup.as_ref().map_or(String::new(), |cgroup| {
            format!("echo $$ >{}/cgroup.procs; ", cgroup.display())
        });
        ["sh", "-c", &format!("{enter}exec \"$@\""), "sh"]
            .map(str::to_owned)
            .to_vec()
    }

    fn inside(&self, program: &str) -> Command {
        let line = self.launcher();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).arg(program);
        command
    }

    pub(crate) fn start(&self, load: Load) -> Running {
        let tasks = TASKS_PER_CORE * std::thread::available_parallelism().map_or(1, usize::from);
        let cpu = ["--cpu".to_owned(), tasks.to_string()];
        let memory = ["--vm=2", "--vm-keep"].map(str::to_owned);
        let bytes = [
            format!("--vm-bytes={WORKER_MIB}m"),
            format!("--hdd-bytes={FILE_MIB}m"),
            "--hdd=2".to_owned(),
        ];
        let words: Vec<String> = match load {
            Load::Idle => return Running(None),
            Load::Processor => cpu.to_vec(),
            Load::Everything => [&cpu[..], &memory, &bytes].concat(),
        };
        let child = self
            .inside("stress-ng")
            .args(["--quiet", "--temp-path"])
            .arg(&self.dir)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("sh(1) starts");
        let running = Running(Some(child));
        if load == Load::Everything {
            eventually(LIMIT, "the memory is used up", || self.is_full());
        }
        running
    }

    /// Whether the cgroup has next to no free memory, or there is none.
    fn is_full(&self) -> bool {
        let Some(cgroup) = &self.cgroup else {
            return true;
        };
        let used = ["memory.current", "memory.usage_in_bytes"]
            .iter()
            .find_map(|file| fs::read_to_string(cgroup.join(file)).ok());
        let used = used.and_then(|used| used.trim().parse::<usize>().ok());
        used.is_some_and(|used| used > (MEMORY_MIB - 64) << 20)
    }

    /// The load, for people.
    pub(crate) fn description(&self) -> String {
        let memory = match self.cgroup {
            Some(_) => format!("a memory cgroup of {MEMORY_MIB} MiB that they fill"),
            None => "no memory cgroup, so next to no pressure on the memory".to_owned(),
        };
        format!("{TASKS_PER_CORE} tasks per core, {memory}")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        if let Some(cgroup) = &self.cgroup {
            eventually(LIMIT, "the cgroup is empty", || {
                fs::remove_dir(cgroup).is_ok()
            });
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
            let _ = child.wait();
        }
    }
}

/// A new memory cgroup below that of this process, of version 1 or 2.
fn memory_cgroup() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = |found: fn(&str) -> bool| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            found(controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let first = path(|controllers| controllers.split(',').any(|one| one == "memory"));
    let (root, below, limit) = match first {
        Some(below) => ("/sys/fs/cgroup/memory", below, "memory.limit_in_bytes"),
        None => ("/sys/fs/cgroup", path(str::is_empty)?, "memory.max"),
    };
    let cgroup = Path::new(root).join(below).join(unique("dlock-late"));
    fs::create_dir(&cgroup).ok()?;
    let bytes = (MEMORY_MIB << 20).to_string();
    if fs::write(cgroup.join(limit), bytes).is_err() {
        // The controller is not enabled there.
        let _ = fs::remove_dir(&cgroup);
        return None;
    }
    Some(cgroup)
}

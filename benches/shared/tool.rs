//! The tools under comparison, and the command line of each for a command under a lock.
//! It must not know the faults.

use crate::support::{Dlock, dlock_program, etcdctl_program};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Dlock,
    Etcdctl,
    Flock,
    Consul,
}

impl Tool {
    /// The columns of the table.
    pub(crate) const ALL: [Self; 4] = [Self::Dlock, Self::Etcdctl, Self::Flock, Self::Consul];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Dlock => "dlock run",
            Self::Etcdctl => "etcdctl lock",
            Self::Flock => "flock",
            Self::Consul => "consul lock",
        }
    }

    /// The prefix of all keys of the lock, with a tool that uses etcd.
    pub(crate) fn keys(self, name: &str) -> Option<String> {
        match self {
            Self::Dlock => Some(format!("dlock/lock/{name}/")),
            Self::Etcdctl => Some(format!("{name}/")),
            Self::Flock | Self::Consul => None,
        }
    }

    /// The command line, up to the command, for the lock `name`, with the endpoints or, without a server, the lock file.
    pub(crate) fn line(self, endpoints: &str, file: &str, name: &str, ttl: &str) -> Vec<String> {
        let address = format!("-http-addr={endpoints}");
        let (endpoints, ttl) = (format!("--endpoints={endpoints}"), format!("--ttl={ttl}"));
        let program = dlock_program();
        let etcdctl = etcdctl_program();
        let words: &[&str] = match self {
            Self::Dlock => &[program, &endpoints, "run", &ttl, name, "--"],
            Self::Etcdctl => &[&etcdctl, &endpoints, "lock", &ttl, name, "--"],
            Self::Flock => &["flock", file],
            Self::Consul => &[
                "consul",
                "lock",
                "-child-exit-code",
                "-shell=false",
                &address,
                name,
            ],
        };
        words.iter().map(ToString::to_string).collect()
    }

    /// The environment of the tool.
    pub(crate) const VARIABLES: [(&str, &str); 1] = [("ETCDCTL_API", "3")];

    /// A run of `command` under the lock.
    #[allow(dead_code, reason = "not every benchmark starts one by one")]
    pub(crate) fn run(
        self,
        endpoints: &str,
        file: &str,
        name: &str,
        ttl: &str,
        command: Vec<String>,
    ) -> Dlock {
        let line = Dlock::program(self.line(endpoints, file, name, ttl));
        let with = |dlock: Dlock, (name, value): (&str, &str)| dlock.env(name, value);
        Self::VARIABLES.into_iter().fold(line, with).args(command)
    }
}

/// Whether a program of this name is on the `PATH`.
pub(crate) fn installed(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|dir| dir.join(program).exists())
}

/// The path of this program, which runs in other roles, too.
pub(crate) fn myself() -> String {
    let path = std::env::current_exe().expect("a Linux with /proc");
    path.to_str().expect("a plain path").to_owned()
}

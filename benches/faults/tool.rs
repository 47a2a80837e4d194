//! The tools under comparison, and how each is asked to run a command under a lock.
//! It must not know the faults.

use crate::support::{Dlock, etcdctl_program};

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

    /// What every key of the lock begins with, with a tool that uses etcd.
    pub(crate) fn keys(self, name: &str) -> Option<String> {
        match self {
            Self::Dlock => Some(format!("dlock/lock/{name}/")),
            Self::Etcdctl => Some(format!("{name}/")),
            Self::Flock | Self::Consul => None,
        }
    }

    /// A run of `command` under the lock `name`, with the endpoints or, without a server, the file that stands for it.
    pub(crate) fn run(
        self,
        endpoints: &str,
        file: &str,
        name: &str,
        ttl: &str,
        command: Vec<String>,
    ) -> Dlock {
        let ttl = format!("--ttl={ttl}");
        match self {
            Self::Dlock => Dlock::at(endpoints).run([&ttl, name, "--"]),
            Self::Etcdctl => {
                let endpoints = format!("--endpoints={endpoints}");
                Dlock::program([&etcdctl_program(), &endpoints, "lock", &ttl, name, "--"])
                    .env("ETCDCTL_API", "3")
            }
            Self::Flock => Dlock::program(["flock", file]),
            Self::Consul => {
                let address = format!("-http-addr={endpoints}");
                let options = ["-child-exit-code", "-shell=false", &address, name];
                Dlock::program(["consul", "lock"]).args(options)
            }
        }
        .args(command)
    }
}

/// Whether a program of this name is on the `PATH`.
pub(crate) fn installed(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|dir| dir.join(program).exists())
}

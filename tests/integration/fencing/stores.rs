//! The stores of the recipes: servers and directories for one test, and their content.
//! It must not know the writers, nor which are refused.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use crate::support::{
    Dlock, Etcd, LIMIT, Outcome, Scratch, as_user, dlock_program, etcdctl_program, eventually,
    free_port, unique,
};

type Variables = Vec<(&'static str, String)>;

/// The store of a recipe.
pub(super) trait Store: Sync {
    /// The variables by which the recipe's programs find it.
    fn variables(&self) -> Variables;
    /// Creates what the first write needs, by the files of the recipe in this directory.
    fn prepare(&self, _: &Scratch) {}
    /// The current report.
    fn report(&self) -> String;
}

/// Runs a server for as long as our end of its standard input is open, so that none outlives the tests; then removes its
/// directory. Both servers take INT as the order to end without waiting for their clients.
const KEEPER: &str = r#"
dir=$1; shift
"$@" </dev/null >>"$dir/log" 2>&1 & pid=$!
read -r _
kill -INT "$pid" 2>/dev/null; wait "$pid"; rm -rf "$dir"
"#;

/// A running server; it ends on drop, and with the tests.
struct Server {
    keeper: Child,
    dir: PathBuf,
}

impl Server {
    fn start(dir: &Path, line: &[&str]) -> Self {
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(dir)
            .args(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let dir = dir.to_owned();
        Self { keeper, dir }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn new_directory(stem: &str) -> PathBuf {
    let path = env::temp_dir().join(unique(stem));
    fs::create_dir(&path).expect("the temporary directory takes a new one");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// A database in `PostgreSQL`, empty at first, with a table that will have the report in the column `body`.
pub(super) struct Database {
    server: &'static Postgres,
    name: String,
    table: &'static str,
}

/// A cluster that listens on a socket in its directory, and on no port, so it cannot conflict with another one.
struct Postgres(Server);

impl Database {
    /// Whether a server may run here: as root it needs another user.
    pub(super) fn may_run() -> Option<()> {
        if rustix::process::geteuid().is_root() {
            as_user(65534, 65534)?;
        }
        Some(())
    }

    pub(super) fn new(table: &'static str) -> Self {
        static SHARED: LazyLock<Postgres> = LazyLock::new(Postgres::start);
        let server = &*SHARED;
        let name = unique("db").replace('-', "_");
        let create = format!("CREATE DATABASE {name}");
        server.psql("postgres", &["-c", &create]).expect_code(0);
        Self {
            server,
            name,
            table,
        }
    }

    fn answer(&self, query: &str) -> String {
        let outcome = self.server.psql(&self.name, &["-c", query]).expect_code(0);
        let rows = outcome.stdout.strip_suffix('\n');
        rows.unwrap_or_default().to_owned()
    }

    /// Waits until this many sessions wait for others.
    #[track_caller]
    pub(super) fn they_wait(&self, count: usize) {
        let query = "SELECT count(*) FROM pg_stat_activity \
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually(LIMIT, "sessions wait for a lock", || {
            self.answer(query) == count.to_string()
        });
    }
}

impl Store for Database {
    fn variables(&self) -> Variables {
        self.server.variables(&self.name)
    }

    fn prepare(&self, recipe: &Scratch) {
        let tables = recipe.file("table.sql");
        self.server
            .psql(&self.name, &["-f", &tables])
            .expect_code(0);
    }

    fn report(&self) -> String {
        self.answer(&format!("SELECT body FROM {}", self.table))
    }
}

impl Postgres {
    fn start() -> Self {
        let dir = new_directory("dlock-postgres");
        let programs = postgres_programs();
        let (initdb, postgres) = (programs.join("initdb"), programs.join("postgres"));
        let data = dir.join("data");
        // It refuses to run as root; Debian's package creates a user for it.
        let user = if rustix::process::geteuid().is_root() {
            let chown = ["chown", "postgres:", text(&dir)];
            Dlock::program(chown).finish().expect_code(0);
            &[
                "setpriv",
                "--reuid=postgres",
                "--regid=postgres",
                "--init-groups",
            ][..]
        } else {
            &[]
        };
        let new = [
            text(&initdb),
            "-D",
            text(&data),
            "-A",
            "trust",
            "-U",
            "postgres",
        ];
        let plain = ["-N", "-E", "UTF8", "--locale=C"];
        Dlock::program([user, &new, &plain].concat())
            .finish()
            .expect_code(0);
        // No test is about a power cut.
        let settings = ["-c", "listen_addresses=", "-c", "fsync=off"];
        let start = [text(&postgres), "-D", text(&data), "-k", text(&dir)];
        let server = Self(Server::start(&dir, &[user, &start, &settings].concat()));
        eventually(LIMIT, "PostgreSQL answers", || {
            server.psql("postgres", &["-c", "SELECT 1"]).code() == Some(0)
        });
        server
    }

    fn variables(&self, database: &str) -> Variables {
        vec![
            ("PGHOST", text(&self.0.dir).to_owned()),
            ("PGUSER", "postgres".to_owned()),
            ("PGDATABASE", database.to_owned()),
        ]
    }

    /// psql with these arguments; prints rows without decoration.
    fn psql(&self, database: &str, words: &[&str]) -> Outcome {
        let psql = Dlock::program(["psql", "-XqAt", "-v", "ON_ERROR_STOP=1"]).args(words);
        let variables = self.variables(database).into_iter();
        variables
            .fold(psql, |psql, (name, value)| psql.env(name, value))
            .finish()
    }
}

/// Debian keeps the server's programs out of `PATH`, in a directory for every version.
fn postgres_programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = versions
        .flatten()
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, programs)| programs.join("initdb").exists())
        .max();
    newest
        .expect("PostgreSQL is not installed; install it with: apt-get install postgresql, or run make test")
        .1
}

/// The etcd that has the lock.
pub(super) struct EtcdItself(String);

impl EtcdItself {
    pub(super) fn new(etcd: &Etcd) -> Self {
        Self(etcd.endpoint())
    }
}

impl Store for EtcdItself {
    fn variables(&self) -> Variables {
        vec![
            ("ETCDCTL_API", "3".to_owned()),
            ("ETCDCTL_ENDPOINTS", self.0.clone()),
            ("PATH", with_directory_of(&etcdctl_program())),
        ]
    }

    fn report(&self) -> String {
        let get = ["get", "report", "--print-value-only"];
        let etcdctl = Dlock::program([etcdctl_program()]).args(get);
        let variables = self.variables().into_iter();
        let etcdctl = variables.fold(etcdctl, |etcdctl, (name, value)| etcdctl.env(name, value));
        let outcome = etcdctl.finish().expect_code(0);
        let report = outcome.stdout.strip_suffix('\n');
        report.unwrap_or_default().to_owned()
    }
}

/// `PATH`, with the directory of this program in front.
fn with_directory_of(program: &str) -> String {
    let path = env::var("PATH").unwrap_or_default();
    match Path::new(program).parent() {
        Some(directory) if directory != Path::new("") => format!("{}:{path}", text(directory)),
        _ => path,
    }
}

/// The host `storage`, reached by an `ssh` that is a shell behind pipes.
pub(super) struct Storage(Scratch);

/// As with sshd: the words are one line for a shell, which has an environment of its own and starts at home.
const SSH: &str = r#"#!/bin/bash
set -o pipefail
[ "$1" = storage ] && shift && cd "${0%/*}/home" || exit 255
env -i PATH="$PATH" HOME="$PWD" sh -c "$*" < <(cat) | cat
"#;

impl Storage {
    pub(super) fn new() -> Self {
        let directory = Scratch::new();
        fs::create_dir(directory.file("home")).expect("a new directory");
        let ssh = directory.write("ssh", SSH);
        fs::set_permissions(ssh, fs::Permissions::from_mode(0o755)).expect("our own file");
        Self(directory)
    }
}

impl Store for Storage {
    fn variables(&self) -> Variables {
        let dlock = with_directory_of(dlock_program());
        vec![("PATH", format!("{}:{dlock}", text(self.0.path())))]
    }

    fn report(&self) -> String {
        self.0.read("home/report")
    }
}

/// A Redis that writes nothing to disk.
pub(super) struct Redis {
    port: u16,
    _server: Server,
}

impl Redis {
    pub(super) fn start() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        assert!(
            env::split_paths(&path).any(|directory| directory.join("redis-server").exists()),
            "redis-server is not installed; install it with: apt-get install redis-server, or run make test"
        );
        for _ in 0..5 {
            let (port, dir) = (free_port(), new_directory("dlock-redis"));
            let listen = ["--bind", "127.0.0.1", "--port", &port.to_string()];
            let keep = ["--save", "", "--dir", text(&dir)];
            let line = [&["redis-server"][..], &listen, &keep].concat();
            let server = Server::start(&dir, &line);
            // Another test may have taken the port in between: the server reports it and exits.
            let ready = eventually(LIMIT, "Redis answers", || {
                let log = server.log();
                let ready = log.contains("Ready to accept connections");
                (ready || log.contains("bind:")).then_some(ready)
            });
            if ready {
                return Self {
                    port,
                    _server: server,
                };
            }
        }
        panic!("Redis did not start five times running");
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Store for Redis {
    fn variables(&self) -> Variables {
        vec![("REDIS_URL", self.url())]
    }

    fn report(&self) -> String {
        let get = [
            "redis-cli",
            "--raw",
            "-u",
            &self.url(),
            "HGET",
            "report",
            "body",
        ];
        let outcome = Dlock::program(get).finish().expect_code(0);
        let report = outcome.stdout.strip_suffix('\n');
        report.unwrap_or_default().to_owned()
    }
}

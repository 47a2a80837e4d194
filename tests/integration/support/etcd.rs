//! A real etcd server for tests, and etcdctl to inspect it.
//! It must not know dlock: etcd's own tool checks what dlock does.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::processes::{Process, alive};
use super::{Certificates, LIMIT, boot_clock, eventually, unique};

/// Runs etcd for as long as our end of its standard input is open, so that no server outlives the tests. Each line of
/// input means: kill it and start it again. It prints the process id of each start.
const KEEPER: &str = r#"
log=$1 dir=$2; shift 2
start() { "$@" </dev/null >>"$log" 2>&1 & pid=$!; echo "$pid"; }
start "$@"
while read -r _; do kill -KILL "$pid" 2>/dev/null; wait "$pid"; start "$@"; done
kill -KILL "$pid" 2>/dev/null; wait "$pid"; rm -rf "$dir"
"#;

/// One etcd member with its own data directory.
pub(crate) struct Etcd {
    keeper: Mutex<Keeper>,
    port: u16,
    scheme: &'static str,
    dir: PathBuf,
    /// Flags of etcdctl beside the endpoint, such as `--cacert=FILE` or `--user=NAME:PASSWORD`.
    ctl_flags: Mutex<Vec<String>>,
}

struct Keeper {
    shell: Child,
    orders: Option<ChildStdin>,
    pids: BufReader<ChildStdout>,
    pid: Process,
}

/// How to start a member.
pub(crate) struct Plan<'a> {
    pub(crate) name: &'a str,
    pub(crate) client_port: u16,
    pub(crate) peer_port: u16,
    /// The port by which the other members reach it.
    pub(crate) advertised_port: u16,
    /// `name=url,name=url,...` of all members.
    pub(crate) initial_cluster: String,
    pub(crate) scheme: &'static str,
    pub(crate) flags: &'a [&'a str],
    pub(crate) ctl_flags: Vec<String>,
}

/// One key as etcd holds it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) create_revision: u64,
    /// The lease's id, 0 for none.
    pub(crate) lease: i64,
}

impl Entry {
    /// The lease as etcdctl writes it.
    pub(crate) fn lease_hex(&self) -> String {
        format!("{:x}", self.lease)
    }
}

impl Etcd {
    /// The server that plain tests share: each test uses lock names of its own.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: LazyLock<Etcd> = LazyLock::new(Etcd::start);
        &SHARED
    }

    /// A server for one test, ready to serve.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server for one test with more flags.
    pub(crate) fn start_with(flags: &[&str]) -> Self {
        Self::alone("http", flags, &[])
    }

    /// A server for one test that speaks TLS to clients.
    pub(crate) fn start_tls(made: &Certificates) -> Self {
        Self::with_certificates(made, &[], Vec::new())
    }

    /// The same, for clients with a certificate only.
    pub(crate) fn start_mutual_tls(made: &Certificates) -> Self {
        let ca = made.file("ca.pem");
        let flags = ["--trusted-ca-file", &*ca, "--client-cert-auth"];
        let (cert, key) = (made.file("client.pem"), made.file("client.key"));
        let ctl_flags = vec![format!("--cert={cert}"), format!("--key={key}")];
        Self::with_certificates(made, &flags, ctl_flags)
    }

    /// A server for one test with a certificate that it made itself, and the path of that.
    pub(crate) fn start_auto_tls() -> (Self, String) {
        let ctl_flags = [
            "--insecure-transport=false",
            "--insecure-skip-tls-verify=true",
        ]
        .map(str::to_owned);
        let etcd = Self::alone("https", &["--auto-tls"], &ctl_flags);
        let made = etcd.dir.join("data/fixtures/client/cert.pem");
        (etcd, made.to_str().expect("a plain path").to_owned())
    }

    fn with_certificates(made: &Certificates, flags: &[&str], mut ctl_flags: Vec<String>) -> Self {
        let (cert, key) = (made.file("server.pem"), made.file("server.key"));
        let own = ["--cert-file", &*cert, "--key-file", &*key];
        ctl_flags.push(format!("--cacert={}", made.file("ca.pem")));
        Self::alone("https", &[&own, flags].concat(), &ctl_flags)
    }

    fn alone(scheme: &'static str, flags: &[&str], ctl_flags: &[String]) -> Self {
        for _ in 0..5 {
            let (client_port, peer_port) = (free_port(), free_port());
            let etcd = Self::launch(&Plan {
                name: "alone",
                client_port,
                peer_port,
                advertised_port: peer_port,
                initial_cluster: format!("alone=http://127.0.0.1:{peer_port}"),
                scheme,
                flags,
                ctl_flags: ctl_flags.to_vec(),
            });
            // Another test may have taken a port in between: etcd then exits at once.
            if etcd.ready() {
                return etcd;
            }
        }
        panic!("etcd did not start five times running");
    }

    /// Starts a member and does not wait for it.
    pub(crate) fn launch(plan: &Plan) -> Self {
        let shm = Path::new("/dev/shm");
        // No test is about a power cut, and a file system in memory makes etcd's syncs free.
        let base = if fs::metadata(shm).is_ok_and(|meta| !meta.permissions().readonly()) {
            shm.to_owned()
        } else {
            env::temp_dir()
        };
        let dir = base.join(unique("dlock-etcd"));
        fs::create_dir_all(&dir).expect("a new directory for etcd");
        let client = format!("{}://127.0.0.1:{}", plan.scheme, plan.client_port);
        let peer = format!("http://127.0.0.1:{}", plan.peer_port);
        let advertised = format!("http://127.0.0.1:{}", plan.advertised_port);
        let mut shell = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(dir.join("log"))
            .arg(&dir)
            .arg(etcd_program())
            .args(["--name", plan.name])
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &advertised,
            ])
            .args(["--initial-cluster", &plan.initial_cluster])
            .args(plan.flags)
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            // etcd 3.4 needs this on anything but amd64.
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let orders = shell.stdin.take();
        let mut pids = BufReader::new(shell.stdout.take().expect("a pipe"));
        let pid = read_pid(&mut pids);
        Self {
            keeper: Mutex::new(Keeper {
                shell,
                orders,
                pids,
                pid,
            }),
            port: plan.client_port,
            scheme: plan.scheme,
            dir,
            ctl_flags: Mutex::new(plan.ctl_flags.clone()),
        }
    }

    /// Waits until the member serves; `false` when it ended instead.
    pub(crate) fn ready(&self) -> bool {
        eventually(LIMIT, "etcd answers", || {
            if !alive(self.process()) {
                return Some(false);
            }
            let health = self.ctl_output(&["--command-timeout=1s", "endpoint", "health"]);
            health.status.success().then_some(true)
        })
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn process(&self) -> Process {
        self.keeper.lock().expect("no panic while locked").pid
    }

    /// Freezes the server: connections stay open, nothing is answered.
    pub(crate) fn stop(&self) {
        self.process().signal(Signal::STOP);
    }

    pub(crate) fn cont(&self) {
        self.process().signal(Signal::CONT);
    }

    pub(crate) fn kill(&self) {
        self.process().signal(Signal::KILL);
        // The first thread of a process may be dead while others, and with them its sockets, are not.
        eventually(LIMIT, "etcd is dead", || {
            !alive(self.process()) && TcpStream::connect(("127.0.0.1", self.port)).is_err()
        });
    }

    /// Starts the server again, killing it first if it still runs; does not wait for it.
    pub(crate) fn revive(&self) {
        let mut keeper = self.keeper.lock().expect("no panic while locked");
        let orders = keeper.orders.as_mut().expect("open until drop");
        orders.write_all(b"again\n").expect("the keeper reads");
        keeper.pid = read_pid(&mut keeper.pids);
    }

    /// Kills the server, starts it again and waits until it serves.
    pub(crate) fn restart(&self) {
        self.revive();
        assert!(self.ready(), "etcd comes back:\n{}", self.log());
    }

    /// Replaces all data with a backup, made by `etcdctl snapshot save`, and with it the revisions.
    pub(crate) fn restore(&self, backup: &str) {
        self.kill();
        let data = self.dir.join("data");
        fs::remove_dir_all(&data).expect("our own directory");
        let data = data.to_str().expect("a plain path");
        self.ctl(&["snapshot", "restore", backup, "--data-dir", data]);
        self.restart();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// From now on etcdctl also uses these flags.
    pub(crate) fn add_ctl_flag(&self, flag: &str) {
        self.ctl_flags
            .lock()
            .expect("no panic while locked")
            .push(flag.to_owned());
    }

    /// The command line of etcdctl against this member.
    pub(crate) fn ctl_command(&self) -> Vec<String> {
        let mut line = vec![
            etcdctl_program(),
            format!("--endpoints={}", self.endpoint()),
        ];
        line.extend(
            self.ctl_flags
                .lock()
                .expect("no panic while locked")
                .iter()
                .cloned(),
        );
        line
    }

    /// Runs etcdctl; returns whether it succeeded.
    pub(crate) fn try_ctl(&self, args: &[&str]) -> bool {
        self.ctl_output(args).status.success()
    }

    fn ctl_output(&self, args: &[&str]) -> Output {
        let line = self.ctl_command();
        Command::new(&line[0])
            .args(&line[1..])
            .args(args)
            .env_clear()
            .env("ETCDCTL_API", "3")
            .output()
            .expect("etcdctl starts")
    }

    /// Runs etcdctl and returns its output.
    #[track_caller]
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        let output = self.ctl_output(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The id of its cluster as etcdctl prints it, in decimal digits.
    pub(crate) fn cluster_id(&self) -> String {
        let status = eventually(LIMIT, "etcd tells its state", || self.status());
        let mut lines = status.lines();
        let id = lines.find_map(|line| line.strip_prefix("\"ClusterID\" : "));
        id.expect("an id").to_owned()
    }

    /// The member's status, one field a line; `None` when it does not answer now.
    pub(crate) fn status(&self) -> Option<String> {
        let output =
            self.ctl_output(&["--command-timeout=1s", "endpoint", "status", "-w", "fields"]);
        let status = output.status.success();
        status.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// All keys that begin with `prefix`, the oldest first. Repeats the request while the server elects or starts.
    #[track_caller]
    pub(crate) fn entries(&self, prefix: &str) -> Vec<Entry> {
        let query = [
            "get",
            "--prefix",
            prefix,
            "--sort-by=CREATE",
            "-w",
            "fields",
        ];
        eventually(LIMIT, "etcdctl reads", || {
            let output = self.ctl_output(&query);
            let fields = String::from_utf8_lossy(&output.stdout);
            output.status.success().then(|| parse_entries(&fields))
        })
    }

    /// The entries of a lock's queue, the holder first. The name must need no encoding.
    #[track_caller]
    pub(crate) fn queue(&self, name: &str) -> Vec<Entry> {
        self.entries(&format!("dlock/lock/{name}/"))
    }

    /// Waits until the lock's queue is `length` long and returns it.
    #[track_caller]
    pub(crate) fn queue_of(&self, name: &str, length: usize) -> Vec<Entry> {
        eventually(LIMIT, &format!("{length} in the queue of {name}"), || {
            Some(self.queue(name)).filter(|queue| queue.len() == length)
        })
    }

    /// All leases, in etcdctl's form.
    #[track_caller]
    pub(crate) fn leases(&self) -> Vec<String> {
        let list = self.ctl(&["lease", "list"]);
        list.lines()
            .filter(|line| !line.starts_with("found"))
            .map(str::to_owned)
            .collect()
    }

    #[track_caller]
    pub(crate) fn revoke(&self, lease: &str) {
        self.ctl(&["lease", "revoke", lease]);
    }

    /// Waits until neither keys nor leases are left; that may take a default TTL, because a revoke may get lost.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        let until = boot_clock() + LIMIT * 2;
        loop {
            let (entries, leases) = (self.entries(""), self.leases());
            if entries.is_empty() && leases.is_empty() {
                return;
            }
            let keys: Vec<String> = entries.into_iter().map(|entry| entry.key).collect();
            assert!(
                boot_clock() < until,
                "left after {:?}: the keys {keys:?} and the leases {leases:?}",
                LIMIT * 2
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Writes until there is no space left; needs a small `--quota-backend-bytes`.
    #[track_caller]
    pub(crate) fn fill(&self) {
        let value = "x".repeat(100_000);
        eventually(LIMIT, "the alarm is raised", || {
            self.ctl_output(&["put", &unique("fill"), &value]);
            self.ctl(&["alarm", "list"]).contains("NOSPACE")
        });
    }

    /// Makes space again after [`Etcd::fill`], for all members of a cluster: compacts, defragments, and disarms the
    /// alarm.
    pub(crate) fn make_space(members: &[Self]) {
        let one = &members[0];
        eventually(LIMIT, "there is space again", || {
            one.try_ctl(&["del", "--prefix", "fill"]);
            let status = one.status().unwrap_or_default();
            let mut lines = status.lines();
            let revision = lines.find_map(|line| line.strip_prefix("\"Revision\" : "));
            one.try_ctl(&["compact", revision.unwrap_or_default()]);
            for member in members {
                member.try_ctl(&["defrag"]);
            }
            one.try_ctl(&["alarm", "disarm"]);
            // The last write may have arrived late.
            one.try_ctl(&["put", "fill", ""])
                && one.try_ctl(&["del", "--prefix", "fill"])
                && one.ctl(&["alarm", "list"]).is_empty()
        });
    }

    /// Turns on passwords: `root` with the password `root`, which etcdctl uses from now on.
    pub(crate) fn enable_auth(&self) {
        self.ctl(&["user", "add", "root:root"]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        self.ctl(&["auth", "enable"]);
        self.add_ctl_flag("--user=root:root");
    }

    /// Changes the password of a user.
    pub(crate) fn set_password(&self, user: &str, password: &str) {
        let output = Command::new("sh")
            .args(["-c", r#"printf '%s\n' "$0" | "$@""#, password])
            .args(self.ctl_command())
            .args(["user", "passwd", user, "--interactive=false"])
            .env("ETCDCTL_API", "3")
            .output()
            .expect("sh starts");
        assert!(output.status.success(), "{output:?}");
    }

    /// Adds a user whose only role is readwrite on the keys from `from` up to `to`.
    pub(crate) fn add_user(&self, name: &str, password: &str, from: &str, to: &str) {
        self.ctl(&["role", "add", name]);
        self.ctl(&["role", "grant-permission", name, "readwrite", from, to]);
        self.ctl(&["user", "add", &format!("{name}:{password}")]);
        self.ctl(&["user", "grant-role", name, name]);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let Ok(keeper) = self.keeper.get_mut() else {
            return;
        };
        keeper.orders = None;
        let _ = keeper.shell.wait();
    }
}

fn read_pid(pids: &mut impl BufRead) -> Process {
    let mut line = String::new();
    pids.read_line(&mut line).expect("the keeper answers");
    Process(
        line.trim()
            .parse()
            .expect("the keeper answers with a process id"),
    )
}

/// Parses `etcdctl get -w fields`: one `"Name" : value` per line, strings quoted as in Go.
fn parse_entries(fields: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in fields.lines() {
        let Some((name, value)) = line.split_once(" : ") else {
            continue;
        };
        let text = value.trim_matches('"').replace("\\\"", "\"");
        match (name, entries.last_mut()) {
            ("\"Key\"", _) => entries.push(Entry {
                key: text,
                value: String::new(),
                create_revision: 0,
                lease: 0,
            }),
            ("\"CreateRevision\"", Some(entry)) => {
                entry.create_revision = value.parse().expect("a revision");
            }
            ("\"Lease\"", Some(entry)) => entry.lease = value.parse().expect("a lease"),
            ("\"Value\"", Some(entry)) => entry.value = text,
            _ => {}
        }
    }
    entries
}

/// A port of 127.0.0.1 that is free now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has free ports");
    listener.local_addr().expect("a bound socket").port()
}

/// PATH with the directories of the chosen etcd and etcdctl in front, for scripts that name only the program.
pub(crate) fn search_path() -> String {
    let chosen = [etcd_program(), etcdctl_program()];
    let directories = chosen
        .iter()
        .filter_map(|program| Some(program.rsplit_once('/')?.0.to_owned()));
    let path = env::var("PATH").expect("a PATH");
    directories.chain([path]).collect::<Vec<_>>().join(":")
}

pub(crate) fn etcd_program() -> String {
    program("DLOCK_TEST_ETCD", "etcd")
}

pub(crate) fn etcdctl_program() -> String {
    program("DLOCK_TEST_ETCDCTL", "etcdctl")
}

fn program(variable: &str, default: &str) -> String {
    let program = env::var(variable).unwrap_or_else(|_| default.to_owned());
    let found = if program.contains('/') {
        Path::new(&program).exists()
    } else {
        env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .any(|dir| dir.join(&program).exists())
    };
    assert!(
        found,
        "{program} is not installed; install it with: apt-get install etcd-server etcd-client, or run make test"
    );
    program
}

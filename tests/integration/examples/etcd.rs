//! The page about etcd as one story: a node, certificates, three nodes, users, a full disk, a backup and its restoration.
//! It must not know how examples are found.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::documents::Block;
use super::scripts::script;
use crate::support::{
    Dlock, Etcd, LIMIT, Outcome, Scratch, dlock_program, etcdctl_program, eventually, free_port,
    search_path,
};

/// Takes the blocks in their order; each must be the expected one.
struct Pages<'a>(std::slice::Iter<'a, Block>);

impl Pages<'_> {
    #[track_caller]
    fn next(&mut self, begins: &str) -> String {
        let block = self.0.next().expect("one more example");
        assert!(
            block.text.starts_with(begins),
            "expected {begins:?}, found {block:?}"
        );
        block.text.clone()
    }
}

/// An etcd with the configuration of `/etc/default/etcd`; ended on drop.
struct Node(Child);

impl Node {
    /// `replaced`: the values that differ on the machine of the test.
    fn start(
        program: &str,
        log: &Path,
        configuration: &str,
        replaced: &HashMap<String, String>,
    ) -> Self {
        // A backslash at the end of a line continues it, for systemd and for sh.
        let mut configuration = configuration.replace("\\\n", "");
        let mut longest_first: Vec<_> = replaced.iter().collect();
        longest_first.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        for (from, to) in longest_first {
            configuration = configuration.replace(from, to);
        }
        let variables = configuration
            .lines()
            .map(|line| line.split_once('=').expect("NAME=VALUE"));
        let log = File::create(log).expect("a log");
        let child = Command::new("env")
            .arg(program)
            .env_clear()
            .env("PATH", search_path())
            .envs(variables)
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        Self(child)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The output of a shell in `directory` for an example, with these variables.
pub(super) fn shell(directory: &Scratch, text: &str, variables: &[(&str, &str)]) -> Outcome {
    let program = Path::new(dlock_program()).parent().expect("a directory");
    let mut dlock = Dlock::program([
        "bash",
        "-c",
        &format!("cd '{}'; {text}", directory.path().display()),
    ])
    .env("PATH", format!("{}:{}", program.display(), search_path()))
    .env("ETCDCTL_API", "3");
    for (name, value) in variables {
        dlock = dlock.env(name, value);
    }
    dlock.finish()
}

pub(super) fn story(blocks: &[Block]) {
    let mut pages = Pages(blocks.iter());
    let directory = Scratch::new();
    one_node(&mut pages, &directory);
    // From here on one of the members is a script's own server: its ports and files replace those of the page.
    let (_nodes, here) = three_nodes(&mut pages, &directory);
    alarms(&mut pages);
    backup(&mut pages);
    let check = adapted(pages.next("dlock --endpoints https://etcd1"), &here);
    let doctor = shell(&directory, &check, &[]);
    assert!(matches!(doctor.code(), Some(0 | 1)), "{doctor:?}");
    assert!(
        pages.0.next().is_none(),
        "an example that the story does not tell"
    );
}

fn one_node(pages: &mut Pages, directory: &Scratch) {
    let configuration =
        pages.next("ETCD_NAME=etcd1\nETCD_DATA_DIR=/var/lib/etcd/default\nETCD_LISTEN");
    let (client, peer) = (free_port(), free_port());
    let replaced = HashMap::from([
        ("/var/lib/etcd/default".to_owned(), directory.file("one")),
        (":2379".to_owned(), format!(":{client}")),
    ]);
    // With one node no client uses the peers' port, but the test has others beside it.
    let peers = format!("http://127.0.0.1:{peer}");
    let configuration = format!(
        "{configuration}ETCD_LISTEN_PEER_URLS={peers}\nETCD_INITIAL_ADVERTISE_PEER_URLS={peers}\nETCD_INITIAL_CLUSTER=etcd1={peers}\n"
    );
    let _node = Node::start(
        "etcd",
        &directory.path().join("one.log"),
        &configuration,
        &replaced,
    );
    let endpoint = format!("http://127.0.0.1:{client}");
    let try_it = pages.next("etcdctl endpoint health");
    eventually(LIMIT, "one node serves", || {
        let said = shell(directory, &try_it, &[("ETCDCTL_ENDPOINTS", &endpoint)]);
        said.stdout.ends_with("it works\n").then_some(())
    });
}

fn adapted(text: String, here: &HashMap<String, String>) -> String {
    here.iter()
        .fold(text, |text, (from, to)| text.replace(from, to))
}

/// The nodes, and the paths and addresses of the test that replace those of the page.
fn three_nodes(pages: &mut Pages, directory: &Scratch) -> (Vec<Node>, HashMap<String, String>) {
    let made = shell(directory, &pages.next("set -eu\numask 077\nnew_key="), &[]).expect_code(0);
    assert!(!made.stderr.contains("rror"), "{made:?}");
    for host in ["etcd1", "etcd2", "etcd3"] {
        let verify = format!("openssl verify -CAfile ca.pem {host}.pem");
        shell(directory, &verify, &[]).expect_code(0);
    }
    let first =
        pages.next("ETCD_NAME=etcd1\nETCD_DATA_DIR=/var/lib/etcd/default\nETCD_INITIAL_CLUSTER=");
    let (clients, peers): (Vec<u16>, Vec<u16>) = (0..3).map(|_| (free_port(), free_port())).unzip();
    let mut everywhere = HashMap::from([("/etc/etcd".to_owned(), directory.file(""))]);
    for (number, (client, peer)) in (1..).zip(clients.iter().zip(&peers)) {
        everywhere.insert(
            format!("https://etcd{number}.example.com:2380"),
            format!("https://127.0.0.1:{peer}"),
        );
        everywhere.insert(
            format!("https://etcd{number}.example.com:2379"),
            format!("https://127.0.0.1:{client}"),
        );
    }
    let start = |number: usize| {
        let name = format!("etcd{number}");
        let joined = first.replace("\\\n", "");
        let lines = joined.lines().map(|line| {
            let whole = line.starts_with("ETCD_INITIAL_CLUSTER=");
            if whole {
                line.to_owned()
            } else {
                line.replace("etcd1", &name)
            }
        });
        let configuration: String = lines.map(|line| line + "\n").collect();
        let mut replaced = everywhere.clone();
        replaced.insert(
            "/var/lib/etcd/default".to_owned(),
            directory.file(&format!("data{number}")),
        );
        replaced.insert(
            "https://0.0.0.0:2379".to_owned(),
            format!("https://127.0.0.1:{}", clients[number - 1]),
        );
        replaced.insert(
            "https://0.0.0.0:2380".to_owned(),
            format!("https://127.0.0.1:{}", peers[number - 1]),
        );
        Node::start(
            "etcd",
            &directory.path().join(format!("{name}.log")),
            &configuration,
            &replaced,
        )
    };
    let nodes = (1..=3).map(start).collect();
    let here = |text: String| adapted(text, &everywhere);
    let look = here(pages.next("export ETCDCTL_ENDPOINTS="));
    eventually(LIMIT * 2, "three nodes serve", || {
        let said = shell(directory, &look, &[]);
        (said.code() == Some(0) && said.stdout.matches("started").count() == 3).then_some(())
    });
    let settings = look.split("etcdctl").next().expect("the exports");
    let users = format!(
        "{settings}{}",
        pages.next("set -eu\numask 077\nopenssl rand")
    );
    shell(directory, &users, &[]).expect_code(0);

    let file = here(pages.next("endpoints = ["));
    let file = file.replace(
        "/etc/dlock/dlock.password",
        &directory.file("dlock.password"),
    );
    let file = directory.write("config.toml", &file);
    shell(
        directory,
        "dlock run job -- true",
        &[("DLOCK_CONFIG", &file)],
    )
    .expect_code(0)
    .expect_silent();
    // Nothing else is allowed.
    shell(
        directory,
        "dlock --prefix other/ run job -- true",
        &[("DLOCK_CONFIG", &file)],
    )
    .expect_code(125);
    let doctor = shell(directory, "dlock doctor", &[("DLOCK_CONFIG", &file)]);
    assert!(matches!(doctor.code(), Some(0 | 1)), "{doctor:?}");

    let team = format!("{settings}{}", pages.next("export ETCDCTL_USER="));
    let said = shell(directory, &team, &[]).expect_code(0);
    assert!(said.stdout.ends_with("it works\n"), "{said:?}");
    shell(
        directory,
        "dlock --user team --password-file team.password run job -- true",
        &[("DLOCK_CONFIG", &file)],
    )
    .expect_code(125);
    (nodes, everywhere)
}

fn alarms(pages: &mut Pages) {
    let etcd = Etcd::start_with(&["--quota-backend-bytes=2097152"]);
    let value = "x".repeat(100_000);
    eventually(LIMIT, "the alarm is raised", || {
        // Always the same key: compaction makes room again.
        let put = Command::new(etcdctl_program())
            .args(["--endpoints", &etcd.endpoint(), "put", "filled", &value])
            .env("ETCDCTL_API", "3")
            .output();
        drop(put.expect("etcdctl starts"));
        etcd.ctl(&["alarm", "list"])
            .contains("NOSPACE")
            .then_some(())
    });
    Dlock::on(&etcd)
        .run(["job", "true"])
        .finish()
        .expect_code(125)
        .expect_stderr(&["space"]);
    script(&etcd, &pages.next("revision=$(etcdctl endpoint status"))
        .finish()
        .expect_code(0);
    Dlock::on(&etcd)
        .run(["job", "true"])
        .finish()
        .expect_code(0)
        .expect_silent();
}

/// "the restore must raise the revision" (dlock-etcd(7)): tokens after a restoration are higher than all that were
/// given out before.
fn backup(pages: &mut Pages) {
    let newer = concat!(env!("CARGO_MANIFEST_DIR"), "/target/etcd-3.5/usr/bin");
    assert!(
        fs::exists(format!("{newer}/etcdutl")).is_ok_and(|there| there),
        "there is no etcdutl in {newer}; put it there with: tests/etcd35.sh target/etcd-3.5, or run make test"
    );
    let directory = Scratch::new();
    let path = format!("{newer}:{}", search_path());
    let port = free_port();
    let peers = format!("http://127.0.0.1:{}", free_port());
    let endpoint = format!("http://127.0.0.1:{port}");
    let start = |data: &str| {
        let configuration = format!(
            "ETCD_DATA_DIR={}\nETCD_LISTEN_CLIENT_URLS={endpoint}\nETCD_ADVERTISE_CLIENT_URLS={endpoint}\n\
             ETCD_LISTEN_PEER_URLS={peers}\nETCD_INITIAL_ADVERTISE_PEER_URLS={peers}\nETCD_INITIAL_CLUSTER=default={peers}",
            directory.file(data)
        );
        let log = directory.path().join(format!("{data}.log"));
        Node::start(
            &format!("{newer}/etcd"),
            &log,
            &configuration,
            &HashMap::new(),
        )
    };
    let token = || -> u64 {
        let outcome = Dlock::at(&endpoint)
            .run(["report", "sh", "-c", "echo $DLOCK_FENCING_TOKEN"])
            .finish();
        outcome
            .expect_code(0)
            .stdout
            .trim()
            .parse()
            .expect("a token")
    };
    let variables = [("ETCDCTL_ENDPOINTS", &*endpoint), ("PATH", &*path)];
    let before = start("old");
    token();
    shell(&directory, &pages.next("etcdctl snapshot save"), &variables).expect_code(0);
    let last = token();
    drop(before);
    shell(
        &directory,
        &pages.next("etcdutl snapshot restore"),
        &variables,
    )
    .expect_code(0);
    let _after = start("restored");
    assert!(token() > last + 900_000_000);
}

//! The page about security as one story: two domains of trust on one etcd, and a user who only looks.
//! It must not know how examples are found.

use super::documents::Block;
use super::etcd::shell;
use super::formats::with_endpoint;
use crate::support::{Dlock, Etcd, LIMIT, Scratch, eventually, hold_open};

/// The domain that attacks.
const OWN: &str = "deploy";

/// The domain that is attacked.
const OTHER: &str = "nightly";

pub(super) fn story(blocks: &[Block]) {
    let [domains, watcher, configuration] = blocks else {
        panic!("the story tells three examples, not {}", blocks.len());
    };
    let etcd = Etcd::start();
    etcd.enable_auth();
    let home = Scratch::new();
    home.write_private("root.password", "root\n");
    let endpoint = etcd.endpoint();
    let on_etcd = [
        ("ETCDCTL_ENDPOINTS", &*endpoint),
        ("DLOCK_ENDPOINTS", &*endpoint),
    ];
    shell(&home, &domains.text, &on_etcd).expect_code(0);
    let user = |name: &str| {
        Dlock::on(&etcd)
            .args(["--user", name])
            .args(["--password-file", &home.file(&format!("{name}.password"))])
    };
    cannot_touch_the_other_domain(&etcd, &home, &user);

    let of_own = || user(OWN).args(["--prefix", &format!("{OWN}/")]);
    let mut holder = hold_open(of_own(), &["--ttl=5"], "seen");
    let seen = shell(&home, &watcher.text, &on_etcd).expect_code(0);
    assert!(seen.stdout.contains("seen"), "{seen:?}");
    let watch = || user("watch").args(["--prefix", &format!("{OWN}/")]);
    watch().args(["status", "seen"]).finish().expect_code(0);
    watch().run(["seen", "true"]).finish().expect_code(125);
    let revision = etcd.entries("deploy/lock/seen/")[0].create_revision;
    let token = format!("--token={revision}");
    for now in [&[][..], &["--now"]] {
        let outcome = watch()
            .args(["break", "--yes", "seen", &token])
            .args(now)
            .finish();
        outcome
            .expect_code(125)
            .expect_stderr(&["permission denied"]);
    }
    holder.let_go().expect_silent();

    let configuration = with_endpoint(&configuration.text, &endpoint);
    // The server of this test has no TLS.
    let lines = configuration
        .lines()
        .filter(|line| !line.starts_with("cacert"));
    let adapted: Vec<String> = lines
        .map(|line| line.replace("/etc/dlock/", &home.file("")))
        .collect();
    let file = home.write("config.toml", &adapted.join("\n"));
    let variables = [("DLOCK_CONFIG", &*file), ("DLOCK_TTL", "5")];
    shell(&home, "dlock run job -- echo ran", &variables)
        .expect_code(0)
        .expect_silent()
        .expect_stdout("ran\n");
    nothing_is_left(&etcd);
}

/// A release revokes the lease without waiting for the answer. On a busy machine the request can be lost, and the release
/// record then lasts as long as the lease, which is much shorter than the limit here.
fn nothing_is_left(etcd: &Etcd) {
    eventually(LIMIT, "nothing is left", || etcd.entries("").is_empty());
}

/// "This user can neither read nor write these keys, nor revoke their leases" (dlock-security(7)).
fn cannot_touch_the_other_domain(etcd: &Etcd, home: &Scratch, user: &dyn Fn(&str) -> Dlock) {
    let prefix = format!("{OTHER}/");
    let victim = || user(OTHER).args(["--prefix", &prefix]);
    let attacker = || user(OWN).args(["--prefix", &prefix]);
    let mut holder = hold_open(victim(), &["--ttl=5"], "job");
    let entry = etcd.entries(&prefix).remove(0);
    let (key, lease) = (&*entry.key, &*entry.lease_hex());
    let token = format!("--token={}", entry.create_revision);
    for words in [
        &["ls"][..],
        &["status", "job"],
        &["run", "job", "true"],
        &["run", "--supersede", "job", "true"],
        &["run", "another", "true"],
        &["break", "--yes", "job", &token],
        &["break", "--yes", "--now", "job", &token],
    ] {
        let refused = attacker().args(words).finish().expect_code(125);
        refused.expect_stderr(&["permission denied"]);
    }
    let released = key.replace("/lock/", "/released/");
    let under_lease = format!("--lease={lease}");
    for words in [
        &["get", key][..],
        &["get", "--prefix", ""],
        &["put", key, "forged"],
        &["put", &released, "forged"],
        &["put", "nightly/lock/job/1", "blocks"],
        &["put", "deploy2/x", "beside the prefix"],
        &["put", "deploy/x", "mine", &under_lease],
        &["del", key],
        &["del", "--prefix", &prefix],
        &["watch", key],
        &["lease", "revoke", lease],
    ] {
        let password = home.file(&format!("{OWN}.password"));
        let etcdctl = format!("etcdctl --user \"{OWN}:$(cat '{password}')\" \"$@\"");
        let mut line = vec!["bash", "-c", &etcdctl, "etcdctl"];
        line.extend(words);
        let outcome = Dlock::program(line)
            .env("ETCDCTL_ENDPOINTS", etcd.endpoint())
            .env("ETCDCTL_API", "3")
            .env("PATH", crate::support::search_path())
            .finish();
        assert_ne!(outcome.code(), Some(0), "{words:?}: {outcome:?}");
        let says = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(
            says.to_lowercase().contains("permission denied"),
            "{words:?}: {says}"
        );
    }
    holder.let_go().expect_silent();
    nothing_is_left(etcd);
}

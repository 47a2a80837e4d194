//! The findings of `dlock doctor` on members that no test machine has: of the newest version, of a broken one, of one
//! that refuses its status, of one that lies.

use tonic::Code;

use super::script::{Act, Lie, Point};
use super::server::Fake;
use crate::doctor::Diagnosis;
use crate::support::Dlock;

const ETCD: [&str; 4] = ["endpoint", "cluster", "permission", "latency"];

#[track_caller]
fn diagnosis(fake: &Fake) -> Diagnosis {
    let found = Diagnosis::of(Dlock::at(&fake.endpoint()), &[]);
    assert_eq!(fake.lasting_keys(), [""; 0]);
    assert_eq!(fake.keys(), [""; 0]);
    assert_eq!(fake.leases(), [0_i64; 0]);
    found
}

/// "known-bad server versions with what they break"
#[test]
fn bad_versions_are_named() {
    let fake = Fake::start();
    let found = diagnosis(&fake);
    found.is_fine(&ETCD);
    found.is_fine(&["version", "alarm"]);
    fake.script.set_version("3.6.8");
    let found = diagnosis(&fake);
    found.is_fine(&ETCD);
    let words = ["old data", &fake.endpoint(), "upgrade etcd to 3.6.9"];
    found.says("version", "3.6.8", "warning", &words);
    fake.script.set_version("3\u{1b}[2J\u{202e}\n");
    let found = diagnosis(&fake);
    let shown = "3\\u{1b}[2J\\u{202e}\\n";
    found.says("version", shown, "warning", &["does not know this version"]);
}

/// "Where auth forbids Maintenance.Status (needs root), say so as info, not as a failure"
#[test]
fn a_member_that_refuses_its_status_is_fine() {
    let fake = Fake::start();
    let denied = Act::Refuse(Code::PermissionDenied, "etcdserver: permission denied");
    fake.script.always(Point::Status, denied);
    let found = diagnosis(&fake);
    found.is_fine(&ETCD);
    let words = ["shows its state to root only", "raft term 7"];
    found.says("endpoint", &fake.endpoint(), "ok", &words);
}

/// A proof that does not count for `dlock run` does not count here.
#[test]
fn answers_that_prove_nothing_are_no_proof() {
    let fake = Fake::start();
    fake.script.always(Point::KeepAlive, Act::Lie(Lie::Term));
    let found = diagnosis(&fake);
    found.is_unusable();
    let words = ["no renewal would count", "a leader was being elected"];
    found.says("latency", &fake.endpoint(), "unusable", &words);
    for (act, cause) in [
        (Act::Swallow, "no answer within 2s"),
        (Act::Close, "the keepalive stream was closed"),
        (Act::Lie(Lie::Lease), "a keepalive answer for another lease"),
    ] {
        fake.script.resume();
        // The first request opens the stream.
        fake.script.once(Point::KeepAlive, Act::Honest);
        fake.script.once(Point::KeepAlive, act);
        let found = diagnosis(&fake);
        let words = format!("1 of 5 proofs did not count: {cause}");
        found.says("latency", &fake.endpoint(), "warning", &[&words]);
    }
}

/// "all of one cluster": siblings are, a member of another cluster is not.
#[test]
fn siblings_are_one_cluster() {
    let fake = Fake::start();
    let (sibling, stranger) = (fake.sibling(), Fake::stranger());
    let with = |other: &Fake| {
        let both = format!("{},{}", fake.endpoint(), other.endpoint());
        Diagnosis::of(Dlock::at(&both), &[])
    };
    // Each claims to be the leader.
    with(&sibling).says("cluster", "c1", "warning", &["different leaders"]);
    with(&stranger).is_unusable();
}

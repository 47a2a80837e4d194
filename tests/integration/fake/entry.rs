//! Entry and release while etcd's answers differ from its actions.
//! It must not know how the fake does it.

use std::process::Stdio;
use std::time::Duration;

use tonic::Code;

use super::script::{Act, Point};
use super::server::Fake;
use super::{COMMAND, at_once, dlock, ends_well, fails, holder, is_lost, no_leak, survives};
use crate::support::{Dlock, LIMIT, boot_clock, eventually, let_pass};

const AT_ONCE: Duration = Duration::ZERO;
const LEASE_EXISTS: &str = "etcdserver: lease already exists";
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const OLD_REVISION: &str = "etcdserver: revision of auth store is old";

/// "After an ambiguous grant use a new id; never adopt or revoke an id that 'already exists'." The answer may also
/// come after the transaction has left, "1-2 ms after the grant".
#[test]
fn a_lease_that_exists_belongs_to_another_client() {
    at_once([AT_ONCE, Duration::from_millis(200)], |late| {
        let fake = Fake::start();
        let exists = Act::RefuseDone(late, Code::FailedPrecondition, LEASE_EXISTS);
        fake.script.once(Point::Grant, exists);
        let mut holder = holder(&fake.endpoint());
        let theirs = fake.granted()[0];
        assert_eq!(fake.expired(), [0_i64; 0], "we waited for the end of it");
        assert_eq!(fake.keys().len(), 1, "only one place is ours");
        ends_well(&mut holder, &fake).expect_silent();
        assert!(!fake.is_revoked(theirs));
    });
}

/// "New acquisitions fail" with "infrastructure error, not 'lock busy'"; and because etcd may have executed a refused
/// request, nothing of it may be left that blocks others.
#[test]
fn a_grant_that_is_done_and_refused_leaves_nothing() {
    at_once([Point::Grant, Point::Place], |point| {
        let fake = Fake::start();
        let refusal = Act::RefuseDone(AT_ONCE, Code::ResourceExhausted, NO_SPACE);
        fake.script.always(point, refusal);
        let words = ["space", "\nhint: "];
        fails(dlock(&fake.endpoint()).start(), &fake, &words);
        assert_eq!(fake.keys(), [""; 0]);
        assert_eq!(fake.leases(), [0_i64; 0]);
        assert_eq!(fake.expired(), [0_i64; 0], "it did not end by itself");
    });
}

/// "Re-authenticate when told ... 'revision of auth store is old'": for every kind of request, it costs a login and no
/// more.
#[test]
fn an_old_auth_revision_costs_a_login() {
    let old = Act::Refuse(Code::InvalidArgument, OLD_REVISION);
    let points = [
        Point::Grant,
        Point::Place,
        Point::Open,
        Point::KeepAlive,
        Point::Read,
        Point::Watch,
        Point::Release,
    ];
    at_once(points, |point| {
        let fake = Fake::with_password("secret");
        fake.script.once(point, old);
        let mut holder = dlock(&fake.endpoint())
            .env("DLOCK_USER", "me")
            .env("DLOCK_PASSWORD", "secret")
            .start();
        holder.says("on\n");
        let since = boot_clock();
        if point == Point::Release {
            ends_well(&mut holder, &fake).expect_silent();
        } else {
            eventually(LIMIT, "the refusal is told", || fake.script.is_done(point));
            survives(holder, &fake, since);
        }
        // A watch is opened anew on the same connection: only the other requests show that the token is old.
        if point != Point::Watch && point != Point::Open && point != Point::Read {
            assert!(fake.script.seen(Point::Login) > 1, "{point:?}");
        }
    });
}

/// An entry whose confirmation was lost is replaced by a new one, and does not block it.
#[test]
fn a_lost_answer_leaves_no_entry_before_the_next_one() {
    at_once([Point::Grant, Point::Place], |point| {
        let fake = Fake::start();
        fake.script.once(point, Act::Cut);
        let mut holder = holder(&fake.endpoint());
        assert_eq!(fake.keys().len(), 1);
        ends_well(&mut holder, &fake).expect_silent();
    });
}

/// "The waiters in the queue give the command that time" (dlock-run(1)), also a waiter that has its entry and has not
/// read the ones before it.
#[test]
fn a_holder_that_vanishes_while_a_waiter_joins_is_waited_for() {
    at_once([&[][..], &["-n"]], |options: &[&str]| {
        let fake = Fake::start();
        let mut holder = holder(&fake.endpoint());
        fake.script.once(Point::Place, Act::Hold);
        let newcomer = Dlock::at(&fake.endpoint()).args(["-v"]).run(options);
        let mut newcomer = newcomer.args(["--ttl=5", "job", "true"]).start();
        let place = fake.keys_of(2).remove(0);
        fake.delete(&place);
        fake.script.let_go();
        let code = if options == ["-n"] { 75 } else { 0 };
        let outcome = newcomer.wait().expect_code(code);
        if code == 0 {
            outcome.expect_stderr(&["has vanished without a release"]);
        }
        holder.wait().expect_code(121);
    });
}

/// "etcd has 3s for its first answer and 3s for the rest" (dlock-run(1)): the rest is also the lease of --min-hold, and
/// the proof that a late answer needs. The reason is the last one.
#[test]
fn a_request_that_does_not_wait_ends_when_etcd_confirms_nothing() {
    at_once([Point::Grant, Point::KeepAlive], |point| {
        let fake = Fake::start();
        let refusal = Act::Refuse(Code::Unavailable, "etcdserver: not now");
        let words = if point == Point::Grant {
            fake.script.once(point, Act::Honest);
            fake.script.always(point, Act::Swallow);
            "no endpoint answered within"
        } else {
            fake.script.once(Point::Place, Act::Hold);
            fake.script.always(point, refusal);
            "not now"
        };
        let run = Dlock::at(&fake.endpoint()).run(["-n", "-E0", "--ttl=10", "--min-hold=1h"]);
        let run = run.args(["--connect-timeout=5", "job", "echo", "never"]);
        let run = run.start();
        fake.keys_of(1);
        if point == Point::KeepAlive {
            // A command starts on a proof that is younger than a fifth of the TTL.
            let_pass(Duration::from_millis(2500));
            fake.script.let_go();
        }
        fails(run, &fake, &[words]);
        assert_eq!(fake.keys(), [""; 0]);
        assert_eq!(
            fake.expired(),
            [0_i64; 0],
            "the limit is shorter than the TTL"
        );
    });
}

/// "If etcd refuses to take that back, the command starts all the same, and the holder takes it back later"
/// (dlock-status(1)).
#[test]
fn a_start_waits_for_no_record() {
    at_once(
        [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::ResourceExhausted, NO_SPACE),
        ],
        |(code, message)| {
            let fake = Fake::start();
            let predecessor = fake.occupy("job");
            let dlock = Dlock::at(&fake.endpoint()).run(["-v", "--ttl=20"]);
            let dlock = dlock.args(COMMAND).stdin(Stdio::piped());
            let unproven = Act::Refuse(Code::Unavailable, "etcdserver: not now");
            fake.script.always(Point::KeepAlive, unproven);
            let mut waiter = dlock.start();
            fake.keys_of(2);
            // A command starts on a proof that is younger than a fifth of the TTL, such as the grant.
            let_pass(Duration::from_millis(4500));
            fake.delete(&predecessor);
            let is_pending = || fake.newest_record().contains("\"pending\":true");
            eventually(LIMIT, "it says that it has not started", is_pending);
            fake.script.always(Point::Place, Act::Refuse(code, message));
            fake.script.end(Point::KeepAlive);
            waiter.says("on\n");
            assert!(is_pending());
            fake.script.end(Point::Place);
            eventually(LIMIT, "it takes that back", || !is_pending());
            ends_well(&mut waiter, &fake);
        },
    );
}

/// "dlock status" ends at an etcd that falls silent after its first answer, with what is known.
#[test]
fn a_listing_waits_for_no_time_of_a_lease() {
    let fake = Fake::start();
    let mut holder = holder(&fake.endpoint());
    fake.script.always(Point::TimeLeft, Act::Swallow);
    for line in [&["status", "job"][..], &["ls"]] {
        let listing = Dlock::at(&fake.endpoint()).args(["--connect-timeout=1"]);
        let outcome = listing.args(line).finish().expect_code(0);
        assert!(outcome.stdout.contains("exclusive"), "{outcome:?}");
    }
    ends_well(&mut holder, &fake).expect_silent();
}

/// A waiter sees the change of a record before its watch is open: the record shows how long the command of that holder may
/// run.
#[test]
fn an_entry_that_changes_while_a_waiter_joins_is_read_again() {
    let fake = Fake::start();
    let reader = || {
        let shared = ["-s", "--ttl=600"].into_iter().chain(COMMAND);
        let reader = Dlock::at(&fake.endpoint()).run(shared);
        let mut reader = reader.stdin(Stdio::piped()).start();
        reader.says("on\n");
        reader
    };
    let _readers = [reader(), reader()];
    let before = fake.script.seen(Point::Look);
    let looks = || fake.script.seen(Point::Look) - before;
    fake.script.once(Point::Look, Act::Hold);
    let _writer = Dlock::at(&fake.endpoint())
        .run(["--ttl=600", "job", "true"])
        .start();
    eventually(LIMIT, "the writer looks", || looks() == 1);
    fake.rewrite(&fake.keys()[1]);
    fake.script.let_go();
    // Another look finds the second reader, and a third one opens the watch; nothing is renewed before two minutes.
    eventually(LIMIT, "the writer looks again", || looks() > 3);
}

/// "75: lock busy with `-n`": the rest of our own lost attempt does not count as a holder.
#[test]
fn a_lost_answer_does_not_make_a_free_lock_busy() {
    let fake = Fake::start();
    fake.script.once(Point::Place, Act::Cut);
    let mut run = Dlock::at(&fake.endpoint())
        .run(["--ttl=5", "-n", "job", "true"])
        .start();
    run.wait().expect_code(0).expect_silent();
    no_leak(&run, &fake);
    assert_eq!(fake.expired(), [0_i64; 0]);
}

/// A release whose answer is lost is repeated once, and its own record shows that it was executed.
#[test]
fn a_release_whose_answer_is_lost_is_confirmed_by_its_record() {
    let fake = Fake::start();
    let mut holder = holder(&fake.endpoint());
    fake.script.once(Point::Release, Act::Cut);
    ends_well(&mut holder, &fake).expect_silent();
}

/// "Unconfirmed: warn ...; the command's own status stands if the deadline was never passed": etcd refuses to delete, and the
/// lease frees the lock.
#[test]
fn a_refused_release_is_a_warning_and_no_loss() {
    let fake = Fake::start();
    let mut holder = holder(&fake.endpoint());
    let refusal = Act::Refuse(Code::ResourceExhausted, NO_SPACE);
    fake.script.always(Point::Release, refusal);
    holder.type_in("\n");
    let words = ["dlock: cannot confirm the release of lock 'job'", "space"];
    holder.wait().expect_code(7).expect_stderr(&words);
    no_leak(&holder, &fake);
}

/// "A release must work when etcd refuses puts": refused though done, it finds its key gone and its own record there.
#[test]
fn a_release_that_is_refused_though_done_is_no_loss() {
    let fake = Fake::start();
    let mut holder = holder(&fake.endpoint());
    let refusal = Act::RefuseDone(AT_ONCE, Code::ResourceExhausted, NO_SPACE);
    fake.script.once(Point::Release, refusal);
    ends_well(&mut holder, &fake).expect_silent();
}

/// The same when the answer to the release without a put is lost: what was seen before it serves as the record.
#[test]
fn a_release_without_a_put_whose_answer_is_lost_is_no_loss() {
    let fake = Fake::start();
    let mut holder = holder(&fake.endpoint());
    let refusal = Act::Refuse(Code::ResourceExhausted, NO_SPACE);
    fake.script.once(Point::Release, refusal);
    fake.script.once(Point::Release, Act::Cut);
    ends_well(&mut holder, &fake).expect_silent();
}

/// "Every await under a timeout": whichever request is never answered, dlock ends within its connect timeout.
#[test]
fn a_request_that_is_never_answered_is_given_up() {
    let silent = [
        (Point::Grant, Act::Swallow),
        (Point::Place, Act::Swallow),
        (Point::Place, Act::Hold),
        (Point::Login, Act::Swallow),
    ];
    at_once(silent, |(point, act)| {
        let fake = Fake::start();
        fake.script.always(point, act);
        let run = Dlock::at(&fake.endpoint())
            .env("DLOCK_USER", "me")
            .env("DLOCK_PASSWORD", "secret")
            .run(["--connect-timeout=1", "--ttl=5"])
            .args(COMMAND)
            .start();
        fails(run, &fake, &[&fake.endpoint(), "within 1s"]);
    });
}

/// "A member of another cluster is refused": it does not continue our lock, nor does it get an entry of ours.
#[test]
fn a_member_of_another_cluster_is_refused() {
    let (fake, stranger) = (Fake::start(), Fake::stranger());
    let endpoints = [fake.endpoint(), stranger.endpoint()].join(",");
    let holder = holder(&endpoints);
    fake.script.silence();
    // Nor does it matter that our key does not exist there.
    is_lost(holder, &fake).expect_stderr(&["no proof from etcd for"]);
    assert!(stranger.script.seen(Point::Read) > 0, "it was asked");
    assert_eq!(stranger.granted(), [0_i64; 0]);
}

/// "--supersede": a newer request asks those before it to give up, a waiter exits with 75 and the holder with 121, also
/// when the first requests to them fail.
#[test]
fn a_failed_request_to_older_waiters_is_repeated() {
    let fake = Fake::start();
    let mut holder = holder(&fake.endpoint());
    let mut waiter = dlock(&fake.endpoint()).start();
    fake.keys_of(2);
    // The newer request gets its entry, and then nothing passes.
    fake.script.once(Point::Place, Act::Honest);
    let refusal = Act::Refuse(Code::Unavailable, "etcdserver: no leader");
    fake.script.always(Point::Place, refusal);
    let options = [
        "--ttl=5",
        "--connect-timeout=1",
        "--supersede=holder",
        "job",
        "true",
    ];
    let newer = Dlock::at(&fake.endpoint()).args(["-v"]);
    let mut newer = newer.run(options).start();
    eventually(LIMIT, "asking has failed", || {
        newer.stderr().contains("no leader")
    });
    fake.script.resume();
    waiter.wait().expect_code(75);
    holder.wait().expect_code(121);
    newer.wait().expect_code(0);
}

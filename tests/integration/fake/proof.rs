//! Answers that must not count as a proof that the lock is still held, and those that must not end it either.
//! It must not know how the fake produces them.

use std::process::Stdio;
use std::time::Duration;

use super::script::{Act, Lie, Point};
use super::server::Fake;
use super::{at_once, dlock, ends_well, holder, is_lost, lives_on, settled_holder, survives};
use crate::support::{Dlock, LIMIT, boot_clock, eventually, let_pass};

/// "A renewal counts only if ... keepalive answered with TTL > 0, then a linearizable read of our key, and both headers
/// agree on `member_id`, `cluster_id` and `raft_term`, ... and the revision is not lower than any seen before."
#[test]
fn answers_that_are_no_proof_end_the_command_in_time() {
    let lies = [
        (Point::KeepAlive, Lie::Term),
        (Point::Read, Lie::Term),
        (Point::KeepAlive, Lie::Member),
        (Point::Read, Lie::Member),
        (Point::KeepAlive, Lie::Cluster),
        (Point::Read, Lie::Cluster),
        (Point::Read, Lie::Revision),
        (Point::KeepAlive, Lie::Ttl(0)),
        (Point::KeepAlive, Lie::Lease),
    ];
    at_once(lies, |(point, lie)| {
        let fake = Fake::start();
        // From the start on, and no renewal is executed.
        fake.script.always(point, Act::Lie(lie));
        fake.script.always(Point::KeepAlive, Act::Pretend);
        let holder = holder(&fake.endpoint());
        is_lost(holder, &fake);
        assert!(fake.script.seen(point) > 1, "it was asked again");
    });
}

/// "A keepalive answer is no proof: a deposed or stuck leader answers OK for leases that the cluster has dropped."
#[test]
fn keepalives_without_a_read_prove_nothing() {
    let fake = Fake::start();
    let holder = settled_holder(&fake.endpoint(), &fake);
    fake.script.always(Point::KeepAlive, Act::Pretend);
    fake.script.always(Point::Read, Act::Swallow);
    is_lost(holder, &fake);
    assert!(fake.script.seen(Point::KeepAlive) > 2);
}

/// An inconclusive answer moves nothing and loses nothing: dlock asks again at once, and the command survives. "TTL = 0
/// in an answer is suspicion, not loss." Only an answer of another cluster causes a warning.
#[test]
fn one_odd_answer_is_followed_by_another_request() {
    let odd = [
        // Only the TTL of the first answer on a new keepalive stream matters.
        (0, Point::KeepAlive, Lie::Ttl(0)),
        (1, Point::KeepAlive, Lie::Ttl(0)),
        (1, Point::KeepAlive, Lie::Term),
        (1, Point::KeepAlive, Lie::Member),
        (1, Point::KeepAlive, Lie::Cluster),
        (1, Point::KeepAlive, Lie::Lease),
        (0, Point::Read, Lie::Term),
        (0, Point::Read, Lie::Member),
        (0, Point::Read, Lie::Cluster),
        (0, Point::Read, Lie::Revision),
    ];
    at_once(odd, |(before, point, lie)| {
        let fake = Fake::start();
        let holder = settled_holder(&fake.endpoint(), &fake);
        let since = boot_clock();
        for _ in 0..before {
            fake.script.once(point, Act::Honest);
        }
        fake.script.once(point, Act::Lie(lie));
        eventually(LIMIT, "the lie is told", || fake.script.is_done(point));
        let outcome = lives_on(holder, &fake, since);
        match lie {
            Lie::Cluster => outcome.expect_stderr(&["belongs to another cluster"]),
            _ => outcome.expect_silent(),
        };
    });
}

/// "The command starts only with a proof younger than G/5", and the grant is one that counts from the time before it was
/// sent: if its answer took longer, another proof is needed.
#[test]
fn a_grant_counts_from_the_time_of_its_sending() {
    let fake = Fake::start();
    fake.script.always(Point::Grant, Act::Hold);
    fake.script.always(Point::KeepAlive, Act::Hold);
    let mut holder = dlock(&fake.endpoint()).start();
    eventually(LIMIT, "the lease is granted", || !fake.granted().is_empty());
    // Longer than a fifth of the five seconds.
    let_pass(Duration::from_millis(1200));
    fake.script.let_go();
    eventually(LIMIT, "a renewal is asked for", || {
        fake.script.seen(Point::KeepAlive) > 0
    });
    assert_eq!(holder.stdout(), "", "the command runs on an old proof");
    fake.script.resume();
    ends_well(&mut holder, &fake).expect_silent();
}

/// "G = TTL granted by the server (never more than asked: clamp)": a longer TTL does not count.
#[test]
fn a_ttl_larger_than_requested_does_not_count() {
    let fake = Fake::start();
    let long = Act::Lie(Lie::Ttl(3600));
    fake.script.always(Point::Grant, long);
    fake.script.always(Point::KeepAlive, long);
    let holder = holder(&fake.endpoint());
    eventually(LIMIT, "a renewal is over", || {
        fake.script.seen(Point::KeepAlive) > 2
    });
    fake.script.silence();
    is_lost(holder, &fake);
}

/// "G = TTL granted by the server": a shorter TTL counts.
#[test]
fn a_ttl_smaller_than_requested_counts() {
    let fake = Fake::start();
    let granted = Duration::from_secs(5);
    fake.script.once(Point::Grant, Act::Lie(Lie::Ttl(5)));
    fake.script.always(Point::KeepAlive, Act::Lie(Lie::Ttl(0)));
    let mut holder = Dlock::at(&fake.endpoint())
        .run(["--ttl=60", "--kill-after=1"])
        .args(super::COMMAND)
        .stdin(Stdio::piped())
        .start();
    holder.says("on\n");
    holder.tree_dies_before("after the end of the lease", || {
        boot_clock() >= fake.renewed_at() + granted
    });
    is_lost(holder, &fake);
}

/// "One request outstanding per stream; a timed-out stream is dropped": answers that arrive late, all together, do no
/// harm, and the command survives.
#[test]
fn a_stall_and_a_burst_are_survived() {
    let fake = Fake::start();
    let holder = settled_holder(&fake.endpoint(), &fake);
    let since = boot_clock();
    fake.script.always(Point::KeepAlive, Act::Hold);
    fake.script.always(Point::Read, Act::Hold);
    eventually(LIMIT, "a second question is held", || {
        fake.script.seen(Point::KeepAlive) > 1
    });
    fake.script.resume();
    survives(holder, &fake, since);
}

/// "once the lock is lost, nothing brings it back": a burst of good answers after the stop changes nothing.
#[test]
fn a_burst_after_the_stop_is_too_late() {
    let fake = Fake::start();
    let script = "trap 'echo stopping' TERM; echo on; while :; do sleep 0.05; done";
    let mut holder = Dlock::at(&fake.endpoint())
        .run(["--ttl=5", "job", "--", "sh", "-c", script])
        .start();
    holder.says("on\n");
    fake.script.always(Point::KeepAlive, Act::Hold);
    fake.script.always(Point::Read, Act::Hold);
    holder.says("stopping\n");
    fake.script.resume();
    is_lost(holder, &fake);
}

/// Answers that are held back never move a deadline from a later request: the renewal counts "from the keepalive's
/// `sent`", and a dropped stream's answers do not count at all.
#[test]
fn a_burst_does_not_count_from_its_arrival() {
    let fake = Fake::start();
    let holder = settled_holder(&fake.endpoint(), &fake);
    // Only the first request is executed; its answer arrives after two later ones have failed.
    fake.script.once(Point::KeepAlive, Act::Hold);
    fake.script.always(Point::KeepAlive, Act::Swallow);
    eventually(LIMIT, "a third question goes unanswered", || {
        fake.script.seen(Point::KeepAlive) > 2
    });
    fake.script.silence();
    fake.script.let_go();
    is_lost(holder, &fake);
}

//! The end of a lock that was held: dlock ends with the command's status only if the lock was its own to the command's end.
//! It must not know how a lock is lost while its command runs; `loss.rs` does.

use crate::support::{Direction, Dlock, Etcd, LIMIT, Link, Mode, eventually, hold_open, unique};

/// Long enough for a holder that nobody hears, and for more than one try of its release.
const LONG: &str = "--ttl=60";
/// Beside the plain release there is one that leaves the lock to cool down.
const RELEASES: [&[&str]; 2] = [&[LONG], &[LONG, "--min-hold=50s"]];

/// "121: ... or the release found that the lock was no longer ours": also when the first try to release it has met a dead
/// connection, whatever became of that.
#[test]
fn a_lock_that_was_lost_is_lost_at_the_second_try_of_its_release_too() {
    let etcd = Etcd::shared();
    for release in RELEASES {
        let (name, link) = (unique("second"), Link::to(etcd.port()));
        let dlock = Dlock::at(&link.endpoint());
        let mut holder = hold_open(dlock, release, &name);
        let lease = etcd.queue(&name)[0].lease_hex();
        // The holder hears nothing of what follows.
        link.both(Mode::Drop);
        etcd.revoke(&lease);
        let next = Dlock::on(etcd).run([&name, "true"]);
        next.finish().expect_code(0);
        drop(holder.take_stdin());
        holder.tree_dies();
        link.refuse();
        link.heal();
        let outcome = holder.wait().expect_code(121);
        outcome.expect_stderr(&["dlock: ", "was lost while the command ran"]);
    }
}

/// The same when etcd is out of space, and refuses every release that leaves word of itself.
#[test]
fn a_lock_that_was_lost_is_lost_without_space_too() {
    for release in RELEASES {
        let etcd = Etcd::start_with(&["--quota-backend-bytes=2097152"]);
        let link = Link::to(etcd.port());
        let mut holder = hold_open(Dlock::at(&link.endpoint()), release, "lost");
        let lease = etcd.queue("lost")[0].lease_hex();
        link.both(Mode::Hold);
        etcd.revoke(&lease);
        Dlock::on(&etcd)
            .run(["lost", "true"])
            .finish()
            .expect_code(0);
        etcd.fill();
        drop(holder.take_stdin());
        holder.tree_dies();
        link.both(Mode::Pass);
        let outcome = holder.wait().expect_code(121);
        outcome.expect_stderr(&["dlock: ", "lost"]);
    }
}

/// A release whose answer is lost is repeated, and then knows what it has done itself: that is no loss, and nothing to warn of.
#[test]
fn a_release_whose_answer_is_lost_is_confirmed_by_its_record() {
    let etcd = Etcd::shared();
    for release in RELEASES {
        let (name, link) = (unique("answer"), Link::to(etcd.port()));
        let dlock = Dlock::at(&link.endpoint());
        let mut holder = hold_open(dlock, release, &name);
        let lease = etcd.queue(&name)[0].lease;
        link.set(Direction::ToClient, Mode::Drop);
        drop(holder.take_stdin());
        eventually(LIMIT, "the place is given up", || {
            etcd.queue(&name).iter().all(|place| place.lease != lease)
        });
        link.refuse();
        link.heal();
        holder.wait().expect_code(0).expect_silent();
    }
}

/// "NOSPACE alarm": a release that etcd refuses to note is none the less known, when its answer is lost too.
#[test]
fn a_release_whose_answer_is_lost_without_space_is_no_loss() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes=2097152"]);
    let link = Link::to(etcd.port());
    let mut holder = hold_open(Dlock::at(&link.endpoint()), &[LONG], "kept");
    etcd.fill();
    link.set(Direction::ToClient, Mode::Drop);
    drop(holder.take_stdin());
    holder.tree_dies();
    link.refuse();
    link.heal();
    holder.wait().expect_code(0).expect_silent();
    assert!(etcd.queue("kept").is_empty());
}

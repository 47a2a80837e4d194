//! The release of a lock: dlock exits with the command's status only if it held the lock until the command's end.
//! It must not know how a lock is lost while its command runs; `loss.rs` does.

use crate::support::{Direction, Dlock, Etcd, LIMIT, Link, Mode, eventually, hold_open, unique};

/// Long enough for a holder that is cut off, and for more than one attempt of its release.
const LONG: &str = "--ttl=60";
/// Besides the plain release there is one that starts a cooldown.
const RELEASES: [&[&str]; 2] = [&[LONG], &[LONG, "--min-hold=50s"]];

/// "The release checks that the lock was held without a gap. If it was not, the exit status is 121" (dlock-run(1)):
/// also when the first attempt to release it met a dead connection, whatever happened to that request.
#[test]
fn a_lock_that_was_lost_is_lost_at_the_second_try_of_its_release_too() {
    let etcd = Etcd::shared();
    for release in RELEASES {
        let (name, link) = (unique("second"), Link::to(etcd.port()));
        let dlock = Dlock::at(&link.endpoint());
        let mut holder = hold_open(dlock, release, &name);
        let lease = etcd.queue(&name)[0].lease_hex();
        // The holder receives nothing of the following.
        link.both(Mode::Drop);
        etcd.revoke(&lease);
        let next = Dlock::on(etcd).run([&name, "true"]);
        next.finish().expect_code(0);
        drop(holder.take_stdin());
        holder.tree_dies();
        link.refuse();
        link.heal();
        let outcome = holder.wait().expect_code(121);
        outcome.expect_stderr(&["dlock: ", "lost lock '", "' while the command ran"]);
    }
}

/// The same when etcd is out of space, and refuses every release with a release record.
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

/// A release whose answer is lost is repeated, and recognises its own earlier success: that is no loss, and no warning.
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

/// "NOSPACE alarm": a release without a record is recognised, too, when its answer is lost.
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

/// "deletes the entry and its slot without waiting": an etcd out of space refuses the request to the holder,
/// and dlock break --now takes the lock away all the same.
#[test]
fn a_lock_is_broken_at_once_without_space() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes=2097152"]);
    let mut holder = hold_open(Dlock::on(&etcd), &[LONG], "broken");
    let token = etcd.queue("broken")[0].create_revision.to_string();
    etcd.fill();
    let line = ["break", "broken", "--token", &token, "--yes", "--now"];
    Dlock::on(&etcd).args(line).finish().expect_code(0);
    assert!(etcd.queue("broken").is_empty());
    holder.wait().expect_code(121);
}

/// "NOSPACE alarm": a lock whose --min-hold is over is released without a record, which the next holder is told truthfully.
#[test]
fn a_lock_whose_min_hold_is_over_is_released_without_space() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes=2097152"]);
    let mut holder = hold_open(Dlock::on(&etcd), &[LONG, "--min-hold=2s"], "over");
    eventually(LIMIT, "the time of --min-hold is over", || {
        etcd.leases().len() == 1
    });
    etcd.fill();
    holder.let_go().expect_code(0);
    assert!(etcd.queue("over").is_empty());
}

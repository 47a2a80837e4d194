//! Watches that end, fail or stay silent: they only make things faster, and nothing depends on them.
//! It must not know how the fake does it.

use super::script::{Act, Lie, Point};
use super::server::Fake;
use super::{at_once, ends_well, holder, is_lost, settled_holder, survives, waiter};
use crate::support::{LIMIT, boot_clock, eventually};

/// The possible faults of every watch.
const WRONG: [(Point, Act); 3] = [
    (Point::Watch, Act::Compacted),
    (Point::Watch, Act::Swallow),
    (Point::Watch, Act::Close),
];

/// "Compaction, cancelled watch ...: re-read, re-watch": the waiter acquires the lock all the same.
#[test]
fn a_waiter_outlives_watches_cancelled_by_compaction() {
    gets_its_turn(WRONG[0]);
}

/// "... and a slow poll beside it": a watch that stays silent costs a moment, not the lock.
#[test]
fn a_waiter_outlives_a_mute_watch() {
    gets_its_turn(WRONG[1]);
}

/// The server closes its half of every watch stream: the waiter reopens it.
#[test]
fn a_waiter_outlives_half_closed_watches() {
    gets_its_turn(WRONG[2]);
}

/// "Every await under a timeout (connect, DNS, streams)": a watch that is never even opened holds nothing up.
#[test]
fn a_waiter_outlives_a_watch_that_never_opens() {
    gets_its_turn((Point::Open, Act::Swallow));
}

#[track_caller]
fn gets_its_turn((point, act): (Point, Act)) {
    let fake = Fake::start();
    match point {
        // The next stream is for the keepalives, and opens.
        Point::Open => fake.script.once(point, act),
        _ => fake.script.always(point, act),
    }
    let (mut waiter, predecessor) = waiter(&fake.endpoint(), &fake);
    // The own key and the predecessor are watched on one stream.
    eventually(LIMIT, "the watch has gone wrong", || {
        fake.script.seen(point) > 0
    });
    fake.delete(&predecessor);
    ends_well(&mut waiter, &fake).expect_silent();
}

/// A holder's watch may fail in any way: the renewals continue, and broken watches are not reopened in a storm.
#[test]
fn a_holder_outlives_all_that_can_happen_to_its_watch() {
    at_once(WRONG, |(point, act)| {
        let fake = Fake::start();
        fake.script.always(point, act);
        let since = boot_clock();
        survives(holder(&fake.endpoint()), &fake, since);
        let opened = fake.script.seen(Point::Watch);
        assert!(opened < 40, "{opened} watches");
    });
}

/// "A DELETE of our key, a linearizable read without it ... is loss": with a silent watch the next renewal sees it.
#[test]
fn a_deleted_key_is_seen_without_a_watch() {
    at_once(WRONG, |(point, act)| {
        let fake = Fake::start();
        fake.script.always(point, act);
        let holder = settled_holder(&fake.endpoint(), &fake);
        fake.delete(&fake.keys_of(1)[0]);
        is_lost(holder, &fake);
    });
}

/// An event of a kind that this client does not know is skipped, and the watch continues.
#[test]
fn an_unknown_event_is_skipped() {
    at_once([true, false], |holds| {
        let strange = (Point::Watch, Act::Strange);
        if holds {
            let fake = Fake::start();
            fake.script.once(strange.0, strange.1);
            let since = boot_clock();
            survives(settled_holder(&fake.endpoint(), &fake), &fake, since);
        } else {
            gets_its_turn(strange);
        }
    });
}

/// "One linearizable read of own key and the earlier keys decides", and only one of our own cluster: an answer with a
/// wrong header, to any request of a waiter, neither gives it the lock too early nor loses its entry.
#[test]
fn a_waiter_outlives_odd_answers() {
    let odd = [
        (Point::Look, Lie::Cluster),
        (Point::Look, Lie::Revision),
        (Point::Look, Lie::Term),
        (Point::Look, Lie::Member),
        (Point::Watch, Lie::Cluster),
        (Point::Watch, Lie::Revision),
        (Point::Read, Lie::Cluster),
        (Point::Read, Lie::Revision),
        (Point::KeepAlive, Lie::Ttl(0)),
        (Point::KeepAlive, Lie::Cluster),
        (Point::KeepAlive, Lie::Term),
    ];
    at_once(odd, |(point, lie)| {
        let fake = Fake::start();
        if point == Point::Look {
            // The first one belongs to the entry; the second decides.
            fake.script.once(point, Act::Honest);
        }
        fake.script.once(point, Act::Lie(lie));
        let (mut waiter, predecessor) = waiter(&fake.endpoint(), &fake);
        eventually(LIMIT, "the waiter watches", || {
            fake.script.seen(Point::Watch) > 1
        });
        if point != Point::Look {
            eventually(LIMIT, "the lie is told", || fake.script.is_done(point));
        }
        assert_eq!(waiter.stdout(), "");
        let place = fake.keys().pop();
        fake.delete(&predecessor);
        waiter.says("on\n");
        assert!(fake.script.is_done(point), "the lie was told");
        assert_eq!(fake.keys().pop(), place);
        ends_well(&mut waiter, &fake);
    });
}

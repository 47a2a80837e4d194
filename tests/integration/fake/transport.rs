//! Connections and streams that break, and ports where a server other than etcd answers.
//! It must not know how the fake does it.

use super::script::{Act, Point};
use super::server::Fake;
use super::wire::{Relay, Wire};
use super::{COMMAND, at_once, dlock, ends_well, fails, is_lost, settled_holder, survives, waiter};
use crate::support::{Dlock, LIMIT, boot_clock, eventually};

/// "125: dlock itself failed: ... etcd unreachable" and "every await under a timeout": with any server instead of etcd,
/// however slow, dlock gives up within its connect timeout and names the endpoint.
#[test]
fn a_server_that_is_not_etcd_is_an_error() {
    let wires = [
        Wire::Garbage,
        Wire::WebServer,
        Wire::TooManyPings,
        Wire::Half,
        Wire::Pass,
        Wire::Drip,
    ];
    at_once(wires, |wire| {
        let fake = Fake::start();
        let relay = match wire {
            // There must be bytes to come.
            Wire::Drip => Relay::to(fake.address()),
            _ => Relay::nowhere(),
        };
        relay.all(wire);
        let run = Dlock::at(&relay.endpoint())
            .run(["--connect-timeout=1", "--ttl=5"])
            .args(COMMAND)
            .start();
        fails(run, &fake, &[&relay.endpoint()]);
    });
}

/// "One client per endpoint, our own failover and hedging": with one good member among bad ones the lock is taken.
#[test]
fn a_good_member_beside_a_bad_one_is_enough() {
    at_once(
        [
            Wire::Garbage,
            Wire::WebServer,
            Wire::Half,
            Wire::Pass,
            Wire::Drip,
        ],
        |wire| {
            let fake = Fake::start();
            let (bad, sibling) = match wire {
                Wire::Drip => (Relay::to(fake.address()), fake.sibling()),
                _ => (Relay::nowhere(), fake.sibling()),
            };
            bad.all(wire);
            let endpoints = [bad.endpoint(), sibling.endpoint()].join(",");
            ends_well(&mut dlock(&endpoints).start(), &fake).expect_silent();
        },
    );
}

/// An error below gRPC is no refusal: the same endpoint is tried again within the connect timeout.
#[test]
fn a_first_connection_that_breaks_is_made_again() {
    at_once(
        [
            Wire::Garbage,
            Wire::WebServer,
            Wire::Half,
            Wire::TooManyPings,
        ],
        |wire| {
            let fake = Fake::start();
            let relay = Relay::to(fake.address());
            relay.newcomers(wire);
            let mut holder = dlock(&relay.endpoint()).start();
            eventually(LIMIT, "a connection", || relay.connections() > 0);
            relay.newcomers(Wire::Pass);
            ends_well(&mut holder, &fake).expect_silent();
        },
    );
}

/// A fault of one connection costs the connection and not the command: garbage, one byte a second, a half closed, GOAWAY
/// for pings, GOAWAY for a server that shuts down, a close in the middle of all streams.
#[test]
fn a_connection_that_breaks_is_survived() {
    #[derive(Debug)]
    enum Break {
        Wire(Wire),
        GoAway,
        Close,
    }
    let breaks = [
        Break::Wire(Wire::Garbage),
        Break::Wire(Wire::Drip),
        Break::Wire(Wire::Half),
        Break::Wire(Wire::TooManyPings),
        Break::GoAway,
        Break::Close,
    ];
    at_once(breaks, |how| {
        let fake = Fake::start();
        let relay = Relay::to(fake.address());
        let holder = settled_holder(&relay.endpoint(), &fake);
        let since = boot_clock();
        match how {
            Break::Wire(wire) => relay.present(wire),
            Break::GoAway => fake.go_away(),
            Break::Close => fake.close_connections(),
        }
        survives(holder, &fake, since);
    });
}

/// A connection that is closed instead of an answer is reopened, for either half of a proof.
#[test]
fn a_connection_closed_instead_of_an_answer_is_survived() {
    at_once([Point::KeepAlive, Point::Read], |point| {
        let fake = Fake::start();
        let holder = settled_holder(&fake.endpoint(), &fake);
        let since = boot_clock();
        fake.script.once(point, Act::Cut);
        eventually(LIMIT, "the connection is cut", || {
            fake.script.is_done(point)
        });
        survives(holder, &fake, since);
    });
}

/// A keepalive stream whose other half the server closes is reopened; if none stays open, the lock is lost in time.
#[test]
fn half_closed_keepalive_streams_are_opened_again() {
    at_once([Some(0), Some(1), None], |before| {
        let fake = Fake::start();
        let holder = settled_holder(&fake.endpoint(), &fake);
        let since = boot_clock();
        let Some(before) = before else {
            fake.script.always(Point::KeepAlive, Act::Close);
            is_lost(holder, &fake);
            return;
        };
        for _ in 0..before {
            fake.script.once(Point::KeepAlive, Act::Honest);
        }
        fake.script.once(Point::KeepAlive, Act::Close);
        eventually(LIMIT, "the stream is closed", || {
            fake.script.is_done(Point::KeepAlive)
        });
        survives(holder, &fake, since);
    });
}

/// If every connection is bad from some time on, the lock is lost in time, without a storm of connections.
#[test]
fn connections_that_stay_bad_end_the_command_in_time() {
    at_once([Wire::Garbage, Wire::Half, Wire::Drip], |wire| {
        let fake = Fake::start();
        let relay = Relay::to(fake.address());
        let holder = settled_holder(&relay.endpoint(), &fake);
        relay.all(wire);
        is_lost(holder, &fake);
        let made = relay.connections();
        assert!(made < 40, "{made} connections");
    });
}

/// "Attempt timeout ..., then the next endpoint at once": the other member saves the command.
#[test]
fn another_member_takes_over() {
    at_once([Wire::Garbage, Wire::Half, Wire::Drip], |wire| {
        let fake = Fake::start();
        let (relay, sibling) = (Relay::to(fake.address()), fake.sibling());
        let endpoints = [relay.endpoint(), sibling.endpoint()].join(",");
        let holder = settled_holder(&endpoints, &fake);
        let since = boot_clock();
        relay.all(wire);
        survives(holder, &fake, since);
        assert!(sibling.script.seen(Point::KeepAlive) > 0);
    });
}

/// A waiter keeps its entry over broken connections and acquires the lock.
#[test]
fn a_waiter_keeps_its_entry_over_broken_connections() {
    at_once(
        [Wire::Garbage, Wire::Half, Wire::TooManyPings, Wire::Drip],
        |wire| {
            let fake = Fake::start();
            let relay = Relay::to(fake.address());
            let (mut waiter, predecessor) = waiter(&relay.endpoint(), &fake);
            let place = fake.keys().pop();
            eventually(LIMIT, "the waiter watches", || {
                fake.script.seen(Point::Watch) > 1
            });
            relay.present(wire);
            fake.delete(&predecessor);
            waiter.says("on\n");
            assert_eq!(fake.keys().pop(), place);
            ends_well(&mut waiter, &fake).expect_silent();
        },
    );
}

/// "One linearizable read of own key and the earlier keys decides": if its connection breaks, it is repeated.
#[test]
fn a_decisive_read_whose_connection_breaks_is_made_again() {
    at_once([Wire::Garbage, Wire::Half], |wire| {
        let fake = Fake::start();
        let relay = Relay::to(fake.address());
        let (mut waiter, predecessor) = waiter(&relay.endpoint(), &fake);
        eventually(LIMIT, "the waiter watches", || {
            fake.script.seen(Point::Watch) > 1
        });
        let looks = fake.script.seen(Point::Look);
        fake.script.always(Point::Look, Act::Swallow);
        fake.delete(&predecessor);
        eventually(LIMIT, "the read is asked for", || {
            fake.script.seen(Point::Look) > looks
        });
        fake.script.resume();
        relay.present(wire);
        ends_well(&mut waiter, &fake).expect_silent();
    });
}

/// "Every await under a timeout", and none so long that our own lease ends meanwhile: one request that is never answered does not cost it the place.
#[test]
fn a_decisive_read_that_is_never_answered_costs_no_entry() {
    let fake = Fake::start();
    let (mut waiter, predecessor) = waiter(&fake.endpoint(), &fake);
    let place = fake.keys().pop();
    eventually(LIMIT, "the waiter watches", || {
        fake.script.seen(Point::Watch) > 1
    });
    fake.script.once(Point::Look, Act::Swallow);
    fake.delete(&predecessor);
    waiter.says("on\n");
    assert_eq!(fake.keys().pop(), place);
    ends_well(&mut waiter, &fake).expect_silent();
}

/// A release is tried for as long as the lock is certainly ours, also over another connection.
#[test]
fn a_release_whose_connection_breaks_is_made_again() {
    at_once([Wire::Garbage, Wire::Half], |wire| {
        let fake = Fake::start();
        let relay = Relay::to(fake.address());
        let mut holder = settled_holder(&relay.endpoint(), &fake);
        fake.script.always(Point::Release, Act::Swallow);
        holder.type_in("\n");
        eventually(LIMIT, "the release is asked for", || {
            fake.script.seen(Point::Release) > 0
        });
        fake.script.resume();
        relay.present(wire);
        holder.wait().expect_code(7).expect_silent();
        assert_eq!(fake.keys(), [""; 0], "the lock is free at that moment");
    });
}

//! Model checking of the two arguments that dlock depends on: what proves that the lock is ours, and how long a waiter
//! waits after an unclean end. It must not know processes or the network.
//!
//! # The proof rule
//!
//! A keepalive that etcd answers proves nothing: a deposed leader that does not know of the election still answers for
//! leases that its successor has dropped. `Ownership::verify` counts a renewal only if, on one connection, member m in
//! term t answered the keepalive and **then** m in term t answered a linearizable read of our key. Why that is enough:
//!
//! 1. m had applied an entry of term t before it received the keepalive, so it knew the leader of t, L(t).
//! 2. The read succeeded, so some leader L(r) found a quorum after the read was sent. r < t is impossible: m ignores
//!    lower terms. r > t is impossible: L(r) serves reads only after an entry of its own term, m would have applied that,
//!    and the read's header would say r. So r = t, L(t) was the leader even **after** the keepalive, and L(t) handled it.
//! 3. So the true leader renewed the lease after the keepalive was sent, and the lease lives for its whole TTL from then
//!    on; a later leader does not shorten it. The key still existed.
//!
//! In the model a member serves as its last applied term allows: in the true leader's term it renews the true lease and
//! serves reads; in an older term it answers every keepalive without the true leader's knowledge, and no read.
//! `Rule::AnyTerm` shows that step 2 is needed: between the two answers the member may learn of the election.
//!
//! # The lock delay
//!
//! Against an operator no proof helps: the key is gone although the holder's lease was good. If a waiter waits long
//! enough for the holder's tree to die, only time is lost. How long is enough depends on the assumptions about the
//! holder, and the experiments below distinguish them.
//!
//! dlock makes sure that a holder learns of its loss within a second while etcd answers: by its watch, or, while the
//! watch is broken, by renewals that are frequent enough. With the usual ones trees overlap.
//!
//! A waiter reads the queue only when the entry that it waits for is gone, as late as it may, and knows that entry and
//! its release record: that it had the lock alone, or which entries it waited for itself. A waiter that leaves without
//! such a record hides an unclean end before it from the next one, which finds both gone in one read.
//!
//! A waiter knows the grace of those before it from the announcement of the one right before it. That one announces the
//! longest grace of all before itself, see [`Predecessors::grace`](dlock::core::lock_delay::Predecessors::grace): it may
//! be killed, and a whole queue may be deleted at once, and then no other process knows of the holder.
//!
//! A release record counts only when the key of its writer is gone.
//!
//! # The turn of a waiter that cannot prove its lease
//!
//! A keepalive renews a lease also when it proves nothing, as behind a proxy. So a waiter whose turn has come gives its
//! entry up by the rule of [`Turn`](dlock::core::turn::Turn), else it blocks the queue for ever.
//!
//! # The times of `--once-per` and `--min-hold`
//!
//! [`periods`] has a model of its own: the leases that outlive a command, with requests that are late, lost or answered late, and a
//! client that leaves or is killed at any moment. It takes from the code when a lease is too old for a start
//! ([`Grant::is_young`](dlock::core::preparation::Grant::is_young)), and when a mark counts
//! ([`Mark::is_still_young`](dlock::core::preparation::Mark::is_still_young)).
//!
//! - Between two starts, the whole period passes but for the second that a lease may be old at a start. A mark that was
//!   only requested, or a lease of any age, is not enough.
//! - A mark whose owner took it back without a run prevents no run of the next in the queue. That needs its revocation before the
//!   deletion of the entry.
//! - A release whose answer was lost is repeated with the lease of the entry as its condition: by name alone it would delete
//!   the entry that cools down.
//!
//! # Bounds
//!
//! | | |
//! |---|---|
//! | lease | 5 s, the least that dlock takes, so stop 3 s, kill 4 s and start 1 s after a proof; one tick is 1 s |
//! | clocks | each host's rate constant, 10 % slow or 10 % fast against the leader's |
//! | guard | as late as the promise allows: 0.5 s, and that always |
//! | network | every message may be lost, repeated, overtaken, and late by 1 s |
//! | periods | 3 s; two clients; of one of them two requests are given up, or its wait ends, or it is killed (520,000 and 140,000 states) |
//! | clients | two (three where it says so), each takes the lock once |
//! | etcd | two members that lead in turn and one election; or no election and one revocation |
//! | dlock | stopped once, for any time (not among newcomers, not among three); one waiter killed, or a whole queue deleted, where it says so |
//! | states | 2,500 to 82,000 up to a counterexample, 6,000 to 290,000 where there is none, and up to 1,340,000 for three clients: all of them |
//!
//! Time itself has no bound: states hold ages, so a run may be endless. Left out: the renewals of a waiter before its
//! turn (without a lease it starts nothing); keepalives that overlap another of the same client (dlock closes a stream that it gives up).
//! Only the guards act between whole seconds, so a delay must be calculated by hand as well, see [`enough`].

mod cluster;
mod host;
mod periods;
mod steps;
mod world;

use std::time::Duration;

use dlock::core::heartbeat::NOTICE;
use dlock::core::lock_delay::lock_delay;
use dlock::core::time::LeaseTimings;
use stateright::{Checker as _, HasDiscoveries, Model as _};

use steps::{
    Announce, EXCLUSION, EXPIRY, Experiment, LEFT, Mishap, Notice, PATIENCE, PROGRESS, Rule,
    Unproven, Word,
};
use world::Rate;

const SLOW: Rate = Rate(900);
const FAST: Rate = Rate(1100);
const TTL: Duration = Duration::from_secs(5);

/// A complete network and one election; no operator.
fn experiment() -> Experiment {
    Experiment {
        rule: Rule::Proof,
        timings: LeaseTimings::new(TTL, LeaseTimings::default_grace(TTL)),
        delay: Some(Duration::ZERO),
        graces: &[],
        announce: Announce::Own,
        believes: false,
        notice: Notice::Unsure,
        word: Word::Names,
        rates: &[SLOW, FAST],
        clients: 2,
        queued: true,
        elections: 1,
        revocations: 0,
        pauses: 0,
        leaving: false,
        mishap: Mishap::None,
        unproven: Unproven::None,
        travel: Duration::from_millis(1100),
    }
}

/// The same with an operator that revokes a holder's lease, and no election.
fn revoked(delay: Duration, notice: Notice) -> Experiment {
    Experiment {
        delay: Some(delay),
        notice,
        elections: 0,
        revocations: 1,
        pauses: 1,
        ..experiment()
    }
}

/// The delay that lets a holder stop gracefully if it learns of its loss within `notice`: the guard is 0.5 s late, the
/// holder's clock is 10 % slow and the waiter's 10 % fast. So the margin grows with the grace, by 2/9 of it.
fn enough(grace: Duration, notice: Duration) -> Duration {
    (notice + grace * 10 / 9 + Duration::from_millis(500)) * 11 / 10
}

/// The delay for the holder of a 5 s lease that learns of its loss within one tick.
fn enough_with_notice() -> Duration {
    enough(LeaseTimings::default_grace(TTL), world::TICK)
}

/// The delay for a holder that does not learn of its loss: its last proof expires within one TTL of the leader's clock,
/// which the waiter's clock may count 10 % fast.
fn enough_without_notice() -> Duration {
    TTL * 11 / 10
}

#[expect(clippy::print_stdout, reason = "for cargo test -- --nocapture")]
fn show(title: &str, text: &str) {
    println!("{title}: {text}");
}

/// Each search has one thread, so that it finds a shortest path and counts the same states every time; the tests run
/// beside each other.
///
/// In every reachable state at most one tree is alive; at least `states` of them were checked.
#[track_caller]
fn excludes(title: &str, experiment: Experiment, states: usize) {
    let checker = experiment.checker().spawn_bfs().join();
    let found = checker.discoveries();
    let unique = checker.unique_state_count();
    show(
        title,
        &format!(
            "no overlap in {unique} states, depth {}",
            checker.max_depth()
        ),
    );
    assert!(checker.is_done());
    for broken in [EXCLUSION, PATIENCE] {
        if let Some(path) = found.get(broken) {
            panic!("{title}: {broken}: {:#?}", path.clone().into_actions());
        }
    }
    assert!(
        found.contains_key(PROGRESS),
        "{title}: the second client never runs"
    );
    assert!(
        found.contains_key(EXPIRY),
        "{title}: an expired lease hands nothing over"
    );
    assert!(unique >= states, "{title}: only {unique} states");
}

/// Asserts that a path to two living trees exists.
#[track_caller]
fn overlaps(title: &str, experiment: Experiment, states: usize) {
    let checker = experiment
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let unique = checker.unique_state_count();
    let path = checker.discovery(EXCLUSION);
    let path = path.unwrap_or_else(|| panic!("{title}: no overlap in {unique} states"));
    let last = path.last_state().clone();
    assert_eq!(last.alive().count(), 2, "{title}: {last:?}");
    let steps = path.into_actions();
    show(
        title,
        &format!(
            "overlap among {unique} states after {} steps: {steps:#?}",
            steps.len()
        ),
    );
    assert!(unique >= states, "{title}: only {unique} states");
}

#[test]
fn a_bare_keepalive_lets_two_trees_live() {
    let bare = Experiment {
        rule: Rule::BareKeepalive,
        ..experiment()
    };
    overlaps("a bare keepalive", bare, 1_000);
}

#[test]
fn a_read_after_the_keepalive_is_not_enough_if_the_terms_may_differ() {
    let any = Experiment {
        rule: Rule::AnyTerm,
        ..experiment()
    };
    overlaps("any term", any, 1_000);
}

#[test]
fn the_proof_rule_keeps_one_tree() {
    let paused = Experiment {
        pauses: 1,
        ..experiment()
    };
    excludes("the proof rule", paused, 200_000);
}

#[test]
fn the_proof_rule_keeps_one_tree_among_newcomers() {
    let newcomers = Experiment {
        queued: false,
        elections: 0,
        rates: &[SLOW],
        ..experiment()
    };
    excludes("the proof rule among newcomers", newcomers, 25_000);
}

#[test]
fn the_proof_rule_needs_the_clocks_of_the_promise() {
    let slower = Experiment {
        rates: &[Rate(880)],
        ..experiment()
    };
    overlaps("a clock 12 % slow", slower, 1_000);
}

#[test]
fn without_a_delay_a_revocation_lets_two_trees_live() {
    overlaps("no delay", revoked(Duration::ZERO, Notice::Prompt), 100);
}

#[test]
fn a_delay_of_grace_and_margin_covers_a_holder_that_learns_of_its_loss() {
    excludes(
        "grace and margin",
        revoked(enough_with_notice(), Notice::Prompt),
        25_000,
    );
}

/// A broken watch need not be noticed: renewals replace it.
#[test]
fn a_holder_whose_watch_may_break_learns_of_its_loss_by_renewals() {
    let renewed = revoked(enough_with_notice(), Notice::Renewed);
    excludes("a broken watch", renewed, 25_000);
}

/// A longer lease, because the usual renewals of the shortest one are a tick apart anyway.
fn broken(notice: Notice) -> Experiment {
    let ttl = TTL * 3;
    let timings = LeaseTimings::new(ttl, Duration::from_secs(1));
    Experiment {
        timings,
        pauses: 0,
        rates: &[Rate::EXACT],
        ..revoked(enough(timings.grace(), world::TICK), notice)
    }
}

#[test]
fn the_usual_renewals_do_not_replace_a_broken_watch() {
    overlaps("usual renewals", broken(Notice::Unhurried), 100);
    excludes("hurried renewals", broken(Notice::Renewed), 1_000);
}

/// The margin is that of the model, for the notice that a heartbeat guarantees.
#[test]
fn the_delay_that_waiters_wait_is_enough() {
    assert_eq!(NOTICE, world::TICK);
    for grace in (0..36_000).map(|tenths| Duration::from_millis(tenths * 100)) {
        let (delay, enough) = (lock_delay(grace), enough(grace, NOTICE));
        assert!(enough <= delay, "{grace:?}: {delay:?} and not {enough:?}");
    }
}

#[test]
fn a_margin_that_forgets_the_clocks_is_too_short() {
    let delay = LeaseTimings::default_grace(TTL) + world::TICK;
    overlaps("grace and 1 s", revoked(delay, Notice::Prompt), 100);
}

#[test]
fn grace_and_margin_do_not_cover_a_holder_that_learns_nothing() {
    overlaps(
        "grace and margin, no notice",
        revoked(enough_with_notice(), Notice::Unsure),
        100,
    );
}

#[test]
fn a_delay_of_a_whole_lease_covers_a_holder_that_learns_nothing() {
    let delayed = revoked(enough_without_notice(), Notice::Unsure);
    excludes("a whole lease", delayed, 25_000);
}

/// A newcomer to an empty queue has seen no entry vanish. That is a limit of the promise.
#[test]
fn no_delay_covers_a_newcomer_to_an_empty_queue() {
    let newcomer = Experiment {
        queued: false,
        ..revoked(enough_without_notice(), Notice::Unsure)
    };
    overlaps("a newcomer", newcomer, 100);
}

/// Three clients: the second may leave at any time, and the third reads the queue when it sees that.
fn leaving(word: Word) -> Experiment {
    Experiment {
        clients: 3,
        leaving: true,
        word,
        pauses: 0,
        rates: &[SLOW],
        ..revoked(enough_with_notice(), Notice::Prompt)
    }
}

#[test]
fn a_waiter_that_leaves_no_record_hides_the_unclean_end_before_it() {
    overlaps("without a word", leaving(Word::None), 100);
}

#[test]
fn a_waiter_that_names_the_entries_it_waited_for_hides_nothing() {
    let leaving = Experiment {
        rates: &[SLOW, FAST],
        ..leaving(Word::Names)
    };
    excludes("with a word", leaving, 500_000);
}

/// The longest grace with a lease of 5 s.
const PATIENT: &[Duration] = &[Duration::from_secs(2), Duration::ZERO, Duration::ZERO];

/// Three clients, of which the first has a grace and the others none.
fn patient(announce: Announce) -> Experiment {
    Experiment {
        clients: 3,
        pauses: 0,
        delay: None,
        graces: PATIENT,
        rates: &[SLOW],
        announce,
        ..revoked(Duration::ZERO, Notice::Prompt)
    }
}

/// One of the waiters is killed, and its key stays for a while.
fn killed(announce: Announce) -> Experiment {
    Experiment {
        mishap: Mishap::Kill,
        ..patient(announce)
    }
}

/// The whole queue is deleted at once.
fn deleted(announce: Announce) -> Experiment {
    Experiment {
        mishap: Mishap::DeleteAll,
        ..patient(announce)
    }
}

#[test]
fn a_killed_waiter_that_announced_its_own_grace_hides_that_of_the_one_before_it() {
    overlaps("killed, own grace", killed(Announce::Own), 100);
}

#[test]
fn a_killed_waiter_that_announced_the_longest_grace_hides_nothing() {
    excludes("killed, longest grace", killed(Announce::Longest), 50_000);
}

#[test]
fn a_deleted_queue_of_waiters_that_announced_their_own_graces_forgets_the_holder() {
    overlaps("deleted, own grace", deleted(Announce::Own), 100);
}

#[test]
fn a_deleted_queue_of_waiters_that_announced_the_longest_grace_waits_for_the_holder() {
    excludes(
        "deleted, longest grace",
        deleted(Announce::Longest),
        100_000,
    );
}

/// Another client with write permission under the prefix forges a release record of the holder.
fn forged(believes: bool) -> Experiment {
    Experiment {
        believes,
        mishap: Mishap::Forge,
        revocations: 0,
        pauses: 0,
        ..revoked(enough_with_notice(), Notice::Prompt)
    }
}

#[test]
fn a_release_that_counts_without_a_read_of_the_key_lets_two_trees_live() {
    overlaps("believed", forged(true), 10);
}

#[test]
fn a_waiter_starts_only_when_the_key_of_the_one_before_it_is_gone() {
    excludes("looked at", forged(false), 5_000);
}

/// The second client's renewals pass a proxy.
fn proxied(unproven: Unproven) -> Experiment {
    Experiment {
        elections: 0,
        rates: &[Rate::EXACT],
        unproven,
        ..experiment()
    }
}

#[test]
fn a_waiter_that_cannot_prove_its_lease_and_stays_blocks_the_queue() {
    let stays = proxied(Unproven::Stays).checker();
    let checker = stays.finish_when(HasDiscoveries::AnyFailures).spawn_bfs();
    let path = checker.join().discovery(PATIENCE);
    let steps = path.expect("its lease is renewed").into_actions();
    show("a waiter stays", &format!("after {} steps", steps.len()));
}

#[test]
fn a_waiter_that_cannot_prove_its_lease_leaves_and_blocks_nobody_for_long() {
    let checker = proxied(Unproven::Leaves).checker().spawn_bfs().join();
    let unique = checker.unique_state_count();
    show("a waiter leaves", &format!("never, in {unique} states"));
    assert!(checker.is_done() && unique >= 1_000, "only {unique} states");
    let found = checker.discoveries();
    for broken in [EXCLUSION, PATIENCE] {
        if let Some(path) = found.get(broken) {
            panic!("{broken}: {:#?}", path.clone().into_actions());
        }
    }
    let leaves = checker.discovery(LEFT).expect("it gives its entry up");
    assert_eq!(leaves.last_state().alive().count(), 0);
}

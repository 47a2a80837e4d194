//! The checks of an ended run: they compare it with the history of the keys, the journal of the commands and the faults.
//! It must not know how any of these came about.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::cpu::Sampler;
use super::journal::{Begun, Journal};
use super::plan::{Form, Lock, ONCE_PER, Plan};
use super::stalls::Stalls;
use super::troubles::Troubles;
use super::witness::{History, Place};
use crate::support::Outcome;

/// Time that a busy machine may need for anything instant: a start after the lock was free, a release, a restart.
const MARGIN: Duration = Duration::from_secs(5);

/// The longest time between the time from which etcd counts and the start of the command; and between two clocks.
const COUNTED: Duration = Duration::from_secs(1);

/// Time after the end of a fault in which it may still be the reason for an event.
const AFTERMATH: Duration = Duration::from_secs(4);

/// A holder that vanished this long before the lock was free needs no delay any more.
const LONG_AGO: Duration = Duration::from_mins(1);

/// Maximum share of one processor of a waiting dlock, in percent, and the processor time of its start.
const PERCENT: u32 = 10;
const START: Duration = Duration::from_millis(400);

/// The status of a command that overlaps another: the oracle reports it.
const OVERLAP: i32 = 99;

/// A run that has ended.
pub(super) struct Ended {
    pub(super) number: usize,
    pub(super) host: usize,
    pub(super) plan: Plan,
    pub(super) outcome: Outcome,
    /// The status of the `dlock hold` of a script.
    pub(super) reported: Option<i64>,
    pub(super) struck: bool,
    /// Whether its dlock was killed or stopped.
    pub(super) dlock_struck: bool,
    pub(super) began_at: Duration,
    /// The end, noticed with a short delay.
    pub(super) over_at: Duration,
}

impl Ended {
    /// The exit code, as far as its dlock decides it.
    fn code(&self) -> Option<i32> {
        match self.plan.form {
            Form::Run => self.outcome.code(),
            Form::Hold { .. } | Form::Borrow => {
                let own = self.reported.and_then(|code| i32::try_from(code).ok());
                own.or_else(|| self.outcome.code())
            }
        }
    }

    fn says(&self, words: &str) -> bool {
        self.outcome.stderr.contains(words)
    }
}

/// All known facts.
pub(super) struct Evidence<'a> {
    pub(super) history: &'a History,
    pub(super) journal: &'a Journal,
    pub(super) troubles: &'a Troubles,
    pub(super) stalls: &'a Stalls,
    pub(super) cpu: &'a Sampler,
    /// The commands that outlived their keys, by their leases, with the time.
    pub(super) late: &'a HashMap<String, Duration>,
    /// The leases whose keys a third party deleted.
    pub(super) taken: &'a BTreeSet<String>,
    /// Whether other tests run at the same time: a delay by a busy machine is no fault then, nor is a lease that is lost
    /// for lack of a proof. A soak has the machine for itself.
    pub(super) shares_machine: bool,
}

impl Evidence<'_> {
    /// Whether a lasting fault affected this host between these times, or the machine was too busy.
    fn lasted(&self, host: usize, from: Duration, to: Duration) -> bool {
        self.troubles.lasted(host, from, to) || self.stalls.of_any(from, to)
    }

    /// Whether a delay, or a loss for lack of a proof, between these times is no fault.
    fn may_be_late(&self, host: usize, from: Duration, to: Duration) -> bool {
        self.shares_machine || self.lasted(host, from, to)
    }

    /// The faults of a run.
    pub(super) fn verdicts(&self, run: &Ended) -> Vec<String> {
        let begun = self.journal.of(run.number);
        let place = begun.and_then(|begun| self.history.entry(begun.token));
        let mut faults = Vec::new();
        if run.says("panicked") {
            faults.push("it panicked".to_owned());
        }
        match begun {
            None => faults.extend(self.without_start(run)),
            Some(begun) => match place {
                None => faults.push("etcd has never had the key of its command".to_owned()),
                Some(place) => {
                    faults.extend(self.status(run, begun, place));
                    faults.extend(self.late_end(run, place));
                    faults.extend(self.late_start(run, begun, place));
                    faults.extend(self.min_hold(run, begun, place));
                }
            },
        }
        faults.extend(self.remains(run));
        faults.extend(self.processor(run, begun));
        faults
    }

    /// The fault of a run whose command has not begun.
    fn without_start(&self, run: &Ended) -> Option<String> {
        let quiet = || {
            let from = run.began_at.saturating_sub(AFTERMATH);
            !self.shares_machine
                && !self.troubles.touched(run.host, from, run.over_at)
                && !self.stalls.of_any(from, run.over_at)
        };
        match run.code() {
            Some(75) if run.plan.may_be_busy => None,
            _ if run.outcome.code() == Some(OVERLAP) => None,
            // Slots and readers do not end by themselves either; a killed dlock may not have begun.
            _ if run.struck => None,
            Some(121 | 125) if !quiet() => None,
            // A script whose lock was lost before it noted anything.
            _ if run.plan.form != Form::Run && !quiet() => None,
            // The key may have been deleted, or given up on request, between the proof and the first line of the command.
            Some(121) if self.lost_or_asked(run) => None,
            code => Some(format!("no command began, and the status is {code:?}")),
        }
    }

    fn lost_or_asked(&self, run: &Ended) -> bool {
        let mut own = self.history.places().iter();
        own.any(|it| {
            it.run == Some(run.number)
                && (it.asked || self.taken.contains(&it.lease) || it.vanished_at().is_some())
        })
    }

    /// The fault of the status of a run whose command has begun.
    fn status(&self, run: &Ended, begun: &Begun, place: &Place) -> Option<String> {
        let lasted = |from: Duration| {
            let from = from.saturating_sub(AFTERMATH);
            self.may_be_late(run.host, from, run.over_at)
        };
        let unconfirmed = run.says("cannot confirm the release");
        let vanished_at = place.vanished_at();
        let code = run.code();
        let is_own = code == Some(run.plan.code) || (run.plan.form != Form::Run && code == Some(0));
        if is_own {
            let Some(ended_at) = begun.ended_at else {
                let told = "the command was ended, and the status is that of success".to_owned();
                return (!run.struck).then_some(told);
            };
            // A silent etcd excuses the difference.
            let excused = unconfirmed && lasted(ended_at);
            return match vanished_at {
                _ if excused => None,
                Some(gone_at) if gone_at < ended_at => Some(format!(
                    "false success: its key vanished {:?} before its command ended",
                    ended_at.saturating_sub(gone_at)
                )),
                // Without space there is no release record.
                Some(_) if lasted(ended_at) => None,
                Some(_) => Some("false success: its key vanished before its release".to_owned()),
                None if unconfirmed => Some(
                    "an unconfirmed release, though etcd was within reach all the time".to_owned(),
                ),
                None => None,
            };
        }
        match code {
            Some(121) => {
                let lost =
                    vanished_at.is_some() || place.asked || self.taken.contains(&place.lease);
                let excused = lost || run.struck || lasted(begun.at);
                (!excused).then(|| "false loss: its key was there until its own release".to_owned())
            }
            // Its own death, that of its command, or a shell's status for a child.
            Some(125 | 137 | 143) | None if run.struck => None,
            // A process that is killed needs a processor to die.
            Some(122) if self.shares_machine || self.stalls.of_us(begun.at, run.over_at) => None,
            // The end of a script whose lock is lost.
            _ if run.plan.form != Form::Run && run.reported.is_none() && run.struck => None,
            code => Some(format!(
                "status {code:?}, signal {:?} of a run that began",
                run.outcome.signal()
            )),
        }
    }

    /// The fault of the time from the end of the key to that of the command.
    fn late_end(&self, run: &Ended, place: &Place) -> Option<String> {
        let (late, gone) = (*self.late.get(&place.lease)?, place.gone?);
        let from = gone.at.saturating_sub(AFTERMATH);
        // At most the lock delay of the next holder; or no time at all, if etcd ended the lease.
        let most = if self.taken.contains(&place.lease) {
            delay(place.grace)
        } else {
            Duration::ZERO
        };
        let excused = self.lasted(run.host, from, gone.at);
        (late > most && !excused)
            .then(|| format!("its command lived on for {late:?} after its key was gone"))
    }

    /// The fault of the time from a free lock to the start.
    fn late_start(&self, run: &Ended, begun: &Begun, place: &Place) -> Option<String> {
        if !matches!(run.plan.lock, Lock::Main | Lock::OncePer) || run.struck {
            return None;
        }
        let earlier = self.history.places().iter();
        let earlier = earlier.filter(|it| it.lock == place.lock && it.token < place.token);
        let (mut free_at, mut wait) = (place.made_at, Duration::ZERO);
        for it in earlier {
            let Some(gone) = it.gone else { continue };
            free_at = free_at.max(gone.at);
            // If several vanished one after the other, the delay of the last may have passed before.
            if it.vanished_at().is_some() && gone.at + LONG_AGO > free_at {
                wait = wait.max(delay(it.grace));
            }
        }
        let late = begun.at.saturating_sub(free_at + wait);
        let from = free_at.saturating_sub(AFTERMATH);
        let excused = self.may_be_late(run.host, from, begun.at);
        (late > MARGIN && !excused).then(|| {
            format!(
                "it began {:?} after the lock was free, with a delay of {wait:?}",
                begun.at.saturating_sub(free_at)
            )
        })
    }

    /// Checks that the lock stays taken for its minimum time.
    fn min_hold(&self, run: &Ended, begun: &Begun, place: &Place) -> Option<String> {
        let min_hold = run.plan.min_hold?;
        let own = run.code() == Some(run.plan.code);
        if !own || place.asked || run.struck || self.taken.contains(&place.lease) {
            return None;
        }
        let held = place.gone?.at.saturating_sub(begun.at);
        let unconfirmed = run.says("cannot confirm the release");
        (held + COUNTED < min_hold && !unconfirmed)
            .then(|| format!("the lock was free after {held:?}, not {min_hold:?}"))
    }

    /// Checks that no process of a successful run starts or stays afterwards.
    fn remains(&self, run: &Ended) -> Option<String> {
        if run.dlock_struck || run.struck {
            return None;
        }
        let own = self.history.places().iter();
        let mut own = own.filter(|it| it.run == Some(run.number));
        own.find_map(|it| {
            if it.made_at > run.over_at + COUNTED {
                return Some(format!(
                    "a place of it, {}, was made {:?} after its end",
                    it.lease,
                    it.made_at.saturating_sub(run.over_at)
                ));
            }
            let gone_at = it.gone.map_or(Duration::MAX, |gone| gone.at);
            let stays = gone_at > run.over_at + COUNTED && !it.cooling;
            let ended_well = matches!(run.code(), Some(0 | 7 | 75));
            let from = run.over_at.saturating_sub(AFTERMATH);
            let excused = self.may_be_late(run.host, from, run.over_at);
            (stays && ended_well && !excused && !run.says("cannot confirm the release"))
                .then(|| format!("its place {} stays after its end", it.lease))
        })
    }

    /// Checks the processor time of the wait.
    fn processor(&self, run: &Ended, begun: Option<&Begun>) -> Option<String> {
        let until = begun.map_or(run.over_at, |begun| begun.at);
        let (from, span, used) = self.cpu.busiest(run.number, until)?;
        let most = span * PERCENT / 100 + START;
        (used > most && !self.shares_machine).then(|| {
            let after = from.saturating_sub(run.began_at);
            format!("it used {used:?} of a processor within {span:?} of waiting, {after:?} after its start")
        })
    }
}

/// The lock delay after a vanished holder that announced this grace.
fn delay(grace: Duration) -> Duration {
    grace + grace / 4 + Duration::from_secs(2)
}

/// Two starts that are too close, among those of the lock with `--once-per`.
pub(super) fn too_often(starts: &[(Duration, usize)]) -> Option<String> {
    let mut starts = starts.to_vec();
    starts.sort_unstable();
    let mut pairs = starts.windows(2).filter_map(|pair| {
        let [(one_at, one), (other_at, other)] = pair else {
            return None;
        };
        let between = other_at.saturating_sub(*one_at);
        (between + COUNTED < ONCE_PER).then(|| {
            format!("runs {one} and {other} began {between:?} after each other, under --once-per {ONCE_PER:?}")
        })
    });
    pairs.next()
}

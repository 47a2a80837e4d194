//! The names of all that dlock says, with the fields of each: the schema of `--log-format json`.
//! It must not know when anything is said, nor how it is written.

/// One kind of event, for people.
pub struct Event {
    pub name: &'static str,
    /// Keys of `fields`; one that has no value in a certain event is not there.
    pub fields: &'static [&'static str],
    pub meaning: &'static str,
}

macro_rules! events {
    ($($constant:ident = $name:literal [$($field:ident)*] $meaning:literal;)*) => {
        $(pub(crate) const $constant: &str = $name;)*

        /// The table that the man page prints, in the order of the names.
        pub const TABLE: &[Event] = &[$(Event {
            name: $name,
            fields: &[$(stringify!($field)),*],
            meaning: $meaning,
        }),*];
    };
}

events! {
    ACQUIRED = "acquired" [lock token waited_seconds]
        "the lock is held; the command starts when all locks of the run are";
    ADMITTED = "admitted" [lock token file]
        "dlock fence accepts a token";
    ALREADY_RAN = "already-ran" [lock]
        "a run has started within --once-per; the command does not run";
    BREAKING = "breaking" [lock token]
        "dlock break asks a holder or waiter to give up the lock";
    BROKEN = "broken" [lock token]
        "dlock break --now has deleted the entry of a command that may still run";
    BUG = "bug" []
        "a bug in dlock";
    BUSY = "busy" [lock]
        "the lock has another holder; the command does not run";
    COOLING = "cooling" [lock left_seconds]
        "the lock cools down after --min-hold; the command does not run";
    DEBUG = "debug" []
        "a detail that helps to find a fault, with -vv; its text and its moments may change with any version";
    FAILED = "failed" [exit_code hint]
        "dlock failed, and ends";
    FAILOVER = "failover" [from to]
        "dlock changes to another endpoint";
    FENCE_RESET = "fence-reset" [lock token file]
        "dlock fence --reset has changed the number";
    FENCE_WAITING = "fence-waiting" [file]
        "dlock fence waits for the command that runs under its file";
    KILLED = "killed" [lock result]
        "the command that dlock stopped has ended, with all of its processes";
    LEFTOVERS = "leftovers" [lock count policy]
        "the command has ended, and processes that it started still run";
    LIBRARY = "library" [target]
        "a message of a library that DLOCK_LOG names; its text may change with any version";
    LOCK_DELAY = "lock-delay" [lock delay_seconds]
        "the holder is gone without a release record; its command gets this time to end";
    LOST = "lost" [lock cause failure unproven_seconds]
        "the lock is lost; the command is stopped and killed, or has ended already; if etcd did not prove the lock in time, failure is the cause of the last failed renewal, and unproven_seconds the time since the last proof";
    MARK_LEFT = "mark-left" [lock within_seconds]
        "the mark of a run that did not start may remain; no run may start within this time";
    MAX_HOLD = "max-hold" [lock]
        "the time of --max-hold has passed; the command is stopped";
    NOT_COUNTED = "not-counted" [lock result]
        "a run with --retry-failed did not succeed, so it does not count for --once-per";
    ORPHAN_SLOT = "orphan-slot" [lock key hint]
        "a slot is taken although its entry in the queue is gone; it is free when its key is gone, too";
    OTHER_CLUSTER = "other-cluster" [cluster wanted]
        "an endpoint belongs to another cluster than the one in use, and is not used";
    PERMANENT_KEY = "permanent-key" [lock token hint]
        "a key without a lease, which never expires, holds the lock";
    PLACE_LOST = "place-lost" [lock]
        "the entry in the queue is lost; dlock queues again at the end";
    RELEASE_REQUESTED = "release-requested" [lock by]
        "dlock break or --supersede=holder asks for the lock; the command is stopped";
    RELEASE_UNCONFIRMED = "release-unconfirmed" [lock cause within_seconds]
        "etcd did not confirm the release; the lock becomes free within this time";
    RELEASED = "released" [lock token held_seconds result]
        "the lock was held to the end, and is free";
    RENEWAL_DOUBTFUL = "renewal-doubtful" [lock cause left_seconds]
        "a renewal was answered, but proves nothing; left_seconds is the time until the command is stopped";
    RENEWAL_FAILED = "renewal-failed" [lock endpoint cause left_seconds]
        "a renewal was refused or not answered; left_seconds is the time until the command is stopped";
    REPORT_FAILED = "report-failed" [file cause]
        "the file of --report or --metrics cannot be written";
    RESULT_UNCONFIRMED = "result-unconfirmed" [lock cause]
        "etcd did not confirm that a run with --retry-failed has succeeded; another one may start";
    SETTING = "setting" []
        "a setting works, but exposes a secret, or lets another user change what dlock trusts";
    STOPPING = "stopping" [lock processes]
        "dlock stops these processes, and kills them if they do not end";
    SUPERSEDED = "superseded" [lock by]
        "a newer request or dlock break ended this wait; the command does not run";
    SURVIVOR = "survivor" [pid program state uid]
        "a process of the command that cannot be killed";
    UNANSWERED = "unanswered" [lock cause left_seconds]
        "no endpoint has answered yet; left_seconds is the time for which dlock still tries";
    UNKILLABLE = "unkillable" [lock]
        "processes of the command are alive, so the lock is not released; the message says when it becomes free";
    WAIT_ERROR = "wait-error" [lock cause]
        "an error during the wait, which continues";
    WAITING = "waiting" [lock holder ahead waited_seconds left_seconds]
        "the lock has another holder; ahead is the number of clients ahead in the queue, left_seconds the rest of --wait";
    WATCH_FAILED = "watch-failed" [cause]
        "dlock ls --watch or dlock status --watch cannot read the locks, and tries again";
}

/// Whether this event may have this field.
pub(crate) fn has(name: &str, field: &str) -> bool {
    let known = TABLE.iter().find(|event| event.name == name);
    known.is_some_and(|event| event.fields.contains(&field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_plain() {
        assert!(TABLE.is_sorted_by(|one, other| one.name < other.name));
        let plain = |text: &str, extra| text.chars().all(|c| c.is_ascii_lowercase() || c == extra);
        for Event { name, fields, .. } in TABLE {
            assert!(plain(name, '-'), "{name}");
            assert!(fields.iter().all(|field| plain(field, '_')), "{name}");
        }
        assert!(has("lost", "cause") && !has("lost", "token") && !has("nonsense", "lock"));
    }
}

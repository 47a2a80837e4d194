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
        "the lock is ours, and the command is started";
    ADMITTED = "admitted" [lock token file]
        "dlock fence lets a token in";
    ALREADY_RAN = "already-ran" [lock]
        "a run has started within --once-per: the command does not run";
    BREAKING = "breaking" [lock token]
        "dlock break sends somebody away";
    BROKEN = "broken" [lock token]
        "dlock break --now has taken the lock away from a command that may still run";
    BUG = "bug" []
        "dlock itself is at fault";
    BUSY = "busy" [lock]
        "somebody else has the lock: the command does not run";
    COOLING = "cooling" [lock left_seconds]
        "the lock cools down after --min-hold: the command does not run";
    DEBUG = "debug" []
        "what helps to find a fault, with -vv; its text and its moments may change with any version";
    FAILED = "failed" [exit_code hint]
        "dlock could not do its work and ends";
    FAILOVER = "failover" [from to]
        "from now on another endpoint is asked";
    FENCE_RESET = "fence-reset" [lock token file]
        "dlock fence --reset has changed the number";
    FENCE_WAITING = "fence-waiting" [file]
        "dlock fence waits for the command that runs under its file";
    KILLED = "killed" [lock result]
        "the command that was to stop has ended, and all of its processes with it";
    LEFTOVERS = "leftovers" [lock count policy]
        "the command has ended, and processes that it started have not";
    LIBRARY = "library" [target]
        "a message of a library that DLOCK_LOG names; its text may change with any version";
    LOCK_DELAY = "lock-delay" [lock delay_seconds]
        "the holder is gone and has left no record of a release: its command is given this time to end";
    LOST = "lost" [lock cause failure unproven_seconds]
        "the lock is lost: the command is stopped and killed, or had ended by then; where etcd did not prove it in time, also why the last renewal failed, and the time since the last proof";
    MARK_LEFT = "mark-left" [lock within_seconds]
        "the mark of a run that did not start may still stand: no run may start within this time";
    MAX_HOLD = "max-hold" [lock]
        "the command has run for as long as --max-hold allows: it is stopped";
    ORPHAN_SLOT = "orphan-slot" [lock key hint]
        "a slot is taken, and its entry in the queue is gone: no slot is free before its key is gone, too";
    OTHER_CLUSTER = "other-cluster" [cluster wanted]
        "an endpoint belongs to another cluster than the one in use, and is not used";
    PERMANENT_KEY = "permanent-key" [lock token hint]
        "the lock is held by a key without a lease, which never expires";
    PLACE_LOST = "place-lost" [lock]
        "the place in the queue is lost, another one is taken at its end";
    RELEASE_REQUESTED = "release-requested" [lock by]
        "somebody asks for the lock, by dlock break or --supersede=holder: the command is stopped";
    RELEASE_UNCONFIRMED = "release-unconfirmed" [lock cause within_seconds]
        "etcd did not confirm the release: the lock frees itself within this time";
    RELEASED = "released" [lock token held_seconds result]
        "the lock was ours to the end and is free again";
    RENEWAL_DOUBTFUL = "renewal-doubtful" [lock cause left_seconds]
        "a renewal was answered and proves nothing; so much time is left until the command is stopped";
    RENEWAL_FAILED = "renewal-failed" [lock endpoint cause left_seconds]
        "a renewal was refused or not answered; so much time is left until the command is stopped";
    REPORT_FAILED = "report-failed" [file cause]
        "what --report or --metrics asks for cannot be written";
    SETTING = "setting" []
        "a setting works, but exposes a secret, or lets another user change what dlock trusts";
    STOPPING = "stopping" [lock processes]
        "the processes that are stopped, and killed if they do not end";
    SUPERSEDED = "superseded" [lock by]
        "somebody sent this waiter away: the command does not run";
    SURVIVOR = "survivor" [pid program state uid]
        "a process of the command that cannot be killed";
    UNANSWERED = "unanswered" [lock cause left_seconds]
        "no endpoint has answered yet; left_seconds is how long they are still tried";
    UNKILLABLE = "unkillable" [lock]
        "the lock is not released, since processes of the command live; the message says when it will be";
    WAIT_ERROR = "wait-error" [lock cause]
        "something is in the way of waiting, which goes on";
    WAITING = "waiting" [lock holder ahead waited_seconds left_seconds]
        "somebody else has the lock; ahead counts those before us, left_seconds is what is left of --wait";
    WATCH_FAILED = "watch-failed" [cause]
        "dlock ls --watch or dlock status --watch cannot see the locks, and tries again";
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

//! Our record as etcd has it, and the parts of it that change while we wait.
//! It must not know when the record is written.

use std::time::Duration;

use crate::core::holder::Holder;

/// Our record as it is in etcd.
pub(super) struct Shown {
    pub(super) record: Holder,
    /// The latest revision that we know of its changes.
    pub(super) changed: i64,
}

impl Shown {
    /// A record that is not in etcd yet.
    pub(super) fn new(record: Holder) -> Self {
        Self { record, changed: 0 }
    }
}

/// The parts of our record that change while we wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Announced {
    /// The time for which commands may run if we vanish.
    pub(super) grace: Duration,
    /// Our turn has come, and our command has not started.
    pub(super) pending: bool,
}

impl Announced {
    pub(super) fn of(record: &Holder) -> Self {
        Self {
            grace: record.grace(),
            pending: record.pending,
        }
    }

    pub(super) fn in_record(self, record: Holder) -> Holder {
        Holder {
            pending: self.pending,
            ..record.with_grace(self.grace)
        }
    }
}

//! Whether etcd's answers to a release prove that the lock was held for as long as the command ran.
//! It must not know how the answers are obtained.

/// One answer of etcd to a release, given after the last process of the command was dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseAnswer {
    /// Our transaction has compared our key and then deleted it, or transferred it to the cooldown.
    Deleted,
    /// Our key existed, as we created it.
    Present,
    /// Our key did not exist, or not as we created it. `record`: our release record existed. Only the transaction that
    /// deletes our key writes that record, and it lives as long as our lease.
    Absent { record: bool },
}

/// The conclusion from all answers to one release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseVerdict {
    /// The lock was ours until the command was dead, and is released.
    Released,
    /// Another client revoked our lease or deleted our key, maybe while the command ran.
    Lost,
    /// No answer showed that our key is gone.
    Open,
}

/// The answers to one release so far. Requests are repeated and may overlap, so their order says nothing: the conclusion
/// does not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReleaseAnswers {
    /// Whether our key was seen after the command's end.
    ours: bool,
    gone: bool,
}

impl ReleaseAnswers {
    /// The same with one more answer.
    #[must_use]
    pub fn with(self, finding: ReleaseAnswer) -> Self {
        let (ours, gone) = match finding {
            ReleaseAnswer::Deleted | ReleaseAnswer::Absent { record: true } => (true, true),
            ReleaseAnswer::Present => (true, false),
            ReleaseAnswer::Absent { record: false } => (false, true),
        };
        Self {
            ours: self.ours || ours,
            gone: self.gone || gone,
        }
    }

    /// The conclusion. A request without an answer proves nothing: it may never have arrived. So a key that is gone
    /// without our record is lost, unless it was seen after the command's end.
    pub fn verdict(self) -> ReleaseVerdict {
        match self {
            Self { gone: false, .. } => ReleaseVerdict::Open,
            Self { ours: true, .. } => ReleaseVerdict::Released,
            Self { ours: false, .. } => ReleaseVerdict::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GONE: ReleaseAnswer = ReleaseAnswer::Absent { record: false };
    const GONE_BY_US: ReleaseAnswer = ReleaseAnswer::Absent { record: true };

    fn conclusion(findings: &[ReleaseAnswer]) -> ReleaseVerdict {
        let all = findings.iter();
        let all = all.fold(ReleaseAnswers::default(), |all, one| all.with(*one));
        all.verdict()
    }

    #[test]
    fn a_key_that_is_gone_without_our_record_is_lost_however_often_we_have_asked() {
        assert_eq!(conclusion(&[GONE]), ReleaseVerdict::Lost);
        assert_eq!(conclusion(&[GONE, GONE]), ReleaseVerdict::Lost);
    }

    #[test]
    fn our_record_says_that_an_unanswered_request_of_ours_has_deleted_the_key() {
        assert_eq!(conclusion(&[GONE_BY_US]), ReleaseVerdict::Released);
    }

    /// Without a record, as when etcd is out of space, a read of the key before its deletion is enough.
    #[test]
    fn a_key_that_was_seen_after_the_command_s_end_was_ours_to_the_end() {
        assert_eq!(
            conclusion(&[ReleaseAnswer::Present, GONE]),
            ReleaseVerdict::Released
        );
        assert_eq!(conclusion(&[ReleaseAnswer::Present]), ReleaseVerdict::Open);
    }

    #[test]
    fn without_an_answer_nothing_is_known() {
        assert_eq!(conclusion(&[]), ReleaseVerdict::Open);
    }

    /// An event of a key in etcd, for the property below.
    #[derive(Clone, Copy, Debug)]
    enum Deed {
        /// Another client revokes the lease, which deletes key and record.
        Revoke,
        /// etcd executes one of our requests, with a put or without; the answer may be lost.
        Request { put: bool, answered: bool },
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// If the conclusion is "released", no other client held the lock while the command ran.
        #[test]
        fn a_lock_that_was_lost_before_the_command_s_end_is_never_released(
            before in any::<bool>(),
            deeds in proptest::collection::vec(
                prop_oneof![
                    Just(Deed::Revoke),
                    (any::<bool>(), any::<bool>()).prop_map(|(put, answered)| Deed::Request { put, answered }),
                ],
                0..6,
            ),
        ) {
            let (mut key, mut record) = (!before, false);
            let mut findings = ReleaseAnswers::default();
            for deed in deeds {
                match deed {
                    Deed::Revoke => (key, record) = (false, false),
                    Deed::Request { put: true, answered } => {
                        let finding = if key { ReleaseAnswer::Deleted } else { ReleaseAnswer::Absent { record } };
                        record |= key;
                        key = false;
                        if answered {
                            findings = findings.with(finding);
                        }
                    }
                    // The read must be answered, else nothing is deleted.
                    Deed::Request { put: false, answered } => {
                        let read = if key { ReleaseAnswer::Present } else { ReleaseAnswer::Absent { record } };
                        findings = findings.with(read);
                        if key {
                            key = false;
                            if answered {
                                findings = findings.with(ReleaseAnswer::Deleted);
                            }
                        }
                    }
                }
            }
            let conclusion = findings.verdict();
            prop_assert!(!before || conclusion != ReleaseVerdict::Released);
            prop_assert!(conclusion == ReleaseVerdict::Open || !key);
        }
    }
}

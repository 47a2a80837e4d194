//! The errors of a lock: the cause in words for people, and whether a retry may help.
//! It must not know which kind of lock it is, nor which request failed.

use std::fmt;
use std::time::Duration;

use anyhow::anyhow;

use crate::core::holder::Holder;
use crate::core::request::Mode;
use crate::core::text::format_duration;
use crate::output::exit::Failure;

/// The reaction to a failure. etcd answers `Unknown` for any error that it does not map (`api/v3rpc/util.go
/// togRPCError`), so code and message decide together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// Another endpoint, or a later retry, may succeed.
    Retryable,
    /// The token is no longer valid: authenticate on a new connection, then retry.
    AuthExpired,
    /// The lease id belongs to another client: it is not ours, whatever we sent before.
    LeaseExists,
    /// etcd does not know the lease (yet, or any more).
    LeaseNotFound,
    /// etcd was reached and refused.
    Refused,
    /// etcd refused the user or the password.
    LoginRefused,
    /// A file of the settings cannot be used as it is now.
    BadFile,
}

/// A failed request, ready to be shown.
#[derive(Clone, Debug)]
pub(crate) struct LockError {
    pub(crate) kind: ErrorKind,
    /// The cause, in words for people, without the name of the endpoint.
    pub(crate) cause: String,
    /// The hint to show, if there is one.
    pub(crate) hint: Option<String>,
}

impl LockError {
    /// An endpoint that is not usable now.
    pub(crate) fn retryable(cause: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Retryable,
            cause: cause.into(),
            hint: None,
        }
    }

    /// An endpoint that has not answered within `limit`.
    pub(crate) fn no_answer(limit: Duration) -> Self {
        Self::retryable(format!("no answer within {}", format_duration(limit)))
    }

    /// The lock is not held by another client, and etcd has confirmed no renewal of our lease for `unproven`.
    pub(crate) fn unproven(unproven: Duration, cause: Option<&str>) -> Self {
        let cause = cause.unwrap_or("no renewal was answered");
        let for_time = format_duration(Duration::from_secs(unproven.as_secs().max(1)));
        Self::refused(
            format!(
                "no other client has it, but etcd has confirmed no renewal of our lease for {for_time}: {cause}"
            ),
            Some(
                "dlock doctor shows whether a proof is possible there: see PROXIES in dlock-etcd(7)",
            ),
        )
    }

    /// An error that a retry does not change.
    pub(crate) fn refused(cause: impl Into<String>, hint: Option<&str>) -> Self {
        Self {
            kind: ErrorKind::Refused,
            cause: cause.into(),
            hint: hint.map(str::to_owned),
        }
    }

    /// The same as an error that a retry does not change.
    #[must_use]
    pub(crate) fn into_refused(self) -> Self {
        Self {
            kind: ErrorKind::Refused,
            ..self
        }
    }

    /// The same with a hint, if there is one, unless it has a better one already.
    #[must_use]
    pub(crate) fn with_hint(mut self, hint: Option<&str>) -> Self {
        self.hint = self.hint.or_else(|| hint.map(str::to_owned));
        self
    }
}

/// The error of a lock that `by` uses in another mode than the requested one.
pub(crate) fn mode_conflict(theirs: Mode, by: Option<&Holder>, ours: Mode) -> Failure {
    let by = by.map(Holder::sentence).unwrap_or_default();
    Failure {
        hint: Some("all clients of a lock must give the same --slots".to_owned()),
        ..anyhow!("it is used as '{theirs}' by {by}, not as '{ours}'").into()
    }
}

impl From<Failure> for LockError {
    fn from(failure: Failure) -> Self {
        Self::refused(format!("{:#}", failure.error), failure.hint.as_deref())
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

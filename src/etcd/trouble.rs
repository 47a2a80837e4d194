//! What etcd, the network or the client library say when something fails, and what helps.
//! It must not know which request failed.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use etcd_client::Error;
use tonic::{Code, Status};

use crate::core::text::span;

/// What a failure asks of us. etcd answers `Unknown` for whatever it does not map
/// (`api/v3rpc/util.go togRPCError`), so code and message decide together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Another endpoint, or the same one later, may answer.
    Elsewhere,
    /// The token is no longer valid: authenticate on a new connection, then again.
    Token,
    /// The lease id is somebody's already: it is not ours, whatever we sent before.
    LeaseExists,
    /// The lease is not known (yet, or any more).
    LeaseNotFound,
    /// etcd was reached and will not do it.
    Refused,
}

/// A failed request, ready to be shown.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) kind: Kind,
    /// The cause, in words for people, without the name of the endpoint.
    pub(crate) cause: String,
    /// What may help.
    pub(crate) hint: Option<String>,
}

impl Trouble {
    /// An endpoint that cannot be used now.
    pub(crate) fn elsewhere(cause: impl Into<String>) -> Self {
        Self {
            kind: Kind::Elsewhere,
            cause: cause.into(),
            hint: None,
        }
    }

    /// An endpoint that has not answered for so long.
    pub(crate) fn silence(limit: Duration) -> Self {
        Self::elsewhere(format!("no answer within {}", span(limit)))
    }

    /// Something that trying again does not change.
    pub(crate) fn refused(cause: impl Into<String>, hint: Option<&str>) -> Self {
        Self {
            kind: Kind::Refused,
            cause: cause.into(),
            hint: hint.map(str::to_owned),
        }
    }

    /// The same with a hint, unless there is a better one already.
    #[must_use]
    pub(crate) fn hinting(mut self, hint: &str) -> Self {
        self.hint.get_or_insert_with(|| hint.to_owned());
        self
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => Self::from(&status),
            Error::TransportError(error) => Self::elsewhere(chain(&error)),
            Error::LeaseKeepAliveError(cause) => Self {
                kind: Kind::LeaseNotFound,
                ..Self::elsewhere(cause)
            },
            other => Self::elsewhere(other.to_string()),
        }
    }
}

impl From<&Status> for Trouble {
    fn from(status: &Status) -> Self {
        let message = status.message();
        let kind = match status.code() {
            // What the client library made of a broken connection, whatever code it chose for it.
            _ if status.source().is_some() => Kind::Elsewhere,
            Code::Unauthenticated => Kind::Token,
            Code::InvalidArgument if message.contains("revision of auth store is old") => {
                Kind::Token
            }
            Code::FailedPrecondition if message.contains("lease already exists") => {
                Kind::LeaseExists
            }
            Code::NotFound if message.contains("lease not found") => Kind::LeaseNotFound,
            Code::ResourceExhausted if message.contains("too many requests") => Kind::Elsewhere,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                Kind::Elsewhere
            }
            _ => Kind::Refused,
        };
        Self {
            kind,
            cause: describe(status),
            hint: hint(status.code(), message).map(str::to_owned),
        }
    }
}

/// etcd's own words, or the innermost cause when the client library made up the status.
fn describe(status: &Status) -> String {
    let message = status
        .message()
        .trim_start_matches("etcdserver: ")
        .to_owned();
    match status.source() {
        Some(source) => chain(source),
        None if message.is_empty() => status.code().description().to_owned(),
        None => message,
    }
}

/// The causes of an error from the outermost in, each once: the truth is often only in the last.
fn chain(error: &dyn std::error::Error) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let cause = error.to_string();
        if !causes.iter().any(|known| known.contains(&cause)) {
            causes.push(cause);
        }
        next = error.source();
    }
    // tonic's outermost "transport error" says nothing once there is a cause.
    if causes.len() > 1 {
        causes.retain(|cause| cause != "transport error");
    }
    let said = causes.join(": ");
    // What the libraries below make of a server that closes the connection before it has said anything.
    let silent = [
        "stream closed because of a broken pipe",
        "Connection reset by peer (os error 104)",
    ];
    if silent.iter().any(|words| said.ends_with(words)) {
        return "the server hung up".to_owned();
    }
    said
}

fn hint(code: Code, message: &str) -> Option<&'static str> {
    match code {
        Code::ResourceExhausted if message.contains("space exceeded") => Some(
            "etcd is out of space (alarm NOSPACE): compact and defragment it, then `etcdctl alarm disarm`",
        ),
        Code::InvalidArgument if message.contains("invalid user ID or password") => {
            Some("check --user and --password-file, or DLOCK_USER and DLOCK_PASSWORD")
        }
        Code::InvalidArgument if message.contains("user name is empty") => {
            Some("this etcd wants a user: give --user and --password-file")
        }
        _ => None,
    }
}

/// What a failed first contact suggests, from the words of the libraries below.
pub(crate) fn connect_hint(https: bool, cause: &str) -> Option<&'static str> {
    let cause = cause.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| cause.contains(word));
    if says(&["invalidcontenttype", "corrupt message", "tls handshake eof"]) {
        Some("the server does not speak TLS there: use http:// and no --cacert, --cert or --key")
    } else if says(&["unknownissuer", "unknown issuer", "badsignature"]) {
        Some("give the certificate authority that signed the server's certificate with --cacert")
    } else if says(&["certificate expired", "not valid yet"]) {
        Some("renew the server's certificate, or set this machine's clock right")
    } else if says(&["notvalidforname", "not valid for name"]) {
        Some("the server's certificate is for another name: use the name that it was made for")
    } else if says(&[
        "certificaterequired",
        "certificate required",
        "badcertificate",
        "bad certificate",
    ]) {
        Some("the server wants a client certificate: give --cert and --key")
    } else if says(&["connection refused"]) {
        Some(
            "is etcd running there? the endpoints come from --endpoints, DLOCK_ENDPOINTS, ETCDCTL_ENDPOINTS or the configuration file",
        )
    } else if says(&["no answer within", "no connection within", "timed out"]) {
        Some(
            "something listens there but does not answer, or a firewall drops it: is it etcd, and does it run?",
        )
    } else if says(&[
        "failed to lookup",
        "name or service not known",
        "name resolution",
    ]) {
        Some("check the host name in --endpoints")
    } else if !https
        && says(&[
            "h2 protocol error",
            "hung up",
            "broken pipe",
            "connection reset",
            "frame",
            "connection closed",
            "unexpected end of file",
        ])
    {
        Some(
            "if that is etcd, it speaks TLS there: use https:// with --cacert; else it is another server's port",
        )
    } else if https
        && says(&[
            "hung up",
            "broken pipe",
            "connection reset",
            "eof",
            "connection closed",
        ])
    {
        // Whether that was in the handshake or behind it, nobody says.
        Some(
            "does it speak TLS there? if so, it may want a client certificate: give --cert and --key; if not, use http://",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_message_decide_together() {
        for (code, message, kind) in [
            (Code::Unknown, "context deadline exceeded", Kind::Elsewhere),
            (Code::Unknown, "not a primary lessor", Kind::Elsewhere),
            (Code::Unavailable, "etcdserver: no leader", Kind::Elsewhere),
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                Kind::Elsewhere,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                Kind::Refused,
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                Kind::Token,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: revision of auth store is old",
                Kind::Token,
            ),
            (
                Code::FailedPrecondition,
                "etcdserver: lease already exists",
                Kind::LeaseExists,
            ),
            (
                Code::NotFound,
                "etcdserver: requested lease not found",
                Kind::LeaseNotFound,
            ),
            (
                Code::PermissionDenied,
                "etcdserver: permission denied",
                Kind::Refused,
            ),
        ] {
            let trouble = Trouble::from(&Status::new(code, message));
            assert_eq!(trouble.kind, kind, "{code:?} {message}");
            assert!(!trouble.cause.starts_with("etcdserver"));
        }
    }
}

//! Errors of etcd, the network or the client library, and hints.
//! It must not know which request failed.

use std::error::Error as _;

use etcd_client::Error;
use tonic::{Code, Status};

use crate::config::DEFAULT_ENDPOINTS;
use crate::core::abandoned::Attempt;
use crate::core::remedy::remedy;
pub(crate) use crate::lock::error::{ErrorKind, LockError};

impl From<Error> for LockError {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => Self::from(&status),
            Error::TransportError(error) => Self::retryable(causes_of(&error)),
            Error::LeaseKeepAliveError(cause) => Self {
                kind: ErrorKind::LeaseNotFound,
                ..Self::retryable(cause)
            },
            other => Self::retryable(other.to_string()),
        }
    }
}

impl From<&Status> for LockError {
    fn from(status: &Status) -> Self {
        let message = status.message();
        let kind = match status.code() {
            // The client library has chosen this code for a broken connection.
            _ if status.source().is_some() => ErrorKind::Retryable,
            Code::Unauthenticated => ErrorKind::AuthExpired,
            Code::InvalidArgument if message.contains("revision of auth store is old") => {
                ErrorKind::AuthExpired
            }
            Code::FailedPrecondition if message.contains("lease already exists") => {
                ErrorKind::LeaseExists
            }
            Code::NotFound if message.contains("lease not found") => ErrorKind::LeaseNotFound,
            Code::ResourceExhausted if message.contains("too many requests") => {
                ErrorKind::Retryable
            }
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                ErrorKind::Retryable
            }
            _ => ErrorKind::Refused,
        };
        Self {
            kind,
            cause: describe(status),
            hint: hint(status.code(), message).map(str::to_owned),
        }
    }
}

/// Whether the answer is longer than dlock accepts: tonic's message.
pub(super) fn is_too_long(error: &LockError) -> bool {
    error.cause.contains("message length too large")
}

/// Whether etcd has compacted the revision that was asked for (`ErrCompacted` in etcd's rpctypes).
pub(super) fn is_compacted(error: &LockError) -> bool {
    error.cause.contains("compacted")
}

/// The state of an attempt after the answer to its grant.
pub(super) fn attempt_after<T>(granted: &Result<T, LockError>) -> Attempt {
    match granted {
        Err(error) if error.kind == ErrorKind::Retryable => {
            if UNPROPOSED.contains(&error.cause.as_str()) {
                Attempt::Refused
            } else {
                Attempt::Open
            }
        }
        _ => Attempt::Answered,
    }
}

/// The messages of a member that refuses a grant before it is proposed to the cluster: see `core::abandoned`.
const UNPROPOSED: [&str; 3] = ["no leader", "raft proposal dropped", "too many requests"];

/// etcd's own message, or the innermost cause when the client library made up the status.
fn describe(status: &Status) -> String {
    let message = status
        .message()
        .trim_start_matches("etcdserver: ")
        .to_owned();
    match status.source() {
        Some(source) => causes_of(source),
        None if message.is_empty() => status.code().description().to_owned(),
        None => message,
    }
}

/// The causes of an error from the outermost in, each once: often only the last one is of use.
fn causes_of(error: &dyn std::error::Error) -> String {
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
    // The libraries report a server that closes the connection before its first answer in these ways.
    let silent = [
        "stream closed because of a broken pipe",
        "Connection reset by peer (os error 104)",
        "tls handshake eof",
    ];
    if silent.iter().any(|words| said.ends_with(words)) {
        return "the server closed the connection".to_owned();
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
            Some("this etcd requires a user: give --user and --password-file")
        }
        _ => None,
    }
}

/// The messages of the libraries for a broken connection: chance decides between them.
const BROKEN_CONNECTION_TEXTS: [&str; 7] = [
    "closed the connection",
    "broken pipe",
    "connection reset",
    "connection closed",
    "eof",
    "h2 protocol error",
    "unexpected end of file",
];

/// The hint for a connection that cannot be opened. A server that requires a certificate reports that by TLS; one that
/// only hangs up does not speak it.
pub(crate) fn handshake_hint(https: bool, cause: &str) -> Option<&'static str> {
    let cause = cause.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| cause.contains(word));
    if https && (says(&["invalidcontenttype", "corrupt message"]) || says(&BROKEN_CONNECTION_TEXTS))
    {
        return Some(
            "the server does not speak TLS there: use http:// and no --cacert, --cert or --key",
        );
    }
    connect_hint(https, &cause)
}

/// Whether the server has refused our certificate in the handshake, by one of the alerts of RFC 8446, 6.2.
pub(super) fn refuses_certificate(cause: &str) -> bool {
    let alerts = [
        "BadCertificate",
        "UnsupportedCertificate",
        "CertificateRevoked",
        "CertificateExpired",
        "CertificateUnknown",
        "CertificateRequired",
        "UnknownCA",
        "AccessDenied",
    ];
    let alert = cause.split_once("received fatal alert: ");
    alert.is_some_and(|(_, alert)| alerts.iter().any(|known| alert.starts_with(known)))
}

/// The hint for an endpoint that refuses connections.
const NOT_RUNNING: &str = "is etcd running there?";

/// The hint for a first contact that failed.
pub(crate) fn connect_hint(https: bool, cause: &str) -> Option<&'static str> {
    if let Some(hint) = remedy(cause) {
        return Some(hint);
    }
    let cause = cause.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| cause.contains(word));
    if says(&["unknownissuer", "unknown issuer", "badsignature"]) {
        Some("give the certificate authority that signed the server's certificate with --cacert")
    } else if says(&["causedasendentity"]) {
        Some(
            "the server uses the certificate of an authority as its own: sign one for the server, or give exactly that one with --cacert",
        )
    } else if says(&["unsupportedcertversion"]) {
        Some(
            "the server's certificate has the form of X.509 version 1: sign it with extensions (openssl x509 -req -extfile)",
        )
    } else if says(&["(alpn)"]) {
        Some("is it etcd? a proxy in front of it has to offer h2, or to pass TLS through")
    } else if says(&["certificate expired", "not valid yet"]) {
        Some("renew the server's certificate, or correct this machine's clock")
    } else if says(&["notvalidforname", "not valid for name"]) {
        Some("the server's certificate is for another name: use that name in --endpoints")
    } else if says(&[
        "certificaterequired",
        "certificate required",
        "badcertificate",
        "bad certificate",
    ]) {
        Some("the server requires a client certificate: give --cert and --key")
    } else if says(&["connection refused"]) {
        Some(NOT_RUNNING)
    } else if says(&["was not looked up"]) {
        Some("check the name server in /etc/resolv.conf, or give an IP address")
    } else if says(&["no answer within", "no connection within", "timed out"]) {
        Some("a firewall drops the packets, or the server is not etcd, or it hangs")
    } else if says(&[
        "failed to lookup",
        "name or service not known",
        "name resolution",
    ]) {
        Some("check the host name in --endpoints")
    } else if !https && (says(&BROKEN_CONNECTION_TEXTS) || says(&["frame"])) {
        Some(
            "if that is etcd, it speaks TLS there: use https:// with --cacert; else it is another server's port",
        )
    } else if https && says(&BROKEN_CONNECTION_TEXTS) {
        Some("the server may require a client certificate: give --cert and --key")
    } else {
        None
    }
}

/// The hint where no endpoint answered: `hint` is that of one of them, `source` the setting that names them, `None` for the
/// built-in default.
pub(super) fn unreachable_hint(source: Option<&str>, hint: Option<String>) -> Option<String> {
    match (source, hint.as_deref()) {
        (None, None | Some(NOT_RUNNING)) => Some(format!(
            "no endpoint is configured, so {DEFAULT_ENDPOINTS} was tried; set DLOCK_ENDPOINTS, or use --local on one machine"
        )),
        (Some(source), Some(NOT_RUNNING)) => {
            Some(format!("{NOT_RUNNING} {source} names this endpoint"))
        }
        _ => hint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server without TLS ends a handshake in any of these ways: seen with etcd 3.4.
    #[test]
    fn a_handshake_that_is_hung_up_on_is_no_missing_certificate() {
        for cause in [
            "tls handshake eof",
            "Connection reset by peer (os error 104)",
            "received corrupt message of type InvalidContentType",
        ] {
            let hint = handshake_hint(true, cause).unwrap();
            assert!(hint.contains("http://"), "{cause}: {hint}");
        }
        for cause in [
            "stream closed because of a broken pipe",
            "Connection reset by peer (os error 104)",
            "the server closed the connection",
        ] {
            let hint = connect_hint(true, cause).unwrap();
            assert!(hint.contains("--cert"), "{cause}: {hint}");
            let hint = connect_hint(false, cause).unwrap();
            assert!(hint.contains("https://"), "{cause}: {hint}");
        }
        let hint = handshake_hint(true, "invalid peer certificate: UnknownIssuer").unwrap();
        assert!(hint.contains("--cacert"));
    }

    #[test]
    fn an_unreachable_etcd_has_a_hint_that_names_the_setting() {
        let refused = connect_hint(false, "Connection refused (os error 111)");
        let hint = |source, hint: Option<&str>| {
            unreachable_hint(source, hint.map(str::to_owned)).unwrap_or_default()
        };
        assert_eq!(
            hint(None, refused),
            "no endpoint is configured, so 127.0.0.1:2379 was tried; set DLOCK_ENDPOINTS, or use --local on one machine"
        );
        assert_eq!(hint(None, None), hint(None, refused));
        assert_eq!(
            hint(Some("DLOCK_ENDPOINTS"), refused),
            "is etcd running there? DLOCK_ENDPOINTS names this endpoint"
        );
        for source in [None, Some("--endpoints")] {
            assert_eq!(hint(source, Some("use https://")), "use https://");
        }
        assert_eq!(hint(Some("--endpoints"), None), "");
    }

    #[test]
    fn only_an_alert_about_a_certificate_refuses_our_certificate() {
        let says = |alert| format!("received fatal alert: {alert}");
        for alert in ["BadCertificate", "CertificateExpired", "UnknownCA"] {
            assert!(refuses_certificate(&says(alert)), "{alert}");
        }
        for cause in [
            &*says("HandshakeFailure"),
            "invalid peer certificate: BadCertificate",
            "the server closed the connection",
        ] {
            assert!(!refuses_certificate(cause), "{cause}");
        }
    }

    #[test]
    fn only_a_grant_that_was_never_proposed_is_forgotten() {
        let after =
            |code, message| attempt_after::<()>(&Err(LockError::from(&Status::new(code, message))));
        let refused = [
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
            (Code::Unknown, "raft proposal dropped"),
        ];
        for (code, message) in refused {
            assert_eq!(after(code, message), Attempt::Refused, "{message}");
        }
        // etcd may still execute each of these.
        for message in [
            "etcdserver: request timed out",
            "etcdserver: request timed out, possibly due to previous leader failure",
            "etcdserver: leader changed",
            "etcdserver: server stopped",
            "no leader to be found",
        ] {
            assert_eq!(
                after(Code::Unavailable, message),
                Attempt::Open,
                "{message}"
            );
        }
        let full = after(
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        );
        assert_eq!(full, Attempt::Answered);
        assert_eq!(attempt_after(&Ok(())), Attempt::Answered);
    }

    #[test]
    fn code_and_message_decide_together() {
        for (code, message, kind) in [
            (
                Code::Unknown,
                "context deadline exceeded",
                ErrorKind::Retryable,
            ),
            (Code::Unknown, "not a primary lessor", ErrorKind::Retryable),
            (
                Code::Unavailable,
                "etcdserver: no leader",
                ErrorKind::Retryable,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                ErrorKind::Retryable,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                ErrorKind::Refused,
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                ErrorKind::AuthExpired,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: revision of auth store is old",
                ErrorKind::AuthExpired,
            ),
            (
                Code::FailedPrecondition,
                "etcdserver: lease already exists",
                ErrorKind::LeaseExists,
            ),
            (
                Code::NotFound,
                "etcdserver: requested lease not found",
                ErrorKind::LeaseNotFound,
            ),
            (
                Code::PermissionDenied,
                "etcdserver: permission denied",
                ErrorKind::Refused,
            ),
        ] {
            let error = LockError::from(&Status::new(code, message));
            assert_eq!(error.kind, kind, "{code:?} {message}");
            assert!(!error.cause.starts_with("etcdserver"));
        }
    }
}

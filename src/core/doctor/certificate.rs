//! Whether a certificate is about to end.
//! It must not know how certificates are read, nor what time it is.

use std::time::Duration;

use super::Finding;
use crate::core::text::format_duration;

const CHECK: &str = "certificate";

const DAY: Duration = Duration::from_hours(24);

/// Notice before a certificate ends: a person can renew it, and is warned more than once.
const EXPIRY_NOTICE: Duration = Duration::from_hours(14 * 24);

/// Below this lifetime a machine renews the certificate, and is late only when a third of the lifetime is left.
const SHORT_LIFE: Duration = Duration::from_hours(4 * 24);

/// The relevant fields of a certificate. The times are since 1970, as in the certificate itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    pub not_before: Duration,
    pub not_after: Duration,
}

impl Certificate {
    /// The time before its end at which a warning is due.
    fn notice(&self) -> Duration {
        let life = self.not_after.saturating_sub(self.not_before);
        if life < SHORT_LIFE {
            life / 3
        } else {
            EXPIRY_NOTICE
        }
    }
}

/// The finding on the certificate of an endpoint or in a file; `now` is the wall clock's time since 1970.
pub fn check_certificate(
    object: &str,
    what: &str,
    certificate: &Certificate,
    now: Duration,
) -> Finding {
    let Certificate {
        subject,
        issuer,
        not_before,
        not_after,
    } = certificate;
    let subject = if subject.is_empty() {
        "(unnamed)"
    } else {
        subject
    };
    let who = format!("{what} for '{subject}', issued by '{issuer}'");
    if let Some(early) = not_before.checked_sub(now).filter(|it| !it.is_zero()) {
        let says = format!("{who}, is not valid for another {}", days(early));
        return Finding::warning(CHECK, object, &says).hinting("check the clock of this machine");
    }
    let Some(left) = not_after.checked_sub(now) else {
        let says = format!(
            "{who}, expired {} ago",
            days(now.saturating_sub(*not_after))
        );
        return Finding::warning(CHECK, object, &says).hinting("renew it");
    };
    let says = format!("{who}, expires in {}", days(left));
    if left < certificate.notice() {
        return Finding::warning(CHECK, object, &says)
            .hinting("renew it in time: after that, no new connection is possible");
    }
    Finding::ok(CHECK, object, &says)
}

/// Whole days; less than one day in hours, minutes and seconds.
fn days(time: Duration) -> String {
    match time.as_secs() / DAY.as_secs() {
        0 => format_duration(Duration::from_secs(time.as_secs())).to_string(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::doctor::Level;

    const TODAY: u32 = 20_000;

    /// A certificate that began `began` days ago and ends in `ends` days and a minute.
    fn found(began: u32, ends: u32) -> Finding {
        let certificate = Certificate {
            subject: "CN=etcd1".to_owned(),
            issuer: "CN=ours".to_owned(),
            not_before: DAY * (TODAY - began),
            not_after: DAY * (TODAY + ends) + Duration::from_mins(1),
        };
        check_certificate("x", "server certificate", &certificate, DAY * TODAY)
    }

    #[test]
    fn the_end_is_near_two_weeks_before() {
        let far = found(300, 65);
        assert_eq!(far.level, Level::Ok);
        assert_eq!(
            far.says,
            "server certificate for 'CN=etcd1', issued by 'CN=ours', expires in 65 days"
        );
        assert_eq!(found(351, 14).level, Level::Ok);
        let near = found(352, 13);
        assert_eq!(near.level, Level::Warning);
        assert!(near.says.ends_with("expires in 13 days") && near.hint.is_some());
        // A certificate for five days, made by hand, and new.
        assert_eq!(found(0, 5).level, Level::Warning);
    }

    #[test]
    fn certificates_that_a_machine_renews_have_less_notice() {
        assert_eq!(found(0, 2).level, Level::Ok);
        assert_eq!(found(1, 1).level, Level::Ok);
        assert_eq!(found(2, 0).level, Level::Warning);
        assert!(found(2, 0).says.ends_with("expires in 1m"));
    }

    #[test]
    fn a_certificate_outside_its_validity_is_reported() {
        let over = Certificate {
            subject: String::new(),
            issuer: "CN=ours".to_owned(),
            not_before: DAY * (TODAY - 9),
            not_after: DAY * (TODAY - 2),
        };
        let found = check_certificate("x", "server certificate", &over, DAY * TODAY);
        assert_eq!(found.level, Level::Warning);
        assert!(found.says.contains("for '(unnamed)'"), "{found:?}");
        assert!(found.says.ends_with("expired 2 days ago"), "{found:?}");
        let found = check_certificate("x", "server certificate", &over, DAY * (TODAY - 10));
        assert!(
            found.says.ends_with("is not valid for another 1 day"),
            "{found:?}"
        );
    }
}

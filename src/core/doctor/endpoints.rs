//! The findings on the endpoints: whether they answer, are fast enough, and allow writes.
//! It must not know how they were probed.

use std::time::Duration;

use super::facts::{Answer, Complaint, NO_LEADER, Named, Probe, Trial};
use super::latency;
use super::{Finding, Level, cluster, keys};
use crate::core::cluster_id::ClusterId;
use crate::core::proof::Header;
use crate::core::text::format_duration;
use crate::core::time::LeaseTimings;

/// The user and the keys that the checks are for.
pub struct ProbeSettings<'a> {
    /// The user name, or the words for no user.
    pub user: Option<&'a str>,
    pub prefix: &'a str,
    pub timings: LeaseTimings,
    /// The cluster id in the settings.
    pub cluster_id: Option<ClusterId>,
    /// The endpoints of other machines whose connection has no TLS.
    pub exposed: Vec<String>,
    /// Those of them for which http was assumed.
    pub assumed_http: Vec<String>,
}

impl Probe {
    /// Whether a lock can be taken and held through this endpoint, in the cluster of the settings.
    fn usable(&self, cluster: Option<ClusterId>) -> bool {
        let Ok(answer) = &self.answer else {
            return false;
        };
        let other = |header: Header| cluster.is_some_and(|id| id.0 != header.cluster);
        if answer.header.is_some_and(other) {
            return false;
        }
        let Trial { locks, key, proofs } = &answer.trial;
        let narrow = key.as_ref().is_err_and(Complaint::denied);
        locks.is_ok() && (narrow || key.is_ok() && latency::can_hold_lock(proofs))
    }
}

/// All findings on the endpoints.
pub fn check_endpoints(asked: &[Probe], asking: &ProbeSettings) -> Vec<Finding> {
    // A fault of one endpoint matters little as long as another one works.
    let bad = if asked.iter().any(|one| one.usable(asking.cluster_id)) {
        Level::Warning
    } else {
        Level::Unusable
    };
    let mut findings: Vec<Finding> = asked.iter().map(|one| endpoint(one, bad)).collect();
    findings.extend(asking.assumed_http.iter().map(|endpoint| {
        let says = "an endpoint without a scheme means http: others on the way can read and change what is sent";
        Finding::ok("settings", endpoint, says).hinting("write https:// if etcd speaks TLS, else http://")
    }));
    let answers: Vec<Named> = asked
        .iter()
        .filter_map(|one| Some((one.endpoint.as_str(), one.answer.as_ref().ok()?)))
        .collect();
    if answers.is_empty() {
        return findings;
    }
    findings.extend(cluster::check_cluster(
        asked.len(),
        &answers,
        asking.cluster_id,
    ));
    findings.extend(user(&answers, asking));
    findings.extend(permission(&answers, asking));
    findings.extend(keys::check_keys(&answers, asking.prefix));
    let proofs = answers
        .iter()
        .filter(|(_, answer)| !answer.trial.proofs.is_empty());
    findings.extend(proofs.map(|(name, answer)| {
        if answer.is_from_proxy() {
            return Finding::new(
                "latency",
                name,
                bad,
                "no renewal counts: this is an etcd gRPC proxy, which answers renewals by itself",
            )
            .hinting(latency::USE_MEMBERS);
        }
        latency::check_latency(name, &answer.trial.proofs, asking.timings, bad)
    }));
    findings
}

fn endpoint(asked: &Probe, bad: Level) -> Finding {
    const CHECK: &str = "endpoint";
    let name = &asked.endpoint;
    let answer = match &asked.answer {
        Ok(answer) => answer,
        Err(complaint) => {
            return Finding::new(CHECK, name, bad, &complaint.cause)
                .maybe_hinting(complaint.help());
        }
    };
    let says = describe(answer);
    if let Some(status) = &answer.status {
        if status.learner {
            return Finding::new(CHECK, name, bad, &says)
                .hinting("a learner serves no locks: leave it out of --endpoints");
        }
        if status.leader == 0 {
            return Finding::new(CHECK, name, bad, &says).hinting(NO_LEADER);
        }
    }
    let error = [&answer.trial.locks, &answer.trial.key]
        .into_iter()
        .find_map(|step| step.as_ref().err().filter(|it| !it.refused));
    if let Some(complaint) = error {
        let says = format!(
            "{says}, but a lock cannot be taken through it: {}",
            complaint.cause
        );
        // It has answered before: only requests that need a majority fail.
        return Finding::new(CHECK, name, bad, &says)
            .hinting(complaint.help().unwrap_or(NO_LEADER));
    }
    Finding::ok(CHECK, name, &says)
}

/// A member in one line.
fn describe(answer: &Answer) -> String {
    let Answer {
        header,
        status,
        version,
        took,
        ..
    } = answer;
    let version = version.as_ref();
    let mut words = vec![version.map_or_else(|| "etcd".to_owned(), |it| format!("etcd {it}"))];
    words.extend(header.map(|header| format!("member {:x}", header.member)));
    words.push(match status {
        Some(status) if status.learner => "a learner".to_owned(),
        Some(status) if status.leader == 0 => "without a leader".to_owned(),
        Some(status) if header.is_some_and(|header| header.member == status.leader) => {
            "the leader".to_owned()
        }
        Some(status) => format!("follows {:x}", status.leader),
        None => "shows its state to root only".to_owned(),
    });
    words.extend(header.map(|header| format!("raft term {}", header.term)));
    let size = status.as_ref().map_or(0, |status| status.size);
    if size > 0 {
        words.push(format!("{} MiB", mebibytes(size)));
    }
    let took = format_duration((*took).max(Duration::from_millis(1)));
    words.push(format!("answers after {took}"));
    words.join(", ")
}

/// Rounded up, so that a small value is never zero.
fn mebibytes(bytes: i64) -> i64 {
    const MEBI: i64 = 1024 * 1024;
    bytes / MEBI + i64::from(bytes % MEBI > 0)
}

fn user(answers: &[Named], asking: &ProbeSettings) -> Option<Finding> {
    const CHECK: &str = "user";
    let Some(user) = asking.user else {
        let says = "no user is given: etcd sees an anonymous client, or the user of the client certificate";
        return Some(Finding::ok(CHECK, "none", says));
    };
    if !answers.iter().find_map(|(_, answer)| answer.users)? {
        let says = "not needed: authentication is not enabled, so every client may do everything";
        return Some(Finding::ok(CHECK, user, says));
    }
    if asking.exposed.is_empty() {
        return Some(Finding::ok(CHECK, user, "logged in"));
    }
    let readers = asking.exposed.join(" and ");
    let says = format!("logged in, and the password travels in the clear to {readers}");
    Some(Finding::warning(CHECK, user, &says).hinting("enable TLS in etcd, and use https://"))
}

fn permission(answers: &[Named], asking: &ProbeSettings) -> Option<Finding> {
    const CHECK: &str = "permission";
    let prefix = asking.prefix;
    let user = asking.user.unwrap_or("the certificate's user");
    let grant = format!(
        "the role of '{user}' needs readwrite on all keys that begin with '{prefix}': etcdctl role grant-permission ROLE readwrite --prefix {prefix}"
    );
    let refusal = |step: fn(&Trial) -> &Result<(), Complaint>| {
        let mut steps = answers
            .iter()
            .map(|(_, answer)| step(&answer.trial).as_ref().err());
        steps.find_map(|complaint| complaint.filter(|it| it.refused && !it.no_space()))
    };
    if let Some(complaint) = refusal(|trial| &trial.locks) {
        let says = format!("etcd refuses what a lock needs: {}", complaint.cause);
        let hint = complaint.denied().then_some(grant.as_str());
        return Some(
            Finding::unusable(CHECK, prefix, &says)
                .maybe_hinting(hint.or(complaint.hint.as_deref())),
        );
    }
    if let Some(complaint) = refusal(|trial| &trial.key) {
        let says = format!(
            "locks are allowed, but not every key below the prefix: {}",
            complaint.cause
        );
        return Some(Finding::warning(CHECK, prefix, &says).hinting(&grant));
    }
    let tried = answers
        .iter()
        .any(|(_, answer)| answer.trial.locks.is_ok() && answer.trial.key.is_ok());
    tried.then(|| {
        let says = "a lease was granted, renewed and revoked, its key written, read and deleted";
        Finding::ok(CHECK, prefix, says)
    })
}

#[cfg(test)]
mod tests;

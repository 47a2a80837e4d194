//! The cluster behind the endpoints that answer: whether it is one, its members, versions and alarms.
//! It must not know how the facts were collected.

use std::collections::BTreeMap;

use super::facts::{Complaint, Member, MemberStatus, Named, Trial};
use super::{Finding, counted, version};
use crate::core::cluster_id::ClusterId;

/// Warning threshold, in percent of etcd's quota.
const NEARLY_FULL: i64 = 80;

/// All findings on the cluster. `named` is the number of endpoints in the settings, `answers` those that answer, `wanted`
/// the cluster id in the settings.
pub(super) fn check_cluster(
    named: usize,
    answers: &[Named],
    wanted: Option<ClusterId>,
) -> Vec<Finding> {
    let mut findings = unity(named, answers, wanted);
    findings.extend(versions(answers));
    findings.extend(alarms(answers));
    findings
}

fn unity(named: usize, answers: &[Named], wanted: Option<ClusterId>) -> Vec<Finding> {
    const CHECK: &str = "cluster";
    let mut by_id: BTreeMap<u64, Vec<&Named>> = BTreeMap::new();
    for one in answers {
        if let Some(header) = one.1.header {
            by_id.entry(header.cluster).or_default().push(one);
        }
    }
    let mut findings = Vec::new();
    if let Some(wanted) = wanted {
        let others: Vec<_> = by_id
            .extract_if(.., |id, _| ClusterId(*id) != wanted)
            .collect();
        let remains = !by_id.is_empty();
        findings.extend(
            others
                .iter()
                .map(|(id, ones)| refused(ClusterId(*id), ones, wanted, remains)),
        );
    }
    if by_id.len() > 1 {
        let parts = by_id.iter().map(|(id, ones)| {
            let where_it_is: Vec<&str> = ones.iter().map(|(name, _)| *name).collect();
            format!("{id:x} at {}", where_it_is.join(" and "))
        });
        let says = format!(
            "the endpoints belong to different clusters, so that two commands could run under one lock: {}",
            parts.collect::<Vec<_>>().join("; ")
        );
        return vec![
            Finding::unusable(CHECK, "--endpoints", &says)
                .hinting("name the members of one cluster only, and the same one on every machine"),
        ];
    }
    let Some((id, ones)) = by_id.into_iter().next() else {
        return findings;
    };
    let id = ClusterId(id).to_string();
    let mut leaders: Vec<u64> = ones
        .iter()
        .filter_map(|(_, answer)| Some(answer.status.as_ref()?.leader))
        .filter(|leader| *leader != 0)
        .collect();
    leaders.sort_unstable();
    leaders.dedup();
    if leaders.len() > 1 {
        findings.push(
            Finding::warning(CHECK, &id, "the members follow different leaders").hinting(
                "an election is under way, or a member is cut off: try again in a few seconds",
            ),
        );
    }
    let members = ones
        .iter()
        .map(|(_, answer)| answer.members.as_slice())
        .max_by_key(|members| members.len())
        .unwrap_or_default();
    let membership = membership(&id, named, &ones, members);
    findings.push(if wanted.is_none() && membership.hint.is_none() {
        membership.hinting(&format!(
            "to refuse every other cluster: cluster-id = \"{id}\""
        ))
    } else {
        membership
    });
    findings
}

/// The endpoints of another cluster than that of the settings, if others remain.
fn refused(id: ClusterId, ones: &[&Named], wanted: ClusterId, remains: bool) -> Finding {
    const CHECK: &str = "cluster";
    let names: Vec<&str> = ones.iter().map(|(name, _)| *name).collect();
    let (object, says) = (
        names.join(" and "),
        format!(
            "belongs to another cluster: {id}, not {wanted} of cluster-id; dlock does not use it"
        ),
    );
    let finding = if remains {
        Finding::warning(CHECK, &object, &says)
    } else {
        Finding::unusable(CHECK, &object, &says)
    };
    finding.hinting(&format!(
        "name the members of one cluster only; if this cluster is the right one: cluster-id = \"{id}\""
    ))
}

fn membership(id: &str, named: usize, ones: &[&Named], members: &[Member]) -> Finding {
    const CHECK: &str = "cluster";
    let voters: Vec<&Member> = members.iter().filter(|member| !member.learner).collect();
    if voters.is_empty() {
        let says = format!(
            "{} in one cluster",
            counted(ones.len(), "endpoint", "endpoints")
        );
        return Finding::ok(CHECK, id, &says);
    }
    let says = format!(
        "{}, {} may fail; {} named",
        counted(voters.len(), "voting member", "voting members"),
        (voters.len() - 1) / 2,
        counted(named, "endpoint is", "endpoints are")
    );
    if ones.len() > members.len() {
        // Two clusters that were started with etcd's defaults give themselves the same ids.
        let says = format!("{says}: two are one member, or members know nothing of each other");
        return Finding::warning(CHECK, id, &says).hinting(
            "name each member once; if there are more, each may be a cluster of its own, and two commands could run under one lock",
        );
    }
    if voters.len() == 2 {
        return Finding::warning(CHECK, id, &says)
            .hinting("two members fail more often than one does: add a third");
    }
    // A name that the cluster lists is that member; another name may stand for all of them.
    let mut listed = voters.iter().flat_map(|member| &member.urls);
    let direct = ones
        .first()
        .is_some_and(|(name, _)| listed.any(|url| url.trim_end_matches('/') == *name));
    if named == 1 && voters.len() > 1 && direct {
        let all: Vec<&str> = voters
            .iter()
            .filter_map(|member| Some(member.urls.first()?.trim_end_matches('/')))
            .collect();
        let says = format!("{says}: when it is down, dlock does not know of the others");
        return Finding::warning(CHECK, id, &says)
            .hinting(&format!("--endpoints {}", all.join(",")));
    }
    Finding::ok(CHECK, id, &says)
}

fn versions(answers: &[Named]) -> Vec<Finding> {
    let users = answers.iter().any(|(_, answer)| answer.users == Some(true));
    let mut by_version: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, answer) in answers {
        if let Some(version) = &answer.version {
            by_version.entry(version).or_default().push(name);
        }
    }
    let judged = by_version
        .iter()
        .flat_map(|(version, names)| version::check_version(version, &names.join(" and "), users));
    judged.collect()
}

fn alarms(answers: &[Named]) -> Vec<Finding> {
    const CHECK: &str = "alarm";
    let told: Vec<&MemberStatus> = answers
        .iter()
        .filter_map(|(_, answer)| answer.status.as_ref())
        .collect();
    let raised = |name: &str| {
        let says = |error: &String| error.contains(name);
        told.iter().any(|status| status.errors.iter().any(says))
    };
    // A user who may not read the status sees the alarm in a refused write.
    let refused = answers.iter().any(|(_, answer)| {
        let Trial { locks, key, .. } = &answer.trial;
        [locks, key]
            .into_iter()
            .any(|step| step.as_ref().is_err_and(Complaint::no_space))
    });
    let mut findings = Vec::new();
    if raised("NOSPACE") || refused {
        findings.push(
            Finding::unusable(CHECK, "NOSPACE", "etcd is out of space: no lock can be taken, those that are held stay and can be released")
                .hinting("compact and defragment it, then `etcdctl alarm disarm`"),
        );
    }
    if raised("CORRUPT") {
        findings.push(
            Finding::unusable(
                CHECK,
                "CORRUPT",
                "the members have different data: no answer of etcd is reliable",
            )
            .hinting("replace the member that differs, then `etcdctl alarm disarm`"),
        );
    }
    let fill = |status: &&MemberStatus| {
        Some(status.size.saturating_mul(100) / status.quota.max(1)).filter(|_| status.quota > 0)
    };
    let fullest = told.iter().filter_map(fill).max();
    if let Some(fill) = fullest.filter(|fill| *fill >= NEARLY_FULL && findings.is_empty()) {
        let says =
            format!("etcd uses {fill} % of its space; when it is full, no lock can be taken");
        findings.push(
            Finding::warning(CHECK, "space", &says)
                .hinting("compact and defragment it, or raise --quota-backend-bytes"),
        );
    }
    if findings.is_empty() && !told.is_empty() {
        findings.push(Finding::ok(CHECK, "none", "no alarm is raised"));
    }
    findings
}

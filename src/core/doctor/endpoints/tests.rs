//! Tests of the findings on one to three endpoints in every state.
//! They send no request.

use super::*;
use crate::core::doctor::facts::{KeyFacts, Member, MemberStatus};
use crate::core::doctor::worst;

const URLS: [&str; 3] = ["http://a:2379", "http://b:2379", "http://c:2379"];

fn member(id: u64, url: &str) -> Member {
    Member {
        id,
        urls: vec![url.to_owned()],
        learner: false,
    }
}

/// A healthy cluster of `count` members, all of them named; the first is the leader.
fn healthy(count: usize) -> Vec<Probe> {
    let urls = &URLS[..count];
    let members: Vec<Member> = (1..).zip(urls).map(|(id, url)| member(id, url)).collect();
    let asked = |member: &Member| Probe {
        endpoint: member.urls[0].clone(),
        answer: Ok(Answer {
            took: Duration::from_millis(3),
            header: Some(Header {
                cluster: 0xc1,
                member: member.id,
                term: 7,
                revision: 42,
            }),
            status: Some(MemberStatus {
                leader: 1,
                size: 3_000_000,
                ..MemberStatus::default()
            }),
            version: Some("3.6.14".to_owned()),
            members: members.clone(),
            users: None,
            trial: Trial {
                locks: Ok(()),
                key: Ok(()),
                proofs: vec![Ok(Duration::from_millis(2)); 5],
            },
            keys: Ok(KeyFacts::default()),
        }),
    };
    members.iter().map(asked).collect()
}

fn answer(asked: &mut Probe) -> &mut Answer {
    asked.answer.as_mut().unwrap()
}

fn status(asked: &mut Probe) -> &mut MemberStatus {
    answer(asked).status.as_mut().unwrap()
}

fn unreachable() -> Result<Answer, Complaint> {
    Err(Complaint {
        cause: "Connection refused".to_owned(),
        hint: Some("is etcd running there?".to_owned()),
        refused: false,
    })
}

fn refusal(cause: &str) -> Result<(), Complaint> {
    Err(Complaint {
        cause: cause.to_owned(),
        hint: None,
        refused: true,
    })
}

fn asking() -> ProbeSettings<'static> {
    let ttl = Duration::from_secs(30);
    ProbeSettings {
        user: None,
        prefix: "dlock/",
        timings: LeaseTimings::new(ttl, LeaseTimings::default_grace(ttl)),
        cluster_id: None,
        exposed: Vec::new(),
        assumed_http: Vec::new(),
    }
}

/// The findings above `ok`: check, level, text.
#[track_caller]
fn bad(asked: &[Probe], asking: &ProbeSettings) -> Vec<(&'static str, Level, String)> {
    check_endpoints(asked, asking)
        .into_iter()
        .filter(|finding| finding.level != Level::Ok)
        .map(|finding| {
            let hint = finding.hint.expect("a bad finding has a hint");
            let text = format!("{}: {} [{hint}]", finding.object, finding.says);
            (finding.check, finding.level, text)
        })
        .collect()
}

#[track_caller]
fn only(asked: &[Probe], asking: &ProbeSettings, check: &str, level: Level, words: &[&str]) {
    let bad = bad(asked, asking);
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!((bad[0].0, bad[0].1), (check, level), "{bad:?}");
    for word in words {
        assert!(bad[0].2.contains(word), "no {word:?} in {bad:?}");
    }
}

#[test]
fn healthy_clusters_are_clean() {
    for count in [1, 3] {
        let findings = check_endpoints(&healthy(count), &asking());
        assert_eq!(worst(&findings), Level::Ok, "{findings:?}");
    }
    let findings = check_endpoints(&healthy(3), &asking());
    let says = |check: &str| -> Vec<&str> {
        let ours = findings.iter().filter(|finding| finding.check == check);
        ours.map(|finding| finding.says.as_str()).collect()
    };
    assert_eq!(
        says("endpoint")[..2],
        [
            "etcd 3.6.14, member 1, the leader, raft term 7, 3 MiB, answers after 3ms",
            "etcd 3.6.14, member 2, follows 1, raft term 7, 3 MiB, answers after 3ms"
        ]
    );
    assert_eq!(
        says("cluster"),
        ["3 voting members, 1 may fail; 3 endpoints are named"]
    );
    assert_eq!(says("version").len(), 1);
    assert_eq!(says("latency").len(), 3);
    assert_eq!(says("alarm"), ["no alarm is raised"]);
    assert_eq!(says("permission").len(), 1);
}

#[test]
fn an_endpoint_that_is_down_is_a_warning_as_long_as_another_is_up() {
    let mut asked = healthy(3);
    asked[1].answer = unreachable();
    only(
        &asked,
        &asking(),
        "endpoint",
        Level::Warning,
        &["http://b:2379: Connection refused", "is etcd running"],
    );
    for one in &mut asked {
        one.answer = unreachable();
    }
    let bad = bad(&asked, &asking());
    assert_eq!(bad.len(), 3);
    assert!(bad.iter().all(|(_, level, _)| *level == Level::Unusable));
}

#[test]
fn a_member_that_cannot_serve_is_named() {
    let mut asked = healthy(3);
    status(&mut asked[2]).leader = 0;
    only(
        &asked,
        &asking(),
        "endpoint",
        Level::Warning,
        &["c:2379", "without a leader", "election"],
    );
    let mut asked = healthy(3);
    status(&mut asked[2]).learner = true;
    only(
        &asked,
        &asking(),
        "endpoint",
        Level::Warning,
        &["a learner", "leave it out of --endpoints"],
    );
    let mut asked = healthy(1);
    let silence = Err(Complaint {
        cause: "no leader".to_owned(),
        hint: None,
        refused: false,
    });
    answer(&mut asked[0]).trial = Trial {
        locks: silence.clone(),
        key: silence,
        proofs: Vec::new(),
    };
    only(
        &asked,
        &asking(),
        "endpoint",
        Level::Unusable,
        &["cannot be taken through it: no leader", "election"],
    );
    asked[0].answer = Err(Complaint {
        cause: "no leader".to_owned(),
        hint: None,
        refused: false,
    });
    let words = ["no leader", "election"];
    only(&asked, &asking(), "endpoint", Level::Unusable, &words);
}

#[test]
fn two_clusters_are_no_cluster() {
    let mut asked = healthy(3);
    answer(&mut asked[1]).header.as_mut().unwrap().cluster = 0xc2;
    only(
        &asked,
        &asking(),
        "cluster",
        Level::Unusable,
        &["c1 at http://a:2379 and http://c:2379; c2 at http://b:2379"],
    );
}

#[test]
fn only_the_cluster_of_the_settings_counts() {
    let mut asked = healthy(3);
    let pinned = |id| ProbeSettings {
        cluster_id: Some(ClusterId(id)),
        ..asking()
    };
    assert!(bad(&asked, &pinned(0xc1)).is_empty());
    let words = [
        "http://a:2379 and http://b:2379 and http://c:2379",
        "c1, not c2 of cluster-id",
        "cluster-id = \"c1\"",
    ];
    only(&asked, &pinned(0xc2), "cluster", Level::Unusable, &words);
    answer(&mut asked[1]).header.as_mut().unwrap().cluster = 0xc2;
    let words = ["http://b:2379", "c2, not c1 of cluster-id"];
    only(&asked, &pinned(0xc1), "cluster", Level::Warning, &words);
    // An endpoint of another cluster does not replace those of the right one.
    answer(&mut asked[0]).trial.key = refusal("etcdserver: mvcc: database space exceeded");
    answer(&mut asked[2]).trial.key = refusal("etcdserver: mvcc: database space exceeded");
    assert_eq!(
        worst(&check_endpoints(&asked, &pinned(0xc1))),
        Level::Unusable
    );
}

#[test]
fn the_id_is_printed_for_the_configuration() {
    let hint = |asking: &ProbeSettings| {
        let findings = check_endpoints(&healthy(3), asking);
        let found = findings.into_iter().find(|one| one.check == "cluster");
        found.expect("a finding").hint
    };
    let line = hint(&asking()).expect("a hint");
    assert!(line.ends_with("cluster-id = \"c1\""), "{line}");
    let pinned = ProbeSettings {
        cluster_id: Some(ClusterId(0xc1)),
        ..asking()
    };
    assert_eq!(hint(&pinned), None);
}

#[test]
fn members_that_follow_different_leaders_are_electing() {
    let mut asked = healthy(3);
    status(&mut asked[1]).leader = 2;
    let words = ["follow different leaders"];
    only(&asked, &asking(), "cluster", Level::Warning, &words);
}

/// Each endpoint, started with etcd's defaults, is a cluster of one with the ids of the other.
#[test]
fn servers_that_know_nothing_of_each_other_are_a_warning() {
    let mut asked = [healthy(1), healthy(1)].concat();
    asked[1].endpoint = "http://b:2379".to_owned();
    let words = [
        "1 voting member",
        "2 endpoints",
        "know nothing of each other",
    ];
    only(&asked, &asking(), "cluster", Level::Warning, &words);
}

#[test]
fn clusters_that_survive_too_little_are_a_warning() {
    let words = ["2 voting members, 0 may fail", "add a third"];
    only(&healthy(2), &asking(), "cluster", Level::Warning, &words);
    let one_of_three = &healthy(3)[..1];
    let words = [
        "dlock does not know of the others",
        "--endpoints http://a:2379,http://b:2379,http://c:2379",
    ];
    only(one_of_three, &asking(), "cluster", Level::Warning, &words);
    // A name that no member lists may belong to a load balancer.
    let mut asked = healthy(3)[..1].to_vec();
    asked[0].endpoint = "https://etcd.example:443".to_owned();
    assert_eq!(bad(&asked, &asking()), []);
}

#[test]
fn each_version_is_judged_once() {
    let mut asked = healthy(3);
    answer(&mut asked[1]).version = Some("3.6.8".to_owned());
    answer(&mut asked[2]).version = Some("3.6.8".to_owned());
    let words = ["3.6.8: ", "at http://b:2379 and http://c:2379", "20418"];
    only(&asked, &asking(), "version", Level::Warning, &words);
    answer(&mut asked[0]).users = Some(true);
    assert_eq!(bad(&asked, &asking()).len(), 4);
}

#[test]
fn alarms_and_a_database_that_fills_up() {
    let mut asked = healthy(3);
    for one in &mut asked {
        status(one).errors = vec!["memberID:1 alarm:NOSPACE ".to_owned()];
        answer(one).trial.locks = refusal("mvcc: database space exceeded");
        answer(one).trial.key = refusal("mvcc: database space exceeded");
        answer(one).trial.proofs.clear();
    }
    only(
        &asked,
        &asking(),
        "alarm",
        Level::Unusable,
        &["NOSPACE: etcd is out of space", "disarm"],
    );
    for one in &mut asked {
        answer(one).status = None;
    }
    only(&asked, &asking(), "alarm", Level::Unusable, &["NOSPACE"]);
    let mut asked = healthy(1);
    status(&mut asked[0]).errors = vec!["memberID:1 alarm:CORRUPT ".to_owned()];
    only(&asked, &asking(), "alarm", Level::Unusable, &["CORRUPT"]);
    let mut asked = healthy(1);
    status(&mut asked[0]).quota = 3_700_000;
    only(&asked, &asking(), "alarm", Level::Warning, &["81 %"]);
    status(&mut asked[0]).quota = 8_000_000;
    assert_eq!(bad(&asked, &asking()), []);
}

#[test]
fn permissions_are_for_every_endpoint_alike() {
    let mut asked = healthy(3);
    for one in &mut asked {
        answer(one).trial = Trial {
            locks: refusal("permission denied"),
            key: refusal("permission denied"),
            proofs: Vec::new(),
        };
    }
    let team = ProbeSettings {
        user: Some("team"),
        ..asking()
    };
    let words = [
        "dlock/: etcd refuses",
        "the role of 'team'",
        "--prefix dlock/",
    ];
    only(&asked, &team, "permission", Level::Unusable, &words);
    for one in &mut asked {
        answer(one).trial.locks = Ok(());
    }
    let words = ["locks are allowed, but"];
    only(&asked, &team, "permission", Level::Warning, &words);
    let empty = refusal("user name is empty");
    answer(&mut asked[0]).trial.locks = empty.map_err(|complaint| Complaint {
        hint: Some("give --user".to_owned()),
        ..complaint
    });
    let words = ["user name is empty [give --user]"];
    only(&asked, &asking(), "permission", Level::Unusable, &words);
}

#[test]
fn a_status_that_the_user_may_not_read_is_no_failure() {
    let mut asked = healthy(1);
    answer(&mut asked[0]).status = None;
    answer(&mut asked[0]).users = Some(true);
    let team = ProbeSettings {
        user: Some("team"),
        ..asking()
    };
    let findings = check_endpoints(&asked, &team);
    assert_eq!(worst(&findings), Level::Ok, "{findings:?}");
    assert!(findings[0].says.contains("shows its state to root only"));
}

#[test]
fn a_password_that_travels_in_the_clear_is_a_warning() {
    let mut asked = healthy(1);
    answer(&mut asked[0]).users = Some(true);
    let team = ProbeSettings {
        user: Some("team"),
        exposed: vec!["http://a:2379".to_owned()],
        ..asking()
    };
    let words = ["in the clear to http://a:2379", "https://"];
    only(&asked, &team, "user", Level::Warning, &words);
    answer(&mut asked[0]).users = Some(false);
    assert_eq!(bad(&asked, &team), []);
}

#[test]
fn an_assumed_http_is_named_without_a_warning() {
    let bare = ProbeSettings {
        assumed_http: vec!["http://db:2379".to_owned()],
        ..asking()
    };
    let findings = check_endpoints(&healthy(1), &bare);
    let finding = findings.iter().find(|it| it.check == "settings").unwrap();
    assert_eq!(
        (finding.level, finding.object.as_str()),
        (Level::Ok, "http://db:2379")
    );
    assert!(finding.says.contains("means http"), "{}", finding.says);
}

#[test]
fn keys_that_no_endpoint_shows_are_a_warning_unless_they_are_refused() {
    let failed = |refused| {
        Err(Complaint {
            cause: "no answer within 5s".to_owned(),
            hint: None,
            refused,
        })
    };
    let mut asked = healthy(2);
    let keys = |asked: &[Probe]| -> Vec<Level> {
        let findings = check_endpoints(asked, &asking());
        let ours = findings.iter().filter(|finding| finding.check == "keys");
        ours.map(|finding| finding.level).collect()
    };
    answer(&mut asked[0]).keys = failed(false);
    assert_eq!(keys(&asked), [Level::Ok]);
    answer(&mut asked[1]).keys = failed(true);
    assert_eq!(keys(&asked), [Level::Warning]);
    answer(&mut asked[0]).keys = failed(true);
    assert_eq!(keys(&asked), []);
}

#[test]
fn slow_endpoints_are_as_bad_as_the_others_make_them() {
    let mut asked = healthy(3);
    answer(&mut asked[0]).trial.proofs = vec![Err("no answer within 2s".to_owned()); 2];
    let words = ["no renewal would count"];
    only(&asked, &asking(), "latency", Level::Warning, &words);
    for one in &mut asked {
        answer(one).trial.proofs = vec![Err("no answer within 2s".to_owned()); 2];
    }
    let bad = bad(&asked, &asking());
    assert_eq!(bad.len(), 3);
    assert!(bad.iter().all(|(_, level, _)| *level == Level::Unusable));
}

//! The identity of this process as other users see it: host, user, CI page, and the locks around it.
//! It must not know what the record is used for.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process;
use std::time::Duration;

use crate::core::holder::{Holder, OuterLock};
use crate::core::name::{HeldLocks, Scope};
use crate::core::request::Mode;
use crate::sys::clock;

/// The locks under which dlock itself was started.
pub(crate) fn held() -> HeldLocks {
    HeldLocks::parse(&env::var("DLOCK_HELD").unwrap_or_default())
}

/// The locks of this scope under which dlock itself was started, as a record lists them.
pub(crate) fn outer_locks(scope: &Scope) -> Vec<OuterLock> {
    let held = held();
    let outer = held.within(scope).map(|link| OuterLock {
        name: link.name.to_string(),
        token: link.token,
    });
    outer.collect()
}

/// The record of this process for a lock under which `program` runs.
pub(crate) fn holder(program: &OsStr, note: Option<&str>, mode: Mode, grace: Duration) -> Holder {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let name = Path::new(program).file_name().unwrap_or(program);
    Holder {
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        pid: process::id(),
        user: variable("USER")
            .or_else(|| variable("LOGNAME"))
            .unwrap_or_else(|| user(rustix::process::getuid().as_raw())),
        program: name.to_string_lossy().into_owned(),
        note: note.map(str::to_owned),
        url: ci_page(&variable),
        since: clock::wall_clock(),
        ..Holder::new(mode, grace)
    }
}

/// The user's name by passwd(5), for an environment without it (containers, systemd). Remote user directories are not
/// asked: they may block.
fn user(uid: u32) -> String {
    let number = uid.to_string();
    let name = fs::read_to_string("/etc/passwd").ok().and_then(|users| {
        let mut users = users.lines().map(|line| line.split(':'));
        users.find_map(|mut fields| {
            let name = fields.next()?;
            (fields.nth(1)? == number).then(|| name.to_owned())
        })
    });
    name.unwrap_or_else(|| format!("uid {uid}"))
}

/// Whether this process runs in a CI job, by the variables that each CI documents; its log is read by people.
pub(crate) fn in_ci() -> bool {
    is_ci(&|name| env::var(name).ok())
}

fn is_ci(variable: &dyn Fn(&str) -> Option<String>) -> bool {
    // Nearly all of them set the first one; unset or false means no CI.
    if let Some(told) = variable("CI").filter(|value| !value.is_empty()) {
        return !["0", "false", "no"].contains(&told.to_ascii_lowercase().as_str());
    }
    let own = [
        "GITHUB_ACTIONS",
        "GITLAB_CI",
        "BUILDKITE",
        "JENKINS_URL",
        "TEAMCITY_VERSION",
        "TF_BUILD", // Azure
        "CIRCLECI",
        "TRAVIS",
        "DRONE",
        "BITBUCKET_BUILD_NUMBER",
        "CODEBUILD_BUILD_ID",
        "APPVEYOR",
    ];
    own.iter()
        .any(|name| variable(name).is_some_and(|value| !value.is_empty()))
}

/// The page of the CI job that runs this process, by the variables that each CI documents.
fn ci_page(variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let whole = [
        "CI_JOB_URL", // GitLab
        "BUILDKITE_BUILD_URL",
        "CIRCLE_BUILD_URL",
        "TRAVIS_BUILD_WEB_URL",
        "DRONE_BUILD_LINK",
        "CI_PIPELINE_URL", // Woodpecker, after GitLab's more exact one
        "BUILD_URL",       // Jenkins
    ];
    let github = || {
        let (server, repository, run) = (
            variable("GITHUB_SERVER_URL")?,
            variable("GITHUB_REPOSITORY")?,
            variable("GITHUB_RUN_ID")?,
        );
        Some(format!("{server}/{repository}/actions/runs/{run}"))
    };
    let azure = || {
        let (collection, project, build) = (
            variable("SYSTEM_COLLECTIONURI")?,
            variable("SYSTEM_TEAMPROJECT")?,
            variable("BUILD_BUILDID")?,
        );
        let collection = collection.trim_end_matches('/');
        Some(format!(
            "{collection}/{project}/_build/results?buildId={build}"
        ))
    };
    let bitbucket = || {
        let (origin, build) = (
            variable("BITBUCKET_GIT_HTTP_ORIGIN")?,
            variable("BITBUCKET_BUILD_NUMBER")?,
        );
        Some(format!("{origin}/pipelines/results/{build}"))
    };
    github()
        .or_else(|| whole.iter().find_map(|name| variable(name)))
        .or_else(azure)
        .or_else(bitbucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_names_the_program_without_its_directory() {
        let holder = holder(
            OsStr::new("/srv/bin/deploy.sh"),
            Some("x"),
            Mode::Exclusive,
            Duration::from_secs(1),
        );
        assert_eq!(holder.program, "deploy.sh");
        assert_eq!(holder.pid, process::id());
        assert!(!holder.host.is_empty() && !holder.user.is_empty());
        assert!(holder.since.ends_with('Z'));
    }

    #[test]
    fn a_user_has_a_name_or_a_number() {
        assert_eq!(user(0), "root");
        assert_eq!(user(4_000_000_000), "uid 4000000000");
    }

    #[test]
    fn a_ci_is_known_by_its_variables() {
        let ci = |set: &'static [(&str, &str)]| {
            is_ci(&move |name| {
                let found = set.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(!ci(&[]) && !ci(&[("HOME", "/root"), ("GITLAB_CI", "")]));
        assert!(ci(&[("CI", "true")]) && ci(&[("CI", "woodpecker")]));
        assert!(ci(&[("CI", ""), ("GITHUB_ACTIONS", "true")]));
        assert!(ci(&[("JENKINS_URL", "https://j/")]) && ci(&[("BUILDKITE", "true")]));
        assert!(!ci(&[("CI", "false"), ("GITLAB_CI", "true")]));
    }

    #[test]
    fn the_ci_page_is_found() {
        let page = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> = set
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect();
            ci_page(&move |name| {
                set.iter()
                    .find(|(key, _)| key == name)
                    .map(|(_, value)| value.clone())
            })
        };
        assert_eq!(page(&[]), None);
        assert_eq!(
            page(&[("CI_JOB_URL", "https://g/1")]).as_deref(),
            Some("https://g/1")
        );
        assert_eq!(
            page(&[("BUILD_URL", "https://j/1")]).as_deref(),
            Some("https://j/1")
        );
        let github = [
            ("GITHUB_SERVER_URL", "https://github.com"),
            ("GITHUB_REPOSITORY", "a/b"),
            ("GITHUB_RUN_ID", "7"),
        ];
        assert_eq!(
            page(&github).as_deref(),
            Some("https://github.com/a/b/actions/runs/7")
        );
        assert_eq!(page(&github[..2]), None);
    }
}

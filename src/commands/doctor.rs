//! `dlock doctor`: check every endpoint at once and this machine, and print what would go wrong.
//! It must not know gRPC, nor what makes a finding bad.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use serde::Serialize;

use super::block_on;
use crate::cli::doctor::Options;
use crate::config::backend::BackendConfig;
use crate::config::origins::Origin;
use crate::config::{Settings, exposed};
use crate::core::doctor::certificate::Certificate;
use crate::core::doctor::endpoints::ProbeSettings;
use crate::core::doctor::facts::Probe;
use crate::core::doctor::machine::HostFacts;
use crate::core::doctor::state_dir::check_state_dir;
use crate::core::doctor::{Finding, Level, certificate, endpoints, machine, worst};
use crate::core::text::{printable, table};
use crate::etcd::doctor::{Examined, certificates, examine};
use crate::host::facts as here;
use crate::local;
use crate::output::exit::{Exit, Failure, OrFail as _};
use crate::output::stdout;
use crate::sys::clock;

/// Version of the object that `--json` prints.
const VERSION: u32 = 1;

/// The output of `dlock doctor`.
#[derive(Serialize)]
struct DoctorReport<'a> {
    version: u32,
    level: Level,
    findings: Vec<Finding>,
    settings: &'a [Origin],
}

/// Runs the checks, prints the report, and returns the exit status for the worst finding.
pub(super) fn run(backend: &BackendConfig, options: &Options) -> Result<Exit, Failure> {
    let findings = match backend {
        BackendConfig::Etcd(settings) => of_etcd(settings, options)?,
        BackendConfig::Local(directory) => of_this_machine(directory),
    };
    let level = worst(&findings);
    let report = DoctorReport {
        version: VERSION,
        level,
        findings,
        settings: &options.settings,
    };
    print(&report, options.json)?;
    Ok(match level {
        Level::Ok => Exit::Done,
        Level::Warning => Exit::Warned,
        Level::Unusable => Exit::Failed,
    })
}

/// The findings on local locks, which need no server and no clock.
fn of_this_machine(directory: &Path) -> Vec<Finding> {
    let mut findings = vec![check_state_dir(&local::doctor::examine(directory))];
    findings.extend(machine::check_processes(&here::host_facts()));
    findings
}

/// The findings on locks in etcd.
fn of_etcd(settings: &Settings, options: &Options) -> Result<Vec<Finding>, Failure> {
    let napping = here::nap()
        .context("cannot start a thread, nor could a guard be started")
        .or_hint(
            "raise the limit on processes: ulimit -u, TasksMax in systemd, --pids-limit in docker",
        )?;
    let mut facts = here::host_facts();
    let all = settings
        .endpoints
        .iter()
        .map(|endpoint| examine(endpoint, settings, options.timings));
    let examined = block_on(async { Ok(join_all(all).await) })?;
    facts.lateness = napping.join().unwrap_or_default();
    Ok(check(examined, &facts, settings, options))
}

fn check(
    examined: Vec<Examined>,
    facts: &HostFacts,
    settings: &Settings,
    options: &Options,
) -> Vec<Finding> {
    let (probes, served): (Vec<Probe>, Vec<_>) = examined
        .into_iter()
        .map(|one| (one.asked, one.certificate))
        .unzip();
    let settings_of_probe = ProbeSettings {
        user: settings.credentials.as_ref().map(|it| it.user.as_str()),
        prefix: &settings.prefix,
        timings: options.timings,
        cluster_id: settings.cluster_id,
        exposed: exposed(&settings.endpoints),
        assumed_http: settings.assumed_http.clone(),
    };
    let mut findings = endpoints::check_endpoints(&probes, &settings_of_probe);
    let now = clock::since_1970();
    for (one, certificate) in probes.iter().zip(&served) {
        let check_one =
            |it| certificate::check_certificate(&one.endpoint, "server certificate", it, now);
        findings.extend(certificate.as_ref().map(check_one));
    }
    findings.extend(own_certificates(settings, now));
    findings.extend(machine::check_host(facts));
    findings.extend(options.warnings.iter().map(|warning| {
        let option = warning.setting.name();
        Finding::warning("settings", option, &warning.says)
    }));
    findings
}

fn own_certificates(settings: &Settings, now: Duration) -> Vec<Finding> {
    let ends = |it: &Certificate| it.not_after;
    let mut findings = Vec::new();
    if let Some(path) = &settings.tls.cert {
        // A chain is valid until its first certificate expires.
        let found = certificates::read(path).into_iter().min_by_key(ends);
        findings.push(of_file(path, "client certificate", found, now));
    }
    if let Some(path) = &settings.tls.cacert {
        // If there are several authorities, the replaced ones expire first.
        let found = certificates::read(path).into_iter().max_by_key(ends);
        findings.push(of_file(path, "authority", found, now));
    }
    findings
}

fn of_file(path: &Path, what: &str, found: Option<Certificate>, now: Duration) -> Finding {
    let object = path.display().to_string();
    match found {
        Some(found) => certificate::check_certificate(&object, what, &found, now),
        None => Finding::unusable(
            "certificate",
            &object,
            "it contains no certificate that dlock can read",
        ),
    }
}

/// Prints the report to stdout.
fn print(report: &DoctorReport, json: bool) -> Result<(), Failure> {
    let text = if json {
        // Strings and numbers always serialise.
        serde_json::to_string_pretty(report).unwrap_or_default() + "\n"
    } else {
        let text = report_text(report);
        if stdout::has_colours() {
            coloured(&text)
        } else {
            text
        }
    };
    stdout::print(&text).context("cannot write what was found")?;
    Ok(())
}

/// The report for people: the findings, the settings, and the verdict.
fn report_text(report: &DoctorReport) -> String {
    let mut findings = Vec::new();
    for finding in &report.findings {
        let level = level_name(finding.level);
        let row = [level, finding.check, &finding.object, &finding.says];
        findings.push(row.map(str::to_owned).to_vec());
        // Below its row, under the second column.
        let hint = finding.hint.as_ref();
        findings.extend(hint.map(|hint| vec![String::new(), format!("hint: {hint}")]));
    }
    let mut settings = vec![["setting", "value", "from"].map(str::to_owned).to_vec()];
    for origin in report.settings {
        settings.push(
            [origin.option, &origin.value, &origin.source]
                .map(printable)
                .to_vec(),
        );
    }
    format!(
        "{}\n{}\n{}\n",
        table(&findings),
        table(&settings),
        verdict(&report.findings)
    )
}

/// The levels at the beginnings of the lines in colour, which makes no column wider.
fn coloured(text: &str) -> String {
    let (findings, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    let line = |line: &str| {
        let levels = [Level::Ok, Level::Warning, Level::Unusable];
        let level = levels.into_iter().find_map(|level| {
            let rest = line.strip_prefix(level_name(level))?;
            rest.starts_with(' ').then_some((level, rest))
        });
        level.map_or_else(
            || line.to_owned(),
            |(level, rest)| {
                // Green, yellow, red (console_codes(4)).
                let colour = match level {
                    Level::Ok => 32,
                    Level::Warning => 33,
                    Level::Unusable => 31,
                };
                format!("\u{1b}[{colour}m{}\u{1b}[m{rest}", level_name(level))
            },
        )
    };
    let findings: Vec<String> = findings.lines().map(line).collect();
    format!("{}\n\n{rest}", findings.join("\n"))
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Unusable => "unusable",
    }
}

fn verdict(findings: &[Finding]) -> String {
    let count = |level| {
        findings
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    };
    match (count(Level::Unusable), count(Level::Warning)) {
        (0, 0) => "no problem was found".to_owned(),
        (0, warnings) => format!("locks work; warnings: {warnings}"),
        (_, _) => "locks do not work here".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_levels_are_coloured() {
        let text = "ok       cluster  ok\n         hint: x\nunusable key      warning\n\nsetting  value\nok       y\n";
        assert_eq!(
            coloured(text),
            "\u{1b}[32mok\u{1b}[m       cluster  ok\n         hint: x\n\u{1b}[31munusable\u{1b}[m key      warning\n\nsetting  value\nok       y\n"
        );
    }
}

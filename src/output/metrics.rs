//! The Prometheus text of `--metrics`: the totals of all runs, parsed, increased and written.
//! It must not know where the file is, nor how it is replaced.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::core::run_stats::{Outcome, RunReport};
use crate::core::text::escaped;

/// All locks by their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Metrics(BTreeMap<String, Values>);

/// The values of one lock, in the order of [`FAMILIES`]; `None` is unknown.
type Values = [Option<f64>; FAMILIES.len()];

/// One metric of every lock.
struct Family {
    name: &'static str,
    help: &'static str,
    counts: bool,
}

const RUNS: usize = 0;
const CONFLICTS: usize = 1;
const LOSSES: usize = 2;
const FAILURES: usize = 3;
const WAITED: usize = 4;
const HELD: usize = 5;
const SLACK: usize = 6;
const SUCCESS: usize = 7;

const FAMILIES: [Family; 8] = [
    counter("dlock_runs", "Number of times that the lock was acquired"),
    counter(
        "dlock_conflicts",
        "Number of runs that did not get the lock, or were not due",
    ),
    counter("dlock_losses", "Number of times that the lock was lost"),
    counter(
        "dlock_failures",
        "Number of times that dlock failed, or could not start or kill the command",
    ),
    counter("dlock_wait_seconds", "Time spent waiting for the lock"),
    counter("dlock_hold_seconds", "Time for which the lock was held"),
    gauge(
        "dlock_smallest_slack_seconds",
        "Smallest time left until the stop of the command, in the last run that needed a renewal",
    ),
    gauge(
        "dlock_last_success_timestamp_seconds",
        "Time of the last run that ended with status 0",
    ),
];

const fn counter(name: &'static str, help: &'static str) -> Family {
    let counts = true;
    Family { name, help, counts }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    let counts = false;
    Family { name, help, counts }
}

impl Family {
    /// The name of the sample at the beginning of a line.
    fn sample(&self) -> String {
        let total = if self.counts { "_total" } else { "" };
        format!("{}{total}", self.name)
    }
}

/// The names of the samples, and what they mean, for the man page.
pub fn table() -> impl Iterator<Item = (String, &'static str)> {
    FAMILIES.iter().map(|family| (family.sample(), family.help))
}

impl Metrics {
    /// Adds a run that ended at `since_1970`, in seconds of the wall clock.
    pub(crate) fn add(&mut self, account: &RunReport, since_1970: f64) {
        let values = self.0.entry(escaped(&account.name)).or_default();
        let failed = matches!(
            account.outcome,
            Outcome::Failed | Outcome::NotStarted | Outcome::Unkillable
        );
        let one = |happened: bool| if happened { 1.0 } else { 0.0 };
        let counts = [
            (RUNS, one(account.token.is_some())),
            (CONFLICTS, one(account.outcome == Outcome::Busy)),
            (LOSSES, one(account.outcome == Outcome::Lost)),
            (FAILURES, one(failed)),
            (WAITED, account.waited_seconds),
            (HELD, account.held_seconds),
        ];
        for (family, more) in counts {
            *values[family].get_or_insert(0.0) += more;
        }
        if account.smallest_slack_seconds.is_some() {
            values[SLACK] = account.smallest_slack_seconds;
        }
        if account.outcome == Outcome::Completed && account.exit_code == 0 {
            values[SUCCESS] = Some(since_1970);
        }
    }

    /// Parses the text of [`Self::to_text`]; the error names the first wrong line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut metrics = Self::default();
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let sample =
                sample(line).ok_or_else(|| format!("line {} was not written by dlock", number + 1));
            let (family, lock, value) = sample?;
            metrics.0.entry(lock).or_default()[family] = Some(value);
        }
        Ok(metrics)
    }

    /// The text format that Prometheus' node exporter reads.
    pub(crate) fn to_text(&self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode_registry(&mut text, &registry);
        // OpenMetrics, which the crate writes, names a counter without `_total` in its metadata. The older format has no
        // such suffix: there both names must be the same, or the type is unknown.
        for Family { name, .. } in FAMILIES.iter().filter(|family| family.counts) {
            for word in ["HELP", "TYPE"] {
                let told = format!("# {word} {name} ");
                text = text.replace(&told, &format!("# {word} {name}_total "));
            }
        }
        text
    }
}

/// A family, a lock and a value: `name{lock="..."} value`.
fn sample(line: &str) -> Option<(usize, String, f64)> {
    let (name, rest) = line.split_once("{lock=\"")?;
    let family = FAMILIES.iter().position(|family| family.sample() == name)?;
    let (lock, value) = rest.rsplit_once("\"} ")?;
    let value = value.parse().ok().filter(|value: &f64| value.is_finite())?;
    Some((family, unescaped(lock)?, value))
}

/// The value of a label; `None` if it ends early or has an escape that the format does not have.
fn unescaped(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        plain.push(match character {
            '"' => return None,
            '\\' => match rest.next()? {
                'n' => '\n',
                escaped @ ('"' | '\\') => escaped,
                _ => return None,
            },
            character => character,
        });
    }
    Some(plain)
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for (index, family) in FAMILIES.iter().enumerate() {
            let known: Vec<(&String, f64)> = self
                .0
                .iter()
                .filter_map(|(lock, values)| Some((lock, values[index]?)))
                .collect();
            if known.is_empty() {
                continue;
            }
            let kind = if family.counts {
                ConstCounter::new(0.0).metric_type()
            } else {
                ConstGauge::new(0.0).metric_type()
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (lock, value) in known {
                let labels = [("lock", lock.as_str())];
                let metric = metric.encode_family(&labels)?;
                if family.counts {
                    ConstCounter::new(value).encode(metric)?;
                } else {
                    ConstGauge::new(value).encode(metric)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn account(name: &str, outcome: Outcome) -> RunReport {
        RunReport {
            name: name.to_owned(),
            outcome,
            exit_code: 0,
            signal: None,
            reason: None,
            token: (outcome == Outcome::Completed).then_some(7),
            also: Vec::new(),
            began: String::new(),
            ended: String::new(),
            waited_seconds: 0.5,
            held_seconds: 2.25,
            proofs: 1,
            smallest_slack_seconds: None,
            endpoints_from: None,
        }
    }

    #[test]
    fn a_first_run_is_written_as_node_exporter_reads_it() {
        let mut metrics = Metrics::default();
        let run = RunReport {
            smallest_slack_seconds: Some(3.5),
            ..account("a\"b\\", Outcome::Completed)
        };
        metrics.add(&run, 1_795_428_000.5);
        let text = metrics.to_text();
        for line in [
            "# HELP dlock_runs_total Number of times that the lock was acquired",
            "# TYPE dlock_runs_total counter",
            r#"dlock_runs_total{lock="a\"b\\"} 1.0"#,
            r#"dlock_losses_total{lock="a\"b\\"} 0.0"#,
            "# TYPE dlock_wait_seconds_total counter",
            r#"dlock_wait_seconds_total{lock="a\"b\\"} 0.5"#,
            r#"dlock_hold_seconds_total{lock="a\"b\\"} 2.25"#,
            "# TYPE dlock_smallest_slack_seconds gauge",
            r#"dlock_smallest_slack_seconds{lock="a\"b\\"} 3.5"#,
            r#"dlock_last_success_timestamp_seconds{lock="a\"b\\"} 1795428000.5"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no {line}\n{text}");
        }
        assert!(!text.contains("# EOF"));
        assert_eq!(Metrics::parse(&text), Ok(metrics));
    }

    #[test]
    fn every_ending_is_counted_where_it_belongs() {
        let mut metrics = Metrics::default();
        for outcome in Outcome::ALL {
            metrics.add(&account("x", outcome), 1.0);
        }
        let failed = RunReport {
            exit_code: 3,
            ..account("x", Outcome::Completed)
        };
        metrics.add(&failed, 2.0);
        let values = metrics.0["x"];
        let count = |family: usize| values[family].unwrap_or(f64::NAN).to_string();
        assert_eq!(
            [RUNS, CONFLICTS, LOSSES, FAILURES, SUCCESS].map(count),
            ["2", "1", "1", "3", "1"]
        );
        assert_eq!([WAITED, HELD].map(count), ["5", "22.5"]);
        assert_eq!(values[SLACK], None);
    }

    #[test]
    fn a_foreign_file_is_refused() {
        for text in [
            "up 1",
            "dlock_runs{lock=\"x\"} 1",
            "dlock_runs_total{lock=\"x} 1",
            "dlock_runs_total{lock=\"x\"} NaN",
            "dlock_runs_total{lock=\"x\",a=\"b\"} 1",
            "dlock_runs_total{lock=\"\\x\"} 1",
            "{\"name\":\"x\"}",
        ] {
            let parsed = Metrics::parse(&format!("# HELP x\n{text}\n"));
            assert!(
                parsed.is_err_and(|why| why.starts_with("line 2 ")),
                "{text}"
            );
        }
        assert_eq!(Metrics::parse("\n# nothing\n"), Ok(Metrics::default()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_name_survives_a_round_trip(name in "(?s).{0,60}", waited in 0.0..1e12) {
            let mut metrics = Metrics::default();
            metrics.add(&RunReport { waited_seconds: waited, ..account(&name, Outcome::Lost) }, 1.0);
            let text = metrics.to_text();
            prop_assert!(!text.replace('\n', "").chars().any(crate::core::text::is_hostile));
            prop_assert_eq!(Metrics::parse(&text), Ok(metrics));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
            let _ = Metrics::parse(&text);
        }
    }
}

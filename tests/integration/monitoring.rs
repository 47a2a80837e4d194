//! The alert rules and the dashboard in contrib: on invented metrics, and on those that dlock has really written, by the programs that
//! read them.
//! It must not know how dlock counts.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::support::{
    Dlock, Etcd, LIMIT, Running, Scratch, eventually, free_port, hold, http_get, unique,
};

const RULES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/contrib/prometheus/dlock.rules.yml"
);
const TESTS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/contrib/prometheus/dlock.test.yml"
);
const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/grafana/dlock.json");

fn yaml(path: &str) -> Value {
    let program =
        "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let json = Dlock::program(["/usr/bin/python3", "-c", program, path]).finish();
    serde_json::from_str(&json.expect_code(0).stdout).expect("JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// The names of the alerts.
fn alerts() -> BTreeSet<String> {
    let rules = yaml(RULES);
    let groups = list(&rules["groups"]).iter();
    let rules = groups.flat_map(|group| list(&group["rules"]));
    rules.map(|rule| text(&rule["alert"]).to_owned()).collect()
}

#[test]
fn each_alert_fires_and_does_not_fire() {
    Dlock::program(["promtool", "check", "rules", RULES])
        .finish()
        .expect_code(0);
    Dlock::program(["promtool", "test", "rules", TESTS])
        .finish()
        .expect_code(0);
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for test in list(&yaml(TESTS)["tests"]) {
        for case in list(&test["alert_rule_test"]) {
            let which = if list(&case["exp_alerts"]).is_empty() {
                &mut silent
            } else {
                &mut fires
            };
            which.insert(text(&case["alertname"]).to_owned());
        }
    }
    assert_eq!(fires, alerts());
    assert_eq!(silent, alerts());
}

/// Serves the metrics as a node exporter does, until the tests end.
fn export(file: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let metrics = fs::read_to_string(&file).unwrap_or_default();
            let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n";
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(format!("{head}{metrics}").as_bytes());
        }
    });
    port
}

struct Prometheus {
    port: u16,
    _process: Running,
    _scratch: Scratch,
}

impl Prometheus {
    /// Reads the metrics on `exporter` every second, and has the alert rules.
    fn start(exporter: u16) -> Self {
        let (port, scratch) = (free_port(), Scratch::new());
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{RULES}']\n\
             scrape_configs: [{{job_name: node, static_configs: [{{targets: ['127.0.0.1:{exporter}']}}]}}]\n"
        );
        let process = Dlock::program([
            "prometheus".to_owned(),
            format!("--config.file={}", scratch.write("prometheus.yml", &config)),
            format!("--storage.tsdb.path={}", scratch.file("data")),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ])
        .start();
        Self {
            port,
            _process: process,
            _scratch: scratch,
        }
    }

    /// The answer of its API; `None` if it does not serve yet.
    fn get(&self, path: &str) -> Option<Value> {
        let answer = http_get(self.port, &format!("/api/v1/{path}")).ok()?;
        let answer: Value = serde_json::from_str(&answer).ok()?;
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        Some(answer["data"].clone())
    }

    /// The series that a query finds now, with finite values.
    fn query(&self, query: &str) -> Vec<Value> {
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let Some(data) = self.get(&format!("query?query={query}")) else {
            return Vec::new();
        };
        let is_finite = |series: &&Value| {
            let value = text(&series["value"][1]).parse::<f64>();
            value.is_ok_and(f64::is_finite)
        };
        list(&data["result"])
            .iter()
            .filter(is_finite)
            .cloned()
            .collect()
    }

    /// The alerts that fire.
    fn firing(&self) -> BTreeSet<String> {
        let data = self.get("alerts").unwrap_or_default();
        let all = data["alerts"].as_array().into_iter().flatten();
        let firing = all.filter(|alert| alert["state"] == "firing");
        firing
            .map(|alert| text(&alert["labels"]["alertname"]).to_owned())
            .collect()
    }
}

/// All queries of the dashboard, for all locks.
fn queries() -> Vec<String> {
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(DASHBOARD).expect("a dashboard")).expect("JSON");
    let panels = list(&dashboard["panels"]).iter();
    let targets = panels.flat_map(|panel| list(&panel["targets"]));
    let queries = targets.map(|target| text(&target["expr"]).replace("$lock", ".*"));
    queries.collect()
}

/// The metrics of dlock that a file names.
fn metrics_in(file: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(file).expect("a file");
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|word| word.starts_with("dlock_"));
    names.map(str::to_owned).collect()
}

/// A run that ends well, one that is given up, one that fails, and one that loses its lock.
fn run_once_in_every_way(etcd: &Etcd, name: &str, metrics: &str) {
    let option = format!("--metrics={metrics}");
    let on = |words: &[&str], code| {
        let words = [&["--ttl=5", &option], words].concat();
        Dlock::on(etcd).run(words).finish().expect_code(code);
    };
    on(&[name, "sleep", "2.5"], 0);
    on(&[name, "/nowhere/at/all"], 127);
    let mut holder = hold(Dlock::on(etcd), &["--ttl=5", &option], name);
    on(&["-n", name, "true"], 75);
    etcd.revoke(&etcd.queue_of(name, 1)[0].lease_hex());
    holder.wait().expect_code(121);
}

/// "share/dlock/prometheus/dlock.rules.yml has alerts ... share/dlock/grafana/dlock.json is a dashboard for Grafana"
/// (dlock-report(5)): both name metrics that dlock writes, and every query has an answer.
#[test]
fn rules_and_dashboard_find_the_metrics_that_dlock_writes() {
    let etcd = Etcd::shared();
    let (name, scratch) = (unique("monitored"), Scratch::new());
    let file = scratch.file("dlock.prom");
    run_once_in_every_way(etcd, &name, &file);
    let written = metrics_in(&file);
    for other in [RULES, DASHBOARD] {
        let unknown: Vec<String> = metrics_in(other).difference(&written).cloned().collect();
        assert!(unknown.is_empty(), "{other} names {unknown:?}");
    }

    let prometheus = Prometheus::start(export(file.clone()));
    eventually(LIMIT, "the metrics are read", || {
        prometheus.query("dlock_runs_total").len() == 1
    });
    // A first value is no increase.
    run_once_in_every_way(etcd, &name, &file);
    let queries = queries();
    assert!(queries.len() > 10, "{queries:?}");
    for query in queries {
        assert!(!query.contains('$'), "{query}");
        eventually(LIMIT, &query, || !prometheus.query(&query).is_empty());
    }
    // A renewal with a TTL of 5 s leaves less than 3 s.
    eventually(LIMIT, "the alerts fire", || {
        let wanted = ["DlockFailed", "DlockLockLost", "DlockSmallSlack"];
        prometheus.firing() == wanted.map(str::to_owned).into()
    });
}

/// Fields without which Grafana shows nothing, or not what is meant; each panel has a place of its own.
#[test]
fn the_dashboard_is_complete() {
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(DASHBOARD).expect("a dashboard")).expect("JSON");
    for key in ["title", "uid", "description"] {
        assert!(!text(&dashboard[key]).is_empty());
    }
    assert!(dashboard["schemaVersion"].is_u64() && dashboard["id"].is_null());
    let variables = list(&dashboard["templating"]["list"]).iter();
    let variables: Vec<&str> = variables.map(|variable| text(&variable["name"])).collect();
    assert_eq!(variables, ["datasource", "lock"]);
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard["panels"]) {
        assert!(ids.insert(panel["id"].as_u64().expect("a number")));
        assert!(["stat", "table", "timeseries"].contains(&text(&panel["type"])));
        for key in ["title", "description"] {
            assert!(!text(&panel[key]).is_empty(), "{panel}");
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}");
        let place = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
        assert!(place("x") + place("w") <= 24, "{panel}");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(cells.insert((x, y)), "covered: {panel}");
            }
        }
        let mut references = BTreeSet::new();
        for target in list(&panel["targets"]) {
            assert!(references.insert(text(&target["refId"])));
            assert_eq!(target["datasource"], panel["datasource"]);
        }
    }
}

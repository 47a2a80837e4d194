//! Number of round trips that a run waits for a far server.
//! It must not know the requests.

use std::process::Command;
use std::time::Duration;

use crate::baseline;
use crate::report::{Goal, Table};
use crate::sample::Sample;
use crate::support::{Certificates, Etcd, Link, Scratch, boot_clock, since};
use crate::tool::Tool;

/// The latency of a round trip.
const ROUND_TRIP: Duration = Duration::from_millis(50);

pub(crate) fn measure(runs: usize, peers: &mut Table, beside_floor: &mut Table) {
    let runs = (runs / 10).max(5);
    let mut row = |what: &str, goal, at: &str, cacert: &str| {
        let mut lines = [Tool::Dlock, Tool::Etcdctl]
            .map(|tool| tool.line(at, "", "far", "30"))
            .to_vec();
        if cacert != baseline::PLAIN {
            for line in &mut lines {
                line.insert(1, format!("--cacert={cacert}"));
            }
        }
        lines.extend(
            [baseline::PIPELINED, baseline::SEQUENTIAL]
                .map(|way| baseline::line(way, at, cacert, "floor")),
        );
        let samples = alternate(runs, &lines).into_iter().map(Some);
        let samples: Vec<Option<Sample>> = samples.collect();
        let [dlock, etcdctl, bare, plain] = &samples[..] else {
            return;
        };
        let beside = [dlock, etcdctl, &None, &None].map(Clone::clone);
        peers.row(what, "round trips", beside, goal);
        let beside = [dlock, bare, plain].map(Clone::clone);
        beside_floor.row(what, "round trips", beside, Goal::None);
    };

    let etcd = Etcd::start();
    let link = Link::far(etcd.port(), ROUND_TRIP / 2);
    row(
        "`x true` over a link of 50 ms",
        Goal::AtMost(3.2),
        &link.endpoint(),
        baseline::PLAIN,
    );

    let made = Certificates::new();
    let etcd = Etcd::start_tls(&made);
    let link = Link::far(etcd.port(), ROUND_TRIP / 2);
    let at = link.endpoint().replace("http:", "https:");
    row(
        "the same with TLS",
        Goal::AtMost(4.2),
        &at,
        &made.file("ca.pem"),
    );
}

/// Runs all tools in turn; returns the time of each in round trips.
fn alternate(runs: usize, lines: &[Vec<String>]) -> Vec<Sample> {
    let mut spans = vec![Vec::new(); lines.len()];
    let home = Scratch::new();
    for _ in 0..runs {
        for (line, spans) in lines.iter().zip(&mut spans) {
            let began_at = boot_clock();
            let output = Command::new(&line[0])
                .args(&line[1..])
                .arg("true")
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default())
                .env("HOME", home.path())
                .envs(Tool::VARIABLES)
                .output()
                .expect("the program starts");
            spans.push(since(began_at).as_secs_f64() / ROUND_TRIP.as_secs_f64());
            assert!(output.status.success(), "{line:?}: {output:?}");
        }
    }
    spans.into_iter().map(Sample::new).collect()
}

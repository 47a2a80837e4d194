//! The counters of a server, and the kernel's counters of its process.
//! It must not know which client sent which request.

use std::fs;

use crate::support::{Etcd, Metrics, boot_clock};

/// The counters of an etcd at one moment.
pub(crate) struct Counters {
    metrics: Metrics,
    cpu: f64,
    at: f64,
}

/// The difference of the counters between two moments.
pub(crate) struct Work {
    pub(crate) seconds: f64,
    /// Unary requests and messages of streams.
    pub(crate) requests: f64,
    /// Number of ranges and transactions.
    pub(crate) reads: f64,
    /// Number of events sent to watchers.
    pub(crate) events: f64,
    /// Share of one core.
    pub(crate) cpu_percent: f64,
}

impl Counters {
    pub(crate) fn of(etcd: &Etcd) -> Self {
        Self {
            metrics: Metrics::of(etcd),
            cpu: cpu_seconds(etcd.process().0),
            at: boot_clock().as_secs_f64(),
        }
    }

    pub(crate) fn work_since(&self, earlier: &Self) -> Work {
        let grown =
            |name: &str, labels: &[&str]| self.metrics.grown(&earlier.metrics, name, labels);
        let seconds = self.at - earlier.at;
        let handled = |method: &str| grown("grpc_server_handled_total", &[method]);
        Work {
            seconds,
            requests: grown("grpc_server_msg_received_total", &[]),
            reads: handled("grpc_method=\"Range\"") + handled("grpc_method=\"Txn\""),
            events: grown("etcd_debugging_mvcc_events_total", &[]),
            cpu_percent: (self.cpu - earlier.cpu) / seconds * 100.0,
        }
    }
}

/// Seconds of processor time that a process has used.
pub(crate) fn cpu_seconds(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    // utime and stime, fields 14 and 15 of proc_pid_stat(5); two fields are before the bracket.
    let ticks: f64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    // USER_HZ, which Linux has kept at 100 for programs (`times(2)`).
    ticks / 100.0
}

/// A value in KiB from one of the status files of a process.
pub(crate) fn kibibytes(pid: i32, file: &str, name: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}

/// Resident memory of a process, in MiB.
pub(crate) fn resident(pid: i32) -> f64 {
    kibibytes(pid, "status", "VmRSS:") / 1024.0
}

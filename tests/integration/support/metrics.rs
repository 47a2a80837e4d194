//! The counters of an etcd, in Prometheus' text form.
//! It must not know which client sent which request.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::Etcd;

/// The counters of an etcd at one moment.
pub(crate) struct Metrics(String);

impl Metrics {
    pub(crate) fn of(etcd: &Etcd) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", etcd.port())).expect("etcd listens");
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            .expect("etcd reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("etcd answers");
        Self(text)
    }

    /// How much a counter has grown since `earlier`, over all of its series that have these labels.
    pub(crate) fn grown(&self, earlier: &Self, name: &str, labels: &[&str]) -> f64 {
        self.sum(name, labels) - earlier.sum(name, labels)
    }

    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let lines = self.0.lines().filter_map(|line| line.strip_prefix(name));
        let lines = lines.filter(|rest| rest.starts_with(['{', ' ']));
        lines
            .filter(|rest| labels.iter().all(|label| rest.contains(label)))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

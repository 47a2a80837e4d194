//! The counters of an etcd, in Prometheus' text form, and requests by HTTP.
//! It must not know which client sent which request.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use super::Etcd;

/// The body of the answer of a server on this machine.
pub(crate) fn http_get(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    Ok(body.to_owned())
}

/// The counters of an etcd at one moment.
pub(crate) struct Metrics(String);

impl Metrics {
    pub(crate) fn of(etcd: &Etcd) -> Self {
        Self(http_get(etcd.port(), "/metrics").expect("etcd answers"))
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

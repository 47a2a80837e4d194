//! Servers for `consul lock`: one agent or three of one cluster, with data that outlives a kill.
//! It must not know the faults.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Dlock, LIMIT, Process, Running, Scratch, eventually, free_port};

/// One server; it is killed on drop.
pub(crate) struct Agent {
    http: u16,
    server: u16,
    line: Vec<String>,
    running: Mutex<Running>,
    _data: Scratch,
}

/// The servers of one cluster.
pub(crate) struct Agents(Vec<Agent>);

impl Agents {
    /// Starts `count` servers and waits for a leader.
    pub(crate) fn start(count: usize) -> Self {
        let serf: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let agents = Self(
            (0..count)
                .map(|number| Agent::start(number, &serf))
                .collect(),
        );
        agents.leader();
        agents
    }

    pub(crate) fn all(&self) -> &[Agent] {
        &self.0
    }

    /// The number of the current leader.
    pub(crate) fn leader(&self) -> usize {
        eventually(LIMIT, "consul has a leader", || {
            let leader = self.0[0].request("GET", "/v1/status/leader")?;
            let port = leader.as_str()?.rsplit_once(':')?.1.parse::<u16>().ok()?;
            self.0.iter().position(|agent| agent.server == port)
        })
    }
}

impl Agent {
    fn start(number: usize, serf: &[u16]) -> Self {
        let data = Scratch::new();
        let (http, server) = (free_port(), free_port());
        let mut line = vec![
            "consul".to_owned(),
            "agent".to_owned(),
            "-server".to_owned(),
            format!("-bootstrap-expect={}", serf.len()),
            format!("-data-dir={}", data.file("data")),
            format!("-node=n{number}"),
            format!("-http-port={http}"),
            format!("-server-port={server}"),
            format!("-serf-lan-port={}", serf[number]),
        ];
        line.extend(
            [
                "-serf-wan-port=-1",
                "-dns-port=-1",
                "-bind=127.0.0.1",
                "-client=127.0.0.1",
                "-log-level=err",
                // consul's own documentation advises this for production.
                "-hcl=performance { raft_multiplier = 1 }",
            ]
            .map(str::to_owned),
        );
        line.extend(
            serf.iter()
                .map(|port| format!("-retry-join=127.0.0.1:{port}")),
        );
        let running = Mutex::new(Dlock::program(&line).start());
        Self {
            http,
            server,
            line,
            running,
            _data: data,
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().expect("no panic while locked")
    }

    pub(crate) fn process(&self) -> Process {
        self.running().process()
    }

    pub(crate) fn port(&self) -> u16 {
        self.http
    }

    pub(crate) fn kill(&self) {
        let mut running = self.running();
        running.signal(crate::support::Signal::KILL);
        running.wait();
    }

    /// Kills the server and starts it again; does not wait for it.
    pub(crate) fn revive(&self) {
        self.kill();
        *self.running() = Dlock::program(&self.line).start();
    }

    pub(crate) fn restart(&self) {
        self.revive();
        eventually(LIMIT, "consul comes back", || {
            let leader = self.request("GET", "/v1/status/leader")?;
            (leader != "").then_some(())
        });
    }

    /// The session that holds the lock, once a waiter is behind it.
    pub(crate) fn contended(&self, lock: &str) -> Option<String> {
        let sessions = self.request("GET", "/v1/session/list")?;
        let entry = self.request("GET", &format!("/v1/kv/{lock}/.lock"))?;
        let holder = entry[0]["Session"].as_str()?.to_owned();
        (sessions.as_array()?.len() > 1).then_some(holder)
    }

    pub(crate) fn destroy(&self, session: &str) {
        let done = self.request("PUT", &format!("/v1/session/destroy/{session}"));
        assert_eq!(done, Some(Value::Bool(true)), "the session is destroyed");
    }

    pub(crate) fn delete(&self, lock: &str) {
        let done = self.request("DELETE", &format!("/v1/kv/{lock}/.lock"));
        assert_eq!(done, Some(Value::Bool(true)), "the key is deleted");
    }

    /// One request of the HTTP API; `None` when it is refused or not answered.
    fn request(&self, method: &str, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).ok()?;
        let patience = Some(Duration::from_secs(5));
        stream.set_read_timeout(patience).ok()?;
        write!(stream, "{method} {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let good = head.split(' ').nth(1).is_some_and(|status| status == "200");
        good.then(|| serde_json::from_str(body).ok())?
    }
}

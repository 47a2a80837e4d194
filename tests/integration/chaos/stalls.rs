//! The times at which this machine was too busy for any promise: it did not run us in time, or a member did not answer in
//! time.
//! It must not know the faults: a member that is stopped on purpose is late, too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error};
use tokio::time::{sleep, timeout};

use crate::support::{Cluster, boot_clock};

/// The man page's promise needs a kernel that runs a process within half a second; a renewal of a short lease times out
/// after 625 ms.
const LATE: Duration = Duration::from_millis(400);
const PACE: Duration = Duration::from_millis(20);
const ASK_PACE: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_secs(5);

/// Begin and end.
type Spans = Arc<Mutex<Vec<(Duration, Duration)>>>;

/// Samples the machine and its members repeatedly.
pub(super) struct Stalls {
    of_us: Spans,
    of_members: Spans,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stalls {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let (of_us, of_members) = (Spans::default(), Spans::default());
        let over = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let (spans, ended) = (Arc::clone(&of_us), Arc::clone(&over));
        threads.push(thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                let from = boot_clock();
                thread::sleep(PACE);
                record(&spans, from);
            }
        }));
        for member in cluster.members() {
            let (endpoint, spans, ended) = (
                member.endpoint(),
                Arc::clone(&of_members),
                Arc::clone(&over),
            );
            threads.push(thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let runtime = runtime.expect("threads and descriptors are available");
                while !ended.load(Ordering::SeqCst) {
                    // A failed request is no answer either, nor is there one until the next attempt.
                    let _ = runtime.block_on(probe(&endpoint, &spans, &ended));
                    let from = boot_clock().saturating_sub(LATE);
                    runtime.block_on(async { sleep(ASK_PACE).await });
                    record(&spans, from);
                }
            }));
        }
        Self {
            of_us,
            of_members,
            over,
            threads,
        }
    }

    /// Whether processes of this machine did not run in time between these times.
    pub(super) fn of_us(&self, from: Duration, to: Duration) -> bool {
        meets(&self.of_us, from, to)
    }

    /// The same, or members did not answer in time.
    pub(super) fn of_any(&self, from: Duration, to: Duration) -> bool {
        self.of_us(from, to) || meets(&self.of_members, from, to)
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn meets(spans: &Spans, from: Duration, to: Duration) -> bool {
    let spans = spans.lock().expect("no panic while locked");
    spans
        .iter()
        .any(|(start, end)| *start <= to && *end >= from)
}

/// Records what began at `from` and has just ended, if it took too long.
fn record(spans: &Spans, from: Duration) {
    let now = boot_clock();
    if now.saturating_sub(from) > LATE {
        let mut spans = spans.lock().expect("no panic while locked");
        spans.push((from, now));
    }
}

/// Reads from one member repeatedly, until that fails.
async fn probe(endpoint: &str, spans: &Spans, over: &AtomicBool) -> Result<(), Error> {
    let options = ConnectOptions::new().with_connect_timeout(LIMIT);
    let client = Client::connect([endpoint], Some(options)).await?;
    let mut kv = client.kv_client();
    while !over.load(Ordering::SeqCst) {
        let from = boot_clock();
        let answer = timeout(LIMIT, kv.get("lateness", None)).await;
        record(spans, from);
        match answer {
            Ok(answer) => drop(answer?),
            Err(_) => return Ok(()),
        }
        sleep(ASK_PACE).await;
    }
    Ok(())
}

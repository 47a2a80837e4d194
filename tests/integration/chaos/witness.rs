//! The history of all keys of dlock, as every member reports it from the first revision on: etcd's view of the events.
//! It must not know any dlock's output, nor the faults.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Event, EventType, WatchOptions, WatchResponse};
use tokio::time::{sleep, timeout};

use crate::support::{Cluster, boot_clock};

/// Number of the last events that are kept for people.
const TOLD: usize = 20_000;

/// Number of characters of a value that are kept for people.
const SHOWN: usize = 300;

/// Time limit of an attempt to connect to a member, before the next one.
const CONNECT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);

/// An entry of a queue, from its creation to its end.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) lock: String,
    /// In hexadecimal, as the key has it.
    pub(super) lease: String,
    /// The revision that created it.
    pub(super) token: i64,
    /// The number of the run, by its note.
    pub(super) run: Option<usize>,
    /// A time at or after its creation.
    pub(super) made_at: Duration,
    /// The longest grace that was announced for the command.
    pub(super) grace: Duration,
    /// Whether another client requested that its owner give up.
    pub(super) asked: bool,
    /// Whether it is a cooldown or kept for a command.
    pub(super) cooling: bool,
    pub(super) gone: Option<Gone>,
}

/// The end of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    /// A time at or after its end.
    pub(super) at: Duration,
    /// Whether the same revision wrote a release record.
    pub(super) released: bool,
}

impl Place {
    /// Whether its owner released it, or its cooldown is over.
    pub(super) fn ended_well(&self) -> bool {
        self.cooling || self.gone.is_some_and(|gone| gone.released)
    }

    /// The time of its end, if its owner did not release it, as far as etcd can tell.
    pub(super) fn vanished_at(&self) -> Option<Duration> {
        self.gone.filter(|_| !self.ended_well()).map(|gone| gone.at)
    }
}

/// All events so far.
#[derive(Default)]
pub(super) struct History {
    /// The last revision whose events are complete.
    heard_to: i64,
    places: Vec<Place>,
    /// The keys of the current entries, and their number in `places`.
    standing: BTreeMap<String, usize>,
    told: VecDeque<(Duration, String)>,
}

impl History {
    /// The current entries of one lock, the first first.
    pub(super) fn queue(&self, lock: &str) -> Vec<&Place> {
        let mut queue: Vec<&Place> = (self.standing.values())
            .map(|number| &self.places[*number])
            .filter(|place| place.lock == lock)
            .collect();
        queue.sort_by_key(|place| place.token);
        queue
    }

    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    /// The entry of the holder with this token.
    pub(super) fn entry(&self, token: i64) -> Option<&Place> {
        self.places.iter().find(|place| place.token == token)
    }

    /// The events between two moments, for people.
    pub(super) fn describe(&self, from: Duration, to: Duration) -> String {
        let told = self.told.iter().filter(|(at, _)| (from..=to).contains(at));
        let lines: Vec<String> = told
            .map(|(at, line)| format!("    {:9.3} {line}", at.as_secs_f64()))
            .collect();
        lines.join("\n")
    }

    fn hear(&mut self, events: &[Event]) {
        let at = boot_clock();
        let revision = |event: &Event| event.kv().map_or(0, etcd_client::KeyValue::mod_revision);
        let mut rest: Vec<&Event> = events.iter().collect();
        rest.retain(|event| revision(event) > self.heard_to);
        while let Some(first) = rest.first() {
            let now = revision(first);
            let (those, later): (Vec<&Event>, Vec<&Event>) =
                rest.iter().partition(|event| revision(event) == now);
            self.pass(at, now, &those);
            self.heard_to = now;
            rest = later;
        }
    }

    /// Records the changes of one revision.
    fn pass(&mut self, at: Duration, revision: i64, events: &[&Event]) {
        let mut keys = Vec::new();
        for event in events {
            let Some(kv) = event.kv() else { continue };
            let key = String::from_utf8_lossy(kv.key()).into_owned();
            let value = String::from_utf8_lossy(kv.value()).into_owned();
            let is_put = event.event_type() == EventType::Put;
            let verb = if is_put { "put" } else { "del" };
            let shown: String = value.chars().take(SHOWN).collect();
            self.told
                .push_back((at, format!("@{revision} {verb} {key} {shown}")));
            keys.push((key, value, is_put, kv.create_revision()));
        }
        while self.told.len() > TOLD {
            self.told.pop_front();
        }
        let released: Vec<String> = keys
            .iter()
            .filter_map(|(key, _, is_put, _)| {
                let rest = is_put.then(|| key.strip_prefix("dlock/released/"))?;
                rest.map(str::to_owned)
            })
            .collect();
        for (key, value, is_put, token) in keys {
            let Some((lock, lease)) = (key.strip_prefix("dlock/lock/"))
                .and_then(|rest| rest.split_once('/'))
                .filter(|(_, lease)| lease.bytes().all(|byte| byte.is_ascii_hexdigit()))
            else {
                continue;
            };
            if !is_put {
                if let Some(number) = self.standing.remove(&key) {
                    let released = released.contains(&format!("{lock}/{lease}"));
                    self.places[number].gone = Some(Gone { at, released });
                }
                continue;
            }
            let record: serde_json::Value = serde_json::from_str(&value).unwrap_or_default();
            let number = *self.standing.entry(key.clone()).or_insert_with(|| {
                self.places.push(Place {
                    lock: lock.to_owned(),
                    lease: lease.to_owned(),
                    token,
                    run: run_of(&record),
                    made_at: at,
                    grace: Duration::ZERO,
                    asked: false,
                    cooling: false,
                    gone: None,
                });
                self.places.len() - 1
            });
            let place = &mut self.places[number];
            let grace = Duration::from_millis(record["grace_ms"].as_u64().unwrap_or_default());
            place.grace = place.grace.max(grace);
            place.asked |= !record["asked"].is_null();
            place.cooling |= record["cooling"] == true;
        }
    }
}

/// The note of a run, by which its entries are found.
pub(super) fn run_note(run: usize) -> String {
    format!("run {run}")
}

fn run_of(record: &serde_json::Value) -> Option<usize> {
    record["note"].as_str()?.strip_prefix("run ")?.parse().ok()
}

/// Watches every member; the earliest report counts, because others may be struck.
pub(super) struct Witness {
    history: Arc<Mutex<History>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Witness {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let history = Arc::new(Mutex::new(History {
            // The first revision has no event.
            heard_to: 1,
            ..History::default()
        }));
        let over = Arc::new(AtomicBool::new(false));
        let threads = cluster.members().iter().map(|member| {
            let (endpoint, history, over) =
                (member.endpoint(), Arc::clone(&history), Arc::clone(&over));
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let runtime = runtime.expect("threads and descriptors are available");
                while !over.load(Ordering::SeqCst) {
                    // The member may be down, or have compacted what another one has reported by now.
                    let _ = runtime.block_on(listen(&endpoint, &history, &over));
                    runtime.block_on(async { sleep(PAUSE).await });
                }
            })
        });
        let threads = threads.collect();
        Self {
            history,
            over,
            threads,
        }
    }

    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("no panic while locked")
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Watches one member, for as long as its connection lasts.
async fn listen(
    endpoint: &str,
    history: &Mutex<History>,
    over: &AtomicBool,
) -> Result<(), etcd_client::Error> {
    let options = ConnectOptions::new().with_connect_timeout(CONNECT);
    let client = Client::connect([endpoint], Some(options)).await?;
    let from = history.lock().expect("no panic while locked").heard_to + 1;
    let options = WatchOptions::new().with_prefix().with_start_revision(from);
    let mut watch = client.watch_client();
    let Ok(stream) = timeout(CONNECT, watch.watch("dlock/", Some(options))).await else {
        return Ok(());
    };
    let mut stream = stream?;
    while !over.load(Ordering::SeqCst) {
        match timeout(PAUSE, stream.message()).await {
            Err(_) => {}
            Ok(Ok(Some(heard))) if !heard.canceled() => hear(history, &heard),
            Ok(ended) => return ended.map(|_| ()),
        }
    }
    Ok(())
}

fn hear(history: &Mutex<History>, heard: &WatchResponse) {
    let mut history = history.lock().expect("no panic while locked");
    history.hear(heard.events());
}

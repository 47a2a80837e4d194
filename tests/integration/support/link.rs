//! A network between the program and a server that a test can break: a relay on 127.0.0.1 with orders.
//! It must not know what the bytes mean.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};

use super::boot_clock;

/// Interval at which a thread of the relay checks for a new order.
const PACE: Duration = Duration::from_millis(5);

/// The treatment of the bytes of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Keep them, and deliver all in one burst on the next `Pass`.
    Hold,
    /// Drop them silently.
    Drop,
    /// Deliver each of them this much later.
    Delay(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToServer,
    ToClient,
}

/// The part of the exchange that a trap loses. The connection is then closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The request is not sent.
    Request,
    /// The server gets the request; its answer is lost.
    Answer,
}

/// The request that a trap waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bait {
    /// A request with these bytes in it.
    Bytes(&'static str),
    /// The request after this number of packets.
    After(u32),
}

/// Loses a chosen request, or its answer, the given number of times in a row on all the links that share it.
#[derive(Debug)]
pub(crate) struct Trap {
    lost: Lost,
    bait: Bait,
    /// Number of packets that still pass.
    spare: AtomicU32,
    times: AtomicU32,
}

impl Trap {
    pub(crate) fn new(lost: Lost, bait: Bait, times: u32) -> Arc<Self> {
        let spare = match bait {
            Bait::Bytes(_) => 0,
            Bait::After(count) => count,
        };
        Arc::new(Self {
            lost,
            bait,
            spare: AtomicU32::new(spare),
            times: AtomicU32::new(times),
        })
    }

    /// The fate of these bytes on their way to the server.
    fn filter(&self, bytes: &[u8]) -> Option<Lost> {
        let one_less = |count: u32| count.checked_sub(1);
        let order = Ordering::SeqCst;
        let taken = match self.bait {
            Bait::Bytes(wanted) => {
                let mut windows = bytes.windows(wanted.len());
                windows.any(|window| window == wanted.as_bytes())
            }
            Bait::After(_) => self.spare.fetch_update(order, order, one_less).is_err(),
        };
        let taken = taken && self.times.fetch_update(order, order, one_less).is_ok();
        taken.then_some(self.lost)
    }
}

/// Time for the server to handle a request whose answer is to be lost, before its connection is closed.
const SERVED: Duration = Duration::from_millis(100);

/// How the open connections end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    /// Closed at both ends.
    Close,
    /// Closed for one direction only; the bytes of the other still pass.
    Half(Direction),
    /// Reset towards the end of this direction, as by a firewall that has lost its state; closed towards the other.
    Reset(Direction),
}

/// An order that waits for a certain request.
struct Snare {
    /// A request that contains all of these in one read triggers it.
    words: Vec<String>,
    orders: Vec<(Direction, Mode)>,
}

/// A relay to one server.
pub(crate) struct Link {
    port: u16,
    state: Arc<State>,
}

struct State {
    server: SocketAddr,
    to_server: Mutex<Mode>,
    to_client: Mutex<Mode>,
    /// Grows with every break; a connection of an older age gets `broken`.
    age: AtomicU64,
    broken: Mutex<Break>,
    trap: Mutex<Option<Arc<Trap>>>,
    /// Refuse new connections, as a closed port does.
    refuse: AtomicBool,
    listening: AtomicBool,
    over: AtomicBool,
    accepted: AtomicU64,
    snare: Mutex<Option<Snare>>,
    /// Time to open a connection in addition to the latency of its bytes: zero, as the kernel accepts it before the relay
    /// knows, or the time over a link of this length.
    handshake: Duration,
}

impl Link {
    /// A relay to the server that listens on this port of 127.0.0.1, passing everything on.
    pub(crate) fn to(server: u16) -> Self {
        Self::with_handshake(server, Duration::ZERO)
    }

    /// The same for a distant server: opening a connection takes a round trip as well.
    pub(crate) fn far(server: u16, one_way: Duration) -> Self {
        let link = Self::with_handshake(server, one_way * 2);
        link.both(Mode::Delay(one_way));
        link
    }

    fn with_handshake(server: u16, handshake: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has free ports");
        let port = listener.local_addr().expect("a bound socket").port();
        let state = Arc::new(State {
            server: SocketAddr::from(([127, 0, 0, 1], server)),
            to_server: Mutex::new(Mode::Pass),
            to_client: Mutex::new(Mode::Pass),
            age: AtomicU64::new(0),
            broken: Mutex::new(Break::Close),
            trap: Mutex::new(None),
            refuse: AtomicBool::new(false),
            listening: AtomicBool::new(true),
            over: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            snare: Mutex::new(None),
            handshake,
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || accept(port, listener, &shared));
        Self { port, state }
    }

    /// An endpoint that accepts connections and never answers.
    pub(crate) fn silent() -> Self {
        // The server's end has no reader either: the relay's own listener is the server.
        let link = Self::to(0);
        link.both(Mode::Drop);
        link
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port of 127.0.0.1 that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The order for one direction, from now on.
    pub(crate) fn set(&self, direction: Direction, mode: Mode) {
        *self.state.mode(direction) = mode;
    }

    /// The order for both directions, from now on.
    pub(crate) fn both(&self, mode: Mode) {
        self.set(Direction::ToServer, mode);
        self.set(Direction::ToClient, mode);
    }

    /// Executes these orders when a request with all of these words arrives, before it is passed on.
    pub(crate) fn snare(&self, words: &[&str], orders: &[(Direction, Mode)]) {
        let snare = Snare {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            orders: orders.to_vec(),
        };
        *self.state.snare.lock().expect("no panic while locked") = Some(snare);
    }

    /// Whether that request has arrived.
    pub(crate) fn sprung(&self) -> bool {
        let snare = self.state.snare.lock().expect("no panic while locked");
        snare.is_none()
    }

    /// Closes every connection; new ones are accepted.
    pub(crate) fn cut(&self) {
        self.break_connection(Break::Close);
    }

    /// Closes one direction of every connection; new ones are accepted.
    pub(crate) fn cut_half(&self, direction: Direction) {
        self.break_connection(Break::Half(direction));
    }

    /// Resets every connection towards the end of this direction; new ones are accepted.
    pub(crate) fn reset(&self, direction: Direction) {
        self.break_connection(Break::Reset(direction));
    }

    fn break_connection(&self, how: Break) {
        *self.state.broken.lock().expect("no panic while locked") = how;
        self.state.age.fetch_add(1, Ordering::SeqCst);
    }

    /// Closes every connection and refuses new ones.
    pub(crate) fn refuse(&self) {
        self.state.refuse.store(true, Ordering::SeqCst);
        self.cut();
        while self.state.listening.load(Ordering::SeqCst) {
            thread::sleep(PACE);
        }
    }

    /// Sets a trap for a request, replacing an earlier one.
    pub(crate) fn set_trap(&self, trap: Option<&Arc<Trap>>) {
        *self.state.trap.lock().expect("no panic while locked") = trap.cloned();
    }

    /// Accepts connections again and passes everything on.
    pub(crate) fn heal(&self) {
        self.both(Mode::Pass);
        self.set_trap(None);
        self.state.refuse.store(false, Ordering::SeqCst);
    }

    /// Number of connections so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.cut();
    }
}

impl State {
    fn mode(&self, direction: Direction) -> std::sync::MutexGuard<'_, Mode> {
        let mode = match direction {
            Direction::ToServer => &self.to_server,
            Direction::ToClient => &self.to_client,
        };
        mode.lock().expect("no panic while locked")
    }

    /// Executes the waiting orders if this is their request.
    fn look_at(&self, request: &[u8]) {
        let mut snare = self.snare.lock().expect("no panic while locked");
        let there = |word: &String| {
            let mut windows = request.windows(word.len());
            windows.any(|window| window == word.as_bytes())
        };
        if snare
            .as_ref()
            .is_some_and(|snare| snare.words.iter().all(there))
        {
            for (direction, mode) in snare.take().into_iter().flat_map(|snare| snare.orders) {
                *self.mode(direction) = mode;
            }
        }
    }

    /// The action of the trap, if there is one, on these bytes on their way to the server.
    fn spring(&self, bytes: &[u8]) -> Option<Lost> {
        let trap = self.trap.lock().expect("no panic while locked").clone();
        trap.filter(|_| !bytes.is_empty())?.filter(bytes)
    }
}

fn accept(port: u16, listener: TcpListener, state: &Arc<State>) {
    let mut listener = Some(listener);
    while !state.over.load(Ordering::SeqCst) {
        if state.refuse.load(Ordering::SeqCst) {
            listener = None;
        } else if listener.is_none() {
            // An outgoing connection of another process may use the port for a moment.
            listener = TcpListener::bind(("127.0.0.1", port)).ok();
        }
        state.listening.store(listener.is_some(), Ordering::SeqCst);
        if let Some(listener) = &listener {
            listener.set_nonblocking(true).expect("a socket");
            while let Ok((client, _)) = listener.accept() {
                state.accepted.fetch_add(1, Ordering::SeqCst);
                join(client, state);
            }
        }
        wait(listener.as_ref(), None);
    }
}

/// The state that the two directions of one connection share.
struct Connection {
    /// The client takes itself as connected too early: until it hears from the server, all its bytes are early by the
    /// handshake.
    early: AtomicBool,
    /// The client gets nothing any more: an answer is to be lost.
    deaf: AtomicBool,
}

impl Connection {
    /// Loses all answers from now on. Returns the time at which the connection is to be closed.
    fn deafen(&self) -> Duration {
        self.deaf.store(true, Ordering::SeqCst);
        boot_clock() + SERVED
    }
}

/// Connects a client with the server. Without a server the client is kept and never answered.
fn join(client: TcpStream, state: &Arc<State>) {
    client.set_nonblocking(false).expect("a socket");
    let age = state.age.load(Ordering::SeqCst);
    let Ok(server) = TcpStream::connect(state.server) else {
        if state.server.port() == 0 {
            let sink = client.try_clone().expect("a socket");
            let state = Arc::clone(state);
            let connection = Connection {
                early: AtomicBool::new(false),
                deaf: AtomicBool::new(false),
            };
            thread::spawn(move || {
                pump(client, sink, Direction::ToServer, age, &connection, &state);
            });
        }
        return;
    };
    for socket in [&client, &server] {
        socket.set_nodelay(true).expect("a socket");
    }
    let ends = [
        (Direction::ToServer, client.try_clone(), server.try_clone()),
        (Direction::ToClient, Ok(server), Ok(client)),
    ];
    let connection = Arc::new(Connection {
        early: AtomicBool::new(true),
        deaf: AtomicBool::new(false),
    });
    for (direction, from, to) in ends {
        let (from, to) = (from.expect("a socket"), to.expect("a socket"));
        let (state, connection) = (Arc::clone(state), Arc::clone(&connection));
        thread::spawn(move || pump(from, to, direction, age, &connection, &state));
    }
}

/// Carries the bytes of one direction of one connection until either end or the test closes it.
fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    direction: Direction,
    mut age: u64,
    connection: &Connection,
    state: &State,
) {
    let mut closes_at = None;
    let opened_at = boot_clock();
    // Bytes and their due times; `None` waits for the end of a hold.
    let mut waiting: VecDeque<(Option<Duration>, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut open = true;
    let mut shut = false;
    let mut last_due = Duration::ZERO;
    loop {
        if state.over.load(Ordering::SeqCst) || closes_at.is_some_and(|at| at <= boot_clock()) {
            break;
        }
        let now = state.age.load(Ordering::SeqCst);
        if now != age {
            age = now;
            match *state.broken.lock().expect("no panic while locked") {
                Break::Close => break,
                Break::Half(half) => {
                    if half == direction {
                        shut = true;
                        let _ = to.shutdown(Shutdown::Write);
                    }
                }
                Break::Reset(towards) => {
                    // The other thread has the same two sockets: the last one closes them, without a FIN first.
                    let victim = if towards == direction { &to } else { &from };
                    let _ = set_socket_linger(victim, Some(Duration::ZERO));
                    return;
                }
            }
        }
        let next = waiting.front().and_then(|(due, _)| *due);
        let readable = wait(open.then_some(&from), next);
        let read = match (open, readable) {
            (true, false) => Err(ErrorKind::WouldBlock.into()),
            (true, true) => from.read(&mut buffer),
            (false, _) => Ok(0),
        };
        if let (Ok(count), Direction::ToServer) = (&read, direction) {
            state.look_at(&buffer[..*count]);
            if closes_at.is_none() {
                match state.spring(&buffer[..*count]) {
                    Some(Lost::Request) => break,
                    Some(Lost::Answer) => closes_at = Some(connection.deafen()),
                    None => {}
                }
            }
        }
        let mode = *state.mode(direction);
        match read {
            Ok(0) => {
                open = false;
                if waiting.is_empty() && matches!(mode, Mode::Pass | Mode::Delay(_)) {
                    break;
                }
            }
            Ok(_) if shut => {}
            Ok(_) if direction == Direction::ToClient && connection.deaf.load(Ordering::SeqCst) => {
            }
            Ok(count) => match mode {
                Mode::Pass => waiting.push_back((Some(Duration::ZERO), buffer[..count].to_vec())),
                Mode::Hold => waiting.push_back((None, buffer[..count].to_vec())),
                Mode::Delay(late) => {
                    let due = match direction {
                        Direction::ToServer if connection.early.load(Ordering::SeqCst) => {
                            boot_clock() + state.handshake + late
                        }
                        Direction::ToServer => boot_clock() + late,
                        Direction::ToClient => {
                            // The server accepts one way after the handshake.
                            (boot_clock() + late).max(opened_at + state.handshake * 2)
                        }
                    };
                    last_due = last_due.max(due);
                    waiting.push_back((Some(last_due), buffer[..count].to_vec()));
                }
                Mode::Drop => {}
            },
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
        while waiting.front().is_some_and(|(due, _)| match due {
            Some(due) => *due <= boot_clock() && mode != Mode::Hold,
            None => mode == Mode::Pass,
        }) {
            let Some((_, bytes)) = waiting.pop_front() else {
                break;
            };
            if direction == Direction::ToClient {
                connection.early.store(false, Ordering::SeqCst);
            }
            if mode != Mode::Drop && to.write_all(&bytes).is_err() {
                open = false;
                waiting.clear();
                break;
            }
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Waits until there is input or a connection, the next bytes are due, or a new order must be checked. Returns whether
/// there is input.
fn wait(from: Option<&impl AsFd>, next_due: Option<Duration>) -> bool {
    // Due but held back: the order must change first.
    let left = next_due
        .map(|due| due.saturating_sub(boot_clock()))
        .filter(|left| !left.is_zero());
    let timeout = Timespec::try_from(left.unwrap_or(PACE).min(PACE)).expect("a few milliseconds");
    let mut readable = from.map(|from| PollFd::new(from, PollFlags::IN));
    poll(readable.as_mut_slice(), Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// An endpoint that swallows connection attempts: its queue of unaccepted connections is full, so the kernel drops
/// every further SYN without an answer.
pub(crate) struct BlackHole {
    port: u16,
    _listener: OwnedFd,
    _fillers: Vec<TcpStream>,
}

impl BlackHole {
    pub(crate) fn new() -> Self {
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("127.0.0.1 has free ports");
        listen(&listener, 0).expect("a bound socket listens");
        let address = getsockname(&listener).expect("a bound socket has a name");
        let address = SocketAddr::try_from(address).expect("an IPv4 address");
        let mut fillers = Vec::new();
        while let Ok(filler) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            fillers.push(filler);
            assert!(fillers.len() < 64, "a backlog of zero fills up");
        }
        Self {
            port: address.port(),
            _listener: listener,
            _fillers: fillers,
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

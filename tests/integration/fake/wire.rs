//! Faults below gRPC: bytes that are no HTTP/2, that arrive one by one, or never.
//! It must not know what the bytes mean.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::server::{Background, listen};

/// The treatment of the bytes for the client; those from the client always pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wire {
    Pass,
    /// Sends bytes that are no HTTP/2, and then passes the bytes.
    Garbage,
    /// Sends the answer of a web server to HTTP/2, and then passes the bytes.
    WebServer,
    /// Sends a GOAWAY frame with the code `ENHANCE_YOUR_CALM`, which etcd sends to a client that pings too often (RFC
    /// 9113, 6.8), and then passes the bytes.
    TooManyPings,
    /// One byte a second.
    Drip,
    /// Closes the half towards the client and still accepts its bytes.
    Half,
}

impl Wire {
    /// The bytes that are sent out of turn.
    fn interjection(self) -> &'static [u8] {
        match self {
            Self::Garbage => b"\x00\xff\x13 this is no frame \xde\xad\xbe\xef \x00\x00\x00",
            Self::WebServer => b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            Self::TooManyPings => {
                b"\x00\x00\x16\x07\x00\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x0btoo_many_pings"
            }
            Self::Pass | Self::Drip | Self::Half => b"",
        }
    }
}

/// A port of this machine whose connections misbehave.
pub(super) struct Relay {
    address: SocketAddr,
    newcomers: Arc<Mutex<Wire>>,
    present: watch::Sender<Wire>,
    connections: Arc<AtomicU32>,
    _thread: Background,
}

impl Relay {
    /// Passes bytes to a server, until ordered otherwise.
    pub(super) fn to(server: SocketAddr) -> Self {
        Self::run(Some(server))
    }

    /// Without a server: the client gets only the bytes of the fault.
    pub(super) fn nowhere() -> Self {
        Self::run(None)
    }

    fn run(server: Option<SocketAddr>) -> Self {
        let newcomers = Arc::new(Mutex::new(Wire::Pass));
        let (present, changes) = watch::channel(Wire::Pass);
        let (listener, address) = listen();
        let modes = Arc::clone(&newcomers);
        let connections = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&connections);
        let thread = Background::run(async move || {
            let listener = TcpListener::from_std(listener).expect("inside a runtime");
            loop {
                let (client, _) = listener.accept().await.expect("a listening socket");
                count.fetch_add(1, Ordering::SeqCst);
                let wire = *modes.lock().expect("no panic while locked");
                tokio::spawn(carry(client, server, wire, changes.clone()));
            }
        });
        Self {
            address,
            newcomers,
            present,
            connections,
            _thread: thread,
        }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Number of connections so far.
    pub(super) fn connections(&self) -> u32 {
        self.connections.load(Ordering::SeqCst)
    }

    /// The treatment of the open connections.
    pub(super) fn present(&self, wire: Wire) {
        self.present.send_replace(wire);
    }

    /// The treatment of connections from now on.
    pub(super) fn newcomers(&self, wire: Wire) {
        *self.newcomers.lock().expect("no panic while locked") = wire;
    }

    /// The treatment of all connections, now and later.
    pub(super) fn all(&self, wire: Wire) {
        self.newcomers(wire);
        self.present(wire);
    }
}

async fn carry(
    mut client: TcpStream,
    server: Option<SocketAddr>,
    mut wire: Wire,
    mut changes: watch::Receiver<Wire>,
) {
    changes.mark_unchanged();
    client.set_nodelay(true).expect("a socket");
    let mut upstream = match server {
        Some(server) => TcpStream::connect(server).await.ok(),
        None => None,
    };
    let (mut asked, mut told) = ([0; 4096], [0; 4096]);
    let mut drops: VecDeque<u8> = VecDeque::new();
    let mut pace = interval(Duration::from_secs(1));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut fresh = true;
    loop {
        if fresh {
            fresh = false;
            if client.write_all(wire.interjection()).await.is_err() {
                return;
            }
            if matches!(wire, Wire::Half) && client.shutdown().await.is_err() {
                return;
            }
        }
        let answer = async {
            match &mut upstream {
                Some(upstream) => upstream.read(&mut told).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = changes.changed() => {
                wire = *changes.borrow();
                fresh = true;
            }
            count = client.read(&mut asked) => {
                let Ok(count @ 1..) = count else { return };
                if let Some(upstream) = &mut upstream
                    && upstream.write_all(&asked[..count]).await.is_err() {
                    return;
                }
            }
            count = answer => {
                let Ok(count @ 1..) = count else { return };
                match wire {
                    Wire::Half => {}
                    Wire::Drip => drops.extend(&told[..count]),
                    _ => {
                        if client.write_all(&told[..count]).await.is_err() {
                            return;
                        }
                    }
                }
            }
            _ = pace.tick(), if !drops.is_empty() => {
                let drop = drops.pop_front().expect("not empty");
                if client.write_all(&[drop]).await.is_err() {
                    return;
                }
            }
        }
    }
}

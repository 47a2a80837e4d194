//! Puts a member on a port of this machine, and closes connections on demand.
//! It must not know what the requests are about.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use etcd_client::proto::{PbDeleteRequest, PbKeyValue, PbPutRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;

use super::member::{HangUp, Identity, Member, Services};
use super::script::Script;
use super::store::{End, Store};
use crate::support::{LIMIT, eventually};

/// A fake etcd member on a port of its own, as long as it is not dropped.
pub(super) struct Fake {
    pub(super) script: Arc<Script>,
    store: Arc<Store>,
    address: SocketAddr,
    ends: watch::Sender<Ending>,
    _thread: Background,
}

/// The fate of the open connections.
#[derive(Clone, Copy, Debug)]
enum Ending {
    None,
    Closed,
    GoAway,
}

impl Fake {
    pub(super) fn start() -> Self {
        Self::with(Identity::FIRST, Arc::new(Store::new()), None)
    }

    /// A member that needs a password.
    pub(super) fn with_password(password: &'static str) -> Self {
        Self::with(Identity::FIRST, Arc::new(Store::new()), Some(password))
    }

    /// A member of another cluster.
    pub(super) fn stranger() -> Self {
        let identity = Identity {
            cluster: 0xc2,
            ..Identity::FIRST
        };
        Self::with(identity, Arc::new(Store::new()), None)
    }

    /// Another member of the same cluster, with a script of its own.
    pub(super) fn sibling(&self) -> Self {
        let identity = Identity {
            member: 0x12,
            ..Identity::FIRST
        };
        Self::with(identity, Arc::clone(&self.store), None)
    }

    fn with(identity: Identity, store: Arc<Store>, password: Option<&'static str>) -> Self {
        let script = Arc::new(Script::new());
        let member = Member {
            store: Arc::clone(&store),
            script: Arc::clone(&script),
            identity,
            password,
            logins: Arc::default(),
        };
        let (ends, ending) = watch::channel(Ending::None);
        let (listener, address) = listen();
        let thread = Background::run(async move || {
            let listener = TcpListener::from_std(listener).expect("inside a runtime");
            tokio::join!(serve(listener, &member, &ending), expire(&member.store));
        });
        Self {
            script,
            store,
            address,
            ends,
            _thread: thread,
        }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all open connections, in the middle of any request.
    pub(super) fn close_connections(&self) {
        self.ends.send_replace(Ending::Closed);
    }

    /// Announces on all open connections that no new request is accepted.
    pub(super) fn go_away(&self) {
        self.ends.send_replace(Ending::GoAway);
    }

    /// Another client joins the lock's queue and stays; returns its key.
    pub(super) fn occupy(&self, name: &str) -> String {
        let lease = 0x1234_5678;
        self.store.grant(lease, None).expect("a new lease");
        let key = format!("dlock/lock/{name}/{lease:x}");
        let put = PbPutRequest {
            key: key.clone().into_bytes(),
            lease,
            ..PbPutRequest::default()
        };
        self.store.put(&put).expect("the lease is there");
        key
    }

    /// A key is put again, as it is.
    pub(super) fn rewrite(&self, key: &str) {
        let keys = self.store.keys();
        let found = keys.iter().find(|found| found.key == key.as_bytes());
        let found = found.expect("it is there");
        let put = PbPutRequest {
            key: found.key.clone(),
            value: found.value.clone(),
            lease: found.lease,
            ..PbPutRequest::default()
        };
        self.store.put(&put).expect("the lease is there");
    }

    /// Another client deletes a key.
    pub(super) fn delete(&self, key: &str) {
        let (_, deleted) = self.store.delete(&PbDeleteRequest {
            key: key.as_bytes().to_vec(),
            ..PbDeleteRequest::default()
        });
        assert_eq!(deleted.deleted, 1, "{key} is there");
    }

    /// The entries of queues, in the order of their creation. A release record is no entry, and disappears with its
    /// lease.
    pub(super) fn keys(&self) -> Vec<String> {
        let keys = self.store.keys();
        let places = keys
            .iter()
            .filter(|key| key.key.starts_with(b"dlock/lock/"));
        places.map(name).collect()
    }

    /// The record of the newest entry.
    #[track_caller]
    pub(super) fn newest_record(&self) -> String {
        let keys = self.store.keys().into_iter();
        let mut places = keys.filter(|key| key.key.starts_with(b"dlock/lock/"));
        let newest = places.next_back().expect("an entry");
        String::from_utf8_lossy(&newest.value).into_owned()
    }

    /// The keys that no lease will end.
    pub(super) fn lasting_keys(&self) -> Vec<String> {
        self.store.lasting().iter().map(name).collect()
    }

    pub(super) fn leases(&self) -> Vec<i64> {
        self.store.leases()
    }

    /// The leases that were ever granted, the oldest first.
    pub(super) fn granted(&self) -> Vec<i64> {
        self.store.granted()
    }

    /// Whether a client has revoked the lease.
    pub(super) fn is_revoked(&self, lease: i64) -> bool {
        self.store.ended().contains(&(lease, End::Revoked))
    }

    /// Waits until there are `count` keys, and returns them.
    #[track_caller]
    pub(super) fn keys_of(&self, count: usize) -> Vec<String> {
        eventually(LIMIT, &format!("{count} keys in the fake"), || {
            Some(self.keys()).filter(|keys| keys.len() == count)
        })
    }

    /// The leases that have expired: from then on another client could have had the lock.
    pub(super) fn expired(&self) -> Vec<i64> {
        let mut ended = self.store.ended();
        ended.retain(|(_, end)| *end == End::Expired);
        ended.into_iter().map(|(id, _)| id).collect()
    }

    /// The time of the last renewal or grant that the cluster has executed.
    pub(super) fn renewed_at(&self) -> Duration {
        self.store.renewed_at()
    }
}

fn name(kv: &PbKeyValue) -> String {
    String::from_utf8_lossy(&kv.key).into_owned()
}

/// A port of this machine that accepts connections from now on.
pub(super) fn listen() -> (std::net::TcpListener, SocketAddr) {
    let listener =
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("127.0.0.1 has free ports");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("a bound socket");
    (listener, address)
}

async fn serve(listener: TcpListener, member: &Member, ending: &watch::Receiver<Ending>) {
    loop {
        let (stream, _) = listener.accept().await.expect("a listening socket");
        tokio::spawn(connection(stream, member.clone(), ending.clone()));
    }
}

async fn connection(stream: TcpStream, member: Member, mut ending: watch::Receiver<Ending>) {
    stream.set_nodelay(true).expect("a socket");
    ending.mark_unchanged();
    let HangUp(cut) = HangUp::default();
    let services = Services {
        member,
        hang_up: HangUp(Arc::clone(&cut)),
    };
    let builder = Builder::new(TokioExecutor::new()).http2_only();
    let service = TowerToHyperService::new(services);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    loop {
        tokio::select! {
            _ = served.as_mut() => return,
            () = cut.notified() => return,
            Ok(()) = ending.changed() => match *ending.borrow() {
                Ending::None => {}
                Ending::Closed => return,
                Ending::GoAway => served.as_mut().graceful_shutdown(),
            },
        }
    }
}

/// Lets leases expire at their time, and not only at the next request.
async fn expire(store: &Store) {
    loop {
        store.expire();
        sleep(Duration::from_millis(10)).await;
    }
}

/// A thread with an event loop, ended on drop.
pub(super) struct Background {
    over: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    pub(super) fn run(work: impl AsyncFnOnce() + Send + 'static) -> Self {
        let (over, ended) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    _ = ended => {}
                    () = work() => {}
                }
            });
        });
        Self {
            over: Some(over),
            thread: Some(thread),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.over = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

//! One connection to one endpoint: name lookup, TCP, TLS, the user's token.
//! It must not know the other endpoints, nor what is requested over it.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, Error, KvClient, LeaseClient, WatchClient};
use futures_util::FutureExt as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::error::{ErrorKind, LockError, connect_hint, handshake_hint};
use super::login::Login;
use super::tls;
use crate::config::Tls;
use crate::config::endpoint::Endpoint;
use crate::core::proof::is_grpc_proxy;
use crate::core::text::format_duration;

/// The longest answer that dlock accepts. etcd takes values of up to 1.5 MiB, and a read of a queue has up to six of them;
/// longer reads are split into smaller ones.
const MAX_ANSWER_BYTES: usize = 10 * 1024 * 1024;

/// A connection that is never reopened: when it breaks, everything on it fails, so all its answers are from one server.
///
/// The whole client is some KiB large. A caller copies the part that it needs.
#[derive(Clone)]
pub(crate) struct Connection {
    client: Rc<Client>,
}

impl Connection {
    /// The client for keys and transactions.
    pub(crate) fn kv(&self) -> KvClient {
        let client = self.client.kv_client();
        client.max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn leases(&self) -> LeaseClient {
        self.client.lease_client()
    }

    pub(crate) fn watches(&self) -> WatchClient {
        let client = self.client.watch_client();
        client.max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Whether both are the same connection, not only to the same endpoint.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.client, &other.client)
    }

    /// The whole client, for the requests of the doctor alone.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
}

/// Connects and, with credentials, authenticates, within `limit`.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    tls: &Tls,
    login: Option<&Login>,
    limit: Duration,
) -> Result<Connection, LockError> {
    let client = timeout(limit, contact(endpoint, tls, login, limit))
        .await
        .unwrap_or_else(|_| {
            Err(LockError::retryable(format!(
                "no connection within {}",
                format_duration(limit)
            )))
        })
        .map_err(|error| {
            let hint = connect_hint(endpoint.https, &error.cause);
            error.with_hint(hint)
        })?;
    Ok(Connection { client })
}

/// Whether an etcd gRPC proxy answers.
pub(super) async fn answers_as_proxy(etcd: &Connection, limit: Duration) -> bool {
    let list = within(limit, etcd.client().cluster_client().member_list()).await;
    list.is_ok_and(|list| is_grpc_proxy(list.members().iter().map(etcd_client::Member::id)))
}

/// Bounds a request: after `limit` it fails.
pub(super) async fn within<T, E>(
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, LockError>
where
    LockError: From<E>,
{
    // Boxed: a caller would else need the stack of every request that it may send.
    match timeout(limit, answer.boxed_local()).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(LockError::no_answer(limit)),
    }
}

async fn contact(
    endpoint: &Endpoint,
    tls: &Tls,
    login: Option<&Login>,
    limit: Duration,
) -> Result<Rc<Client>, LockError> {
    let secured = endpoint.https.then(|| encryption(tls)).transpose()?;
    let invalid = |error: &dyn std::error::Error| LockError::refused(error.to_string(), None);
    // To tonic the connection is a plain one: what encrypts it is ours.
    let plain = Endpoint {
        https: false,
        ..endpoint.clone()
    };
    let origin = endpoint.to_string().parse();
    let target = tonic::transport::Endpoint::from_shared(plain.to_string())
        .map_err(|error| invalid(&error))?
        .origin(origin.map_err(|error| invalid(&error))?);
    let (host, port) = (endpoint.host.clone(), endpoint.port);
    let used = Arc::new(AtomicBool::new(false));
    let connector = tower::service_fn(move |_| {
        let (host, again) = (host.clone(), used.swap(true, Ordering::Relaxed));
        let secured = secured.clone();
        async move {
            if again {
                return Err(std::io::Error::other("the server closed the connection"));
            }
            let stream = dial(&host, port, limit).await?;
            let stream: Box<dyn Stream> = match secured {
                Some(config) => Box::new(encrypt(config, host, stream).await?),
                None => Box::new(stream),
            };
            Ok(TokioIo::new(stream))
        }
    });
    let channel = target
        .connect_with_connector(connector)
        .boxed_local()
        .await
        .map_err(|error| {
            let error = LockError::from(Error::TransportError(error));
            let hint = handshake_hint(endpoint.https, &error.cause);
            error.with_hint(hint)
        })?;
    authenticate(channel, login).boxed_local().await
}

/// A connection to one member, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn encryption(tls: &Tls) -> Result<Arc<ClientConfig>, LockError> {
    let mut config = tls::client_config(tls)?;
    config.alpn_protocols.push(tls::H2.to_vec());
    Ok(Arc::new(config))
}

async fn encrypt(
    config: Arc<ClientConfig>,
    host: String,
    stream: TcpStream,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    if stream.get_ref().1.alpn_protocol() != Some(tls::H2) {
        return Err(std::io::Error::other(
            "the server did not choose HTTP/2 in the TLS handshake (ALPN)",
        ));
    }
    Ok(stream)
}

async fn authenticate(
    channel: tonic::transport::Channel,
    login: Option<&Login>,
) -> Result<Rc<Client>, LockError> {
    // A member without a leader fails at once instead of after the server's 7 s.
    let options = ConnectOptions::new()
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(login) = login {
        let password = login.begin()?;
        let with_user = options
            .clone()
            .with_user(login.name().expose(), password.expose());
        match Client::from_channel(Channel::Tonic(channel.clone()), Some(with_user)).await {
            Ok(client) => {
                login.accepted();
                return Ok(Rc::new(client));
            }
            // As etcd's own client does (client/v3/client.go getToken): without authentication
            // on the server a user is not wrong, only not needed.
            Err(Error::GRpcStatus(status))
                if status.message().contains("authentication is not enabled") =>
            {
                login.accepted();
            }
            Err(error) => {
                let error = LockError::from(error);
                return Err(match error.kind {
                    ErrorKind::Refused => login.refused(LockError {
                        kind: ErrorKind::LoginRefused,
                        ..error
                    }),
                    _ => error,
                });
            }
        }
    }
    let client = Client::from_channel(Channel::Tonic(channel), Some(options));
    Ok(Rc::new(client.await?))
}

/// The addresses of a host. The C library waits for the name server, so a thread looks a name up. Where none can be started
/// (a limit, or a container runtime that does not know clone3), this thread waits.
async fn addresses(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let look_up = move |host: &str| Ok((host, port).to_socket_addrs()?.collect());
    let (answer, answered) = oneshot::channel();
    let name = host.to_owned();
    let started = thread::Builder::new().spawn(move || answer.send(look_up(&name)));
    match started {
        Ok(_) => answered.await.map_err(std::io::Error::other)?,
        Err(_) => look_up(host),
    }
}

/// Tries the addresses of a name one after the other, each with its share of the time.
pub(super) async fn dial(host: &str, port: u16, limit: Duration) -> std::io::Result<TcpStream> {
    // Sooner than the whole attempt, which could not tell why.
    let share = limit.mul_f64(0.9);
    let addresses = timeout(share, addresses(host, port)).await;
    let addresses = addresses.unwrap_or_else(|_| {
        Err(std::io::Error::other(format!(
            "the name was not looked up within {}",
            format_duration(share)
        )))
    })?;
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failure = std::io::Error::other("the name has no address");
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failure = error,
            Err(_) => failure = std::io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

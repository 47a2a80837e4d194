//! The choice of the endpoint: one connection each, failover, hedging, one cluster only.
//! It must not know what is requested.

use std::cell::{Cell, OnceCell, RefCell};
use std::time::Duration;

use etcd_client::ResponseHeader;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::connection::{Connection, connect, within};
use super::error::{ErrorKind, LockError, connect_hint, refuses_certificate, unreachable_hint};
use super::login::Login;
use crate::config::endpoint::Endpoint;
use crate::config::{Settings, Tls};
use crate::core::cluster_id::ClusterId;
use crate::core::proof::Header;
use crate::core::text::format_duration;
use crate::core::time::Instant;
use crate::output::events;
use crate::sys::clock;

/// If an endpoint has not answered within this time, the next one is tried as well.
const HEDGE_DELAY: Duration = Duration::from_millis(500);
/// The pause after every endpoint has failed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The members of one etcd cluster.
///
/// etcd-client's own balancer keeps choosing dead endpoints (measured: 30 to 50 % of the calls fail
/// with one of three or of two dead), so each endpoint has a client of its own.
pub(crate) struct Cluster {
    endpoints: Vec<Endpoint>,
    tls: Tls,
    login: Option<Login>,
    /// The setting that names the endpoints; `None` for the built-in default.
    endpoints_source: Option<String>,
    /// Limit on connecting to one endpoint.
    connect_limit: Duration,
    connections: Vec<Mutex<Option<Connection>>>,
    current: Cell<usize>,
    /// Notified whenever requests take another endpoint than before, or another connection to it.
    switches: watch::Sender<()>,
    /// The cluster in the settings, else the first that answered; members of others are refused.
    id: OnceCell<ClusterId>,
    /// Whether the id is in the settings.
    id_is_given: bool,
    /// Whether a member of that cluster has ever answered.
    answered: Cell<bool>,
    /// Whether the warning of a member of another cluster was given.
    warned: Cell<bool>,
    /// The latest error of each endpoint, for the final message.
    errors: RefCell<Vec<Option<LockError>>>,
    /// The last time at which a connection with accepted credentials was used.
    used_at: Cell<Option<Instant>>,
    /// The refusal of our credentials after which none were accepted.
    refusal: RefCell<Option<LockError>>,
}

impl Cluster {
    pub(crate) fn new(settings: &Settings) -> Self {
        if settings.endpoints_source.is_none() {
            let endpoint = &settings.endpoints[0];
            info!(
                event = events::SETTING,
                "no endpoints are set: using the built-in default '{endpoint}'"
            );
        }
        for endpoint in &settings.assumed_http {
            info!(
                event = events::SETTING,
                "an endpoint without a scheme means http, without encryption: '{endpoint}'"
            );
        }
        let count = settings.endpoints.len();
        Self {
            endpoints: settings.endpoints.clone(),
            tls: settings.tls.clone(),
            login: settings.credentials.clone().map(Login::new),
            endpoints_source: settings.endpoints_source.clone(),
            connect_limit: settings.connect_timeout(),
            connections: (0..count).map(|_| Mutex::new(None)).collect(),
            current: Cell::new(0),
            switches: watch::Sender::new(()),
            id: settings
                .cluster_id
                .map_or_else(OnceCell::new, OnceCell::from),
            id_is_given: settings.cluster_id.is_some(),
            answered: Cell::new(false),
            warned: Cell::new(false),
            errors: RefCell::new(vec![None; count]),
            used_at: Cell::default(),
            refusal: RefCell::default(),
        }
    }

    /// The endpoint that answered last.
    pub(crate) fn current(&self) -> usize {
        self.current.get()
    }

    /// The endpoint as text.
    pub(crate) fn name(&self, index: usize) -> String {
        self.endpoints[index].to_string()
    }

    /// The user, for messages.
    pub(crate) fn user(&self) -> Option<&str> {
        self.login.as_ref().map(Login::user)
    }

    /// Uses the next endpoint from now on, unless another one is in use already.
    pub(crate) fn advance(&self, from: usize) {
        if self.current.get() == from {
            self.switch_to((from + 1) % self.endpoints.len());
        }
    }

    fn switch_to(&self, index: usize) {
        let before = self.current.replace(index);
        if before != index {
            let (from, to) = (self.name(before), self.name(index));
            info!(
                event = events::FAILOVER,
                from, to, "using endpoint '{to}' instead of '{from}'"
            );
            self.switches.send_replace(());
        }
    }

    /// A receiver that is notified whenever requests take another way than before.
    pub(crate) fn switches(&self) -> watch::Receiver<()> {
        self.switches.subscribe()
    }

    /// Whether requests use this connection at present.
    pub(crate) fn uses(&self, connection: &Connection) -> bool {
        self.holds(self.current(), connection)
    }

    /// Whether the endpoint's connection is this one; it is not while another one is being opened.
    fn holds(&self, index: usize, connection: &Connection) -> bool {
        let slot = self.connections[index].try_lock();
        slot.is_ok_and(|slot| slot.as_ref().is_some_and(|kept| kept.is(connection)))
    }

    /// The endpoint's connection, opened within `limit` if there is none.
    pub(crate) async fn connection(
        &self,
        index: usize,
        limit: Duration,
    ) -> Result<Connection, LockError> {
        let limit = limit.min(self.connect_limit);
        let mut slot = self.connections[index].lock().await;
        if let Some(connection) = &*slot {
            self.used_at.set(Some(clock::now()));
            return Ok(connection.clone());
        }
        // Boxed, as the future is large and rarely needed: every request would carry it.
        let connecting = self.connect(index, limit).boxed_local();
        let connection = connecting.await.inspect_err(|error| {
            self.record_error(index, error);
            self.check_credentials(error);
        })?;
        // A server refuses a certificate only after the handshake.
        if self.login.is_some() || !self.endpoints[index].https {
            self.accept_credentials();
        }
        *slot = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(&self, index: usize, limit: Duration) -> Result<Connection, LockError> {
        let began_at = clock::now();
        if let Some(login) = &self.login {
            login.wait(limit).await?;
        }
        let limit = limit.saturating_sub(clock::now().since(began_at));
        connect(
            &self.endpoints[index],
            &self.tls,
            self.login.as_ref(),
            limit,
        )
        .await
    }

    /// The refusal of our credentials after which none were accepted, and the last time at which a connection was used.
    pub(super) fn refusal(&self) -> Option<(LockError, Instant)> {
        let refusal = self.refusal.borrow().clone()?;
        Some((refusal, self.used_at.get()?))
    }

    /// Drops a connection that has failed, unless a newer one has replaced it. Reswitches its endpoint.
    fn forget(&self, connection: &Connection) -> Option<usize> {
        let mut indices = 0..self.endpoints.len();
        let index = indices.find(|index| self.holds(*index, connection))?;
        *self.connections[index].try_lock().ok()? = None;
        self.switches.send_replace(());
        Some(index)
    }

    /// Gives up a connection that has failed, and its endpoint with it, unless a newer one has replaced it. An expired
    /// token is no reason to leave the endpoint.
    pub(crate) fn disconnect(&self, connection: &Connection, error: &LockError) {
        self.check_credentials(error);
        if let Some(index) = self.forget(connection)
            && error.kind != ErrorKind::AuthExpired
        {
            self.advance(index);
        }
    }

    /// Takes note of what an error says of our credentials.
    fn check_credentials(&self, error: &LockError) {
        if let (Some(login), ErrorKind::AuthExpired) = (&self.login, error.kind) {
            login.token_refused(error);
        }
        let refused = matches!(error.kind, ErrorKind::LoginRefused | ErrorKind::BadFile);
        if refused || refuses_certificate(&error.cause) {
            self.refusal.replace(Some(error.clone()));
        }
    }

    /// Takes note that a member has accepted our credentials.
    pub(super) fn accept_credentials(&self) {
        self.refusal.take();
        self.used_at.set(Some(clock::now()));
    }

    fn record_error(&self, index: usize, error: &LockError) {
        self.errors.borrow_mut()[index] = Some(error.clone());
    }

    /// Reads an answer's header, and refuses a member of another cluster than the one in the settings, or, without one
    /// there, than the first that answered.
    pub(crate) fn check_header(
        &self,
        header: Option<&ResponseHeader>,
    ) -> Result<Header, LockError> {
        let header = read_header(header)?;
        let theirs = ClusterId(header.cluster);
        let id = *self.id.get_or_init(|| theirs);
        if theirs != id {
            self.warn_of(theirs, id);
            return Err(self.foreign(theirs, id));
        }
        self.answered.set(true);
        Ok(header)
    }

    fn foreign(&self, theirs: ClusterId, id: ClusterId) -> LockError {
        let (origin, hint) = if self.id_is_given {
            (
                " of cluster-id",
                "dlock doctor shows which cluster each endpoint belongs to",
            )
        } else {
            ("", "name the members of one cluster only")
        };
        LockError::retryable(format!(
            "belongs to another cluster ({theirs}, not {id}{origin})"
        ))
        .with_hint(Some(hint))
    }

    /// Without the setting, chance decides in which of the clusters a lock is taken.
    fn warn_of(&self, theirs: ClusterId, id: ClusterId) {
        if self.warned.replace(true) {
            return;
        }
        let what_of_it = if self.id_is_given {
            "it is not used"
        } else {
            "two commands could run under one lock"
        };
        warn!(
            event = events::OTHER_CLUSTER,
            cluster = %theirs,
            wanted = %id,
            "one of the endpoints belongs to another cluster ({theirs}, not {id}): {what_of_it}; dlock doctor shows which one it is"
        );
    }

    /// Runs `ask` until an endpoint answers, for `limit` at most: on the current one first, on the next one when it
    /// fails or is slow, and on all of them again after a pause. `ask` may run twice at a time.
    pub(crate) async fn call<T>(
        &self,
        limit: Duration,
        ask: impl AsyncFn(Connection) -> Result<T, LockError>,
    ) -> Result<T, LockError> {
        // Boxed, as are the attempts: a caller would else need the stack of every request.
        let answer = timeout(limit, self.call_any(limit, &ask).boxed_local()).await;
        answer.unwrap_or_else(|_| Err(self.unreachable(limit)))
    }

    async fn call_any<T>(
        &self,
        limit: Duration,
        ask: &impl AsyncFn(Connection) -> Result<T, LockError>,
    ) -> Result<T, LockError> {
        let count = self.endpoints.len();
        // A single endpoint has no rival that could use the time; its own failure says more than ours.
        let attempt = if count == 1 {
            limit / 10 * 9
        } else {
            limit / 2
        };
        loop {
            let first = self.current.get();
            let mut rivals = (1..count).map(|step| (first + step) % count);
            let mut racing = FuturesUnordered::new();
            racing.push(self.attempt(first, attempt, ask));
            while !racing.is_empty() {
                let hedge = async {
                    if rivals.len() == 0 {
                        std::future::pending::<()>().await;
                    }
                    sleep(HEDGE_DELAY).await;
                };
                let ended = tokio::select! {
                    Some(ended) = racing.next() => Some(ended),
                    () = hedge => None,
                };
                match ended {
                    Some((index, Ok(answer))) => {
                        self.switch_to(index);
                        return Ok(answer);
                    }
                    Some((index, Err(error))) if error.kind == ErrorKind::Refused => {
                        return Err(self.named(index, error));
                    }
                    // Credentials that were good once may be good again, when their file has changed.
                    Some((index, Err(error)))
                        if error.kind == ErrorKind::LoginRefused && !self.was_connected() =>
                    {
                        return Err(self.named(index, error.into_refused()));
                    }
                    Some((_, Err(error)))
                        if error.kind == ErrorKind::BadFile && !self.was_connected() =>
                    {
                        return Err(error.into_refused());
                    }
                    Some(_) | None => {
                        if let Some(rival) = rivals.next() {
                            racing.push(self.attempt(rival, attempt, ask));
                        }
                    }
                }
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn attempt<T>(
        &self,
        index: usize,
        limit: Duration,
        ask: &impl AsyncFn(Connection) -> Result<T, LockError>,
    ) -> (usize, Result<T, LockError>) {
        let connection = match self.connection(index, limit).await {
            Ok(connection) => connection,
            Err(error) => return (index, Err(error)),
        };
        let answer = within(limit, ask(connection.clone())).await;
        if answer.is_ok() {
            self.accept_credentials();
        }
        if let Err(error) = &answer {
            if matches!(error.kind, ErrorKind::Retryable | ErrorKind::AuthExpired) {
                self.check_credentials(error);
                self.forget(&connection);
            }
            self.record_error(index, &self.with_hint(index, error));
        }
        (index, answer)
    }

    fn was_connected(&self) -> bool {
        self.used_at.get().is_some()
    }

    fn with_hint(&self, index: usize, error: &LockError) -> LockError {
        let hint = connect_hint(self.endpoints[index].https, &error.cause);
        error.clone().with_hint(hint)
    }

    fn named(&self, index: usize, error: LockError) -> LockError {
        LockError {
            cause: format!("etcd at '{}': {}", self.name(index), error.cause),
            ..error
        }
    }

    /// Whether a member has ever answered.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.get()
    }

    /// The error of each endpoint, while none has ever answered.
    pub(super) fn unanswered(&self) -> Option<String> {
        (!self.has_answered()).then(|| self.causes())
    }

    fn causes(&self) -> String {
        let errors = self.errors.borrow();
        let causes = (0..self.endpoints.len()).map(|index| {
            let cause = errors[index]
                .as_ref()
                .map_or("no answer", |error| error.cause.as_str());
            format!("'{}': {cause}", self.name(index))
        });
        causes.collect::<Vec<_>>().join("; ")
    }

    /// The error when no endpoint has answered in time: each with its own failure.
    pub(super) fn unreachable(&self, limit: Duration) -> LockError {
        let errors = self.errors.borrow();
        let hint = errors.iter().flatten().find_map(|error| error.hint.clone());
        let hint = unreachable_hint(self.endpoints_source.as_deref(), hint);
        LockError {
            kind: ErrorKind::Retryable,
            cause: format!(
                "no endpoint answered within {}: {}",
                format_duration(limit),
                self.causes()
            ),
            hint,
        }
    }
}

/// Reads the header of an answer.
pub(super) fn read_header(header: Option<&ResponseHeader>) -> Result<Header, LockError> {
    let header = header.ok_or_else(|| LockError::retryable("the answer has no header"))?;
    Ok(Header {
        cluster: header.cluster_id(),
        member: header.member_id(),
        term: header.raft_term(),
        revision: header.revision(),
    })
}

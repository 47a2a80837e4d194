//! The examination of one endpoint: whether it answers, its state, and whether a lock could live there.
//! It must not know which of the answers are bad, nor the other endpoints.

pub(crate) mod certificates;
mod http_probe;
mod trial_lock;

use etcd_client::{Error, GetOptions, StatusResponse};
use tokio::time::timeout;

use self::trial_lock::{STEP_TIMEOUT, complaint};
use super::cluster::read_header;
use super::connection::{Connection, connect, within};
use super::error::{ErrorKind, LockError, connect_hint, unreachable_hint};
use super::login::Login;
use crate::config::Settings;
use crate::config::credentials::Credentials;
use crate::config::endpoint::Endpoint;
use crate::core::doctor::certificate::Certificate;
use crate::core::doctor::facts::{Answer, KeyFacts, Member, MemberStatus, Probe};
use crate::core::keys::end_of_prefix;
use crate::core::proof::FencingToken;
use crate::core::time::LeaseTimings;
use crate::sys::clock;

/// Keys per read.
const KEYS_PER_READ: i64 = 1000;

/// The results for one endpoint.
pub(crate) struct Examined {
    pub(crate) asked: Probe,
    /// The server's certificate, if there is one that is trusted.
    pub(crate) certificate: Option<Certificate>,
}

/// Examines one endpoint. The first answer may take as long as `--connect-timeout`.
pub(crate) async fn examine(
    endpoint: &Endpoint,
    settings: &Settings,
    timings: LeaseTimings,
) -> Examined {
    let (answer, http) = tokio::join!(
        probe(endpoint, settings, timings),
        http_probe::probe(
            endpoint,
            &settings.tls,
            settings.connect_timeout().min(STEP_TIMEOUT)
        )
    );
    let answer = answer.map(|answer| Answer {
        version: answer.version.or(http.version),
        ..answer
    });
    Examined {
        asked: Probe {
            endpoint: endpoint.to_string(),
            answer: answer.map_err(|error| {
                let hint = connect_hint(endpoint.https, &error.cause);
                let mut error = error.with_hint(hint);
                if error.hint.is_some() {
                    let source = settings.endpoints_source.as_deref();
                    error.hint = unreachable_hint(source, error.hint);
                }
                complaint(error)
            }),
        },
        certificate: http.certificate,
    }
}

async fn probe(
    endpoint: &Endpoint,
    settings: &Settings,
    timings: LeaseTimings,
) -> Result<Answer, LockError> {
    let limit = settings.connect_timeout();
    let credentials = settings.credentials.as_ref();
    let asked_at = clock::now();
    let login = credentials.cloned().map(Login::new);
    let etcd = connect(endpoint, &settings.tls, login.as_ref(), limit).await?;
    let left = limit.saturating_sub(clock::now().since(asked_at));
    let status = match timeout(left, etcd.client().maintenance_client().status()).await {
        Ok(status) => status_answer(status)?,
        Err(_) => return Err(LockError::no_answer(limit)),
    };
    let took = clock::now().since(asked_at);
    let users = users(&etcd, credentials).await;
    let members = members(&etcd).await;
    let keys = within(STEP_TIMEOUT, keys(&etcd, &settings.prefix)).await;
    let (trial, granted_by) = trial_lock::run(&etcd, &settings.prefix, timings).await;
    let header = status
        .as_ref()
        .and_then(|status| read_header(status.header()).ok());
    Ok(Answer {
        took,
        header: header.or(granted_by),
        version: status.as_ref().map(|status| status.version().to_owned()),
        status: status.as_ref().map(state),
        members,
        users,
        trial,
        keys: keys.map_err(complaint),
    })
}

/// The status, or `None` if this user may not read it: since 3.4.42, 3.5.28 and 3.6.9 only root may.
fn status_answer(
    status: Result<StatusResponse, Error>,
) -> Result<Option<StatusResponse>, LockError> {
    match status.map_err(LockError::from) {
        Ok(status) => Ok(Some(status)),
        Err(error) if error.kind == ErrorKind::Refused => Ok(None),
        Err(error) => Err(error),
    }
}

fn state(status: &StatusResponse) -> MemberStatus {
    MemberStatus {
        leader: status.leader(),
        learner: status.is_learner(),
        size: status.db_size(),
        quota: status.db_size_quota(),
        // No alarm request: the client library casts its answer without a check for unknown alarms.
        errors: status.errors().to_vec(),
    }
}

/// Whether authentication is enabled; `None` without credentials, as only a login shows it.
async fn users(etcd: &Connection, credentials: Option<&Credentials>) -> Option<bool> {
    let Credentials { name, password, .. } = credentials?;
    let mut auth = etcd.client().auth_client();
    let login = auth.authenticate(name.expose().clone(), password.expose().clone());
    // A user that could not log in has no connection, so only one refusal is left.
    match within(STEP_TIMEOUT, login).await {
        Ok(_) => Some(true),
        Err(error) if error.kind == ErrorKind::Refused => Some(false),
        Err(_) => None,
    }
}

/// The keys under the prefix, as this member has them: it needs no majority for that.
async fn keys(etcd: &Connection, prefix: &str) -> Result<KeyFacts, LockError> {
    let end = end_of_prefix(prefix);
    let (mut facts, mut from) = (KeyFacts::default(), prefix.as_bytes().to_vec());
    loop {
        let options = GetOptions::new()
            .with_range(end.as_str())
            .with_limit(KEYS_PER_READ)
            .with_keys_only()
            .with_serializable();
        let read = etcd.kv().get(from, Some(options)).await?;
        facts.count += read.kvs().len();
        let permanent = read.kvs().iter().filter(|key| key.lease() == 0);
        facts.permanent.extend(permanent.map(|key| {
            let name = String::from_utf8_lossy(key.key()).into_owned();
            (name, FencingToken(key.create_revision()))
        }));
        match read.kvs().last().filter(|_| read.more()) {
            Some(last) => from = [last.key(), &[0]].concat(),
            None => return Ok(facts),
        }
    }
}

async fn members(etcd: &Connection) -> Vec<Member> {
    // Without the permission, the list stays empty.
    let Ok(list) = within(STEP_TIMEOUT, etcd.client().cluster_client().member_list()).await else {
        return Vec::new();
    };
    let member = |member: &etcd_client::Member| Member {
        id: member.id(),
        urls: member.client_urls().to_vec(),
        learner: member.is_learner(),
    };
    list.members().iter().map(member).collect()
}

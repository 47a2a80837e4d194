//! One endpoint under examination: who answers, in which state, and whether a lock could live there.
//! It must not know which of the answers are bad, nor the other endpoints.

pub(crate) mod certificates;
mod trial;
mod visit;

use std::time::Duration;

use etcd_client::{Error, ResponseHeader, StatusResponse};
use tokio::time::timeout;

use super::connection::{Connection, connect};
use super::trouble::{Kind, Trouble, connect_hint};
use crate::clock;
use crate::config::Settings;
use crate::config::credentials::Credentials;
use crate::config::endpoint::Endpoint;
use crate::core::doctor::certificate::Certificate;
use crate::core::doctor::endpoints::{Answer, Asked, Complaint, Member, Status};
use crate::core::lease::{Header, Terms};

/// How long one request may take, unless it is a proof: those have the limit of a renewal.
const STEP: Duration = Duration::from_secs(5);

/// What one endpoint has shown.
pub(crate) struct Examined {
    pub(crate) asked: Asked,
    /// The server's certificate, where there is one that is trusted.
    pub(crate) certificate: Option<Certificate>,
}

/// Asks one endpoint everything. Until the first answer it may take as long as `--connect-timeout`.
pub(crate) async fn examine(endpoint: &Endpoint, settings: &Settings, terms: Terms) -> Examined {
    let (answer, visit) = tokio::join!(
        ask(endpoint, settings, terms),
        visit::visit(endpoint, &settings.tls, settings.connect_timeout.min(STEP))
    );
    let answer = answer.map(|answer| Answer {
        version: answer.version.or(visit.version),
        ..answer
    });
    Examined {
        asked: Asked {
            endpoint: endpoint.to_string(),
            answer: answer.map_err(|trouble| {
                let hint = connect_hint(endpoint.https, &trouble.cause);
                complaint(trouble.hinting(hint))
            }),
        },
        certificate: visit.certificate,
    }
}

async fn ask(endpoint: &Endpoint, settings: &Settings, terms: Terms) -> Result<Answer, Trouble> {
    let limit = settings.connect_timeout;
    let credentials = settings.credentials.as_ref();
    let asked_at = clock::now();
    let etcd = connect(endpoint, &settings.tls, credentials, limit).await?;
    let left = limit.saturating_sub(clock::now().since(asked_at));
    let status = match timeout(left, etcd.client().maintenance_client().status()).await {
        Ok(status) => told(status)?,
        Err(_) => return Err(Trouble::silence(limit)),
    };
    let took = clock::now().since(asked_at);
    let users = users(&etcd, credentials).await;
    let members = members(&etcd).await;
    let (trial, granted_by) = trial::run(&etcd, &settings.prefix, terms).await;
    let header = status.as_ref().and_then(|status| header(status.header()));
    Ok(Answer {
        took,
        header: header.or(granted_by),
        version: status.as_ref().map(|status| status.version().to_owned()),
        status: status.as_ref().map(state),
        members,
        users,
        trial,
    })
}

/// The status, or nothing where it is not for this user: since 3.4.42, 3.5.28 and 3.6.9 it is for root.
fn told(status: Result<StatusResponse, Error>) -> Result<Option<StatusResponse>, Trouble> {
    match status.map_err(Trouble::from) {
        Ok(status) => Ok(Some(status)),
        Err(trouble) if trouble.kind == Kind::Refused => Ok(None),
        Err(trouble) => Err(trouble),
    }
}

fn state(status: &StatusResponse) -> Status {
    Status {
        leader: status.leader(),
        learner: status.is_learner(),
        size: status.db_size(),
        quota: status.db_size_quota(),
        // Not by an alarm request: the client library trusts the server to know no other alarms.
        errors: status.errors().to_vec(),
    }
}

/// Whether etcd knows users, which only somebody who has credentials can ask.
async fn users(etcd: &Connection, credentials: Option<&Credentials>) -> Option<bool> {
    let Credentials { user, password, .. } = credentials?;
    let mut auth = etcd.client().auth_client();
    let login = auth.authenticate(user.clone(), password.clone());
    // Who could not log in has no connection, so that only one refusal is left.
    match within(STEP, login).await {
        Ok(_) => Some(true),
        Err(trouble) if trouble.kind == Kind::Refused => Some(false),
        Err(_) => None,
    }
}

async fn members(etcd: &Connection) -> Vec<Member> {
    // Who may not ask does without.
    let Ok(list) = within(STEP, etcd.client().cluster_client().member_list()).await else {
        return Vec::new();
    };
    let member = |member: &etcd_client::Member| Member {
        id: member.id(),
        urls: member.client_urls().to_vec(),
        learner: member.is_learner(),
    };
    list.members().iter().map(member).collect()
}

/// Bounds a request.
async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Trouble> {
    match timeout(limit, answer).await {
        Ok(answer) => answer.map_err(Trouble::from),
        Err(_) => Err(Trouble::silence(limit)),
    }
}

fn header(header: Option<&ResponseHeader>) -> Option<Header> {
    header.map(|header| Header {
        cluster: header.cluster_id(),
        member: header.member_id(),
        term: header.raft_term(),
        revision: header.revision(),
    })
}

fn complaint(trouble: Trouble) -> Complaint {
    Complaint {
        refused: trouble.kind == Kind::Refused,
        cause: trouble.cause,
        hint: trouble.hint,
    }
}

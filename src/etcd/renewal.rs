//! One renewal of a lease: the keepalive, and only after its answer the read of the key.
//! It must not know when a renewal is due, nor what follows when it fails.

use std::time::Duration;

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper, ResponseHeader};

use super::connection::Connection;
use super::error::LockError;
use crate::core::proof::{EntryId, Header, LeaseId, Renewal};
use crate::sys::clock;

/// A keepalive stream on one connection, with at most one request unanswered: answers carry no
/// number, so a second request would make them ambiguous (measured: after a stall all come at once).
pub(super) struct KeepAlive {
    etcd: Connection,
    lease: LeaseId,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

impl KeepAlive {
    /// Opens a stream. The client library consumes its first answer.
    ///
    /// # Errors
    /// `LeaseNotFound` when the server does not know the lease.
    pub(super) async fn open(etcd: &Connection, lease: LeaseId) -> Result<Self, LockError> {
        let (keeper, answers) = etcd.leases().keep_alive(lease.0).await?;
        Ok(Self {
            etcd: etcd.clone(),
            lease,
            keeper,
            answers,
        })
    }

    pub(super) fn is_on(&self, etcd: &Connection) -> bool {
        self.etcd.is(etcd)
    }

    /// Sends a keepalive and, after its answer, runs `read`: see `core::proof::Ownership::verify`. `check` reads the
    /// header of the answer. After an error the stream must not be used again.
    ///
    /// # Errors
    /// When the stream ends, or answers for another lease.
    pub(super) async fn renew(
        &mut self,
        check: impl FnOnce(Option<&ResponseHeader>) -> Result<Header, LockError>,
        read: impl Future<Output = Result<(Header, Option<EntryId>), LockError>>,
    ) -> Result<Renewal, LockError> {
        let sent_at = clock::now();
        self.keeper.keep_alive().await?;
        let answer = self.answers.message().await?;
        let answer =
            answer.ok_or_else(|| LockError::retryable("the keepalive stream was closed"))?;
        if answer.id() != self.lease.0 {
            return Err(LockError::retryable("a keepalive answer for another lease"));
        }
        let header = check(answer.header())?;
        let left = Duration::from_secs(answer.ttl().try_into().unwrap_or(0));
        Ok(Renewal {
            sent_at,
            keepalive: Some((header, left)),
            read: read.await?,
        })
    }
}

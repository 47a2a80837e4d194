//! The logins of one dlock at all endpoints: the password of each, and the pause after one that etcd refused.
//! It must not know how a login is sent.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use tokio::time::sleep;

use super::error::LockError;
use crate::config::credentials::Credentials;
use crate::config::secret::Secret;
use crate::core::time::Instant;
use crate::sys::clock;

/// After a refusal, the least time between two logins: etcd checks a password with bcrypt, which costs it some 60 ms of a
/// core.
const PAUSE: Duration = Duration::from_secs(2);

/// The user of all connections.
pub(super) struct Login {
    credentials: Credentials,
    /// The password of the last login: its file may have changed since dlock started.
    password: RefCell<Secret>,
    /// Why the file could not be read again.
    unreadable: RefCell<Option<String>>,
    last_at: Cell<Option<Instant>>,
    /// The refusal of the last login, or of its token right after it.
    refusal: RefCell<Option<LockError>>,
}

impl Login {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            password: RefCell::new(credentials.password.clone()),
            credentials,
            unreadable: RefCell::default(),
            last_at: Cell::default(),
            refusal: RefCell::default(),
        }
    }

    /// The user, for messages.
    pub(super) fn user(&self) -> &str {
        &self.credentials.user
    }

    /// The user, for the login alone.
    pub(super) fn name(&self) -> &Secret {
        &self.credentials.name
    }

    /// The end of the pause that is in force, and its cause.
    fn paused(&self) -> Option<(Instant, LockError)> {
        let until = self.last_at.get()? + PAUSE;
        let refusal = self.refusal.borrow().clone()?;
        (clock::now() < until).then_some((until, refusal))
    }

    /// Waits for the end of a pause, for half of `limit` at most: the rest is for the login.
    ///
    /// # Errors
    /// The last refusal, at the end of the pause or of `limit`, when the pause is longer than that.
    pub(super) async fn wait(&self, limit: Duration) -> Result<(), LockError> {
        let Some((until, refusal)) = self.paused() else {
            return Ok(());
        };
        let left = until.since(clock::now());
        if left > limit / 2 {
            sleep(left.min(limit)).await;
            return Err(refusal);
        }
        clock::until(Some(until)).await;
        Ok(())
    }

    /// Begins a login. From the second one on, the password is that of its file now.
    ///
    /// # Errors
    /// The last refusal, during the pause after it.
    pub(super) fn begin(&self) -> Result<Secret, LockError> {
        if let Some((_, refusal)) = self.paused() {
            return Err(refusal);
        }
        if self.last_at.replace(Some(clock::now())).is_some() {
            // A file that is being replaced may be away for a moment: then the old password has its chance.
            match self.credentials.read_again() {
                Some(Ok(password)) => {
                    self.password.replace(password);
                    self.unreadable.take();
                }
                Some(Err(error)) => {
                    self.unreadable.replace(Some(format!("{error:#}")));
                }
                None => {}
            }
        }
        Ok(self.password.borrow().clone())
    }

    /// etcd accepted the last login.
    pub(super) fn accepted(&self) {
        self.refusal.take();
    }

    /// etcd refused the last login.
    pub(super) fn refused(&self, mut error: LockError) -> LockError {
        error.cause = format!("cannot log in as '{}': {}", self.user(), error.cause);
        if let Some(unreadable) = &*self.unreadable.borrow() {
            error.cause = format!("{}; {unreadable}", error.cause);
        }
        self.refusal.replace(Some(error.clone()));
        error
    }

    /// etcd refused a token. A token that has lived is replaced at once; one that was made a moment ago is a refusal.
    pub(super) fn token_refused(&self, error: &LockError) {
        let fresh = |at: Instant| clock::now().since(at) < PAUSE;
        if self.last_at.get().is_some_and(fresh) {
            self.refusal.replace(Some(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::ErrorKind;
    use super::*;

    fn refused(login: &Login) -> LockError {
        login.refused(LockError {
            kind: ErrorKind::LoginRefused,
            ..LockError::retryable("authentication failed")
        })
    }

    #[test]
    fn after_a_refusal_no_login_begins_within_two_seconds() {
        let login = Login::new(Credentials::of("team", "secret"));
        assert_eq!(login.begin().unwrap().expose(), "secret");
        login.accepted();
        assert_eq!(
            login.begin().unwrap().expose(),
            "secret",
            "no refusal, no pause"
        );
        let cause = refused(&login).cause;
        assert_eq!(cause, "cannot log in as 'team': authentication failed");
        assert_eq!(login.begin().unwrap_err().cause, cause);
        login.accepted();
        assert!(login.begin().is_ok());
    }

    #[test]
    fn a_token_that_is_refused_at_once_is_a_refusal_and_an_old_one_is_not() {
        let login = Login::new(Credentials::of("team", "secret"));
        let expired = LockError {
            kind: ErrorKind::AuthExpired,
            ..LockError::retryable("invalid auth token")
        };
        login.token_refused(&expired);
        assert!(login.begin().is_ok());
        login.token_refused(&expired);
        assert_eq!(login.begin().unwrap_err().cause, "invalid auth token");
    }
}

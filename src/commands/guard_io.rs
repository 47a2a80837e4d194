//! The guard's reports as a stream.
//! It must not know the reaction to them.

use std::io;

use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::guard::{Guard, GuardReport};

/// The guard, and the socket that carries its reports.
pub(crate) struct GuardIo {
    pub(crate) guard: Guard,
    socket: UnixStream,
}

impl GuardIo {
    /// The caller must be inside a tokio runtime.
    pub(crate) fn open(guard: Guard) -> io::Result<Self> {
        let socket = UnixStream::from_std(guard.socket()?)?;
        Ok(Self { guard, socket })
    }

    /// The next report; cancel-safe. A guard whose socket fails counts as dead.
    pub(crate) async fn report(&mut self) -> GuardReport {
        loop {
            let guard = &mut self.guard;
            let heard = self.socket.try_io(Interest::READABLE, || {
                guard
                    .report()?
                    .ok_or_else(|| io::ErrorKind::WouldBlock.into())
            });
            match heard {
                Ok(report) => return report,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return GuardReport::GuardDead,
            }
            let interest = if guard.owes() {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            if self.socket.ready(interest).await.is_err() {
                return GuardReport::GuardDead;
            }
            if guard.owes() {
                // The next read meets the same error.
                let _ = self.socket.try_io(Interest::WRITABLE, || {
                    guard.flush()?;
                    if guard.owes() {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    Ok(())
                });
            }
        }
    }
}

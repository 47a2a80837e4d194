//! The guard's reports, awaited.
//! It must not know what they lead to.

use std::io;

use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::guard::{Guard, GuardReport};

/// The guard and the socket over which it reports.
pub(crate) struct GuardIo {
    pub(crate) guard: Guard,
    socket: UnixStream,
}

impl GuardIo {
    /// Must be called inside a runtime.
    pub(crate) fn open(guard: Guard) -> io::Result<Self> {
        let socket = UnixStream::from_std(guard.socket()?)?;
        Ok(Self { guard, socket })
    }

    /// The next report; cancel-safe. A guard that cannot be heard any more is a dead one.
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
                // The next look for a report meets the same error.
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

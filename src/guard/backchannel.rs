//! Messages over a socket pair, one line of JSON each; neither side ever waits for the other.
//! It must not know what the messages mean.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Maximum length of a line. The longest message carries the variables of the command.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// One end of the socket pair.
pub(super) struct Backchannel {
    socket: UnixStream,
    /// The part of the next line that has arrived.
    received: Vec<u8>,
    /// Lines that the socket had no room for.
    unsent: Vec<u8>,
}

impl Backchannel {
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = UnixStream::pair()?;
        Ok((Self::new(one)?, Self::new(other)?))
    }

    fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            received: Vec::new(),
            unsent: Vec::new(),
        })
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// The next message; `None` if there is none yet. An error means that the peer is gone or sends nonsense.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.received.len() > MAX_MESSAGE_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut chunk = [0; 4096];
            match rustix::io::read(&self.socket, &mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.received.extend(chunk.iter().take(length)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a message that must not be lost: [`flush`](Self::flush) sends later what the socket has no room for now.
    pub(super) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.unsent, message)?;
        self.unsent.push(b'\n');
        self.flush()
    }

    /// Sends a message that may be lost. Returns whether it was sent.
    pub(super) fn try_send(&mut self, message: &impl Serialize) -> io::Result<bool> {
        self.flush()?;
        let room = !self.has_unsent();
        if room {
            self.send(message)?;
        }
        Ok(room)
    }

    /// Sends unsent lines, as far as the socket has room.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.has_unsent() {
            match send(&self.socket, &self.unsent, SendFlags::NOSIGNAL) {
                Ok(length) => drop(self.unsent.drain(..length.min(self.unsent.len()))),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => {
                    // The peer is gone: it never reads the rest, and a wait for room would never end.
                    self.unsent.clear();
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Whether [`flush`](Self::flush) has something to send as soon as the socket is writable.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }
}

impl AsFd for Backchannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn unsent_lines_arrive_when_the_peer_reads_again_and_lossy_messages_do_not_pile_up() {
        let (mut one, mut other) = Backchannel::pair().unwrap();
        let mut taken = 0_u32;
        while one.try_send(&taken).unwrap() && !one.has_unsent() {
            taken += 1;
        }
        let long = "x".repeat(MAX_MESSAGE_BYTES / 2);
        one.send(&long).unwrap();
        let pending = one.unsent.len();
        assert!(!one.try_send(&0).unwrap());
        assert_eq!(one.unsent.len(), pending);

        for expected in 0..taken {
            assert_eq!(other.receive::<u32>().unwrap(), Some(expected));
        }
        let text = loop {
            one.flush().unwrap();
            if let Some(serde_json::Value::String(text)) = other.receive().unwrap() {
                break text;
            }
        };
        assert!(text == long && !one.has_unsent());
        assert_eq!(other.receive::<u32>().unwrap(), None);
    }

    #[test]
    fn the_end_comes_after_the_last_message() {
        let (mut one, mut other) = Backchannel::pair().unwrap();
        // An unread message makes the kernel return "connection reset" to the peer, but only at the end.
        other.send(&7).unwrap();
        one.send(&8).unwrap();
        drop(one);
        assert_eq!(other.receive::<u32>().unwrap(), Some(8));
        assert!(other.receive::<u32>().is_err());
        assert!(other.send(&9).is_err());
    }

    #[test]
    fn nothing_is_kept_for_a_peer_that_is_gone_and_its_last_messages_are_read() {
        let (mut one, mut other) = Backchannel::pair().unwrap();
        other.send(&7).unwrap();
        while one.try_send(&0).unwrap() && !one.has_unsent() {}
        drop(other);
        assert!(one.send(&8).is_err());
        assert!(!one.has_unsent());
        assert_eq!(one.receive::<u32>().unwrap(), Some(7));
    }

    #[test]
    fn nonsense_and_endless_lines_are_errors() {
        let (mut one, mut other) = Backchannel::pair().unwrap();
        one.socket.write_all(b"\xff{]\n").unwrap();
        assert!(other.receive::<u32>().is_err());
        let endless = loop {
            if let Err(Errno::PIPE) = send(&one.socket, &[b'1'; 4096], SendFlags::NOSIGNAL) {
                panic!("the other end is open");
            }
            if let Err(error) = other.receive::<u32>() {
                break error;
            }
        };
        assert_eq!(endless.kind(), io::ErrorKind::InvalidData);
    }
}

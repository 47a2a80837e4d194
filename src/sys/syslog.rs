//! Messages to the system's log, as `syslog(3)` sends them.
//! It must not know what a message is about.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::sys::proc::own_pid;

/// The socket of the log's daemon: journald, rsyslogd and others.
const SOCKET: &str = "/dev/log";

/// `LOG_USER`, the facility of `logger(1)`.
const FACILITY: u8 = 1 << 3;

/// The severity of a message.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Severity {
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

/// Sends one line. Never waits; an error drops the line, as there is nobody to tell.
pub(crate) fn send(severity: Severity, text: &str) {
    // A new socket each time: a daemon that was restarted listens on another one.
    let _ = send_to(SOCKET.as_ref(), severity, text);
}

fn send_to(socket: &Path, severity: Severity, text: &str) -> io::Result<()> {
    let own = UnixDatagram::unbound()?;
    own.set_nonblocking(true)?;
    // The daemon knows the time; without one, it takes its own.
    let line = format!(
        "<{}>dlock[{}]: {text}",
        FACILITY | severity as u8,
        own_pid()
    );
    own.send_to(line.as_bytes(), socket).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_priority_program_and_pid() {
        let directory = std::env::temp_dir().join(format!("dlock-syslog-{}", own_pid()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        for (severity, priority) in [
            (Severity::Error, 11),
            (Severity::Warning, 12),
            (Severity::Info, 14),
            (Severity::Debug, 15),
        ] {
            send_to(&path, severity, "the lock 'x' is lost").unwrap();
            let mut line = [0; 200];
            let length = daemon.recv(&mut line).unwrap();
            let expected = format!("<{priority}>dlock[{}]: the lock 'x' is lost", own_pid());
            assert_eq!(String::from_utf8_lossy(&line[..length]), expected);
        }
        drop(daemon);
        assert!(send_to(&path, Severity::Error, "nobody reads").is_err());
        let _ = std::fs::remove_dir_all(&directory);
    }
}

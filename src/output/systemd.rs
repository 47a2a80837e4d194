//! Messages to the service manager, systemd(1): the lock is held, what dlock waits for, and that dlock is alive: `sd_notify(3)`.
//! It must not know when a status changes, nor whether a command runs.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Messages to the watchdog in its period: dlock and the command answer it in turn, and so in each other's pauses.
const ANSWERS_PER_PERIOD: u32 = 4;

/// The service is up: the lock is held and its command runs.
pub(crate) fn ready(status: &str) {
    notify(&format!("READY=1\nSTATUS={}", one_line(status)));
}

/// The text that `systemctl status` shows.
pub(crate) fn status(status: &str) {
    notify(&format!("STATUS={}", one_line(status)));
}

/// While polled, answers the manager's watchdog (`WatchdogSec=`) in place of a command that does not run; `is_due` says so.
pub(crate) async fn answer_watchdog(is_due: impl Fn() -> bool) -> Infallible {
    let socket = variable("NOTIFY_SOCKET");
    let period = watchdog_period(&variable, std::process::id());
    let (Some(socket), Some(period)) = (socket, period) else {
        return std::future::pending().await;
    };
    loop {
        if is_due() {
            let _ = send(&socket, "WATCHDOG=1");
        }
        tokio::time::sleep(period / ANSWERS_PER_PERIOD).await;
    }
}

/// Time after which the manager takes this process for dead, unless it hears from it. As in `sd_watchdog_enabled(3)`, the
/// variables are meant for one process; without a process id, the caller has left them to the command.
fn watchdog_period(variable: &dyn Fn(&str) -> Option<OsString>, own: u32) -> Option<Duration> {
    let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
    let micros = number("WATCHDOG_USEC").filter(|&micros| micros > 0)?;
    (number("WATCHDOG_PID")? == u64::from(own)).then(|| Duration::from_micros(micros))
}

/// Sends a message. Errors are ignored: a manager that does not listen needs none.
fn notify(message: &str) {
    if let Some(socket) = socket_path(&variable, std::process::id()) {
        let _ = send(&socket, message);
    }
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The manager's socket, if this process may use it. The command inherits `NOTIFY_SOCKET` as without dlock, and so does a
/// dlock further below a service: only the process that the manager started may notify it, which systemd.exec(5) names in
/// `SYSTEMD_EXEC_PID` (since 248).
fn socket_path(variable: &dyn Fn(&str) -> Option<OsString>, own: u32) -> Option<OsString> {
    let started = variable("SYSTEMD_EXEC_PID");
    let ours = started.is_none_or(|pid| pid.to_str() == Some(&own.to_string()));
    variable("NOTIFY_SOCKET").filter(|_| ours)
}

/// Never waits: a manager that does not read must not delay a renewal.
fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let own = UnixDatagram::unbound()?;
    own.set_nonblocking(true)?;
    own.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

/// A line feed would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_the_manager_started_notifies_it() {
        let spoken = |exec_pid: Option<&str>, socket: Option<&str>| {
            let variable = |name: &str| match name {
                "NOTIFY_SOCKET" => socket.map(OsString::from),
                "SYSTEMD_EXEC_PID" => exec_pid.map(OsString::from),
                _ => None,
            };
            socket_path(&variable, 42).is_some()
        };
        assert!(spoken(None, Some("/run/x")) && spoken(Some("42"), Some("/run/x")));
        assert!(!spoken(Some("41"), Some("/run/x")) && !spoken(Some("none"), Some("/run/x")));
        assert!(!spoken(Some("42"), None));
    }

    #[test]
    fn the_watchdog_is_answered_by_the_process_that_it_watches() {
        let period = |pid: Option<&str>, usec: Option<&str>| {
            let variable = |name: &str| match name {
                "WATCHDOG_PID" => pid.map(OsString::from),
                "WATCHDOG_USEC" => usec.map(OsString::from),
                _ => None,
            };
            watchdog_period(&variable, 42)
        };
        let watched = Some(Duration::from_secs(30));
        assert_eq!(period(Some("42"), Some("30000000")), watched);
        for (pid, usec) in [
            (Some("41"), Some("30000000")),
            (None, Some("30000000")),
            (Some("42"), Some("0")),
            (Some("42"), Some("soon")),
            (Some("42"), None),
        ] {
            assert_eq!(period(pid, usec), None, "{pid:?} {usec:?}");
        }
    }

    #[test]
    fn a_path_and_an_abstract_name_are_reached_and_a_full_socket_does_not_block() {
        let directory = std::env::temp_dir().join(format!("dlock-notify-{}", std::process::id()));
        let name = format!("dlock-notify-{}", std::process::id());
        let abstract_socket = SocketAddr::from_abstract_name(&name).unwrap();
        for (reader, socket) in [
            (
                UnixDatagram::bind(&directory).unwrap(),
                directory.clone().into_os_string(),
            ),
            (
                UnixDatagram::bind_addr(&abstract_socket).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            send(&socket, "READY=1").unwrap();
            let mut read = [0; 16];
            let length = reader.recv(&mut read).unwrap();
            assert_eq!(&read[..length], b"READY=1");
            let full = (0..100_000).find_map(|_| send(&socket, "STATUS=x").err());
            assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
        }
        std::fs::remove_file(&directory).unwrap();
        assert!(send(directory.as_os_str(), "READY=1").is_err());
    }

    #[test]
    fn a_lock_name_adds_no_line() {
        assert_eq!(
            one_line("waiting for 'a\nREADY=1'"),
            "waiting for 'a READY=1'"
        );
    }
}

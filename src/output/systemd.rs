//! Status messages to the service manager, systemd(1): the lock is held, or what dlock waits for: `sd_notify(3)`.
//! It must not know when a status changes.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The service is up: the lock is held and its command runs.
pub(crate) fn ready(status: &str) {
    notify(&format!("READY=1\nSTATUS={}", one_line(status)));
}

/// The text that `systemctl status` shows.
pub(crate) fn status(status: &str) {
    notify(&format!("STATUS={}", one_line(status)));
}

/// Sends a message. Errors are ignored: a manager that does not listen needs none.
fn notify(message: &str) {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(socket) = socket_path(&variable, std::process::id()) {
        let _ = send(&socket, message);
    }
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

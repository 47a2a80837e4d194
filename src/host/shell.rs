//! The shell that runs a string of commands.
//! It must not know the string.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The shell that every system has.
const DEFAULT: &str = "/bin/sh";

/// Programs that refuse a login; some systems list them as shells.
const REFUSING: [&str; 2] = ["nologin", "false"];

/// The shell that `$SHELL` names, or /bin/sh if that is none: the users of services have /usr/sbin/nologin there, which
/// would not run the string.
pub(crate) fn command_shell(named: Option<OsString>) -> OsString {
    let list = fs::read("/etc/shells").ok();
    named
        .filter(|shell| is_shell(shell, list.as_deref()))
        .unwrap_or_else(|| DEFAULT.into())
}

/// Whether the list of `shells(5)` has `path`. Without a list, every program counts that does not refuse.
fn is_shell(path: &OsStr, list: Option<&[u8]>) -> bool {
    let refuses = |name: &OsStr| REFUSING.iter().any(|one| name == *one);
    let path = Path::new(path);
    if !path.is_absolute() || path.file_name().is_none_or(refuses) {
        return false;
    }
    list.is_none_or(|list| {
        let mut lines = list.split(|&byte| byte == b'\n');
        lines.any(|line| line.trim_ascii() == path.as_os_str().as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "dlock uses /bin/sh if the variable is not set or names no shell: /usr/sbin/nologin, /bin/false, or one that
    /// /etc/shells does not have" (dlock-run(1))
    #[test]
    fn a_program_that_is_no_shell_is_replaced() {
        let list = b"# shells\n/bin/sh\n/bin/bash \n\n/usr/sbin/nologin\n/bin/false";
        let is_listed = |path: &str| is_shell(path.as_ref(), Some(list));
        assert!(is_listed("/bin/sh") && is_listed("/bin/bash"));
        for path in [
            "/usr/sbin/nologin",
            "/bin/false",
            "/usr/bin/git-shell",
            "bash",
            "# shells",
            "",
            "/",
        ] {
            assert!(!is_listed(path), "{path}");
        }
        assert!(is_shell("/opt/fish".as_ref(), None));
        assert!(!is_shell("/sbin/nologin".as_ref(), None));
        for named in [None, Some("/usr/sbin/nologin"), Some("/bin/false")] {
            assert_eq!(command_shell(named.map(OsString::from)), "/bin/sh");
        }
    }
}

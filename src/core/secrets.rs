//! The variables that contain a password of etcd, and the part of them that a command gets.
//! It must not know how dlock uses them.

/// The variables of the password alone.
pub(crate) const PASSWORD_VARIABLES: [&str; 2] = ["DLOCK_PASSWORD", "ETCDCTL_PASSWORD"];

/// The variables of the user, whose text may be `NAME:PASSWORD`.
const USER_VARIABLES: [&str; 2] = ["DLOCK_USER", "ETCDCTL_USER"];

/// The part of an entry of the environment that is no password; `None` if nothing is left.
pub(crate) fn without_password(entry: &[u8]) -> Option<&[u8]> {
    let split = |byte| entry.iter().position(|it| *it == byte);
    let Some(equals) = split(b'=') else {
        return Some(entry);
    };
    let is = |name: &&str| name.as_bytes() == &entry[..equals];
    if PASSWORD_VARIABLES.iter().any(is) {
        return None;
    }
    match split(b':') {
        Some(colon) if USER_VARIABLES.iter().any(is) => Some(&entry[..colon]),
        _ => Some(entry),
    }
}

/// The position in an entry of the environment at which a password begins; `None` if it contains none.
pub(crate) fn password_start(entry: &[u8]) -> Option<usize> {
    let value = || entry.iter().position(|byte| *byte == b'=').map(|at| at + 1);
    let kept = without_password(entry).map_or_else(value, |kept| Some(kept.len()))?;
    (kept < entry.len()).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_end_of_an_entry() {
        for (entry, start) in [
            ("DLOCK_PASSWORD=secret", Some(15)),
            ("ETCDCTL_PASSWORD=", None),
            ("ETCDCTL_USER=ci:sec:ret", Some(15)),
            ("DLOCK_USER=ci", None),
            ("USER=ci:x", None),
            ("DLOCK_PASSWORD", None),
        ] {
            assert_eq!(password_start(entry.as_bytes()), start, "{entry}");
        }
    }

    #[test]
    fn a_command_gets_the_name_of_the_user_alone() {
        for (entry, kept) in [
            ("DLOCK_PASSWORD=secret", None),
            ("ETCDCTL_PASSWORD=", None),
            ("ETCDCTL_USER=ci:sec:ret", Some("ETCDCTL_USER=ci")),
            ("DLOCK_USER=ci:", Some("DLOCK_USER=ci")),
            ("DLOCK_USER=ci", Some("DLOCK_USER=ci")),
            ("DLOCK_PASSWORD_FILE=/a:b", Some("DLOCK_PASSWORD_FILE=/a:b")),
            ("USER=ci:x", Some("USER=ci:x")),
            ("DLOCK_PASSWORD", Some("DLOCK_PASSWORD")),
            ("=:x", Some("=:x")),
        ] {
            let expected = kept.map(str::as_bytes);
            assert_eq!(without_password(entry.as_bytes()), expected, "{entry}");
        }
    }
}

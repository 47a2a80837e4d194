//! The findings on the keys under the prefix: each key of dlock has a lease, and ends with it.
//! It must not know how the keys are read.

use super::Finding;
use super::facts::{Complaint, Named};
use crate::core::blockers::PermanentKey;
use crate::core::keys::lock_name_of;
use crate::core::name::LockName;
use crate::core::proof::FencingToken;
use crate::core::text::shell_word;

/// Findings on single keys; the rest is counted.
const MAX_SHOWN: usize = 10;

/// The findings on the keys that the first endpoint has shown. If this user may not read them, the check of permissions says so.
pub(super) fn check_keys(answers: &[Named], prefix: &str) -> Vec<Finding> {
    const CHECK: &str = "keys";
    let mut read = answers.iter().map(|(_, answer)| &answer.keys);
    let Some(facts) = read.clone().find_map(|keys| keys.as_ref().ok()) else {
        let failed = read.find_map(|keys| keys.as_ref().err().filter(|it| !it.refused));
        let unread = |it: &Complaint| {
            let says = format!("the keys cannot be read: {}", it.cause);
            Finding::warning(CHECK, prefix, &says).maybe_hinting(it.help())
        };
        return failed.map(unread).into_iter().collect();
    };
    if facts.permanent.is_empty() {
        let count = super::counted(facts.count, "key, with a lease", "keys, each with a lease");
        return vec![Finding::ok(CHECK, prefix, &count)];
    }
    let shown = facts.permanent.iter().take(MAX_SHOWN);
    let mut findings: Vec<Finding> = shown
        .map(|(key, token)| {
            let (says, hint) = describe(prefix, key, *token);
            Finding::warning(CHECK, key, &says).hinting(&hint)
        })
        .collect();
    let rest = facts.permanent.len() - findings.len();
    if rest > 0 {
        let says = format!("{rest} more without a lease");
        findings.push(Finding::warning(CHECK, prefix, &says));
    }
    findings
}

/// The effect of a key without a lease on locks, and the way to delete it.
fn describe(prefix: &str, key: &str, token: FencingToken) -> (String, String) {
    let encoded = lock_name_of(prefix, key.as_bytes());
    if let Some(name) = encoded.and_then(LockName::decode) {
        let key = PermanentKey::new(key.to_owned(), token);
        let says = format!("the lock '{name}' is taken for ever: {}", key.describe());
        return (says, key.remedy(&name.to_string()));
    }
    let kind = key
        .strip_prefix(prefix)
        .and_then(|rest| rest.split_once('/'));
    let effect = match kind {
        Some(("once", _)) => "no run with --once-per starts: ",
        Some(("slot", _)) => "a slot is taken for ever: ",
        _ => "",
    };
    let says =
        format!("{effect}the key has no lease, so it never expires, and no dlock has written it");
    let hint = format!(
        "unless another program needs it: etcdctl del {}",
        shell_word(key)
    );
    (says, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_a_lease_has_its_effect_and_its_line() {
        for (key, effect, line) in [
            (
                "p/lock/a%2Fb/1f",
                "the lock 'a/b' is taken for ever: ",
                "dlock break 'a/b' --token 7 --now --yes",
            ),
            (
                "p/once/a",
                "no run with --once-per starts: ",
                "etcdctl del p/once/a",
            ),
            (
                "p/slot/a/1",
                "a slot is taken for ever: ",
                "etcdctl del p/slot/a/1",
            ),
            // No dlock counts this one as an entry.
            ("p/lock/a", "the key has no lease", "etcdctl del p/lock/a"),
            ("p/x", "the key has no lease", "etcdctl del p/x"),
        ] {
            let (says, hint) = describe("p/", key, FencingToken(7));
            assert!(says.starts_with(effect), "{key}: {says}");
            assert!(hint.ends_with(line), "{key}: {hint}");
        }
    }
}

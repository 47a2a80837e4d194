//! The name of a lock, and the list of locks that a command holds.
//! It must not know how the keys are read, nor where the list's text comes from.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::request::Mode;

/// Maximum length in bytes before encoding: that of a file name, so that every lock can have a file of its own.
pub const MAX_NAME_BYTES: usize = 255;

/// The characters that are encoded: all but `[A-Za-z0-9._~@:+=,-]`. `%` is encoded, which makes the encoding injective;
/// so is `/`, which keeps `job` and `job/nightly` apart (etcd-io/website#710).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'@')
    .remove(b':')
    .remove(b'+')
    .remove(b'=')
    .remove(b',')
    .remove(b'-');

/// A valid name of a lock, as its user wrote it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockName(String);

/// Why a text cannot name a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidName {
    Empty,
    /// Its length in bytes.
    TooLong(usize),
    Control,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a lock's name must not be empty"),
            Self::TooLong(length) => write!(
                f,
                "a lock's name has at most {MAX_NAME_BYTES} bytes, this one has {length}"
            ),
            Self::Control => write!(f, "a lock's name must not contain control characters"),
        }
    }
}

impl std::error::Error for InvalidName {}

impl FromStr for LockName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() {
            Err(InvalidName::Empty)
        } else if text.len() > MAX_NAME_BYTES {
            Err(InvalidName::TooLong(text.len()))
        } else if text.chars().any(char::is_control) {
            Err(InvalidName::Control)
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text whose encoding is `encoded`, if [`encode`] could have written it.
fn decode(encoded: &str) -> Option<String> {
    let text = percent_decode_str(encoded).decode_utf8().ok()?;
    (encode(&text) == encoded).then(|| text.into_owned())
}

/// Encodes a name, or the beginning of one, for keys.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

impl LockName {
    /// The encoded name, as in keys and in `DLOCK_HELD`.
    pub fn encoded(&self) -> String {
        encode(&self.0)
    }

    /// The name whose encoding is `encoded`, if [`LockName::encoded`] could have written it.
    pub fn decode(encoded: &str) -> Option<Self> {
        decode(encoded)?.parse().ok()
    }
}

/// The locks of one run in the order in which they are taken: that of the bytes of their names, so that all runs take the
/// same locks in the same order, and no two of them wait for each other. The error is a name that is given twice.
pub fn in_order(name: &LockName, also: Vec<LockName>) -> Result<Vec<LockName>, LockName> {
    let mut all = also;
    all.push(name.clone());
    all.sort();
    match all.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(pair[0].clone()),
        None => Ok(all),
    }
}

/// The default prefix of the keys in etcd.
pub const PREFIX: &str = "dlock/";

/// The scope in which a name stands for one lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This machine alone.
    Machine,
    /// The keys in etcd with this prefix, which ends with a slash.
    Prefix(String),
}

impl fmt::Display for Scope {
    /// The prefix as it follows a token in `DLOCK_HELD`: empty for the default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => write!(f, "/local"),
            Self::Prefix(prefix) if prefix == PREFIX => Ok(()),
            Self::Prefix(prefix) => write!(f, "/prefix={}", encode(prefix)),
        }
    }
}

/// One lock that an outer dlock holds for this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLock {
    pub name: LockName,
    pub token: i64,
    pub mode: Mode,
    pub scope: Scope,
}

/// The locks that outer dlocks hold for this process, outermost first: the text of `DLOCK_HELD`, `outer:123
/// inner:130/local other:135/prefix=team%2F readers:140/shared pool:150/local/4`; the last one has one of four slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldLocks(Vec<HeldLock>);

impl HeldLocks {
    /// Parses the text of an outer dlock. Anything that is no `<encoded name>:<token>` is left out: every program may
    /// change the variable, and garbage in it must not stop a job.
    pub fn parse(text: &str) -> Self {
        let link = |word: &str| {
            // A name may contain a colon, but a token may not; neither contains a slash.
            let (name, token) = word.rsplit_once(':')?;
            let mut words = token.split('/').peekable();
            let token = words.next()?;
            let prefix = words.next_if(|word| word.starts_with("prefix="));
            let scope = match prefix.and_then(|word| word.strip_prefix("prefix=")) {
                Some(encoded) => Scope::Prefix(decode(encoded)?),
                None if words.next_if_eq(&"local").is_some() => Scope::Machine,
                None => Scope::Prefix(PREFIX.to_owned()),
            };
            let mode = match words.next() {
                None => Mode::Exclusive,
                Some("shared") => Mode::Shared,
                Some(slots) => Mode::Slots(slots.parse().ok()?),
            };
            if words.next().is_some() {
                return None;
            }
            let token = token.parse::<i64>().ok().filter(|token| *token > 0)?;
            let name = LockName::decode(name)?;
            Some(HeldLock {
                name,
                token,
                mode,
                scope,
            })
        };
        Self(text.split_ascii_whitespace().filter_map(link).collect())
    }

    /// The innermost lock `name` in this scope.
    pub fn find(&self, name: &LockName, scope: &Scope) -> Option<&HeldLock> {
        let mut inner = self.0.iter().rev();
        inner.find(|link| link.name == *name && link.scope == *scope)
    }

    /// The innermost lock `name`: in this scope if there is one, else in any.
    pub fn named(&self, name: &LockName, scope: Option<&Scope>) -> Option<&HeldLock> {
        let here = scope.and_then(|scope| self.find(name, scope));
        let mut inner = self.0.iter().rev();
        here.or_else(|| inner.find(|link| link.name == *name))
    }

    /// The locks in this scope, outermost first.
    pub fn within(&self, scope: &Scope) -> impl Iterator<Item = &HeldLock> {
        self.0.iter().filter(move |link| link.scope == *scope)
    }

    /// A lock `name` in any scope with this token.
    pub fn with_token(&self, name: &LockName, token: i64) -> Option<&HeldLock> {
        let mut inner = self.0.iter().rev();
        inner.find(|link| link.name == *name && link.token == token)
    }

    /// The list for the command under another lock.
    #[must_use]
    pub fn with(mut self, link: HeldLock) -> Self {
        self.0.push(link);
        self
    }
}

impl fmt::Display for HeldLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, link) in self.0.iter().enumerate() {
            let blank = if position == 0 { "" } else { " " };
            let HeldLock { token, scope, .. } = link;
            write!(f, "{blank}{}:{token}{scope}", link.name.encoded())?;
            match link.mode {
                Mode::Exclusive => {}
                Mode::Shared => write!(f, "/shared")?,
                Mode::Slots(slots) => write!(f, "/{slots}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> LockName {
        text.parse().unwrap()
    }

    #[test]
    fn invalid_names_are_refused() {
        assert_eq!("".parse::<LockName>(), Err(InvalidName::Empty));
        assert_eq!(
            "x".repeat(256).parse::<LockName>(),
            Err(InvalidName::TooLong(256))
        );
        assert_eq!(
            "ä".repeat(128).parse::<LockName>(),
            Err(InvalidName::TooLong(256))
        );
        for control in ["a\nb", "\0", "\u{7f}", "\u{85}", "a\tb", "\u{1b}[1m"] {
            assert_eq!(
                control.parse::<LockName>(),
                Err(InvalidName::Control),
                "{control:?}"
            );
        }
        assert!("x".repeat(255).parse::<LockName>().is_ok());
        assert!("ünïcode name".parse::<LockName>().is_ok());
    }

    #[test]
    fn the_alphabet_of_encoded_names() {
        assert_eq!(name("job/nightly 100%").encoded(), "job%2Fnightly%20100%25");
        assert_eq!(name("a.b_c~d@e:f+g=h,i-j").encoded(), "a.b_c~d@e:f+g=h,i-j");
    }

    #[test]
    fn held_locks_survive_a_round_trip() {
        let link = |text, token, mode| HeldLock {
            name: name(text),
            token,
            mode,
            scope: match token {
                131.. => Scope::Machine,
                130 => Scope::Prefix(PREFIX.to_owned()),
                _ => Scope::Prefix("team/a b/".to_owned()),
            },
        };
        let held = HeldLocks::default()
            .with(link("outer x", 123, Mode::Exclusive))
            .with(link("a:b", 130, Mode::Shared))
            .with(link("p", 131, Mode::Slots(4)));
        assert_eq!(
            held.to_string(),
            "outer%20x:123/prefix=team%2Fa%20b%2F a:b:130/shared p:131/local/4"
        );
        assert_eq!(HeldLocks::parse(&held.to_string()), held);
        let token = |text, scope| held.find(&name(text), &scope).map(|link| link.token);
        let under = |prefix: &str| Scope::Prefix(prefix.to_owned());
        assert_eq!(token("a:b", under(PREFIX)), Some(130));
        assert_eq!(token("a:b", Scope::Machine), None);
        assert_eq!(token("p", Scope::Machine), Some(131));
        assert_eq!(token("a", under(PREFIX)), None);
        assert_eq!(token("outer x", under("team/a b/")), Some(123));
        assert_eq!(token("outer x", under(PREFIX)), None);
        assert_eq!(held.with_token(&name("p"), 131), held.0.last());
        let outer = held.0.first();
        assert_eq!(held.named(&name("outer x"), None), outer);
        assert_eq!(held.named(&name("outer x"), Some(&under(PREFIX))), outer);
        let both = held.clone().with(link("outer x", 132, Mode::Exclusive));
        assert_eq!(both.named(&name("outer x"), None), both.0.last());
        let scope = under("team/a b/");
        assert_eq!(both.named(&name("outer x"), Some(&scope)), outer);
    }

    #[test]
    fn held_locks_leave_garbage_out() {
        let held = HeldLocks::parse(
            "  x :1 y:z a:5  %zz:1 n:-4 %41:7 m:0 b:6 c:1/x d:1/local/2/3 e:1/2/local f:1/prefix=a/b g:1/local/prefix=a",
        );
        assert_eq!(held.to_string(), "a:5 b:6");
        assert_eq!(HeldLocks::parse(""), HeldLocks::default());
    }

    #[test]
    fn locks_are_taken_in_the_order_of_their_bytes_whichever_is_named_first() {
        let names = |texts: &[&str]| texts.iter().map(|text| name(text)).collect::<Vec<_>>();
        let sorted = names(&["B", "a", "a/b", "b", "ä"]);
        for first in 0..sorted.len() {
            let mut also = sorted.clone();
            let one = also.remove(first);
            also.reverse();
            assert_eq!(in_order(&one, also), Ok(sorted.clone()));
        }
        assert_eq!(in_order(&name("a"), Vec::new()), Ok(names(&["a"])));
        assert_eq!(in_order(&name("a"), names(&["b", "a"])), Err(name("a")));
        assert_eq!(
            in_order(&name("a"), names(&["b", "c", "b"])),
            Err(name("b"))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn encoding_is_injective(one in "\\PC{1,40}", other in "\\PC{1,40}") {
            prop_assume!(one != other);
            prop_assert_ne!(name(&one).encoded(), name(&other).encoded());
        }

        #[test]
        fn decoding_inverts_encoding(text in "\\PC{1,60}") {
            let name = name(&text);
            let encoded = name.encoded();
            prop_assert!(encoded.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
            prop_assert_eq!(LockName::decode(&encoded), Some(name));
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let text = String::from_utf8_lossy(&bytes);
            let _ = text.parse::<LockName>();
            let _ = LockName::decode(&text);
            let held = HeldLocks::parse(&text);
            prop_assert_eq!(HeldLocks::parse(&held.to_string()), held);
        }
    }
}

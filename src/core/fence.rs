//! The state of a fence: the highest token of every lock, as text, and the check of a new token.
//! It must not know where the text is kept, nor who checks.

use std::collections::BTreeMap;
use std::fmt;

use super::name::LockName;
use super::proof::FencingToken;
use super::text::printable;

const TITLE: &str = "dlock-fence";
const VERSION: &str = "1";
/// Last line of the text; a truncated text lacks it.
const END: &str = "end";

/// The highest token seen of every lock, by the lock's encoded name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HighestTokens(BTreeMap<String, FencingToken>);

/// The token is lower than this one, which was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleToken(pub FencingToken);

/// Why a text is not one that [`HighestTokens`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    Foreign,
    Version(String),
    /// Line number, from 1.
    Line(usize),
    Cut,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => write!(f, "it is not a file of dlock fence"),
            Self::Version(version) => {
                let version = printable(version);
                write!(
                    f,
                    "its format has version {version}, and this dlock knows version {VERSION}"
                )
            }
            Self::Line(number) => {
                write!(f, "line {number} is not NAME TOKEN, or repeats a lock")
            }
            Self::Cut => write!(f, "its last line is missing, so the file was cut"),
        }
    }
}

impl HighestTokens {
    /// Parses the text that [`HighestTokens`] displays, and nothing else: a guessed number could be too low.
    pub fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text = str::from_utf8(bytes).map_err(|_| Unreadable::Foreign)?;
        let title = text
            .strip_prefix(TITLE)
            .and_then(|text| text.strip_prefix(' '));
        let (version, rest) = title
            .and_then(|text| text.split_once('\n'))
            .ok_or(Unreadable::Foreign)?;
        if version != VERSION {
            return Err(Unreadable::Version(version.to_owned()));
        }
        let mut seen = BTreeMap::new();
        let mut lines = (2..).zip(rest.split_inclusive('\n'));
        while let Some((number, line)) = lines.next() {
            let line = line.strip_suffix('\n').ok_or(Unreadable::Cut)?;
            if line == END {
                return match lines.next() {
                    None => Ok(Self(seen)),
                    Some((number, _)) => Err(Unreadable::Line(number)),
                };
            }
            let (name, token) = entry(line).ok_or(Unreadable::Line(number))?;
            if seen.insert(name, token).is_some() {
                return Err(Unreadable::Line(number));
            }
        }
        Err(Unreadable::Cut)
    }

    /// The highest token seen of this lock.
    pub fn highest(&self, name: &LockName) -> Option<FencingToken> {
        self.0.get(&name.encoded()).copied()
    }

    /// Accepts `token`, which is then the highest. Returns whether it was not the highest before.
    pub fn admit(&mut self, name: &LockName, token: FencingToken) -> Result<bool, StaleToken> {
        match self.highest(name) {
            Some(highest) if token < highest => Err(StaleToken(highest)),
            Some(highest) if token == highest => Ok(false),
            _ => {
                self.set(name, token);
                Ok(true)
            }
        }
    }

    /// Sets the highest token of this lock, also to a lower one.
    pub fn set(&mut self, name: &LockName, token: FencingToken) {
        self.0.insert(name.encoded(), token);
    }

    /// The text: one line for every lock, `NAME TOKEN`.
    pub fn lines(&self) -> String {
        let line = |(name, token)| format!("{name} {token}\n");
        self.0.iter().map(line).collect()
    }
}

impl fmt::Display for HighestTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TITLE} {VERSION}\n{}{END}\n", self.lines())
    }
}

fn entry(line: &str) -> Option<(String, FencingToken)> {
    let (name, token) = line.split_once(' ')?;
    let name = LockName::decode(name)?.encoded();
    Some((name, parse_token(token)?))
}

/// Parses a token as [`FencingToken`] displays it; 0 is lower than every token that etcd gives out.
pub fn parse_token(text: &str) -> Option<FencingToken> {
    let token = text.parse::<i64>().ok().filter(|token| *token >= 0)?;
    (token.to_string() == text).then_some(FencingToken(token))
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> LockName {
        text.parse().unwrap()
    }

    fn parse(text: &str) -> Result<HighestTokens, Unreadable> {
        HighestTokens::parse(text.as_bytes())
    }

    #[test]
    fn a_lower_token_is_refused_and_changes_nothing() {
        let mut seen = HighestTokens::default();
        let (job, other) = (name("job"), name("job/nightly"));
        assert_eq!(seen.highest(&job), None);
        assert_eq!(seen.admit(&job, FencingToken(33)), Ok(true));
        assert_eq!(seen.admit(&job, FencingToken(34)), Ok(true));
        assert_eq!(seen.admit(&job, FencingToken(34)), Ok(false));
        let before = seen.clone();
        assert_eq!(
            seen.admit(&job, FencingToken(33)),
            Err(StaleToken(FencingToken(34)))
        );
        assert_eq!(seen, before);
        assert_eq!(seen.admit(&other, FencingToken(1)), Ok(true));
        seen.set(&job, FencingToken(7));
        assert_eq!(seen.admit(&job, FencingToken(8)), Ok(true));
        assert_eq!(
            seen.to_string(),
            "dlock-fence 1\njob 8\njob%2Fnightly 1\nend\n"
        );
    }

    #[test]
    fn the_order_of_the_lines_is_free() {
        let seen = parse("dlock-fence 1\nz 9223372036854775807\na 0\nend\n").unwrap();
        assert_eq!(seen.highest(&name("z")), Some(FencingToken(i64::MAX)));
        assert_eq!(seen.lines(), "a 0\nz 9223372036854775807\n");
        assert_eq!(parse("dlock-fence 1\nend\n"), Ok(HighestTokens::default()));
    }

    #[test]
    fn any_other_text_is_refused() {
        use Unreadable::{Cut, Foreign, Line, Version};
        for (text, why) in [
            ("", Foreign),
            ("root:x:0:0\n", Foreign),
            ("dlock-fence", Foreign),
            ("dlock-fence 1", Foreign),
            ("dlock-fence1\nend\n", Foreign),
            ("\u{feff}dlock-fence 1\nend\n", Foreign),
            ("dlock-fence 2\nend\n", Version("2".to_owned())),
            ("dlock-fence 1\r\nend\r\n", Version("1\r".to_owned())),
            ("dlock-fence 1\n", Cut),
            ("dlock-fence 1\njob 3", Cut),
            ("dlock-fence 1\njob 3\n", Cut),
            ("dlock-fence 1\njob 3\nend", Cut),
            ("dlock-fence 1\njob 3\nend\n\n", Line(4)),
            ("dlock-fence 1\nend\njob 3\n", Line(3)),
            ("dlock-fence 1\njob 3\n\nend\n", Line(3)),
            ("dlock-fence 1\njob 3\njob 4\nend\n", Line(3)),
            ("dlock-fence 1\njob -3\nend\n", Line(2)),
            ("dlock-fence 1\njob +3\nend\n", Line(2)),
            ("dlock-fence 1\njob 03\nend\n", Line(2)),
            ("dlock-fence 1\njob 9223372036854775808\nend\n", Line(2)),
            ("dlock-fence 1\njob  3\nend\n", Line(2)),
            ("dlock-fence 1\njob 3 \nend\n", Line(2)),
            ("dlock-fence 1\na/b 3\nend\n", Line(2)),
            ("dlock-fence 1\n%41 3\nend\n", Line(2)),
        ] {
            assert_eq!(parse(text), Err(why), "{text:?}");
        }
        assert_eq!(
            HighestTokens::parse(b"dlock-fence 1\n\xff 3\nend\n"),
            Err(Foreign)
        );
    }

    #[test]
    fn a_strange_version_does_not_steer_a_terminal() {
        let Err(why) = parse("dlock-fence \u{1b}[2J\n") else {
            panic!("accepted");
        };
        assert!(!why.to_string().contains('\u{1b}'), "{why}");
    }

    fn any_seen() -> impl Strategy<Value = HighestTokens> {
        let names = "\\PC{1,30}".prop_map(|text| name(&text).encoded());
        btree_map(names, (0..=i64::MAX).prop_map(FencingToken), 0..8).prop_map(HighestTokens)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_panics(bytes in vec(any::<u8>(), 0..80), near in "dlock-fence 1\n([a%F2 0-9]{0,6}\n){0,4}(end\n)?") {
            let _ = HighestTokens::parse(&bytes);
            if let Ok(seen) = parse(&near) {
                prop_assert_eq!(parse(&seen.to_string()), Ok(seen));
            }
        }

        #[test]
        fn tokens_survive_a_round_trip(seen in any_seen()) {
            prop_assert_eq!(parse(&seen.to_string()), Ok(seen));
        }

        /// A file system that loses the end of a file must not lower a number.
        #[test]
        fn a_truncated_text_is_refused(seen in any_seen(), cut in any::<prop::sample::Index>()) {
            let text = seen.to_string();
            let part = &text.as_bytes()[..cut.index(text.len())];
            prop_assert!(HighestTokens::parse(part).is_err());
        }

        #[test]
        fn the_highest_never_falls(tokens in vec(0..50_i64, 1..30)) {
            let (mut seen, job) = (HighestTokens::default(), name("job"));
            for token in tokens.into_iter().map(FencingToken) {
                let before = seen.highest(&job);
                let let_in = seen.admit(&job, token).is_ok();
                prop_assert_eq!(let_in, before.is_none_or(|before| token >= before));
                prop_assert_eq!(seen.highest(&job), before.max(Some(token)));
            }
        }
    }
}

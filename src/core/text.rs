//! Untrusted texts and durations in a form that is safe for people and programs.
//! It must not know where they come from, nor where they are shown.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

const ELLIPSIS: &str = "...";

/// Maximum length in bytes of a text from a record.
const MAX_SHOWN_BYTES: usize = 1024;

/// A duration for people, to the millisecond: `14s 500ms`.
pub fn format_duration(duration: Duration) -> humantime::FormattedDuration {
    let millis = duration.as_millis().try_into().unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis))
}

/// A measured duration for people, to a tenth of a second: `6.5s`, `1m 6s`.
pub fn format_measured(duration: Duration) -> String {
    if duration < Duration::from_mins(1) {
        return format!("{}.{}s", duration.as_secs(), duration.subsec_millis() / 100);
    }
    format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// A word as a shell wants it.
pub fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._@:+=,/-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A duration for people at a glance, as kubectl shows ages: `12s`, `3m 12s`, `45m`, `3h 20m`, `30h`, `5d 3h`.
pub fn format_age(duration: Duration) -> humantime::FormattedDuration {
    const UNITS: [(u64, u64); 6] = [
        (2 * 60, 1),
        (10 * 60, 1),
        (3 * HOUR, 60),
        (8 * HOUR, 60),
        (2 * DAY, HOUR),
        (8 * DAY, HOUR),
    ];
    const HOUR: u64 = 60 * 60;
    const DAY: u64 = 24 * HOUR;
    let seconds = duration.as_secs();
    let unit = UNITS.iter().find(|(below, _)| seconds < *below);
    let unit = unit.map_or(DAY, |(_, unit)| *unit);
    format_duration(Duration::from_secs(seconds - seconds % unit))
}

/// A duration for programs, in seconds to the microsecond.
pub fn seconds(duration: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact for 285 years")]
    let micros = duration.as_micros() as f64;
    micros / 1e6
}

/// The time since 1970 that a text by RFC 3339 names.
pub fn since_1970(text: &str) -> Option<Duration> {
    let at = humantime::parse_rfc3339(text).ok()?;
    at.duration_since(UNIX_EPOCH).ok()
}

/// At most about `columns` of `text`: its middle is left out, as names differ at both ends.
pub fn elided(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let kept = columns.saturating_sub(ELLIPSIS.len());
    let first = within(text.chars(), kept - kept / 2);
    let last: String = within(text.chars().rev(), kept / 2)
        .into_iter()
        .rev()
        .collect();
    format!("{}{ELLIPSIS}{last}", String::from_iter(first))
}

/// The first characters, as many as `columns` have room for.
fn within(characters: impl Iterator<Item = char>, columns: usize) -> Vec<char> {
    let mut used = 0;
    let fits = |character: &char| {
        used += character.width().unwrap_or(0);
        used <= columns
    };
    characters.take_while(fits).collect()
}

/// `text` made safe for a terminal, cut at 1 KiB.
pub fn printable(text: &str) -> String {
    let shown = truncate(text, MAX_SHOWN_BYTES);
    let ellipsis = if shown.len() < text.len() { "..." } else { "" };
    escaped(shown) + ellipsis
}

/// The beginning of `text`, at most `limit` bytes of it.
pub fn truncate(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// `text` made safe for a terminal: control characters, line separators and characters that override the direction of
/// writing (the "trojan source" characters) become escapes.
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else if is_hostile(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// `object` as JSON on one line that is safe for a terminal: characters that JSON allows but a terminal interprets become
/// escapes. Its first key is the version of its format.
pub fn json(version: u32, object: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Versioned<'a, T> {
        version: u32,
        #[serde(flatten)]
        object: &'a T,
    }
    // Texts and numbers always serialise.
    let plain = serde_json::to_string(&Versioned { version, object }).unwrap_or_default();
    if !plain.chars().any(is_hostile) {
        return plain;
    }
    let mut safe = String::with_capacity(plain.len() + 64);
    for character in plain.chars() {
        // They occur only in texts: JSON's own syntax has no such characters.
        if is_hostile(character) {
            let _ = write!(safe, "\\u{:04x}", u32::from(character));
        } else {
            safe.push(character);
        }
    }
    safe
}

/// The widest cell that widens its column. A longer one moves the rest of its own line only.
const MAX_ALIGNED_COLUMNS: usize = 48;

/// Lines in aligned columns, two blanks apart. The last cell of a line makes no column wider.
pub fn table(rows: &[Vec<String>]) -> String {
    let widths = column_widths(rows);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            let blanks = (width + 2).saturating_sub(cell.width()).max(2);
            line.extend(std::iter::repeat_n(' ', blanks));
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn column_widths(rows: &[Vec<String>]) -> Vec<usize> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        let cells = row.split_last().map_or(&[][..], |it| it.1);
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = cell.width().min(MAX_ALIGNED_COLUMNS).max(*width);
        }
    }
    widths
}

/// The least columns of a cell that is shortened.
const MIN_CELL_COLUMNS: usize = 12;

/// Shortens cells so that the table fits `columns`, if that is possible: those of the last column first, then those of the
/// `elastic` ones.
pub fn fit(rows: &mut [Vec<String>], elastic: &[usize], columns: usize) {
    let mut widths = column_widths(rows);
    let Some(last) = widths.len().checked_sub(1) else {
        return;
    };
    let before = |widths: &[usize]| widths[..last].iter().map(|width| width + 2).sum::<usize>();
    let wanted = rows.iter().filter_map(|row| row.get(last));
    let wanted = wanted.map(|cell| cell.width()).max().unwrap_or(0);
    for &column in elastic {
        let missing = (before(&widths) + wanted.min(MIN_CELL_COLUMNS)).saturating_sub(columns);
        let floor = widths[column].min(MIN_CELL_COLUMNS);
        widths[column] = widths[column].saturating_sub(missing).max(floor);
    }
    widths[last] = columns.saturating_sub(before(&widths)).max(ELLIPSIS.len());
    for row in rows {
        for column in elastic.iter().copied().chain([last]) {
            if let Some(cell) = row.get_mut(column) {
                *cell = elided(cell, widths[column]);
            }
        }
    }
}

/// The name of a lock, in quotes if it could be taken for another text: with blanks, quotes, characters that are not seen,
/// or letters that look like Latin ones beside Latin ones; those characters are escaped.
pub fn shown_name(name: &str) -> String {
    let latin = name.chars().any(|c| c.is_ascii_alphabetic());
    let misleads = |c: char| is_hostile(c) || is_unseen(c) || (latin && looks_latin(c));
    let quoted = |c: char| misleads(c) || c == ' ' || c == '\'' || c == '"';
    if !name.is_empty() && !name.chars().any(quoted) {
        return printable(name);
    }
    let mut shown = String::new();
    for character in truncate(name, MAX_SHOWN_BYTES).chars() {
        if character == '\'' || character.is_control() {
            shown.extend(character.escape_default());
        } else if misleads(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    format!("'{shown}'")
}

/// Blanks other than the usual one, and characters without a shape of their own.
fn is_unseen(character: char) -> bool {
    let unseen = matches!(
        character,
        '\u{ad}' | '\u{34f}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2064}' | '\u{feff}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{e0000}'..='\u{e0fff}' | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{2800}'
    );
    unseen || (character.is_whitespace() && character != ' ')
}

/// Letters and digits of the blocks whose members look like ASCII: Greek, Cyrillic, Armenian, Cherokee, letterlike symbols,
/// numerals, full-width and mathematical forms (Unicode's confusables, UTS 39).
fn looks_latin(character: char) -> bool {
    matches!(
        character,
        '\u{370}'..='\u{58f}' | '\u{13a0}'..='\u{13ff}' | '\u{1e00}'..='\u{1fff}' | '\u{2100}'..='\u{218f}'
            | '\u{ab70}'..='\u{abbf}' | '\u{ff01}'..='\u{ff5e}' | '\u{1d400}'..='\u{1d7ff}'
    )
}

/// Whether the character could mislead a terminal or a reader.
pub fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200e}'
                | '\u{200f}'
                | '\u{061c}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{2028}'
                | '\u{2029}'
        )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_shown_moves_the_cursor() {
        assert_eq!(
            printable("a\u{1b}[2J\n\u{85}\u{202e}b ü 漢"),
            r"a\u{1b}[2J\n\u{85}\u{202e}b ü 漢"
        );
        assert_eq!(printable(&"x".repeat(2000)).len(), MAX_SHOWN_BYTES + 3);
    }

    #[test]
    fn an_age_is_shown_as_kubectl_shows_it() {
        let shown =
            |seconds: u64| format_age(Duration::from_millis(seconds * 1000 + 999)).to_string();
        for (seconds, text) in [
            (0, "0s"),
            (119, "1m 59s"),
            (192, "3m 12s"),
            (600, "10m"),
            (3599, "59m"),
            (3 * 3600 + 59, "3h"),
            (3 * 3600 + 20 * 60, "3h 20m"),
            (30 * 3600 + 59 * 60, "1day 6h"),
            (6 * 86400 + 3 * 3600, "6days 3h"),
            (20 * 86400 + 5 * 3600, "20days"),
        ] {
            assert_eq!(shown(seconds), text);
        }
    }

    #[test]
    fn a_measured_time_has_a_tenth_of_a_second() {
        let shown = |millis| format_measured(Duration::from_millis(millis));
        assert_eq!(
            [49, 6_570, 59_999, 66_570].map(shown),
            ["0.0s", "6.5s", "59.9s", "1m 6s"]
        );
    }

    #[test]
    fn a_word_is_quoted_where_a_shell_would_split_or_expand_it() {
        assert_eq!(shell_word("job/nightly-2"), "job/nightly-2");
        for (word, quoted) in [
            ("a b", "'a b'"),
            ("~x", "'~x'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(word), quoted);
        }
    }

    #[test]
    fn a_long_text_keeps_both_ends() {
        assert_eq!(elided("deploy", 6), "deploy");
        assert_eq!(elided("deploy-production", 10), "depl...ion");
        assert_eq!(elided("漢漢漢漢漢漢", 9), "漢...漢");
        assert_eq!(elided("deploy", 2), "...");
    }

    #[test]
    fn a_name_that_could_deceive_is_quoted() {
        for name in ["deploy", "job/nightly:2", "größe", "выкатка", "部署", "~x"] {
            assert_eq!(shown_name(name), name);
        }
        for (name, shown) in [
            ("a b", "'a b'"),
            (" deploy", "' deploy'"),
            ("it's", r"'it\'s'"),
            ("d\u{435}ploy", r"'d\u{435}ploy'"),
            ("deploy\u{a0}", r"'deploy\u{a0}'"),
            ("de\u{200b}ploy", r"'de\u{200b}ploy'"),
            ("x\u{202e}y\u{7}", r"'x\u{202e}y\u{7}'"),
            ("\u{ff44}eploy", r"'\u{ff44}eploy'"),
            ("", "''"),
        ] {
            assert_eq!(shown_name(name), shown);
        }
    }

    #[test]
    fn a_long_cell_moves_its_own_line_only() {
        let long = "x".repeat(255);
        let rows = [
            vec!["NAME".to_owned(), "N".to_owned()],
            vec![long, "1".to_owned()],
            vec!["a".to_owned(), "2".to_owned()],
        ];
        let text = table(&rows);
        let columns: Vec<usize> = text.lines().map(str::len).collect();
        assert_eq!(columns, [51, 258, 51]);
    }

    #[test]
    fn a_table_fits_a_terminal() {
        let rows = |name: &str, command: &str| {
            [
                ["NAME", "HOLDER", "N", "COMMAND"],
                [name, "alice@db1 pid 12", "94", command],
            ]
            .map(|row| row.map(str::to_owned).to_vec())
        };
        let shown = |name: &str, command: &str, columns| {
            let mut rows = rows(name, command);
            fit(&mut rows, &[0, 1], columns);
            table(&rows)
        };
        assert_eq!(
            shown("deploy", "deploy.sh", 60),
            "NAME    HOLDER            N   COMMAND\ndeploy  alice@db1 pid 12  94  deploy.sh\n"
        );
        let long = "deploy/production/eu-central-1/frontend";
        assert_eq!(
            shown(long, "deploy.sh", 60),
            "NAME                         HOLDER            N   COMMAND\n\
             deploy/produ...l-1/frontend  alice@db1 pid 12  94  deploy.sh\n"
        );
        for columns in [50, 60, 80, 120] {
            let text = shown(&"n".repeat(255), &"c".repeat(300), columns);
            assert!(text.lines().all(|line| line.len() <= columns), "{text}");
        }
    }

    #[test]
    fn columns_are_aligned_by_what_is_seen() {
        let rows = [["NAME", "WHO"], ["漢", "x"], ["abc", "y"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "NAME  WHO\n漢    x\nabc   y\n");
        let rows = [
            &["ok", "disk", "fast"][..],
            &["", "the last cell is long"],
            &["bad", "cpu", "x"],
        ];
        let rows = rows.map(|row| row.iter().map(ToString::to_string).collect());
        assert_eq!(
            table(&rows),
            "ok   disk  fast\n     the last cell is long\nbad  cpu   x\n"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_json_is_fit_to_show_and_says_the_same(text in "(?s)[\u{200e}-\u{202f}\u{2066}\u{61c}\u{7f}-\u{9f}a\\PC\\pC]{0,99}") {
            let shown = json(7, &BTreeMap::from([("text", &text)]));
            prop_assert!(!shown.chars().any(is_hostile), "{shown:?}");
            let read = serde_json::from_str::<serde_json::Value>(&shown).ok();
            prop_assert_eq!(read, Some(serde_json::json!({"version": 7, "text": text})));
        }

        #[test]
        fn any_characters_are_fit_to_show(text in "[\u{200e}-\u{202f}\u{2060}-\u{206f}\u{61c}a\\PC\\pC]{0,300}") {
            let shown = printable(&text);
            prop_assert!(!shown.chars().any(is_hostile));
            // Each character of the 1 KiB that is shown takes 10 bytes at most: `\u{10ffff}`.
            prop_assert!(shown.len() <= 10 * MAX_SHOWN_BYTES + 3);
        }

        #[test]
        fn any_text_is_fit_to_show(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(!printable(&String::from_utf8_lossy(&bytes)).chars().any(is_hostile));
        }
    }
}

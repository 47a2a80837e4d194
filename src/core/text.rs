//! Untrusted texts and durations in a form that is safe for people and programs.
//! It must not know where they come from, nor where they are shown.

use std::fmt::Write as _;
use std::time::Duration;

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

/// `value` as JSON on one line that is safe for a terminal: characters that JSON allows but a terminal interprets become
/// escapes.
pub fn json(value: &impl Serialize) -> String {
    // Texts and numbers always serialise.
    let plain = serde_json::to_string(value).unwrap_or_default();
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

/// Lines in aligned columns, two blanks apart. The last cell of a line makes no column wider.
pub fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths
            .iter_mut()
            .zip(row.split_last().map_or(&[][..], |it| it.1))
        {
            *width = cell.width().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(
                ' ',
                (width + 2).saturating_sub(cell.width()),
            ));
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
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
            let shown = json(&text);
            prop_assert!(!shown.chars().any(is_hostile), "{shown:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&shown).ok(), Some(text));
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

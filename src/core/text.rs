//! Untrusted texts and durations in a form that is safe for people and programs.
//! It must not know where they come from, nor where they are shown.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

/// Maximum length in bytes of a text from a record.
const MAX_SHOWN_BYTES: usize = 1024;

/// A duration for people, to the millisecond: `14s 500ms`.
pub fn format_duration(duration: Duration) -> humantime::FormattedDuration {
    let millis = duration.as_millis().try_into().unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis))
}

/// A duration for programs, in seconds to the microsecond.
pub fn seconds(duration: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact for 285 years")]
    let micros = duration.as_micros() as f64;
    micros / 1e6
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

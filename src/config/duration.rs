//! Durations as people write them: `30s`, `1m30s`, `500ms`, a bare number of seconds.
//! It must not know which option a duration belongs to.

use std::time::Duration;

/// Longer than any job, and short enough to add to any instant without overflow.
const MAX_DURATION: Duration = Duration::from_hours(24 * 366 * 100);

const EXPECTED: &str = "expected a duration such as 30s, 1m30s, 500ms or a number of seconds";

/// Parses a duration; the error does not repeat the text.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err("a duration must not be negative".to_owned());
    }
    let bare = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let duration = if bare {
        seconds(text)?
    } else {
        humantime::parse_duration(text).map_err(|error| match error {
            humantime::DurationError::NumberOverflow => too_long(),
            _ => EXPECTED.to_owned(),
        })?
    };
    if duration > MAX_DURATION {
        return Err(too_long());
    }
    Ok(duration)
}

fn too_long() -> String {
    "too long: 100 years are the limit".to_owned()
}

/// `text` has only digits and dots. f64 would round.
fn seconds(text: &str) -> Result<Duration, String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(EXPECTED.to_owned());
    }
    let whole = match whole {
        "" => 0,
        // The only possible error of digits is overflow.
        digits => digits.parse::<u64>().map_err(|_| too_long())?,
    };
    // Fractions of a nanosecond are dropped.
    let nanoseconds = format!("{fraction:0<9.9}").parse::<u32>();
    Ok(Duration::new(whole, nanoseconds.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::text::format_duration;

    #[test]
    fn common_forms_are_durations() {
        let ms = |text: &str| parse(text).map(|duration| duration.as_millis());
        assert_eq!(ms("30s"), Ok(30_000));
        assert_eq!(ms("1m30s"), Ok(90_000));
        assert_eq!(ms("1m 30s"), Ok(90_000));
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("30"), Ok(30_000));
        assert_eq!(ms("0.5"), Ok(500));
        assert_eq!(ms(".25"), Ok(250));
        assert_eq!(ms("2."), Ok(2000));
        assert_eq!(ms("0"), Ok(0));
        assert_eq!(ms(" 7 "), Ok(7000));
        assert_eq!(ms("1h"), Ok(3_600_000));
        assert_eq!(parse("0.0000000019").unwrap().as_nanos(), 1);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "", ".", "1.2.3", "x", "5x", "1e3", "inf", "NaN", "+5", "5 s x", "s", "--", "0x10",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse("-5").unwrap_err().contains("negative"));
        assert!(parse("-5s").unwrap_err().contains("negative"));
        for text in [
            "99999999999999999999",
            "18446744073709551615",
            "200y",
            "9999999999999999999999s",
        ] {
            assert!(parse(text).unwrap_err().contains("too long"), "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_panics(text in ".{0,30}") {
            let _ = parse(&text);
        }

        #[test]
        fn milliseconds_come_back(ms in 0u64..10_000_000_000) {
            let text = format!("{}.{:03}", ms / 1000, ms % 1000);
            prop_assert_eq!(parse(&text), Ok(Duration::from_millis(ms)));
            prop_assert_eq!(parse(&format_duration(Duration::from_millis(ms)).to_string()), Ok(Duration::from_millis(ms)));
        }
    }
}

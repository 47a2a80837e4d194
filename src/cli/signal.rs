//! Signals as people write them: `TERM`, `SIGTERM`, `15`.
//! It must not know how a signal is used.

use signal_hook::low_level::signal_name;

/// `SIGRTMAX` of `signal(7)`; there is no signal above it.
const MAX_SIGNAL: i32 = 64;

/// The number of the signal; the error says why `text` is no signal.
pub(crate) fn parse(text: &str) -> Result<i32, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits {
        return text
            .parse()
            .ok()
            .filter(|number| (1..=MAX_SIGNAL).contains(number))
            .ok_or_else(|| format!("signals have the numbers 1 to {MAX_SIGNAL}"));
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    (1..=MAX_SIGNAL)
        .find(|number| {
            signal_name(*number).and_then(|known| known.strip_prefix("SIG")) == Some(name)
        })
        .ok_or_else(|| "expected a signal's name or number, such as TERM, SIGINT or 15".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_or_a_number() {
        for text in ["TERM", "SIGTERM", "term", "sigterm", "15"] {
            assert_eq!(parse(text), Ok(15), "{text}");
        }
        assert_eq!(parse("INT"), Ok(2));
        assert_eq!(parse("KILL"), Ok(9));
        assert_eq!(parse("64"), Ok(64));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "0",
            "65",
            "-9",
            "+9",
            "SIG",
            "SIGSIGTERM",
            "99999999999",
            "T ERM",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}

//! The id of an etcd cluster, as people write it.
//! It must not know the source of ids, nor the consequence of a wrong one.

use std::fmt;
use std::str::FromStr;

/// The id in the header of every response of a member (`ResponseHeader.cluster_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterId(pub u64);

/// Maximum number of hexadecimal digits of 64 bits.
const HEX_DIGITS: usize = 16;

impl fmt::Display for ClusterId {
    /// The form that etcd's log and `etcdctl --hex` write.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl FromStr for ClusterId {
    type Err = String;

    /// Parses a hexadecimal number, with `0x` or without; 17 to 20 digits are decimal, as `etcdctl -w json` and `-w
    /// fields` print nearly all ids: one in 1,800 is shorter.
    fn from_str(text: &str) -> Result<Self, String> {
        let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        let digits = hex.unwrap_or(text);
        let (radix, number) = if hex.is_some() || digits.len() <= HEX_DIGITS {
            (16, u64::from_str_radix(digits, 16))
        } else {
            (10, digits.parse())
        };
        // Rust's own parser accepts a sign.
        let plain = digits.chars().all(|digit| digit.is_digit(radix));
        match number {
            Ok(number) if plain && number != 0 => Ok(Self(number)),
            _ => Err(
                "expected the id as dlock doctor prints it (hexadecimal), or as etcdctl does (decimal)"
                    .to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Result<u64, String> {
        text.parse::<ClusterId>().map(|id| id.0)
    }

    #[test]
    fn an_id_is_read_as_etcd_and_etcdctl_write_it() {
        let wanted = Ok(0xcdf8_1819_4e3a_8c32);
        assert_eq!(id("cdf818194e3a8c32"), wanted);
        assert_eq!(id("CDF818194E3A8C32"), wanted);
        assert_eq!(id("0xcdf818194e3a8c32"), wanted);
        assert_eq!(id("14841639068965178418"), wanted);
        assert_eq!(id("1234567890123456"), Ok(0x1234_5678_9012_3456));
        assert_eq!(id("12345678901234567"), Ok(12_345_678_901_234_567));
        assert_eq!(id("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn a_text_that_is_no_id_is_refused() {
        for text in [
            "",
            "0",
            "0x",
            "0000000000000000",
            "+cdf8",
            "-1",
            "cdf8 ",
            "cdf818194e3a8c321",
            "18446744073709551616",
            "0xcdf818194e3a8c321",
            "main",
        ] {
            assert!(id(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_printed_id_is_parsed(number in 1..u64::MAX) {
            proptest::prop_assert_eq!(id(&ClusterId(number).to_string()), Ok(number));
        }
    }
}

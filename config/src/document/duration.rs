//! Durations as the Gateway API writes them (GEP-2257): `250ms`, `10s`, `1h30m`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

/// What a GEP-2257 duration looks like, as a pattern for JSON Schema.
pub const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

const LONGEST_MS: u64 = 99_999 * 3_600_000;

/// A span of time as policy writes it. `0s` means none or unlimited where a field says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyDuration(Duration);

impl PolicyDuration {
    /// The longest span that can be written, a little over eleven years.
    pub const LONGEST: Duration = Duration::from_millis(LONGEST_MS);

    /// The nearest span that can be written: whole milliseconds, at most [`Self::LONGEST`].
    pub fn new(duration: Duration) -> Self {
        let whole = u64::try_from(duration.as_millis()).unwrap_or(LONGEST_MS).min(LONGEST_MS);
        Self(Duration::from_millis(whole))
    }

    /// The span as the standard library has it.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// True for `0s`.
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl From<PolicyDuration> for Duration {
    fn from(duration: PolicyDuration) -> Self {
        duration.0
    }
}

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// A number has no unit behind it, or an unknown one.
    #[error("every number needs one of the units h, m, s, ms")]
    Unit,
    /// Something that is no number stands where one is wanted.
    #[error("it must be whole numbers with units, without sign, point or space")]
    Number,
    /// A number has more than five digits.
    #[error("a number has more than five digits")]
    Digits,
    /// There are more than four parts.
    #[error("it has more than four parts")]
    Parts,
    /// The sum is too large.
    #[error("it is longer than 99999h")]
    TooLong,
}

impl FromStr for PolicyDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidDuration::Empty);
        }
        let (mut rest, mut total, mut parts) = (text, 0u64, 0);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 {
                return Err(InvalidDuration::Number);
            }
            if digits > 5 {
                return Err(InvalidDuration::Digits);
            }
            let number: u64 = rest[..digits].parse().map_err(|_| InvalidDuration::Number)?;
            rest = &rest[digits..];
            let (unit, length) = match rest.as_bytes() {
                [b'm', b's', ..] => (1, 2),
                [b'h', ..] => (3_600_000, 1),
                [b'm', ..] => (60_000, 1),
                [b's', ..] => (1_000, 1),
                [b'.' | b'-' | b'+' | b' ', ..] => return Err(InvalidDuration::Number),
                _ => return Err(InvalidDuration::Unit),
            };
            rest = &rest[length..];
            parts += 1;
            if parts > 4 {
                return Err(InvalidDuration::Parts);
            }
            total += number * unit;
        }
        if total > LONGEST_MS {
            return Err(InvalidDuration::TooLong);
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

impl fmt::Display for PolicyDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = u64::try_from(self.0.as_millis()).unwrap_or(LONGEST_MS);
        if left == 0 {
            return f.write_str("0s");
        }
        for (unit, name) in [(3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")] {
            let count = left / unit;
            left %= unit;
            if count > 0 {
                write!(f, "{count}{name}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for PolicyDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PolicyDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|reason| de::Error::custom(format!("`{text}` is no duration: {reason}")))
    }
}

impl JsonSchema for PolicyDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "duration-gep2257", "pattern": PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<u128, InvalidDuration> {
        text.parse::<PolicyDuration>().map(|d| d.get().as_millis())
    }

    #[test]
    fn the_examples_of_the_specification_hold() {
        for (text, milliseconds) in [
            ("0h", 0),
            ("0s", 0),
            ("0h0m0s", 0),
            ("1h", 3_600_000),
            ("30m", 1_800_000),
            ("10s", 10_000),
            ("500ms", 500),
            ("2h30m", 9_000_000),
            ("150m", 9_000_000),
            ("7230s", 7_230_000),
            ("1h30m10s", 5_410_000),
            ("10s30m1h", 5_410_000),
            ("100ms200ms300ms", 600),
        ] {
            assert_eq!(parsed(text), Ok(milliseconds), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", InvalidDuration::Empty),
            ("1", InvalidDuration::Unit),
            ("1d", InvalidDuration::Unit),
            ("10us", InvalidDuration::Unit),
            ("1H", InvalidDuration::Unit),
            ("1.5h", InvalidDuration::Number),
            ("-15m", InvalidDuration::Number),
            ("s", InvalidDuration::Number),
            ("1h 30m", InvalidDuration::Number),
            ("1é", InvalidDuration::Unit),
            ("999999h", InvalidDuration::Digits),
            ("1h1h1h1h1h", InvalidDuration::Parts),
            ("99999h1s", InvalidDuration::TooLong),
        ] {
            assert_eq!(parsed(text), Err(reason), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(milliseconds in 0..=LONGEST_MS) {
            let duration = PolicyDuration::new(Duration::from_millis(milliseconds));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn any_text_of_the_pattern_is_the_sum_of_its_parts(
            parts in proptest::collection::vec((0u64..100_000, 0usize..4), 1..5)
        ) {
            let units = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
            let text: String = parts.iter().map(|(n, u)| format!("{n}{}", units[*u].0)).collect();
            let sum: u64 = parts.iter().map(|(n, u)| n * units[*u].1).sum();
            let expected = if sum > LONGEST_MS { Err(InvalidDuration::TooLong) } else { Ok(u128::from(sum)) };
            prop_assert_eq!(parsed(&text), expected);
        }

        #[test]
        fn no_text_panics_and_none_outside_the_pattern_passes(text in ".{0,24}") {
            let pattern = regex::Regex::new(PATTERN).expect("a valid pattern");
            if text.parse::<PolicyDuration>().is_ok() {
                prop_assert!(pattern.is_match(&text));
            }
        }
    }
}

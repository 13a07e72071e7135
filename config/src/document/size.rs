//! Sizes in bytes as policy writes them: `65536`, `64KiB`, `10MB`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, str::FromStr};

/// What a size looks like when it is text, as a pattern for JSON Schema.
pub const PATTERN: &str = "^[0-9]{1,15}(B|k|K|M|G|T|kB|KB|MB|GB|TB|Ki|Mi|Gi|Ti|KiB|MiB|GiB|TiB)?$";

/// A number of bytes: a plain number, or text with a unit (`KiB`, `MiB`, `GiB` by 1024; `kB`, `MB`, `GB` by 1000).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > 15 {
            return Err("it must be a whole number of at most 15 digits, and a unit if one is wanted".into());
        }
        let number: u64 = text[..digits].parse().map_err(|_| "the number is too large".to_owned())?;
        let unit: u64 = match &text[digits..] {
            "" | "B" => 1,
            "k" | "K" | "kB" | "KB" => 1000,
            "M" | "MB" => 1000 * 1000,
            "G" | "GB" => 1000 * 1000 * 1000,
            "T" | "TB" => 1000 * 1000 * 1000 * 1000,
            "Ki" | "KiB" => 1 << 10,
            "Mi" | "MiB" => 1 << 20,
            "Gi" | "GiB" => 1 << 30,
            "Ti" | "TiB" => 1 << 40,
            _ => return Err("its unit must be one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB".into()),
        };
        number.checked_mul(unit).map(Self).ok_or_else(|| "the size is too large".into())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Ok(Self(number)),
            Written::Text(text) => {
                text.parse().map_err(|reason| de::Error::custom(format!("`{text}` is no size: {reason}")))
            }
        }
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"], "format": "byte-size", "minimum": 0, "pattern": PATTERN
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_by_1024_with_an_i_and_by_1000_without() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("64KiB", 65_536), ("1Mi", 1 << 20), ("10MB", 10_000_000), ("2k", 2000)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "KiB", "1.5MiB", "-1", "1 KiB", "1kib", "9999999999999999", "999999999999999TiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_number_and_a_text_are_the_same_size() {
        let number: ByteSize = serde_json::from_str("65536").expect("a number");
        let text: ByteSize = serde_json::from_str("\"64KiB\"").expect("a text");
        assert_eq!(number, text);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(bytes in 0u64..1_000_000_000_000_000) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
    }
}

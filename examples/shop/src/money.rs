//! Amounts of money, exact.

use serde::{Deserialize, Serialize};
use std::{fmt, iter::Sum, str::FromStr};

/// An amount in cents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct Cents(pub(crate) u64);

impl Cents {
    /// The price of several pieces. Sums that no cart can reach stop at the top instead of starting over at zero.
    pub(crate) fn times(self, quantity: u32) -> Self {
        Self(self.0.saturating_mul(u64::from(quantity)))
    }

    /// Without the sign: `129.00`.
    pub(crate) fn plain(self) -> String {
        format!("{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

impl FromStr for Cents {
    type Err = ();

    /// As people write it: `129`, `129.5`, `129.00`, `129,00`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let text = text.trim().trim_start_matches('€').trim();
        let (whole, part) = text.split_once(['.', ',']).unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 2 {
            return Err(());
        }
        let whole: u64 = whole.parse().map_err(drop)?;
        let part: u64 = format!("{part:0<2}").parse().map_err(drop)?;
        whole.checked_mul(100).and_then(|cents| cents.checked_add(part)).map(Self).ok_or(())
    }
}

impl Sum for Cents {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        Self(amounts.fold(0, |sum, amount| sum.saturating_add(amount.0)))
    }
}

impl fmt::Display for Cents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "€{}", self.plain())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shown_with_two_decimals() {
        assert_eq!(Cents(5).to_string(), "€0.05");
        assert_eq!(Cents(12_900).to_string(), "€129.00");
    }

    #[test]
    fn amounts_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<Cents>().ok();
        for text in ["129", "129.0", "129,00", " €129.00 "] {
            assert_eq!(read(text), Some(Cents(12_900)), "{text}");
        }
        assert_eq!(read("0.5"), Some(Cents(50)));
        for text in ["", ".", "1.", ".5", "1.234", "-1", "1e3", "99999999999999999999", "184467440737095517"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_sum_never_starts_over_at_zero() {
        assert_eq!(Cents(u64::MAX).times(2), Cents(u64::MAX));
        assert_eq!([Cents(u64::MAX), Cents(1)].into_iter().sum::<Cents>(), Cents(u64::MAX));
    }
}

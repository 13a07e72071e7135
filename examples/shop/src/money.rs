//! Amounts of money, exact.

use serde::{Deserialize, Serialize};
use std::{fmt, iter::Sum};

/// An amount in cents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct Cents(pub(crate) u64);

impl Cents {
    /// The price of several pieces. Sums that no cart can reach stop at the top instead of starting over at zero.
    pub(crate) fn times(self, quantity: u32) -> Self {
        Self(self.0.saturating_mul(u64::from(quantity)))
    }
}

impl Sum for Cents {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        Self(amounts.fold(0, |sum, amount| sum.saturating_add(amount.0)))
    }
}

impl fmt::Display for Cents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "€{}.{:02}", self.0 / 100, self.0 % 100)
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
    fn a_sum_never_starts_over_at_zero() {
        assert_eq!(Cents(u64::MAX).times(2), Cents(u64::MAX));
        assert_eq!([Cents(u64::MAX), Cents(1)].into_iter().sum::<Cents>(), Cents(u64::MAX));
    }
}

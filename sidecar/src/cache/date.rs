//! HTTP dates (RFC 9110 section 5.6.7) as seconds since 1970.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::{
    cell::Cell,
    time::{Duration, UNIX_EPOCH},
};

/// A century that begins and ends with the same calendar: every hundred years from 1970 to 2069 have 25 leap days.
const CENTURY: u64 = (100 * 365 + 25) * 86_400;
const FIFTY_YEARS: u64 = CENTURY / 2;
/// How long a date of the usual form is: `Sun, 06 Nov 1994 08:49:37 GMT`.
const USUAL: usize = 29;

/// A date in any of its three forms; `now` tells the century of the one whose years have two digits.
pub(crate) fn parse(value: &[u8], now: u32) -> Option<u64> {
    thread_local! {
        /// The last date of the usual form: for a second, all answers have the same.
        static LAST: Cell<([u8; USUAL], u64)> = const { Cell::new(([0; USUAL], 0)) };
    }
    let Ok(usual) = <[u8; USUAL]>::try_from(value) else { return read(value, now) };
    let (last, seconds) = LAST.get();
    if usual == last {
        return Some(seconds);
    }
    let date = read(value, now)?;
    if value[3] == b',' {
        LAST.set((usual, date));
    }
    Some(date)
}

fn read(value: &[u8], now: u32) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs();
    // Two digits mean this century unless that is more than fifty years ahead.
    let two_digits = text.contains('-');
    let next = date + CENTURY;
    Some(if two_digits && next <= u64::from(now) + FIFTY_YEARS { next } else { date })
}

/// The date in a field with one value; of several lines the first, and none if that is no date.
pub(crate) fn of(headers: &HeaderMap, name: &HeaderName, now: u32) -> Option<u64> {
    parse(headers.get(name)?.as_bytes(), now)
}

/// A moment as HTTP writes it.
pub(crate) fn write(seconds: u32) -> HeaderValue {
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds.into()));
    // It is ASCII without controls.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const NOV_1994: u64 = 784_111_777;
    /// November 2026.
    const NOW: u32 = 1_795_000_000;

    #[rstest]
    #[case("Sun, 06 Nov 1994 08:49:37 GMT", Some(NOV_1994))]
    #[case("Sunday, 06-Nov-94 08:49:37 GMT", Some(NOV_1994))]
    #[case("Sun Nov  6 08:49:37 1994", Some(NOV_1994))]
    #[case("Tue, 19 Jan 2038 03:14:08 GMT", Some(1 << 31))]
    #[case("Fri, 31 Dec 9999 23:59:59 GMT", Some(253_402_300_799))]
    // Two digits, at most fifty years ahead.
    #[case("Saturday, 06-Nov-76 08:49:37 GMT", Some(216_118_177 + CENTURY))]
    #[case("Sunday, 06-Nov-77 08:49:37 GMT", Some(247_654_177))]
    #[case("Sunday, 06-Nov-33 08:49:37 GMT", Some(2_014_879_777))]
    #[case("0", None)]
    #[case("-1", None)]
    #[case("", None)]
    #[case("Sun, 06 Nov 1994 08:49:37 UTC", None)]
    #[case("Sun, 06 Nov 1994 08:49:37", None)]
    #[case("Sun, 32 Nov 1994 08:49:37 GMT", None)]
    #[case("Sun, 06 Nov 1994 25:49:37 GMT", None)]
    #[case("1994-11-06T08:49:37Z", None)]
    #[case("784111777", None)]
    fn dates_have_three_forms(#[case] text: &str, #[case] seconds: Option<u64>) {
        assert_eq!(parse(text.as_bytes(), NOW), seconds);
        assert_eq!(parse(text.as_bytes(), NOW), seconds, "the same the second time");
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(write(NOV_1994 as u32), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parse(write(NOW).as_bytes(), NOW), Some(u64::from(NOW)));
    }
}

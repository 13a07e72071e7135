//! How much time a caller gives: read from what it says, and told to the next hop as what is left of it.
//!
//! | field | who writes it | zero means |
//! |---|---|---|
//! | `weft-timeout-ms` | sidecars, for the next sidecar and for the application | no time is left |
//! | `grpc-timeout` | gRPC clients, for the server | no time is left |
//! | `x-envoy-expected-rq-timeout-ms` | Envoy, for the application behind it | no limit |
//! | `x-envoy-upstream-rq-timeout-ms` | applications, for the Envoy beside them | no limit |
//!
//! The two of Envoy are read so that applications and gateways that were made for it keep their deadlines here. All of
//! them travel as a span of time and not as a moment, because clocks differ. The shortest counts, so that no field can
//! make a deadline later than another says; what cannot be read counts as not said.

use crate::notable::Notable;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

const WEFT: &str = "weft-timeout-ms";
const GRPC: &str = "grpc-timeout";
const ENVOY_EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";
const ENVOY_UPSTREAM: &str = "x-envoy-upstream-rq-timeout-ms";

static WEFT_TIMEOUT: HeaderName = HeaderName::from_static(WEFT);
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static(GRPC);
static ENVOY: [HeaderName; 2] =
    [HeaderName::from_static(ENVOY_EXPECTED), HeaderName::from_static(ENVOY_UPSTREAM)];

/// The most digits that `grpc-timeout` has.
const GRPC_DIGITS: usize = 8;
/// Its largest number.
const GRPC_MOST: u128 = 99_999_999;
/// Its units with their nanoseconds, the finest first.
const GRPC_UNITS: [(u8, u128); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];
/// Digits of a number of milliseconds; with more it is no deadline of this age of the world.
const MILLISECOND_DIGITS: usize = 15;

/// The moment by which a call has to be through, if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// As long as it takes.
    pub(crate) const NONE: Self = Self(None);

    /// This long after `now`. What the clock cannot reach is no deadline.
    pub(crate) fn after(now: Instant, span: Duration) -> Self {
        Self(now.checked_add(span))
    }

    /// The moment, if there is one.
    pub(crate) fn instant(self) -> Option<Instant> {
        self.0
    }

    /// The one that comes first.
    pub(crate) fn earliest(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Self(Some(a.min(b))),
            (a, b) => Self(a.or(b)),
        }
    }

    /// The one that comes last; none comes after all others.
    pub(crate) fn latest(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Self(Some(a.max(b))),
            _ => Self::NONE,
        }
    }

    /// The time until then: zero if it is over, `None` if there is no deadline.
    pub(crate) fn left(self, now: Instant) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(now))
    }

    /// Whether it has come.
    pub(crate) fn is_over(self, now: Instant) -> bool {
        self.0.is_some_and(|at| at <= now)
    }
}

impl From<Option<Instant>> for Deadline {
    fn from(at: Option<Instant>) -> Self {
        Self(at)
    }
}

/// What a caller says about time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// When its patience ends.
    pub(crate) deadline: Deadline,
    grpc: bool,
    /// Which of [`ENVOY`] it used.
    envoy: [bool; 2],
}

impl Told {
    /// A deadline of our own, for a call that nobody makes.
    pub(crate) fn only(deadline: Deadline) -> Self {
        Self { deadline, grpc: false, envoy: [false; 2] }
    }
}

/// Reads what the caller of a request says. `grpc` says whether the request is gRPC: only there `grpc-timeout` means
/// anything.
pub(crate) fn read(headers: &HeaderMap, notable: Notable, grpc: bool, now: Instant) -> Told {
    gather(headers, notable, grpc, false, now)
}

/// Reads what the sidecar of a request's caller says: its own field only. It has read the others, and has made of them
/// what its policy says; where that is not to listen, nobody else shall.
pub(crate) fn read_from_sidecar(headers: &HeaderMap, notable: Notable, grpc: bool, now: Instant) -> Told {
    gather(headers, notable, grpc, true, now)
}

fn gather(headers: &HeaderMap, notable: Notable, grpc: bool, own_only: bool, now: Instant) -> Told {
    let mut told = Told { deadline: Deadline::NONE, grpc, envoy: [false; 2] };
    if !notable.has(Notable::TIME) {
        return told;
    }
    let limited = |text: &[u8]| milliseconds(text).filter(|span| !span.is_zero());
    // One look at every name costs less than a look-up of four.
    for (name, value) in headers {
        let value = value.as_bytes();
        let span = match name.as_str() {
            WEFT => milliseconds(value),
            GRPC if grpc => grpc_timeout(value),
            ENVOY_EXPECTED => limited(value).inspect(|_| told.envoy[0] = true),
            ENVOY_UPSTREAM => limited(value).inspect(|_| told.envoy[1] = true),
            _ => None,
        };
        if let Some(span) = span
            && (!own_only || name == WEFT_TIMEOUT)
        {
            told.deadline = told.deadline.earliest(Deadline::after(now, span));
        }
    }
    told
}

impl Told {
    /// Writes what is left until `deadline` into the request as it goes on: in our own field, in `grpc-timeout` of a
    /// gRPC call (whether or not its caller gave one: the server can then stop in time), and in every other field that
    /// was read. Rounded down, so that nobody works on after the caller has gone; only in Envoy's fields, where zero
    /// is no limit, what is left of the last millisecond counts as one.
    pub(crate) fn pass_on(&self, headers: &mut HeaderMap, deadline: Deadline, now: Instant) {
        let Some(left) = deadline.left(now) else {
            // A number that was not believed must not be believed by others.
            headers.remove(&WEFT_TIMEOUT);
            return;
        };
        let milliseconds = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        headers.insert(WEFT_TIMEOUT.clone(), as_field(milliseconds));
        if self.grpc {
            headers.insert(GRPC_TIMEOUT.clone(), to_grpc(left));
        }
        for (name, used) in ENVOY.iter().zip(self.envoy) {
            if used {
                headers.insert(name.clone(), HeaderValue::from(milliseconds.max(1)));
            }
        }
    }
}

/// A number of milliseconds as the value of our own field. Numbers come again: a request that has just come in has
/// nearly the whole of its usual time left.
fn as_field(milliseconds: u64) -> HeaderValue {
    thread_local! {
        static LAST: RefCell<[(u64, HeaderValue); 16]> =
            const { RefCell::new([const { (0, HeaderValue::from_static("0")) }; 16]) };
    }
    LAST.with_borrow_mut(|last| {
        let (number, value) = &mut last[milliseconds as usize % 16];
        if *number != milliseconds {
            (*number, *value) = (milliseconds, HeaderValue::from(milliseconds));
        }
        let mut value = value.clone();
        // Another number in every request: in HPACK's table it would only drive out what comes again.
        value.set_sensitive(true);
        value
    })
}

/// A whole number of milliseconds.
fn milliseconds(text: &[u8]) -> Option<Duration> {
    digits(text, MILLISECOND_DIGITS).map(Duration::from_millis)
}

/// A `grpc-timeout`: up to eight digits and a unit.
fn grpc_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, number) = text.split_last()?;
    let number = digits(number, GRPC_DIGITS)?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Decimal digits, at least one and at most `most`, and nothing else.
fn digits(text: &[u8], most: usize) -> Option<u64> {
    if text.is_empty() || text.len() > most {
        return None;
    }
    text.iter().try_fold(0_u64, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

/// A span as `grpc-timeout` says it, in the finest unit that has room for it, rounded down.
fn to_grpc(span: Duration) -> HeaderValue {
    let nanoseconds = span.as_nanos();
    let (unit, number) = GRPC_UNITS
        .into_iter()
        .map(|(unit, worth)| (unit, nanoseconds / worth))
        .find(|(_, number)| *number <= GRPC_MOST)
        // More hours than there is room for: as many as there is.
        .unwrap_or((b'H', GRPC_MOST));
    let mut text = [0; GRPC_DIGITS + 1];
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(number).as_bytes();
    let end = digits.len().min(GRPC_DIGITS);
    text[..end].copy_from_slice(&digits[..end]);
    text[end] = unit;
    let mut value = HeaderValue::from_bytes(&text[..=end]).unwrap_or(HeaderValue::from_static("0n"));
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn read(headers: &HeaderMap, grpc: bool, now: Instant) -> Told {
        super::read(headers, Notable::of(headers), grpc, now)
    }

    fn read_from_sidecar(headers: &HeaderMap, grpc: bool, now: Instant) -> Told {
        super::read_from_sidecar(headers, Notable::of(headers), grpc, now)
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
            })
            .collect()
    }

    fn left(fields: &[(&'static str, &str)], grpc: bool) -> Option<Duration> {
        let now = Instant::now();
        read(&headers(fields), grpc, now).deadline.left(now)
    }

    #[rstest]
    #[case("1H", Some(Duration::from_secs(3600)))]
    #[case("2M", Some(Duration::from_secs(120)))]
    #[case("3S", Some(Duration::from_secs(3)))]
    #[case("4m", Some(MS(4)))]
    #[case("5u", Some(Duration::from_micros(5)))]
    #[case("6n", Some(Duration::from_nanos(6)))]
    #[case("0n", Some(Duration::ZERO))]
    #[case("00000100m", Some(MS(100)))]
    #[case("99999999S", Some(Duration::from_secs(99_999_999)))]
    #[case("99999999H", Some(Duration::from_secs(99_999_999 * 3600)))]
    #[case("100000000m", None)]
    #[case("", None)]
    #[case("m", None)]
    #[case("5", None)]
    #[case("5s", None)]
    #[case("5h", None)]
    #[case("-5m", None)]
    #[case("+5m", None)]
    #[case("5 m", None)]
    #[case(" 5m", None)]
    #[case("5m ", None)]
    #[case("1.5S", None)]
    #[case("0x5m", None)]
    fn grpc_timeouts_are_read_as_the_protocol_has_them(
        #[case] text: &str,
        #[case] expected: Option<Duration>,
    ) {
        assert_eq!(left(&[("grpc-timeout", text)], true), expected);
        assert_eq!(left(&[("grpc-timeout", text)], false), None, "it means nothing elsewhere");
    }

    #[rstest]
    #[case("250", Some(MS(250)))]
    #[case("0", Some(Duration::ZERO))]
    #[case("000250", Some(MS(250)))]
    #[case("999999999999999", Some(MS(999_999_999_999_999)))]
    #[case("1000000000000000", None)]
    #[case("99999999999999999999999999", None)]
    #[case("", None)]
    #[case("-1", None)]
    #[case("1.5", None)]
    #[case("250ms", None)]
    #[case("infinite", None)]
    fn our_own_timeout_is_a_whole_number_of_milliseconds(
        #[case] text: &str,
        #[case] expected: Option<Duration>,
    ) {
        assert_eq!(left(&[("weft-timeout-ms", text)], false), expected);
    }

    #[rstest]
    #[case(&[], None)]
    #[case(&[("x-envoy-expected-rq-timeout-ms", "300")], Some(MS(300)))]
    #[case(&[("x-envoy-upstream-rq-timeout-ms", "300")], Some(MS(300)))]
    #[case(&[("x-envoy-expected-rq-timeout-ms", "0")], None)]
    #[case(&[("x-envoy-upstream-rq-timeout-ms", "0"), ("weft-timeout-ms", "9")], Some(MS(9)))]
    #[case(&[("weft-timeout-ms", "500"), ("grpc-timeout", "200m")], Some(MS(200)))]
    #[case(&[("weft-timeout-ms", "100"), ("grpc-timeout", "1S")], Some(MS(100)))]
    #[case(&[("weft-timeout-ms", "soon"), ("grpc-timeout", "1S")], Some(MS(1000)))]
    #[case(&[("weft-timeout-ms", "700"), ("weft-timeout-ms", "400")], Some(MS(400)))]
    #[case(&[("weft-timeout-ms", "never"), ("weft-timeout-ms", "400")], Some(MS(400)))]
    fn the_shortest_that_can_be_read_counts(
        #[case] fields: &[(&'static str, &str)],
        #[case] expected: Option<Duration>,
    ) {
        assert_eq!(left(fields, true), expected);
    }

    #[rstest]
    #[case(Duration::ZERO, "0n")]
    #[case(Duration::from_nanos(99_999_999), "99999999n")]
    #[case(Duration::from_nanos(100_000_000), "100000u")]
    #[case(Duration::from_nanos(100_000_999), "100000u")]
    #[case(Duration::from_secs(99), "99000000u")]
    #[case(Duration::from_secs(100), "100000m")]
    #[case(Duration::from_secs(100_000), "100000S")]
    #[case(Duration::from_secs(100_000_000), "1666666M")]
    #[case(Duration::from_secs(6_000_000_000), "1666666H")]
    #[case(Duration::MAX, "99999999H")]
    fn spans_are_told_in_the_finest_unit_that_has_room(#[case] span: Duration, #[case] text: &str) {
        assert_eq!(to_grpc(span), text);
    }

    #[test]
    fn the_next_hop_is_told_what_is_left_in_every_field_that_was_read() {
        let now = Instant::now();
        let fields = &[
            ("grpc-timeout", "1S"),
            ("grpc-timeout", "2S"),
            ("x-envoy-expected-rq-timeout-ms", "900"),
            ("weft-timeout-ms", "5000"),
        ];
        let mut headers = headers(fields);
        let told = read(&headers, true, now);
        assert_eq!(told.deadline, Deadline::after(now, MS(900)));
        told.pass_on(&mut headers, told.deadline, now + MS(150));
        assert_eq!(headers.get_all("grpc-timeout").iter().collect::<Vec<_>>(), ["750000u"]);
        assert_eq!(headers["weft-timeout-ms"], "750");
        assert_eq!(headers["x-envoy-expected-rq-timeout-ms"], "750");
        assert!(!headers.contains_key("x-envoy-upstream-rq-timeout-ms"), "nobody asked in that one");
        assert!(headers["weft-timeout-ms"].is_sensitive() && headers["grpc-timeout"].is_sensitive());
    }

    #[test]
    fn a_grpc_server_is_told_of_a_deadline_that_its_client_did_not_set() {
        let now = Instant::now();
        let mut headers = HeaderMap::new();
        read(&headers, true, now).pass_on(&mut headers, Deadline::after(now, MS(50)), now);
        assert_eq!(headers["grpc-timeout"], "50000000n");
        let mut headers = HeaderMap::new();
        read(&headers, false, now).pass_on(&mut headers, Deadline::after(now, MS(50)), now);
        assert!(!headers.contains_key("grpc-timeout"), "but nobody else is");
    }

    #[test]
    fn a_sidecar_that_says_nothing_in_our_words_was_told_not_to() {
        let now = Instant::now();
        let fields = &[("grpc-timeout", "1S"), ("x-envoy-expected-rq-timeout-ms", "900")];
        assert_eq!(read_from_sidecar(&headers(fields), true, now).deadline, Deadline::NONE);
        let fields = &[fields[0], fields[1], ("weft-timeout-ms", "5000")];
        let mut headers = headers(fields);
        let told = read_from_sidecar(&headers, true, now);
        assert_eq!(told.deadline, Deadline::after(now, MS(5000)));
        told.pass_on(&mut headers, told.deadline, now);
        assert_eq!(headers["x-envoy-expected-rq-timeout-ms"], "5000", "nobody is left with another number");
    }

    #[test]
    fn without_a_deadline_nothing_is_told() {
        let now = Instant::now();
        let mut headers =
            headers(&[("weft-timeout-ms", "nonsense"), ("x-envoy-expected-rq-timeout-ms", "0")]);
        let told = read(&headers, true, now);
        assert_eq!(told.deadline, Deadline::NONE);
        told.pass_on(&mut headers, Deadline::NONE, now);
        assert_eq!(headers.len(), 1);
        assert_eq!(headers["x-envoy-expected-rq-timeout-ms"], "0");
    }

    #[test]
    fn time_that_is_over_is_zero_and_to_envoy_a_millisecond() {
        let now = Instant::now();
        let mut headers = headers(&[("x-envoy-upstream-rq-timeout-ms", "10")]);
        let told = read(&headers, true, now);
        assert!(!told.deadline.is_over(now + MS(9)) && told.deadline.is_over(now + MS(10)));
        told.pass_on(&mut headers, told.deadline, now + MS(11));
        assert_eq!(headers["weft-timeout-ms"], "0");
        assert_eq!(headers["grpc-timeout"], "0n");
        assert_eq!(headers["x-envoy-upstream-rq-timeout-ms"], "1");
    }

    #[test]
    fn numbers_that_share_a_place_in_memory_are_told_apart() {
        for milliseconds in [0, 5, 21, 5, 16, 0, u64::MAX, 15, u64::MAX] {
            assert_eq!(as_field(milliseconds), milliseconds.to_string());
        }
    }

    #[test]
    fn none_is_later_than_any() {
        let now = Instant::now();
        let (soon, late) = (Deadline::after(now, MS(1)), Deadline::after(now, MS(2)));
        assert_eq!(soon.earliest(late), soon);
        assert_eq!(soon.latest(late), late);
        assert_eq!(late.earliest(Deadline::NONE), late);
        assert_eq!(Deadline::NONE.latest(late), Deadline::NONE);
        assert_eq!(Deadline::after(now, Duration::MAX), Deadline::NONE, "beyond the clock's end");
    }

    proptest! {
        /// Hop by hop a deadline only ever shrinks, and a gRPC one by less than a ten-thousandth.
        #[test]
        fn what_is_told_is_never_longer_than_what_is_left(nanoseconds in 0..u64::MAX, grpc: bool) {
            let now = Instant::now();
            let span = Duration::from_nanos(nanoseconds);
            let deadline = Deadline::after(now, span);
            let mut headers = HeaderMap::new();
            read(&headers, grpc, now).pass_on(&mut headers, deadline, now);
            let read_again = read(&headers, grpc, now).deadline;
            prop_assert_eq!(read_again.latest(deadline), deadline);
            let lost = span - read_again.left(now).expect("there is one");
            prop_assert!(lost < Duration::from_millis(1) || grpc && lost <= span / 10_000, "{:?}", lost);
        }

        #[test]
        fn grpc_timeouts_survive_being_read_and_told(nanoseconds: u64) {
            let span = Duration::from_nanos(nanoseconds);
            let value = to_grpc(span);
            prop_assert!(value.len() <= GRPC_DIGITS + 1);
            let told = grpc_timeout(value.as_bytes()).expect("what we write can be read");
            prop_assert!(told <= span && span - told <= span / 10_000);
            prop_assert_eq!(to_grpc(told), value, "and says the same again");
        }

        #[test]
        fn whatever_is_sent_is_read_without_panicking(text in "[ -~]{0,24}", name in 0..4_usize) {
            let names = ["weft-timeout-ms", "grpc-timeout", ENVOY[0].as_str(), ENVOY[1].as_str()];
            let mut headers = HeaderMap::new();
            let name = HeaderName::from_bytes(names[name].as_bytes()).expect("a name");
            headers.insert(name, HeaderValue::from_str(&text).expect("printable"));
            let now = Instant::now();
            let told = read(&headers, true, now);
            told.pass_on(&mut headers, told.deadline, now);
        }
    }
}

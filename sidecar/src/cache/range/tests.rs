//! Ranges by RFC 9110 section 14 and their combination by RFC 9111 section 3.4.

#![expect(clippy::single_range_in_vec_init, reason = "lists of ranges that have one")]

use super::*;
use http::HeaderName;
use proptest::prelude::*;
use rstest::rstest;

const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    fields.iter().map(field).collect()
}

fn of_ten(range: &str) -> Wanted {
    wanted(&Method::GET, &headers(&[("range", range)]), &Validators::default(), 10)
}

fn parts(ranges: &[Range<u64>]) -> Wanted {
    Wanted::Parts(ranges.iter().cloned().collect())
}

#[rstest]
#[case("bytes=0-4", &[0..5])]
#[case("Bytes=0-0", &[0..1])]
#[case("bytes=5-", &[5..10])]
#[case("bytes=5-99", &[5..10])]
#[case("bytes=-3", &[7..10])]
#[case("bytes=-99", &[0..10])]
#[case("bytes=0-99999999999999999999999", &[0..10])]
#[case("bytes=8-9, 0-1", &[8..10, 0..2])]
#[case("bytes= 0-1 ,, -1", &[0..2, 9..10])]
#[case("bytes=0-1,50-60", &[0..2])]
// What overlaps is sent once.
#[case("bytes=4-6,0-4", &[0..7])]
#[case("bytes=0-,0-,0-", &[0..10])]
fn parts_that_there_are(#[case] range: &str, #[case] wanted: &[Range<u64>]) {
    assert_eq!(of_ten(range), parts(wanted));
}

#[rstest]
#[case("bytes=10-")]
#[case("bytes=10-20,99-")]
#[case("bytes=-0")]
fn parts_that_there_are_not(#[case] range: &str) {
    assert_eq!(of_ten(range), Wanted::Nothing);
}

#[rstest]
#[case("items=0-4")]
#[case("bytes 0-4")]
#[case("bytes=")]
#[case("bytes=4-2")]
#[case("bytes=0-1,4-2")]
#[case("bytes=-")]
#[case("bytes=a-b")]
#[case("bytes=0-4x")]
#[case("bytes=0--4")]
#[case("bytes=+0-4")]
fn what_is_no_range_asks_for_the_whole(#[case] range: &str) {
    assert_eq!(of_ten(range), Wanted::Whole);
}

#[test]
fn a_range_counts_once_in_a_get_and_within_reason() {
    let none = Validators::default();
    let range = ("range", "bytes=0-4");
    assert_eq!(wanted(&Method::HEAD, &headers(&[range]), &none, 10), Wanted::Whole);
    assert_eq!(wanted(&Method::GET, &headers(&[range, range]), &none, 10), Wanted::Whole);
    assert_eq!(wanted(&Method::GET, &headers(&[]), &none, 10), Wanted::Whole);
    let many = format!("bytes={}", vec!["0-0"; 33].join(","));
    assert_eq!(of_ten(&many), Wanted::Whole);
    assert_eq!(wanted(&Method::GET, &headers(&[("range", "bytes=0-")]), &none, 0), Wanted::Nothing);
}

/// RFC 9110 section 13.1.5.
#[rstest]
#[case("\"a\"", true)]
#[case("\"b\"", false)]
#[case("W/\"a\"", false)]
#[case("*", false)]
#[case(OLD, true)]
#[case("Sunday, 06-Nov-94 08:49:37 GMT", true)]
#[case(LATER, false)]
#[case("never", false)]
fn if_range_compares_strongly(#[case] value: &str, #[case] same: bool) {
    let stored = Validators {
        etag: Some(b"\"a\""),
        last_modified: Some(OLD.as_bytes()),
        date: Some(LATER.as_bytes()),
        received: 1_795_000_000,
    };
    let request = headers(&[("range", "bytes=0-4"), ("if-range", value)]);
    let expected = if same { parts(&[0..5]) } else { Wanted::Whole };
    assert_eq!(wanted(&Method::GET, &request, &stored, 10), expected);
    // Neither a weak tag nor a date that may have been that of two states.
    let weak = Validators { etag: Some(b"W/\"a\""), date: Some(OLD.as_bytes()), ..stored };
    assert!(!if_range(&request, &weak));
}

#[test]
fn one_part_is_the_body_and_several_are_in_a_multipart() {
    let mut one = headers(&[("content-type", "text/plain")]);
    let partial_one = partial(&mut one, &Ranges::from_iter([2..5]), 10, 0);
    assert_eq!(partial_one.content_length, 3);
    assert_eq!(partial_one.pieces[..], [Piece::Stored(2..5)]);
    assert_eq!(
        (&one["content-range"], &one["content-type"]),
        (&"bytes 2-4/10".parse().unwrap(), &"text/plain".parse().unwrap())
    );

    let mut two = headers(&[("content-type", "text/plain")]);
    let partial_two = partial(&mut two, &Ranges::from_iter([8..10, 0..1]), 10, 0xab);
    let boundary = "000000000000000000000000000000ab";
    assert_eq!(two["content-type"], format!("multipart/byteranges; boundary={boundary}").as_str());
    assert!(!two.contains_key("content-range"));
    let body: Vec<u8> = partial_two
        .pieces
        .iter()
        .flat_map(|piece| match piece {
            Piece::Bytes(bytes) => bytes.to_vec(),
            Piece::Stored(range) => b"0123456789"[range.start as usize..range.end as usize].to_vec(),
        })
        .collect();
    let expected = format!(
        "--{boundary}\r\ncontent-type: text/plain\r\ncontent-range: bytes 8-9/10\r\n\r\n89\r\n\
         --{boundary}\r\ncontent-type: text/plain\r\ncontent-range: bytes 0-0/10\r\n\r\n0\r\n--{boundary}--\r\n"
    );
    assert_eq!(String::from_utf8(body).unwrap(), expected);
    assert_eq!(partial_two.content_length, expected.len() as u64);
    assert_eq!(unsatisfiable(10)["content-range"], "bytes */10");
}

fn part(range: Range<u64>, complete: Option<u64>) -> Part {
    Part { range, complete }
}

#[rstest]
#[case("bytes 0-4/10", Some(part(0..5, Some(10))))]
#[case("bytes 9-9/10", Some(part(9..10, Some(10))))]
#[case("bytes 0-4/*", Some(part(0..5, None)))]
#[case("bytes 4-0/10", None)]
#[case("bytes 0-10/10", None)]
#[case("bytes */10", None)]
#[case("bytes 0-/10", None)]
#[case("items 0-4/10", None)]
#[case("bytes=0-4/10", None)]
#[case("bytes 0-99999999999999999999999/*", None)]
fn what_part_a_206_is(#[case] field: &str, #[case] expected: Option<Part>) {
    assert_eq!(Part::of(&headers(&[("content-range", field)])), expected);
}

#[test]
fn the_store_keeps_a_part_by_its_start() {
    let part = part(3..8, Some(10));
    assert_eq!(Part::of_extent(part.extent(), 5), part);
}

#[rstest]
#[case(part(0..5, Some(10)), part(5..10, Some(10)), Some(part(0..10, Some(10))))]
#[case(part(0..5, None), part(3..10, Some(10)), Some(part(0..10, Some(10))))]
#[case(part(0..5, Some(10)), part(6..10, Some(10)), None)]
#[case(part(0..5, Some(10)), part(5..10, Some(11)), None)]
#[case(part(0..5, Some(6)), part(5..10, None), None)]
fn parts_that_touch_make_one(#[case] a: Part, #[case] b: Part, #[case] both: Option<Part>) {
    assert_eq!(a.with(&b), both);
    assert_eq!(b.with(&a), both);
}

#[test]
fn only_strong_validators_say_that_parts_are_of_one_whole() {
    let tagged = |etag: &'static str| Validators { etag: Some(etag.as_bytes()), ..Validators::default() };
    assert!(of_one_whole(&tagged("\"a\""), &tagged("\"a\"")));
    assert!(!of_one_whole(&tagged("W/\"a\""), &tagged("W/\"a\"")));
    assert!(!of_one_whole(&tagged("\"a\""), &tagged("\"b\"")));
    assert!(!of_one_whole(&Validators::default(), &Validators::default()));
}

#[test]
fn the_newer_fields_hold_of_two_parts() {
    let stored = headers(&[
        ("etag", "\"a\""),
        ("x-a", "1"),
        ("content-range", "bytes 0-4/10"),
        ("content-length", "5"),
    ]);
    let new = headers(&[
        ("etag", "\"a\""),
        ("x-a", "2"),
        ("content-range", "bytes 5-7/10"),
        ("content-length", "3"),
    ]);
    let eight = combined(&stored, &new, &part(0..8, Some(10)));
    assert_eq!(eight, headers(&[("etag", "\"a\""), ("x-a", "2"), ("content-range", "bytes 0-7/10")]));
    assert!(!combined(&stored, &new, &part(0..10, Some(10))).contains_key("content-range"));
    assert_eq!(combined(&stored, &new, &part(0..8, None))["content-range"], "bytes 0-7/*");
}

#[test]
fn a_part_answers_for_what_lies_in_it() {
    let none = Validators::default();
    let holds =
        |range: &str, part: &Part| part.holds(&Method::GET, &headers(&[("range", range)]), &none).is_some();
    let middle = part(3..8, Some(10));
    assert!(holds("bytes=3-7", &middle) && holds("bytes=4-5,7-7", &middle));
    assert!(!holds("bytes=2-4", &middle) && !holds("bytes=-1", &middle) && !holds("bytes=9-", &middle));
    assert!(!holds("bytes=3-4", &part(3..8, None)));
    assert_eq!(middle.holds(&Method::GET, &HeaderMap::new(), &none), None);
}

proptest! {
    #[test]
    fn parts_lie_within_the_body_and_are_sent_once(text in "bytes=([0-9]{0,3}-[0-9]{0,3},? ?){0,6}", length in 0_u64..500) {
        if let Wanted::Parts(ranges) = wanted(&Method::GET, &headers(&[("range", &text)]), &Validators::default(), length) {
            prop_assert!(ranges.iter().all(|range| range.start < range.end && range.end <= length));
            let sum: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            prop_assert!(sum <= length);
        }
    }
}

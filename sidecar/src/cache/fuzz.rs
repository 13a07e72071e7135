//! Fuzz targets of what the cache reads: fields of requests and answers, and addresses.

mod farther;
mod keys;

pub(crate) use super::{
    key::is_one_message,
    purge::fuzz::{PURGES, purge},
    tiers::fuzz::{DIRECTORIES, JOURNALS, directory, journal},
};
pub(crate) use farther::{ASKS, PACKED, ask, packed};
pub(crate) use keys::{KEYS, key};

use super::{
    conditional::{self, Condition, Validators},
    date,
    directives::{FOREVER, RequestDirectives, ResponseDirectives},
    freshness::{Arrival, Circumstances, Freshness, Terms},
    invalidation,
    range::{self, Part, Piece, Wanted},
    storing::{self, Asked, Kind},
    structured::{self, Value},
    vary,
};
use crate::fuzz::{fields, first_line, halves};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use weft_config::{matching::normalize_path, snapshot::CacheRules};

/// When everything happens.
const NOW: u32 = 1_795_000_000;
const ARRIVAL: Arrival = Arrival { requested: NOW - 1, received: NOW };

pub(crate) const DIRECTIVES: &[&[u8]] = &[
    b"cache-control: max-age=60, s-maxage=\"30\", public\ncache-control: no-cache=\"set-cookie, x-a\"",
    b"cache-control: private=\"x-a\", no-store , must-revalidate,proxy-revalidate",
    b"cache-control: max-age=60, a=\"b, no-store, c=\\\"d\", stale-while-revalidate=5, stale-if-error=6",
    b"cache-control: a=\"b, no-store\ncache-control: must-understand, immutable, private",
    b"weft-cache-control: max-age=5\ncdn-cache-control: no-store\ncache-control: private\nexpires: 0",
    b"cdn-cache-control: max-age=-5, private=\"a\", no-cache=?0",
    b"cache-control: max-stale, min-fresh=3, only-if-cached, max-age=0\npragma: no-cache",
    b"pragma: no-cache\nexpires: Sun, 06 Nov 1994 08:49:37 GMT\nage: 3, 4\ndate: Sun Nov  6 08:49:37 1994",
];

/// Restrictions are never hidden by what stands around them, and more lines never loosen what the first ones say.
pub(crate) fn directives(bytes: &[u8]) {
    let headers = fields(bytes);
    let all = ResponseDirectives::of(&headers);
    for time in [all.max_age, all.s_maxage, all.while_revalidate, all.if_error].into_iter().flatten() {
        assert!(time <= FOREVER);
    }
    let request = RequestDirectives::of(&headers);
    if all.targeted {
        return;
    }
    let lines: Vec<_> = headers.get_all(header::CACHE_CONTROL).iter().cloned().collect();
    let mut fewer = HeaderMap::new();
    for line in &lines {
        let some = ResponseDirectives::of(&fewer);
        let kept = |before: bool, after: bool| assert!(!before || after, "{some:?} became {all:?}");
        kept(some.no_store, all.no_store);
        kept(some.private, all.private);
        kept(some.no_cache, all.no_cache);
        kept(some.must_revalidate, all.must_revalidate);
        kept(some.never_stale(), all.never_stale());
        let shorter = |before: Option<u32>, after: Option<u32>| {
            assert!(before.is_none_or(|before| after.is_some_and(|after| after <= before)));
        };
        shorter(some.max_age, all.max_age);
        shorter(some.s_maxage, all.s_maxage);
        shorter(some.if_error, all.if_error);
        fewer.append(header::CACHE_CONTROL, line.clone());
    }
    if lines.iter().any(|line| line.as_bytes().contains(&b'"')) {
        return;
    }
    // Without quotes it is simple.
    let members = lines.iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    for member in members.map(<[u8]>::trim_ascii) {
        let (name, value) = match member.iter().position(|byte| *byte == b'=') {
            Some(equals) => (member[..equals].trim_ascii_end(), Some(&member[equals + 1..])),
            None => (member, None),
        };
        match name.to_ascii_lowercase().as_slice() {
            b"no-store" => assert!(all.no_store && request.no_store),
            b"no-cache" => assert!(request.no_cache && (all.no_cache || value.is_some())),
            b"private" => assert!(all.private || value.is_some()),
            b"must-revalidate" => assert!(all.must_revalidate),
            b"proxy-revalidate" => assert!(all.proxy_revalidate),
            b"must-understand" => assert!(all.must_understand),
            b"only-if-cached" => assert!(request.only_if_cached),
            b"max-age" => {
                let said = value.and_then(|value| std::str::from_utf8(value).ok()?.parse::<u32>().ok());
                assert!(all.max_age.is_some_and(|age| age <= said.unwrap_or(FOREVER)));
            }
            _ => {}
        }
    }
    let joined = lines.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b","[..]);
    let Ok(joined) = HeaderValue::from_bytes(&joined.to_ascii_uppercase()) else { return };
    if !lines.is_empty() {
        let one = HeaderMap::from_iter([(header::CACHE_CONTROL, joined)]);
        assert_eq!(ResponseDirectives::of(&one), all, "lines and case make no difference");
        assert_eq!(RequestDirectives::of(&one), request);
    }
}

pub(crate) const DATES: &[&[u8]] = &[
    b"Sun, 06 Nov 1994 08:49:37 GMT",
    b"Sunday, 06-Nov-94 08:49:37 GMT",
    b"Sun Nov  6 08:49:37 1994",
    b"Fri, 31 Dec 9999 23:59:59 GMT",
    b"Saturday, 29-Feb-76 00:00:60 GMT",
    b"0",
];

/// A date that is read is written as the same moment.
pub(crate) fn date(bytes: &[u8]) {
    let Some(moment) = date::parse(bytes, NOW) else { return };
    assert!(moment < 253_402_300_800, "the year has four digits");
    if let Ok(moment) = u32::try_from(moment) {
        assert_eq!(date::parse(date::write(moment).as_bytes(), NOW), Some(moment.into()));
    }
}

pub(crate) const DICTIONARIES: &[&[u8]] = &[
    b"x: max-age=60;a=1, no-store, private=\"a\\\"b\"\nx: x=(a \"b\" 3;q), max-age=-5",
    b"x: a=1.5, b=:YWI=:, c=@1659578233, d=%\"a%20b\", e=?0",
    b"x: params=(\"a\" \"b c\"), except=(\"d\"), key-order",
    b"x: a;b;c=\"d\"  ,\tb=*",
];

/// What was read, once written, is read as the same.
pub(crate) fn structured(bytes: &[u8]) {
    const NAME: HeaderName = HeaderName::from_static("x");
    let Some(members) = structured::dictionary(&fields(bytes), &NAME) else { return };
    let mut text = String::new();
    let mut keys = Vec::new();
    for (key, value) in &members {
        assert!(!keys.contains(&key), "{key} is there twice");
        keys.push(key);
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(key);
        match value {
            Value::Boolean(true) => {}
            value => match written(value) {
                Some(value) => text.push_str(&format!("={value}")),
                None => return,
            },
        }
    }
    let Ok(value) = HeaderValue::from_str(&text) else { panic!("{text:?} is no field's value") };
    let again = structured::dictionary(&HeaderMap::from_iter([(NAME, value)]), &NAME);
    assert_eq!(again.as_ref(), Some(&members), "{text}");
}

/// `None` for what is passed over in reading.
fn written(value: &Value) -> Option<String> {
    Some(match value {
        Value::Boolean(on) => format!("?{}", u8::from(*on)),
        Value::Integer(number) => number.to_string(),
        Value::Text(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        Value::Token(token) => token.clone(),
        Value::List(items) => {
            let items: Option<Vec<String>> = items.iter().map(written).collect();
            format!("({})", items?.join(" "))
        }
        Value::Other => return None,
    })
}

pub(crate) const VARIANTS: &[&[u8]] = &[
    b"vary: accept-encoding, x-a\naccept-encoding: gzip;q=0.5, br\nx-a: 1\n\naccept-encoding: br, gzip;q=0.500\nx-a: 1",
    b"vary: accept-language\naccept-language: de, en;q=0.8\n\naccept-language: en;q=0.80, de",
    b"vary: accept\naccept: text/html;a=\"b, c\" , */*\naccept: x/y\n\naccept: text/html;a=\"b, c\",*/*,x/y",
    b"vary: cookie, x-b\nvary: X-B,,x-c\ncookie: a=b; c=d\n\ncookie: a=b\ncookie: c=d",
    b"vary: *\nvary: accept-encoding\naccept-encoding: x-gzip\n\naccept-encoding: gzip",
];

/// A request selects what it brought, and another one selects it only if its fields mean the same.
pub(crate) fn vary(bytes: &[u8]) {
    let (one, other) = halves(bytes);
    let (one, other) = (fields(one), fields(other));
    let Ok(names) = vary::names(&one) else { return };
    assert!(names.windows(2).all(|pair| pair[0].as_str() < pair[1].as_str()));
    let selector = vary::selector(&names, &one);
    assert!(vary::selects(&selector, &one), "{}", selector.escape_ascii());
    let selects = vary::selects(&selector, &other);
    assert_eq!(selects, selector == vary::selector(&names, &other), "two ways to compare");
    for name in &names {
        let (mine, theirs) = (meaning(name, &one), meaning(name, &other));
        assert!(!selects || mine == theirs, "{mine:?} and {theirs:?} are not the same {name}");
        let mut lines = one.get_all(name).iter();
        let (Some(_), None) = (lines.next(), lines.next()) else { continue };
        let mut form = Default::default();
        vary::canonical(name.as_str(), &one, &mut form);
        let Ok(value) = HeaderValue::from_bytes(&form) else { panic!("no value: {form:?}") };
        let mut again = Default::default();
        vary::canonical(name.as_str(), &HeaderMap::from_iter([(name.clone(), value)]), &mut again);
        assert_eq!(again, form, "what is canonical stays so");
    }
}

/// Names with their weights, or what is not understood.
type Meaning = Result<Vec<(Vec<u8>, u32)>, Vec<u8>>;

/// What a field means, as far as it is known; what is not understood means itself but for blanks and commas.
fn meaning(name: &HeaderName, request: &HeaderMap) -> Option<Meaning> {
    let mut lines = request.get_all(name).iter().peekable();
    lines.peek()?;
    let text = lines.map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b","[..]);
    let raw = || Some(Err(text.iter().copied().filter(|byte| !b" \t,;".contains(byte)).collect()));
    let encodings = *name == header::ACCEPT_ENCODING;
    if !encodings && *name != header::ACCEPT_LANGUAGE || text.contains(&b'"') {
        return raw();
    }
    let mut weights: Vec<(Vec<u8>, u32)> = Vec::new();
    for member in text.to_ascii_lowercase().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        if member.is_empty() {
            continue;
        }
        let (name, weight) = match member.iter().position(|byte| *byte == b';') {
            None => (member, Some(1000)),
            Some(at) => (&member[..at], thousandths(member[at + 1..].trim_ascii())),
        };
        let name = match name.trim_ascii() {
            b"x-gzip" if encodings => &b"gzip"[..],
            b"x-compress" if encodings => b"compress",
            name => name,
        };
        let Some(weight) = weight else { return raw() };
        weights.push((name.to_vec(), weight));
    }
    if encodings {
        weights.sort();
    } else {
        weights.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
    }
    Some(Ok(weights))
}

fn thousandths(weight: &[u8]) -> Option<u32> {
    let number: f64 = std::str::from_utf8(weight.strip_prefix(b"q=")?).ok()?.parse().ok()?;
    Some((number * 1000.0).round() as u32)
}

pub(crate) const RANGES: &[&[u8]] = &[
    b"length: 100\nrange: bytes=0-9\nif-range: \"a\"\n\netag: \"a\"\ncontent-range: bytes 0-9/100",
    b"length: 1000\nrange: bytes=0-9, 5-20,-1,900-\n\ncontent-range: bytes 10-99/*\ncontent-type: a/b",
    b"length: 0\nrange: bytes=-5\nif-range: Sun, 06 Nov 1994 08:49:37 GMT\n\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\ndate: Sun, 06 Nov 1995 08:49:37 GMT",
    b"length: 10\nrange: BYTES=18446744073709551615-\n\ncontent-range: bytes 5-18446744073709551614/18446744073709551615",
];

/// Parts lie within the whole, do not overlap, and add up.
pub(crate) fn range(bytes: &[u8]) {
    let (request, stored) = halves(bytes);
    let (request, stored) = (fields(request), fields(stored));
    let validators = Validators::of(&stored, NOW);
    let length = request.get("length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    // No body has as many bytes as a number can tell.
    let length = length.unwrap_or(100).min(u64::MAX >> 1);
    let wanted = range::wanted(&Method::GET, &request, &validators, length);
    assert_eq!(range::wanted(&Method::HEAD, &request, &validators, length), Wanted::Whole);
    if let Wanted::Parts(ranges) = &wanted {
        assert!(!ranges.is_empty() && ranges.len() <= 32);
        assert!(ranges.iter().all(|range| range.start < range.end && range.end <= length), "{ranges:?}");
        for (at, one) in ranges.iter().enumerate() {
            let apart = |other: &std::ops::Range<u64>| other.end <= one.start || one.end <= other.start;
            assert!(ranges[at + 1..].iter().all(apart), "{ranges:?}");
        }
        let mut head = stored.clone();
        let partial = range::partial(&mut head, ranges, length, 7);
        let sizes = partial.pieces.iter().map(|piece| match piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Stored(range) => range.end - range.start,
        });
        assert_eq!(sizes.sum::<u64>(), partial.content_length);
        if let [range] = &ranges[..] {
            let part = Part::of(&head);
            assert_eq!(part, Some(Part { range: range.clone(), complete: Some(length) }));
            assert_eq!(
                part.and_then(|part| part.holds(&Method::GET, &request, &validators)),
                Some(ranges.clone())
            );
        } else {
            assert!(Part::of(&head).is_none(), "the parts say what they are, the whole does not");
        }
    }
    let Some(part) = Part::of(&stored) else { return };
    assert!(part.range.start < part.range.end);
    assert!(part.complete.is_none_or(|complete| part.range.end <= complete));
    assert_eq!(part.with(&part).as_ref(), Some(&part));
    let head = range::combined(&stored, &HeaderMap::new(), &part);
    if part.is_whole() {
        assert!(!head.contains_key(header::CONTENT_RANGE));
    } else {
        assert_eq!(Part::of(&head), Some(part));
    }
}

pub(crate) const CONDITIONS: &[&[u8]] = &[
    b"if-none-match: W/\"a\", \"b,c\" ,\"d\"\n\netag: \"b,c\"",
    b"if-none-match: *\nif-modified-since: Sun, 06 Nov 1994 08:49:37 GMT\n\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT",
    b"if-none-match: \"a, W/b\nif-none-match: \"\"\n\netag: \"\"\ncontent-length: 5\nset-cookie: a=b",
    b"if-modified-since: Sunday, 06-Nov-94 08:49:37 GMT\n\ndate: Sun Nov  6 08:49:37 1994\nvary: a\nexpires: 0",
    b"if-none-match: abc\n\netag: abc\nlast-modified: x",
];

/// Conditions that name what is stored are met, what is asked by confirms itself, and 304s describe no body.
pub(crate) fn conditional(bytes: &[u8]) {
    let (request, stored) = halves(bytes);
    let (mut request, stored) = (fields(request), fields(stored));
    let validators = Validators::of(&stored, NOW);
    let evaluate = |request: &HeaderMap| {
        let got = conditional::evaluate(&Method::GET, request, StatusCode::OK, &validators);
        assert_eq!(conditional::evaluate(&Method::HEAD, request, StatusCode::OK, &validators), got);
        got
    };
    let met = evaluate(&request);
    assert!(met == Condition::Give || conditional::is_conditional(&request));
    assert_eq!(
        conditional::evaluate(&Method::GET, &request, StatusCode::NOT_FOUND, &validators),
        Condition::Give
    );
    let not_modified = conditional::not_modified(&stored);
    for name in [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::SET_COOKIE] {
        assert!(!not_modified.contains_key(name));
    }
    // A client that has what is stored is told so.
    if let Some(etag) = stored.get(header::ETAG)
        && is_tag(etag.as_bytes())
    {
        let mut lines = HeaderMap::from_iter([(header::IF_NONE_MATCH, etag.clone())]);
        assert_eq!(evaluate(&lines), Condition::NotModified, "{etag:?}");
        let list = [b"\"another\", ".as_slice(), etag.as_bytes(), b" ,W/\"third\""].concat();
        if let Ok(list) = HeaderValue::from_bytes(&list) {
            lines.insert(header::IF_NONE_MATCH, list);
            assert_eq!(evaluate(&lines), Condition::NotModified, "{etag:?} in a list");
        }
    }
    let asks = conditional::ask(&mut request, &[validators]);
    assert!(asks || !validators.any());
    assert!(!request.contains_key(header::RANGE) && !conditional::is_for_origin(&request));
    if asks {
        let same = conditional::confirmed(&stored, &[validators], NOW);
        assert_eq!(same.as_slice(), [0], "the very same validators confirm it");
    }
    let again = conditional::updated(&stored, &not_modified);
    assert_eq!(again, stored, "a 304 of itself changes nothing");
}

/// RFC 9110 section 8.8.3.
fn is_tag(etag: &[u8]) -> bool {
    match etag.strip_prefix(b"W/").unwrap_or(etag) {
        [b'"', text @ .., b'"'] => !text.contains(&b'"') && !text.contains(&b' '),
        _ => false,
    }
}

pub(crate) const ANSWERS: &[&[u8]] = &[
    b"GET 200\nauthorization: a\n\ncache-control: public, max-age=60\netag: \"a\"\nset-cookie: a=b",
    b"GET 200\nauthorization: a\n\ncache-control: max-age=60\nconnection: x-a, close\nx-a: b\nkeep-alive: 5",
    b"GET 206\nrange: bytes=0-4\n\ncache-control: max-age=60\netag: \"a\"\ncontent-range: bytes 0-4/10",
    b"GET 500\n\ncache-control: must-understand, no-store, max-age=5, no-cache=\"set-cookie\"\nset-cookie: a=b",
    b"POST 200\n\nexpires: Fri, 31 Dec 9999 23:59:59 GMT\ncontent-location: /a\nweft-x: 1\nweft-cache-control: max-age=1",
    b"GET 404\ncookie: a=b\ncache-control: no-store\n\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\nvary: accept",
    b"RPC 200\n\ngrpc-status: 0\nage: 50\ndate: Sun, 06 Nov 1994 08:49:37 GMT\ncache-control: private=\"date\"",
    b"HEAD 200\n\ncache-control: max-age=5, stale-if-error=90, stale-while-revalidate=1, must-revalidate",
];

/// Nothing is kept that a shared cache must not keep, nor fields that belong to one exchange or one person.
pub(crate) fn storing(bytes: &[u8]) {
    let (first, rest) = first_line(bytes);
    let (request, response) = halves(rest);
    let (request, mut response) = (fields(request), fields(response));
    let mut words = first.split(|byte| *byte == b' ');
    let kind = match words.next() {
        Some(b"HEAD") => Kind::Head,
        Some(b"POST") => Kind::Post,
        Some(b"RPC") => Kind::Grpc(std::time::Duration::from_secs(5)),
        _ => Kind::Get,
    };
    let status = words.next().and_then(|code| StatusCode::from_bytes(code).ok()).unwrap_or(StatusCode::OK);
    let says = RequestDirectives::of(&request);
    let asked = Asked {
        kind,
        headers: &request,
        directives: &says,
        scheme: "http",
        authority: "a",
        path: "/a",
        query: None,
    };
    let rules = CacheRules::default();
    let decided = storing::decide(&asked, status, &response, &rules, ARRIVAL);
    let directives = ResponseDirectives::of(&response);
    let (_, after) = storing::refreshed(&asked, status, &response, &response, &rules, ARRIVAL);
    if let Ok(keep) = decided {
        assert!(!directives.private && !says.no_store && kind != Kind::Head);
        assert!(!directives.no_store || directives.must_understand);
        let for_all = directives.public || directives.must_revalidate || directives.s_maxage.is_some();
        assert!(!request.contains_key(header::AUTHORIZATION) || for_all);
        assert!(!response.contains_key("weft-error") && !status.is_informational());
        assert_eq!(keep.part.is_some(), status == StatusCode::PARTIAL_CONTENT);
        assert!(keep.terms.is_useful());
        let kept = keep.fields(&response, &rules, None).map();
        for name in
            ["set-cookie", "connection", "keep-alive", "transfer-encoding", "proxy-authenticate", "age"]
        {
            assert!(!kept.contains_key(name), "{name} is kept");
        }
        assert!(kept.contains_key(header::DATE));
        let own = |name: &&HeaderName| name.as_str().starts_with("weft-") && *name != "weft-cache-control";
        assert_eq!(kept.keys().find(own), None);
        for name in &directives.withheld {
            assert!(!kept.contains_key(name) || *name == header::DATE, "{name} is kept");
        }
        assert!(after.is_ok(), "a 304 that says the same as before: {after:?}");
        in_time(&keep.terms, &directives, &says);
    }
    // The other way to make terms, which must not fail whatever is said.
    response.remove(header::SET_COOKIE);
    let around = Circumstances { rules: &rules, path: "/a", method: None, personal: false, arrival: ARRIVAL };
    let (terms, _) = Terms::new(status, &response, &directives, &around);
    in_time(&terms, &directives, &says);
}

/// What is given as time goes by.
fn in_time(terms: &Terms, directives: &ResponseDirectives, says: &RequestDirectives) {
    assert!(terms.age(NOW) <= FOREVER && terms.lifetime <= FOREVER);
    let mut was_fresh = true;
    for now in [NOW - 5, NOW, NOW + 1, NOW + 59, NOW + 61, NOW + 86_400, NOW + (1 << 30), u32::MAX] {
        let fresh = match terms.judge(says, now) {
            Freshness::Fresh { left } => {
                assert_eq!(i64::from(left), terms.left(now));
                assert!(left > 0 && !directives.no_cache && !says.no_cache && left >= says.min_fresh);
                assert!(says.max_age.is_none_or(|most| terms.age(now) <= most || directives.immutable));
                true
            }
            Freshness::Stale { may, .. } => {
                assert!(!directives.never_stale() && terms.left(now) <= 0);
                assert!(!may.max_stale || says.max_stale.is_some());
                false
            }
            Freshness::MustRevalidate { if_error, .. } => {
                assert!(!if_error || !directives.no_cache);
                false
            }
        };
        assert!(was_fresh || !fresh, "nothing becomes fresh by waiting");
        was_fresh = fresh;
    }
}

pub(crate) const CHANGES: &[&[u8]] = &[
    b"POST http://a:8080/b/c?d=e\nlocation: /x/../y?z\ncontent-location: f",
    b"DELETE http://a/b\nlocation: http://A:80/x#y\ncontent-location: //evil/x",
    b"PURGE https://a/\nlocation: https://a:443?q\ncontent-location: ../../x",
    b"GET http://a/\nlocation: ?x",
];

/// Only resources of the origin itself become invalid, by addresses in normal form.
pub(crate) fn invalidation(bytes: &[u8]) {
    let (first, rest) = first_line(bytes);
    let response = fields(rest);
    let mut words = first.split(|byte| *byte == b' ');
    let method = words.next().and_then(|method| Method::from_bytes(method).ok());
    let uri = words.next().and_then(|uri| std::str::from_utf8(uri).ok()?.parse::<Uri>().ok());
    let (Some(method), Some(uri)) = (method, uri) else { return };
    let (Some(authority), Ok(path)) = (uri.authority(), normalize_path(uri.path())) else { return };
    let scheme = uri.scheme_str().unwrap_or("http");
    let targets = invalidation::targets(
        &method,
        StatusCode::OK,
        scheme,
        authority.as_str(),
        &path,
        uri.query(),
        &response,
    );
    assert_eq!(targets.is_empty(), invalidation::is_safe(&method));
    assert!(targets.len() <= 3);
    for target in targets {
        assert_eq!(normalize_path(&target.path).as_deref(), Ok(target.path.as_str()));
        assert!(!target.query.is_some_and(|query| query.contains('#')));
    }
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let elsewhere = response.get(&name).is_some_and(|value| {
            let reference = value.as_bytes();
            let host = reference.strip_prefix(b"http:").unwrap_or(reference).strip_prefix(b"//");
            host.is_some_and(|host| host.starts_with(b"evil"))
        });
        let named = invalidation::named(&name, scheme, authority.as_str(), &path, &response);
        assert!(!elsewhere || authority.as_str().starts_with("evil") || named.is_none());
    }
}

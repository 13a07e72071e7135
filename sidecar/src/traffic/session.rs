//! Session persistence as in the Gateway API: a token in a cookie or a header keeps a client on one endpoint.
//!
//! A token says which backend, which endpoint, when the session began and when it was last used. It holds no addresses
//! and means nothing to anybody but a sidecar. Its checksum tells damage, not forgery: all that somebody can gain by
//! making one up is to be served by an endpoint that the rule could have picked anyway, for as long as they like, so
//! nothing that matters may depend on it.
//!
//! The cookie or header goes on to the application like every other: it is harmless there, and an application that
//! copies fields to its own calls does no harm either, since another rule's token names none of its backends.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::time::Duration;
use weft_config::snapshot::{Session, cookie, hash64};

/// The layout of tokens: the version, backend and endpoint, two times, and the checksum of all that.
const VERSION: u8 = 1;
const CHECKED: usize = 1 + 8 + 8 + 4 + 4;
const BYTES: usize = CHECKED + 8;
/// Its length as text: whole groups of three bytes, so there is no padding.
const TEXT: usize = BYTES / 3 * 4;
/// How far another sidecar's clock may be ahead.
const SKEW: u64 = 300;

/// What a request's token says, if it has one that is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pinned {
    /// The backend, as [`Split::token`](super::split::Split::token) names it.
    pub(crate) backend: u64,
    /// The endpoint's number.
    pub(crate) endpoint: u64,
    /// When the session began, in seconds since 1970.
    began: u32,
    /// When the token was written, in seconds since 1970: the session's last use, to the second.
    used: u32,
}

/// The token of a request, unless it is damaged or its session is over. `now` in seconds since 1970.
///
/// Times are whole seconds: a session never ends early, and up to two seconds late.
pub(crate) fn read(session: &Session, headers: &HeaderMap, now: u64) -> Option<Pinned> {
    let text = if session.in_header {
        headers.get(&*session.name)?.to_str().ok()?.trim()
    } else {
        cookie(headers, &session.name)?
    };
    let pinned = decode(text)?;
    let (began, used) = (u64::from(pinned.began), u64::from(pinned.used));
    let over = |since: u64, limit: Option<Duration>| {
        limit.is_some_and(|limit| now.saturating_sub(since) > whole_seconds(limit))
    };
    let from_the_future = began.max(used) > now.saturating_add(SKEW) || began > used;
    let ended = over(began, session.absolute_timeout) || over(used, session.idle_timeout);
    (!from_the_future && !ended).then_some(pinned)
}

/// Gives the client a token for where its request was served, if it needs one: its session is new, was served by
/// another endpoint (which begins a new session), or would run into its idle timeout otherwise.
pub(crate) fn write(
    session: &Session,
    before: Option<&Pinned>,
    backend: u64,
    endpoint: u64,
    now: u64,
    response: &mut HeaderMap,
) {
    let time = u32::try_from(now).unwrap_or(u32::MAX);
    let same = before.filter(|b| (b.backend, b.endpoint) == (backend, endpoint));
    let began = match same {
        // A session that never idles out needs no other token. Where it does, one a second is enough.
        Some(before) if session.idle_timeout.is_none() || before.used >= time => return,
        Some(before) => before.began,
        None => time,
    };
    let token = encode(&Pinned { backend, endpoint, began, used: time.max(began) });
    if session.in_header {
        // What is not a field's name cannot have come through the policy's checks.
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(session.name.as_bytes()), HeaderValue::from_str(&token))
        {
            response.insert(name, value);
        }
        return;
    }
    let mut text = format!("{}={token}; Path={}", session.name, cookie_path(&session.path));
    if session.permanent
        && let Some(lifetime) = session.absolute_timeout
    {
        let ends = u64::from(began).saturating_add(whole_seconds(lifetime));
        text.push_str(&format!("; Max-Age={}", ends.saturating_sub(now).max(1)));
    }
    text.push_str("; HttpOnly; SameSite=Lax");
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.append(header::SET_COOKIE, value);
    }
}

/// Rounded up: a session must not end early.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

/// The part of a path that can be a cookie's (RFC 6265: no control characters and no `;`): the whole segments before
/// the first byte that cannot.
fn cookie_path(path: &str) -> &str {
    let fits = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b';';
    let end = path.bytes().position(|byte| !fits(byte));
    let whole = match end {
        None => path,
        Some(end) => {
            let end = path.as_bytes().get(..end).and_then(|start| start.iter().rposition(|b| *b == b'/'));
            end.and_then(|end| path.get(..end)).unwrap_or_default()
        }
    };
    if whole.starts_with('/') { whole } else { "/" }
}

fn encode(pinned: &Pinned) -> String {
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.push(VERSION);
    bytes.extend_from_slice(&pinned.backend.to_be_bytes());
    bytes.extend_from_slice(&pinned.endpoint.to_be_bytes());
    bytes.extend_from_slice(&pinned.began.to_be_bytes());
    bytes.extend_from_slice(&pinned.used.to_be_bytes());
    let checksum = hash64(&bytes);
    bytes.extend_from_slice(&checksum.to_be_bytes());
    to_text(&bytes)
}

fn decode(text: &str) -> Option<Pinned> {
    let bytes = from_text(text)?;
    let (checked, checksum) = bytes.split_first_chunk::<CHECKED>()?;
    if checked.first() != Some(&VERSION) || checksum != hash64(checked).to_be_bytes() {
        return None;
    }
    let (backend, rest) = checked.get(1..)?.split_first_chunk()?;
    let (endpoint, rest) = rest.split_first_chunk()?;
    let (began, used) = rest.split_first_chunk()?;
    Some(Pinned {
        backend: u64::from_be_bytes(*backend),
        endpoint: u64::from_be_bytes(*endpoint),
        began: u32::from_be_bytes(*began),
        used: u32::from_be_bytes(used.try_into().ok()?),
    })
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Base64 of RFC 4648 section 5, for whole groups of three bytes.
fn to_text(bytes: &[u8]) -> String {
    let groups = bytes.chunks_exact(3).flat_map(|three| {
        let group = three.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(ALPHABET[(group >> shift & 63) as usize]))
    });
    groups.collect()
}

fn from_text(text: &str) -> Option<[u8; BYTES]> {
    let text: &[u8; TEXT] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; BYTES];
    for (three, four) in bytes.chunks_exact_mut(3).zip(text.chunks_exact(4)) {
        let mut group = 0_u32;
        for letter in four {
            let value = match letter {
                b'A'..=b'Z' => letter - b'A',
                b'a'..=b'z' => letter - b'a' + 26,
                b'0'..=b'9' => letter - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return None,
            };
            group = group << 6 | u32::from(value);
        }
        let [_, high, middle, low] = group.to_be_bytes();
        three.copy_from_slice(&[high, middle, low]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_900_000_000;
    const HOUR: u64 = 3600;

    fn by_cookie() -> Session {
        Session {
            name: "session".into(),
            in_header: false,
            absolute_timeout: Some(Duration::from_secs(HOUR)),
            idle_timeout: None,
            permanent: false,
            path: "/shop".into(),
        }
    }

    fn by_header() -> Session {
        Session { name: "x-session".into(), in_header: true, ..by_cookie() }
    }

    fn idle(seconds: u64) -> Session {
        Session { idle_timeout: Some(Duration::from_secs(seconds)), ..by_cookie() }
    }

    /// What a client sends back for what it was given.
    fn returned(session: &Session, response: &HeaderMap) -> HeaderMap {
        let mut request = HeaderMap::new();
        if session.in_header {
            if let Some(value) = response.get(&*session.name) {
                request
                    .insert(HeaderName::from_bytes(session.name.as_bytes()).expect("a name"), value.clone());
            }
        } else if let Some(set) = response.get(header::SET_COOKIE) {
            let pair = set.to_str().expect("text").split(';').next().expect("a pair").to_owned();
            let field = format!("other=1; {pair}; more=2");
            request.insert(header::COOKIE, HeaderValue::from_str(&field).expect("a value"));
        }
        request
    }

    /// A request that was served by `endpoint` of backend 1 at `now`: what the client has then, and what it was sent.
    fn served(
        session: &Session,
        request: &HeaderMap,
        endpoint: u64,
        now: u64,
    ) -> (Option<Pinned>, Option<HeaderMap>) {
        let before = read(session, request, now);
        let mut response = HeaderMap::new();
        write(session, before.as_ref(), 1, endpoint, now, &mut response);
        let sent = !response.is_empty();
        let has = returned(session, &response);
        (before, sent.then_some(has))
    }

    #[test]
    fn a_client_without_a_token_gets_one_and_is_known_by_it() {
        for session in [by_cookie(), by_header()] {
            let (before, given) = served(&session, &HeaderMap::new(), 42, NOW);
            assert_eq!(before, None);
            let has = given.expect("a token");
            let pinned = read(&session, &has, NOW + 5).expect("a session");
            assert_eq!((pinned.backend, pinned.endpoint), (1, 42));
            let (_, again) = served(&session, &has, 42, NOW + 5);
            assert_eq!(again, None, "nothing new to say");
        }
    }

    #[test]
    fn another_endpoint_begins_another_session() {
        let session = by_cookie();
        let (_, first) = served(&session, &HeaderMap::new(), 42, NOW);
        let (_, second) = served(&session, &first.expect("a token"), 43, NOW + HOUR - 1);
        let second = second.expect("another token");
        let pinned = read(&session, &second, NOW + HOUR + 10).expect("a session of its own");
        assert_eq!(pinned.endpoint, 43);
    }

    #[test]
    fn a_session_ends_at_its_absolute_timeout_however_busy_it_is() {
        let session = Session { idle_timeout: Some(Duration::from_secs(600)), ..by_cookie() };
        let (_, given) = served(&session, &HeaderMap::new(), 42, NOW);
        let mut has = given.expect("a token");
        for minute in 1..=60 {
            let (before, refreshed) = served(&session, &has, 42, NOW + minute * 60);
            assert!(before.is_some(), "after {minute} minutes");
            has = refreshed.expect("the idle timeout begins anew");
        }
        assert_eq!(read(&session, &has, NOW + HOUR + 2), None);
    }

    #[test]
    fn a_session_ends_when_it_is_not_used() {
        let session = idle(10);
        let (_, given) = served(&session, &HeaderMap::new(), 42, NOW);
        let has = given.expect("a token");
        assert!(read(&session, &has, NOW + 10).is_some());
        assert_eq!(read(&session, &has, NOW + 12), None);
        let (before, refreshed) = served(&session, &has, 42, NOW + 9);
        assert!(before.is_some());
        assert!(read(&session, &refreshed.expect("a later token"), NOW + 18).is_some());
    }

    #[test]
    fn tokens_are_refreshed_at_most_once_a_second_and_only_for_an_idle_timeout() {
        let session = idle(10);
        let (_, given) = served(&session, &HeaderMap::new(), 42, NOW);
        let has = given.expect("a token");
        assert_eq!(served(&session, &has, 42, NOW).1, None);
        assert!(served(&session, &has, 42, NOW + 1).1.is_some());
        assert_eq!(served(&by_cookie(), &has, 42, NOW + 100).1, None);
    }

    #[test]
    fn parts_of_a_second_count_as_a_whole_one() {
        let session = Session { idle_timeout: Some(Duration::from_millis(1500)), ..by_cookie() };
        let (_, given) = served(&session, &HeaderMap::new(), 42, NOW);
        let has = given.expect("a token");
        assert!(read(&session, &has, NOW + 2).is_some());
        assert_eq!(read(&session, &has, NOW + 3), None);
    }

    fn set_cookie(session: &Session, now: u64, before: Option<&Pinned>) -> String {
        let mut response = HeaderMap::new();
        write(session, before, 1, 42, now, &mut response);
        response[header::SET_COOKIE].to_str().expect("text").to_owned()
    }

    #[test]
    fn a_cookie_of_the_session_lives_as_long_as_the_browser() {
        let text = set_cookie(&by_cookie(), NOW, None);
        let (pair, attributes) = text.split_once("; ").expect("attributes");
        let value = pair.strip_prefix("session=").expect("the name");
        assert_eq!(value.len(), TEXT);
        assert!(value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{value}");
        assert_eq!(attributes, "Path=/shop; HttpOnly; SameSite=Lax");
    }

    #[test]
    fn a_permanent_cookie_ends_with_its_session() {
        let session =
            Session { permanent: true, idle_timeout: Some(Duration::from_secs(1800)), ..by_cookie() };
        assert!(
            set_cookie(&session, NOW, None).ends_with("; Path=/shop; Max-Age=3600; HttpOnly; SameSite=Lax")
        );
        let begun = Pinned { backend: 1, endpoint: 42, began: NOW as u32, used: NOW as u32 };
        assert!(set_cookie(&session, NOW + 1000, Some(&begun)).contains("; Max-Age=2600;"));
    }

    #[test]
    fn a_path_that_is_no_cookie_path_is_cut_to_whole_segments() {
        for (path, cookie) in [
            ("/", "/"),
            ("/shop/cart", "/shop/cart"),
            ("/shop/a;b/c", "/shop"),
            ("/a;b", "/"),
            ("/caf\u{e9}/x", "/"),
            ("/ok/caf\u{e9}", "/ok"),
            ("", "/"),
            ("/a\r\nb", "/"),
        ] {
            assert_eq!(cookie_path(path), cookie, "{path}");
        }
    }

    #[test]
    fn the_applications_own_cookies_stay() {
        let mut response = HeaderMap::new();
        response.append(header::SET_COOKIE, HeaderValue::from_static("cart=1"));
        write(&by_cookie(), None, 1, 42, NOW, &mut response);
        assert_eq!(response.get_all(header::SET_COOKIE).iter().count(), 2);
    }

    #[test]
    fn a_token_from_far_in_the_future_is_none() {
        let session = by_cookie();
        let (_, given) = served(&session, &HeaderMap::new(), 42, NOW);
        let has = given.expect("a token");
        assert!(read(&session, &has, NOW - SKEW).is_some(), "clocks differ a little");
        assert_eq!(read(&session, &has, NOW - SKEW - 1), None);
    }

    proptest! {
        #[test]
        fn a_token_says_what_it_was_made_with(backend: u64, endpoint: u64, began: u32, used: u32) {
            let pinned = Pinned { backend, endpoint, began, used };
            prop_assert_eq!(decode(&encode(&pinned)), Some(pinned));
        }

        #[test]
        fn a_damaged_token_is_none(endpoint: u64, at in 0..TEXT, letter in 0_usize..64) {
            let good = encode(&Pinned { backend: 7, endpoint, began: 1, used: 2 });
            let mut bad = good.clone().into_bytes();
            bad[at] = ALPHABET[letter];
            let bad = String::from_utf8(bad).expect("text");
            prop_assert!(bad == good || decode(&bad).is_none());
            prop_assert!(decode(&good[..at]).is_none());
        }

        #[test]
        fn garbage_is_no_token(text: String) {
            prop_assert_eq!(decode(&text), None);
        }
    }
}

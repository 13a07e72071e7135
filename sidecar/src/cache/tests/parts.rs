//! Parts of what is fetched for all: whoever asks for one gets it of the whole that is coming. And what is kept under two
//! keys while it comes.

use super::*;
use crate::cache::store::{Manner, What};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{sync::mpsc, task::yield_now};

/// A body that comes piece by piece.
struct Coming {
    pieces: mpsc::UnboundedReceiver<&'static str>,
    length: Option<u64>,
    given: u64,
}

impl HttpBody for Coming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let piece = std::task::ready!(self.pieces.poll_recv(cx));
        self.given += piece.map_or(0, |piece| piece.len() as u64);
        Poll::Ready(match piece {
            Some(piece) => Some(Ok(Frame::data(Bytes::from_static(piece.as_bytes())))),
            None if self.length.is_some_and(|length| length > self.given) => {
                Some(Err(Error::after_send(ErrorKind::Reset, "the upstream closed")))
            }
            None => None,
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

const FIELDS: &[(&str, &str)] = &[("cache-control", "max-age=60"), ("etag", "\"1\"")];

fn coming(
    fields: &[(&'static str, &str)],
    length: Option<u64>,
) -> (mpsc::UnboundedSender<&'static str>, Response<Body>) {
    let (sender, pieces) = mpsc::unbounded_channel();
    let body = Body::Boxed(Box::pin(Coming { pieces, length, given: 0 }));
    (sender, answer(200, fields, "").map(|_| body))
}

/// Status, `Content-Range` and text of an answer.
type Seen = (u16, String, String);

async fn see(cache: &Rc<Cache>, request: &Parts, origin: &Script) -> Result<Seen, ErrorKind> {
    let response = respond(cache, request, origin).await?;
    let field = |name: &str| {
        response.headers().get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned())
    };
    let (status, range, length) =
        (response.status().as_u16(), field("content-range"), field("content-length"));
    let body = response.into_body().collect().await.map_err(|error| error.kind)?.to_bytes();
    if status == 206 {
        assert_eq!(length, body.len().to_string());
    }
    Ok((status, range, String::from_utf8(body.to_vec()).unwrap()))
}

fn seen(status: u16, range: &str, text: &str) -> Result<Seen, ErrorKind> {
    Ok((status, range.to_owned(), text.to_owned()))
}

/// Sends pieces, each when everybody has had what came before.
async fn send(sender: mpsc::UnboundedSender<&'static str>, pieces: &[&'static str]) {
    for piece in pieces {
        for _ in 0..8 {
            yield_now().await;
        }
        sender.send(piece).unwrap();
    }
}

/// RFC 9110 sections 13.1.5 and 14.2.
#[test]
fn a_part_is_given_of_a_whole_that_is_coming() {
    let all = "abcdefghij";
    for (fields, expected) in [
        (&[("range", "bytes=2-4")][..], seen(206, "bytes 2-4/10", "cde")),
        (&[("range", "bytes=3-7")], seen(206, "bytes 3-7/10", "defgh")),
        (&[("range", "bytes=0-")], seen(206, "bytes 0-9/10", all)),
        (&[("range", "bytes=-3")], seen(206, "bytes 7-9/10", "hij")),
        (&[("range", "bytes=9-100")], seen(206, "bytes 9-9/10", "j")),
        (&[("range", "bytes=2-4"), ("if-range", "\"1\"")], seen(206, "bytes 2-4/10", "cde")),
        (&[("range", "bytes=2-4"), ("if-range", "\"2\"")], seen(200, "", all)),
        (&[("range", "bytes=2-4"), ("if-range", "W/\"1\"")], seen(200, "", all)),
        (&[("range", "bytes=10-")], seen(416, "bytes */10", "")),
        (&[("range", "bytes=4-2")], seen(200, "", all)),
        (&[("range", "lines=1-2")], seen(200, "", all)),
        (&[("range", "bytes=2-4"), ("if-none-match", "\"1\"")], seen(304, "", "")),
    ] {
        run(async {
            let cache = fresh_cache(CacheRules::default());
            let (sender, response) = coming(FIELDS, Some(10));
            let origin = Script::default().then(Ok(response));
            let (plain, part) = (get(&[]), get(fields));
            let (whole, part, ()) = tokio::join!(
                see(&cache, &plain, &origin),
                see(&cache, &part, &origin),
                send(sender, &["abc", "defg", "hij"])
            );
            assert_eq!((whole, part), (seen(200, "", all), expected), "{fields:?}");
            assert_eq!(origin.asked(), 1, "{fields:?}");
            assert!(told(&cache, &plain, &origin).await.0.contains("; hit"), "all of it is kept");
        });
    }
}

/// The one that waits for the head too, and the one that has the whole fetched because a stale one is kept.
#[test]
fn whoever_asks_for_a_part_of_what_is_fetched_anew_gets_that_part() {
    for streams in [false, true] {
        run(async {
            let cache = fresh_cache(CacheRules::default());
            let (sender, response) = match streams {
                true => coming(&[("cache-control", "max-age=60"), ("etag", "\"2\"")], Some(10)),
                false => {
                    let fields = [("cache-control", "max-age=60"), ("etag", "\"2\"")];
                    (mpsc::unbounded_channel().0, answer(200, &fields, "abcdefghij"))
                }
            };
            let origin = Script::default().then(Ok(stale("max-age=50", "one"))).then(Ok(response));
            told(&cache, &get(&[]), &origin).await;
            let gate = Rc::new(Notify::new());
            origin.0.gate.replace(Some(gate.clone()));
            let (first, second, several) = (
                get(&[("range", "bytes=2-4")]),
                get(&[("range", "bytes=-1"), ("if-range", "\"2\"")]),
                get(&[("range", "bytes=0-0,2-2")]),
            );
            let (first, second, several, ()) = tokio::join!(
                see(&cache, &first, &origin),
                see(&cache, &second, &origin),
                see(&cache, &several, &origin),
                async {
                    gate.notify_one();
                    if streams {
                        send(sender, &["abcd", "efghij"]).await;
                    }
                }
            );
            assert_eq!(first, seen(206, "bytes 2-4/10", "cde"));
            assert_eq!(second, seen(206, "bytes 9-9/10", "j"));
            // Several parts are for what is all here.
            let (status, _, text) = several.unwrap();
            assert_eq!((status, text.len() > 10), if streams { (200, false) } else { (206, true) });
            assert_eq!((origin.asked(), origin.last("range")), (2, None), "all of it, for all");
            assert_eq!(told(&cache, &get(&[]), &origin).await.1, "abcdefghij");
        });
    }
}

#[test]
fn a_part_that_cannot_be_had_of_what_is_coming_is_asked_for_by_itself() {
    let half: &'static str = Box::leak("x".repeat(1 << 19).into_boxed_str());
    let far = || vec![half, half];
    let known = vec!["abcde", "fghij"];
    for (what, length, fields, range, pieces) in [
        ("its length is not known", None, FIELDS, "bytes=2-4", known.clone()),
        ("several", Some(10), FIELDS, "bytes=2-4,6-7", known.clone()),
        ("it is far off", Some(1 << 20), FIELDS, "bytes=900000-900002", far()),
        ("it is not for all", Some(10), &[("cache-control", "private")], "bytes=2-4", known),
    ] {
        run(async {
            let cache = fresh_cache(CacheRules::default());
            let (sender, response) = coming(fields, length);
            let own =
                [("cache-control", "no-store"), ("content-range", "bytes 2-4/10"), ("content-length", "3")];
            let origin = Script::default().then(Ok(response)).then(Ok(answer(206, &own, "own")));
            let (plain, part) = (get(&[]), get(&[("range", range)]));
            let (whole, part, ()) = tokio::join!(
                see(&cache, &plain, &origin),
                see(&cache, &part, &origin),
                send(sender, &pieces)
            );
            assert_eq!(whole.unwrap().2.len(), pieces.concat().len(), "{what}");
            assert_eq!(part, seen(206, "bytes 2-4/10", "own"), "{what}");
            assert_eq!((origin.asked(), origin.last("range").as_deref()), (2, Some(range)), "{what}");
        });
    }
}

#[test]
fn a_part_breaks_off_with_the_whole_only_if_it_was_not_through() {
    for (range, expected) in
        [("bytes=1-2", seen(206, "bytes 1-2/10", "bc")), ("bytes=2-7", Err(ErrorKind::Reset))]
    {
        run(async {
            let cache = fresh_cache(CacheRules::default());
            let (sender, response) = coming(FIELDS, Some(10));
            let origin = Script::default().then(Ok(response));
            let (plain, part) = (get(&[]), get(&[("range", range)]));
            let (_, part, ()) = tokio::join!(
                see(&cache, &plain, &origin),
                see(&cache, &part, &origin),
                send(sender, &["abc", "de"])
            );
            assert_eq!(part, expected, "{range}");
        });
    }
}

/// RFC 9110 section 9.3.3.
#[test]
fn an_answer_to_post_that_says_it_is_the_resource_is_for_get_too_however_it_comes() {
    for (location, purged, length, kept) in [
        ("http://svc/a", false, Some(10), true),
        ("/a", false, None, true),
        ("/a", true, None, false),
        ("/b", false, Some(10), false),
    ] {
        run(async {
            let cache = fresh_cache(CacheRules { post: true, ..CacheRules::default() });
            let (sender, response) =
                coming(&[("cache-control", "max-age=60"), ("content-location", location)], length);
            let origin = Script::default().then(Ok(response)).then(Ok(answer(200, FIELDS, "asked")));
            let post = request(Method::POST, &[]);
            let (posted, ()) = tokio::join!(told(&cache, &post, &origin), async {
                if purged {
                    for _ in 0..8 {
                        yield_now().await;
                    }
                    let _ = cache.store.purge(What::All, Manner::Hard, seconds_now());
                }
                send(sender, &["abcde", "fghij"]).await;
            });
            assert_eq!(posted.1, "abcdefghij");
            let expected = if kept { "abcdefghij" } else { "asked" };
            let got = told(&cache, &get(&[]), &origin).await;
            assert_eq!(got.1, expected, "{location}, {purged}: {}", got.0);
        });
    }
}

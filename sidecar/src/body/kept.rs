//! A request's body that is kept while it streams, so that another attempt can send it again.
//!
//! Frames are shared, not copied: what is kept are references to the buffers that the first attempt sends. Once more
//! than the limit has passed, the copy is dropped and only the attempt that reads at that moment can go on.

use super::Body;
use crate::error::{Error, Kind};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use smallvec::SmallVec;
use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// A body that can be read more than once, by attempts one after the other or side by side.
pub(crate) struct Kept(Rc<RefCell<Shared>>);

struct Shared {
    inner: Body,
    /// What has come so far; cleared for good when it gets too much.
    data: SmallVec<[Bytes; 4]>,
    trailers: Option<HeaderMap>,
    /// Bytes in `data`, and how many there may be.
    held: usize,
    limit: usize,
    /// True while everything that came is held.
    whole: bool,
    end: Option<Result<(), Error>>,
    /// Readers that wait for the next frame.
    waiting: SmallVec<[Waker; 2]>,
}

/// One reading.
pub(crate) struct Reader {
    shared: Rc<RefCell<Shared>>,
    /// Pieces of `data` that this reader has had.
    read: usize,
    trailers_read: bool,
}

impl Kept {
    /// Keeps up to `limit` bytes of `inner`.
    pub(crate) fn new(inner: Body, limit: usize) -> Self {
        Self(Rc::new(RefCell::new(Shared {
            inner,
            data: SmallVec::new(),
            trailers: None,
            held: 0,
            limit,
            whole: true,
            end: None,
            waiting: SmallVec::new(),
        })))
    }

    /// The body from its start; `None` if too much of it has passed already.
    pub(crate) fn reader(&self) -> Option<Body> {
        let whole = self.0.borrow().whole;
        whole.then(|| Body::Kept(Reader { shared: self.0.clone(), read: 0, trailers_read: false }))
    }

    /// Whether [`Self::reader`] would give one.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.borrow().whole
    }
}

impl Shared {
    /// Takes the next frame from the body itself.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let next = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => {
                if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    self.waiting.push(cx.waker().clone());
                }
                return Poll::Pending;
            }
            Poll::Ready(next) => next,
        };
        for waker in self.waiting.drain(..) {
            if !waker.will_wake(cx.waker()) {
                waker.wake();
            }
        }
        let frame = match next {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.end = Some(Err(error));
                return Poll::Ready(None);
            }
            None => {
                self.end = Some(Ok(()));
                return Poll::Ready(None);
            }
        };
        self.keep(&frame);
        if self.inner.is_end_stream() {
            self.end = Some(Ok(()));
        }
        Poll::Ready(Some(frame))
    }

    fn forget(&mut self) {
        self.whole = false;
        self.data = SmallVec::new();
        self.held = 0;
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if !self.whole {
            return;
        }
        if let Some(data) = frame.data_ref() {
            self.held += data.len();
            if self.held > self.limit {
                self.forget();
            } else {
                self.data.push(data.clone());
            }
        } else {
            self.trailers = frame.trailers_ref().cloned();
        }
    }
}

impl Reader {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let alone = Rc::strong_count(&self.shared) == 1;
        let mut shared = self.shared.borrow_mut();
        if shared.whole {
            if let Some(data) = shared.data.get(self.read) {
                self.read += 1;
                return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
            }
            if let Some(trailers) = shared.trailers.clone().filter(|_| !self.trailers_read) {
                self.trailers_read = true;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
        } else if self.read != usize::MAX {
            // What this reader has not had is gone; one that had everything reads on from the body itself.
            return Poll::Ready(Some(Err(Error::after_send(
                Kind::TooLarge,
                "the request's body was too large to be sent a second time",
            ))));
        }
        match &shared.end {
            Some(Ok(())) => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.clone()))),
            None => {}
        }
        if alone && shared.whole {
            // Nobody can ask for another reading any more: a stream that goes on for hours need not be held.
            shared.forget();
            self.read = usize::MAX;
        }
        let held = shared.data.len();
        let frame = std::task::ready!(shared.poll_more(cx));
        match frame {
            Some(frame) => {
                if frame.is_trailers() {
                    self.trailers_read = true;
                } else if shared.whole {
                    self.read = held + 1;
                } else {
                    self.read = usize::MAX;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            None => match &shared.end {
                Some(Err(error)) => Poll::Ready(Some(Err(error.clone()))),
                _ => Poll::Ready(None),
            },
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let shared = self.shared.borrow();
        let all_read = if shared.whole { self.read == shared.data.len() } else { self.read == usize::MAX };
        let trailers_read = shared.trailers.is_none() || self.trailers_read;
        matches!(shared.end, Some(Ok(()))) && all_read && trailers_read
            || (self.read == 0
                && shared.data.is_empty()
                && shared.end.is_none()
                && shared.inner.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let shared = self.shared.borrow();
        let behind: u64 = match shared.whole {
            true => shared.data.iter().skip(self.read).map(|data| data.len() as u64).sum(),
            false => 0,
        };
        let rest = shared.inner.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(behind + upper);
        }
        hint.set_lower(behind + rest.lower());
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::collections::VecDeque;
    use tokio::sync::mpsc;

    /// A body of frames that come one by one.
    fn frames(list: &[&'static str]) -> Body {
        struct Script(VecDeque<Bytes>);
        impl HttpBody for Script {
            type Data = Bytes;
            type Error = Error;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
                Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
            }
        }
        Body::Boxed(Box::pin(Script(list.iter().map(|text| Bytes::from_static(text.as_bytes())).collect())))
    }

    async fn text(body: Body) -> Result<String, Kind> {
        let bytes = body.collect().await.map_err(|error| error.kind)?.to_bytes();
        Ok(String::from_utf8(bytes.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn what_was_sent_once_can_be_sent_again() {
        let kept = Kept::new(frames(&["ab", "cd"]), 4);
        for _ in 0..3 {
            assert_eq!(text(kept.reader().expect("whole")).await.as_deref(), Ok("abcd"));
        }
    }

    #[tokio::test]
    async fn a_half_read_body_is_read_from_its_start() {
        let kept = Kept::new(frames(&["ab", "cd"]), 4);
        let mut first = kept.reader().expect("whole");
        assert_eq!(first.frame().await.expect("some").expect("ok").into_data().expect("data"), "ab");
        drop(first);
        assert_eq!(text(kept.reader().expect("whole")).await.as_deref(), Ok("abcd"));
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_sent_once() {
        let kept = Kept::new(frames(&["ab", "cd", "ef"]), 3);
        let first = kept.reader().expect("nothing passed yet");
        assert_eq!(text(first).await.as_deref(), Ok("abcdef"));
        assert!(!kept.is_whole() && kept.reader().is_none());
    }

    #[tokio::test]
    async fn what_nobody_can_ask_for_again_is_not_held() {
        let kept = Kept::new(frames(&["ab", "cd", "ef"]), 100);
        let mut reader = kept.reader().expect("whole");
        let _ = reader.frame().await;
        let shared = kept.0.clone();
        assert_eq!(shared.borrow().held, 2);
        let weak = Rc::downgrade(&shared);
        drop((kept, shared));
        assert_eq!(text(reader).await.as_deref(), Ok("cdef"));
        assert!(weak.upgrade().is_none());
        let kept = Kept::new(frames(&["ab", "cd"]), 100);
        let Some(Body::Kept(mut reader)) = kept.reader() else { panic!("whole") };
        drop(kept);
        let _ = std::future::poll_fn(|cx| reader.poll_frame(cx)).await;
        assert_eq!((reader.shared.borrow().held, reader.shared.borrow().whole), (0, false));
        assert!(!reader.is_end_stream());
        let _ = std::future::poll_fn(|cx| reader.poll_frame(cx)).await;
        let _ = std::future::poll_fn(|cx| reader.poll_frame(cx)).await;
        assert!(reader.is_end_stream());
    }

    #[tokio::test]
    async fn of_two_readers_the_one_behind_fails_when_the_copy_is_dropped() {
        let kept = Kept::new(frames(&["ab", "cd"]), 3);
        let (first, second) = (kept.reader().expect("whole"), kept.reader().expect("whole"));
        assert_eq!(text(first).await.as_deref(), Ok("abcd"));
        assert_eq!(text(second).await, Err(Kind::TooLarge));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn readers_side_by_side_both_get_all_of_it() {
        struct Slow(mpsc::Receiver<Bytes>);
        impl HttpBody for Slow {
            type Data = Bytes;
            type Error = Error;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
                self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
            }
        }
        let (sender, receiver) = mpsc::channel(1);
        let kept = Kept::new(Body::Boxed(Box::pin(Slow(receiver))), 100);
        let (first, second) = (kept.reader().expect("whole"), kept.reader().expect("whole"));
        let feed = async {
            for piece in ["ab", "cd", "ef"] {
                tokio::task::yield_now().await;
                sender.send(Bytes::from_static(piece.as_bytes())).await.expect("read");
            }
            drop(sender);
        };
        let both = tokio::time::timeout(std::time::Duration::from_secs(5), async {
            tokio::join!(text(first), text(second), feed)
        });
        let (first, second, ()) = both.await.expect("nobody is left waiting");
        assert_eq!((first.as_deref(), second.as_deref()), (Ok("abcdef"), Ok("abcdef")));
    }

    #[tokio::test]
    async fn an_empty_end_is_known_before_it_is_read() {
        let kept = Kept::new(frames(&["ab"]), 4);
        let mut body = kept.reader().expect("whole");
        assert!(!body.is_end_stream());
        assert_eq!(body.size_hint().lower(), 0);
        let _ = body.frame().await;
        assert!(body.frame().await.is_none());
        assert!(body.is_end_stream());
    }
}

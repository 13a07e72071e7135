//! Who visits: the session, the preview that was asked for, and the trace that begins here.

use crate::{request::RequestContext, user};
use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use std::{convert::Infallible, time::Instant};

const SESSION: &str = "shop_session";
const PREVIEW: &str = "shop_preview";

/// One request of a person.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    /// What is carried on to other services.
    pub(super) context: RequestContext,
    /// The session, which is also the cart's id.
    pub(super) session: String,
    /// Whether the person asked for the preview of v2.
    pub(super) preview: bool,
    /// When the request came.
    pub(super) began: Instant,
    new: bool,
}

impl Visit {
    fn of(headers: &HeaderMap) -> Self {
        let mut context = RequestContext::continuing(headers);
        context.ensure_trace();
        let preview = cookie(headers, PREVIEW) == Some("v2");
        if preview {
            context.prefer("v2");
        }
        let known = cookie(headers, SESSION).filter(|id| is_session(id)).map(str::to_owned);
        let new = known.is_none();
        let session = known.unwrap_or_else(|| format!("{:016x}", fastrand::u64(..)));
        context.is_of(&session);
        Self { context, session, preview, began: Instant::now(), new }
    }

    /// The person: there is no log-in here, so a session always is the same one of those the user service knows.
    pub(super) fn user(&self) -> &'static str {
        let sum: usize = self.session.bytes().map(usize::from).sum();
        let mut ids = user::ids();
        let chosen = sum % ids.len();
        ids.nth(chosen).unwrap_or_default()
    }

    /// Cookies that the answer has to set.
    pub(super) fn cookies(&self) -> Option<HeaderValue> {
        if !self.new {
            return None;
        }
        HeaderValue::try_from(format!("{SESSION}={}; Path=/; HttpOnly; SameSite=Lax", self.session)).ok()
    }

    /// Sends the browser on after a form, so that going back does not send the form again.
    pub(super) fn redirect(&self, to: &str) -> Response {
        let mut answer = StatusCode::SEE_OTHER.into_response();
        let location = HeaderValue::try_from(to).unwrap_or(HeaderValue::from_static("/"));
        answer.headers_mut().insert(header::LOCATION, location);
        if let Some(cookie) = self.cookies() {
            answer.headers_mut().append(header::SET_COOKIE, cookie);
        }
        answer
    }

    /// Switches the preview and goes to the front page.
    pub(super) fn redirect_with_preview(&self, on: bool) -> Response {
        let mut answer = self.redirect("/");
        let cookie = HeaderValue::from_static(match on {
            true => "shop_preview=v2; Path=/; HttpOnly; SameSite=Lax",
            false => "shop_preview=; Path=/; Max-Age=0",
        });
        answer.headers_mut().append(header::SET_COOKIE, cookie);
        answer
    }
}

impl<S: Sync> FromRequestParts<S> for Visit {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers))
    }
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let values = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(own, _)| *own == name).map(|(_, value)| value)
}

fn is_session(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit(cookies: &'static str) -> Visit {
        Visit::of(&[(header::COOKIE, HeaderValue::from_static(cookies))].into_iter().collect())
    }

    #[test]
    fn a_session_is_kept_and_a_made_up_one_is_not() {
        let known = visit("a=b; shop_session=0123456789abcdef");
        assert_eq!(known.session, "0123456789abcdef");
        assert!(known.cookies().is_none());
        let made_up = visit("shop_session=../../carts/x");
        assert!(is_session(&made_up.session) && made_up.cookies().is_some());
    }

    #[test]
    fn a_preview_reaches_the_services() {
        let mut headers = HeaderMap::new();
        visit("shop_preview=v2").context.carry_into(&mut headers);
        assert_eq!(headers.get("x-preview"), Some(&HeaderValue::from_static("v2")));
        assert!(headers.contains_key("traceparent"), "a trace begins here");
    }

    #[test]
    fn a_visitor_is_the_same_to_all_services_on_every_visit_and_the_session_stays_here() {
        let told = |cookies| {
            let mut headers = HeaderMap::new();
            visit(cookies).context.carry_into(&mut headers);
            headers.remove("x-visitor").expect("the visitor is told")
        };
        let visitor = told("shop_session=0123456789abcdef");
        assert_eq!(visitor, told("shop_session=0123456789abcdef"));
        assert_ne!(visitor, told("shop_session=0123456789abcdee"));
        assert_ne!(visitor, "0123456789abcdef");
    }
}

//! The frame of every page: head, notices and what surrounds the body.

use super::{footer, visit::Visit};
use crate::{cache_status::Tally, serving::Replica};
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use std::fmt::{self, Write};

const STYLE: &str = include_str!("style.css");

/// The shop's mark: four threads, woven.
pub(super) const MARK: &str = r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="32" height="32"><rect width="32" height="32" rx="8" fill="#2b3a67"/><path d="M11 5v8m0 6v8M21 5v14" stroke="#f3c677" stroke-width="4" stroke-linecap="round"/><path d="M5 11h12m8 0h2M5 21h2m8 0h12" stroke="#f7f4ee" stroke-width="4" stroke-linecap="round"/></svg>"##;

/// One page in the making.
pub(super) struct Page<'a> {
    visit: &'a Visit,
    replica: &'a Replica,
    title: &'a str,
    pieces: Option<u32>,
    notice: Option<Notice>,
    caches: &'a Tally,
}

/// Something to tell the person first.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    title: String,
    text: String,
    good: bool,
}

impl Notice {
    /// Something went wrong.
    pub(super) fn trouble(title: &str, text: &str) -> Self {
        Self { title: title.to_owned(), text: text.to_owned(), good: false }
    }

    /// Something went as it was wanted.
    pub(super) fn done(title: &str, text: &str) -> Self {
        Self { title: title.to_owned(), text: text.to_owned(), good: true }
    }
}

/// Text that is shown as it is, whatever it holds.
pub(super) struct Text<'a>(pub(super) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

impl<'a> Page<'a> {
    pub(super) fn new(
        visit: &'a Visit,
        replica: &'a Replica,
        title: &'a str,
        pieces: Option<u32>,
        caches: &'a Tally,
    ) -> Self {
        Self { visit, replica, title, pieces, notice: None, caches }
    }

    pub(super) fn notice(self, notice: Notice) -> Self {
        Self { notice: Some(notice), ..self }
    }

    /// The answer: this body in the frame.
    pub(super) fn render(self, status: StatusCode, body: &str) -> Response {
        let notice = self.notice.as_ref().map_or(String::new(), |notice| {
            format!(
                r#"<div class="notice{}" role="alert"><strong>{}</strong><p>{}</p></div>"#,
                if notice.good { " well" } else { "" },
                Text(&notice.title),
                Text(&notice.text)
            )
        });
        let pieces = match self.pieces {
            Some(0) => "Cart".to_owned(),
            Some(pieces) => format!(r#"Cart <span class="count">{pieces}</span>"#),
            None => "Cart".to_owned(),
        };
        let preview = match self.visit.preview {
            true => {
                r#"<a class="switch on" href="/preview?version=off" title="Sends x-preview: v2 with every call">Preview v2 <b>on</b></a>"#
            }
            false => {
                r#"<a class="switch" href="/preview?version=v2" title="Sends x-preview: v2 with every call">Preview v2 <b>off</b></a>"#
            }
        };
        let page = format!(
            r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Loomhouse</title><link rel="icon" href="/favicon.svg" type="image/svg+xml"><style>{STYLE}</style></head>
<body><header class="top"><a class="brand" href="/">{MARK}<span>Loomhouse</span></a>
<nav>{preview}<a href="/office">Office</a><a class="cart" href="/cart">{pieces}</a></nav></header>
<main>{notice}{body}</main>
{footer}</body></html>
"#,
            title = Text(self.title),
            footer = footer::render(self.visit, self.replica, self.caches),
        );
        let mut answer = (status, Html(page)).into_response();
        let headers = answer.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(
                "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; form-action 'self'",
            ),
        );
        if let Some(cookie) = self.visit.cookies() {
            headers.append(header::SET_COOKIE, cookie);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(Text("<b a='1' c=\"2\">&").to_string(), "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;");
    }
}

//! Heads as they leave: framing and connection fields are written here and never taken from the map.

use super::{
    case::{HeaderCase, write_name},
    framing::Encoder,
};
use crate::cache::Stored;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header, request, response};

/// Whether the head says that the connection closes or stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// What the version does anyway.
    Implied,
    /// `Connection: close`.
    Close,
    /// `Connection: keep-alive`, which HTTP/1.0 wants to be told.
    KeepAlive,
}

/// Writes a request's head.
pub(super) fn request_head(out: &mut Vec<u8>, head: &request::Parts, encoder: Encoder) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    let uri = &head.uri;
    match uri.authority() {
        Some(authority) if head.method == Method::CONNECT => {
            out.extend_from_slice(authority.as_str().as_bytes());
        }
        _ => path(out, head),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let case = head.extensions.get::<HeaderCase>();
    if let Some(authority) = uri.authority()
        && !head.headers.contains_key(header::HOST)
    {
        // From a protocol that keeps the host elsewhere.
        write_name(out, &header::HOST, case);
        out.extend_from_slice(b": ");
        let authority = authority.as_str();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        out.extend_from_slice(host.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    fields(out, &head.headers, case);
    connection(out, &head.headers, Persistence::Implied, case);
    framing(out, encoder, case);
    out.extend_from_slice(b"\r\n");
}

fn path(out: &mut Vec<u8>, head: &request::Parts) {
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    if !path.starts_with(['/', '*']) {
        out.push(b'/');
    }
    out.extend_from_slice(path.as_bytes());
}

/// Writes a response's head; `stored` is what its fields come from beside its map.
pub(super) fn response_head(
    out: &mut Vec<u8>,
    head: &response::Parts,
    stored: Option<&Stored>,
    encoder: Encoder,
    persistence: Persistence,
) {
    if head.status == http::StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(head.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(head.status.canonical_reason().unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    let case = head.extensions.get::<HeaderCase>().or_else(|| stored?.case());
    if let Some(stored) = stored {
        stored.write_fields(out);
    }
    fields(out, &head.headers, case);
    connection(out, &head.headers, persistence, case);
    framing(out, encoder, case);
    out.extend_from_slice(b"\r\n");
}

/// Writes fields, leaving out those that the codec answers for.
pub(super) fn fields(out: &mut Vec<u8>, headers: &HeaderMap, case: Option<&HeaderCase>) {
    let mut after_cookie = false;
    for (name, value) in headers {
        if *name == header::CONTENT_LENGTH
            || *name == header::TRANSFER_ENCODING
            || *name == header::CONNECTION
        {
            continue;
        }
        // HTTP/2 splits cookies into many fields; HTTP/1 knows one (RFC 9113 section 8.2.3).
        let cookie = *name == header::COOKIE;
        if cookie && after_cookie {
            out.truncate(out.len() - 2);
            out.extend_from_slice(b"; ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        } else {
            field(out, name, value, case);
        }
        after_cookie = cookie;
    }
}

fn field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue, case: Option<&HeaderCase>) {
    out.reserve(name.as_str().len() + value.len() + 4);
    write_name(out, name, case);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes the one `Connection` field. `Upgrade` and `TE` mean something to the next hop only when named in it.
fn connection(out: &mut Vec<u8>, headers: &HeaderMap, persistence: Persistence, case: Option<&HeaderCase>) {
    let persistence: &[u8] = match persistence {
        Persistence::Implied => b"",
        Persistence::Close => b"close",
        Persistence::KeepAlive => b"keep-alive",
    };
    if persistence.is_empty() && headers.is_empty() {
        return;
    }
    let upgrade: &[u8] = if headers.contains_key(header::UPGRADE) { b"Upgrade" } else { b"" };
    let te: &[u8] = if headers.contains_key(header::TE) { b"TE" } else { b"" };
    let mut first = true;
    for option in [persistence, upgrade, te] {
        if option.is_empty() {
            continue;
        }
        if first {
            write_name(out, &header::CONNECTION, case);
            out.extend_from_slice(b": ");
        } else {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(option);
        first = false;
    }
    if !first {
        out.extend_from_slice(b"\r\n");
    }
}

fn framing(out: &mut Vec<u8>, encoder: Encoder, case: Option<&HeaderCase>) {
    match encoder {
        Encoder::Length(length) | Encoder::Announced(length) => {
            match case {
                None => out.extend_from_slice(b"Content-Length: "),
                Some(_) => {
                    write_name(out, &header::CONTENT_LENGTH, case);
                    out.extend_from_slice(b": ");
                }
            }
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Encoder::Chunked => {
            write_name(out, &header::TRANSFER_ENCODING, case);
            out.extend_from_slice(b": chunked\r\n");
        }
        Encoder::None | Encoder::Close => {}
    }
}

/// Writes an interim response.
pub(super) fn interim_head(out: &mut Vec<u8>, head: &response::Parts) {
    response_head(out, head, None, Encoder::None, Persistence::Implied);
}

/// How the head of a response tells the client about the connection's future.
pub(super) fn persistence(version: Version, keep_alive: bool) -> Persistence {
    match (version, keep_alive) {
        (_, false) => Persistence::Close,
        (Version::HTTP_10, true) => Persistence::KeepAlive,
        _ => Persistence::Implied,
    }
}

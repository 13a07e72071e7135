//! Body framing (RFC 9112 section 6): how long the body of a message that came in is, and how one that leaves is delimited.

use super::{
    Settings,
    chunked::{self, ChunkedDecoder, Decoded},
    wire::Output,
};
use crate::{
    body::Piece,
    error::{Error, Kind},
};
use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode, Version, header};
use http_body::SizeHint;

/// Takes the body of one message off a connection.
#[derive(Debug)]
pub(crate) enum Decoder {
    /// Over, or there never was one.
    Done,
    /// So many bytes are still to come.
    Length(u64),
    /// In chunks.
    Chunked(ChunkedDecoder),
    /// Everything until the peer closes.
    Close,
}

impl Decoder {
    /// For a body of `length` bytes.
    fn length(length: u64) -> Self {
        if length == 0 { Self::Done } else { Self::Length(length) }
    }

    /// True once nothing more belongs to the body.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// True if a closed connection is how this body ends.
    pub(crate) fn ends_by_close(&self) -> bool {
        matches!(self, Self::Close)
    }

    /// What is known of the length.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Done => SizeHint::with_exact(0),
            Self::Length(length) => SizeHint::with_exact(*length),
            Self::Chunked(_) | Self::Close => SizeHint::new(),
        }
    }

    /// Takes the next piece off the front of `input`.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Decoded, Error> {
        match self {
            Self::Done => Ok(Decoded::End),
            Self::Chunked(decoder) => {
                let decoded = decoder.decode(input)?;
                if decoder.is_done() {
                    *self = Self::Done;
                }
                Ok(decoded)
            }
            _ if input.is_empty() => Ok(Decoded::More),
            Self::Close => Ok(Decoded::Data(input.split().freeze())),
            Self::Length(left) => {
                let n = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= n as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Decoded::Data(input.split_to(n).freeze()))
            }
        }
    }
}

fn bad(detail: &'static str) -> Error {
    Error::new(Kind::BadRequest, detail)
}

/// What the fields of a head say about the body that follows.
enum Declared {
    Nothing,
    Length(u64),
    Chunked,
}

/// Reads `Content-Length` and `Transfer-Encoding`; two ways to read a message are one too many, so every doubt is an
/// error.
fn declared(headers: &HeaderMap, version: Version) -> Result<Declared, Error> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(Declared::Nothing),
        (None, Some(length)) => {
            if lengths.next().is_some() {
                return Err(bad("the message has several Content-Length fields: it must have one"));
            }
            content_length(length.as_bytes())
                .map(Declared::Length)
                .ok_or_else(|| bad("Content-Length is not a decimal number that fits 64 bits"))
        }
        (Some(_), Some(_)) => {
            Err(bad("the message has both Content-Length and Transfer-Encoding: one of them must go"))
        }
        (Some(_), None) if version == Version::HTTP_10 => {
            Err(bad("an HTTP/1.0 message has Transfer-Encoding, which HTTP/1.0 does not know"))
        }
        (Some(coding), None) => {
            if codings.next().is_some() || coding.as_bytes().contains(&b',') {
                let last = headers.get_all(header::TRANSFER_ENCODING).iter().next_back();
                let last = last.map_or(&b""[..], |value| value.as_bytes());
                let last = last.rsplit(|byte| *byte == b',').next().unwrap_or_default();
                return Err(if last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    Error::new(Kind::NotImplemented, "Transfer-Encoding names more than chunked")
                } else {
                    bad("Transfer-Encoding does not end with chunked, so the message has no known end")
                });
            }
            if coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                Ok(Declared::Chunked)
            } else {
                Err(bad("Transfer-Encoding does not end with chunked, so the message has no known end"))
            }
        }
    }
}

/// A number as `Content-Length` has it: digits only, no sign, no list.
pub(super) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 20 {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// The body of a request.
pub(crate) fn request_body(
    headers: &HeaderMap,
    version: Version,
    settings: &Settings,
) -> Result<Decoder, Error> {
    Ok(match declared(headers, version)? {
        Declared::Nothing => Decoder::Done,
        Declared::Length(length) => Decoder::length(length),
        Declared::Chunked => Decoder::Chunked(ChunkedDecoder::new(settings)),
    })
}

/// The body of a final response to a request with `method`.
pub(crate) fn response_body(
    method: &Method,
    status: StatusCode,
    headers: &HeaderMap,
    version: Version,
    settings: &Settings,
) -> Result<Decoder, Error> {
    // Contradictions are errors even where no body follows: whoever sends them is not understood.
    let declared = declared(headers, version)?;
    if *method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(Decoder::Done);
    }
    Ok(match declared {
        Declared::Nothing => Decoder::Close,
        Declared::Length(length) => Decoder::length(length),
        Declared::Chunked => Decoder::Chunked(ChunkedDecoder::new(settings)),
    })
}

/// Delimits the body of a message that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoder {
    /// No body and no word about one.
    None,
    /// No body here, but this is how long it would be (HEAD, 304).
    Announced(u64),
    /// So many bytes, or so many left.
    Length(u64),
    /// In chunks.
    Chunked,
    /// Until we close.
    Close,
}

impl Encoder {
    /// True if no body follows the head.
    pub(super) fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Announced(_) | Self::Length(0))
    }

    /// True if no body may follow the head, whatever the message has.
    pub(super) fn is_bodiless(self) -> bool {
        matches!(self, Self::None | Self::Announced(_))
    }

    /// For a request with `body`.
    pub(super) fn request(method: &Method, headers: &HeaderMap, body: &SizeHint) -> Self {
        match body.exact() {
            // A body that may be there is announced as empty; one that is unusual is not mentioned.
            Some(0) => {
                let expected = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
                if expected || headers.contains_key(header::CONTENT_LENGTH) {
                    Self::Length(0)
                } else {
                    Self::None
                }
            }
            Some(length) => Self::Length(length),
            None => Self::Chunked,
        }
    }

    /// For a response to a request with `method` that came in `version`.
    pub(super) fn response(
        method: &Method,
        version: Version,
        status: StatusCode,
        headers: &HeaderMap,
        body: &SizeHint,
    ) -> Self {
        if status.is_informational()
            || status == StatusCode::NO_CONTENT
            || (*method == Method::CONNECT && status.is_success())
        {
            return Self::None;
        }
        if *method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
            let said = headers.get(header::CONTENT_LENGTH).and_then(|value| content_length(value.as_bytes()));
            return match said.or(body.exact().filter(|length| *length > 0)) {
                Some(length) => Self::Announced(length),
                None => Self::None,
            };
        }
        match body.exact() {
            _ if status == StatusCode::RESET_CONTENT => Self::Length(0),
            Some(length) => Self::Length(length),
            None if version == Version::HTTP_10 => Self::Close,
            None => Self::Chunked,
        }
    }

    /// Writes one piece of the body.
    pub(super) fn piece(&mut self, piece: Piece, out: &mut Output) -> Result<(), Error> {
        match (self, piece) {
            (_, Piece::Data(data)) if data.is_empty() => {}
            (Self::Length(left), Piece::Data(data)) => {
                *left = left.checked_sub(data.len() as u64).ok_or_else(|| {
                    Error::new(Kind::BadResponse, "a body is longer than its announced length")
                })?;
                out.push(data);
            }
            (Self::Chunked, Piece::Data(data)) => {
                chunked::write_size(out.buffer(), data.len());
                out.push(data);
                out.buffer().extend_from_slice(b"\r\n");
            }
            (Self::Close, Piece::Data(data)) => out.push(data),
            (this @ Self::Chunked, Piece::Trailers(trailers)) => {
                *this = Self::None;
                let out = out.buffer();
                out.extend_from_slice(b"0\r\n");
                super::write::fields(out, &trailers, None);
                out.extend_from_slice(b"\r\n");
            }
            // Without chunks there is no place for trailers.
            (_, Piece::Trailers(_)) | (Self::None | Self::Announced(_), _) => {}
        }
        Ok(())
    }

    /// Writes what ends the body.
    pub(super) fn finish(&mut self, out: &mut Output) -> Result<(), Error> {
        match std::mem::replace(self, Self::None) {
            Self::Length(left) if left > 0 => {
                Err(Error::new(Kind::BadResponse, "a body is shorter than its announced length"))
            }
            Self::Chunked => {
                out.buffer().extend_from_slice(b"0\r\n\r\n");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

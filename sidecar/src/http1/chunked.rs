//! The chunked transfer coding (RFC 9112 section 7.1): a strict decoder that can be stopped at any byte, and the encoder.

use super::{Settings, head};
use crate::error::{Error, Kind};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, header};

/// Bytes of chunk extensions one message may have; nobody uses them, and they must not be a way to keep us reading.
const EXTENSIONS_MAX: u32 = 16 * 1024;

/// What a decoder found next.
#[derive(Debug, PartialEq)]
pub(crate) enum Decoded {
    /// Some of the body.
    Data(Bytes),
    /// The trailers; the body is over.
    Trailers(HeaderMap),
    /// The body is over.
    End,
    /// Nothing without more input.
    More,
}

/// Takes a chunked body apart. What it is given may end anywhere; it keeps its place.
#[derive(Debug)]
pub(crate) struct ChunkedDecoder {
    state: State,
    /// Digits of the size read so far.
    digits: u8,
    /// Bytes of extensions seen in the whole message.
    extensions: u32,
    /// What is left of the chunk.
    size: u64,
    /// How much of the trailer section was looked at in vain.
    checked: usize,
    header_bytes: usize,
    header_count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Padding,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
    Done,
}

fn bad(detail: &'static str) -> Error {
    Error::new(Kind::BadRequest, detail)
}

impl ChunkedDecoder {
    /// Before the first chunk.
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            state: State::Size,
            digits: 0,
            extensions: 0,
            size: 0,
            checked: 0,
            header_bytes: settings.header_bytes,
            header_count: settings.header_count,
        }
    }

    /// True once the whole body was read.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes the next piece off the front of `input`.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Decoded, Error> {
        loop {
            match self.state {
                State::Data => {
                    if input.is_empty() {
                        return Ok(Decoded::More);
                    }
                    let n = usize::try_from(self.size).map_or(input.len(), |size| size.min(input.len()));
                    self.size -= n as u64;
                    if self.size == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Decoded::Data(input.split_to(n).freeze()));
                }
                State::Trailers => return self.trailers(input),
                State::Done => return Ok(Decoded::End),
                _ => {}
            }
            let mut used = 0;
            for byte in input.iter() {
                used += 1;
                self.step(*byte)?;
                if matches!(self.state, State::Data | State::Trailers) {
                    break;
                }
            }
            input.advance(used);
            if !matches!(self.state, State::Data | State::Trailers) {
                return Ok(Decoded::More);
            }
        }
    }

    /// One byte of what stands between the data of chunks.
    fn step(&mut self, byte: u8) -> Result<(), Error> {
        self.state = match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                // Sixteen hexadecimal digits are a u64; leading zeros have no business beyond them.
                if self.digits == 16 {
                    return Err(bad("a chunk size has more than 16 digits"));
                }
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    _ => (byte | 0x20) - b'a' + 10,
                };
                self.digits += 1;
                self.size = self.size << 4 | u64::from(digit);
                State::Size
            }
            (State::Size, _) if self.digits == 0 => {
                return Err(bad("a chunk does not begin with its size in hexadecimal"));
            }
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Size | State::Padding, b' ' | b'\t') => {
                self.count_extension()?;
                State::Padding
            }
            (State::Size | State::Padding, b';') => State::Extension,
            (State::Size | State::Padding, _) => {
                return Err(bad("a chunk size is followed by something that is not an extension"));
            }
            (State::Extension, b'\t' | b' '..=0x7e | 0x80..) => {
                self.count_extension()?;
                State::Extension
            }
            (State::Extension, _) => return Err(bad("a chunk extension has a control character in it")),
            (State::SizeLf, b'\n') if self.size == 0 => State::Trailers,
            (State::SizeLf, b'\n') => State::Data,
            (State::SizeLf, _) => return Err(bad("a chunk size line does not end with CR LF")),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.digits = 0;
                State::Size
            }
            (State::DataCr | State::DataLf, _) => {
                return Err(bad("a chunk is longer than its size says"));
            }
            (state @ (State::Data | State::Trailers | State::Done), _) => state,
        };
        Ok(())
    }

    fn count_extension(&mut self) -> Result<(), Error> {
        self.extensions += 1;
        if self.extensions > EXTENSIONS_MAX {
            return Err(bad("the message has more than 16 KiB of chunk extensions"));
        }
        Ok(())
    }

    fn trailers(&mut self, input: &mut BytesMut) -> Result<Decoded, Error> {
        if input.starts_with(b"\r\n") {
            input.advance(2);
            self.state = State::Done;
            return Ok(Decoded::End);
        }
        // A section is whole only at a line end: don't parse it again for every byte that trickles in.
        let news = input[self.checked.min(input.len())..].contains(&b'\n');
        self.checked = input.len();
        let section = if news { head::trailer_section(input, self.header_count)? } else { None };
        match section {
            Some((length, _)) if length > self.header_bytes => {
                Err(Error::new(Kind::HeadersTooLarge, "the trailers are larger than limits.headerBytes"))
            }
            Some((_, mut fields)) => {
                self.state = State::Done;
                remove_forbidden(&mut fields);
                Ok(if fields.is_empty() { Decoded::End } else { Decoded::Trailers(fields) })
            }
            None if input.len() > self.header_bytes => {
                Err(Error::new(Kind::HeadersTooLarge, "the trailers are larger than limits.headerBytes"))
            }
            None => Ok(Decoded::More),
        }
    }
}

/// Fields that must not come as trailers (RFC 9110 section 6.5.1): what frames, routes, authenticates or describes the
/// message would come too late to be honoured, and must not be merged by somebody who does not know better.
const FORBIDDEN: [HeaderName; 30] = [
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::HOST,
    header::EXPECT,
    header::MAX_FORWARDS,
    header::RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::WWW_AUTHENTICATE,
    header::COOKIE,
    header::SET_COOKIE,
    header::AGE,
    header::CACHE_CONTROL,
    header::EXPIRES,
    header::LOCATION,
    header::RETRY_AFTER,
    header::VARY,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_RANGE,
];

fn remove_forbidden(fields: &mut HeaderMap) {
    for name in FORBIDDEN {
        fields.remove(name);
    }
}

/// Writes the line that opens a chunk of `size` bytes.
pub(super) fn write_size(out: &mut Vec<u8>, size: usize) {
    let mut digits = [0; 18];
    let mut at = 16;
    digits[16..].copy_from_slice(b"\r\n");
    let mut rest = size;
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings() -> Settings {
        Settings { header_bytes: 512, header_count: 4, ..Settings::default() }
    }

    /// The body, its trailers and what was left over; none if there is more to come.
    type Outcome = Result<Option<(Vec<u8>, Option<HeaderMap>, Vec<u8>)>, Kind>;

    /// What comes of `message` when it is fed in pieces that end at `cuts`.
    fn decode_in_pieces(message: &[u8], cuts: &[usize]) -> Outcome {
        let mut decoder = ChunkedDecoder::new(&settings());
        let (mut input, mut body, mut trailers) = (BytesMut::new(), Vec::new(), None);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (message.len() + 1)).collect();
        cuts.extend([0, message.len()]);
        cuts.sort_unstable();
        for piece in cuts.windows(2) {
            input.extend_from_slice(&message[piece[0]..piece[1]]);
            while !decoder.is_done() {
                match decoder.decode(&mut input).map_err(|error| error.kind)? {
                    Decoded::Data(data) => body.extend_from_slice(&data),
                    Decoded::Trailers(fields) => trailers = Some(fields),
                    Decoded::End => {}
                    Decoded::More => break,
                }
            }
        }
        Ok(decoder.is_done().then(|| (body, trailers, input.to_vec())))
    }

    fn at_once(message: &[u8]) -> Outcome {
        decode_in_pieces(message, &[])
    }

    fn byte_by_byte(message: &[u8]) -> Outcome {
        decode_in_pieces(message, &(0..=message.len()).collect::<Vec<_>>())
    }

    #[test]
    fn good_messages_decode_the_same_whole_and_byte_by_byte() {
        for (message, body, rest) in [
            ("0\r\n\r\n", "", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello", ""),
            ("5;a=b;c=\"d\"\r\nhello\r\n1 ;x\r\n!\r\n000\r\n\r\nGET", "hello!", "GET"),
            ("A\r\n0123456789\r\n00000000000000a\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", ""),
            ("2\r\n\r\n\r\n0;last\r\n\r\n", "\r\n", ""),
        ] {
            let whole = at_once(message.as_bytes()).unwrap().expect("complete");
            assert_eq!((whole.0.as_slice(), whole.2.as_slice()), (body.as_bytes(), rest.as_bytes()));
            assert_eq!(byte_by_byte(message.as_bytes()).unwrap(), Some(whole), "{message:?}");
        }
    }

    #[test]
    fn bad_messages_are_refused_whole_and_byte_by_byte() {
        let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(5));
        let long = format!("0\r\na: {}\r\n\r\n", "x".repeat(600));
        let extension = format!("1;{}\r\n", "x".repeat(17_000));
        for (message, kind) in [
            ("\r\n", Kind::BadRequest),
            ("x\r\n", Kind::BadRequest),
            ("-1\r\n", Kind::BadRequest),
            ("+1\r\na", Kind::BadRequest),
            ("0x1\r\na", Kind::BadRequest),
            ("1\na\r\n", Kind::BadRequest),
            ("1\r\rx", Kind::BadRequest),
            ("1 \r\na\r\n", Kind::BadRequest),
            ("1 2\r\n", Kind::BadRequest),
            ("1;a\nb\r\n", Kind::BadRequest),
            ("1;a\0b\r\n", Kind::BadRequest),
            ("1\r\nab\r\n", Kind::BadRequest),
            ("1\r\na\n0\r\n\r\n", Kind::BadRequest),
            ("fffffffffffffffff\r\n", Kind::BadRequest),
            ("00000000000000001\r\n", Kind::BadRequest),
            ("0\r\na: b\n\r\n", Kind::BadRequest),
            ("0\r\na : b\r\n\r\n", Kind::BadRequest),
            ("0\r\na: b\r\n c\r\n\r\n", Kind::BadRequest),
            ("0\r\n\nX: y\r\n\r\n", Kind::BadRequest),
            (&many, Kind::HeadersTooLarge),
            (&long, Kind::HeadersTooLarge),
            (&extension, Kind::BadRequest),
        ] {
            assert_eq!(at_once(message.as_bytes()), Err(kind), "{message:?}");
            assert_eq!(byte_by_byte(message.as_bytes()), Err(kind), "{message:?}");
        }
    }

    #[test]
    fn trailers_come_without_what_must_not_be_one() {
        let message = b"1\r\na\r\n0\r\nx-sum: 7\r\nHost: evil\r\ncontent-length: 3\r\nX-Sum: 8\r\n\r\n";
        let (_, trailers, _) = byte_by_byte(message).unwrap().unwrap();
        let trailers = trailers.unwrap();
        assert_eq!(trailers.len(), 2);
        assert_eq!(trailers.get_all("x-sum").iter().collect::<Vec<_>>(), ["7", "8"]);
    }

    proptest! {
        /// The decoder agrees with a naive model however the input is cut.
        #[test]
        fn decoding_what_was_encoded_gives_it_back(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            cuts in prop::collection::vec(any::<usize>(), 0..12),
            rest in prop::collection::vec(any::<u8>(), 0..6),
        ) {
            let mut message = Vec::new();
            for chunk in &chunks {
                write_size(&mut message, chunk.len());
                message.extend_from_slice(chunk);
                message.extend_from_slice(b"\r\n");
            }
            message.extend_from_slice(b"0\r\n\r\n");
            message.extend_from_slice(&rest);
            let decoded = decode_in_pieces(&message, &cuts).unwrap().unwrap();
            prop_assert_eq!(decoded, (chunks.concat(), None, rest));
        }

        /// Whatever comes, cutting it differently changes nothing.
        #[test]
        fn cuts_never_change_the_outcome(
            message in "[0-3a;\r\n x:]{0,30}",
            cuts in prop::collection::vec(any::<usize>(), 0..12),
        ) {
            let whole = at_once(message.as_bytes());
            prop_assert_eq!(decode_in_pieces(message.as_bytes(), &cuts), whole);
        }

        #[test]
        fn sizes_are_written_in_hexadecimal(size in any::<usize>()) {
            let mut out = Vec::new();
            write_size(&mut out, size);
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("{size:x}\r\n"));
        }
    }
}

//! Answers to health checks, and gRPC messages as they are told from their frames.

use super::serving_status;
use crate::cache;
use prost::Message;

pub(crate) const ANSWERS: &[&[u8]] =
    &[b"\0\0\0\0\x02\x08\x01", b"\0\0\0\0\0", b"\0\0\0\0\x09\x12\x01x\x08\x02\x1d1234", b"\x01\0\0\0\x02hi"];

/// The same as `prost` reads it.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// What is a message to us is one to others, and says the same.
pub(crate) fn answer(frame: &[u8]) {
    let one = cache::fuzz::is_one_message(frame);
    let Some(status) = serving_status(frame) else { return };
    assert!(one && frame[0] == 0, "it is one whole frame");
    if let Ok(answer) = Answer::decode(&frame[5..]) {
        assert_eq!(status as i32, answer.status);
    }
}

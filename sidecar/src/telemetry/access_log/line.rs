//! One request as a line of JSON. Whatever came over the wire is escaped and bounded.

use super::super::{
    metrics::Direction,
    trace::{RequestId, Trace},
};
use crate::error::Kind;
use std::{
    fmt::Write,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use weft_config::identity::SpiffeId;

/// Characters of one text that are kept; more is cut and marked with `...`.
const LONGEST_TEXT: usize = 1024;

/// What is only noted down while the log is on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Detail {
    /// The request's method.
    pub(crate) method: String,
    /// The request's target; from `?` on nothing is logged, since queries carry secrets.
    pub(crate) path: String,
    /// The host that was asked for.
    pub(crate) host: String,
    /// The service, `<namespace>/<name>`.
    pub(crate) service: String,
    /// The route rule.
    pub(crate) route: String,
    /// Where the last attempt went.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Who is at the other end of the mesh hop.
    pub(crate) peer: Option<SpiffeId>,
    /// How the response cache answered; empty where none is involved.
    pub(crate) cache: &'static str,
    /// What the caller spoke.
    pub(crate) downstream: &'static str,
    /// What was spoken on the hop between the sidecars; empty if there was none.
    pub(crate) wire: &'static str,
    /// Bytes of the request's body.
    pub(crate) bytes_in: u64,
}

/// A request that ended.
pub(crate) struct Entry<'a> {
    /// Which way.
    pub(crate) direction: Direction,
    /// The caller's status.
    pub(crate) status: u16,
    /// The status in gRPC's own terms.
    pub(crate) grpc_status: Option<u16>,
    /// Why the sidecar answered by itself, or gave up.
    pub(crate) error: Option<Kind>,
    /// Bytes of the response's body.
    pub(crate) bytes_out: u64,
    /// From the request's head to the end of the response.
    pub(crate) duration: Duration,
    /// Time spent waiting for upstreams, over all attempts.
    pub(crate) upstream: Duration,
    /// How often an upstream was tried.
    pub(crate) attempts: u32,
    /// Its trace.
    pub(crate) trace: &'a Trace,
    /// Its ID.
    pub(crate) request_id: &'a RequestId,
    /// The rest.
    pub(crate) detail: &'a Detail,
}

impl Entry<'_> {
    /// The line, with its line break.
    pub(super) fn line(&self, now: SystemTime) -> String {
        let detail = self.detail;
        let path = detail.path.split(['?', '#']).next().unwrap_or_default();
        let mut line = Line { text: String::with_capacity(640) };
        line.text.push('{');
        line.key("time");
        line.text.push('"');
        push_time(&mut line.text, now);
        line.text.push('"');
        line.string("direction", self.direction.name());
        line.string("method", &detail.method);
        line.string("path", path);
        line.string("host", &detail.host);
        line.string("service", &detail.service);
        line.string("route", &detail.route);
        line.shown("endpoint", detail.endpoint);
        line.number("status", self.status.into());
        if let Some(status) = self.grpc_status {
            line.number("grpc_status", status.into());
        }
        if let Some(kind) = self.error {
            let row = kind.row();
            line.string("error", row.name);
            line.string("flag", row.flag);
        }
        line.number("bytes_in", detail.bytes_in);
        line.number("bytes_out", self.bytes_out);
        line.milliseconds("duration_ms", self.duration);
        line.milliseconds("upstream_ms", self.upstream);
        line.number("attempts", self.attempts.into());
        line.string("cache", detail.cache);
        line.shown("trace_id", Some(self.trace.id()));
        line.shown("span_id", Some(format_args!("{:016x}", self.trace.span_id)));
        line.string("request_id", self.request_id.as_str());
        line.shown("peer", detail.peer.as_ref());
        line.string("downstream_protocol", detail.downstream);
        line.string("mesh_protocol", detail.wire);
        line.text.push_str("}\n");
        line.text
    }
}

/// A line while it grows. Empty texts are left out: most requests lack one thing or another.
struct Line {
    text: String,
}

impl Line {
    fn key(&mut self, name: &str) {
        if self.text.len() > 1 {
            self.text.push(',');
        }
        self.text.push('"');
        self.text.push_str(name);
        self.text.push_str("\":");
    }

    fn number(&mut self, name: &str, value: u64) {
        self.key(name);
        self.text.push_str(itoa::Buffer::new().format(value));
    }

    fn milliseconds(&mut self, name: &str, value: Duration) {
        self.key(name);
        let microseconds = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        // Writing to a String cannot fail.
        let _ = write!(self.text, "{}.{:03}", microseconds / 1000, microseconds % 1000);
    }

    fn string(&mut self, name: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        self.key(name);
        self.text.push('"');
        push_escaped(&mut self.text, value);
        self.text.push('"');
    }

    fn shown(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.string(name, &value.to_string());
        }
    }
}

/// Everything but plain ASCII is written as an escape, so that no reader or terminal takes it for anything else.
fn push_escaped(out: &mut String, text: &str) {
    for (count, character) in text.chars().enumerate() {
        if count == LONGEST_TEXT {
            out.push_str("...");
            return;
        }
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
}

/// RFC 3339 in UTC with milliseconds.
pub(super) fn push_time(out: &mut String, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let milliseconds = since.subsec_millis();
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z");
}

/// Year, month and day of a number of days since 1970-01-01. Counted in years that begin in March, so that a leap day
/// is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let since_march_0 = days + 719_468;
    let era = since_march_0 / DAYS_OF_400_YEARS;
    let day = since_march_0 % DAYS_OF_400_YEARS;
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next_year, month, day_of_month)
}

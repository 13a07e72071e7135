//! What is said of things that are going away, as the header fields of RFC 9745 and RFC 8594.

use super::attached::Attached;
use super::findings::Findings;
use crate::document::traffic_policy::Deprecation as Written;
use crate::parse::format::date_or_time;
use crate::snapshot::Deprecation;
use http::HeaderValue;

/// `None` only for a time that makes no sense, which is not let into force.
pub(super) fn compile(written: &Written, by: &Attached<'_>, findings: &mut Findings) -> Option<Deprecation> {
    let link = written.link.as_ref().and_then(|url| {
        let fits =
            !url.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '<' | '>' | '"'));
        let field = fits.then(|| format!("<{url}>; rel=\"deprecation\"; type=\"text/html\""));
        let value = field.and_then(|text| HeaderValue::from_str(&text).ok());
        if value.is_none() {
            let message = format!("`{}` is no URL that a header can carry", url.escape_debug());
            findings.error(by.found, "spec.deprecation.link", message, "write it percent-encoded");
        }
        value
    });
    let sunset = written.sunset.as_deref().and_then(Moment::read);
    Some(Deprecation {
        of: by.target().into(),
        deprecation: HeaderValue::from_str(&format!("@{}", Moment::read(&written.since)?.seconds())).ok()?,
        sunset: sunset.and_then(|time| HeaderValue::from_str(&time.imf_fixdate()).ok()),
        link,
    })
}

/// A time in UTC.
#[derive(Clone, Copy)]
struct Moment {
    year: u16,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Moment {
    fn read(text: &str) -> Option<Self> {
        let (year, month, day, hour, minute, second) = date_or_time(text)?;
        Some(Self { year, month, day, hour, minute, second })
    }

    /// Days since 1970-01-01, counting years from March so that the leap day is the last of its year.
    fn days(self) -> i64 {
        let (year, month) = (i64::from(self.year), i64::from(self.month));
        let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let leaps = y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400);
        y * 365 + leaps + (m * 153 + 2) / 5 + i64::from(self.day) - 1 - 719_468
    }

    fn seconds(self) -> i64 {
        let (hour, minute) = (i64::from(self.hour), i64::from(self.minute));
        self.days() * 86_400 + hour * 3600 + minute * 60 + i64::from(self.second)
    }

    /// As HTTP writes times (RFC 9110 section 5.6.7).
    fn imf_fixdate(self) -> String {
        const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let of_week = usize::try_from(self.days().rem_euclid(7)).unwrap_or_default();
        let month = MONTHS.get(usize::from(self.month).saturating_sub(1)).copied().unwrap_or_default();
        format!(
            "{}, {:02} {month} {:04} {:02}:{:02}:{:02} GMT",
            DAYS.get(of_week).copied().unwrap_or_default(),
            self.day,
            self.year,
            self.hour,
            self.minute,
            self.second
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_http_writes_them() {
        for (text, seconds, http) in [
            ("1970-01-01", 0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("1994-11-06T08:49:37Z", 784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("2000-02-29T12:00:00Z", 951_825_600, "Tue, 29 Feb 2000 12:00:00 GMT"),
            ("2026-12-31T23:59:59Z", 1_798_761_599, "Thu, 31 Dec 2026 23:59:59 GMT"),
            ("1969-12-31", -86_400, "Wed, 31 Dec 1969 00:00:00 GMT"),
        ] {
            let time = Moment::read(text).expect("a time");
            assert_eq!((time.seconds(), time.imf_fixdate().as_str()), (seconds, http), "{text}");
        }
    }
}
